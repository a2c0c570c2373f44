"""The Verilog as other people's tools see it: Verilator's lint, and Yosys's synthesis for three FPGA families."""

import re

import pytest

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.generate import export_block, verilog_file_name, write_verilog
from tilewright_sim import verify
from tilewright_sim.cache import get_or_build
from tilewright_sim.package import BLOCKS, TOP_BLOCK, resolve
from tilewright_sim.rtl.build import gateware_key
from tilewright_sim.verify import Synthesis, SynthesisError, lint, synthesize

ODD = AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)
TARGETS = ["ecp5", "xc7", "gowin"]


def verilog_of(config):
    """The file that `tilewright verilog` writes; kept, like a simulator, as long as the gateware stays the same."""
    key = ["verilog 1", *gateware_key(config)]
    folder = get_or_build(key, lambda folder: write_verilog(config, folder), label=f"verilog-{config.name}")
    return folder / verilog_file_name(config)


TINY = AcceleratorConfig.preset("tiny")
SMALL = ("Skew", "StreamBuffer", "StreamFifo", "SystolicArray", "WidthConverter")
EVERY_BLOCK = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else pytest.mark.slow) for n in BLOCKS if n != TOP_BLOCK]
)


def verilog_of_block(name):
    """The Verilog of a block's package for `tiny`, kept in the same way."""

    def write(folder):
        (folder / "block.v").write_text(export_block(resolve(name, TINY, {}).make(), "block"))

    return get_or_build(["block verilog 1", name, *gateware_key(TINY)], write, label=f"verilog-{name}") / "block.v"


PORTS = "input clk, input en, input [8:0] a, input [63:0] i, output [63:0] o"


def module(tmp_path, body):
    path = tmp_path / "block.v"
    path.write_text(f"module block({PORTS});\n{body}endmodule\n")
    return path


CLEAN = """\
  reg [63:0] r;
  always @(posedge clk) if (en) r <= i ^ {55'h0, a};
  assign o = r;
"""
LATCH = """\
  reg [63:0] r;
  always @* if (en & clk & |a) r = i;
  assign o = r;
"""
LOOP = """\
  wire [63:0] b;
  assign b = o ^ {64 {en & clk & |a}};
  assign o = ~b & i;
"""
TWO_DRIVERS = """\
  reg [63:0] r;
  always @(posedge clk) r <= i ^ {55'h0, a};
  always @(posedge en) r <= ~i;
  assign o = r;
"""
NO_DRIVER = """\
  wire [63:0] b;
  assign o = b ^ i & {64 {en & clk & |a}};
"""


MULTIPLIER = """\
  reg [31:0] p, q;
  always @(posedge clk) begin
    p <= i[15:0] * i[31:16];
    q <= p ^ {23'h0, a};
  end
"""


def memory(name, depth, *, ports=1, by_clock=False):
    """A memory; no family has a RAM for one that is read without a clock and has two ports to write."""
    first = f"  always @(posedge clk) if (en) {name}[a] <= i;\n"
    second = f"  always @(posedge clk) {name}[i[8:0]] <= ~i;\n" if ports == 2 else ""
    read = f"always @(posedge clk) {name}_o <= {name}[a];" if by_clock else f"always @* {name}_o = {name}[a];"
    return f"  reg [63:0] {name} [0:{depth - 1}];\n  reg [63:0] {name}_o;\n  {read}\n" + first + second


@pytest.mark.parametrize(
    "config",
    [
        AcceleratorConfig.preset("tiny"),
        ODD,
        *(pytest.param(AcceleratorConfig.preset(n), marks=pytest.mark.slow) for n in ("edge", "default", "large")),
    ],
    ids=lambda config: config.name,
)
def test_verilator_has_nothing_to_say(config):
    assert lint(verilog_of(config)) == []


@EVERY_BLOCK
def test_verilator_has_nothing_to_say_of_a_block(name):
    assert lint(verilog_of_block(name), "block") == []


