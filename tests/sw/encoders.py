"""A tiny sentence encoder with random weights, written as a sentence-transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = "the cat sat on a mat dog ran in park and it was very happy".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CLS, SEP = 2, 3


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer.json of lower-case words, which pads and cuts to 6 as the folder's own settings do not."""
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.enable_padding(length=6)
    tokenizer.enable_truncation(max_length=6)
    tokenizer.save(str(path))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write(
    folder: Path, modules: list[str] | None = None, pooling: dict[str, Any] | None = None, most: Any = 10
) -> Path:
    """Write the folder; `modules` follow the transformer (default: Pooling, Normalize)."""
    families.write("bert", folder)
    write_tokenizer(folder / "tokenizer.json")
    kinds = ["Transformer", *(["Pooling", "Normalize"] if modules is None else modules)]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", entries)
    write_json(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": most, "do_lower_case": False})
    return folder
