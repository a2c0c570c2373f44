"""Tiling: how many rows a program works on, how matrices are cut into passes, and where rows lie on chip."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.compiler.emit import Region
from tilewright.compiler.layout import ceil_div, round_up
from tilewright.formats import DEFAULT, Formats
from tilewright.model import ModelSpec
from tilewright_hw.arch import AcceleratorConfig, InputError

FEW_TILES = 32
"""A pass of attention over several KV heads is not worth shorter passes of all matrix products than this."""
MAX_LANES = 16
"""Lanes of the widest vector unit."""
MAX_BLOCK = 64
"""Rows of the largest block: each needs a sequencer register for its token."""
LANES = 2
"""Blocks of a long prompt that are at work at a time."""
FEW_ROWS = 4
"""Blocks of fewer rows are not worth having the keys in one part: each block reads all weights."""
LEAST_KEYS = 64
"""Parts of fewer keys are not tried."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Upper bounds for the tiling; results do not depend on them. None: as large as the buffers allow.

    Parameters
    ----------
    block_rows : int or None
        Rows of a prefill block.
    chunk_tiles : int or None
        Output tiles of one pass of a matrix product.
    kv_heads : int or None
        KV heads of one pass of attention.
    keys : int or None
        Keys of one part of attention; rounded up to whole tiles and bus words.
    """

    block_rows: int | None = None
    chunk_tiles: int | None = None
    kv_heads: int | None = None
    keys: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_rows", "chunk_tiles", "kv_heads", "keys"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"tiling: {name} must be a positive integer, not {value!r}")


class Space:
    """A bump allocator over one on-chip buffer, or a part of it; put `top` back to reuse what is dead."""

    def __init__(self, name: str, size: int, start: int = 0) -> None:
        self.name, self.size, self.top = name, size, start

    def take(self, size: int, what: str) -> Region:
        """Reserve `size` words; InputError if the buffer is too small."""
        if self.top + size > self.size:
            raise InputError(
                f"the {self.name} buffer ({self.size} words) is too small: {what} needs {size} words more than "
                f"the {self.top} in use; choose a configuration with a larger one"
            )
        region = Region(self.name, self.top, size)
        self.top += size
        return region


@dataclass(frozen=True)
class Plan:
    """Sizes and places for a program that works on m rows with up to t keys each.

    Rows of the row buffer are in words of L floats, of the activation buffer in words of R int8; `w_*` and `k_*` are
    the words of one row in them. Scores are made of up to `piece` keys at a time.
    """

    m: int
    t: int
    piece: int
    chunk_tiles: int
    kv_chunk: int
    group_chunk: int
    head_words: int
    row_heads: int
    """Heads whose queries, keys or values a row holds at a time."""
    stat_heads: int
    """Heads that a row has scales for at a time."""
    x: Region
    normed: Region
    qkv: Region
    heads_out: Region
    scores: Region
    hidden: Region
    late: Region
    """What is behind the residual stream: free when a block's layers are done."""
    act_x: Region
    act_q: Region
    act_p: Region
    act_o: Region
    act_h: Region
    norms: tuple[Region, Region]
    scales: tuple[Region, Region]
    biases: tuple[Region, Region]
    rope: Region
    head_norms: Region
    key_scales: Region
    value_scales: Region
    stats: dict[str, Region]


def padded_head(spec: ModelSpec, config: AcceleratorConfig, formats: Formats = DEFAULT) -> int:
    """Columns that one head takes in the row buffer: head_dim rounded up to whole words.

    Where the attention's output meets weights of four bits, to the same multiple on every configuration: their groups
    of inputs must not depend on it.
    """
    four = any(formats.of(f"layers.{i}.wo") == "int4" for i in range(spec.layers))
    return round_up(spec.head_dim, MAX_LANES if four else config.lanes)


