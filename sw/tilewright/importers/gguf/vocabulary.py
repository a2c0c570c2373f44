"""The tokenizer in a GGUF file, as a tokenizer.json.

Two kinds: "llama" (SentencePiece: pieces with scores; neighbours whose union scores highest are joined, and bytes stand
in for what is no piece) and "gpt2" (byte-level BPE: merges, after a split that has a name). Both are BPE to the library
tokenizers. Source: llama.cpp's src/llama-vocab.cpp, and the tokenizer.json files that its converters read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.importers.configuration import Configuration
from tilewright.importers.gguf.header import Array, Strings
from tilewright.tokenizer import HuggingFaceTokenizer
from tilewright_hw.arch import InputError

__all__ = ["PRE_TOKENIZERS", "open_tokenizer", "tokenizer_config"]

_KEY = "tokenizer.ggml"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Types of tokens."""
_ENDS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<end_of_turn>"}
)
"""Control tokens that end a text, or an answer, in the families that are read, besides those that a file names."""
_SPACE = "\u2581"
"""SentencePiece's space."""
MAX_TOKEN = 1024
"""Characters of the longest token."""
_MERGES = 16
"""Bytes of merges for each byte of tokens, at most: SentencePiece vocabularies have about two merges for a token."""

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is split before its bytes are merged.

    Parameters
    ----------
    pattern : str
        Regular expression of the parts; empty: GPT-2's.
    digits : bool
        Digits stand alone first.
    whole : bool
        A part that is a token is taken as it is, whatever the merges make of it.
    bos : bool
        BOS precedes a text, where the file does not say.
    """

    pattern: str = ""
    digits: bool = False
    whole: bool = False
    bos: bool = False


_LLAMA3 = PreTokenizer(rf"{_ENGLISH}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", whole=True, bos=True)
_QWEN2 = PreTokenizer(rf"{_ENGLISH}|{_WORDS}|\p{{N}}|{_REST}")
PRE_TOKENIZERS = {
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2,
    "smollm": PreTokenizer(digits=True), "gpt-2": PreTokenizer(), "tekken": PreTokenizer(_TEKKEN, whole=True, bos=True),
}  # fmt: skip
"""By `tokenizer.ggml.pre`."""


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens of a file, and what they are."""

    tokens: list[str]
    types: list[int]

    def of(self, *kinds: int) -> list[int]:
        """Return the ids of the tokens of some types."""
        return [i for i, kind in enumerate(self.types) if kind in kinds]


def open_tokenizer(config: Configuration, most: int) -> HuggingFaceTokenizer:
    """Return the tokenizer of a file's metadata, which has `most` tokens at most: as many as the model.

    InputError if it has none, one of another kind, an option that is not supported, or a broken one.
    """
    kind = config.choice(f"{_KEY}.model", {"llama": "llama", "gpt2": "gpt2"}, "")
    if config.flag(f"{_KEY}.add_eos_token"):
        raise config.refused(f"{_KEY}.add_eos_token", "a text that ends cannot be continued")
    vocabulary = _read(config, most)
    if kind == "llama":
        bos, eos, adds = 1, 2, True
        made = _sentencepiece(config, vocabulary)
    else:
        bos, eos = None, None
        pre = _pre_tokenizer(config)
        adds = pre.bos
        made = _byte_level(config, vocabulary, pre)
    size = len(vocabulary.tokens)
    first = _id(config, "bos", size, bos)
    if not config.flag(f"{_KEY}.add_bos_token", default=adds):
        first = None
    elif first is None:
        raise config.error(f"{_KEY}.add_bos_token is true, and there is no {_KEY}.bos_token_id")
    ends = {i for i in vocabulary.of(_CONTROL) if vocabulary.tokens[i] in _ENDS}
    named = (_id(config, "eos", size, eos), _id(config, "eot", size), _id(config, "eom", size))
    ends |= {i for i in named if i is not None}
    raw = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
    return HuggingFaceTokenizer.from_bytes(raw, f"the tokenizer in {config.path}", first, frozenset(ends))


def tokenizer_config(config: Configuration) -> dict[str, Any]:
    """Return what a tokenizer_config.json would hold: the chat template, and the texts of special tokens."""
    template, tokens = config.get("tokenizer.chat_template"), config.get(f"{_KEY}.tokens")
    if not isinstance(template, str) or not isinstance(tokens, Array) or not isinstance(tokens.values, Strings):
        return {}
    texts = {"chat_template": template}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        value = config.get(f"{_KEY}.{theirs}_token_id")
        if isinstance(value, int) and 0 <= value < len(tokens.values):
            texts[f"{ours}_token"] = tokens.values[value].decode("utf-8", errors="replace")
    return texts


def _id(config: Configuration, name: str, size: int, default: int | None = None) -> int | None:
    """Return the id of a special token, which a file need not have."""
    key = f"{_KEY}.{name}_token_id"
    value = config.get(key, default=default if default is not None and default < size else None)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise config.error(f"{key} must be 0 to {size - 1}, not {value!r}")
    return value


