"""Examine a MIND folder: is it whole, is it MIND, is it one size, and will the course's protocols run on it.

`scripts/download_mind.py --check DIR` prints what `examine` returns.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mindlab.common.errors import UserError
from mindlab.data import recprompt
from mindlab.data.mind import SPLITS, VALIDATION_DAY, Impressions, Mind, read_mind

# Counts of the released files, as several public reports agree on them: impressions, rows of news.tsv,
# users, candidates; None where no report says it. MINDdemo's are not known to us.
COUNTS: dict[str, dict[str, tuple[int, int, int | None, int | None]]] = {
    "MINDsmall": {
        "train": (156_965, 51_282, 50_000, 5_843_444),
        "dev": (73_152, 42_416, 50_000, 2_740_998),
    },
    "MINDlarge": {
        "train": (2_232_748, 101_527, 711_222, 83_507_374),
        "dev": (376_471, 72_023, 255_990, 14_085_557),
        "test": (2_370_727, 120_961, None, None),
    },
}
COUNTED = {"impressions": "impressions", "news_rows": "news", "users": "users", "candidates": "candidates"}
# The paper (https://msnews.github.io/assets/doc/ACL2020_MIND.pdf), section 3.
DAYS = {
    "train": ("2019-11-09", "2019-11-14"),
    "dev": ("2019-11-15", "2019-11-15"),
    "test": ("2019-11-16", "2019-11-22"),
}
AGAIN = "fetch it again"
# Of the published RecPrompt files: impressions, and how often the click stands at each of the ten places.
RECPROMPT = {"dev": (400, 40), "valid": (100, 10)}
RECPROMPT_CANDIDATES, RECPROMPT_HISTORY = 10, (1, 25)


@dataclass(frozen=True)
class Finding:
    """One line of a check. `kind` is "ok", "note" (unusual, harmless) or "fault"."""

    kind: str
    text: str

    @property
    def is_fault(self) -> bool:
        return self.kind == "fault"

    def __str__(self) -> str:
        return f"{self.kind:<5}  {self.text}"


def examine(folder: str | Path) -> list[Finding]:
    """Return what there is to say about a MIND folder or zip, one line each, faults first.

    A folder that cannot be read yields one fault for each split that is broken. What is unusual is a fault
    in a copy of MIND (known by its names or counts) and a note elsewhere. Raises `UserError` when there is
    no such folder.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    try:
        mind = read_mind(folder, splits=None, missing="drop")
    except UserError as error:
        return [Finding("fault", text) for text in _faults_by_split(folder, str(error))]
    if recprompt.is_one(folder):
        return _sorted(_examine_recprompt(folder, mind))
    size, findings = _size(folder, mind)
    odd = "fault" if size else "note"
    for split, impressions in mind.splits.items():
        findings += _examine_split(split, impressions, mind.report["splits"][split], odd)
        if size in COUNTS:
            findings += _compare(split, mind.report["splits"][split], size)
    findings += _examine_days(mind, odd)
    findings += [
        Finding("fault", f"no {split} split in {folder}: training needs train/, scoring dev/; {AGAIN}")
        for split in ("train", "dev")
        if split not in mind.splits
    ]
    if differing := mind.report["news_rows_differing"]:
        findings.append(
            Finding("note", f"{differing} news rows repeat an id with other details; the first counts")
        )
    return _sorted(findings)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: ("fault", "note", "ok").index(finding.kind))


