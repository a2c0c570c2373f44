"""Where the cycles of a run go, as the cycle model predicts them: by operation and by unit.

Nothing is executed: a program and its register tables are all that the cycle model reads, so a model's shape is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tilewright.compiler.encoder import EncoderCompiler
from tilewright.compiler.gemm import Product
from tilewright.compiler.image import ModelImage
from tilewright.compiler.llama import LlamaCompiler
from tilewright.formats import DEFAULT, Formats
from tilewright.model import ModelSpec
from tilewright.perf.machine import Event
from tilewright.perf.predict import Prediction, predict
from tilewright.perf.timing import row_words
from tilewright.roofline import Operation, Work, gemm, model_operations
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.arch.isa import BYTES, Op, Unit, assemble
from tilewright_hw.arch.memory_model import MemoryModel

KINDS = {
    "embedding": ("embedding", "positions", "token_types", "embedding_norm", "embedding_norm_bias"),
    "norms": ("attn_norm", "ffn_norm", "final_norm", "attn_norm_bias", "ffn_norm_bias", "final_norm_bias"),
    "queries, keys, values": ("qkv", "q", "k", "v", "wq", "wk", "wv", "bq", "bk", "bv"),
    "attention": ("attention", "q_norm", "k_norm"),
    "attention's output": ("wo", "bo"),
    "feed-forward: up": ("w_gate", "w_up", "b_gate", "b_up"),
    "feed-forward: down": ("w_down", "b_down"),
    "classifier": ("classifier",),
    "rows to and from memory": ("rows", "hidden"),
    "product": ("product",),
    "end of the program": ("end",),
}
"""Kinds of operations, and the last parts of the names of the compiler's parts and of the roofline's operations."""
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
SEQUENCER = "sequencer"
COLUMNS = (*(unit.name.lower() for unit in Unit), SEQUENCER)
"""Whom a cycle may be waited for."""


def kind_of(part: str) -> str:
    """Return the kind of an operation, or `other`."""
    return _KIND_OF.get(part.rpartition(".")[2], "other")


@dataclass
class Spent:
    """What a part of a run takes.

    Parameters
    ----------
    name : str
        The part, or the kind of many.
    waited : dict
        Cycles by whom they were waited for (`COLUMNS`).
    roofline : float
        The least cycles that its mathematics needs.
    work : Work
        Of its mathematics.
    """

    name: str
    waited: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    roofline: float = 0.0
    work: Work = field(default_factory=Work)

    @property
    def cycles(self) -> int:
        """All cycles."""
        return sum(self.waited.values())


@dataclass
class UnitTime:
    """How a unit spends the run.

    Parameters
    ----------
    name : str
        The unit.
    busy : int
        Cycles in which it holds an instruction.
    works : int
        Cycles in which it moves something: a beat, a row into the array, a word.
    waits : dict
        Cycles in which it holds none, by what its next one waits for: a unit whose instruction must be complete, or
        SEQUENCER: to be issued.
    """

    name: str
    busy: int = 0
    works: int = 0
    waits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))


@dataclass
class Profile:
    """Where the time of a run goes.

    Parameters
    ----------
    what : str
        The run.
    config : AcceleratorConfig
    memory : MemoryModel
    parts : list of Spent
        Parts in the order in which they first come; each cycle of the run is in one of them.
    units : list of UnitTime
        All units.
    counters : dict
        The hardware's counters.
    """

    what: str
    config: AcceleratorConfig
    memory: MemoryModel
    parts: list[Spent] = field(default_factory=list)
    units: list[UnitTime] = field(default_factory=lambda: [UnitTime(unit.name.lower()) for unit in Unit])
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def cycles(self) -> int:
        """From start to done, of all programs together."""
        return self.counters["CYCLES"]

    @property
    def roofline(self) -> float:
        """The least cycles that the mathematics needs."""
        return sum(part.roofline for part in self.parts)

    @property
    def work(self) -> Work:
        """What the mathematics needs."""
        return sum((part.work for part in self.parts), Work())

    def kinds(self) -> list[Spent]:
        """Return the parts summed up by their kind, in the order of `KINDS`."""
        sums: dict[str, Spent] = {}
        for part in self.parts:
            total = sums.setdefault(kind := kind_of(part.name), Spent(kind))
            total.roofline += part.roofline
            total.work += part.work
            for column, cycles in part.waited.items():
                total.waited[column] += cycles
        return [sums[kind] for kind in (*KINDS, "other") if kind in sums]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""

        def spent(part: Spent) -> dict[str, Any]:
            return asdict(part) | {"cycles": part.cycles, "kind": kind_of(part.name)}

        return {
            "run": self.what,
            "config": self.config.name,
            "configuration": self.config.to_dict(),
            "memory": asdict(self.memory),
            "cycles": self.cycles,
            "roofline_cycles": self.roofline,
            "utilization": self.roofline / self.cycles,
            "kinds": [asdict(kind) | {"cycles": kind.cycles} for kind in self.kinds()],
            "parts": [spent(part) for part in self.parts],
            "units": [asdict(unit) for unit in self.units],
            "counters": self.counters,
        }

    def add(self, prediction: Prediction, parts: Sequence[str]) -> None:
        """Add a program; `parts` names what each of its instructions is for."""
        for name, value in prediction.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        self._retire(prediction, parts)
        works = _works(prediction, self.config)
        for unit, time in zip(Unit, self.units, strict=True):
            time.busy += prediction.counters[f"{unit.name}_BUSY"]
            time.works += works[unit]
            _add_waits(time, [event for event in prediction.events if event.unit == unit])

    def add_roofline(self, operations: Sequence[Operation]) -> None:
        """Add what the mathematics of a program needs.

        An operation without a part of its own name (a tensor of several that are one matrix) counts for the part of its
        layer that is of the same kind.
        """
        for operation in operations:
            part = self._part_for(operation.name)
            part.work += operation.work
            part.roofline += operation.work.cycles(self.config, self.memory.rate)

    def _part_for(self, name: str) -> Spent:
        layer = name.rpartition(".")[0]
        of_kind = [p for p in self.parts if kind_of(p.name) == kind_of(name) and p.name.rpartition(".")[0] == layer]
        for part in of_kind:
            if part.name in (name, name.removesuffix("_bias")):
                return part
        return of_kind[0] if of_kind else self._part(name)

    def _part(self, name: str) -> Spent:
        for part in self.parts:
            if part.name == name:
                return part
        self.parts.append(Spent(name))
        return self.parts[-1]

    def _retire(self, prediction: Prediction, parts: Sequence[str]) -> None:
        """Give each cycle to one instruction: to the first in program order that is not complete in it.

        Before that is issued, the cycle is the sequencer's.
        """
        known = {part.name: part for part in self.parts}
        now = 0
        for event in prediction.events:
            if event.done <= now:
                continue
            name = parts[event.index]
            part = known.get(name) or known.setdefault(name, self._part(name))
            issued = min(max(event.pushed, now), event.done)
            part.waited[SEQUENCER] += issued - now
            part.waited[event.unit.name.lower()] += event.done - issued
            now = event.done
        self._part("end").waited[SEQUENCER] += prediction.cycles - now


def _works(prediction: Prediction, config: AcceleratorConfig) -> dict[Unit, int]:
    """Return in how many cycles each unit moves something."""
    counters = prediction.counters
    works = dict.fromkeys(Unit, 0)
    works[Unit.MATRIX] = counters["ARRAY_ROWS"]
    works[Unit.STORE] = counters["WRITE_BEATS"]
    for event in prediction.events:
        f = event.step.fields
        if event.step.op in (Op.WEIGHT, Op.LOAD):
            works[event.unit] += f["count"] * (f["bytes"] // config.bus_bytes)
        elif event.step.op == Op.VECTOR:
            works[Unit.VECTOR] += row_words(config, f) * f["m"] * f["h"]
    return works


def _add_waits(time: UnitTime, events: Sequence[Event]) -> None:
    """Add what a unit waits for between its instructions."""
    free = 0
    for event in events:
        if event.taken > free:
            issued = min(max(event.pushed, free), event.taken)
            time.waits[SEQUENCER] += issued - free
            met = min(max(event.met, issued), event.taken)
            if event.blocker is not None:
                time.waits[event.blocker.name.lower()] += met - issued
            time.waits[SEQUENCER] += event.taken - met  # the way through the queue
        free = max(free, event.done)


@dataclass(frozen=True)
class Run:
    """A program, what its instructions are for, its registers, and what its mathematics needs."""

    code: bytes
    at: int
    parts: list[str]
    operations: list[Operation]
    tables: bytes = b""
    tables_at: int = 0

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of memory: instructions and registers; zeros elsewhere."""
        for data, at in ((self.code, self.at), (self.tables, self.tables_at)):
            if at <= address < at + len(data):
                return data[address - at :][:size].ljust(size, b"\0")
        return bytes(size)


