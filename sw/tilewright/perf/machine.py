"""The whole machine: sequencer, queues and units as communicating state machines, in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.perf.bursts import NEVER
from tilewright.perf.matrix import Matrix
from tilewright.perf.program import Step
from tilewright.perf.reads import Reads
from tilewright.perf.timing import (
    EPOCH,
    FIFO_LATENCY,
    PREFETCH,
    STORE_CHOICE,
    entry_delay,
    result_delay,
    row_pause,
    row_words,
    stores,
    word_cycles,
)
from tilewright.perf.writes import Words, Writes
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.arch.isa import BYTES, UNIT_OF, Op, Unit
from tilewright_hw.arch.memory_model import MemoryModel

PAGE = 4096


@dataclass
class Event:
    """What happened to one instruction of a unit, in cycles from the start of the program.

    Parameters
    ----------
    index : int
        Number of the instruction in the program.
    step : Step
        What it is.
    unit : Unit
        Who executes it.
    pushed : int
        It enters the unit's queue.
    met : int
        All that it depends on is done (its own push, if that is later).
    blocker : Unit or None
        The unit whose completion came last.
    taken, done : int
        The unit takes it, and completes it.
    """

    index: int
    step: Step
    unit: Unit
    pushed: int
    met: int = 0
    blocker: Unit | None = None
    taken: int = -1
    done: int = -1


class _Queue:
    """The commands of one unit: pushed, offered when what they depend on is done, taken, completed."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.events: list[Event] = []
        self.targets: list[tuple[int, ...]] = []
        self.outs: list[int] = []  # cycles in which entries came to the output
        self.taken = 0
        self.done: list[int] = []
        self.posted = False

    def room(self, cycle: int) -> int:
        """Return the first cycle from `cycle` on in which an entry may be pushed; NEVER if that is not known."""
        behind = len(self.events) - (self.depth - 1)
        if behind < 0:
            return cycle
        return max(cycle, self.outs[behind] + 1) if behind < len(self.outs) else NEVER

    def settle(self) -> None:
        """Work out when entries come to the output: the one after each that was taken."""
        while len(self.outs) < min(len(self.events), self.taken + 1):
            number = len(self.outs)
            before = self.events[number - 1].taken if number else 0
            self.outs.append(max(self.events[number].pushed + 1, before))


