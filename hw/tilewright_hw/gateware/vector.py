"""The vector unit: row operations on accumulators and row buffer, L elements per cycle."""

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Func, Mul, Op, Reduce, Scale, Source
from tilewright_hw.gateware.address import AddressGenerator, RowLoops, Token
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.float import delay
from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.lane import Lane, LanePath, TokenPath
from tilewright_hw.gateware.layouts import (
    buffer_write,
    operands,
    store_word,
    sums_word,
    table_word,
    vector_word,
)
from tilewright_hw.gateware.reduce import RowReduce, RowScalar
from tilewright_hw.gateware.results import ResultWriter, ValidLanes, act_write
from tilewright_hw.gateware.ring import Ring
from tilewright_hw.gateware.statistics import RowStatistics, first_of
from tilewright_hw.gateware.table import TableLoader
from tilewright_hw.gateware.vector_memory import VectorMemory

__all__ = ["VectorUnit"]


class Use(enum.Enum, shape=unsigned(2)):  # type: ignore[call-arg]
    """What the row or the parameter buffer is read for."""

    NONE = 0
    FIRST = 1
    """Row buffer: operand A; parameter buffer: the second multiplier."""
    ADDEND = 2
    FACTOR = 3


class VectorUnit(wiring.Component):
    """Executes VECTOR instructions (docs/numerics.md, "A vector instruction"; docs/architecture.md, VECTOR).

    One word of L elements enters per cycle; rows follow each other without a gap, those of one word too. (`wide` and
    ACT16 take two cycles per word, for two accumulator rows read, two activation words written; VAR leaves one cycle
    free after each row.) An instruction begins when the one before has completed.

    Flow control: `cmd` and the loads are streams; buffer ports are rigid; words for the store stream are issued only as
    far as its FIFO has room.

    Latency: the first word of an instruction is issued ISSUE_LATENCY cycle after the instruction was taken, and passes
    those stages alone that the instruction uses (`X0_TO_X5` cycles from x0 to x5 if these are all).

    Number format: F24; int32 from the accumulators, int8 or 15 bits to the activation buffer.

    Parameters
    ----------
    config : AcceleratorConfig
        Sizes.

    Members
    -------
    cmd : In(stream of operands(Op.VECTOR))
        Instructions.
    done : Out(1)
        Pulses when one has completed.
    acc_en, acc_bank, acc_addr : Out
        Accumulator row to read.
    acc_data : In(sums_word(cols))
        The row, a cycle later.
    act : Out(act_write(lanes, rows // lanes))
        Writes a part of an activation word; at the latest in the cycle of `done`.
    i_row, i_param : In(stream of buffer_write(vector_word(lanes)))
        Loads into the row and the parameter buffer; the former waits for the unit's own writes.
    i_table : In(stream of table_word())
        Loads the function TABLE.
    o_store : Out(stream of store_word(lanes))
        Store stream.
    wait_store : Out(1)
        A word could be issued but for the room in the store stream.
    """

    ISSUE_LATENCY = 1

    def __init__(self, config: AcceleratorConfig):
        self.config = check_config(config)
        self.lanes = lanes = config.lanes
        word = buffer_write(vector_word(lanes))
        super().__init__(
            {
                "cmd": In(stream.Signature(operands(Op.VECTOR))),
                "done": Out(1),
                "acc_en": Out(1),
                "acc_bank": Out(1),
                "acc_addr": Out(16),
                "acc_data": In(sums_word(config.cols)),
                "act": Out(act_write(lanes, config.rows // lanes)),
                "i_row": In(stream.Signature(word)),
                "i_param": In(stream.Signature(word)),
                "i_table": In(stream.Signature(table_word())),
                "o_store": Out(stream.Signature(store_word(lanes))),
                "wait_store": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        parts = config.rows // self.lanes
        m.submodules.loops = RowLoops(lanes=self.lanes, parts=parts)
        m.submodules.tokens = TokenPath()
        m.submodules.row = VectorMemory(lanes=self.lanes, words=config.row_words)
        m.submodules.param = VectorMemory(lanes=self.lanes, words=config.param_words)
        m.submodules.table = TableLoader()
        m.submodules.statistics = RowStatistics(entries=config.stat_entries)
        m.submodules.valid = ValidLanes(lanes=self.lanes)
        m.submodules.results = ResultWriter(lanes=self.lanes, parts=parts)

        m.submodules.reduce = RowReduce(lanes=self.lanes)
        m.submodules.scalar = RowScalar()

        command, load = self._control(m)
        path = self._decode(m, load)
        uses = self._decode_uses(m, load)
        self._issue(m, command, load, path)
        addend, factor = self._read_buffers(m, command, load, *uses)
        integers, high = self._read_accumulators(m, command, load, path)
        lanes = self._build_lanes(m, command, path, integers, high, addend, factor)
        self._write(m, command, load, integers, lanes)
        self._reduce(m, command, lanes)
        for block in (m.submodules.results, m.submodules.statistics):
            m.d.comb += [block.load.eq(load), block.next.eq(self.cmd.payload)]
            m.d.comb += block.command.eq(command)
        return m

    def _control(self, m):
        """Take commands and tell when they are done; return the running command, and the pulse that loads the next."""
        command = Signal(operands(Op.VECTOR))
        busy = Signal()
        load = Signal()
        writing = Signal()  # is still to be done for the command
        reducing = Signal()  # likewise
        entry = m.submodules.statistics.entry
        entry_last = entry.valid & entry.tag[1]
        last = m.submodules.results.last
        finished = busy & (last | ~writing) & (entry_last | ~reducing)
        m.d.comb += [
            self.cmd.ready.eq(~busy | finished),
            load.eq(self.cmd.valid & self.cmd.ready),
        ]
        m.d.sync += self.done.eq(finished)
        with m.If(last):
            m.d.sync += writing.eq(0)
        with m.If(entry_last):
            m.d.sync += reducing.eq(0)
        with m.If(finished):
            m.d.sync += busy.eq(0)
        with m.If(load):
            m.d.sync += [
                command.eq(self.cmd.payload),
                busy.eq(1),
                writing.eq(1),
                reducing.eq(self.cmd.payload.reduce != Reduce.NONE),
            ]
        return command, load

    def _decode(self, m, load):
        """Return the command's path, as a register."""
        new = self.cmd.payload
        path = Signal(LanePath)
        rotate = new.add == Add.ROTATE
        with m.If(load):
            m.d.sync += [
                path.acc.eq(new.source == Source.ACC),
                path.wide.eq((new.source == Source.ACC) & new.wide),
                path.rotate.eq(rotate),
                path.mul1.eq((new.scale != Scale.NONE) & ~rotate),
                path.mul2.eq(new.param | rotate),
                path.add.eq(new.add != Add.NONE),
                path.func.eq(new.func != Func.NONE),
                path.kind.eq(new.func[:2]),
                path.table.eq(new.func == Func.TABLE),
                path.mul3.eq(new.mul != Mul.NONE),
                path.own.eq(new.mul == Mul.SELF),
                path.raw.eq((new.dest == Dest.STORE_RAW) & (new.source == Source.ACC)),
                path.quantise16.eq(new.dest == Dest.ACT16),
            ]
        m.d.comb += m.submodules.table.loaded.eq(path.table)
        return path

    def _decode_uses(self, m, load):
        """Return what the command reads the row buffer and the parameter buffer for, as registers."""
        new = self.cmd.payload
        row_use = Signal(Use)
        param_use = Signal(Use)
        for use, first, add, mul in (
            (row_use, new.source == Source.ROW, Add.ROW, Mul.ROW),
            (param_use, new.param | (new.add == Add.ROTATE), Add.PARAM, Mul.PARAM),
        ):
            with m.If(load):
                with m.If(first):
                    m.d.sync += use.eq(Use.FIRST)
                with m.Elif(new.add == add):
                    m.d.sync += use.eq(Use.ADDEND)
                with m.Elif(new.mul == mul):
                    m.d.sync += use.eq(Use.FACTOR)
                with m.Else():
                    m.d.sync += use.eq(Use.NONE)
        return row_use, param_use

    def _issue(self, m, command, load, path):
        """Issue the command's words: into the store FIFO only where one has room."""
        loops, tokens, results = m.submodules.loops, m.submodules.tokens, m.submodules.results
        new = self.cmd.payload
        stores = Signal()
        pause = Signal()
        with m.If(load):
            m.d.sync += stores.eq(new.dest >= Dest.STORE_INT8)
        room = ~stores | results.room
        slow = path.wide | path.quantise16
        m.d.sync += pause.eq(loops.token.valid & (slow | (loops.token.row_end & (command.reduce == Reduce.VAR))))
        m.d.comb += [
            loops.load.eq(load),
            loops.n.eq(new.n),
            loops.m.eq(new.m),
            loops.h.eq(new.h),
            loops.pad.eq(new.dest.matches(Dest.ACT, Dest.ACT16)),
            loops.advance.eq(room & ~pause),
            results.reserve.eq(stores & loops.token.valid),
            self.wait_store.eq(loops.active & ~room),
            tokens.path.eq(path),
            tokens.issue.eq(loops.token),
        ]

    def _read_accumulators(self, m, command, load, path):
        """Read the accumulators; return the chosen word of L integers, in time with the token `integer`.

        With `wide` that word's pair follows it a cycle later; then the first is returned beside it (0 otherwise).
        """
        issue = m.submodules.loops.token
        second = Signal(Token)
        m.d.sync += [second.eq(issue), second.valid.eq(issue.valid & path.wide)]
        groups = self.config.cols // self.lanes
        m.submodules.acc_address = source = AddressGenerator(subs=groups)
        m.d.comb += [
            source.load.eq(load),
            source.base.eq(self.cmd.payload.src),
            source.step_m.eq(command.src_m),
            source.step_h.eq(command.src_h),
            source.step.eq(command.src_n),
            source.last_sub.eq(groups - 1),
            source.token.eq(Mux(path.wide, Value.cast(second), Value.cast(issue))),
            self.acc_en.eq((issue.valid & (command.source == Source.ACC)) | second.valid),
            self.acc_bank.eq(command.bank),
            self.acc_addr.eq(source.addr + second.valid),
        ]
        read = Signal()
        sub = Signal.like(source.sub)
        integers = Signal(sums_word(self.lanes))
        m.d.sync += read.eq(self.acc_en)
        with m.If(self.acc_en):
            m.d.sync += sub.eq(source.sub)
        with m.If(read):
            words = Value.cast(self.acc_data).word_select(sub, 32 * self.lanes)
            m.d.sync += integers.eq(words)
        high = Signal(sums_word(self.lanes))
        m.d.sync += high.eq(0)
        with m.If(path.wide):
            m.d.sync += high.eq(integers)
        return integers, high

    def _read_buffers(self, m, command, load, row_use, param_use):
        """Read row and parameter buffer for the stage that needs them, and take their loads.

        Return the addend and the last factor, as registers; 0 where they come from neither buffer.
        """
        row, param, tokens = m.submodules.row, m.submodules.param, m.submodules.tokens
        new = self.cmd.payload
        m.submodules.row_address = row_address = AddressGenerator()
        m.submodules.param_address = param_address = AddressGenerator()
        operand = row_use == Use.FIRST
        m.d.comb += [
            row_address.load.eq(load),
            row_address.base.eq(Mux(new.source == Source.ROW, new.src, new.row)),
            row_address.step_m.eq(Mux(operand, command.src_m, command.row_m)),
            row_address.step_h.eq(Mux(operand, command.src_h, command.row_h)),
            row_address.step.eq(1),
            row.addr.eq(row_address.addr),
            row.en.eq(row_address.token.valid),
            param_address.load.eq(load),
            param_address.base.eq(new.par),
            param_address.step_m.eq(command.par_m),
            param_address.step_h.eq(command.par_h),
            param_address.step.eq(1),
            param.addr.eq(param_address.addr),
            param.en.eq(param_address.token.valid),
        ]
        for address, chosen, first in (
            (row_address, row_use, tokens.operand),
            (param_address, param_use, tokens.read_param),
        ):
            with m.Switch(chosen):
                for use, token in (
                    (Use.FIRST, first),
                    (Use.ADDEND, tokens.read_addend),
                    (Use.FACTOR, tokens.read_factor),
                ):
                    with m.Case(use):
                        m.d.comb += address.token.eq(token)
        connect(m, flipped(self.i_row), row.i_load)
        connect(m, flipped(self.i_param), param.i_load)
        connect(m, flipped(self.i_table), m.submodules.table.i)
        registers = []
        started = Signal()  # a cycle after `load`, which is late and far from the lanes; nothing was read by then
        m.d.sync += started.eq(load)
        for use in (Use.ADDEND, Use.FACTOR):
            register = Signal(vector_word(self.lanes), name=use.name.lower())
            from_param = param_use == use
            with m.If(started):
                m.d.sync += register.eq(0)
            with m.Elif(Mux(from_param, param.fresh, row.fresh & (row_use == use))):
                m.d.sync += register.eq(Mux(from_param, Value.cast(param.early), Value.cast(row.early)))
            registers.append(register)
        return registers

    def _build_lanes(self, m, command, path, integers, high, addend, factor):
        """Build the lanes and what they share; return them."""
        tokens, statistics, table = m.submodules.tokens, m.submodules.statistics, m.submodules.table
        lanes = [Lane(odd=bool(i % 2)) for i in range(self.lanes)]
        recall = Ring(vector_word(self.lanes), depth=1 << LaneFunction.TABLE_LATENCY.bit_length())
        m.submodules.recall = recall
        own = path.func & path.own
        m.d.comb += [
            recall.put.eq(delay(m, tokens.x3.valid, 1, name="x3_valid", reset_less=False) & own),
            recall.take.eq(tokens.factor.valid & own),
        ]
        param = m.submodules.param.data
        for i, lane in enumerate(lanes):
            m.submodules[f"lane{i}"] = lane
            operand = m.submodules.row.early[i]
            if i == 0:  # rows that begin with b have one element
                operand = Mux(command.source == Source.STAT, statistics.b, operand)
            m.d.comb += [
                lane.path.eq(path),
                lane.acc.eq(integers[i]),
                lane.high.eq(high[i]),
                lane.operand.eq(operand),
                lane.load_x0.eq(tokens.x0.valid),
                lane.load_x3.eq(tokens.x3.valid),
                lane.load_x5.eq(tokens.x5.valid),
                lane.keep.eq(m.submodules.valid.keep[i] | (command.dest == Dest.STORE_RAW)),
                lane.scalar.eq(statistics.scalar),
                lane.param.eq(param[i]),
                lane.partner_x0.eq(lanes[i ^ 1].x0),
                lane.partner_param.eq(param[i ^ 1]),
                lane.addend.eq(addend[i]),
                lane.stat.eq(statistics.addition),
                lane.factor.eq(factor[i]),
                lane.recalled.eq(recall.data[i]),
                recall.put_data[i].eq(lane.x3),
                lane.align.eq(table.align),
                lane.exponent.eq(table.exponent),
                lane.write.eq(table.write),
            ]
        return lanes

    def _write(self, m, command, load, integers, lanes):
        """Mask the results and send them to their destination."""
        tokens, valid, results = m.submodules.tokens, m.submodules.valid, m.submodules.results
        m.d.comb += [
            valid.load.eq(load),
            valid.n.eq(self.cmd.payload.n),
            valid.limit.eq(self.cmd.payload.limit),
            valid.causal.eq(self.cmd.payload.causal),
            valid.token.eq(tokens.result),
            results.integer.eq(tokens.integer),
            results.x5.eq(tokens.x5),
            results.integers.eq(integers),
            m.submodules.row.write_en.eq(results.row_en),
            m.submodules.row.write.eq(results.row),
        ]
        for i, lane in enumerate(lanes):
            m.d.comb += [results.floats[i].eq(lane.x5), results.quantised[i].eq(lane.integer)]
        connect(m, results.o_store, flipped(self.o_store))
        # A register, as the buffer is far away; `done` comes no earlier than this write.
        m.d.sync += [getattr(self.act, name).eq(getattr(results.act, name)) for name in self.act.signature.members]

    def _reduce(self, m, command, lanes):
        """Reduce the rows, and write their statistics entries."""
        tokens, statistics = m.submodules.tokens, m.submodules.statistics
        reduce, scalar = m.submodules.reduce, m.submodules.scalar
        token = Signal(Token)
        x5 = delay(m, tokens.x5, 1, name="reduce", reset_less=False)
        end = Mux(command.reduce_outer, x5.outer_end, x5.row_end)
        m.d.comb += [
            token.eq(x5),
            token.valid.eq(x5.valid & (command.reduce != Reduce.NONE)),
            reduce.kind.eq(command.reduce),
            reduce.merge.eq(command.merge),
            reduce.origin.eq(command.const1[8:]),
            reduce.i.valid.eq(token.valid),
            reduce.i.first.eq(first_of(m, token, end, name="reduce")),
            reduce.i.last.eq(end),
            reduce.i.row_end.eq(x5.row_end),
            reduce.i.keep.eq(delay(m, m.submodules.valid.keep, 1, name="keep")),
            reduce.i.source.eq(statistics.source),
            reduce.i.data.eq(Cat(lane.x5 for lane in lanes)),
            scalar.kind.eq(command.reduce),
            scalar.const1.eq(command.const1[8:]),
            scalar.const2.eq(command.const2 << 8),
            scalar.scale16.eq(command.scale16),
            scalar.n.eq(command.n),
            scalar.i.eq(reduce.o),
            scalar.i_next.eq(reduce.o_next),
            reduce.i.tag.eq(Cat(x5.outer_end, x5.last)),
            statistics.entry.eq(scalar.o),
            statistics.operand.eq(tokens.operand),
            statistics.x0.eq(tokens.x0),
            statistics.addend.eq(tokens.addend),
            statistics.x5.eq(tokens.x5),
        ]
        coming = tokens.x5.valid & (command.reduce != Reduce.NONE)
        there = max(map(reduce.latency, Reduce))
        m.d.comb += [
            reduce.awake.eq(_awake(m, coming, there, name="reduce")),
            scalar.awake.eq(_awake(m, coming, there + max(map(scalar.latency, Reduce)), name="scalar")),
        ]


def _awake(m, coming, cycles, *, name):
    """Return a register that is 1 in the cycle after `coming`, and for so many cycles after that.

    It enables some thousand registers, so it must not come out of logic.
    """
    awake, left = Signal(name=f"{name}_awake"), Signal(range(cycles + 1), name=f"{name}_left")
    m.d.sync += awake.eq(coming | (left != 0))
    with m.If(coming):
        m.d.sync += left.eq(cycles)
    with m.Elif(left != 0):
        m.d.sync += left.eq(left - 1)
    return awake
