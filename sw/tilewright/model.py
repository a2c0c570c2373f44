"""What the compiler wants to know of a model: its shape, and its tensors by canonical names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewright.files import NOTHING, Files
from tilewright_hw.arch import InputError

if TYPE_CHECKING:
    from tilewright.compiled import StoredModel
    from tilewright.tokenizer import Tokenizer

Floats = NDArray[np.float32]
MAX_LAYERS = 4096
MAX_CONTEXT = 65535
"""Most positions: row lengths are fields of 16 bits. An importer cuts a longer context to this."""
BLOCK = 1 << 18
"""Elements of a tensor that are worked on at a time: bounds the memory that quantising takes."""
MAX_SIZE = 1 << 24
"""No size of a real model is above these: a file that says so is broken."""


NORMS = ("rms", "layer")
"""Kinds of normalisation: RMSNorm, LayerNorm."""
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""Functions of a feed-forward network; gelu is the exact one (erf)."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's change of the rotary frequencies for long contexts (`rope_type` "llama3" of Hugging Face).

    Parameters
    ----------
    factor, low_freq_factor, high_freq_factor : float
        Frequencies whose wavelength is above original_context / low_freq_factor are divided by `factor`, those below
        original_context / high_freq_factor stay, and between them the two are blended.
    original_context : int
        Context that the model was first trained with.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, kw_only=True)
class RopeFactors:
    """Any change of the rotary frequencies, pair by pair, as GGUF files hold Llama 3's.

    Parameters
    ----------
    factors : tuple of float
        What the frequency of each pair of channels is divided by; head_dim / 2 of them.
    """

    factors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of a transformer: everything that the compiler has to know of an architecture.

    The defaults are those of the Llama family. A layer is attention, then a feed-forward network, each added to the
    residual stream x: `x += f(norm(x))`, or with `norm_after` (BERT) `x = norm(x + f(x))`.

    Parameters
    ----------
    dim, layers, heads, kv_heads, head_dim, ffn, vocab : int
        Sizes; heads is a multiple of kv_heads, head_dim is even.
    context : int
        Positions that the model may use.
    norm : {"rms", "layer"}
        Kind of all norms of rows; "layer" has a bias beside its weight.
    norm_eps : float
        Its epsilon.
    norm_after : bool
        Norms follow the additions instead of preceding attention and feed-forward network.
    embedding_norm : bool
        A norm follows the embedding.
    final_norm : bool
        A norm follows the last layer.
    rope_theta : float or None
        RoPE base; None: no rotary embedding.
    rope_scaling : RopeScaling, RopeFactors or None
        Change of its frequencies.
    learned_positions : bool
        A table of position embeddings is added to the token's.
    token_types : int
        Rows of a table of segment embeddings; 0: none.
    embedding_scale : float
        Factor of the token embedding.
    qkv_bias, o_bias, ffn_bias : bool
        Biases of the projections.
    qk_norm : bool
        RMSNorm of each query and key head, with one weight per channel, before RoPE.
    score_scale : float or None
        Factor of the scores; None: 1 / sqrt(head_dim).
    causal : bool
        A token sees itself and those before it; else all of its text.
    gated : bool
        Feed-forward network down(f(gate(x)) * up(x)); else down(f(up(x))).
    activation : {"silu", "gelu", "gelu_tanh", "relu"}
        f.
    classifier : bool
        Logits come out; else the hidden rows.
    first_rows : bool
        The first row of a text is quantised as its distance from a row that is known, `layers.N.*_first` (see
        `tilewright.first_rows`); what the model computes stays the same.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_after: bool = False
    embedding_norm: bool = False
    final_norm: bool = True
    rope_theta: float | None = 10000.0
    rope_scaling: RopeScaling | RopeFactors | None = None
    learned_positions: bool = False
    token_types: int = 0
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False
    score_scale: float | None = None
    causal: bool = True
    gated: bool = True
    activation: str = "silu"
    classifier: bool = True
    first_rows: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise InputError(f"model: {name} must be a positive integer, not {value!r}")
            most = MAX_LAYERS if name == "layers" else MAX_SIZE
            if value > most:
                raise InputError(f"model: {name} must be at most {most}, not {value}")
        if self.heads % self.kv_heads:
            raise InputError(f"model: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise InputError(f"model: head_dim must be even, not {self.head_dim}")
        if self.context > MAX_CONTEXT:
            raise InputError(f"model: context must be at most {MAX_CONTEXT}, not {self.context}")
        for name in ("rope_theta", "norm_eps", "embedding_scale", "score_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"model: {name} must be a number above 0, not {value!r}")
        for name, known in (("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"model: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if isinstance(self.rope_scaling, RopeFactors):
            self._check_factors(self.rope_scaling.factors)
        if not isinstance(self.token_types, int) or not 0 <= self.token_types <= MAX_SIZE:
            raise InputError(f"model: token_types must be an integer from 0 on, not {self.token_types!r}")

    def _check_factors(self, factors: tuple[float, ...]) -> None:
        if len(factors) != self.head_dim // 2 or not all(0 < factor < float("inf") for factor in factors):
            raise InputError(f"model: rope_scaling must have {self.head_dim // 2} factors above 0")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names and their shapes (weights are (out, in)).

        Query and key channels are in interleaved RoPE order: elements 2j and 2j+1 of a head are a pair.
        """
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocab, self.dim)}
        if self.learned_positions:
            shapes["positions"] = (self.context, self.dim)
        if self.token_types:
            shapes["token_types"] = (self.token_types, self.dim)
        if self.embedding_norm:
            shapes |= self._norm_shapes("embedding_norm")
        for i in range(self.layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in self._layer_shapes().items()}
        if self.final_norm:
            shapes |= self._norm_shapes("final_norm")
        return shapes | ({"classifier": (self.vocab, self.dim)} if self.classifier else {})

    def _norm_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {name: (self.dim,)}
        return shapes | ({f"{name}_bias": (self.dim,)} if self.norm == "layer" else {})

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = self._norm_shapes("attn_norm")
        shapes |= {"wq": (q, self.dim), "wk": (kv, self.dim), "wv": (kv, self.dim), "wo": (self.dim, q)}
        if self.qkv_bias:
            shapes |= {"bq": (q,), "bk": (kv,), "bv": (kv,)}
        if self.qk_norm:
            shapes |= {"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)}
        if self.o_bias:
            shapes["bo"] = (self.dim,)
        shapes |= self._norm_shapes("ffn_norm")
        inner = ("gate", "up") if self.gated else ("up",)
        shapes |= {f"w_{part}": (self.ffn, self.dim) for part in inner} | {"w_down": (self.dim, self.ffn)}
        if self.ffn_bias:
            shapes |= {f"b_{part}": (self.ffn,) for part in inner} | {"b_down": (self.dim,)}
        if self.first_rows:
            # Two matrices of a gated network meet in one pass, which has no room for a bias.
            shapes |= {"qkv_first": (self.dim,)} | ({} if self.gated else {"up_first": (self.dim,)})
            shapes["down_first"] = (self.ffn,)
        return shapes


LlamaSpec = ModelSpec
"""The former name; a spec with the defaults is a Llama."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's shape and a way to its tensors, or to the image that was compiled of them.

    `read(name)` returns the float32 tensor of a canonical name (see `ModelSpec.tensor_shapes`); it may read from disk
    at each call. `tensor` checks shape and finiteness. `files` are the small files that came with the weights.
    `read_rows(name, first, count)`, where it is given, returns some rows of a tensor without reading the others, or
    None where that cannot be done. `stored` are the weights of a compiled model: it has no tensors to read.
    `tokenizer()` opens the tokenizer of a file that holds it. `matrix_types`, of a file whose weights may be quantised
    already, says how many matrices there are of each type.
    """

    spec: ModelSpec
    read: Callable[[str], Floats] = field(repr=False)
    name: str = "model"
    files: Files = field(default=NOTHING, repr=False)
    stored: StoredModel | None = field(default=None, repr=False)
    read_rows: Callable[[str, int, int], Floats | None] | None = field(default=None, repr=False)
    tokenizer: Callable[[], Tokenizer] | None = field(default=None, repr=False)
    matrix_types: Mapping[str, int] = field(default_factory=dict)

    def tensor(self, name: str) -> Floats:
        """Return a tensor; InputError names it if its shape is wrong or a value is not finite."""
        value = np.asarray(self.read(name), dtype=np.float32)
        shape = self.spec.tensor_shapes()[name]
        if value.shape != shape:
            raise InputError(f"{self.name}: tensor {name} must have shape {shape}, not {value.shape}")
        return self._finite(name, value)

    def blocks(self, name: str, unit: int = 1, most: int = BLOCK) -> Iterator[tuple[int, Floats]]:
        """Yield (first row, rows) of a tensor, block by block; errors as in `tensor`.

        A block has a multiple of `unit` rows, but for the last one, and about `most` elements at most. Only it is in
        memory, where the checkpoint can be read by rows.
        """
        total, *row = self.spec.tensor_shapes()[name]
        step = max(unit, most // max(math.prod(row), 1) // unit * unit)
        whole = None
        for first in range(0, total, step):
            count = min(step, total - first)
            value = self.read_rows(name, first, count) if self.read_rows is not None and whole is None else None
            if value is None:
                whole = self.tensor(name) if whole is None else whole
                value = whole[first : first + count]
            yield first, self._finite(name, value)

    def _finite(self, name: str, value: Floats) -> Floats:
        if not np.isfinite(value).all():
            raise InputError(f"{self.name}: tensor {name} holds NaN or infinity")
        return value

    def check(self) -> None:
        """Read every tensor, so that a bad one is known before anything is written."""
        for name in () if self.stored is not None else self.spec.tensor_shapes():
            for _ in self.blocks(name):
                pass


def with_context(checkpoint: Checkpoint, context: int | None) -> Checkpoint:
    """Return a model that uses only its first `context` positions (None: all); InputError if it has fewer."""
    spec = checkpoint.spec
    if context is None or context == spec.context:
        return checkpoint
    if not isinstance(context, int) or isinstance(context, bool) or not 1 <= context <= spec.context:
        raise InputError(f"context must be 1 to {spec.context}, the model's own, not {context!r}")
    if checkpoint.stored is not None:
        raise InputError(f"{checkpoint.name} was compiled for a context of {spec.context}, not {context}")

    def read(name: str) -> Floats:
        value = checkpoint.read(name)
        # A wrong shape stays one, for `tensor` to tell.
        return value[:context] if name == "positions" and len(value) == spec.context else value

    def rows(name: str, first: int, count: int) -> Floats | None:
        # The original's rows: the first of them are ours.
        return None if checkpoint.read_rows is None else checkpoint.read_rows(name, first, count)

    return replace(checkpoint, spec=replace(spec, context=context), read=read, read_rows=rows)
