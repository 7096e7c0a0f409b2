"""Plots of a board as inline SVG, which narrow with the page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mindlab.report.board import LABELS, blocks
from mindlab.report.numbers import interval_text, score_text, ticks

# compare.py rounds to 0.001 ms, so that 0 means less than that; a log axis has no 0.
LEAST_MS = 0.001
MOVES = (0, -12, 12, -18, 18, -30, 30, -42, 42, -56, 56)  # pixels by which a name may leave its point
Dots = list[tuple[str, str, list[tuple[str, float, float | None, float | None]]]]  # title, hue, its lines


def _around_chance(aucs: Iterable[float]) -> list[float]:
    """Return ticks for an axis of AUC, 0.5 always among them."""
    values = list(aucs)
    return ticks(min([0.5, *values]), max([0.55, *values]))


def dots_plot(groups: Dots, metric: str, chance: float | None = None) -> str:
    """Return each line of each group as a dot on its interval, all on one axis.

    Positions are in per cent, so that the plot narrows with the page while its text stays legible.
    """
    values = [v for _, _, lines in groups for _, *ends in lines for v in ends if v is not None]
    marks = ticks(min(values), max(values)) if chance is None else _around_chance(values)
    low, high = marks[0], marks[-1]

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    kinds = [(mark, "chance" if mark == chance else "grid") for mark in marks]
    grid = "".join(
        f'<line class="{kind}" x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="100%"/>'
        for mark, kind in sorted(kinds, key=lambda pair: pair[1] == "chance")
    )
    lines = []
    for title, hue, members in groups:
        lines.append(f'<div class="row group"><span>{escape(title)}</span><svg>{grid}</svg></div>')
        for name, value, left, right in members:
            interval = interval_text(left, right)
            bar = (
                f'<line class="bar" x1="{at(left)}" x2="{at(right)}" y1="50%" y2="50%"/>'
                if left is not None and right is not None
                else ""
            )
            said = f"{name}: {LABELS.get(metric, metric)} {score_text(value)} {interval}"
            lines.append(
                f'<div class="row {hue}"><span class="name">{escape(name)}</span>'
                f'<svg role="img" aria-label="{escape(said)}">{grid}{bar}'
                f'<circle class="dot" cx="{at(value)}" cy="50%" r="5.5"/></svg>'
                f'<span class="value">{score_text(value)} <small>{escape(interval)}</small></span></div>'
            )
    numbers = "".join(f'<text x="{at(mark)}" y="16" text-anchor="middle">{mark:g}</text>' for mark in marks)
    lines.append(f'<div class="row axis"><span></span><svg>{numbers}</svg><span></span></div>')
    return f"<div>{''.join(lines)}</div>"


def cost_plot(board: Mapping[str, Any]) -> str:
    """Return AUC (linear) against milliseconds per impression (log), each point with its name beside it."""
    rows = [
        row
        for title, _, rows in blocks(board)
        for row in rows
        if title != "ceiling" and row["auc"] is not None and row["ms_per_impression"] is not None
    ]
    if not rows:
        return ""
    height = 320.0
    ends = ("auc", "auc_low", "auc_high")
    marks = _around_chance(row[end] for row in rows for end in ends if row[end] is not None)
    times = [math.log10(max(row["ms_per_impression"], LEAST_MS)) for row in rows]
    first, last = math.floor(min(times)), math.floor(max(times)) + 1

    def x(value: float) -> float:
        return 100 * (value - first) / (last - first)

    def y(value: float) -> float:
        return height * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        kind, h = "chance" if mark == 0.5 else "grid", y(mark)
        parts.append(f'<line class="{kind}" x1="0" x2="100%" y1="{h:.1f}" y2="{h:.1f}"/>')
        parts.append(f'<text x="-8" y="{h + 4:.1f}" text-anchor="end">{mark:g}</text>')
    parts += [
        f'<line class="grid" x1="{x(p):.2f}%" x2="{x(p):.2f}%" y1="0" y2="{height:.0f}"/>'
        f'<text x="{x(p):.2f}%" y="{height + 20:.0f}" text-anchor="middle">{10.0**p:g}</text>'
        for p in range(first, last + 1)
    ]
    points = [(x(time), y(row["auc"])) for time, row in zip(times, rows, strict=True)]
    labels = place_labels(points, [row["name"] for row in rows], height)
    for (px, py), row, (side, moved) in zip(points, rows, labels, strict=True):
        track, at = row["track"], f"{px:.2f}%"
        if row["auc_low"] is not None:
            ends = f'y1="{y(row["auc_high"]):.1f}" y2="{y(row["auc_low"]):.1f}"'
            parts.append(f'<line class="bar thin {track}" x1="{at}" x2="{at}" {ends}/>')
        anchor = "start" if side > 0 else "end"
        parts.append(
            f'<circle class="dot {track}" cx="{at}" cy="{py:.1f}" r="5.5"/>'
            f'<text class="label" x="{at}" dx="{10 * side}" y="{py + moved + 4.5:.1f}" '
            f'text-anchor="{anchor}">{escape(row["name"])}</text>'
        )
    parts.append(
        f'<text x="50%" y="{height + 42:.0f}" text-anchor="middle">ms per impression (log scale)</text>'
    )
    parts.append('<text x="-8" y="-14" text-anchor="end">AUC</text>')
    tracks = dict.fromkeys(row["track"] for row in rows)
    key = ", ".join(f'<span class="key {track}"></span>\N{NO-BREAK SPACE}{track}' for track in tracks)
    return (
        '<figure><div class="scroll" tabindex="0"><div class="plot broad">'
        f'<svg style="height:{height:.0f}px" role="img" aria-label="AUC against milliseconds per impression">'
        f"{''.join(parts)}</svg></div></div>"
        "<figcaption>AUC against the time to score one impression, as each run measured it: "
        f"{key}.</figcaption></figure>"
    )


def loss_plot(steps: np.ndarray, values: np.ndarray, said: str) -> str:
    """Return the training loss by step, as logged and as a moving mean; `said` is what it is called."""
    height = 260.0
    marks, across = ticks(values.min(), values.max(), 5), ticks(0, max(steps.max(), 1), 5)
    left, right = min(steps.min(), 1.0), max(steps.max(), 2.0)

    def x(step: np.ndarray | float) -> np.ndarray | float:
        return 100 * (step - left) / (right - left)

    def y(loss: np.ndarray | float) -> np.ndarray | float:
        return 100 * (marks[-1] - loss) / (marks[-1] - marks[0])

    def line(kind: str, heights: np.ndarray) -> str:
        points = " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x(steps), y(heights), strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y(mark):.2f}%" y2="{y(mark):.2f}%"/>'
        f'<text x="-8" y="{height * y(mark) / 100 + 4:.1f}" text-anchor="end">{mark:g}</text>'
        for mark in marks
    )
    grid += "".join(
        f'<text x="{x(step):.2f}%" y="{height + 20:.0f}" text-anchor="middle">{step:g}</text>'
        for step in across
        if left <= step <= right
    )
    grid += f'<text x="50%" y="{height + 42:.0f}" text-anchor="middle">step</text>'
    grid += '<text x="-8" y="-14" text-anchor="end">loss</text>'
    if len(steps) == 1:
        curve = f'<circle class="dot static" cx="{x(steps[0]):.2f}%" cy="{y(values[0]):.2f}%" r="5.5"/>'
    else:
        # Stretched to the size of the plot; the stroke is not.
        curve = (
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
            f"{line('raw', values)}{line('smooth', smooth(values))}</svg>"
        )
    return (
        f'<div class="plot"><svg style="height:{height:.0f}px" role="img" aria-label="{escape(said)}">'
        f"{grid}{curve}</svg></div>"
    )


def place_labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], height: float, width: float = 600.0
) -> list[tuple[int, float]]:
    """Return per point (1 for right of it or -1 for left, pixels downwards) so that no two names overlap.

    `points` are (per cent of the width, pixels); `width` is the narrowest the plot is ever drawn, and a
    letter is taken to be 8 pixels wide. A name that fits nowhere stays beside its point.

    >>> place_labels([(10, 50), (12, 52), (90, 50)], ["one", "two", "three"], 100)
    [(-1, 0), (1, 0), (-1, 0)]
    """
    taken = [(width * x / 100 - 6, width * x / 100 + 6, y - 6, y + 6) for x, y in points]

    def is_free(box: tuple[float, ...], own: int) -> bool:
        return all(
            i == own or box[1] <= other[0] or other[1] <= box[0] or box[3] <= other[2] or other[3] <= box[2]
            for i, other in enumerate(taken)
        )

    result = []
    for own, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        sides = (1, -1) if x < 50 else (-1, 1)
        for moved, side in ((moved, side) for moved in MOVES for side in sides):
            near = width * x / 100 + 8 * side
            left, right = sorted((near, near + 8 * side * len(name)))
            box = (left, right, y + moved - 8, y + moved + 8)
            if left >= -20 and right <= width + 20 and box[2] >= 0 and box[3] <= height and is_free(box, own):
                taken.append(box)
                result.append((side, moved))
                break
        else:
            result.append((sides[0], 0))
    return result


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the centred moving mean over about a tenth of the values, over fewer at both ends.

    >>> smooth([4.0, 1.0, 1.0]).tolist()
    [2.5, 2.0, 1.0]
    """
    half = max(1, round(len(values) / 20))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    i = np.arange(len(values))
    first, last = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
