"""Runs a compiled model on a device: loads the image, feeds tokens, reads logits. Knows no particular device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.encoder import EncoderCompiler
from tilewright.compiler.image import LOGIT_ROWS, ModelImage
from tilewright.compiler.layout import ceil_div
from tilewright.compiler.llama import LlamaCompiler
from tilewright.compiler.plan import Tiling
from tilewright.compiler.schedule import Program
from tilewright.formats import DEFAULT, Formats
from tilewright.model import Checkpoint, Floats
from tilewright.quantisers import Quantiser
from tilewright_hw.arch import (
    REGISTERS,
    AcceleratorConfig,
    Device,
    DeviceError,
    ErrorCode,
    InputError,
)
from tilewright_hw.arch.isa import BASES
from tilewright_hw.arch.registers import COUNTERS, IDENTITY


@dataclass
class Counters:
    """Sums of the hardware counters over runs (all 0 on the golden device, which has no notion of time)."""

    values: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _ in COUNTERS})

    def add(self, other: dict[str, int]) -> None:
        """Add one run's counters."""
        for name, value in other.items():
            self.values[name] += value

    def __getitem__(self, name: str) -> int:
        return self.values[name]


def run_program(device: Device, address: int, max_cycles: int) -> dict[str, int]:
    """Run the program at a byte address; returns the counters.

    DeviceError if the accelerator stops with an error or is not done within `max_cycles`.
    """
    reg = REGISTERS
    device.write_register(reg["PROGRAM_LO"].address, address & 0xFFFFFFFF)
    device.write_register(reg["PROGRAM_HI"].address, address >> 32)
    device.write_register(reg["IRQ_ENABLE"].address, 3)
    device.write_register(reg["CONTROL"].address, 1)
    device.wait(max_cycles)
    status = device.read_register(reg["STATUS"].address)
    if status & 4:
        code = device.read_register(reg["ERROR"].address)
        pc = device.read_register(reg["ERROR_PC"].address)
        name = ErrorCode(code).name if code in ErrorCode._value2member_map_ else "unknown"
        raise DeviceError(
            f"the {device.name} device stopped with error {code} ({name}) near instruction {pc}",
            code,
        )
    if not status & 2:
        raise DeviceError(f"the {device.name} device was not done after {max_cycles} cycles")
    device.write_register(reg["IRQ_STATUS"].address, 3)
    return {name: device.read_register(reg[f"COUNT_{name}"].address) for name, _ in COUNTERS}


def check_identity(device: Device) -> None:
    """Check that the device is a Tilewright of the configuration it claims; DeviceError otherwise."""
    identity = device.read_register(REGISTERS["IDENTITY"].address)
    if identity != IDENTITY:
        raise DeviceError(f"register IDENTITY must read 0x{IDENTITY:08x}, not 0x{identity:08x}: not a Tilewright")
    c = device.config
    expected = c.rows | c.cols << 8 | c.lanes << 16 | c.bus_bytes << 24
    shape = device.read_register(REGISTERS["SHAPE"].address)
    if shape != expected:
        raise DeviceError(f"register SHAPE must read 0x{expected:08x} for {c.name}, not 0x{shape:08x}")


def set_bases(device: Device) -> None:
    """Point base register i at i * 4 GiB, as compiled programs expect."""
    for i in range(BASES):
        device.write_register(REGISTERS[f"BASE{i}_LO"].address, 0)
        device.write_register(REGISTERS[f"BASE{i}_HI"].address, i)


