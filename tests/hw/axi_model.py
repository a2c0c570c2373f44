"""An AXI4 memory for Amaranth's simulator: latency, random stalls, error responses, and checks of the protocol.

    memory = AxiMemory(size=4096, bus_bytes=16, latency=40, stall=0.3, seed=seed)
    simulate(dut, bench, background=[memory.reads(dut.axi)])

A broken rule fails an assertion: valid that falls or a payload that changes before it is taken, a burst that crosses
4 KiB, is too long or not INCR of whole words, a wrong WLAST, too many bursts outstanding, an access outside memory.
"""

from __future__ import annotations

import random
from collections import deque

from tilewright_hw.gateware.axi import PAGE, Burst, Response


class Held:
    """Check that what a channel offers stays until it is taken."""

    def __init__(self, name):
        self.name, self.offer = name, None

    def check(self, valid, ready, *payload):
        if self.offer is not None:
            assert valid, f"{self.name}: valid fell before ready came"
            assert payload == self.offer, f"{self.name}: {self.offer} became {payload}"
        self.offer = payload if valid and not ready else None


class AxiMemory:
    """Bytes from `origin` on. Accesses that touch `broken` (a range of addresses) answer SLVERR.

    `stall` is the share of cycles in which a channel that could go does not. `latency` counts the cycles from an
    address to its first data, or from the last data to the response. With `wait_for_data` a write address is not taken
    before data is offered. Cycle numbers of transfers are recorded.
    """

    def __init__(
        self,
        *,
        size,
        bus_bytes,
        origin=0,
        latency=1,
        stall=0.0,
        seed=0,
        burst_beats=256,
        limit=64,
        broken=range(0),
        wait_for_data=False,
    ):
        self.data = bytearray(random.Random(seed).randbytes(size))
        self.bus_bytes, self.origin, self.latency, self.stall = bus_bytes, origin, latency, stall
        self.burst_beats, self.limit, self.broken = burst_beats, limit, broken
        self.seed, self.wait_for_data = seed, wait_for_data
        self.read_times, self.address_times, self.write_times = [], [], []
        self.bursts = []
        self.written = {}
        self.bytes_written = self.bytes_answered = 0

    def reads(self, bus):
        """Return a testbench that serves the AR and R channels."""

        async def serve(ctx):
            rng, held, queue = random.Random(self.seed + 1), Held("AR"), deque()
            cycle, sending, outstanding = 0, False, 0
            while True:
                ready = rng.random() >= self.stall
                ctx.set(bus.arready, ready)
                if not sending and queue and queue[0][0] <= cycle and rng.random() >= self.stall:
                    _, addr, last = queue[0]
                    word, resp = self._load(addr)
                    ctx.set(bus.rdata, word)
                    ctx.set(bus.rresp, resp)
                    ctx.set(bus.rlast, last)
                    sending = True
                ctx.set(bus.rvalid, sending)
                *_, valid, rready, addr, beats, size, burst, ident = await ctx.tick().sample(
                    bus.arvalid, bus.rready, bus.araddr, bus.arlen, bus.arsize, bus.arburst, bus.arid
                )
                held.check(valid, ready, addr, beats)
                if valid and ready:
                    self._check(addr, beats + 1, size, burst, ident)
                    outstanding += 1
                    assert outstanding <= self.limit, "too many reads outstanding"
                    self.address_times.append(cycle)
                    self.bursts.append((addr, beats + 1))
                    for i in range(beats + 1):
                        queue.append((cycle + self.latency, addr + i * self.bus_bytes, i == beats))
                if sending and rready:
                    outstanding -= queue.popleft()[2]
                    self.read_times.append(cycle)
                    sending = False
                cycle += 1

        return serve

    def writes(self, bus):
        """Return a testbench that serves the AW, W and B channels."""

        async def serve(ctx):
            rng = random.Random(self.seed + 2)
            held_aw, held_w = Held("AW"), Held("W")
            addresses, answers = deque(), deque()
            cycle, answering, outstanding, done, w = 0, False, 0, 0, 0
            while True:
                aw_ready, w_ready = rng.random() >= self.stall, rng.random() >= self.stall
                aw_ready = aw_ready and (w or not self.wait_for_data)
                w_ready = w_ready and bool(addresses)
                ctx.set(bus.awready, aw_ready)
                ctx.set(bus.wready, w_ready)
                if not answering and answers and answers[0][0] <= cycle:
                    answering = rng.random() >= self.stall
                    ctx.set(bus.bresp, answers[0][1])
                ctx.set(bus.bvalid, answering)
                *_, aw, addr, beats, size, burst, ident, w, word, strobes, last, b = await ctx.tick().sample(
                    bus.awvalid, bus.awaddr, bus.awlen, bus.awsize, bus.awburst, bus.awid,
                    bus.wvalid, bus.wdata, bus.wstrb, bus.wlast, bus.bready,
                )  # fmt: skip
                held_aw.check(aw, aw_ready, addr, beats)
                held_w.check(w, w_ready, word, strobes, last)
                if w and w_ready:
                    start, count, resp = addresses[0]
                    assert last == (done == count - 1), f"WLAST {last} at beat {done} of {count}"
                    resp = max(resp, self._store(start + done * self.bus_bytes, word, strobes))
                    addresses[0] = (start, count, resp)
                    self.write_times.append(cycle)
                    done += 1
                    if last:
                        answers.append((cycle + self.latency, resp, self.bytes_written))
                        addresses.popleft()
                        done = 0
                if answering and b:
                    self.bytes_answered = answers.popleft()[2]
                    answering = False
                    outstanding -= 1
                if aw and aw_ready:
                    self._check(addr, beats + 1, size, burst, ident)
                    outstanding += 1
                    assert outstanding <= self.limit, "too many writes outstanding"
                    self.address_times.append(cycle)
                    self.bursts.append((addr, beats + 1))
                    addresses.append((addr, beats + 1, Response.OKAY))
                cycle += 1

        return serve

    def _check(self, addr, beats, size, burst, ident):
        end = addr + beats * self.bus_bytes
        assert addr % self.bus_bytes == 0, f"address {addr:#x} is not a multiple of the bus word"
        assert addr // PAGE == (end - 1) // PAGE, f"{addr:#x}, {beats} beats: crosses 4 KiB"
        assert beats <= self.burst_beats, f"{beats} beats"
        assert 1 << size == self.bus_bytes
        assert burst == Burst.INCR
        assert ident == 0
        assert self.origin <= addr, f"{addr:#x} is outside"
        assert end <= self.origin + len(self.data), f"{addr:#x}, {beats} beats: ends outside"

    def _load(self, addr):
        at = addr - self.origin
        word = int.from_bytes(self.data[at : at + self.bus_bytes], "little")
        return word, Response.SLVERR if addr in self.broken else Response.OKAY

    def _store(self, addr, word, strobes):
        for i, byte in enumerate(word.to_bytes(self.bus_bytes, "little")):
            if strobes >> i & 1:
                self.written[addr + i] = byte
                self.bytes_written += 1
        return Response.SLVERR if addr in self.broken else Response.OKAY
