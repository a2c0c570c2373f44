"""Checkpoints as they come: what a file or folder holds, and how its tensors get the canonical names and orders."""

from __future__ import annotations

from pathlib import Path

from tilewright.importers import gguf, huggingface, llama2c
from tilewright.model import Checkpoint
from tilewright_hw.arch import InputError

PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF or a llama2.c file; InputError says what is wrong with anything else."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if path.is_dir():
        return huggingface.load(path)
    if gguf.is_gguf(path):
        return gguf.load(path)
    if path.suffix in PICKLES:
        raise InputError(f"{path}: pickle checkpoints can run code when they are read; convert it to safetensors")
    if path.suffix == ".bin":
        return llama2c.load(path)
    raise InputError(f"{path} must be a Hugging Face folder, a GGUF file or a llama2.c .bin file")
