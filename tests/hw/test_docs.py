"""docs/isa.md and docs/registers.md are what the definitions say, and the program that they show runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tilewright.runtime import run_program, set_bases
from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Op, Unit, assemble, disassemble, docs, isa
from tilewright_hw.arch.isa import FIELDS
from tilewright_sim.golden import GoldenDevice

FOLDER = Path(__file__).parents[2] / "docs"


def test_the_pages_are_up_to_date():
    assert docs.outdated(FOLDER) == []


@pytest.mark.parametrize("name", docs.PAGES)
def test_lines_are_short_enough_to_read(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > docs.WIDTH and not line.startswith("|")] == []


def test_everything_is_described():
    for op in Op:
        assert docs._doc(op), op
    for cls in (Unit, *docs.enumerations()):
        for member in cls:
            assert docs._doc(member), member
    page = docs.isa_page()
    for op in Op:
        for f in FIELDS[op]:
            assert f"| {f.word} | {docs._bits(f.lsb, f.width)} | `{f.name}` |" in page
    page = docs.registers_page()
    for register in REGISTERS.values():
        assert f"| 0x{register.address:03x} | {register.name} |" in page


def test_fields_and_bits_do_not_overlap():
    for op in Op:
        taken = [(f.word, bit) for f in FIELDS[op] for bit in range(f.lsb, f.lsb + f.width)]
        assert len(taken) == len(set(taken)), op
        assert all(isa.OPERAND_WORD <= word < isa.WORDS and bit < 32 for word, bit in taken), op
    for register in REGISTERS.values():
        parts = [bit for b in register.bits for bit in range(b.lsb, b.lsb + b.width)]
        assert len(parts) == len(set(parts)), register
        assert all(bit < 32 for bit in parts), register


def test_resets_are_what_a_device_reads():
    device = GoldenDevice(AcceleratorConfig())
    for register in REGISTERS.values():
        value = device.read_register(register.address)
        assert register.reset in (value, None), register


def test_the_example_is_text_of_its_bytes_and_multiplies():
    config = AcceleratorConfig()
    program = assemble(docs.ISA_EXAMPLE)
    assert assemble(disassemble(program)) == program

    random = np.random.default_rng(1)
    a = random.integers(-128, 128, (16, 128), dtype=np.int8)
    b = random.integers(-128, 128, (128, 16), dtype=np.int8)
    device = GoldenDevice(config, check=True)
    device.allocate(1 << 16)
    set_bases(device)
    device.write_memory(0, a.tobytes())
    device.write_memory(2048, b.tobytes())
    device.write_memory(8192, np.array([0, 0, 0, 512], np.uint32).tobytes())
    device.write_memory(16384, program)
    run_program(device, 16384, 1000)
    result = device.read_memory(4096 + 512, 16 * 64).view(np.int32).reshape(16, 16)
    np.testing.assert_array_equal(result, a.astype(np.int32) @ b.astype(np.int32))


def test_check_says_what_is_old(tmp_path, capsys):
    assert docs.main(["-o", str(tmp_path)]) == 0
    assert docs.main(["--check", "-o", str(tmp_path)]) == 0
    (tmp_path / "isa.md").write_text("old")
    capsys.readouterr()
    assert docs.main(["--check", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("isa.md is not up to date")
    assert docs.main(["-o", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in FOLDER.glob("*.md"))])
def test_links_lead_somewhere(page):
    path = FOLDER.parent / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("package", ["hw/tilewright_hw", "sim/tilewright_sim", "sw/tilewright"])
def test_the_source_map_names_every_file(package):
    root = FOLDER.parent / package
    text = (FOLDER / "architecture.md").read_text(encoding="utf-8").split(f"### {package}:")[1].split("\n##")[0]
    named = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert [name for name in named if not (root / name).exists()] == []
    files = [p.relative_to(root) for p in root.rglob("*.py") if not p.name.startswith("_")]
    folders = [name for name in named if (root / name).is_dir()]
    missing = [str(f) for f in files if str(f) not in named and not any(f.is_relative_to(d) for d in folders)]
    assert missing == []