class Machine:
    """Predicts one run of a program.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    memory : MemoryModel
        Timing of the memory.
    steps : list of Step
        The program.
    program : int
        Its byte address.
    bases : list of int
        The base registers.
    """

    def __init__(
        self, config: AcceleratorConfig, memory: MemoryModel, steps: list[Step], program: int, bases: list[int]
    ) -> None:
        self.config, self.steps, self.program, self.bases = config, steps, program, bases
        self.queues = {unit: _Queue(config.queue_depth) for unit in Unit}
        self.matrix = Matrix(config, self._walker_free, lambda cycle: self._completed(Unit.MATRIX, cycle))
        self.reads = Reads(
            config, memory, self.matrix,
            lambda is_load, cycle: self._completed(Unit.LOAD if is_load else Unit.WEIGHT, cycle), self._fetched,
        )  # fmt: skip
        self.writes = Writes(config, memory, self._store_free, lambda cycle: self._completed(Unit.STORE, cycle))
        self._free = dict.fromkeys(Unit, 0)  # of those units that are not asked: first cycle to take a command
        self.wait_store = 0
        self.cycles = 0
        self._heap: list[tuple[int, int, Callable[[int], None]]] = []
        self._number = 0
        # Fetch
        self.beats = max(1, BYTES // config.bus_bytes)
        self.request = min(self.beats, config.burst_beats)
        self._depth = PREFETCH * self.beats
        self._asked = 0  # requests for instructions
        self._waiting: list[int] = []  # request that waits behind the one that is offered: cycle of asking
        self._sent: list[bool] = []  # requests that were offered, in order: whether for a table
        self._fetch_number = 0
        self._written: list[int] = []  # cycles in which the beats of instructions came
        self._beats_taken: list[int] = []
        self._table_left = 0
        self._table_blocked = False
        self._ended = NEVER
        self._ask_at = NEVER
        self._last_ask = 0
        self._table_from = 0
        self.reads.fetch_beats = self.request
        self.fetch_beats = 0
        # Sequencer
        self._at = 0
        self._take_from = 1
        self._wanted = False  # the instruction at hand waits for its beats
        self._blocked: int | None = None
        self._issued = 0
        self._epoch_over = False
        self._mark = dict.fromkeys(Unit, 0)
        self._end_from = NEVER
        self._push_count = dict.fromkeys(Unit, 0)

    def run(self) -> int:
        """Run; return the cycles from start to done.

        InputError if the program stops before its end: it takes from a FIFO what never comes, or waits for itself.
        """
        self._post_ask(1)
        self._take()
        heap = self._heap
        while True:
            issue = self.reads.next_issue()
            if heap and heap[0][0] <= issue:
                cycle, _, action = heapq.heappop(heap)
                action(cycle)
            elif issue != NEVER:
                who = self.reads.issue(issue)
                if who is not None:
                    self._offer(who)
            else:
                break
        if self._end_from == NEVER or any(len(queue.done) < len(queue.events) for queue in self.queues.values()):
            raise InputError(self._stuck())
        last = max([queue.done[-1] + 1 for queue in self.queues.values() if queue.done], default=0)
        self.cycles = max(self._end_from, last, self._idle())
        return self.cycles

    def _stuck(self) -> str:
        """Return what keeps a program from coming to its end."""
        waiting = [
            f"{unit.name} in instruction {queue.events[len(queue.done)].index}"
            for unit, queue in self.queues.items()
            if len(queue.done) < len(queue.events)
        ]
        at = f"the sequencer is at instruction {self._at} of {len(self.steps)}"
        return f"the program must come to its end: {', '.join([*waiting, at])}, and nothing moves"

    def _post(self, cycle: int, action: Callable[[int], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (cycle, self._number, action))

    # Fetch

    def _ask(self, cycle: int) -> None:
        """Ask for the next instruction's beats, if that is allowed in this cycle; else it is tried again later."""
        if cycle != self._ask_at:
            return  # an earlier one took its place
        self._ask_at = NEVER
        begun = self._asked * self.request % self.beats  # an instruction that was begun comes whole
        if (cycle > self._ended and not begun) or (self._table_blocked and cycle >= self._table_from):
            return
        when = self._may_ask(cycle)
        if when == NEVER:
            return
        if when > cycle:
            self._post_ask(when)
            return
        self._asked += 1
        self._request(cycle, table=False)

    def _post_ask(self, cycle: int) -> None:
        if cycle < self._ask_at:
            self._ask_at = cycle
            self._post(cycle, self._ask)

    def _may_ask(self, cycle: int) -> int:
        """Return the first cycle in which instructions may be asked for; NEVER if that is not known."""
        if self._waiting:
            return NEVER
        cycle = max(cycle, self._last_ask + 1)
        needed = (self._asked + 1) * self.request - self._depth  # beats taken
        if needed > len(self._beats_taken):
            return NEVER
        if needed > 0:
            cycle = max(cycle, self._beats_taken[needed - 1] + 1)
        address = self.program + self._asked * self.request * self.config.bus_bytes
        if address % PAGE == 0 and self._asked:
            came = self._asked * self.request
            if came > len(self._written):
                return NEVER
            cycle = max(cycle, self._written[came - 1] + 1)
        return cycle

    def _request(self, cycle: int, *, table: bool) -> None:
        """Put a request into the fetch register."""
        self._sent.append(table)
        self._last_ask = cycle
        if self.reads.fetch_offered == NEVER:
            self.reads.fetch_offered = cycle + 2
            self._next_request(cycle + 1)
        else:
            self._waiting.append(cycle)

    def _next_request(self, cycle: int) -> None:
        """Make another request as soon as the fetch register is free, which is in this cycle."""
        if self._table_left:
            self._post(max(cycle, self._table_from + 1), self._ask_table)
        if not self._table_left or cycle < self._table_from:
            self._post_ask(cycle)

    def _ask_table(self, cycle: int) -> None:
        """Ask for a table's next beats, unless the fetch register holds a request (then it is tried after that)."""
        if self._table_left and not self._waiting and self._last_ask < cycle:
            self._table_left -= 1
            self._request(cycle, table=True)

    def _fetched(self, issue: int, first: int, last: int) -> None:
        """Note the beats of a request that went in cycle `issue`."""
        table = self._sent[self._fetch_number]
        self._fetch_number += 1
        self.fetch_beats += self.request
        if self._waiting:
            moved = max(self._waiting.pop() + 1, issue)
            self.reads.fetch_offered = moved + 1
            self._next_request(moved)
        if table:
            if not self._table_left and not any(self._sent[self._fetch_number :]):
                self._table_blocked = False
                self._take_from = last + 2
                self._post_ask(last + 2)
                self._take()
            return
        step = (last - first) / max(1, self.request - 1)
        begin = len(self._written)
        self._written += [round(first + i * step) for i in range(self.request)]
        end = (len(self.steps) - 1) * self.beats  # END's first beat
        if begin <= end < len(self._written):
            self._ended = self._written[end]
        self._post_ask(issue + 1)
        if self._wanted:
            self._take()

    def _idle(self) -> int:
        """Return the cycle in which nothing is requested or held: END drops what was read ahead."""
        left = len(self._written) - len(self._beats_taken)
        return max(self._written[-1] + FIFO_LATENCY + 1, self._end_from + left)

    # Sequencer

    def _take(self) -> None:
        """Take the beats of the next instruction that are known to come; with the last of them, check it."""
        taken, end = self._beats_taken, (self._at + 1) * self.beats
        number = len(taken)
        for written in self._written[number:end]:
            before = taken[-1] if taken else 0
            taken.append(max(before + 1, self._take_from, written + FIFO_LATENCY))
        if len(taken) > number:
            self._post_ask(taken[number] + 1)
        self._wanted = len(taken) < end
        if not self._wanted:
            step = self.steps[self._at]
            patching = step.patches + 1 if step.patches else 0
            self._post(taken[-1] + 2 + patching, self._issue)

    def _issue(self, cycle: int) -> None:
        """Issue the instruction at hand, or wait for what keeps it."""
        step = self.steps[self._at]
        self._blocked = None
        if self._epoch_over:
            entered = [self._entered(unit) for unit in Unit]
            if NEVER in entered:
                self._blocked = cycle
                return
            over = max([*entered, 0]) + 1
            if over > cycle:
                self._post(over, self._issue)
                return
            self._epoch_over = False
            self._mark = dict(self._push_count)
        unit = UNIT_OF.get(step.op)
        when = self._met(step, cycle) if unit is None else self.queues[unit].room(cycle)
        if when == NEVER:
            self._blocked = cycle
        elif when > cycle:
            self._post(when, self._issue)
        else:
            self._go_on(cycle, step, unit)

    def _entered(self, unit: Unit) -> int:
        """Return the cycle from which the commands of before the epoch have left the unit's queue."""
        mark, queue = self._mark[unit], self.queues[unit]
        if not mark:
            return 0
        return queue.events[mark - 1].taken + 2 if queue.taken >= mark else NEVER

    def _met(self, step: Step, cycle: int) -> int:
        """Return when the dependencies of one of the sequencer's own instructions are met."""
        for unit, target in zip(Unit, self._targets(step), strict=True):
            done = self.queues[unit].done
            if target > len(done):
                return NEVER
            if target > 0:
                cycle = max(cycle, done[target - 1] + 1)
        return cycle

    def _targets(self, step: Step) -> tuple[int, ...]:
        """Return, per unit, how many commands must be completed."""
        return tuple(
            self._push_count[unit] + 1 - wait if wait else 0 for unit, wait in zip(Unit, step.waits, strict=True)
        )

    def _go_on(self, cycle: int, step: Step, unit: Unit | None) -> None:
        self._issued += 1
        if self._issued % EPOCH == 0:
            self._epoch_over = True
        if unit is not None:
            queue = self.queues[unit]
            queue.targets.append(self._targets(step))
            queue.events.append(Event(self._at, step, unit, cycle))
            self._push_count[unit] += 1
            queue.settle()
            self._offer(unit)
        self._at += 1
        self._take_from = cycle + 1
        if step.op == Op.END:
            self._end_from = cycle + 1
            return
        if step.op == Op.LDREGS:
            self._table_blocked = True
            self._table_from = cycle + 2
            words = self.request * (self.config.bus_bits // 32)
            self._table_left = -(-step.fields["count"] // words)
            if not self._waiting:
                self._next_request(cycle + 2)
            return
        self._take()

    # Queues and units

    def _offer(self, unit: Unit) -> None:
        """Let the unit take the command at the head of its queue, if it is known when it can."""
        queue = self.queues[unit]
        if queue.posted or queue.taken >= len(queue.events):
            return
        event = queue.events[queue.taken]
        met, blocker = 0, None
        for other, target in zip(Unit, queue.targets[queue.taken], strict=True):
            if target > 0:
                done = self.queues[other].done
                if target > len(done):
                    return
                if done[target - 1] > met:
                    met, blocker = done[target - 1], other
        free = self._unit_free(unit)
        if free == NEVER:
            return
        before = queue.events[queue.taken - 1].taken if queue.taken else -2
        valid = max(event.pushed + 3, before + 2, met + 2)
        if unit == Unit.STORE:
            valid += STORE_CHOICE
        event.met, event.blocker = met, blocker
        queue.posted = True
        self._post(max(valid, free), lambda cycle: self._enter(unit, cycle))

    def _unit_free(self, unit: Unit) -> int:
        if unit == Unit.WEIGHT:
            return self.reads.weights.free
        if unit == Unit.LOAD:
            return self.reads.load_free()
        return self._free[unit]

    def _enter(self, unit: Unit, cycle: int) -> None:
        queue = self.queues[unit]
        queue.posted = False
        event = queue.events[queue.taken]
        event.taken = cycle
        queue.taken += 1
        queue.settle()
        fields = event.step.fields
        if unit == Unit.MATRIX:
            self._free[unit] = NEVER
            self.matrix.take(cycle, fields)
        elif unit == Unit.VECTOR:
            self._vector(cycle, fields)
        else:
            start = self.bases[fields["base"]] + fields["offset"]
            if unit == Unit.WEIGHT:
                self.reads.take_weight(cycle, start, fields)
            elif unit == Unit.LOAD:
                self.reads.take_load(cycle, start, fields)
            else:
                self._free[unit] = NEVER
                self.writes.take(cycle, start, fields)
        self._unblock()
        self._offer(unit)

    def _vector(self, cycle: int, fields: dict[str, int]) -> None:
        """Work out when a VECTOR taken in this cycle completes."""
        self._free[Unit.VECTOR] = NEVER
        delay = max(result_delay(fields), entry_delay(self.config, fields))

        def finished(issue: int, waited: int) -> None:
            self.wait_store += waited
            self._free[Unit.VECTOR] = issue + delay
            self._completed(Unit.VECTOR, issue + delay + 1)

        words, rows = row_words(self.config, fields), fields["m"] * fields["h"]
        step, pause = word_cycles(fields), row_pause(fields)
        if stores(fields):
            self.writes.words(cycle + 1, Words(rows, words, step, pause, result_delay(fields)), finished)
        else:
            finished(cycle + 1 + (rows * words - 1) * step + (rows - 1) * pause, 0)

    def _walker_free(self, cycle: int) -> None:
        self._free[Unit.MATRIX] = cycle
        self._offer(Unit.MATRIX)

    def _store_free(self, cycle: int) -> None:
        self._free[Unit.STORE] = cycle
        self._offer(Unit.STORE)

    def _completed(self, unit: Unit, cycle: int) -> None:
        """Note a completion, which may lie ahead, and let those go on that wait for it."""
        queue = self.queues[unit]
        queue.events[len(queue.done)].done = cycle
        queue.done.append(cycle)
        for other in Unit:
            self._offer(other)
        self._unblock()

    def _unblock(self) -> None:
        """Try again to issue the instruction that was kept."""
        if self._blocked is not None:
            self._issue(self._blocked)