class Engine:
    """A model on a device: some sequences, each with its KV cache in device memory.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    device : Device
        Where it runs; its memory is allocated anew.
    tiling : Tiling
        Bounds for the tiling; results do not depend on it.
    progress : callable
        Called with (done, total) while weights are quantised and loaded.
    sequences : int
        Sequences that have a cache.
    formats : Formats
        Number formats.
    quantiser : Quantiser, optional
        Makes the weights; see `ModelImage.write`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        tiling: Tiling | None = None,
        progress: Callable[[int, int], None] | None = None,
        sequences: int = 1,
        formats: Formats = DEFAULT,
        quantiser: Quantiser | None = None,
    ) -> None:
        self.spec, self.device, self.tiling, self.formats = checkpoint.spec, device, tiling or Tiling(), formats
        self._use(ModelImage(self.spec, device.config, formats, sequences))
        self._decode: dict[tuple[int, str, int], bytes] = {}
        if checkpoint.stored is not None and self.tiling == Tiling():
            self._decode = {(1, results, 1): program for results, program in checkpoint.stored.programs.items()}
        self._programs: dict[tuple[int, int, str], bytes] = {}
        if self.spec.causal:  # the one program that every text needs: does it fit?
            self._decoder(1, "all", 1)
        self._loaded = b""
        self.positions = [0] * sequences
        self.counters = Counters()
        device.allocate(self.image.size)
        check_identity(device)
        set_bases(device)
        self.image.write(checkpoint, device.write_memory, progress, quantiser)

    def _use(self, image: ModelImage) -> None:
        """Compile for this image from now on."""
        self.image = image
        self.compiler = LlamaCompiler(image, self.tiling)
        self.encoder = EncoderCompiler(image, self.tiling)
        self.batch = self.compiler.largest_batch() if self.spec.causal else 1  # rows of a decode program

    def grow(self, sequences: int) -> None:
        """Make room for the caches of so many sequences, unless there is; weights and sequences stay as they are.

        Further caches lie behind all else, so that places and programs stay valid. InputError, with nothing changed,
        if one base register does not reach them all.
        """
        more = sequences - len(self.positions)
        if more <= 0:
            return
        image, held = ModelImage(self.spec, self.config, self.formats, sequences), self.image.size
        contents = self.device.read_memory(0, held)
        self.device.allocate(image.size)
        set_bases(self.device)
        self.device.write_memory(0, contents)
        self._use(image)
        self.positions += [0] * more

    @property
    def config(self) -> AcceleratorConfig:
        """The device's configuration."""
        return self.device.config

    def comments(self) -> dict[bytes, Sequence[str]]:
        """Return what each instruction is for, of the programs that were compiled here (and not read from a file)."""
        programs = (*self._decode.values(), *self._programs.values())
        return {bytes(program): program.comments for program in programs if isinstance(program, Program)}

    @property
    def position(self) -> int:
        """Tokens that sequence 0 holds."""
        return self.positions[0]

    def reset(self, sequence: int = 0) -> None:
        """Begin a sequence anew (the cache is overwritten as it goes)."""
        self.positions[sequence] = 0

    def feed(self, tokens: Sequence[int], logits: str = "last", sequence: int = 0) -> Floats:
        """Run tokens from a sequence's current position on; returns float32 logits.

        logits: 'last' gives (vocab,) after the last token, 'all' gives (tokens, vocab).
        InputError on a token outside the vocabulary or past the context.
        """
        rows = [self._read_logits(m if logits == "all" else 1) for m in self._feed(tokens, logits, sequence)]
        return np.concatenate(rows) if logits == "all" else rows[-1][0]

    def choose(self, tokens: Sequence[int], sequence: int = 0) -> int:
        """Run tokens from the current position on; returns the token of the largest logit, the lowest of equal ones.

        The device compares; four bytes are read. Errors as in `feed`.
        """
        for _ in self._feed(tokens, "token", sequence):
            pass
        return int(self._read_tokens(1)[0])

    def encode(self, tokens: Sequence[int]) -> Floats:
        """Run a whole text of a model whose rows see all of it; returns its hidden rows, float32 (tokens, dim).

        InputError on a token outside the vocabulary or past the context.
        """
        self.reset()
        self._check(tokens, 0)
        key = (0, len(tokens), "encode")
        if key not in self._programs:
            self._programs[key] = self.encoder.encode(len(tokens))
        self._run(self.encoder.arguments(tokens), self._programs[key], len(tokens), len(tokens))
        return self._read_logits(len(tokens))

    def _feed(self, tokens: Sequence[int], logits: str, sequence: int) -> Iterator[int]:
        """Run tokens, and yield after each program that stored results: the tokens that it ran."""
        self._check(tokens, sequence)
        done = 0
        while done < len(tokens):
            m = self.compiler.prefill_rows(self.positions[sequence], len(tokens) - done, logits)
            last = done + m == len(tokens)
            want = logits if logits == "all" or last else "none"
            self._run_block(tokens[done : done + m], want, sequence)
            if want != "none":
                yield m
            done += m
            self.positions[sequence] += m

    def step(self, tokens: Mapping[int, int]) -> dict[int, Floats]:
        """Run the next token of each of some sequences together; returns the logits of each, float32 (vocab,).

        The rows share every weight tile. Their values are those that `feed` gives, one by one. At most `batch` rows
        make a program; more take several. Errors as in `feed`.
        """
        for sequence, token in tokens.items():
            self._check([token], sequence)
        results: dict[int, Floats] = {}
        alone = [s for s in tokens if self._differs(self.positions[s])]
        for s in alone:
            results[s] = self.feed([tokens[s]], sequence=s)
        for together in self._together([s for s in tokens if s not in alone]):
            rows = [(s, self.positions[s], int(tokens[s])) for s in together]
            keys = max(position for _, position, _ in rows) + 1
            self._run(self.compiler.decode_arguments(rows), self._decoder(len(rows), "all", keys), len(rows), keys)
            results |= zip(together, self._read_logits(len(rows)), strict=True)
            for s in together:
                self.positions[s] += 1
        return results

    def _together(self, sequences: Sequence[int]) -> Iterator[list[int]]:
        """Cut sequences into those that one decode program serves: as many, with keys in as many parts."""
        by_parts: dict[int, list[int]] = {}
        for sequence in sequences:
            by_parts.setdefault(self.compiler.parts(self.positions[sequence] + 1), []).append(sequence)
        for alike in by_parts.values():
            for first in range(0, len(alike), self.batch):
                yield alike[first : first + self.batch]

    def _check(self, tokens: Sequence[int], sequence: int) -> None:
        if not len(tokens):
            raise InputError("at least one token must be given")
        for token in tokens:
            if not 0 <= int(token) < self.spec.vocab:
                raise InputError(f"token ids must be 0 to {self.spec.vocab - 1}, not {token}")
        position = self.positions[sequence]
        if position + len(tokens) > self.spec.context:
            raise InputError(f"{position} + {len(tokens)} tokens exceed the context of {self.spec.context} tokens")

    def _run_block(self, tokens: Sequence[int], logits: str, sequence: int) -> None:
        first, m = self.positions[sequence], len(tokens)
        if m == 1 and logits in ("last", "token") and not self._differs(first):
            arguments = self.compiler.decode_arguments([(sequence, first, tokens[0])])
            program = self._decoder(1, "all" if logits == "last" else "token", first + 1)
        else:
            arguments, program = self.compiler.arguments(first, tokens, sequence), self._prefill(first, m, logits)
        self._run(arguments, program, m, first + m)

    def _differs(self, position: int) -> bool:
        """Whether the row of a position is not as all others are, for which a decode program is made."""
        return position == 0 and self.spec.first_rows

    def _run(self, arguments: NDArray[np.uint32], program: bytes, m: int, keys: int) -> None:
        self.device.write_memory(self.image.arguments.start, arguments.view(np.uint8))
        self._load(program)
        self.counters.add(run_program(self.device, self.image.program.start, self._cycle_limit(m, keys)))

    def _decoder(self, rows: int, logits: str, keys: int) -> bytes:
        key = (rows, logits, self.compiler.parts(keys))
        if key not in self._decode:
            self._decode[key] = self.compiler.decode(rows, logits, keys)
        return self._decode[key]

    def _prefill(self, first: int, m: int, logits: str) -> bytes:
        key = (first, m, logits)
        if key not in self._programs:
            self._programs[key] = self.compiler.prefill(first, m, logits)
        return self._programs[key]

    def _load(self, program: bytes) -> None:
        if program is self._loaded:
            return
        if len(program) > self.image.program.size:
            raise InputError(f"the program has {len(program)} bytes; there is room for {self.image.program.size}")
        self.device.write_memory(self.image.program.start, program)
        self._loaded = program

    def _cycle_limit(self, m: int, keys: int) -> int:
        """Return a bound far above what any run may take: no run hangs."""
        beats = self.image.size // self.config.bus_bytes
        work = beats * ceil_div(m, 4) + self.spec.layers * self.spec.heads * keys * m
        return 10_000_000 + 100 * work

    def _read_tokens(self, rows: int) -> NDArray[np.uint32]:
        """Return the tokens that the device chose."""
        raw: NDArray[np.uint8] = self.device.read_memory(self.image.token.start, 4 * rows)
        return raw.view(np.uint32)

    def _read_logits(self, rows: int) -> Floats:
        assert rows <= LOGIT_ROWS or not self.spec.causal
        stride, width = self.image.logits_row, self.spec.vocab if self.spec.classifier else self.spec.dim
        raw: NDArray[np.uint8] = self.device.read_memory(self.image.logits.start, rows * stride)
        return raw.view(np.float32).reshape(rows, stride // 4)[:, :width].copy()
