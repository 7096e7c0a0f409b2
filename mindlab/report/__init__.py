"""Leaderboards from run folders: a terminal table, Markdown, JSON, and one self-contained HTML page."""

from mindlab.report.board import (
    COSTS,
    DEFAULT_REFERENCE,
    LABELS,
    PARTS,
    TRACKS,
    Measured,
    blocks,
    complete_manifest,
    headline,
    leaderboard,
    leaderboard_row,
    measure,
    remarks,
    verdict,
    written_text,
)
from mindlab.report.numbers import difference_text, interval_text, score_text, ticks, with_interval
from mindlab.report.page import write_leaderboard, write_report
from mindlab.report.text import as_markdown, as_text, slices_markdown

__all__ = [
    "COSTS",
    "DEFAULT_REFERENCE",
    "LABELS",
    "PARTS",
    "TRACKS",
    "Measured",
    "as_markdown",
    "as_text",
    "blocks",
    "complete_manifest",
    "difference_text",
    "headline",
    "interval_text",
    "leaderboard",
    "leaderboard_row",
    "measure",
    "remarks",
    "score_text",
    "slices_markdown",
    "ticks",
    "verdict",
    "with_interval",
    "write_leaderboard",
    "write_report",
    "written_text",
]