def run_words(n: int, element: int, config: AcceleratorConfig) -> int:
    """Words that a run of n elements of `element` bytes fills: its bytes are whole bus words."""
    return ceil_div(round_up(n * element, config.bus_bytes) // element, config.lanes)


def tile_step(config: AcceleratorConfig) -> int:
    """Output tiles whose column scales fill whole bus words: a pass of a product begins at a multiple of it."""
    step = 1
    while 4 * config.cols * step % config.bus_bytes:
        step *= 2
    return step


@dataclass(frozen=True)
class Blocks:
    """How rows are cut: blocks of so many rows, one after another, of which `lanes` are at work at a time."""

    lanes: int
    sizes: tuple[int, ...]


def cut_rows(
    spec: ModelSpec, config: AcceleratorConfig, m: int, t: int, tiling: Tiling, formats: Formats = DEFAULT,
    piece: int | None = None,
) -> Blocks:  # fmt: skip
    """Cut m rows with up to t keys, in parts of `piece`, into blocks.

    Two lanes pay when a block keeps the array busy for as long as the bus needs to bring a tile: then the array works
    for one while the vector unit works for the other. InputError if not even one row fits the configuration.
    """
    rows = (
        largest_block(spec, config, t, tiling, LANES, formats, piece)
        if m >= LANES * config.tile_bytes // config.bus_bytes
        else 0
    )
    lanes = LANES if rows and m > 1 else 1
    if lanes == 1:
        rows = largest_block(spec, config, t, tiling, 1, formats, piece)
        if not rows:
            make_plan(spec, config, 1, t, tiling, formats, piece=piece)
    count = ceil_div(m, rows)
    # The lanes end together if each has as many blocks.
    count = min(round_up(count, lanes), m)
    return Blocks(lanes, tuple((m + i) // count for i in range(count)))


def _head_cuts(spec: ModelSpec, tiling: Tiling) -> list[tuple[int, int]]:
    """Return (KV heads, query heads of each) of one pass of attention, the largest first.

    Part of one KV head's group costs another reading of its keys and values.
    """
    whole = [(kv, spec.group) for kv in range(min(tiling.kv_heads or spec.kv_heads, spec.kv_heads), 0, -1)]
    return whole + [(1, group) for group in range(spec.group - 1, 0, -1)]


def largest_block(
    spec: ModelSpec, config: AcceleratorConfig, t: int, tiling: Tiling, lanes: int, formats: Formats = DEFAULT,
    piece: int | None = None,
) -> int:  # fmt: skip
    """Return the most rows of a block whose plan fits one of several lanes; 0 if not even one does."""

    def fits(m: int) -> bool:
        try:
            make_plan(spec, config, m, t, tiling, formats, 0, lanes, piece=piece)
        except InputError:
            return False
        return True

    return _bisect(0, min(tiling.block_rows or MAX_BLOCK, MAX_BLOCK, t), fits)


def vector_part(spec: ModelSpec, config: AcceleratorConfig) -> int:
    """Return how many elements of a vector of `dim` parameters are loaded at a time: all, or an eighth of the buffer.

    Two such vectors may take three quarters of it.
    """
    if 8 * run_words(spec.dim, 4, config) <= 3 * config.param_words:
        return spec.dim
    unit = math.lcm(config.lanes, config.bus_bytes // 4)
    return max(config.param_words // 8 * config.lanes // unit, 1) * unit


def key_unit(config: AcceleratorConfig) -> int:
    """Return what the keys of all parts but the last are a multiple of: whole tiles, words and bus words."""
    return math.lcm(config.cols, config.lanes, config.bus_bytes // 2)


def key_piece(
    spec: ModelSpec, config: AcceleratorConfig, t: int, tiling: Tiling, formats: Formats = DEFAULT, wanted: int = 1
) -> int:
    """Return how many of up to t keys are scored at a time: all, if blocks of `wanted` rows fit with them.

    Otherwise so many that blocks have the most rows. InputError if not even one row fits.
    """
    unit = key_unit(config)
    if tiling.keys is not None:
        return min(round_up(tiling.keys, unit), t)
    best, most, piece = t, 0, t
    while True:
        rows = largest_block(spec, config, t, tiling, 1, formats, piece)
        if rows >= wanted and piece == t:
            return t
        best, most = (piece, rows) if rows > most else (best, most)
        if piece <= max(LEAST_KEYS, unit):
            break
        piece = round_up(ceil_div(piece, 2), unit)
    if not most:
        try:
            make_plan(spec, config, 1, t, tiling, formats, piece=piece)
        except InputError as e:
            raise InputError(f"{e}, or a shorter context than {t}") from e
    return best


def make_plan(
    spec: ModelSpec, config: AcceleratorConfig, m: int, t: int, tiling: Tiling, formats: Formats = DEFAULT,
    lane: int = 0, lanes: int = 1, attending: int | None = None, piece: int | None = None,
) -> Plan:  # fmt: skip
    """Plan blocks of m rows and up to t keys in one lane's equal share of the buffers.

    `attending` of the rows (None: all) attend at a time, to `piece` keys (None: all) at a time. InputError if it
    does not fit the configuration.
    """
    for kv, group in _head_cuts(spec, tiling):
        spaces = {
            name: Space(name, size * (lane + 1) // lanes, size * lane // lanes)
            for name, size in (
                ("row", config.row_words),
                ("act", config.act_words),
                ("param", config.param_words),
                ("stat", config.stat_entries),
            )
        }
        try:
            return _place(
                spec, config, m, t, kv, group, tiling, spaces, formats, lanes, attending or m, min(piece or t, t)
            )
        except InputError:
            if kv == group == 1:
                raise
    raise AssertionError("unreachable")


def _bisect(low: int, high: int, good: Callable[[int], bool]) -> int:
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low


def _place(
    spec: ModelSpec, config: AcceleratorConfig, m: int, t: int, kv: int, group: int, tiling: Tiling,
    spaces: dict[str, Space], formats: Formats, sharing: int, attending: int, piece: int,
) -> Plan:  # fmt: skip
    lanes, r, c = config.lanes, config.rows, config.cols
    head = padded_head(spec, config, formats) // lanes
    parts = formats.parts
    total_heads = spec.heads + 2 * spec.kv_heads
    w_dim, w_ffn, w_t = (ceil_div(v, lanes) for v in (spec.dim, spec.ffn, t))
    hc = kv * group

    acc = hc * attending * parts * max(ceil_div(piece, c), ceil_div(spec.head_dim, c))
    if acc > config.acc_rows:
        raise InputError(
            f"{piece} keys of {hc} heads for {attending} rows need {acc} accumulator rows; acc_rows is "
            f"{config.acc_rows}"
        )

    row, act, param, stat = (spaces[name] for name in ("row", "act", "param", "stat"))
    run_dim = run_words(spec.dim, 4, config)
    x = row.take((m - 1) * w_dim + max(run_dim, run_words(spec.dim, 2, config)), "the residual stream")
    # Each of these is dead when the next comes to life, and so they share their place: the normalised rows; queries,
    # keys and values; the attention's scores and output (queries are quantised, keys and values stored by then);
    # the feed-forward rows.
    shared = row.top
    normed = row.take(m * w_dim, "the normalised rows")
    row.top = shared
    # An encoder's block makes its keys, its values and its queries one after another.
    row_heads = total_heads if spec.causal else max(spec.heads, spec.kv_heads)
    stat_heads = spec.heads + spec.kv_heads if spec.causal else row_heads
    qkv = row.take(m * row_heads * head, "queries, keys and values")
    row.top = shared
    heads_out = row.take(m * spec.heads * head, "the attention's output")
    scores = row.take(attending * hc * w_t, "attention scores")
    row.top = shared
    # The greedy choice keeps a pass of logits there, of as many tiles as scales fill bus words.
    least = max(1, config.bus_bytes // (4 * c)) * c // lanes
    hidden = row.take(m * max(w_ffn, least), "the feed-forward rows")

    # Likewise the quantised rows that are multiplied by the first matrices and the attention's output; and those of
    # attention and of the feed-forward network.
    wide = max(ceil_div(spec.dim, r), ceil_div(spec.heads * head * lanes, r))
    act_x = act.take(m * parts * wide, "quantised rows")
    act_o, shared = act_x, act.top
    act_q = act.take(m * parts * spec.heads * ceil_div(spec.head_dim, r), "quantised queries")
    act_p = act.take(m * parts * hc * ceil_div(t, r), "quantised probabilities")
    act.top = shared
    act_h = act.take(m * parts * ceil_div(spec.ffn, r), "quantised feed-forward rows")

    run_vector = run_words(vector_part(spec, config), 4, config)
    norms = (param.take(run_vector, "a norm's weights"), param.take(run_vector, "a norm's weights"))
    run_head = run_words(spec.head_dim, 4, config)
    rope = param.take((m - 1) * head + max(head, run_head) if spec.rope_theta is not None else 0, "rotary factors")
    heads = spec.heads + spec.kv_heads
    head_norms = param.take((heads - 1) * head + max(head, run_head) if spec.qk_norm else 0, "norms of the heads")
    # Rows that take turns have caches of their own: while one attends, the next one's scales are loaded.
    turns = 1 if attending == m else 2
    key_scales = param.take(turns * kv * w_t_bytes(piece, config), "key scales")
    value_scales = param.take(turns * kv * w_t_bytes(piece, config), "value scales")
    tile_words = c // lanes
    widest = ceil_div(max(total_heads * head * lanes, spec.ffn, spec.dim, spec.vocab), c)
    # With several lanes a pass takes its share of a bank: short passes let another lane's chain of small steps through.
    share = max(config.acc_rows // sharing // (m * parts), tile_step(config))
    chunk = min(share, config.acc_rows // (m * parts), (param.size - param.top) // (2 * tile_words))
    chunk = min(chunk, round_up(widest, tile_step(config)))
    has_bias = spec.qkv_bias or spec.ffn_bias or spec.first_rows
    # Attention's scores and output are dead where biases are added.
    late = Space("row", row.size, max(qkv.end, hidden.end))
    if has_bias:
        chunk = min(chunk, (late.size - late.top) // (2 * tile_words))
    chunk = min(chunk, max(tiling.chunk_tiles or chunk, tile_step(config)))
    if kv > 1 and chunk < min(FEW_TILES, widest, share, tiling.chunk_tiles or FEW_TILES):
        raise InputError(f"{kv} KV heads leave too little room for a matrix product's columns")
    chunk = chunk // tile_step(config) * tile_step(config)
    if chunk < 1:
        raise InputError(f"a block of {m} rows leaves no room for a matrix product's columns")
    scales = (param.take(chunk * tile_words, "scales"), param.take(chunk * tile_words, "scales"))
    if (spec.learned_positions or spec.token_types) and max(run_vector, scales[0].size) < run_dim:
        raise InputError(
            f"the param buffer ({config.param_words} words) is too small for a row of position embeddings, of "
            f"{run_dim} words; choose a configuration with a larger one"
        )
    size = chunk * tile_words if has_bias else 0
    biases = (late.take(size, "biases"), late.take(size, "biases"))
    if spec.heads + spec.kv_heads > 255:
        raise InputError(f"heads + kv_heads must be at most 255, not {spec.heads + spec.kv_heads}")
    # A head's maximum becomes its sum, and that its scale, entry by entry; by then the values' scales are stored.
    heads = max(hc, spec.kv_heads) if spec.causal else hc
    sizes = {"x": 1, "rms": 1, "sx": 1, "sh": 1, "best": 1, "sq": stat_heads, "sp": heads}
    stats = {name: stat.take(m * size, "row statistics") for name, size in sizes.items()}
    stats |= {"so": stats["sx"], "max": stats["sp"], "sum": stats["sp"]}
    stats["sv"] = stats["sp" if spec.causal else "sq"]
    free = Region("row", qkv.start, row.size - qkv.start)
    return Plan(
        m, t, piece, chunk, kv, group, head, row_heads, stat_heads, x, normed, qkv, heads_out, scores, hidden, free,
        act_x, act_q, act_p, act_o, act_h,
        norms, scales, biases, rope, head_norms, key_scales, value_scales, stats,
    )  # fmt: skip


def w_t_bytes(t: int, config: AcceleratorConfig) -> int:
    """Parameter words that one KV head's scales of t tokens take (their bfloat16 run is whole bus words)."""
    return ceil_div(ceil_div(2 * t, config.bus_bytes) * config.bus_bytes // 2, config.lanes)
