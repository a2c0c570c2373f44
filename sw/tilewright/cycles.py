"""Where the cycles of a run went: what each unit did or waited for, from the hardware counters.

For each unit the causes add up to all cycles, so that what is missing to the roofline has a name. docs/registers.md
defines the counters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REST = "rest"
"""What no counter names. Array: filling and draining, tiles with fewer rows than a tile takes to enter, nothing to do.
Reading and writing: memory's latency and stalls, no room for what would come, nothing to do. Vector unit: no work."""


def by_cause(counters: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return, for each unit, its cycles by cause; those of a unit add up to CYCLES.

    Parameters
    ----------
    counters : mapping
        The hardware counters by name, of one run or the sum of several.
    """
    c = counters
    known = {
        "array": {
            "rows": c["ARRAY_ROWS"],
            "no tile": c["MATRIX_WAIT_TILE"],
            "waits for a unit": c["MATRIX_WAIT_DEPENDENCY"],
        },
        "reading": {
            "data": c["READ_BEATS"] - c["FETCH_BEATS"],
            "instructions": c["FETCH_BEATS"],
            "nothing asked": c["READ_IDLE"],
        },
        "vector": {
            "work": c["VECTOR_BUSY"] - c["VECTOR_WAIT_STORE"],
            "no room to store": c["VECTOR_WAIT_STORE"],
            "waits for a unit": c["VECTOR_WAIT_DEPENDENCY"],
        },
        "writing": {"data": c["WRITE_BEATS"]},
    }
    return {unit: causes | {REST: c["CYCLES"] - sum(causes.values())} for unit, causes in known.items()}


def describe(runs: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Return lines that say, for each (name, counters), what share of its cycles each unit spent on which cause.

    Runs without cycles (of the golden device) are left out; without any, the text is empty.
    """
    cells = [
        (
            name if unit == "array" else "",
            unit,
            ", ".join(f"{cause} {n / c['CYCLES']:.1%}" for cause, n in causes.items()),
        )
        for name, c in runs
        if c["CYCLES"]
        for unit, causes in by_cause(c).items()
    ]
    if not cells:
        return ""
    widths = [max(len(cell[i]) for cell in cells) for i in range(2)]
    lines = [f"  {name.ljust(widths[0])}  {unit.ljust(widths[1])}  {shares}" for name, unit, shares in cells]
    return "\n".join(["where the cycles went", *lines])
