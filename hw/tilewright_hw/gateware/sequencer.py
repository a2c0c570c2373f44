"""The sequencer: fetches instructions, adds their patches, and issues them to the units' queues.

It is three blocks: `InstructionFetch` reads ahead, `Sequencer` decodes and issues in program order,
and one `CommandQueue` per unit holds back each command until those that it depends on are done.
"""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.isa import (
    BASES,
    BYTES,
    FIELDS,
    OPERAND_WORD,
    PATCHES,
    REG_COUNT,
    UNIT_OF,
    WORDS,
    Op,
    Unit,
)
from tilewright_hw.arch.registers import ErrorCode
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.fifo import NO_COLLISION, StreamFifo
from tilewright_hw.gateware.layouts import operands, unpack_operands

__all__ = ["CommandQueue", "InstructionFetch", "Sequencer"]

PREFETCH = 8
"""Instructions that may be read ahead: covers a memory latency of about 40 cycles."""
COUNT_BITS = 10
"""Width of the counters of issued and completed commands, which are compared modulo 2**10."""
EPOCH = 128
"""No command stays queued for two epochs of this many instructions, so that the counters cannot lap it."""
COMMANDS = {unit: op for op, unit in UNIT_OF.items()}
"""The one opcode of each unit."""

FETCH = data.StructLayout({"addr": 64, "beats": 16})
"""A read request for the sequencer: byte address and bus words."""
TABLE_LOAD = data.StructLayout({"addr": 64, "count": 16})
"""Where LDREGS reads, and how many registers."""


def _reached(count, target):
    """Return whether a counter has come to `target`: a comparison modulo 2**COUNT_BITS."""
    return ~(count - target)[COUNT_BITS - 1]


