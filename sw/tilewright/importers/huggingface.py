"""Hugging Face folders: config.json says the architecture, its family (`families/`) what the tensors are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tilewright.files import FolderFiles
from tilewright.importers.configuration import Configuration
from tilewright.importers.families import ARCHITECTURES
from tilewright.importers.family import Family, open_checkpoint
from tilewright.importers.safetensors import Tensors, open_tensors
from tilewright.model import Checkpoint, ModelSpec
from tilewright_hw.arch import InputError

__all__ = ["load", "read_spec"]


def _family(config: Configuration) -> Family:
    names = config.get("architectures", default=[])
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise InputError(f"architecture {names!r} is not supported: must be one of {', '.join(ARCHITECTURES)}")


def read_spec(folder: Path) -> ModelSpec:
    """Return the shape that a folder's config.json gives.

    InputError names an architecture or an option that is not supported: nothing is run wrongly.
    """
    config = Configuration.read(folder)
    return _family(config).spec(config)


def load(folder: Path) -> Checkpoint:
    """Open a folder; InputError if anything needed is missing, of the wrong kind, or not supported."""
    config = Configuration.read(folder)
    family = _family(config)
    spec = family.spec(config)
    table = family.tensors(spec, config)
    if missing := spec.tensor_shapes().keys() - table.keys():
        raise AssertionError(f"the family says nothing of {sorted(missing)}")
    tensors = open_tensors(folder)
    prefix = _prefix(family, tensors, table["embedding"].name)
    places = {
        name: replace(table[name], name=_place(tensors, prefix, table[name].name)) for name in spec.tensor_shapes()
    }
    return open_checkpoint(spec, places, tensors, folder.name, FolderFiles(folder))


def _prefix(family: Family, tensors: Tensors, name: str) -> str:
    """Return what the names of this folder's tensors begin with."""
    return next((p for p in family.prefixes if p + name in tensors), family.prefixes[0])


def _place(tensors: Tensors, prefix: str, name: str) -> str:
    """Return a tensor's name in the files; a head keeps its name where the model's own tensors have a prefix."""
    for place in (prefix + name, name):
        if place in tensors:
            return place
    raise InputError(f"{tensors.folder}: tensor {prefix + name!r} is missing")
