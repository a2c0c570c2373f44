"""AXI in benches: the rules that a master must keep, checked on every transfer, and a memory that answers errors.

`AxiRules` and `AxiLiteRules` only watch; a broken rule fails the test. On the other side of the ports are
cocotbext-axi's memory and master, which are not ours, and pause at random.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus

from tilewright_sim.benches.testbench import Monitor, pauses

PAGE = 4096
INCR = 1

logging.getLogger("cocotb").setLevel(logging.WARNING)  # cocotbext-axi tells of every burst
logging.getLogger("cocotb.regression").setLevel(logging.INFO)


class BoundedRead(AxiRamRead):  # type: ignore[misc]
    """A memory's read side; what lies outside is an error (cocotbext-axi answers SLVERR).

    Members
    -------
    at : int
        The address of its first byte.
    touched : set of int
        Pages of 4 KiB that were read, counted from there.
    """

    at: int
    touched: set[int]

    async def _read(self, address: int, length: int) -> bytes:
        self.touched.add((address - self.at) // PAGE)
        return bytes(self.read(_inside(self, address, length), length))


class BoundedWrite(AxiRamWrite):  # type: ignore[misc]
    """A memory's write side; what lies outside is an error (cocotbext-axi answers SLVERR).

    Members
    -------
    at : int
        The address of its first byte.
    """

    at: int

    async def _write(self, address: int, data: bytes) -> None:
        self.write(_inside(self, address, len(data)), data)


def _inside(side: BoundedRead | BoundedWrite, address: int, length: int) -> int:
    """Return where in its memory some bytes lie; IndexError if not all of them do."""
    inside = address - side.at
    if not 0 <= inside <= side.size - length:
        raise IndexError(address)
    return inside


def anywhere(rng: random.Random) -> int:
    """Return an address for a memory: any page below 2^63, so that each bit of an address counts."""
    return rng.getrandbits(63) // PAGE * PAGE


def read_memory(dut: Any, prefix: str, memory: bytearray, rng: random.Random, share: float, at: int = 0) -> BoundedRead:
    """Put memory behind the read channels PREFIX_ar* and PREFIX_r*, each of which pauses for `share` of the time."""
    side = BoundedRead(AxiReadBus.from_prefix(dut, prefix), dut.clk, dut.rst, mem=memory)
    side.at, side.touched = at, set()
    pause((side.ar_channel, side.r_channel), rng, share)
    return side


def write_memory(
    dut: Any, prefix: str, memory: bytearray, rng: random.Random, share: float, at: int = 0
) -> BoundedWrite:
    """Put memory behind the write channels PREFIX_aw*, PREFIX_w* and PREFIX_b*, as `read_memory` does."""
    side = BoundedWrite(AxiWriteBus.from_prefix(dut, prefix), dut.clk, dut.rst, mem=memory)
    side.at = at
    pause((side.aw_channel, side.w_channel, side.b_channel), rng, share)
    return side


def registers_master(dut: Any, prefix: str, rng: random.Random, share: float) -> AxiLiteMaster:
    """Return a host on the AXI4-Lite slave PREFIX_*, each of whose channels pauses for `share` of the time."""
    host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst)
    read, write = host.read_if, host.write_if
    pause((read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel), rng, share)
    return host


def pause(channels: Iterable[Any], rng: random.Random, share: float) -> None:
    """Let channels of cocotbext-axi pause."""
    for channel in channels:
        if share:
            channel.set_pause_generator(pauses(rng, share))


class AxiRules:
    """Watches an AXI4 master of ours.

    * What a channel offers stays as it is until it is taken; nothing is valid in reset.
    * Bursts are INCR of whole bus words from an aligned address, with id 0, at most `beats` long; none crosses 4 KiB.
    * At most `limit` bursts are outstanding.
    * Every beat that comes was asked for, and RLAST and the id are where they belong.
    * A beat is written after its address was offered; WLAST is on a burst's last beat and on no other; a write
      response comes only after that.
    * `assert_quiet`: everything asked for has been answered.

    Parameters
    ----------
    dut : handle
        The design.
    prefix : str
        Of its AXI ports, without the underscore.
    bus_bytes, beats : int
        Bytes of a beat, beats of the longest burst.
    reads, writes : int
        Bursts that may be outstanding; 0 where there are no such channels.
    """

    def __init__(self, dut: Any, prefix: str, *, bus_bytes: int, beats: int, reads: int = 0, writes: int = 0) -> None:
        self._dut, self._prefix = dut, prefix
        self._bus_bytes, self._beats = bus_bytes, beats
        self._limits = {"ar": reads, "aw": writes}
        self._asked: deque[int] = deque()  # beats of the reads that are not ended, oldest first
        self._came = 0  # of the oldest
        self._announced: deque[int] = deque()  # beats of the writes whose data is not complete
        self._wrote = 0
        self._unanswered = 0
        self.count: Counter[str] = Counter()
        address = ("addr", "len", "size", "burst", "id", "lock")
        if reads:
            self._watch("ar", address, self._read_burst)
            self._watch("r", ("last", "id"), self._read_beat)
        if writes:
            # In the cycle of a transfer the address goes before the data: its monitor is started first.
            self._watch("aw", address, self._write_burst, offered=True)
            self._watch("w", ("data", "strb", "last"), self._write_beat)
            self._watch("b", ("resp", "id"), self._response)
        masters = [name for name, there in (("ar", reads), ("aw", writes), ("w", writes)) if there]
        cocotb.start_soon(self._watch_reset([getattr(dut, f"{prefix}_{name}valid") for name in masters]))

    def _watch(
        self, channel: str, payload: Iterable[str], callback: Callable[..., None], *, offered: bool = False
    ) -> None:
        name = f"{self._prefix}_{channel}"
        signals = [name + part for part in payload]
        Monitor(self._dut, f"{name}valid", f"{name}ready", signals, callback, offered=offered).start()

    async def _watch_reset(self, valids: list[Any]) -> None:
        """Fail if a channel is valid in the second cycle of a reset or later: the first may be what was before."""
        cycles = 0
        while True:
            await RisingEdge(self._dut.clk)
            cycles = cycles + 1 if self._dut.rst.value else 0
            if cycles > 1:
                assert not any(valid.value for valid in valids), f"{self._prefix}: something is valid in reset"

    def _burst(self, channel: str, address: int, length: int, size: int, burst: int, ident: int, lock: int) -> None:
        assert 1 << size == self._bus_bytes, f"{channel}: size {size}"
        assert burst == INCR, f"{channel}: burst {burst}"
        assert (ident, lock) == (0, 0), f"{channel}: id {ident}, lock {lock}"
        assert address % self._bus_bytes == 0, f"{channel}: address {address:#x} is not aligned"
        assert length < self._beats, f"{channel}: {length + 1} beats"
        assert address % PAGE + (length + 1) * self._bus_bytes <= PAGE, f"{channel}: {address:#x} crosses 4 KiB"
        self.count[channel] += 1

    def _read_burst(self, *fields: int) -> None:
        self._burst("ar", *fields)
        self._asked.append(fields[1] + 1)
        assert len(self._asked) <= self._limits["ar"], "too many reads are outstanding"

    def _read_beat(self, last: int, ident: int) -> None:
        assert self._asked, "a beat came that was not asked for"
        self._came += 1
        assert bool(last) == (self._came == self._asked[0]), f"RLAST {last} with beat {self._came} of {self._asked[0]}"
        assert ident == 0
        self.count["r"] += 1
        if last:
            self._asked.popleft()
            self._came = 0

    def _write_burst(self, *fields: int) -> None:
        self._burst("aw", *fields)
        self._announced.append(fields[1] + 1)
        self._unanswered += 1
        assert self._unanswered <= self._limits["aw"], "too many writes are outstanding"

    def _write_beat(self, data: int, strobe: int, last: int) -> None:
        assert self._announced, "a beat was written before its address was offered"
        self._wrote += 1
        wanted = self._announced[0]
        assert bool(last) == (self._wrote == wanted), f"WLAST {last} with beat {self._wrote} of {wanted}"
        self.count["w"] += 1
        if last:
            self._announced.popleft()
            self._wrote = 0

    def _response(self, response: int, ident: int) -> None:
        assert self._unanswered > len(self._announced), "a response came before its write was complete"
        assert ident == 0
        self._unanswered -= 1
        self.count["b"] += 1

    def reset(self) -> None:
        """Forget everything."""
        self._asked.clear()
        self._announced.clear()
        self._came = self._wrote = self._unanswered = 0
        self.count.clear()

    def assert_quiet(self, *, writes: bool = True) -> None:
        """Fail if something asked for has not been answered."""
        assert not self._asked, f"{len(self._asked)} reads have not ended"
        if writes:
            assert not self._announced, f"the data of {len(self._announced)} writes is missing"
            assert not self._unanswered, f"{self._unanswered} writes have not been answered"


class AxiLiteRules:
    """Watches an AXI4-Lite slave of ours: answers that stand still until taken, one for each request, none without.

    Parameters
    ----------
    dut : handle
        The design.
    prefix : str
        Of its ports, without the underscore.
    """

    def __init__(self, dut: Any, prefix: str) -> None:
        self._open: Counter[str] = Counter()
        for channel, payload, seen in (
            ("ar", ("addr",), lambda *_: self._open.update(r=1)),
            ("aw", ("addr",), lambda *_: self._open.update(aw=1)),
            ("w", ("data", "strb"), lambda *_: self._open.update(w=1)),
            ("r", ("data", "resp"), self._read),
            ("b", ("resp",), self._written),
        ):
            name = f"{prefix}_{channel}"
            Monitor(dut, f"{name}valid", f"{name}ready", [name + part for part in payload], seen).start()

    def _read(self, data: int, response: int) -> None:
        assert self._open["r"] > 0, "an answer came to no read"
        assert response in (0, 2), f"RRESP {response}"
        self._open["r"] -= 1

    def _written(self, response: int) -> None:
        assert min(self._open["aw"], self._open["w"]) > 0, "an answer came to no write"
        assert response in (0, 2), f"BRESP {response}"
        self._open["aw"] -= 1
        self._open["w"] -= 1

    def reset(self) -> None:
        """Forget everything."""
        self._open.clear()

    def assert_quiet(self) -> None:
        """Fail if a request has not been answered."""
        left = {name: count for name, count in self._open.items() if count}
        assert not left, f"not answered: {left}"
