"""Tokenizers: text to token ids and back, for Hugging Face folders and llama2.c files."""

from __future__ import annotations

import heapq
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tilewright_hw.arch import InputError

MAX_FILE = 256 << 20
"""Bytes of the largest tokenizer file that is read."""
HUGGING_FACE, LLAMA2C = "tokenizer.json", "tok.bin"
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class Tokenizer(Protocol):
    """Text to ids and back."""

    vocab: int
    """Number of ids."""
    bos: int | None
    """The id put in front of every prompt, if any."""
    eos: frozenset[int]
    """Ids that end a text."""
    stored: tuple[str, bytes]
    """The file that it was read from: what to call it, and its bytes."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, with BOS in front if the tokenizer has one."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special ids have none, bytes that are no UTF-8 become U+FFFD."""


@contextmanager
def _refused(message: str) -> Iterator[None]:
    """Raise InputError, one line of it, where the library tokenizers gives up on its file."""
    try:
        yield
    except BaseException as e:  # bare Exception, or its Rust code's panic, which is none
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise InputError(f"{message}: {next(iter(str(e).splitlines()), 'unknown error')}") from e


class HuggingFaceTokenizer:
    """A `tokenizer.json`, with BOS and EOS from the configuration files beside it."""

    def __init__(self, path: Path, bos: int | None, eos: frozenset[int]) -> None:
        self._open(read_file(path), str(path), bos, eos)

    @classmethod
    def from_bytes(cls, raw: bytes, where: str, bos: int | None, eos: frozenset[int]) -> HuggingFaceTokenizer:
        """Return the tokenizer that a file of these bytes is; `where` they come from is for errors."""
        made = cls.__new__(cls)
        made._open(raw, where, bos, eos)
        return made

    def _open(self, raw: bytes, where: str, bos: int | None, eos: frozenset[int]) -> None:
        from tokenizers import Tokenizer as Fast

        with _refused(f"{where} is not a tokenizer.json"):
            self._fast: Any = Fast.from_buffer(raw)
        self.stored = (HUGGING_FACE, raw)
        self._where = where
        # A file may say how its texts were once cut and padded: whoever asks for ids says that here.
        self._fast.no_padding()
        self._fast.no_truncation()
        self.vocab = int(self._fast.get_vocab_size(with_added_tokens=True))
        self.bos, self.eos = bos, eos

    def _encode(self, text: str, *, special: bool = True) -> Any:
        """Return what the library finds in a text; InputError where the file has no id for a part of it."""
        with _refused(f"{self._where} cannot encode {_shown(text)}"):
            return self._fast.encode(text, add_special_tokens=special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, BOS first."""
        ids = [int(i) for i in self._encode(text).ids]
        if self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a text that holds its special tokens itself; none are added."""
        return [int(i) for i in self._encode(text, special=False).ids]

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text; None if there is none."""
        found = self._fast.token_to_id(token)
        return None if found is None else int(found)

    def encode_cut(self, text: str, most: int) -> tuple[list[int], bool]:
        """Return a text's ids as an encoder is given them, and whether it was cut to `most` of them.

        The file's own special tokens ([CLS], [SEP]) stand around the text, however it is cut.
        """
        special = int(self._fast.num_special_tokens_to_add(is_pair=False))
        if most <= special:
            raise InputError(f"texts must have at least {special + 1} tokens with the special ones, not {most}")
        self._fast.enable_truncation(max_length=most)
        try:
            found = self._encode(text)
        finally:
            self._fast.no_truncation()
        return [int(i) for i in found.ids], bool(found.overflowing)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens."""
        with _refused(f"{self._where} cannot decode ids"):
            return str(self._fast.decode([int(i) for i in ids], skip_special_tokens=True))


def _shown(text: str, most: int = 40) -> str:
    """Return a text for an error's one line: quoted, and cut where it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


class Llama2cTokenizer:
    """A llama2.c tokenizer: int32 longest length, then per id: float32 score, int32 length, bytes.

    Encoding is SentencePiece's greedy merging by score, with a leading space and byte fallback, as llama2.c does it.
    """

    def __init__(self, path: Path) -> None:
        self._open(read_file(path), str(path))

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Llama2cTokenizer:
        """Return the tokenizer that a file of these bytes is; `where` they come from is for errors."""
        made = cls.__new__(cls)
        made._open(raw, where)
        return made

    def _open(self, raw: bytes, where: str) -> None:
        self.pieces, self.scores = _read_pieces(raw, where)
        self.stored = (LLAMA2C, raw)
        self.vocab = len(self.pieces)
        self.bos: int | None = 1
        self.eos = frozenset({1, 2})
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, i)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, BOS first."""
        ids = [1]
        if not text:
            return ids
        for character in " " + text:
            raw = character.encode("utf-8", errors="surrogateescape")
            known = self._ids.get(raw)
            ids += [known] if known is not None else [b + 3 for b in raw]
        return [1, *self._merge(ids[1:])]

    def _merge(self, ids: list[int]) -> list[int]:
        """Join the neighbours whose union scores highest, the first of equals, until none can be joined.

        Pairs wait in a heap, and the pieces in a linked list, so that a text of n pieces takes O(n log n).
        """
        after = [*range(1, len(ids)), -1]
        before = [-1, *range(len(ids) - 1)]
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            j = after[i]
            merged = self._ids.get(self.pieces[ids[i]] + self.pieces[ids[j]])
            if merged is not None and self.scores[merged] > -1e10:
                heapq.heappush(heap, (-self.scores[merged], i, ids[i], ids[j], merged))

        for i in range(len(ids) - 1):
            offer(i)
        while heap:
            _, i, left, right, merged = heapq.heappop(heap)
            j = after[i]
            # An offer is stale where one of the two has been joined with another since.
            if ids[i] != left or j < 0 or ids[j] != right:
                continue
            ids[i], ids[j], after[i] = merged, -1, after[j]
            if after[i] >= 0:
                before[after[i]] = i
                offer(i)
            if before[i] >= 0:
                offer(before[i])
        return [i for i in ids if i >= 0]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; the space that the encoder put in front is dropped after BOS."""
        out = b""
        previous = None
        for i in ids:
            piece = self.pieces[i]
            if previous == 1 and piece.startswith(b" "):
                piece = piece[1:]
            if i in (1, 2):
                piece = b""
            elif match := _BYTE_PIECE.fullmatch(piece):
                piece = bytes([int(match[1], 16)])
            out += piece
            previous = i
        return out.decode("utf-8", errors="replace")


def read_file(path: Path) -> bytes:
    """Return the bytes of a tokenizer's file; InputError if it cannot be read or is absurdly large."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{path} must be at most {MAX_FILE >> 20} MiB")
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e


def tokenizer_from(raw: bytes, where: str, bos: int | None, eos: frozenset[int]) -> Tokenizer:
    """Return the tokenizer that a stored file is: JSON, or llama2.c's format."""
    if raw[:1] == b"{":
        return HuggingFaceTokenizer.from_bytes(raw, where, bos, eos)
    return Llama2cTokenizer.from_bytes(raw, where)


def _read_pieces(raw: bytes, path: str) -> tuple[list[bytes], list[float]]:
    pieces, scores = [], []
    at = 4
    while at < len(raw):
        if at + 8 > len(raw):
            raise InputError(f"{path} is not a llama2.c tokenizer: truncated at byte {at}")
        score, length = struct.unpack_from("<fi", raw, at)
        if not 0 <= length <= len(raw) - at - 8:
            raise InputError(f"{path} is not a llama2.c tokenizer: a piece of {length} bytes at byte {at}")
        pieces.append(raw[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    if len(pieces) < 259:
        raise InputError(f"{path} is not a llama2.c tokenizer: {len(pieces)} pieces, at least 259 are needed")
    return pieces, scores


def load_tokenizer(model: Path, vocab: int, override: str | Path | None = None) -> Tokenizer:
    """Find a model's tokenizer: `override`, else tokenizer.json in its folder, else the tok*.bin beside the file.

    InputError if there is none, or if its vocabulary is not the model's.
    """
    path = Path(override) if override is not None else _find(model, vocab)
    tokenizer = _open(path, model)
    # Hugging Face models pad their vocabulary; llama2.c ones do not.
    fits = tokenizer.vocab == vocab if isinstance(tokenizer, Llama2cTokenizer) else tokenizer.vocab <= vocab
    if not fits:
        raise InputError(f"{path} has {tokenizer.vocab} tokens, the model has {vocab}: not its tokenizer")
    if tokenizer.bos is not None and not 0 <= tokenizer.bos < vocab:
        raise InputError(f"bos_token_id must be 0 to {vocab - 1}, not {tokenizer.bos}")
    return tokenizer


def _open(path: Path, model: Path) -> Tokenizer:
    if not path.exists():
        raise InputError(f"no such tokenizer: {path}")
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.suffix == ".json":
        bos, eos = _special_ids(path.parent if model.is_file() else model)
        return HuggingFaceTokenizer(path, bos, eos)
    return Llama2cTokenizer(path)


def _find(model: Path, vocab: int) -> Path:
    if model.is_dir():
        path = model / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{model} holds no tokenizer.json; name one with --tokenizer FILE")
        return path
    fitting = []
    for path in sorted(model.parent.glob("tok*.bin")):
        try:
            if len(_read_pieces(read_file(path), str(path))[0]) == vocab:
                fitting.append(path)
        except InputError:
            continue
    if len(fitting) != 1:
        found = "none" if not fitting else ", ".join(p.name for p in fitting)
        raise InputError(
            f"exactly one tok*.bin of {vocab} tokens must lie beside {model}, found {found}; "
            "name it with --tokenizer FILE"
        )
    return fitting[0]


def _special_ids(folder: Path) -> tuple[int | None, frozenset[int]]:
    """Return BOS and the EOS ids of config.json and generation_config.json."""
    bos: int | None = None
    eos: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        value = config.get("bos_token_id")
        bos = value if isinstance(value, int) and not isinstance(value, bool) else bos
        ends = config.get("eos_token_id")
        eos |= {e for e in (ends if isinstance(ends, list) else [ends]) if isinstance(e, int)}
    return bos, frozenset(eos)
