"""The watchers of AXI's rules, without a simulator: each broken rule is told, and what keeps them is not."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

pytest.importorskip("cocotbext.axi", reason="cocotb comes with the extra dev")

from tilewright_sim.benches import axi, testbench
from tilewright_sim.benches.axi import AxiLiteRules, AxiRules

SIZE, INCR = 2, 1  # of four bytes


@pytest.fixture
def rules(monkeypatch):
    """A watcher whose callbacks the tests call."""
    for module in (axi, testbench):
        monkeypatch.setattr(module.cocotb, "start_soon", lambda coroutine: coroutine.close())
    return AxiRules(MagicMock(), "axi", bus_bytes=4, beats=16, reads=2, writes=2)


def address(at=0x100, length=0, size=SIZE, burst=INCR, ident=0, lock=0):
    return at, length, size, burst, ident, lock


def play(rules, *events):
    for name, *fields in events:
        getattr(rules, f"_{name}")(*fields)


def test_good_bursts_pass(rules):
    play(
        rules,
        ("read_burst", *address(0xFC0, 15)),
        ("read_burst", *address(0x1000)),
        *[("read_beat", i == 15, 0) for i in range(16)],
        ("write_burst", *address(length=1)),
        ("read_beat", 1, 0),
        ("write_beat", 1, 15, 0),
        ("write_beat", 1, 15, 1),
        ("response", 0, 0),
    )
    rules.assert_quiet()
    assert rules.count == {"ar": 2, "r": 17, "aw": 1, "w": 2, "b": 1}


R, W, ONE, LAST = (
    ("read_burst", *address()),
    ("write_burst", *address(length=1)),
    ("write_beat", 1, 15, 0),
    ("write_beat", 1, 15, 1),
)
BROKEN = {
    "axi: size 1": [("read_burst", *address(size=1))],
    "burst 2": [("write_burst", *address(burst=2))],
    "id 1, lock 0": [("read_burst", *address(ident=1))],
    "id 0, lock 1": [("read_burst", *address(lock=1))],
    "0x102 is not aligned": [("read_burst", *address(0x102))],
    "17 beats": [("read_burst", *address(length=16))],
    "0xfc4 crosses 4 KiB": [("write_burst", *address(0xFC4, 15))],
    "too many reads are outstanding": [R, R, R],
    "too many writes are outstanding": [W, W, W],
    "a beat came that was not asked for": [R, ("read_beat", 1, 0), ("read_beat", 1, 0)],
    "RLAST 0 with beat 1 of 1": [R, ("read_beat", 0, 0)],
    "before its address was offered": [ONE],
    "WLAST 1 with beat 1 of 2": [W, LAST],
    "WLAST 0 with beat 2 of 2": [W, ONE, ONE],
    "before its write was complete": [W, ONE, ("response", 0, 0)],
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_rules_are_told(rules, message):
    with pytest.raises(AssertionError) as told:
        play(rules, *BROKEN[message])
    assert message.removeprefix("axi: ") in str(told.value)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([R], "1 reads have not ended"),
        ([W, ONE], "the data of 1 writes is missing"),
        ([W, ONE, LAST], "1 writes have not been answered"),
    ],
)
def test_what_is_not_answered_is_told(rules, events, message):
    play(rules, *events)
    with pytest.raises(AssertionError, match=message):
        rules.assert_quiet()
    rules.reset()
    rules.assert_quiet()


def test_a_slave_answers_each_request_once(monkeypatch):
    monkeypatch.setattr(testbench.cocotb, "start_soon", lambda coroutine: coroutine.close())
    slave = AxiLiteRules(MagicMock(), "bus")
    with pytest.raises(AssertionError, match="an answer came to no read"):
        slave._read(0, 0)
    with pytest.raises(AssertionError, match="an answer came to no write"):
        slave._written(0)
    slave._open.update(r=1, aw=1, w=1)
    with pytest.raises(AssertionError, match="not answered: "):
        slave.assert_quiet()
    slave._read(0, 2)
    slave._written(0)
    slave.assert_quiet()


class Clocked:
    """A coroutine that is run by hand, cycle by cycle."""

    def __init__(self, monkeypatch, dut, **how):
        self.seen = []
        monkeypatch.setattr(testbench, "RisingEdge", lambda clock: self)
        names = {"valid": "valid", "ready": "ready", "payload": ["data"]}
        self.coroutine = testbench.Monitor(dut, *names.values(), lambda data: self.seen.append(data), **how)._run()
        self.dut = dut
        self.coroutine.send(None)

    def __await__(self):
        yield self

    def cycle(self, valid, ready=0, data=0, rst=0):
        for name, value in (("valid", valid), ("ready", ready), ("data", data), ("rst", rst)):
            getattr(self.dut, name).value = value
        self.coroutine.send(None)


def a_dut():
    return SimpleNamespace(**{name: SimpleNamespace(value=0) for name in ("clk", "rst", "valid", "ready", "data")})


def test_a_monitor_sees_transfers_and_broken_offers(monkeypatch):
    monitor = Clocked(monkeypatch, a_dut())
    monitor.cycle(0)
    monitor.cycle(1, 0, 5)
    monitor.cycle(1, 1, 5)
    monitor.cycle(1, 1, 6)
    monitor.cycle(1, 0, 7)
    monitor.cycle(0, 0, 0, rst=1)  # a reset takes offers back
    monitor.cycle(0)
    assert monitor.seen == [5, 6]
    monitor.cycle(1, 0, 8)
    with pytest.raises(AssertionError, match="valid fell before its offer was taken"):
        monitor.cycle(0)


def test_a_payload_must_stand_still(monkeypatch):
    monitor = Clocked(monkeypatch, a_dut(), offered=True)
    monitor.cycle(1, 0, 5)
    assert monitor.seen == [5]  # when it is offered, and once
    with pytest.raises(AssertionError, match=r"the payload changed from \[5\] to \[6\]"):
        monitor.cycle(1, 1, 6)
    assert monitor.seen == [5]
