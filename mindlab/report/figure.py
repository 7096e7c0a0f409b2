"""Figures for documents, each one standalone SVG: methods as dots on their intervals, beside published ones.

One column is drawn 390 units wide, the width of a phone, and legible there; two stand side by side on a desktop. Colours
follow the light or dark setting of whoever looks, on a background of the figure's own. No font, script or link.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width
from xml.sax.saxutils import escape

from mindlab.report import interval_text, score_text, ticks

WIDTH = 390  # of a column; at this width a unit is a pixel
SHOWN = {1: 480, 2: 860}  # pixels that one or two columns take where nothing limits them
EDGE, NAMES_END, PLOT, PLOT_END = 14, 166, 176, 328  # x of left edge, names' end, plot's two sides
TITLE, BODY, SMALL = 17, 13, 12  # font sizes; the smallest is 11 pixels where 358 are left of a phone's 390
CHANCE = 0.5  # AUC of a random order

# (light, dark), as on the leaderboard's page; `first` and `second` are hues of groups, `apart` of what was not run here.
PALETTE = {
    "page": ("#fff", "#14171a"),
    "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#5c6670", "#a3acb5"),
    "rule": ("#dde1e6", "#343b42"),
    "first": ("#1f5fbf", "#7db2ff"),
    "second": ("#b4560a", "#f2a65a"),
    "apart": ("#6b7280", "#9aa3ad"),
}
# Of DejaVu Sans from blank to tilde, in hundredths of an em, rounded up.
# fmt: off
ADVANCES = (
    32, 41, 46, 84, 64, 96, 78, 28, 40, 40, 50, 84, 32, 37, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 34, 34, 84, 84, 84, 54, 100, 69, 69, 70, 78, 64, 58, 78, 76, 30, 30, 66, 56, 87, 75, 79,
    61, 79, 70, 64, 62, 74, 69, 99, 69, 62, 69, 40, 34, 40, 84, 50, 50, 62, 64, 55, 64, 62, 36, 64,
    64, 28, 28, 58, 28, 98, 64, 62, 64, 64, 42, 53, 40, 64, 60, 82, 60, 60, 53, 64, 34, 64, 84,
)
# fmt: on
FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Helvetica,Arial,sans-serif'


@dataclass(frozen=True)
class Row:
    """One method. Without an interval (`low` and `high` None) it is drawn hollow: published, not run here."""

    name: str
    group: str  # the heading that it stands under
    auc: float
    low: float | None = None
    high: float | None = None
    note: str = ""  # small, under the name

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def forest(rows: Sequence[Row], title: str, caption: str = "", columns: int = 1) -> str:
    """Return an SVG of the AUC of each row, as a dot on its 95 % interval, under the headings of its groups.

    Groups stand in the order of their first rows, rows in the order given, all on one scale with 0.5 marked as chance.

    Args:
        rows: at least one; `auc`, `low` and `high` from 0 to 1.
        title: the finding, in a sentence.
        caption: below the axis: what was measured, on how many impressions.
        columns: 1 for a phone, or 2 side by side, each as wide as one alone.

    Raises:
        ValueError: for no row, a value outside 0 to 1, or other columns.
    """
    values = [value for row in rows for value in (row.auc, row.low, row.high) if value is not None]
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"AUC and its limits are fractions, and there is at least one; got {values}")
    if columns not in (1, 2):
        raise ValueError(f"{columns} columns, expected 1 or 2")
    scale = _Scale.around(values)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    hues = _hues(groups)
    drawn = [_group(group, members, hues[group], scale) for group, members in groups.items()]

    width = WIDTH * columns
    parts, y = _paragraph(title, EDGE + 4, TITLE, "title", width)
    y = _legend(parts, rows, y + 10) + 14
    bottom = y
    for i, column in enumerate(_columns(drawn, columns)):
        left = WIDTH * i
        axis = [_text(left + scale.x(mark), y + SMALL, f"{mark:g}", "tick middle") for mark in scale.marks]
        parts += [*axis, _text(left + WIDTH - EDGE, y + SMALL, "AUC", "tick end")]
        end = y + SMALL + 4
        for lines, height in column:
            parts += [f'<g transform="translate({left} {end})">', *lines, "</g>"]
            end += height
        axis = [
            _text(left + scale.x(mark), end + SMALL + 2, f"{mark:g}", "tick middle") for mark in scale.marks
        ]
        parts += [*axis, _text(left + scale.x(CHANCE), end + 2 * SMALL + 4, "chance", "tick middle")]
        bottom = max(bottom, end + 2 * SMALL + 8)
    if caption:
        lines, bottom = _paragraph(caption, bottom + 10, SMALL, "caption", width)
        parts += lines
    height = bottom + EDGE
    said = "; ".join(
        f"{row.name}: {score_text(row.auc)} {interval_text(row.low, row.high) or '(published)'}"
        for row in rows
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{SHOWN[columns]}" '
        f'height="{SHOWN[columns] * height / width:.0f}" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{_safe(title)}</title>\n<desc id="desc">AUC. {_safe(said)}. {_safe(caption)}</desc>\n'
        f"<style>{_style()}</style>\n"
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


@dataclass(frozen=True)
class _Scale:
    """Where an AUC stands between the two sides of a plot, and the round numbers to mark."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> "_Scale":
        low, high = min([CHANCE, *values]), max([CHANCE + 0.1, *values])
        margin = 0.04 * (high - low)
        return cls(low - margin, high + margin)

    @property
    def marks(self) -> list[float]:
        """Round numbers that the scale holds, chance always among them."""
        first, second, *_ = ticks(self.low, self.high, 4)
        step = second - first
        marks = [round(CHANCE + i * step, 10) for i in range(-20, 21)]
        return [mark for mark in marks if self.low <= mark <= self.high]

    def x(self, value: float) -> float:
        return PLOT + (PLOT_END - PLOT) * (value - self.low) / (self.high - self.low)


