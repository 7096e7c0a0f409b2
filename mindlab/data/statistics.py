"""Describe a MIND folder in numbers: the statistics that data/README.md compares with MINDsmall.

python -m mindlab.data.statistics data/sample              one value a line
python -m mindlab.data.statistics --table data/sample      the Markdown table of data/README.md
"""

from pathlib import Path

import numpy as np

from mindlab.common import cli
from mindlab.data.mind import VALIDATION_DAY, Impressions, Mind, News, read_mind

# MINDsmall's values and where each comes from; the letters are explained in data/README.md.
MINDSMALL: dict[str, tuple[str, str]] = {
    "news, train and dev together": ("65,238", "C"),
    "users in both splits": ("5,943", "C"),
    "categories": ("18", "C"),
    "words per title, mean": ("11.5", "P"),
    "news with an empty abstract": ("5.0 %", "S"),
    "train: impressions": ("156,965", "C"),
    "train: users": ("50,000", "C"),
    "train: candidates per impression, mean": ("37.2", "C"),
    "train: candidates per impression, median": ("24", "C"),
    "train: candidates per impression, 95th percentile": ("118", "C"),
    "train: candidates per impression, most": ("299", "C"),
    "train: clicked candidates": ("4.05 %", "C"),
    "train: impressions with one click": ("72.1 %", "C"),
    "train: impressions without a click": ("0", "C"),
    "train: history length, median": ("19", "C"),
    "train: impressions with an empty history": ("2.1 %", "C"),
    "train: impressions whose history repeats a news": ("21.4 %", "S"),
    "train: impressions showing a news of the history": ("7.2 %", "S"),
    "dev: impressions": ("73,152", "C"),
    "dev: users": ("50,000", "C"),
    "dev: candidates per impression, mean": ("37.5", "C"),
    "dev: candidates per impression, median": ("23", "C"),
    "dev: candidates per impression, 95th percentile": ("119", "C"),
    "dev: candidates per impression, most": ("295", "C"),
    "dev: clicked candidates": ("4.06 %", "C"),
    "dev: impressions without a click": ("0", "C"),
    "dev: impressions with an empty history": ("3.0 %", "C"),
    "dev: candidates not shown on 9-13 November": ("71 %", "C"),
    "dev: clicks on news not shown on 9-13 November": ("86.8 %", "C"),
}


def describe(mind: Mind) -> dict[str, float]:
    """Return the statistics of a MIND with labelled `train` and `dev`, by name; shares are in per cent.

    History statistics count every impression, not every user.
    """
    train, dev = mind.splits["train"], mind.splits["dev"]
    is_fit = train.times.astype("datetime64[D]") < VALIDATION_DAY
    seen = np.zeros(len(mind.news), bool)
    seen[train.news[np.repeat(is_fit, np.diff(train.offsets))]] = True
    is_new = ~seen[dev.news]
    return {
        "news, train and dev together": len(mind.news),
        "users in both splits": len(np.intersect1d(train.users.astype(str), dev.users.astype(str))),
        **_describe_news(mind.news),
        **{f"train: {name}": value for name, value in _describe_split(train).items()},
        **{f"dev: {name}": value for name, value in _describe_split(dev).items()},
        "dev: candidates not shown on 9-13 November": 100 * float(is_new.mean()),
        "dev: clicks on news not shown on 9-13 November": 100 * float(is_new[dev.labels == 1].mean()),
    }


def _describe_news(news: News) -> dict[str, float]:
    return {
        "categories": len(set(news.category)),
        "words per title, mean": float(np.mean([len(title.split()) for title in news.title])),
        "news with an empty abstract": 100 * float(np.mean(news.abstract == "")),
    }


def _describe_split(split: Impressions) -> dict[str, float]:
    sizes = np.diff(split.offsets)
    clicks = np.add.reduceat(split.labels.astype(np.int64), split.offsets[:-1])
    lengths = np.diff(split.history_offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    n_news = int(max(split.history_news.max(initial=0), split.news.max(initial=0))) + 1
    in_history = np.unique(owner * n_news + split.history_news)  # one number per (history, news)
    has_repeat = lengths > np.bincount(in_history // n_news, minlength=len(lengths))
    shown = np.repeat(split.history, sizes).astype(np.int64) * n_news + split.news
    is_old = np.isin(shown, in_history)
    shows_old = np.add.reduceat(is_old.astype(np.int64), split.offsets[:-1]) > 0
    return {
        "impressions": len(split),
        "users": len(set(split.users)),
        "candidates per impression, mean": float(sizes.mean()),
        "candidates per impression, median": float(np.median(sizes)),
        "candidates per impression, 95th percentile": float(np.percentile(sizes, 95)),
        "candidates per impression, most": int(sizes.max()),
        "clicked candidates": 100 * float(split.labels.mean()),
        "impressions with one click": 100 * float((clicks == 1).mean()),
        "impressions without a click": int((clicks == 0).sum()),
        "history length, median": float(np.median(lengths[split.history])),
        "impressions with an empty history": 100 * float((lengths[split.history] == 0).mean()),
        "impressions whose history repeats a news": 100 * float(has_repeat[split.history].mean()),
        "impressions showing a news of the history": 100 * float(shows_old.mean()),
    }


def table(found: dict[str, float], name: str) -> str:
    """Return the Markdown table of `found`, with MINDsmall's values beside it.

    >>> print(table({"train: impressions": 3000, "train: clicked candidates": 4.1634}, "mine"))
    | | MINDsmall | from | mine |
    |---|---|---|---|
    | train: impressions | 156,965 | C | 3,000 |
    | train: clicked candidates | 4.05 % | C | 4.16 % |
    """
    rows = [f"| | MINDsmall | from | {name} |", "|---|---|---|---|"]
    for what, (value, source) in MINDSMALL.items():
        if what in found:
            rows.append(f"| {what} | {value} | {source} | {_like(value, found[what])} |")
    return "\n".join(rows)


def _like(example: str, value: float) -> str:
    """Return `value` with as many decimals, and the same unit, as `example`."""
    number, _, unit = example.partition(" ")
    decimals = len(number.partition(".")[2])
    return f"{value:,.{decimals}f} {unit}".rstrip()


def main() -> None:
    """Print the statistics of one folder."""
    parser = cli.parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and dev/")
    parser.add_argument("--table", action="store_true", help="a Markdown table beside MINDsmall's values")
    args = parser.parse_args()
    found = describe(read_mind(args.data))
    if args.table:
        print(table(found, args.data.as_posix()))
    else:
        for what, value in found.items():
            print(f"{what}: {value:,.6g}")


if __name__ == "__main__":
    cli.run(main)