class InstructionFetch(wiring.Component):
    """Reads instructions ahead, and register tables between them.

    From `start` on, the beats of the instructions from `program` on come out of `o`, in order. Up
    to `PREFETCH` instructions are requested before they are taken. Reading ahead is speculative, so
    it neither goes past an END that has arrived, nor enters the next 4 KiB before all of these have
    arrived without an END in them: memory beyond the END's page is never touched.

    Requests are of 64 bytes, or of `burst_beats` where that is less.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.

    Members
    -------
    start : In(1)
        Begin at `program`. Only while `idle`.
    program : In(64)
        Byte address of the first instruction, a multiple of 64.
    discard : In(1)
        Request nothing more, and drop what was requested.
    idle : Out(1)
        Nothing is requested or held.
    fetch : Out(stream of FETCH)
        Read requests.
    i_fetch : In(stream of one bus word)
        Their data, taken without fail.
    o : Out(stream of one bus word)
        Instructions, low words first.
    load : In(stream of TABLE_LOAD)
        Reads a register table; taken when its last register has been written.
    table : Out
        Writes one bus word of registers: `en` has one bit per register.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.beats = max(1, BYTES // config.bus_bytes)  # of an instruction
        self.request_beats = min(self.beats, config.burst_beats)
        self.lanes = config.bus_bits // 32
        table = data.StructLayout({"en": self.lanes, "addr": range(REG_COUNT // self.lanes), "data": config.bus_bits})
        super().__init__(
            {
                "start": In(1),
                "program": In(64),
                "discard": In(1),
                "idle": Out(1),
                "fetch": Out(stream.Signature(FETCH)),
                "i_fetch": In(stream.Signature(config.bus_bits)),
                "o": Out(stream.Signature(config.bus_bits)),
                "load": In(stream.Signature(TABLE_LOAD)),
                "table": Out(table),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = PREFETCH * self.beats
        self._coming = Signal(range(depth + 1))  # beats of instructions not yet arrived
        self._reserved = Signal(range(depth + 1))  # the same, and those in the FIFO
        self._loading = Signal()
        self._load_addr = Signal(64)
        self._load_requests = Signal(range(REG_COUNT * 4 // (self.request_beats * 4) + 1))
        self._ended = Signal()
        self._for_table = Signal()

        m.submodules.buffer = self._buffer = StreamFifo(self.config.bus_bits, depth)
        m.d.comb += [
            self._for_table.eq(self._loading & (self._coming == 0)),
            self.i_fetch.ready.eq(1),
            self._buffer.i.payload.eq(self.i_fetch.payload),
            self._buffer.i.valid.eq(self.i_fetch.valid & ~self._for_table),
            self.o.payload.eq(self._buffer.o.payload),
            self.o.valid.eq(self._buffer.o.valid & ~self.discard),
            self._buffer.o.ready.eq(self.o.ready | self.discard),
            self.idle.eq((self._reserved == 0) & ~self._loading),
        ]
        self._request(m)
        self._watch_for_end(m)
        self._load_table(m)
        return m

    def _request(self, m):
        """Make requests, and count what is on its way."""
        step = self.request_beats * self.config.bus_bytes
        running = Signal()
        first = Signal()
        addr = Signal(64)
        ahead = Signal()
        asked = Signal()
        page_free = (addr[:12] != 0) | first | (self._coming == 0)
        room = self._reserved <= PREFETCH * self.beats - self.request_beats
        wanted = ~self._ended | addr[: ceil_log2(BYTES)].any()  # an instruction that was begun, END too, comes whole
        m.d.comb += ahead.eq(running & wanted & ~self._loading & ~self.load.valid & page_free & room)
        m.d.comb += self.fetch.p.beats.eq(self.request_beats)
        with m.If(self.fetch.ready | ~self.fetch.valid):
            m.d.sync += self.fetch.valid.eq(ahead | (self._load_requests != 0))
            with m.If(self._load_requests != 0):
                m.d.sync += [
                    self.fetch.p.addr.eq(self._load_addr),
                    self._load_addr.eq(self._load_addr + step),
                    self._load_requests.eq(self._load_requests - 1),
                ]
            with m.Elif(ahead):
                m.d.comb += asked.eq(1)
                m.d.sync += [self.fetch.p.addr.eq(addr), addr.eq(addr + step), first.eq(0)]
        arrived = self._buffer.i.valid
        taken = self._buffer.o.ready & self._buffer.o.valid
        more = Mux(asked, self.request_beats, 0)
        m.d.sync += [
            self._coming.eq(self._coming + more - arrived),
            self._reserved.eq(self._reserved + more - taken),
        ]
        with m.If(self.start):
            m.d.sync += [running.eq(1), first.eq(1), addr.eq(self.program)]
        with m.If(self.discard):
            m.d.sync += running.eq(0)

    def _watch_for_end(self, m):
        """See an END arrive, before it is decoded."""
        place = Signal(range(max(2, self.beats)))
        with m.If(self._buffer.i.valid):
            m.d.sync += place.eq(Mux(place == self.beats - 1, 0, place + 1))
            with m.If((place == 0) & (self.i_fetch.payload[:8] == Op.END)):
                m.d.sync += self._ended.eq(1)
        with m.If(self.start):
            m.d.sync += [place.eq(0), self._ended.eq(0)]

    def _load_table(self, m):
        """Ask for a register table once, and write what arrives after the instructions before it."""
        count = self.load.p.count
        request_words = self.request_beats * self.lanes
        place = Signal(range(REG_COUNT + 1))  # first register of the next beat
        m.d.comb += [
            self.table.addr.eq(place >> ceil_log2(self.lanes)),
            self.table.data.eq(self.i_fetch.payload),
        ]
        with m.If(self.load.valid & ~self._loading):
            m.d.sync += [
                self._loading.eq(1),
                self._load_addr.eq(self.load.p.addr),
                self._load_requests.eq((count + (request_words - 1)) >> ceil_log2(request_words)),
                place.eq(0),
            ]
        with m.If(self._for_table & self.i_fetch.valid):
            m.d.comb += self.table.en.eq(Cat(place + i < count for i in range(self.lanes)))
            m.d.sync += place.eq(place + self.lanes)
        last = (place >= count) & (place[: ceil_log2(request_words)] == 0)
        with m.If(self._loading & (place != 0) & last):
            m.d.comb += self.load.ready.eq(1)
            m.d.sync += self._loading.eq(0)


class CommandQueue(wiring.Component):
    """Holds the commands of one unit, and offers each when all that it depends on is done.

    A command may start when, for every unit u, `completed[u]` has reached its target. `cmd` is valid
    from two cycles after the last missing completion was counted, and holds until it is taken.

    Parameters
    ----------
    op : Op
        The unit's opcode.
    depth : int
        Commands held.

    Members
    -------
    i : In(stream)
        `operands` and, per unit, the `target`.
    cmd : Out(stream of operands(op))
        To the unit.
    completed : In
        Commands completed per unit.
    stop : In(1)
        Offer nothing new.
    taken : Out(1)
        A command enters the unit in this cycle.
    waiting : Out(1)
        There is a command, and it waits for another one.
    """

    def __init__(self, op: Op, *, depth: int):
        if op not in UNIT_OF:
            raise ValueError(f"op must be an opcode with a unit, not {op!r}")
        if not isinstance(depth, int) or depth < 2:
            raise ValueError(f"depth must be an integer of at least 2, not {depth!r}")
        self.op = op
        self.depth = depth
        counts = data.ArrayLayout(COUNT_BITS, len(Unit))
        self.entry = data.StructLayout({"operands": operands(op), "targets": counts})
        super().__init__(
            {
                "i": In(stream.Signature(self.entry)),
                "cmd": Out(stream.Signature(operands(op))),
                "completed": In(counts),
                "stop": In(1),
                "taken": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.entries = entries = StreamFifo(self.entry, self.depth)
        head = entries.o.payload
        wiring.connect(m, wiring.flipped(self.i), entries.i)
        met = Signal()
        m.d.comb += [
            met.eq(Cat(_reached(self.completed[u], head.targets[u]) for u in Unit).all()),
            self.cmd.payload.eq(head.operands),
            self.taken.eq(self.cmd.valid & self.cmd.ready),
            entries.o.ready.eq(self.taken),
            self.waiting.eq(entries.o.valid & ~met),
        ]
        with m.If(self.taken):
            m.d.sync += self.cmd.valid.eq(0)
        with m.Elif(entries.o.valid & met & ~self.stop):
            m.d.sync += self.cmd.valid.eq(1)
        return m


class Sequencer(wiring.Component):
    """Fetches, patches, checks and issues instructions in program order.

    Flow control: commands and fetched words are streams; the sequencer has room for every word that it asks for.

    Latency: the first fetch is offered START_LATENCY cycles after `start`. Without patches an instruction takes
    max(1, 64/B) + 2 cycles (B bus bytes), plus n + 1 with n patches; a full queue stops it.

    Number format: instructions of 64 bytes (docs/isa.md); integer registers of 64 bits.

    `finished` pulses when END's turn has come and every command is
    done. On `stop`, or when an instruction is illegal, nothing more is issued until reset.

    A dependency of distance k on a unit that has been issued n commands is met when n - k + 1 of
    these are completed. The counters are of `COUNT_BITS` bits; so that none can lap a command that
    waits in a queue, issuing stops when a command issued more than `EPOCH` instructions before the
    current epoch is still queued.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.

    Members
    -------
    start : In(1)
        Begin at `program`. Ignored while busy and after an error.
    program : In(64), bases : In(64).array(8)
        Byte addresses: the first instruction (a multiple of 64), and what LDREGS reads relative to.
    fetch : Out(stream of FETCH), i_fetch : In(stream of one bus word)
        The read engine's port for the sequencer.
    weight, load, matrix, vector, store : Out(stream of operands(op))
        Commands.
    done : In(5)
        One pulse per completed command; bit u belongs to `Unit(u)`.
    stop : In(1)
        There is an error elsewhere.
    busy : Out(1), finished : Out(1)
        A program runs (not after an error); it has ended (pulse).
    error_code : Out(8), pc : Out(32)
        An `ErrorCode`, until reset; index of the instruction fetched last.
    issued : Out(1), wait_dependency : Out(5), held : Out(5)
        Events: an instruction is issued; the head of the unit's queue waits for another command;
        the unit has taken a command that is not done.
    """

    START_LATENCY = 2

    def __init__(self, config: AcceleratorConfig):
        self.config = check_config(config)
        super().__init__(
            {
                "start": In(1),
                "program": In(64),
                "bases": In(64).array(BASES),
                "fetch": Out(stream.Signature(FETCH)),
                "i_fetch": In(stream.Signature(config.bus_bits)),
                **{unit.name.lower(): Out(stream.Signature(operands(op))) for unit, op in COMMANDS.items()},
                "done": In(len(Unit)),
                "stop": In(1),
                "busy": Out(1),
                "finished": Out(1),
                "error_code": Out(8),
                "pc": Out(32),
                "issued": Out(1),
                "wait_dependency": Out(len(Unit)),
                "held": Out(len(Unit)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        counts = data.ArrayLayout(COUNT_BITS, len(Unit))
        self._words = Signal(data.ArrayLayout(32, WORDS))  # the instruction in hand
        self._targets = Signal(counts)
        self._sent = Signal(counts)  # commands issued to each queue
        self._entered = Signal(counts)  # commands taken by each unit
        self._completed = Signal(counts)
        self._push = Signal(len(Unit))
        self._halted = Signal()

        m.submodules.fetcher = self._fetcher = InstructionFetch(self.config)
        self._wire_fetcher(m)
        self._queues = [self._add_queue(m, unit) for unit in Unit]
        self._count(m)
        self._limit_window(m)
        self._registers(m)
        self._control(m)
        m.d.comb += self.issued.eq(self._issue)
        return m

    def _wire_fetcher(self, m):
        fetcher = self._fetcher
        m.d.comb += fetcher.program.eq(self.program)
        wiring.connect(m, wiring.flipped(self.fetch), fetcher.fetch)
        wiring.connect(m, wiring.flipped(self.i_fetch), fetcher.i_fetch)
        # The first beats leave at the low end, so that each ends in its place.
        self._moved = Cat(self._words, fetcher.o.payload)[self.config.bus_bits :]  # the words with the beat at hand
        with m.If(fetcher.o.valid & fetcher.o.ready):
            m.d.sync += self._words.as_value().eq(self._moved)

    def _add_queue(self, m, unit):
        """Add the queue in front of one unit."""
        name = unit.name.lower()
        queue = CommandQueue(COMMANDS[unit], depth=self.config.queue_depth)
        m.submodules[name] = queue
        wiring.connect(m, wiring.flipped(getattr(self, name)), queue.cmd)
        m.d.comb += [
            queue.i.valid.eq(self._push[unit]),
            queue.i.p.operands.eq(unpack_operands(queue.op, self._words)),
            queue.i.p.targets.eq(self._targets),
            queue.completed.eq(self._completed),
            queue.stop.eq(self.stop | self._halted),
            self.wait_dependency[unit].eq(queue.waiting),
            self.held[unit].eq(self._entered[unit] != self._completed[unit]),
        ]
        return queue

    def _count(self, m):
        """Count commands per unit as they are queued, taken and completed."""
        self._all_done = Signal()
        m.d.comb += self._all_done.eq(self._sent.as_value() == self._completed.as_value())
        for unit, queue in zip(Unit, self._queues, strict=True):
            for counter, event in (
                (self._sent, self._push[unit]),
                (self._entered, queue.taken),
                (self._completed, self.done[unit]),
            ):
                with m.If(event):
                    m.d.sync += counter[unit].eq(counter[unit] + 1)

    def _limit_window(self, m):
        """Stop issuing at the end of an epoch until the commands from before it have left the queues."""
        self._issue = Signal()
        self._epoch_over = Signal()
        place = Signal(range(EPOCH))
        mark = Signal.like(self._sent)
        with m.If(self._issue):
            m.d.sync += place.eq(place + 1)
            with m.If(place == EPOCH - 1):
                m.d.sync += self._epoch_over.eq(1)
        old_gone = Cat(_reached(self._entered[unit], mark[unit]) for unit in Unit).all()
        with m.If(self._epoch_over & old_gone):
            m.d.sync += [self._epoch_over.eq(0), mark.eq(self._sent)]

    def _registers(self, m):
        """Add the patch registers and the adder that applies one patch per cycle."""
        table, lanes = self._fetcher.table, self._fetcher.lanes
        m.submodules.registers = registers = memory.Memory(
            shape=data.ArrayLayout(32, lanes), depth=REG_COUNT // lanes, init=[], attrs=NO_COLLISION
        )
        write = registers.write_port(granularity=1)
        read = registers.read_port()
        low = ceil_log2(lanes)
        slots = Cat(self._words[1], self._words[2])  # the next patch is in the lowest 16 bits
        targets = [slots[16 * i : 16 * i + 4] for i in range(PATCHES)]
        self._complete = Signal()  # the last beat of an instruction is taken
        self._patching = Signal()
        self._patch_left = Signal()
        adding = Signal()
        word = Signal(4)
        operand = Signal(32)
        addend = Signal(32)
        total = Signal(32)
        m.d.comb += [
            write.en.eq(table.en),
            write.addr.eq(table.addr),
            write.data.eq(table.data),
            # A cycle ahead: the register of the first patch with the last beat, that of the next one beside each patch.
            read.en.eq(self._complete | self._patching),
            read.addr.eq(Mux(self._complete, self._moved[36 + low : 43], slots[20 + low : 27])),
            self._patch_left.eq(Cat(slot.any() for slot in targets).any() | adding),
        ]
        m.d.sync += adding.eq(0)
        with m.If(self._patching):
            m.d.sync += [
                adding.eq(slots[:4] != 0),
                word.eq(slots[:4]),
                # Both are chosen a cycle before the adder, which may be at the same word.
                operand.eq(Mux(adding & (word == slots[:4]), total, Array(self._words)[slots[:4]])),
                addend.eq(Array(read.data)[slots[4 : 4 + low]]),
                slots.eq(slots >> 16),
            ]
        m.d.comb += total.eq(operand + addend)
        with m.If(adding):
            for i in range(OPERAND_WORD, WORDS):
                with m.If(word == i):
                    m.d.sync += self._words[i].eq(total)

    def _check(self):
        """Return the ErrorCode of the instruction in hand."""
        words = self._words
        opcode = words[0][:8]
        illegal = []
        for op, fields in FIELDS.items():
            wrong = [Const(0)]
            for f in fields:
                value = words[f.word][f.lsb : f.lsb + f.width]
                if f.low:
                    wrong.append(value < f.low)
                if f.enum is not None and len(f.enum) <= f.mask:
                    wrong.append(~value.matches(*(int(e) for e in f.enum)))
            if op == Op.LDREGS:
                wrong.append(unpack_operands(op, words).count > REG_COUNT)
            illegal.append((opcode == op) & Cat(wrong).any())
        return Mux(
            opcode.matches(*(int(op) for op in FIELDS)),
            Mux(Cat(illegal).any(), ErrorCode.ILLEGAL_FIELD, ErrorCode.NONE),
            ErrorCode.ILLEGAL_OPCODE,
        )

    def _control(self, m):
        """Add the state machine: take an instruction's beats, patch, check, issue."""
        fetcher = self._fetcher
        beats = fetcher.beats
        beat = Signal(range(max(2, beats)))
        opcode = self._words[0][:8]
        code = Signal(8)
        running = Signal()
        free = Signal()  # this instruction's own dependencies are met, for those without a queue
        table = unpack_operands(Op.LDREGS, self._words)
        base = Signal.like(table.base)  # the base registers are far away
        load_addr = fetcher.load.p.addr
        m.d.comb += [
            free.eq(Cat(_reached(self._completed[u], self._targets[u]) for u in Unit).all()),
            self.busy.eq(running & ~self._halted),
            fetcher.discard.eq(self._halted),
            fetcher.load.p.count.eq(table.count),
        ]
        with m.If(self.stop):
            m.d.sync += self._halted.eq(1)
        with m.If(~self._halted & ~self.stop), m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.comb += fetcher.start.eq(1)
                    m.d.sync += [running.eq(1), self.pc.eq(-1), beat.eq(0)]
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += fetcher.o.ready.eq(1)
                with m.If(fetcher.o.valid):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == beats - 1):
                        m.d.comb += self._complete.eq(1)
                        m.d.sync += [self.pc.eq(self.pc + 1), beat.eq(0)]
                        m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += self._patching.eq(self._patch_left)
                m.d.sync += [code.eq(self._check()), self._set_targets(), base.eq(table.base)]
                with m.If(~self._patch_left):
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.sync += load_addr.eq(Array(self.bases)[base])
                self._issue_state(m, opcode, code, free)
            with m.State("ADDRESS"):
                m.d.sync += load_addr.eq(load_addr + table.offset)
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += fetcher.load.valid.eq(1)
                with m.If(fetcher.load.ready):
                    m.next = "TAKE"
            with m.State("END"):
                m.d.comb += fetcher.discard.eq(1)
                with m.If(self._all_done & fetcher.idle):
                    m.d.comb += self.finished.eq(1)
                    m.d.sync += running.eq(0)
                    m.next = "IDLE"

    def _set_targets(self):
        """Return the assignments that turn distances into counts of completed commands."""
        for unit in Unit:
            distance = self._words[0][8 + 4 * unit : 12 + 4 * unit]
            target = self._sent[unit] + 1 - distance
            yield self._targets[unit].eq(Mux(distance == 0, self._completed[unit], target))

    def _issue_state(self, m, opcode, code, free):
        """Issue the instruction in hand, or stop at an illegal one."""
        with m.If(code != ErrorCode.NONE):
            m.d.sync += [self.error_code.eq(code), self._halted.eq(1)]
        with m.Elif(~self._epoch_over), m.Switch(opcode):
            for unit, queue in zip(Unit, self._queues, strict=True):
                with m.Case(queue.op), m.If(queue.i.ready):
                    m.d.comb += [self._push[unit].eq(1), self._issue.eq(1)]
                    m.next = "TAKE"
            for op, state in ((Op.NOP, "TAKE"), (Op.LDREGS, "ADDRESS"), (Op.END, "END")):
                with m.Case(op), m.If(free):
                    m.d.comb += self._issue.eq(1)
                    m.next = state