def _hues(groups: dict[str, list[Row]]) -> dict[str, str]:
    """Return the hue of each group: the two hues in turn where anything was run here, the third elsewhere."""
    run_here = [group for group, rows in groups.items() if any(row.has_interval for row in rows)]
    return {
        group: ("first", "second")[run_here.index(group) % 2] if group in run_here else "apart"
        for group in groups
    }


def _columns(drawn: list[tuple[list[str], int]], columns: int) -> list[list[tuple[list[str], int]]]:
    """Return the groups in one column, or in the two that are the least high."""
    if columns == 1:
        return [drawn]
    cut = min(
        range(len(drawn) + 1), key=lambda i: max(sum(h for _, h in part) for part in (drawn[:i], drawn[i:]))
    )
    return [drawn[:cut], drawn[cut:]]


def _group(title: str, rows: Sequence[Row], hue: str, scale: _Scale) -> tuple[list[str], int]:
    """Return a heading and its rows, drawn from height 0 on, and how high they are."""
    parts, top = _paragraph(title, 6, BODY, "group", WIDTH)
    y = top + 3
    lines: list[str] = []
    for row in rows:
        names = wrap(row.name, NAMES_END - EDGE, BODY)
        notes = wrap(row.note, NAMES_END - EDGE, SMALL) if row.note else []
        lines += [_text(EDGE, y + 14 + 15 * i, name, "name") for i, name in enumerate(names)]
        below = y + 13 + 15 * len(names)
        lines += [_text(EDGE, below + 14 * i, note, "note") for i, note in enumerate(notes)]
        height = 15 * len(names) + 14 * len(notes) + 5
        middle, kind = y + height / 2, "hollow"
        if row.has_interval:
            ends = f'x1="{scale.x(row.low):.2f}" x2="{scale.x(row.high):.2f}"'
            lines.append(f'<line class="bar {hue}" {ends} y1="{middle:g}" y2="{middle:g}"/>')
            kind = "dot"
        lines.append(f'<circle class="{kind} {hue}" cx="{scale.x(row.auc):.2f}" cy="{middle:g}" r="4.5"/>')
        lines.append(_text(WIDTH - EDGE, middle + 4.5, score_text(row.auc), "value"))
        y += height
    for mark in scale.marks:
        kind, at = "chance" if mark == CHANCE else "grid", f"{scale.x(mark):.2f}"
        parts.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{top + 2}" y2="{y}"/>')
    return parts + lines, y


