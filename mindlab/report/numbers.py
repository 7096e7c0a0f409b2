"""Numbers as the tables write them."""

import math
from collections.abc import Mapping
from typing import Any


def printable(text: Any) -> str:
    """Return a text that cannot break a line or speak to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def score_text(value: float | None) -> str:
    """Return a metric with three decimals, a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """Return ``[low, high]``, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """Return a metric of a row with its interval."""
    return f"{score_text(row[metric])} {interval_text(row[f'{metric}_low'], row[f'{metric}_high'])}".rstrip()


def difference_text(difference: Mapping[str, float | None]) -> str:
    """Return a signed difference with its interval.

    >>> difference_text({"mean": 0.0123, "low": -0.02, "high": 0.04})
    '+0.012 [-0.020, +0.040]'
    """
    if difference["mean"] is None:
        return "–"
    return f"{difference['mean']:+.3f} {interval_text(difference['low'], difference['high'], '+')}".rstrip()


def cost_text(value: float | None, digits: int = 3) -> str:
    """Return a cost with as many decimals as its size deserves.

    >>> [cost_text(value) for value in (None, 0.0, 0.0123, 7.25, 812.4, 12345)]
    ['–', '<0.001', '0.012', '7.2', '812', '12,345']
    """
    if value is None:
        return "–"
    if value < 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.{digits}f}"


def params_text(value: float | None) -> str:
    """Return a number of parameters.

    >>> [params_text(value) for value in (0, 134_515_008, 9_399_951_360)]
    ['0', '135 M', '9.4 B']
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value is not None and value >= size:
            return f"{value / size:.3g} {unit}"
    return "–" if value is None else f"{value:g}"


def time_text(seconds: float | None) -> str:
    """Return a duration.

    >>> [time_text(value) for value in (0.02, 75, 750, 9000)]
    ['<0.1 s', '75.0 s', '12.5 min', '2.5 h']
    """
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{cost_text(seconds, 1)} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `most` of them.

    >>> ticks(0.47, 0.71)
    [0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    """
    span = max(high - low, 1e-6)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
