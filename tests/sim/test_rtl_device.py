"""The RTL device's harness, around a small copy engine: memory, registers, stalls, errors, AXI rules, traces."""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tilewright_hw.arch import AcceleratorConfig, Device, DeviceError, InputError
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.registers import IDENTITY, REGISTERS, ErrorCode
from tilewright_hw.generate import to_rtlil
from tilewright_sim.rtl import RtlDevice, Trace, build_library

sys.path.insert(0, str(Path(__file__).parent))
from copy_engine import BURST, FAULTS, CopyEngine

CONFIG = AcceleratorConfig.preset("tiny")
WIDE = AcceleratorConfig.preset("large")
SIZE = 1 << 16


@functools.cache
def library(config=CONFIG, trace=None):
    rtlil = to_rtlil(config, CopyEngine(config), reset=trace is not None)
    return build_library(rtlil, config.bus_bytes, trace=trace, label="copy")


def device(config=CONFIG, memory=None, size=SIZE):
    made = RtlDevice(config, memory, library=library(config))
    made.allocate(size)
    return made


def put(dev, name, value):
    dev.write_register(REGISTERS[name].address, value)


def get(dev, name):
    return dev.read_register(REGISTERS[name].address)


def copy(dev, source, target, bursts, strobe=-1, irq=3, limit=1_000_000):
    """Let the engine copy; return the cycles it took."""
    mask = (1 << dev.config.bus_bytes) - 1
    settings = {"PROGRAM": bursts, "BASE0": source, "BASE1": target, "BASE2": strobe & mask}
    for name, value in settings.items():
        put(dev, f"{name}_LO", value & 0xFFFFFFFF)
        put(dev, f"{name}_HI", value >> 32)
    put(dev, "IRQ_ENABLE", irq)
    put(dev, "IRQ_STATUS", 3)
    put(dev, "CONTROL", 1)
    dev.wait(limit)
    return get(dev, "COUNT_CYCLES")


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def test_it_is_a_device():
    with device() as dev:
        assert isinstance(dev, Device)
        assert get(dev, "IDENTITY") == IDENTITY
        put(dev, "BASE3_HI", 0xDEADBEEF)
        assert get(dev, "BASE3_HI") == 0xDEADBEEF
        with pytest.raises(InputError, match="the register at 0x4 cannot be written"):
            put(dev, "VERSION", 0)
        with pytest.raises(InputError, match="the register at 0x700 cannot be read"):
            dev.read_register(0x700)
        dev.reset()
        assert get(dev, "BASE3_HI") == 0


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize(
    "memory",
    [
        MemoryModel(latency=1),
        MemoryModel(),
        MemoryModel(stall=0.5, seed=3),
        MemoryModel(bandwidth=0.3),
    ],
    ids=str,
)
def test_copies(config, memory):
    run = BURST * config.bus_bytes
    with device(config, memory=memory) as dev:
        dev.write_memory(0, noise(SIZE))
        copy(dev, 0x1000, 0x8000, 5)
        wanted = noise(SIZE)
        wanted[0x8000 : 0x8000 + 5 * run] = wanted[0x1000 : 0x1000 + 5 * run]
        np.testing.assert_array_equal(dev.read_memory(0, SIZE), wanted)
        assert get(dev, "STATUS") == 2


def test_strobes():
    with device(WIDE) as dev:
        run = BURST * WIDE.bus_bytes
        dev.write_memory(0, noise(SIZE))
        copy(dev, 0, 0x4000, 1, strobe=0x00F0_1234)
        wanted, write = noise(SIZE), np.array([0x00F0_1234 >> i & 1 for i in range(32)], bool)
        wanted[0x4000 : 0x4000 + run] = np.where(np.tile(write, BURST), wanted[:run], wanted[0x4000 : 0x4000 + run])
        np.testing.assert_array_equal(dev.read_memory(0, SIZE), wanted)


def test_latency_and_bandwidth_are_what_was_asked_for():
    def cycles(**settings):
        with device(memory=MemoryModel(**settings)) as dev:
            return copy(dev, 0, 0x8000, 10)

    base = cycles(latency=1)
    assert cycles(latency=51) == base + 10 * 2 * 50  # to the data, and to the answer
    slow = cycles(latency=1, bandwidth=0.25)
    assert base + 10 * 2 * BURST * 2.5 < slow <= base + 10 * 2 * BURST * 3.2
    stalled = [cycles(latency=1, stall=0.5, seed=seed) for seed in (1, 2, 1)]
    assert stalled[0] == stalled[2] != stalled[1]
    assert base * 1.5 < stalled[0] < base * 3


@pytest.mark.parametrize("irq", [0, 3])
def test_waiting(irq):
    with device() as dev:
        dev.wait(10)  # nothing runs
        assert copy(dev, 0, 0x8000, 3, irq=irq) == copy(dev, 0, 0x8000, 3, irq=irq)
        with pytest.raises(DeviceError, match="did not finish within 300 cycles"):
            copy(dev, 0, 0x8000, 300, irq=irq, limit=300)
        assert get(dev, "STATUS") == 1
        dev.wait(1_000_000)
        assert get(dev, "STATUS") == 2
        assert dev.seconds > 0


