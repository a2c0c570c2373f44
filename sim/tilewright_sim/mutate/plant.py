"""Put bugs into a block's netlist, each behind a comparison with the port `mutant`.

A bug is planted where a net is driven: beside the cell that drives it comes a second one, which is wrong, and a
multiplexer that takes the wrong one while `mutant` has the bug's number. The wrong cell reads no net that the right
one does not read, so no combinational loop can come about.

The netlist is Amaranth's own (`amaranth.hdl._nir`): the last form of the design that knows which line of Python each
cell comes from. It is private to Amaranth; the version is pinned, and tests/sim/test_mutate.py fails where it changes.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["KINDS", "Mutant", "planted_verilog"]

KINDS = (
    "operator",
    "off by one",
    "wrong sign",
    "stuck bit",
    "dropped stall",
    "lost reset",
    "lost assignment",
)
"""What is planted: another operator; a result or a bound that is one more; an extension by zeros in place of the sign,
or a comparison without it; a bit that is always 0 or 1; a handshake that is not waited for; a register that keeps its
value in reset; an assignment under a condition that does not happen."""

MUTANT = "mutant"
"""The port that says which bug is in force; the benches' `start_clock` drives it."""
MUTANT_BITS = 16

_SWAPPED = {
    "+": "-", "-": "+", "*": "+", "&": "|", "|": "&", "^": "|", "<<": "u>>", "u>>": "<<", "r|": "r&", "r&": "r|",
    "==": "!=", "!=": "==", "u<": "u>", "u>": "u<", "u<=": "u>=", "u>=": "u<=",
}  # fmt: skip
_STRICT = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_HANDSHAKE = re.compile(
    r"(?:^|_)(?:ready|valid|en|busy|full|hold|held|running|waiting|permit|free|go|taken|take|able|open|able|start)_?$"
)

Net = Any
Value = tuple[Any, ...]
Make = Callable[["_Planter", Any, Value], Value]
"""From the cell and its outputs to what is there in their place."""


@dataclass(frozen=True)
class Mutant:
    """A bug that is planted.

    Parameters
    ----------
    number : int
        The value of `mutant` that puts it in force, from 1 on.
    kind : str
        One of `KINDS`.
    what : str
        What is changed.
    where : str
        The Python line that the changed cell comes from, as path:line.
    module : str
        The path of submodules.
    """

    number: int
    kind: str
    what: str
    where: str
    module: str


@dataclass(frozen=True)
class _Site:
    """A bug that could be planted: at a cell (0: the inputs of the design), and how."""

    cell: int
    kind: str
    what: str
    where: tuple[str, int]
    make: Make
    net: Net = None  # the input, where the cell is 0


def planted_verilog(
    component: Component, name: str, *, count: int, seed: int, plain: bool = True
) -> tuple[str, list[Mutant]]:
    """Return the Verilog of a block with bugs, as one flat module with a port `mutant`, and what they are.

    Parameters
    ----------
    component : Component
        The block.
    name : str
        The top module's name.
    count : int
        How many, at most: a small block may have fewer places. Each kind gets its turn.
    seed : int
        Which ones: the same seed plants the same bugs.
    plain : bool
        Whether the block's ports are made plain vectors (`plain_ports`); else it has plain ports of its own.
    """
    from tilewright_hw.generate import flatten, plain_ports

    planter = _Planter(plain_ports(component) if plain else component, name, wrapped=plain)
    mutants = planter.plant(planter.choose(count, random.Random(f"{seed} {name}")))
    return flatten(planter.rtlil(), top=name), mutants


