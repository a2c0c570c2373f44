"""The architecture families of Hugging Face folders: one small file each."""

from __future__ import annotations

from tilewright.importers.families import bert, gpt2, llama
from tilewright.importers.family import Family

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: dict[str, Family] = {
    name: family for family in (*llama.FAMILIES, gpt2.FAMILY, bert.FAMILY) for name in family.architectures
}
"""Family by architecture name."""