def _examine_recprompt(folder: Path, mind: Mind) -> list[Finding]:
    """Return what there is to say about a folder that `mindlab.data.recprompt` wrote.

    What is not as published is a fault in the published impressions, and a note in a pair of one's own.
    """
    is_published = recprompt.is_published(folder)
    odd = "fault" if is_published else "note"
    findings = [
        Finding(
            "note", "no training split: only methods that learn from no clicks apply (see data/README.md)"
        ),
        Finding("ok", "the impressions that the RecPrompt paper measured GPT-4 on")
        if is_published
        else Finding("note", "not the published impressions of RecPrompt: no comparison with its table"),
    ]
    findings += [
        Finding("fault", f"{name}: not as it was written; fetch the folder again (--size recprompt)")
        for name in recprompt.changed(folder)
    ]
    findings += [
        Finding("fault", f"no {split} split in {folder}; fetch the folder again (--size recprompt)")
        for split in RECPROMPT
        if split not in mind.splits
    ]
    for split, rows in mind.splits.items():
        findings += _examine_split(split, rows, mind.report["splits"][split], odd)
        if split in RECPROMPT and rows.labels is not None:
            unlike = [Finding(odd, f"{split}: {text}") for text in _unlike_recprompt(split, rows)]
            as_published = (
                f"{split}: {RECPROMPT_CANDIDATES} candidates and one click each, which stands at each place "
                f"{RECPROMPT[split][1]} times; histories of {RECPROMPT_HISTORY[0]} to {RECPROMPT_HISTORY[1]} clicks"
            )
            findings += unlike or [Finding("ok", as_published)]
    # The zero-width spaces that some of MIND's titles begin with are away already.
    unstripped = sum(title != title.strip() for title in mind.news.title)
    if unstripped:
        findings.append(Finding("fault", f"{unstripped} titles with blanks around them; {AGAIN}"))
    return findings


def _unlike_recprompt(split: str, rows: Impressions) -> list[str]:
    """Return how a split differs from the published one."""
    impressions, each = RECPROMPT[split]
    sizes = np.diff(rows.offsets)
    clicks = np.add.reduceat(rows.labels, rows.offsets[:-1], dtype=np.int64)
    lengths = np.diff(rows.history_offsets)[rows.history]
    places = (np.arange(len(rows.news)) - np.repeat(rows.offsets[:-1], sizes))[rows.labels == 1]
    at = np.bincount(places, minlength=RECPROMPT_CANDIDATES)
    shortest, longest = RECPROMPT_HISTORY
    moments = np.unique(rows.times)
    told = []
    if len(rows) != impressions:
        told.append(f"{len(rows)} impressions and not {impressions}")
    if wrong := int((sizes != RECPROMPT_CANDIDATES).sum()):
        told.append(f"{wrong} impressions without exactly {RECPROMPT_CANDIDATES} candidates")
    if wrong := int((clicks != 1).sum()):
        told.append(f"{wrong} impressions without exactly one click")
    if wrong := int(((lengths < shortest) | (lengths > longest)).sum()):
        told.append(f"{wrong} histories that have not {shortest} to {longest} clicks")
    if (at != each).any():
        told.append(
            f"the click stands {at.min()} to {at.max()} times at a place, and not {each} times at each"
        )
    if len(moments) != 1:
        told.append(f"{len(moments)} different times, and not the one that they were given")
    return told


def _faults_by_split(folder: Path, first: str) -> list[str]:
    """Return `read_mind`'s complaints about each split alone or, if there are none, about all together."""
    texts = []
    for split in SPLITS:
        try:
            read_mind(folder, (split,), missing="drop")
        except UserError as error:
            if f"no split {split!r}" not in str(error):
                texts.append(str(error))
    return list(dict.fromkeys(texts)) or [first]


def _size(folder: Path, mind: Mind) -> tuple[str | None, list[Finding]]:
    """Return which MIND this is, by its names or else its counts, and a finding if it is two or none."""
    if (folder / "manifest.json").exists() and (folder / "train" / "oracle_utility.npy").exists():
        return None, [Finding("note", "synthetic data, made by scripts/make_sample.py; not MIND")]
    paths = [
        str(Path(file["path"]).absolute().relative_to(folder.absolute().parent))
        for file in mind.report["files"]
    ]
    named = {size for path in paths for size in re.findall("MIND(?:demo|small|large)", path)}
    if len(named) > 1:
        return None, [
            Finding(
                "fault",
                f"{' and '.join(sorted(named))} in one folder: their ids mean different news; keep one",
            )
        ]
    if named:
        return named.pop(), []
    for size, splits in COUNTS.items():
        for split, (impressions, news_rows, *_) in splits.items():
            found = mind.report["splits"].get(split, {})
            if found.get("impressions") == impressions or found.get("news_rows") == news_rows:
                return size, []
    return None, [Finding("note", "of no known size: a part of MIND, or other data of its shape")]