class _Planter:
    """A netlist on its way from Amaranth's front end to RTLIL.

    Parameters
    ----------
    component : Component
        The design, with plain ports.
    name : str
        The top module's name.
    wrapped : bool
        Whether the top module only renames ports, so that nothing is planted in it.
    """

    def __init__(self, component: Component, name: str, *, wrapped: bool) -> None:
        from amaranth.hdl import Fragment, Signal, Value, _ir, _nir
        from amaranth.lib import wiring

        self.name, self._wrapped = name, wrapped
        self._ir, self._nir = _ir, _nir
        ports: dict[str, Any] = {MUTANT: (Signal(MUTANT_BITS, name=MUTANT), _ir.PortDirection.Input)}
        for path, member, value in component.signature.flatten(component):
            flow = _ir.PortDirection.Input if member.flow == wiring.In else _ir.PortDirection.Output
            ports["__".join(map(str, path))] = (Value.cast(value), flow)
        self._design = Fragment.get(component, None).prepare(ports=ports, hierarchy=(name,))
        self.netlist = _nir.Netlist()
        _ir._emit_netlist(self.netlist, self._design)
        self.netlist.check_comb_cycles()
        self.netlist.resolve_all_nets()
        self._merge_copies()
        self._live = self._reached()
        self._names = self._named_cells()
        self._deciding = self._control()

    def rtlil(self) -> str:
        """Return the netlist as RTLIL."""
        from amaranth.back import rtlil
        from amaranth.hdl import _ast

        netlist = self.netlist
        self._ir._compute_net_flows(netlist)
        self._ir._compute_ports(netlist)
        self._ir._compute_ionet_dirs(netlist)
        self._ir._compute_io_ports(netlist, self._design.ports)
        empty, names, builder = rtlil.EmptyModuleChecker(netlist), _ast.SignalDict(), rtlil.Design(emit_src=False)
        for index, module in enumerate(netlist.modules):
            if not empty.is_empty(index):
                made = builder.module(".".join(module.name), src_loc=module.src_loc)
                if index == 0:
                    made.attribute("top", 1)
                rtlil.ModuleEmitter(made, netlist, module, names, empty_checker=empty).emit()
        return str(builder)

    def _merge_copies(self) -> None:
        """Let operators that are the same be one.

        An expression that Python names once and uses twice is two cells. A bug in its line would be in both; in one of
        them alone it often changes nothing.
        """
        nir, netlist = self._nir, self.netlist
        merged: set[int] = set()
        while True:
            first: dict[Any, int] = {}
            replaced: dict[Net, Net] = {}
            for index, cell in enumerate(netlist.cells):
                if not isinstance(cell, nir.Operator) or index in merged:
                    continue
                key = (cell.module_idx, cell.operator, tuple(tuple(value) for value in cell.inputs))
                if (kept := first.setdefault(key, index)) != index:
                    merged.add(index)
                    for bit in range(cell.width):
                        replaced[nir.Net.from_cell(index, bit)] = nir.Net.from_cell(kept, bit)
            if not replaced:
                return
            lookup = _Replaced(nir, replaced)
            for cell in netlist.cells:
                cell.resolve_nets(lookup)
            for signal in netlist.signals:
                netlist.signals[signal] = lookup.resolve_value(netlist.signals[signal])

    # Where bugs can be.

    def _input(self, name: str) -> Value:
        start, width = self.netlist.top.ports_i[name]
        return tuple(self._nir.Net.from_cell(0, start + bit) for bit in range(width))

    def _reached(self) -> set[Net]:
        """Return the nets that an output depends on, bit by bit: a bug in another one is none."""
        cells, nir = self.netlist.cells, self._nir
        writes: dict[int, list[Any]] = defaultdict(list)
        for cell in cells:
            if isinstance(cell, nir.SyncWritePort):
                writes[cell.memory].append(cell)
        live: set[Net] = set()
        waiting = list(self.netlist.top.input_nets())
        while waiting:
            net = waiting.pop()
            if net in live or net.is_const or net.cell == 0:
                continue
            live.add(net)
            cell = cells[net.cell]
            waiting += self._sources(cell, net.bit)
            if isinstance(cell, nir.SyncReadPort | nir.AsyncReadPort):
                for port in writes[cell.memory]:
                    waiting += (port.data[net.bit], *port.addr, *port.en)
        return live

    def _sources(self, cell: Any, bit: int) -> list[Net]:
        """Return what a bit of a cell's output depends on."""
        nir = self._nir
        if isinstance(cell, nir.Operator):
            if cell.operator in ("&", "|", "^", "~"):
                return [value[bit] for value in cell.inputs]
            if cell.operator in ("+", "-", "*"):
                return [net for value in cell.inputs for net in value[: bit + 1]]
            if cell.operator == "m":
                return [cell.inputs[0][0], cell.inputs[1][bit], cell.inputs[2][bit]]
        if isinstance(cell, nir.FlipFlop):
            return [cell.data[bit]]
        if isinstance(cell, nir.AssignmentList):
            nets = [cell.default[bit]]
            for assignment in cell.assignments:
                if 0 <= bit - assignment.start < len(assignment.value):
                    nets += (assignment.cond, assignment.value[bit - assignment.start])
            return nets
        return list(cell.input_nets())

    def _control(self) -> set[int]:
        """Return the cells with the next values of registers that decide something.

        Those are what a condition, a memory's enable or an output of one bit depends on without another register
        between. What data registers hold after a reset is nobody's business, while nothing says that it is valid.
        """
        cells, nir = self.netlist.cells, self._nir
        outputs = [value[0] for value in self.netlist.top.ports_o.values() if len(value) == 1]
        waiting = list(outputs)
        for index in {net.cell for net in self._live}:
            cell = cells[index]
            if isinstance(cell, nir.Matches) and tuple(cell.value) != self._input("rst"):
                waiting += cell.value
            if isinstance(cell, nir.SyncReadPort):
                waiting.append(cell.en)
        for cell in cells:
            if isinstance(cell, nir.SyncWritePort):
                waiting += cell.en
        seen: set[Net] = set()
        deciding: set[int] = set()
        while waiting:
            net = waiting.pop()
            if net in seen or net.is_const or net.cell == 0:
                continue
            seen.add(net)
            cell = cells[net.cell]
            if isinstance(cell, nir.FlipFlop):
                deciding.update(bit.cell for bit in cell.data if bit.is_cell)
            else:
                waiting += cell.input_nets()
        return deciding

    def choose(self, count: int, rng: random.Random) -> list[_Site]:
        """Return places for bugs: of each kind in turn, at random within it."""
        groups: dict[str, list[_Site]] = {kind: [] for kind in KINDS}
        for site in self._sites(rng):
            groups[site.kind].append(site)
        for sites in groups.values():
            rng.shuffle(sites)
        chosen: list[_Site] = []
        while len(chosen) < count and any(groups.values()):
            for sites in groups.values():
                if sites and len(chosen) < count:
                    chosen.append(sites.pop())
        return chosen

    def _sites(self, rng: random.Random) -> Iterator[_Site]:
        nir = self._nir
        live: dict[int, list[int]] = defaultdict(list)
        for net in sorted(self._live):
            live[net.cell].append(net.bit)
        for index, bits in sorted(live.items()):
            cell = self.netlist.cells[index]
            if (self._wrapped and cell.module_idx == 0) or cell.src_loc is None:
                continue
            if isinstance(cell, nir.Operator):
                yield from self._operator_sites(index, cell, bits)
            if isinstance(cell, nir.AssignmentList):
                yield from self._assignment_sites(index, cell, bits)
            if isinstance(cell, nir.Operator | nir.AssignmentList | nir.FlipFlop | nir.SyncReadPort | nir.Part):
                width = len(cell.output_nets(index))
                bit, value = rng.choice(bits), rng.getrandbits(1)
                name = f"{self._name(index)} bit {bit} of {width} is always {value}"
                yield _Site(index, "stuck bit", name, self._line(index), _stuck(bit, value))
        yield from self._handshake_sites(rng)

    def _operator_sites(self, index: int, cell: Any, live: list[int]) -> Iterator[_Site]:
        op, where = cell.operator, cell.src_loc
        if (op in _SWAPPED and not (op == "-" and len(cell.inputs) == 1)) and not (
            op in ("<<", "u>>") and cell.width == 1
        ):
            yield _Site(index, "operator", f"{op} is {_SWAPPED[op]}", where, _operator(_SWAPPED[op]))
        if op in ("-", "~") and len(cell.inputs) == 1:
            kind = "wrong sign" if op == "-" else "operator"
            yield _Site(index, kind, f"{op}x is x", where, lambda planter, c, out: tuple(c.inputs[0]))
        if op == "m":
            yield _Site(index, "operator", "Mux takes the other one", where, _crossed)
        if op in ("+", "-") and len(cell.inputs) == 2:
            yield _Site(index, "off by one", f"{op} gives one more", where, _one_more)
        if op in ("==", "!=") and any(self._is_const(value) for value in cell.inputs):
            yield _Site(index, "off by one", f"{op} with a constant that is one more", where, _next_constant)
        if op[0] in "us" and op[1:] in _STRICT:
            strict = op[0] + _STRICT[op[1:]]
            yield _Site(index, "off by one", f"{op} is {strict}", where, _operator(strict))
        if op in ("s<", "s>", "s<=", "s>=", "s>>"):
            yield _Site(index, "wrong sign", f"{op} is u{op[1:]}", where, _operator("u" + op[1:]))
        for place, value in enumerate(cell.inputs):
            bits = _sign_bits(value)
            if bits and (op == "==" or (op in ("+", "-", "*", "m") and live[-1] >= len(value) - bits)):
                what = f"operand {place} of {op} is extended by {bits} zeros, not by its sign"
                yield _Site(index, "wrong sign", what, where, _zero_extended(place, bits))

    def _assignment_sites(self, index: int, cell: Any, live: list[int]) -> Iterator[_Site]:
        for place, assignment in enumerate(cell.assignments):
            where = assignment.src_loc
            if place == len(cell.assignments) - 1 and self._is_reset(assignment.cond):
                if index not in self._deciding:
                    continue
                what = f"{self._name(index)} is not reset"
                yield _Site(index, "lost reset", what, self._line(index), _without(place))
                continue
            first, end = assignment.start, assignment.start + len(assignment.value)
            if not any(first <= bit < end for bit in live):
                continue
            what = f"an assignment to {self._name(index)} does not happen"
            yield _Site(index, "lost assignment", what, where, _without(place))
            bits = _sign_bits(assignment.value)
            if bits and any(end - bits <= bit < end for bit in live):
                what = f"what {self._name(index)} gets is extended by {bits} zeros, not by its sign"
                yield _Site(index, "wrong sign", what, where, _assigned_unsigned(place, bits))

    def _line(self, index: int) -> tuple[str, int]:
        """Return where a cell's value is made: for a register, where it is assigned, which says more than its name."""
        nir, cell = self._nir, self.netlist.cells[index]
        if isinstance(cell, nir.FlipFlop) and cell.data and cell.data[0].is_cell and cell.data[0].cell:
            source = self.netlist.cells[cell.data[0].cell]
            if isinstance(source, nir.AssignmentList):
                cell = source
        if isinstance(cell, nir.AssignmentList) and cell.assignments:
            return tuple(cell.assignments[0].src_loc)
        return tuple(cell.src_loc)

    def _name(self, index: int) -> str:
        """Return the name of the signal that a cell drives, or of the register that it is the next value of."""
        cell = self.netlist.cells[index]
        kind = f"the result of {cell.operator}" if isinstance(cell, self._nir.Operator) else type(cell).__name__
        return self._names.get(index, kind)

    def _named_cells(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for module in self.netlist.modules:
            for signal, name in module.signal_names.items():
                for net in self.netlist.signals[signal]:
                    if net.is_cell and net.cell:
                        names.setdefault(net.cell, name)
        for index, cell in enumerate(self.netlist.cells):
            if isinstance(cell, self._nir.FlipFlop) and index in names:
                for net in cell.data:
                    if net.is_cell and net.cell:
                        names.setdefault(net.cell, names[index])
        return names

    def _is_reset(self, cond: Net) -> bool:
        cells, nir = self.netlist.cells, self._nir
        if not cond.is_cell or not isinstance(cells[cond.cell], nir.PriorityMatch):
            return False
        match = cells[cond.cell].inputs[0]
        if match.is_const or not isinstance(cells[match.cell], nir.Matches):
            return False
        return tuple(cells[match.cell].value) == self._input("rst")

    def _handshake_sites(self, rng: random.Random) -> Iterator[_Site]:
        """Single bits whose names say that something waits for them: as if it did not."""
        seen: set[Net] = set()
        for module in self.netlist.modules[1 if self._wrapped else 0 :]:
            for signal, name in module.signal_names.items():
                value = self.netlist.signals[signal]
                found = _HANDSHAKE.search(name)
                if len(value) != 1 or not found or value[0].is_const or value[0] in seen:
                    continue
                net = value[0]
                if not self._can_be_replaced(net):
                    continue
                seen.add(net)
                level = 1 if found[0].strip("_") in ("ready", "valid") else rng.getrandbits(1)
                what = f"{name} is always {level}"
                where = self._line(net.cell) if net.cell else signal.src_loc
                yield _Site(net.cell, "dropped stall", what, where, _stuck(net.bit, level), net)

    def _can_be_replaced(self, net: Net) -> bool:
        """Whether the net is an input of the design or driven by a cell whose outputs a multiplexer may replace."""
        if net.cell == 0:
            return net not in (*self._input("clk"), *self._input("rst"))
        nir, cell = self._nir, self.netlist.cells[net.cell]
        kinds = nir.Operator | nir.AssignmentList | nir.FlipFlop | nir.SyncReadPort | nir.Part
        return net in self._live and isinstance(cell, kinds)

    def _is_const(self, value: Value) -> bool:
        return all(net.is_const for net in value)

    # Planting.

    def add(self, module: int, operator: str, *inputs: Any, where: Any = None) -> Value:
        """Add an operator to a module; return its output."""
        nir = self._nir
        cell = nir.Operator(module, operator=operator, inputs=inputs, src_loc=where)
        return tuple(self.netlist.add_value_cell(cell.width, cell))

    def constant(self, value: int, width: int) -> Value:
        """Return a constant."""
        return tuple(self._nir.Value.from_const(value & (1 << width) - 1, width))

    def plant(self, sites: list[_Site]) -> list[Mutant]:
        """Put bugs in; return what they are, numbered in the order of `sites`."""
        by_cell: dict[int, list[tuple[int, _Site]]] = defaultdict(list)
        for number, site in enumerate(sites, 1):
            by_cell[site.cell].append((number, site))
        mutants = [self._describe(number, site) for number, site in enumerate(sites, 1)]
        self._plant_inputs(by_cell.pop(0, []))
        for index, bugs in by_cell.items():
            self._plant_at(index, bugs)
        return mutants

    def _describe(self, number: int, site: _Site) -> Mutant:
        path, line = site.where
        for package in ("tilewright_hw/", "amaranth/"):
            if package in path:
                path = package + path.rpartition(package)[2]
        module = self.netlist.modules[self.netlist.cells[site.cell].module_idx]
        return Mutant(number, site.kind, site.what, f"{path}:{line}", ".".join(module.name[1:]))

    def _selected(self, module: int, number: int, wrong: Value, right: Value) -> Value:
        chosen = self.add(module, "==", self._input(MUTANT), self.constant(number, MUTANT_BITS))
        return self.add(module, "m", chosen, wrong, right)

    def _plant_at(self, index: int, bugs: list[tuple[int, _Site]]) -> None:
        """Move a cell aside, and leave a multiplexer in its place, where all who read it find it."""
        netlist, nir = self.netlist, self._nir
        cell = netlist.cells[index]
        width = len(cell.output_nets(index))
        right: Value = tuple(netlist.add_value_cell(width, cell))
        value = right
        for number, site in bugs:
            value = self._selected(cell.module_idx, number, site.make(self, cell, right), value)
        netlist.cells[index] = nir.Operator(
            cell.module_idx, operator="m", inputs=(self.constant(1, 1), value, value), src_loc=cell.src_loc
        )

    def _plant_inputs(self, bugs: list[tuple[int, _Site]]) -> None:
        """Let all who read an input of the design read a multiplexer in its place."""
        replaced: dict[Net, Net] = {}
        for number, site in bugs:
            level = site.make(self, None, (site.net,) * (site.net.bit + 1))[site.net.bit]
            replaced[site.net] = self._selected(0, number, (level,), (replaced.get(site.net, site.net),))[0]
        before = len(self.netlist.cells)
        multiplexers = {net.cell for net in replaced.values()}
        for index, cell in enumerate(self.netlist.cells[:before]):
            if index and index not in multiplexers:  # an output that is an input stays so
                cell.resolve_nets(_Replaced(self._nir, replaced))


class _Replaced:
    """Stands in for a netlist where a cell looks its nets up: gives other ones."""

    def __init__(self, nir: Any, replaced: dict[Net, Net]) -> None:
        self._nir, self._replaced = nir, replaced

    def resolve_net(self, net: Net) -> Net:
        """Return what stands in for a net."""
        return self._replaced.get(net, net)

    def resolve_value(self, value: Any) -> Any:
        """Return what stands in for the nets of a value."""
        return self._nir.Value(self.resolve_net(net) for net in value)


def _sign_bits(value: Value) -> int:
    """Return by how many bits a value is extended by its sign."""
    bits = 0
    while bits + 1 < len(value) and value[-1 - bits] == value[-2 - bits] and not value[-1].is_const:
        bits += 1
    return bits


def _unsigned(planter: _Planter, value: Value, bits: int) -> Value:
    return (*value[:-bits], *planter.constant(0, bits))


def _operator(operator: str) -> Make:
    return lambda planter, cell, out: planter.add(cell.module_idx, operator, *cell.inputs, where=cell.src_loc)


def _crossed(planter: _Planter, cell: Any, out: Value) -> Value:
    which, first, second = cell.inputs
    return planter.add(cell.module_idx, "m", which, second, first, where=cell.src_loc)


def _one_more(planter: _Planter, cell: Any, out: Value) -> Value:
    return planter.add(cell.module_idx, "+", out, planter.constant(1, len(out)), where=cell.src_loc)


def _next_constant(planter: _Planter, cell: Any, out: Value) -> Value:
    inputs = []
    for value in cell.inputs:
        if planter._is_const(value):
            number = sum(net.const << bit for bit, net in enumerate(value))
            inputs.append(planter.constant(number + 1, len(value)))
        else:
            inputs.append(tuple(value))
    return planter.add(cell.module_idx, cell.operator, *inputs, where=cell.src_loc)


def _zero_extended(place: int, bits: int) -> Make:
    def make(planter: _Planter, cell: Any, out: Value) -> Value:
        inputs = [_unsigned(planter, v, bits) if i == place else tuple(v) for i, v in enumerate(cell.inputs)]
        return planter.add(cell.module_idx, cell.operator, *inputs, where=cell.src_loc)

    return make


def _stuck(bit: int, level: int) -> Make:
    return lambda planter, cell, out: (*out[:bit], *planter.constant(level, 1), *out[bit + 1 :])


def _relisted(planter: _Planter, cell: Any, assignments: list[Any]) -> Value:
    made = planter._nir.AssignmentList(
        cell.module_idx, default=cell.default, assignments=assignments, src_loc=cell.src_loc
    )
    return tuple(planter.netlist.add_value_cell(len(cell.default), made))


def _without(place: int) -> Make:
    def make(planter: _Planter, cell: Any, out: Value) -> Value:
        return _relisted(planter, cell, [a for i, a in enumerate(cell.assignments) if i != place])

    return make


def _assigned_unsigned(place: int, bits: int) -> Make:
    def make(planter: _Planter, cell: Any, out: Value) -> Value:
        assignments = list(cell.assignments)
        old = assignments[place]
        assignments[place] = planter._nir.Assignment(
            cond=old.cond, start=old.start, value=_unsigned(planter, old.value, bits), src_loc=old.src_loc
        )
        return _relisted(planter, cell, assignments)

    return make