def _legend(parts: list[str], rows: Sequence[Row], y: int) -> int:
    """Add what a filled and a hollow dot mean, as far as the rows need it; return the height below."""
    middle, x = y + SMALL // 2, EDGE
    if any(row.has_interval for row in rows):
        parts.append(f'<line class="bar first" x1="{x}" x2="{x + 24}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<circle class="dot first" cx="{x + 12}" cy="{middle}" r="4.5"/>')
        parts.append(_text(x + 30, middle + 4, "run here, 95 % interval", "caption"))
        x += 194
    if not all(row.has_interval for row in rows):
        parts.append(f'<circle class="hollow apart" cx="{x + 5}" cy="{middle}" r="4.5"/>')
        parts.append(_text(x + 16, middle + 4, "published, not run here", "caption"))
    return y + SMALL


def _paragraph(text: str, y: int, size: int, kind: str, width: int) -> tuple[list[str], int]:
    """Return a text between both edges from height `y` on, and the height where it ends."""
    step = round(size * 1.3)
    lines = wrap(text, width - 2 * EDGE, size, is_bold=kind in ("title", "group"))
    return [_text(EDGE, y + size + step * i, line, kind) for i, line in enumerate(lines)], y + step * len(
        lines
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.7g}" y="{y:g}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    """Return a text as XML takes it: on one line, its markup escaped, what XML may not hold replaced."""
    return escape(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    )


def text_width(text: str, size: float, is_bold: bool = False) -> float:
    """Return how wide a text is in DejaVu Sans, the widest of the fonts that it may be shown in; no less in others.

    >>> text_width("AUC", 100)
    213.0
    >>> text_width("汉字", 100)
    200.0
    """
    return size * sum(map(_ems, text)) / 100 * (1.15 if is_bold else 1)


def _ems(c: str) -> int:
    """Return the width of a character in hundredths of the font's size."""
    if " " <= c <= "~":
        return ADVANCES[ord(c) - ord(" ")]
    return 100 if east_asian_width(c) in "WF" or c == "\N{EM DASH}" else 84


def wrap(text: str, width: float, size: float, is_bold: bool = False) -> list[str]:
    """Return a text in lines of at most `width`, broken at blanks, and within a word that is longer than a line.

    >>> wrap("MiniLM and counts, equal weights", 130, 13)
    ['MiniLM and counts,', 'equal weights']
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and text_width(f"{line} {word}", size, is_bold) <= width:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        line = ""
        for c in word:
            if line and text_width(line + c, size, is_bold) > width:
                lines.append(line)
                line = ""
            line += c
    return [*lines, line]


def _style() -> str:
    """Return the style sheet: fonts, and each colour for a light and for a dark page."""
    rules = {
        "page": "fill:{page};stroke:{rule}",
        "title,.group,.name,.value": "fill:{ink}",
        "tick,.note,.caption": "fill:{soft}",
        "grid": "stroke:{rule}",
        "chance": "stroke:{soft}",
        **{f"bar.{hue}": f"stroke:{{{hue}}}" for hue in ("first", "second")},
        **{f"dot.{hue}": f"fill:{{{hue}}};stroke:{{page}}" for hue in ("first", "second")},
        **{f"hollow.{hue}": f"stroke:{{{hue}}};fill:{{page}}" for hue in ("first", "second", "apart")},
    }
    light, dark = (
        "".join(
            f".{name}{{{rule.format(**{k: v[i] for k, v in PALETTE.items()})}}}"
            for name, rule in rules.items()
        )
        for i in (0, 1)
    )
    return (
        f"text{{font-family:{FONT};font-size:{SMALL}px}}"
        f".title{{font-size:{TITLE}px;font-weight:700}}.group{{font-size:{BODY}px;font-weight:700}}"
        f".name,.value{{font-size:{BODY}px}}.value{{text-anchor:end;font-variant-numeric:tabular-nums}}"
        ".middle{text-anchor:middle}.end{text-anchor:end}.chance{stroke-dasharray:4 3}.bar{stroke-width:3}.dot{stroke-width:1.5}"
        f".hollow{{stroke-width:1.75}}{light}@media(prefers-color-scheme:dark){{{dark}}}"
    )
