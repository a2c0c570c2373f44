"""A Verilog package: everything that an FPGA engineer needs to use the accelerator, or one block, in their own tools.

DIR/README.md             what this is, and where in the Verilog to find what
    NAME.v                hierarchical Verilog, plain ports
    NAME.h                registers and instructions for a driver in C (whole accelerator)
    NAME.sdc .xdc .lpf    clock constraints
    NAME.core             FuseSoC description
    NAME_ip.tcl           Vivado: package as IP
    manifest.json         ports, clocks, parameters, register map, files with their SHA-256
    Makefile, test/       `make test`: a cocotb bench with vectors, which needs nothing of Tilewright
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tilewright_hw.arch import InputError
from tilewright_hw.arch.registers import VERSION
from tilewright_sim.package.blocks import BLOCKS, TOP_BLOCK, Block, resolve
from tilewright_sim.package.c_header import c_header
from tilewright_sim.package.files import constraints, fusesoc_core, makefile, manifest, ports_of, readme, vivado_script
from tilewright_sim.package.vectors import accelerator_vectors, block_vectors

__all__ = ["BLOCKS", "TOP_BLOCK", "Block", "package_name", "resolve", "write_package"]

_STANDALONE = Path(__file__).parent / "standalone"
MAX_MHZ = 10_000.0


def package_name(block: Block) -> str:
    """Return the name of a package's files."""
    if block.name == TOP_BLOCK:
        return f"tilewright_{block.config.name.replace('-', '_')}"
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in block.name)
    return f"tilewright{words}"


def write_package(block: Block, directory: str | Path, *, mhz: float = 60.0) -> Path:
    """Write a package into a folder, whole or not at all, and return the folder's path.

    Parameters
    ----------
    block : Block
        What to package: see `resolve`.
    directory : path
        The folder: absent, empty, or an earlier package, which is replaced.
    mhz : float
        Clock of the constraints, in MHz.

    Raises
    ------
    InputError
        The folder cannot be written or holds other files, the block refuses its parameters, or mhz is no clock.
    GenerateError
        Amaranth or Yosys is missing or fails.
    """
    if not (math.isfinite(mhz) and 0 < mhz <= MAX_MHZ):
        raise InputError(f"mhz must be above 0 and at most {MAX_MHZ:.0f}, not {mhz!r}")
    directory = Path(directory)
    _check_target(directory)
    files = _files(block, mhz)
    _write(directory, files)
    return directory


def _files(block: Block, mhz: float) -> dict[str, bytes]:
    """Return the content of every file by its path in the package."""
    name, whole = package_name(block), block.name == TOP_BLOCK
    top = "tilewright" if whole else name
    release = version("tilewright")
    verilog = _verilog(block, top)
    ports = ports_of(verilog, top)
    head: dict[str, Any] = {
        "schema_version": 1,
        "generator": f"tilewright {release}",
        "name": name,
        "block": block.name,
        "top": top,
        "configuration": block.config.name,
        "parameters": block.parameters,
        "interface_version": f"{VERSION >> 16}.{VERSION >> 8 & 255}.{VERSION & 255}",
        "clock_mhz": mhz,
    }
    texts = {
        f"{name}.v": verilog,
        f"{name}.core": fusesoc_core(name, release, f"{name}.v", top, f"{name}.h" if whole else None),
        f"{name}_ip.tcl": vivado_script(name, release, f"{name}.v", top, ports, axi=whole),
        "README.md": readme({**head, "whole": whole}, verilog, ports),
        "Makefile": makefile(top),
        **{
            f"{name}.{suffix}": text
            for suffix, text in constraints(mhz, clocked=any(port.name == "clk" for port in ports)).items()
        },
    }
    if whole:
        texts[f"{name}.h"] = c_header(block.config)
    vectors = accelerator_vectors(block.config) if whole else block_vectors(block)
    vectors = {"top": top, "verilog": f"{name}.v", **vectors}
    texts["test/vectors.json"] = json.dumps(vectors) + "\n"
    for source in ("run", str(vectors["bench"])):
        texts[f"test/{source}.py"] = (_STANDALONE / f"{source}.py").read_text(encoding="utf-8")
    files = {path: text.encode() for path, text in texts.items()}
    return files | {"manifest.json": manifest(head, ports, files, registers=whole).encode()}


def _verilog(block: Block, top: str) -> str:
    from tilewright_hw.generate import export_block, header, to_verilog

    if block.name == TOP_BLOCK:
        return header(block.config) + to_verilog(block.config)
    head = [f"Tilewright {version('tilewright')}, block {block.name}, configuration {block.config.name}", ""]
    width = max(map(len, block.parameters))
    head += [f"  {key:<{width}} = {value}" for key, value in block.parameters.items()]
    head += ["", f"Top module: {top}.", "Made from Amaranth by `tilewright verilog`; do not edit."]
    return "".join(f"// {line}".rstrip() + "\n" for line in head) + "\n" + export_block(block.make(), top)


def _check_target(directory: Path) -> None:
    """Refuse a folder that holds anything but an earlier package."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise InputError(f"{directory} must be a folder")
    if not directory.exists():
        return
    found = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    ours = _earlier_files(directory)
    others = [name for name in found if name not in ours and not _is_build_product(name)]
    if others:
        raise InputError(
            f"{directory} must be absent, empty or an earlier package; it holds {others[0]}"
            + (f" and {len(others) - 1} other files" if len(others) > 1 else "")
        )


def _earlier_files(directory: Path) -> set[str]:
    try:
        content = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return {"manifest.json", *(str(file["name"]) for file in content["files"])}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _is_build_product(name: str) -> bool:
    """Return whether `make test` made a file, or `make demo` (which writes the Verilog alone)."""
    return name.startswith(("test/build/", "test/__pycache__/")) or ("/" not in name and _is_verilog(name))


def _is_verilog(name: str) -> bool:
    return name.startswith("tilewright_") and name.endswith(".v")


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files into a new folder beside the target, then put it in the target's place."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            for name, content in files.items():
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            os.chmod(temporary, 0o755)
            if directory.exists():
                old = temporary.with_name(f"{temporary.name}.old")
                directory.rename(old)
                temporary.rename(directory)
                shutil.rmtree(old)
            else:
                temporary.rename(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as e:
        raise InputError(f"cannot write {directory}: {e.strerror}") from e
