"""Verilog from a configuration: hierarchy, ports, the same bytes each time, and whole files or none."""

import re
import subprocess
import sys

import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw import generate
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.generate import flatten, to_rtlil, to_verilog, write_verilog

CONFIG = AcceleratorConfig.preset("tiny")


class Inner(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i + self.o)
        return m


class Block(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Inner()
        sum_of_all = Signal(8)
        m.d.comb += [inner.i.eq(self.i), sum_of_all.eq(inner.o + 1), self.o.eq(sum_of_all)]
        return m


def test_verilog_of_a_block_keeps_its_hierarchy():
    text = to_verilog(CONFIG, Block(), name="block")
    assert re.findall(r"^module (\S+?) ?\(", text, re.M) == ["block", "block_Inner"]
    assert re.search(r"^  input rst;$", text, re.M)
    assert "sum_of_all" in text
    assert "src =" not in text
    assert text == to_verilog(CONFIG, Block(), name="block")


def test_flat_verilog_has_one_module_and_no_reset():
    text = flatten(to_rtlil(CONFIG, Block(), name="block", reset=False), top="block")
    assert re.findall(r"^module (\S+)\(", text, re.M) == ["block"]
    assert "rst" not in text
    assert re.search(r"^  input clk;$", text, re.M)


def test_cleared_memories_are_loops_and_others_are_not():
    blocks = "  initial begin\n    \\a.b [0] = 8'h00;\n    \\a.b [1] = 8'h{};\n  end\n"
    text = generate._INITIAL.sub(generate._loop_over_zeros, blocks.format("00"))
    assert "for (i = 0; i < 2; i = i + 1) \\a.b [i] = 8'h0;" in text
    kept = blocks.format("10")
    assert generate._INITIAL.sub(generate._loop_over_zeros, kept) == kept


@pytest.fixture
def quick(monkeypatch):
    """Write a small block in the accelerator's place."""
    monkeypatch.setattr(generate, "_accelerator", lambda config: Block())


def test_written_verilog_says_what_it_is(quick, tmp_path):
    path = write_verilog(CONFIG, tmp_path / "new" / "folder")
    assert path.name == "tilewright_tiny.v"
    text = path.read_text()
    assert re.match(r"// Tilewright \S+, configuration tiny\n", text)
    assert re.search(r"^//   bus_bits +=  ?32$", text, re.M)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    assert write_verilog(CONFIG, path.parent).read_bytes() == first


def test_a_failed_write_leaves_nothing(quick, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file/tilewright_tiny\.v"):
        write_verilog(CONFIG, blocked)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_verilog(CONFIG, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_the_accelerator_is_the_same_whatever_the_hash_seed():
    code = (
        "import hashlib\n"
        "from tilewright_hw.arch import AcceleratorConfig\n"
        "from tilewright_hw.generate import to_rtlil\n"
        "text = to_rtlil(AcceleratorConfig.preset('tiny'))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1