def test_a_stale_interrupt_ends_no_run():
    with device() as dev:
        copy(dev, 0, 0x8000, 1)
        assert get(dev, "IRQ_STATUS") == 1
        put(dev, "CONTROL", 1)
        dev.wait(10_000)
        assert get(dev, "STATUS") == 2


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        (SIZE, 0, ErrorCode.READ_RESPONSE),
        (1 << 40, 0, ErrorCode.READ_RESPONSE),
        (0, SIZE, ErrorCode.WRITE_RESPONSE),
        (0, (1 << 64) - 4096, ErrorCode.WRITE_RESPONSE),
    ],
)
def test_accesses_outside_memory(source, target, code):
    with device() as dev:
        copy(dev, source, target, 1)
        assert get(dev, "STATUS") == 4
        assert get(dev, "ERROR") == code
        dev.reset()
        assert get(dev, "STATUS") == 0
        copy(dev, 0, 0x8000, 1)
        assert get(dev, "STATUS") == 2


MESSAGES = {
    "ar_drops": "AR: valid fell before ready came",
    "ar_changes": "AR: the address changed before ready came",
    "w_drops": "W: valid fell before ready came",
    "w_changes": "W: the word changed before ready came",
    "wlast": "W: last is 0 at beat 16 of 16",
    "size": "AR 0x40: size must be 2, not 0",
    "combinational": "an output depends combinationally on an input",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_rules_are_told(fault):
    with device(memory=MemoryModel(stall=0.7, seed=1)) as dev:
        dev.check_outputs()
        copy(dev, 0, 0x8000, 20)
        put(dev, "BASE7_LO", 1 + FAULTS.index(fault))
        with pytest.raises(DeviceError, match=rf"cycle \d+: {re.escape(MESSAGES[fault])}"):
            copy(dev, 0x40, 0x8000, 20)
        dev.reset()
        assert get(dev, "STATUS") == 0


def test_bursts_that_cross_a_page_are_told():
    with device() as dev:
        copy(dev, 0xFC0, 0x8000, 1)
        message = "cycle [0-9]+: AR 0xfc4: 16 beats of 4 bytes cross 4 KiB"
        with pytest.raises(DeviceError, match=message):
            copy(dev, 0xFC4, 0x8000, 1)


def test_memory_is_sparse():
    with device(size=1 << 42) as dev:
        far = (1 << 42) - 4096
        dev.write_memory(far, noise(64))
        copy(dev, far, (1 << 41) + 4096, 1)
        np.testing.assert_array_equal(dev.read_memory((1 << 41) + 4096, 64), noise(64))
        assert not dev.read_memory(1 << 40, 4096).any()
        with pytest.raises(InputError, match="must lie in the device's"):
            dev.read_memory(far, 4097)
        with pytest.raises(InputError, match="must lie in the device's"):
            dev.write_memory(-1, b"a")


def test_two_devices_do_not_meet():
    with device() as a, device() as b, device(WIDE) as c:
        for seed, dev in enumerate((a, b, c)):
            dev.write_memory(0, noise(SIZE, seed))
        put(a, "BASE5_LO", 5)
        put(c, "BASE5_LO", 7)
        copy(a, 0, 0x8000, 1)
        assert get(a, "SHAPE") != get(c, "SHAPE")
        assert [get(dev, "BASE5_LO") for dev in (a, b, c)] == [5, 0, 7]
        for seed, dev in ((1, b), (2, c)):
            np.testing.assert_array_equal(dev.read_memory(0, SIZE), noise(SIZE, seed))


def test_closing():
    dev = device()
    dev.close()
    dev.close()
    with pytest.raises(DeviceError, match="the device is closed"):
        get(dev, "STATUS")


def test_traces(tmp_path):
    path = tmp_path / "run.vcd"
    trace = Trace(path=path, first=30, last=40)
    with RtlDevice(CONFIG, trace=trace, library=library(trace="vcd")) as dev:
        dev.allocate(SIZE)
        copy(dev, 0, 0x8000, 1)
    text = path.read_text()
    assert "m_axi_araddr" in text
    times = [int(t) for t in re.findall(r"^#(\d+)$", text, re.M)]
    assert times[0] >= 60
    assert times[-1] <= 81


def test_traces_are_checked(tmp_path):
    with pytest.raises(InputError, match=r"a trace must be a \.vcd or \.fst file, not 'a\.txt'"):
        Trace(path=Path("a.txt"))
    with pytest.raises(InputError, match="must be from first to last, not 5 to 4"):
        Trace(path=Path("a.vcd"), first=5, last=4)
    with pytest.raises(InputError, match="cannot write the trace"):
        RtlDevice(CONFIG, trace=Trace(path=tmp_path / "no" / "a.vcd"), library=library(trace="vcd"))


def test_a_library_is_built_once(tmp_path, monkeypatch):
    runtime = library().parents[1]
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    told = []
    for entry in runtime.glob("verilator-runtime-*"):  # that alone would take longer
        shutil.copytree(entry, tmp_path / "builds" / "entries" / entry.name)
    text = to_rtlil(CONFIG, CopyEngine(CONFIG), reset=False)
    first = build_library(text, 4, on_progress=told.append)
    assert told[-1] == "the simulator is built"
    count = len(told)
    assert build_library(text, 4, on_progress=told.append) == first
    assert len(told) == count


def test_rtlil_is_the_same_whatever_the_hash_seed():
    code = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "from copy_engine import CopyEngine\n"
        "from tilewright_hw.arch import AcceleratorConfig\n"
        "from tilewright_hw.generate import to_rtlil\n"
        "c = AcceleratorConfig.preset('tiny')\n"
        "print(hashlib.sha256(to_rtlil(c, CopyEngine(c)).encode()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    texts = {
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