@pytest.mark.parametrize(
    ("body", "warning"), [(LATCH, "LATCH"), (LOOP, "UNOPTFLAT"), (TWO_DRIVERS, "MULTIDRIVEN"), (NO_DRIVER, "UNDRIVEN")]
)
def test_lint_sees_what_it_must(tmp_path, body, warning):
    assert any(f"Warning-{warning}:" in line for line in lint(module(tmp_path, body), "block"))


def test_lint_of_a_clean_block_and_of_no_verilog(tmp_path):
    path = module(tmp_path, CLEAN)
    assert lint(path, "block") == []
    path.write_text("module block(;\n")
    assert "syntax error" in lint(path, "block")[0]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (LATCH, r"latch \(1\): .*Latch inferred for signal `\\block\.\\r"),
        (LOOP, r"combinational loop \(\d+\): .*module block"),
        (TWO_DRIVERS, r"two drivers \(64\): .*block\."),
        (NO_DRIVER, r"no driver \(64\): "),
        (
            memory("m", 64, ports=2) + "  assign o = m_o;\n",
            r"memories over 2048 bits became flip-flops: m \(64 x 64\)$",
        ),
        ("  syntax error\n", "ERROR: syntax error"),
    ],
    ids=["latch", "loop", "drivers", "undriven", "memory", "syntax"],
)
def test_synthesis_refuses_what_it_must(tmp_path, body, complaint):
    with pytest.raises(SynthesisError, match=complaint):
        synthesize(module(tmp_path, body), "ecp5", top="block", only_memories=True)


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_block_becomes(tmp_path, target):
    body = memory("ff", 32, ports=2) + memory("lut", 64) + memory("block", 512, by_clock=True) + MULTIPLIER
    path = module(tmp_path, body + "  assign o = ff_o ^ lut_o ^ block_o ^ {32'h0, en ? q : ~q};\n")
    found = synthesize(path, target, top="block")
    assert [(m.name, m.width, m.depth, m.technology) for m in found.memories] == [
        ("block", 64, 512, "block RAM"),
        ("ff", 64, 32, "flip-flops"),  # 2048 bits: as many as may be
        ("lut", 64, 64, "LUT RAM"),
    ]
    assert found.dsps == 1
    assert found.block_rams == {"ecp5": 2, "xc7": 1, "gowin": 2}[target]
    assert found.lut_rams > 0
    assert 2048 <= found.flip_flops <= 2400  # and registers, those apart that went into a RAM or the multiplier
    assert found.luts >= 64
    report = found.report().splitlines()
    assert report[0].startswith(f"{target}: {found.luts} LUT, {found.flip_flops} flip-flops, 1 DSP, ")
    assert report[2].split() == ["block", "64", "x", "512", "block", "RAM"]


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="target must be one of ecp5, xc7, gowin, not 'ice40'"):
        synthesize(tmp_path / "none.v", "ice40")


def check_memories(found: Synthesis):
    """All memories have a RAM; what the tables of constants become is the family's affair."""
    assert not [m for m in found.memories if m.technology == "flip-flops" and m.bits > verify.MAX_FLIP_FLOP_BITS]
    names = {re.sub(r"\d+", "N", m.name) for m in found.memories if m.technology == "block RAM"}
    assert {"act.part_N", "matrix.accumulators.column_N.bank_N", "vector.statistics.memory"} <= names


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the vector unit takes minutes
@pytest.mark.parametrize("name", [name for name in BLOCKS if name != TOP_BLOCK])
@pytest.mark.parametrize("target", TARGETS)
def test_synthesis_of_a_block(name, target):
    found = synthesize(verilog_of_block(name), target, top="block")
    print(f"\n{name}, {found.report()}")
    assert found.luts + found.flip_flops > 0 or name == "WidthConverter"  # which is wires, if a slot is a beat


@pytest.mark.slow
@pytest.mark.timeout(3600)  # `default` takes five minutes on an idle machine, most of it for reading the Verilog
@pytest.mark.parametrize("preset", ["tiny", "edge", "default"])
@pytest.mark.parametrize("target", TARGETS)
def test_synthesis_of_the_accelerator(preset, target):
    config = AcceleratorConfig.preset(preset)
    found = synthesize(verilog_of(config), target)
    print(f"\n{preset}, {found.report()}")
    check_memories(found)
    assert found.dsps >= config.rows * config.cols
