"""How often 95 % intervals hold the truth, on generated days of news whose truth is known: docs/intervals.md.

  python -m benchmarks.coverage                 (about ten minutes on 2 cores: the table of docs/intervals.md)
  python -m benchmarks.coverage --sets 100      (a look)

A day has a few hundred news articles, one of which takes a given share of all clicks. Two methods rank the candidates of
each impression. What a method thinks of an article is drawn once a day and is the same for every user; what it knows of
the user, and the rest, is drawn for each impression. The AUC that a method has over all such days is known from a very
large draw, and so is the difference between the two. Of each day's intervals we count how many hold it.

An article that a method likes gains where it is clicked and costs where it is passed over. So it matters how often popular
articles are passed over: with exposure 0 every article is as often as any other, with 1 as often as it is clicked.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common import write
from mindlab.common import cli
from mindlab.evaluation.intervals import Shares, mean_interval, ratio_intervals
from mindlab.evaluation.metrics import ranking_shares
from mindlab.runs.kept import put

PAGE = Path("docs/intervals.md")
SIZES = (150, 400, 1000)
EXPOSURES = (0.0, 0.5, 1.0)
SHARES = (0.01, 0.03, 0.10)  # of the clicks on the first article; MIND's dev: 0.09 to 0.12
NEWS, CANDIDATES = 400, 10
USERS = 0.75  # users an impression, before some come twice
LIKING = 0.7  # standard deviation of what a method thinks of an article, where the rest has 1
RESAMPLES = 300

Ends = tuple[float, float]
Ways = dict[str, Callable[[Shares, np.random.Generator], Ends]]


def day(n: int, share: float, exposure: float, rng: np.random.Generator) -> list[Shares]:
    """Return the AUC of two methods in `n` impressions of one day."""
    weights = rng.lognormal(0, 1.2, NEWS)
    weights = np.minimum(weights / weights.sum(), share)
    weights[0] = share / (1 - share) * weights[1:].sum()
    weights /= weights.sum()
    clicked = rng.choice(NEWS, n, p=weights)
    shown = weights**exposure / np.sum(weights**exposure)
    others = rng.choice(NEWS, (n, CANDIDATES - 1), p=shown)
    is_again = others == clicked[:, None]
    others[is_again] = (
        others[is_again] + rng.integers(1, NEWS, is_again.sum())
    ) % NEWS  # any but the clicked one
    news = np.column_stack([clicked, others])
    users = rng.integers(0, int(USERS * n), n)
    labels = np.tile(np.arange(CANDIDATES) == 0, n).astype(np.int8)
    offsets = np.arange(n + 1) * CANDIDATES
    common, found = rng.normal(size=news.shape), []
    for strength in (0.4, 0.6):
        liking = rng.normal(0, LIKING, NEWS)
        scores = liking[news] + np.sqrt(0.5) * (common + rng.normal(size=news.shape))
        scores[:, 0] += rng.normal(strength, 0.4, int(USERS * n) + 1)[users]  # how well it knows the user
        found.append(ranking_shares(scores.ravel(), labels, offsets, users, news.ravel())[1]["auc"])
    return found


def users_alone(one: Shares, rng: np.random.Generator) -> Ends:
    """Return the ends of the interval that is common practice: impressions of one user are alike, and no others."""
    found = ratio_intervals(one.parts[:, None], one.weights[:, None], one.users)[0]
    return found.low, found.high


def users_and_clicked(one: Shares, rng: np.random.Generator) -> Ends:
    """Return the ends of the interval for which impressions of one clicked article are alike too, and non-clicks nothing."""
    clicks = one.weights > 0
    values = np.bincount(one.owner, weights=one.parts)
    found = mean_interval(values, one.users[clicks], one.news[clicks])
    return found.low, found.high


def users_and_news(one: Shares, rng: np.random.Generator) -> Ends:
    """Return the ends of the interval that this project prints."""
    found = ratio_intervals(one.parts[:, None], one.weights[:, None], one.users, one.news)[0]
    return found.low, found.high


def pigeonhole(one: Shares, rng: np.random.Generator) -> Ends:
    """Return the ends of Owen's pigeonhole bootstrap (Annals of Applied Statistics 1, 2007): users times clicked news."""
    clicks = one.weights > 0
    values, means = np.bincount(one.owner, weights=one.parts), np.empty(RESAMPLES)
    numbers = [np.unique(labels[clicks], return_inverse=True)[1] for labels in (one.users, one.news)]
    for k in range(RESAMPLES):
        weight = np.ones(len(values))
        for number in numbers:
            size = number.max() + 1
            weight *= np.bincount(rng.integers(0, size, size), minlength=size)[number]
        means[k] = np.average(values, weights=weight)
    low, high = np.percentile(means, [2.5, 97.5])
    return low, high


FAST: Ways = {"users": users_alone, "users and news": users_and_news}
ALL: Ways = FAST | {"users and clicked news": users_and_clicked, "pigeonhole bootstrap": pigeonhole}


def study(
    sizes: Sequence[int],
    shares: Sequence[float],
    exposures: Sequence[float],
    n_sets: int,
    n_truth: int,
    ways: Ways = FAST,
    seed: int = 0,
) -> list[dict]:
    """Return a row for each case: by way, the share of intervals that ``held`` the truth and their ``half`` width.

    Each of `n_sets` days has two intervals, of a method's AUC and of the difference between two. The truth is the mean of
    `n_truth` further days of 1,000 impressions.
    """
    rows = []
    for share, exposure in product(shares, exposures):
        rng = np.random.default_rng([seed, int(1000 * share), int(10 * exposure)])
        days = ([one.parts.sum() / 1000 for one in day(1000, share, exposure, rng)] for _ in range(n_truth))
        first, second = np.mean(list(days), axis=0)
        truths = first, second - first
        for size in sizes:
            found = {name: [] for name in ways}
            for _ in tqdm(range(n_sets), desc=f"{size} impressions, {share:.0%}", disable=None):
                one, other = day(size, share, exposure, rng)
                difference = replace(other, parts=other.parts - one.parts)
                for shares_of, truth in zip((one, difference), truths, strict=True):
                    for name, way in ways.items():
                        low, high = way(shares_of, rng)
                        found[name].append((low <= truth <= high, (high - low) / 2))
            row = {"impressions": size, "share": share, "exposure": exposure, "sets": n_sets}
            for name, values in found.items():
                held, half = np.mean(values, axis=0)
                row[name] = {"held": round(float(held), 4), "half": round(float(half), 4)}
            rows.append(row)
    return rows


def table(rows: Sequence[dict], ways: Sequence[str]) -> str:
    """Return the rows as a Markdown table: how many of 100 intervals hold the truth, and how wide they are."""
    lines = [
        f"| impressions | clicks on the first article | exposure | {' | '.join(ways)} |",
        f"|--:|--:|--:|{'--:|' * len(ways)}",
    ]
    for row in rows:
        cells = [f"{row[way]['held']:.1%} ±{row[way]['half']:.3f}" for way in ways]
        head = f"{row['impressions']:,} | {row['share']:.0%} | {row['exposure']:g}"
        lines.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the study, keep it, and put its table into the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--sets", type=int, default=500, help="days of each case (default 500)")
    args = parser.parse_args()
    rows = study(SIZES, SHARES, EXPOSURES, args.sets, 4 * args.sets, ALL)
    write("coverage", [], sets=args.sets, cases=rows)
    put(PAGE, Path("benchmarks/results/coverage"), table(rows, list(ALL)))
    print(table(rows, list(ALL)))
    print(PAGE)


if __name__ == "__main__":
    cli.run(main)