def _compare(split: str, found: dict[str, Any], size: str) -> list[Finding]:
    """Return a fault if a split's counts are not those of the released files."""
    known = COUNTS[size].get(split)
    if known is None:
        return [Finding("fault", f"{split}: {size} has no such split; {AGAIN}")]
    wrong = [
        f"{found[key]:,} {word} and not {value:,}"
        for (key, word), value in zip(COUNTED.items(), known, strict=True)
        if value is not None and found[key] != value
    ]
    if not wrong:
        return []
    return [
        Finding("fault", f"{split}: {', '.join(wrong)} as {size} has; lines are missing or added: {AGAIN}")
    ]


def _examine_split(split: str, rows: Impressions, counts: dict[str, Any], odd: str) -> list[Finding]:
    days = rows.times.astype("datetime64[D]")
    clicks = "no labels" if rows.labels is None else f"{counts['clicks']:,} clicks"
    findings = [
        Finding(
            "ok",
            f"{split}: {counts['impressions']:,} impressions of {counts['users']:,} users, {days.min()} to {days.max()}, "
            f"{counts['candidates']:,} candidates, {clicks}, {counts['news_rows']:,} news",
        )
    ]
    if counts["unknown_news"]:
        findings.append(
            Finding(
                "fault",
                f"{split}: {counts['unknown_news']:,} of its news ids are in no news.tsv here; the news.tsv of "
                f"another split or size: {AGAIN}, or pass --missing drop to the scripts that read it",
            )
        )
    if rows.labels is None and split != "test":
        findings.append(
            Finding("fault", f"{split}: candidates without -0 or -1: a test split under this name; {AGAIN}")
        )
    if rows.labels is not None and split == "test":
        findings.append(Finding("note", "test: has labels, which MIND's has not"))
    if without := counts["impressions_without_click"]:
        findings.append(Finding(odd, f"{split}: {without:,} impressions without a click; MIND has none"))
    pairs = pd.DataFrame({"user": rows.users, "history": rows.history}).drop_duplicates()
    if several := int((pairs["user"].value_counts() > 1).sum()):
        findings.append(
            Finding(odd, f"{split}: {several:,} users have more than one history; MIND freezes one for each")
        )
    return findings


def _examine_days(mind: Mind, odd: str) -> list[Finding]:
    findings = []
    days = {split: rows.times.astype("datetime64[D]") for split, rows in mind.splits.items()}
    if (
        "train" in days
        and "dev" in days
        and mind.splits["dev"].times.min() <= mind.splits["train"].times.max()
    ):
        return [
            Finding(
                "fault",
                f"dev begins on {days['dev'].min()}, before train ends on {days['train'].max()}: the two are "
                "swapped, or the same file twice",
            )
        ]
    for split, found in days.items():
        if split not in DAYS:
            continue
        first, last = (np.datetime64(day) for day in DAYS[split])
        if found.min() < first or found.max() > last:
            findings.append(
                Finding(
                    odd,
                    f"{split}: days {found.min()} to {found.max()}, where MIND has {first} to {last}: "
                    "another split, or dates rewritten by a spreadsheet",
                )
            )
    if "train" in days and not (
        (days["train"] < VALIDATION_DAY).any() and (days["train"] >= VALIDATION_DAY).any()
    ):
        findings.append(
            Finding(
                "fault",
                f"train: no impressions on both sides of {VALIDATION_DAY}, the validation day of protocol dev",
            )
        )
    return findings
