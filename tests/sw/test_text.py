"""Text as it comes: stop strings and characters that are cut by tokens."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tilewright.text import TextStream, first_stop

ALPHABET = "abé☃"


class Bytes:
    """A tokenizer whose ids are bytes, or runs of them: `pieces[id]`."""

    vocab, bos, eos = 0, None, frozenset[int]()

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def cut(raw: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at some places."""
    places = sorted({0, len(raw), *(c % (len(raw) + 1) for c in cuts)})
    return [raw[a:b] for a, b in itertools.pairwise(places)]


def stopped(text: str, stops: list[str]) -> str:
    """The definition: character by character, the text ends when it ends with a stop string (the longest such)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    st.text(ALPHABET, max_size=14),
    st.text(ALPHABET, max_size=4),
    st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_pieces_do_not_depend_on_where_tokens_end(text: str, prompt: str, stops: list[str], cuts: list[int]) -> None:
    pieces = [prompt.encode(), *cut(text.encode(), cuts)]
    stream = TextStream(Bytes(pieces), [0], stops)
    expected, out = stopped(text, stops), ""
    for n in range(1, len(pieces)):
        out += stream.update(range(1, n + 1), final=False)
        assert expected.startswith(out)  # nothing of a stop string has been given out, nor half a character
        if stream.stopped:
            break
    out += stream.update(range(1, len(pieces)), final=True)
    assert out == expected == stream.text
    assert stream.stopped == (expected != text)


def test_text_that_can_be_no_stop_string_any_more_is_given_at_once() -> None:
    stream = TextStream(Bytes([b"", b"ab", b"c", b"ab", b"x"]), [0], ["abd"])
    assert [stream.update(range(1, n + 1), final=False) for n in range(1, 5)] == ["", "abc", "", "abx"]


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert first_stop("abcdef", ["cd", "bc"]) == 1
    assert first_stop("abcdef", ["abcdef", "de"]) == 3
    assert first_stop("abcdef", ["cd", "bcd"]) == 1
    assert first_stop("abcdef", ["x"]) is None


def test_an_unfinished_character_is_given_at_the_end() -> None:
    stream = TextStream(Bytes([b"", b"a", b"\xe2\x98"]), [0], [])
    assert stream.update([1, 2], final=False) == "a"
    assert stream.update([1, 2], final=True) == "\ufffd"


def test_without_a_tokenizer_there_is_no_text() -> None:
    assert TextStream(None, [1], ["a"]).update([1, 2], final=True) == ""