def profile(what: str, runs: Sequence[Run], config: AcceleratorConfig, memory: MemoryModel | None = None) -> Profile:
    """Predict some programs, one after another, and say where their time goes.

    Parameters
    ----------
    what : str
        Name of all of them.
    runs : sequence of Run
        The programs.
    config : AcceleratorConfig
        The accelerator.
    memory : MemoryModel
        Timing of the memory; by default 40 cycles of latency.
    """
    result = Profile(what, config, memory or MemoryModel())
    for run in runs:
        result.add(predict(config, run.read, run.at, memory=result.memory), run.parts)
        result.add_roofline(run.operations)
    return result


def decode_run(
    spec: ModelSpec, config: AcceleratorConfig, position: int, *, formats: Formats = DEFAULT, batch: int = 1
) -> Run:
    """Return the next token of `batch` sequences together, each at `position`: the largest logit's index comes out.

    InputError if the model or the position does not fit.
    """
    if not 0 <= position < spec.context:
        raise InputError(f"the context must be 1 to {spec.context}, not {position + 1}")
    image = ModelImage(spec, config, formats, batch)
    compiler = LlamaCompiler(image)
    if batch > compiler.largest_batch():
        raise InputError(f"the batch must be at most {compiler.largest_batch()} on {config.name}, not {batch}")
    schedule = compiler.decode_schedule(batch, "token" if batch == 1 else "all", position + 1)
    tables = compiler.decode_arguments([(sequence, position, 0) for sequence in range(batch)])
    operations = model_operations(spec, [(position, 1)] * batch, weights=formats.weights)
    return _run(image, schedule.assemble(), schedule.emitter.parts, tables.tobytes(), operations)


