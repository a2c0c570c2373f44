"""A picture of a profile: the roofline with a point for each kind of operation, and a bar of cycles for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.perf.profile import COLUMNS, SEQUENCER, Profile, Spent
from tilewright_hw.arch import InputError
from tilewright_hw.arch.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by everybody.
_POINTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31")
_UNITS = {
    "weight": ("#0072b2", "weights from memory"),
    "load": ("#56b4e9", "loads from memory"),
    "matrix": ("#009e73", "array"),
    "vector": ("#e69f00", "vector unit"),
    "store": ("#cc79a7", "stores to memory"),
    SEQUENCER: ("#999999", "sequencer"),
}
_MARKERS = "osD^vPX"
DOTS_PER_INCH = 150


def check_target(path: Path) -> Path:
    """Return the path; InputError unless a picture can be drawn there: Matplotlib, a .png, a folder."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as e:
        raise InputError("a plot needs Matplotlib: pip install 'tilewright[plot]'") from e
    if path.suffix.lower() != ".png":
        raise InputError(f"plot must name a .png file, not {path}")
    if not path.parent.is_dir():
        raise InputError(f"plot must lie in a folder that exists, not {path.parent}")
    if path.is_dir():
        raise InputError(f"plot must be a file, not the folder {path}")
    return path


def draw(profile: Profile, path: Path) -> None:
    """Write the picture of a profile as PNG.

    Left the roofline (S. Williams, A. Waterman, D. Patterson: "Roofline: an insightful visual performance model",
    2009): multiply-accumulates per cycle over multiply-accumulates per byte that must be read, both on logarithmic
    axes, under the array's peak and the bus. Right the cycles of each kind of operation, by the unit that they were
    waited for, with a mark at its own roofline. InputError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    kinds = [kind for kind in profile.kinds() if kind.cycles > profile.cycles / 1000]
    figure = Figure(figsize=(13, 5.8), layout="constrained")
    share = profile.roofline / profile.cycles
    figure.suptitle(
        f"{profile.what}\n{profile.config.name}: {profile.cycles:,} cycles predicted, {share:.1%} of the roofline",
        fontsize=12,
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _roofline(left, profile, kinds)
    _bars(right, profile, kinds)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=7, fontsize=8.5, frameon=False)
    try:
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e


def _roofline(axes: Axes, profile: Profile, kinds: list[Spent]) -> None:
    """Draw the two roofs, and what each kind and the whole run reach under them."""
    bus = profile.config.bus_bytes * profile.memory.rate
    peak = profile.config.peak_macs
    ridge = peak / bus
    points = [(kind.name, *_reached(kind, kind.cycles)) for kind in kinds if kind.work.macs and kind.work.read]
    whole = ("the whole run", *_reached(Spent("all", work=profile.work), profile.cycles))
    points = [*points, whole] if len(points) > 1 else [whole]
    low = min(0.5 * ridge, *(x / 3 for _, x, _ in points))
    high = max(4 * ridge, *(x * 3 for _, x, _ in points))
    axes.plot([low, ridge, high], [low * bus, peak, peak], color="black", linewidth=1.6)
    near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9}
    axes.annotate(f"array: {peak} MACs a cycle", (high, peak), (-4, 12), ha="right", **near)
    axes.annotate(f"bus: {bus:g} bytes a cycle", (0.4 * ridge, 0.4 * peak), (-8, 2), ha="right", **near)
    if any(y > 1.02 * min(x * bus, peak) for _, x, y in points):
        text = "above the roof: weights that came while\nthe part before was worked on"
        axes.annotate(text, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=8.5, color="#555555")
    for number, (name, x, y) in enumerate(points):
        last = number == len(points) - 1
        axes.plot(
            x, y, linestyle="", label=name, marker="*" if last else _MARKERS[number % len(_MARKERS)],
            color="black" if last else _POINTS[number % len(_POINTS)], markersize=14 if last else 8,
            markeredgecolor="white", markeredgewidth=0.6, zorder=4 if last else 3,
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(min(y for *_, y in points) / 3, peak * 2.2),
        xlabel="multiply-accumulates per byte that must be read", ylabel="multiply-accumulates per cycle",
        title="Roofline",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter("")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.95)


def _reached(part: Spent, cycles: int) -> tuple[float, float]:
    """Return multiply-accumulates per byte and per cycle."""
    return part.work.macs / max(part.work.read, 1), part.work.macs / max(cycles, 1)


def _bars(axes: Axes, profile: Profile, kinds: list[Spent]) -> None:
    """Draw a bar of cycles for each kind, cut by unit."""
    places = range(len(kinds))
    begin = [0] * len(kinds)
    for column in COLUMNS:
        cycles = [kind.waited[column] for kind in kinds]
        if any(cycles):
            color, label = _UNITS[column]
            axes.barh(places, cycles, left=begin, height=0.66, color=color, label=label, zorder=2)
            begin = [a + b for a, b in zip(begin, cycles, strict=True)]
    least = [kind.roofline for kind in kinds]
    mark: dict[str, Any] = {"linestyle": "", "marker": "|", "markeredgewidth": 2.2, "color": "black"}
    axes.plot(least, places, markersize=22, zorder=3, **mark)
    axes.plot([], [], markersize=11, label="its roofline", **mark)  # for the legend
    most = max(*begin, *least)
    for place, kind in enumerate(kinds):
        end = max(kind.cycles, kind.roofline), place
        text = f"{kind.cycles / profile.cycles:.1%}"
        axes.annotate(text, end, (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, [kind.name for kind in kinds])
    axes.set(ylim=(max(len(kinds), 4) - 0.5, -0.5))  # the first one on top
    axes.set(xlim=(0, most * 1.14), xlabel="cycles", title="Cycles, by what they were waited for")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