def _read(config: Configuration, most: int) -> _Vocabulary:
    """Return tokens and their types; InputError if a token is absurdly long or there twice, or they are too many."""
    tokens: list[str] = []
    found = _strings(config, f"{_KEY}.tokens")
    if not 1 <= len(found) <= most:
        raise config.error(f"{_KEY}.tokens must be 1 to {most}, as many as the model has, not {len(found)}")
    for i, raw in enumerate(found):
        if len(raw) > 4 * MAX_TOKEN:
            raise config.error(f"token {i} must have at most {MAX_TOKEN} characters")
        # An empty token has no text to be found by; the name is llama.cpp's.
        tokens.append(_text(config, raw) or f"[EMPTY_{i}]")
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise config.error(f"token {twice!r} is there twice")
    if config.get(f"{_KEY}.token_type") is not None:
        types = _numbers(config, f"{_KEY}.token_type", len(tokens)).tolist()
    else:
        types = [_NORMAL] * len(tokens)
        for name in ("bos", "eos", "unknown"):
            if (special := _id(config, name, len(tokens))) is not None:
                types[special] = _CONTROL
    return _Vocabulary(tokens, types)


def _sentencepiece(config: Configuration, vocabulary: _Vocabulary) -> dict[str, Any]:
    """Return the tokenizer.json of pieces with scores."""
    tokens = vocabulary.tokens
    prefix = config.flag(f"{_KEY}.add_space_prefix", default=True)
    unknown = _id(config, "unknown", len(tokens), 0)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    plain = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return _document(
        vocabulary,
        normalizer={"type": "Sequence", "normalizers": [*first, space]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": [plain, {"type": "ByteFallback"}, {"type": "Fuse"}, *last]},
        model={
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "merges": _merges_of_scores(config, vocabulary),
        },
    )


def _merges_of_scores(config: Configuration, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return the merges that make what joining by scores makes.

    A piece comes of any two pieces that it can be cut into, and the piece of the higher score first; those of one
    piece are in the order of their ids, as transformers has them.
    """
    tokens = vocabulary.tokens
    ids = {token: i for i, token in enumerate(tokens)}
    scores = _numbers(config, f"{_KEY}.scores", len(tokens)).astype(np.float64)
    if not np.isfinite(scores).all():
        raise config.error(f"{_KEY}.scores must be finite")
    apart = {_UNKNOWN, _CONTROL, _BYTE}
    left = _MERGES * sum(map(len, tokens))
    merges: list[tuple[str, str]] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        token = tokens[i]
        if vocabulary.types[i] in apart:
            continue
        cuts = [
            (ids[a], ids[b]) for at in range(1, len(token)) if (a := token[:at]) in ids and (b := token[at:]) in ids
        ]
        left -= len(cuts) * len(token)
        if left < 0:
            raise config.error(f"its tokens can be cut in more than {_MERGES} ways each: not a vocabulary of pieces")
        merges += [(tokens[a], tokens[b]) for a, b in sorted(cuts)]
    return merges


def _pre_tokenizer(config: Configuration) -> PreTokenizer:
    name = config.get(f"{_KEY}.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise config.refused(f"{_KEY}.pre", f"must be one of {', '.join(map(repr, PRE_TOKENIZERS))}")
    return PRE_TOKENIZERS[name]


def _byte_level(config: Configuration, vocabulary: _Vocabulary, pre: PreTokenizer) -> dict[str, Any]:
    """Return the tokenizer.json of byte-level BPE."""
    known = set(vocabulary.tokens)
    merges = []
    for raw in _strings(config, f"{_KEY}.merges"):
        text = _text(config, raw)
        # A space within the first part would be its first character.
        at = text.find(" ", 1)
        a, b = text[:at], text[at + 1 :]
        if at < 0 or not {a, b, a + b} <= known:
            raise config.error(f"{_KEY}.merges: {text[:80]!r} must be two tokens that make a third")
        merges.append((a, b))
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not pre.pattern}
    steps: list[dict[str, Any]] = []
    if pre.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if pre.pattern:
        steps.append(
            {"type": "Split", "pattern": {"Regex": pre.pattern}, "behavior": "Isolated", "invert": False}
        )  # fmt: skip
    return _document(
        vocabulary,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, bytes_]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model={
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.whole,
            "merges": merges,
        },
    )


def _document(vocabulary: _Vocabulary, *, model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Return a tokenizer.json; control tokens are found in a text as they are, and have none themselves."""
    tokens, types = vocabulary.tokens, vocabulary.types
    added = [
        {
            "id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": types[i] != _USER_DEFINED,
        }
        for i in vocabulary.of(_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]  # fmt: skip
    whole = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, **model}
    whole["vocab"] = {token: i for i, token in enumerate(tokens)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None, **parts,
        "model": whole,
    }  # fmt: skip


def _strings(config: Configuration, name: str) -> Strings:
    value = config.get(name)
    if not isinstance(value, Array) or not isinstance(value.values, Strings):
        raise config.error(f"{name} must be an array of strings, not {value!r}")
    return value.values


def _numbers(config: Configuration, name: str, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    value = config.get(name)
    if not isinstance(value, Array) or isinstance(value.values, Strings) or len(value.values) != count:
        raise config.error(f"{name} must be an array of {count} numbers, one for each token, not {value!r}")
    return value.values


def _text(config: Configuration, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{config.path}: token {raw[:40]!r} is not UTF-8") from e