def prefill_runs(spec: ModelSpec, config: AcceleratorConfig, tokens: int, *, formats: Formats = DEFAULT) -> list[Run]:
    """Return the programs that read a prompt of so many tokens and choose the next one; an encoder's, if it is one.

    InputError if the model or the prompt does not fit.
    """
    if not 1 <= tokens <= spec.context:
        raise InputError(f"a prompt must have 1 to {spec.context} tokens, not {tokens}")
    image = ModelImage(spec, config, formats)
    if not spec.causal:
        encoder = EncoderCompiler(image)
        schedule = encoder.schedule(tokens)
        tables = encoder.arguments([0] * tokens)
        operations = model_operations(spec, [(0, tokens)], weights=formats.weights)
        return [_run(image, schedule.assemble(), schedule.emitter.parts, tables.tobytes(), operations)]
    compiler = LlamaCompiler(image)
    runs, first = [], 0
    while first < tokens:
        rows = compiler.prefill_rows(first, tokens - first, "token")
        last = first + rows == tokens
        schedule = compiler.schedule(first, rows, "token" if last else "none")
        tables = compiler.arguments(first, [0] * rows)
        operations = model_operations(spec, [(first, rows)], weights=formats.weights, logits=int(last))
        operations = [o for o in operations if last or o.name != "classifier"]
        runs.append(_run(image, schedule.assemble(), schedule.emitter.parts, tables.tobytes(), operations))
        first += rows
    return runs


def product_run(config: AcceleratorConfig, m: int, k: int, n: int, *, quantise: bool = False) -> Run:
    """Return an int8 product (m, k) @ (k, n), operands in memory, its result int32 or int8 with a scale per row."""
    product = Product(config, m, k, n, quantise=quantise)
    emitter = product.emit()
    emitter.control(Op.END)
    at = product.memory.add("program", BYTES * len(emitter.program)).start
    operation = Operation("product", gemm(m, k, n, quantised=quantise).work)
    return Run(assemble(emitter.program), at, ["product"] * len(emitter.program), [operation])


def _run(image: ModelImage, code: bytes, parts: list[str], tables: bytes, operations: list[Operation]) -> Run:
    return Run(code, image.program.start, parts, operations, tables, image.arguments.start)
