"""Official MIND metrics on flat arrays, with intervals over users and news (`mindlab.evaluation.intervals`).

Ranking metrics are those of ``evaluate.py`` in https://github.com/msnews/MIND, per impression and then
the plain mean over impressions. One rule differs, for ties: the script sorts with
``argsort(score)[::-1]``, so that of two equal scores the later position wins. Here a tie counts as its
**expectation over a uniformly random order of the tied candidates**, computed exactly.

`METRICS` holds what a table can show; a new metric is an entry there.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.common.errors import UserError
from mindlab.evaluation.intervals import Interval, Shares, ratio_intervals
from mindlab.evaluation.predictions import case_offsets, codes

# Pairs of a click and a candidate compared at a time: about 50 MB.
PAIRS_PER_CHUNK = 1_000_000


class ClickRanks:
    """Where each click stands among the candidates of its impression, ties as they are.

    A metric asks for the ranks of the clicks alone, one candidate in twenty, so nothing is sorted: each click is
    compared with the candidates of its impression. That is quadratic only in an impression where most are clicks;
    MIND's longest has 299 candidates.

    A click that `above` candidates beat and `tied` have the score of (itself among them) is at each of the ranks
    ``above + 1 .. above + tied`` with equal probability: the expectation over random orders of the tied.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> None:
        scores = np.asarray(scores, dtype=np.float64)
        labels = np.asarray(labels)
        offsets = np.asarray(offsets, dtype=np.int64)
        if scores.shape != labels.shape or scores.ndim != 1 or offsets[-1] != len(scores):
            raise ValueError(f"scores {scores.shape}, labels {labels.shape}, {offsets[-1]} candidates")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        self.is_click = labels == 1
        if not (self.is_click | (labels == 0)).all():
            raise ValueError("labels must be 0 or 1")
        self.scores, self.offsets = scores, offsets
        self.case_size = np.diff(offsets)
        self.n = len(self.case_size)
        self.largest = int(self.case_size.max(initial=0))
        self.clicks = np.flatnonzero(self.is_click)
        self.case = np.searchsorted(offsets, self.clicks, side="right") - 1
        self.case_clicks = np.bincount(self.case, minlength=self.n)
        self.above, self.tied, self.others_above, self.others_tied = np.zeros((4, len(self.clicks)), np.int64)
        for some, sizes, other in self._pairs():
            starts = np.cumsum(sizes) - sizes
            theirs, mine = scores[other], np.repeat(scores[self.clicks[some]], sizes)
            is_above, is_tied, is_other = theirs > mine, theirs == mine, ~self.is_click[other]
            for name, mask in (
                ("above", is_above),
                ("tied", is_tied),
                ("others_above", is_above & is_other),
                ("others_tied", is_tied & is_other),
            ):
                getattr(self, name)[some] = np.add.reduceat(mask, starts, dtype=np.int64)

    @property
    def clicks_beside(self) -> np.ndarray:
        """How many clicks the impression of each click has, int (n_clicks,)."""
        return self.case_clicks[self.case]

    def _pairs(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield, for some clicks at a time: which, the size of each one's impression, all candidates of these."""
        ends = np.cumsum(self.case_size[self.case])
        first = 0
        while first < len(self.clicks):
            start = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + PAIRS_PER_CHUNK, side="right")))
            some = slice(first, last)
            sizes = self.case_size[self.case[some]]
            starts = np.cumsum(sizes) - sizes
            shift = self.offsets[self.case[some]] - starts
            yield some, sizes, np.arange(sizes.sum()) + np.repeat(shift, sizes)
            first = last

    def expected(self, worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return per click the expectation of ``worth[rank - 1]``, and what one candidate fewer above it would add."""
        prefix = np.concatenate([[0.0], np.cumsum(worth)])
        rank = self.above + (self.tied + 1) / 2
        less, here = (
            np.interp(np.maximum(r, 1.0), np.arange(1, len(worth) + 1), worth) for r in (rank - 1, rank)
        )
        return (prefix[self.above + self.tied] - prefix[self.above]) / self.tied, less - here

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return per impression the sum over its clicks of `values`, one a click; NaN without a click."""
        total = np.bincount(self.case, weights=values, minlength=self.n)
        return np.where(self.case_clicks > 0, total, np.nan)

    def parts(self, by_click: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return per candidate its part of each metric (`mindlab.evaluation.intervals.Shares`), given value and step of each click.

        A click's part is its value. A non-click above a click has cost it about `step`; its part is that, less the mean
        of the non-clicks of its impression: so the parts of non-clicks sum to 0, and an article that is passed over where
        a method likes it is charged with that.
        """
        found = {name: np.zeros(len(self.scores)) for name in by_click}
        for some, sizes, other in self._pairs():
            theirs, mine = self.scores[other], np.repeat(self.scores[self.clicks[some]], sizes)
            in_the_way = ((theirs > mine) + 0.5 * (theirs == mine)) * ~self.is_click[other]
            low, high = int(other.min()), int(other.max()) + 1
            for name, (_, steps) in by_click.items():
                cost = in_the_way * np.repeat(steps[some], sizes)
                found[name][low:high] -= np.bincount(other - low, weights=cost, minlength=high - low)
        others = self.case_size - self.case_clicks
        for name, (values, _) in by_click.items():
            parts = found[name]
            means = np.add.reduceat(parts, self.offsets[:-1]) / np.maximum(others, 1) if self.n else parts
            parts -= np.where(self.is_click, 0.0, np.repeat(means, self.case_size))
            parts[self.clicks] = values
        return found


@dataclass(frozen=True)
class FirstPlaces:
    """Which candidates stand in the first places of their impressions, ties as they are."""

    above: np.ndarray  # int (n_candidates,), candidates of the same impression with a higher score
    tied: np.ndarray  # int (n_candidates,), with the same score, itself among them
    owner: np.ndarray  # int (n_candidates,), the impression
    users: np.ndarray  # int (n_candidates,)
    news: np.ndarray  # int (n_candidates,), numbers from 0

    @classmethod
    def of(cls, scores: np.ndarray, offsets: np.ndarray, users: np.ndarray, news: np.ndarray) -> Self:
        """Return those of scores; arguments as in `ranking_shares`."""
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((-scores, owner))
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(scores[order]) != 0) | (np.diff(owner[order]) != 0)
        group = np.cumsum(is_new) - 1  # of equal scores in one impression
        above, tied = np.empty((2, len(order)), np.int64)
        above[order] = np.flatnonzero(is_new)[group] - offsets[:-1][owner[order]]
        tied[order] = np.bincount(group)[group] if len(group) else group
        return cls(above, tied, owner, np.asarray(users)[owner], np.unique(news, return_inverse=True)[1])

    def among(self, k: int) -> np.ndarray:
        """Return the probability that each candidate stands in the first `k` places, over random orders of the tied."""
        return np.clip((k - self.above) / self.tied, 0.0, 1.0)


Listed = tuple[float, float, float]  # value and the ends of its interval, NaN for none
ByClick = tuple[np.ndarray, np.ndarray]  # per click its value, and what one rank is worth there


@dataclass(frozen=True)
class Metric:
    """A number of the leaderboard; higher is better.

    Ranking metrics are computed from ranks: `by_click` gives for each click its value, whose sum over the clicks of an
    impression is the impression's, and what one rank is worth there. Without it the metric is one of the answers.
    """

    name: str  # in files
    label: str  # in tables
    by_click: Callable[[ClickRanks], ByClick] | None = None
    of: str = "score"  # what is ranked: the score, or a part of it (`taken_apart`)
    chance: float | None = None  # of a random order, where that is the same for all impressions
    of_lists: Callable[[FirstPlaces], Listed] | None = (
        None  # of what stands in the first places, clicked or not
    )


def _auc(ranks: ClickRanks) -> ByClick:
    clicks, others = ranks.clicks_beside, (ranks.case_size - ranks.case_clicks)[ranks.case]
    with np.errstate(divide="ignore", invalid="ignore"):
        wins = (others - ranks.others_above - 0.5 * ranks.others_tied) / (clicks * others)
        return wins, 1.0 / (clicks * others)


def _ndcg(ranks: ClickRanks, k: int) -> ByClick:
    rank = np.arange(1, ranks.largest + 1)
    discount = np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[ranks.clicks_beside]
    value, step = ranks.expected(discount)
    return value / ideal, step / ideal


def _mean_worth(ranks: ClickRanks, worth: Callable[[np.ndarray], np.ndarray]) -> ByClick:
    """Return the mean over an impression's clicks of what their ranks are worth."""
    value, step = ranks.expected(worth(np.arange(1, ranks.largest + 1)))
    return value / ranks.clicks_beside, step / ranks.clicks_beside


def _mrr(ranks: ClickRanks, k: float = np.inf) -> ByClick:
    return _mean_worth(ranks, lambda rank: np.where(rank <= k, 1.0 / rank, 0.0))


def _recall(ranks: ClickRanks, k: int) -> ByClick:
    return _mean_worth(ranks, lambda rank: np.where(rank <= k, 1.0, 0.0))


def _coverage(places: FirstPlaces, k: int) -> Listed:
    """Return which share of all different candidates stands in the first `k` places of some impression."""
    never = np.zeros(places.news.max() + 1)
    with np.errstate(divide="ignore"):
        np.add.at(never, places.news, np.log1p(-places.among(k)))
    return float(1 - np.exp(never).mean()), np.nan, np.nan


def _novelty(places: FirstPlaces, k: int) -> Listed:
    """Return the mean of -log2(share of impressions that show it) over what stands in the first `k` places.

    Source: Vargas and Castells, Rank and Relevance in Novelty and Diversity Metrics (RecSys 2011), with showing for
    clicking.
    """
    n = places.owner.max() + 1
    rarity = -np.log2(np.bincount(places.news) / n)[places.news]
    weights = places.among(k)
    weights = weights / np.bincount(places.owner, weights=weights)[places.owner]
    found = Shares(weights * rarity, weights, places.owner, places.users, places.news).interval(most=np.inf)
    return found.mean, found.low, found.high


def at(k: int) -> tuple[Metric, Metric]:
    """Return Recall@K and MRR@K (`sampled_metrics`)."""
    return (
        Metric(f"recall{k}", f"Recall@{k}", partial(_recall, k=k)),
        Metric(f"mrr{k}", f"MRR@{k}", partial(_mrr, k=k)),
    )


CUTOFFS = (3, 5, 10)
# In the order of the tables' columns.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("auc", "AUC", _auc, chance=0.5),
        Metric("auc_appeal", "appeal", _auc, of="appeal", chance=0.5),
        Metric("auc_personal", "personal", _auc, of="personal", chance=0.5),
        Metric("mrr", "MRR", _mrr),
        Metric("ndcg5", "nDCG@5", partial(_ndcg, k=5)),
        Metric("ndcg10", "nDCG@10", partial(_ndcg, k=10)),
        *(at(k)[0] for k in CUTOFFS),
        *(at(k)[1] for k in CUTOFFS),
        Metric("coverage10", "coverage@10", of_lists=partial(_coverage, k=10)),
        Metric("novelty10", "novelty@10", of_lists=partial(_novelty, k=10)),
        Metric("accuracy", "accuracy"),
    )
}
RANKING_METRICS = ("auc", "mrr", "ndcg5", "ndcg10")
PART_METRICS = tuple(name for name, metric in METRICS.items() if metric.of != "score")
SAMPLED_METRICS = tuple(metric.name for metrics in zip(*map(at, CUTOFFS), strict=True) for metric in metrics)
ANSWER_METRICS = ("accuracy", "precision", "recall", "f1")
LIST_METRICS = tuple(name for name, metric in METRICS.items() if metric.of_lists)
USUAL = (*RANKING_METRICS, *PART_METRICS)


def ranking_metrics(scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Return AUC, MRR, nDCG@5 and nDCG@10 of each impression, as ``auc``, ``mrr``, ``ndcg5``, ``ndcg10``.

    Source: ``scoring`` of evaluate.py in github.com/msnews/MIND. For an impression with labels y_i at
    ranks r_i:

    - AUC: share of (click, non-click) pairs in the right order, a tie counting 1/2 (``roc_auc_score``);
    - MRR: sum(y_i / r_i) / sum(y_i), over **all** clicks and not the first alone (``mrr_score``);
    - nDCG@k: sum over r_i <= k of (2^y_i - 1) / log2(r_i + 1), divided by the same sum for the order by
      label (``ndcg_score``).

    For MRR and nDCG a tie counts as its expectation over random orders (module docstring).

    Args:
        scores: float (n_candidates,), higher ranks first.
        labels: 0 or 1 (n_candidates,).
        offsets: int (n_impressions + 1,); impression i is the slice offsets[i]:offsets[i + 1].

    Returns:
        float64 (n_impressions,) each. AUC is NaN without both a click and a non-click, MRR and nDCG are
        NaN without a click. (Released MIND has neither.)

    Raises:
        ValueError: if shapes disagree, a score is not finite, or a label is neither 0 nor 1.

    >>> found = ranking_metrics(np.array([9.0, 8.0, 1.0]), np.array([1, 1, 0]), np.array([0, 3]))
    >>> {name: round(float(value[0]), 3) for name, value in found.items()}
    {'auc': 1.0, 'mrr': 0.75, 'ndcg5': 1.0, 'ndcg10': 1.0}
    """
    ranks = ClickRanks(scores, labels, offsets)
    return {name: ranks.sum(METRICS[name].by_click(ranks)[0]) for name in RANKING_METRICS}


def sampled_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    offsets: np.ndarray,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, np.ndarray]:
    """Return Recall@K and MRR@K of each case, as ``recall3``, ``mrr3`` and so on.

    Source: LLM-TRSR (arXiv 2403.13325), whose cases have one target: Recall@K is 1 if the
    target's rank r is at most K, MRR@K is then 1 / r, else 0. With several targets both are means over
    them. Ties count as the expectation over random orders. NaN for a case without a target.

    >>> found = sampled_metrics(np.array([2.0, 1.0]), np.array([0, 1]), np.array([0, 2]), cutoffs=(1, 2))
    >>> {name: float(value[0]) for name, value in found.items()}
    {'recall1': 0.0, 'recall2': 1.0, 'mrr1': 0.0, 'mrr2': 0.5}
    """
    ranks = ClickRanks(scores, labels, offsets)
    wanted = [metric for metrics in zip(*map(at, cutoffs), strict=True) for metric in metrics]
    return {metric.name: ranks.sum(metric.by_click(ranks)[0]) for metric in wanted}


def ranking_shares(
    scores: np.ndarray,
    labels: np.ndarray,
    offsets: np.ndarray,
    users: np.ndarray,
    news: np.ndarray,
    *,
    metrics: Sequence[str] = USUAL,
) -> tuple[dict[str, np.ndarray], dict[str, Shares]]:
    """Return ranking metrics of each impression, and each taken apart by candidate, for intervals.

    Arguments as in `ranking_metrics`; `users` are int (n_impressions,), `news` int (n_candidates,), `metrics` names of
    `METRICS`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    wanted = [METRICS[name] for name in metrics]
    ranked = {"score": scores}
    if any(metric.of != "score" for metric in wanted):
        ranked |= zip(("appeal", "personal"), taken_apart(scores, news), strict=True)
    values: dict[str, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    for part in dict.fromkeys(metric.of for metric in wanted):
        ranks = ClickRanks(ranked[part], labels, offsets)
        by_click = {metric.name: metric.by_click(ranks) for metric in wanted if metric.of == part}
        values |= {name: ranks.sum(value) for name, (value, _) in by_click.items()}
        parts |= ranks.parts(by_click)
    owner = np.repeat(np.arange(ranks.n), ranks.case_size)
    weights = np.where(ranks.is_click, 1.0, 0.0)
    weights[ranks.clicks] /= ranks.clicks_beside
    shares = {}
    for name in metrics:
        is_defined = ~np.isnan(values[name])[owner]
        numbers = np.where(is_defined, parts[name], 0.0), np.where(is_defined, weights, 0.0)
        shares[name] = Shares(*numbers, owner, np.asarray(users)[owner], news)
    return values, shares


def taken_apart(scores: np.ndarray, news: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what scores say of a news article for anybody, and what they say beside that, float64 (n,) each.

    The first is a news article's mean score over all impressions that show it, the second the score minus that mean:
    AUC of the first is a method's appeal, AUC of the second what is personal in it. Digits beyond the tenth are cut off,
    so that equal scores stay ties.

    Args:
        scores: float (n,), one a candidate.
        news: int (n,), the candidate's news.

    >>> [part.tolist() for part in taken_apart(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 7]))]
    [[2.0, 2.0, 5.0], [-1.0, 1.0, 0.0]]
    """
    number = np.unique(news, return_inverse=True)[1]
    means = np.bincount(number, weights=scores) / np.bincount(number)
    largest = float(np.abs(scores).max(initial=0.0)) or 1.0
    decimals = 10 - int(np.ceil(np.log10(largest)))
    appeal = np.round(means, decimals)[number]
    return appeal, np.round(scores - means[number], decimals) + 0.0  # no -0.0


def answer_metrics(
    answers_positive: np.ndarray,
    labels: np.ndarray,
    users: np.ndarray | None = None,
    news: np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return accuracy, precision, recall, F1 and the four counts of Yes/No answers.

    accuracy = (TP + TN) / n, precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP +
    FP + FN), with Yes as the positive class (as in scikit-learn's metrics). A ratio without a
    denominator is None. ``always_no_accuracy``, the share of negatives, belongs beside the accuracy.

    Args:
        answers_positive: bool (n,), True for Yes.
        labels: 0 or 1 (n,).
        users: (n,) labels; with them every ratio gets ``_low`` and ``_high`` (`mindlab.evaluation.intervals`).
        news: (n,) labels of the news asked about; None for intervals over users alone.
        level: coverage of the intervals.

    >>> found = answer_metrics(np.array([True, False, False]), np.array([1, 1, 0]))
    >>> found["precision"], found["recall"], found["fn"], round(found["always_no_accuracy"], 3)
    (1.0, 0.5, 1, 0.333)
    """
    yes, click = np.asarray(answers_positive, dtype=bool), np.asarray(labels) == 1
    if yes.shape != click.shape:
        raise ValueError(f"{yes.shape} answers for {click.shape} labels")
    cells = {"tp": yes & click, "fp": yes & ~click, "fn": ~yes & click, "tn": ~yes & ~click}
    result: dict[str, Any] = {"n": len(yes)} | {name: int(cell.sum()) for name, cell in cells.items()}
    tp, fp, fn, tn = (cell.astype(np.float64) for cell in cells.values())
    ratios = {
        "accuracy": (tp + tn, np.ones(len(yes))),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
    }
    for name, (numerator, denominator) in ratios.items():
        total = float(denominator.sum())
        result[name] = float(numerator.sum()) / total if total else None
    result["always_no_accuracy"] = float(np.mean(~click)) if len(click) else None
    if users is not None and len(yes):
        numerators = np.column_stack([numerator for numerator, _ in ratios.values()])
        denominators = np.column_stack([denominator for _, denominator in ratios.values()])
        intervals = ratio_intervals(numerators, denominators, users, news, level=level)
        for name, interval in zip(ratios, intervals, strict=True):
            result[f"{name}_low"] = _or_none(max(interval.low, 0.0))
            result[f"{name}_high"] = _or_none(min(interval.high, 1.0))
    return result


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: the summary for metrics.json and the values it is the mean of."""

    summary: dict[str, Any]
    values: dict[str, np.ndarray]  # per case, or per row for accuracy
    shares: dict[str, Shares]  # the same taken apart by candidate; compare these in pairs


def evaluate(frame: pa.Table, metrics: Sequence[str] = USUAL) -> Evaluation:
    """Measure a predictions table of one split: every number of `metrics` and of answers that its columns allow.

    Ranking metrics need cases with two candidates or more; ``auc_appeal`` and ``auc_personal`` are the AUC of the two
    parts of the scores (`taken_apart`). Answer metrics need the column `answer`, or
    one candidate in every case (then score > 0 means Yes). An answer is Yes or No by its first word,
    in any case; any other answer is counted in ``invalid_answers`` and taken as wrong. Unlabelled cases are left out and
    counted, as the official script skips masked impressions.

    Returns:
        An Evaluation; in its summary a metric that does not apply is None, each has ``_low`` and
        ``_high`` (95 %, over users, or cases where users are unknown, and clicked news; of answers, over the news asked
        about), and ``subset_sha`` is
        equal for two tables exactly if they score the same labelled candidates.

    Raises:
        UserError: if the table holds several splits, or no label.
    """
    splits = codes(frame["split"])[1]
    if len(splits) > 1:
        raise UserError(f"predictions hold the splits {', '.join(splits)}; name one with --split")
    n_unlabelled = int(np.sum(frame["label"].is_null().to_numpy()[case_offsets(frame)[:-1]]))
    frame = frame.filter(frame["label"].is_valid())
    if not len(frame):
        raise UserError("predictions hold no label, so there is nothing to measure (a test split?)")

    offsets = case_offsets(frame)
    sizes = np.diff(offsets)
    users, known = codes(frame["user_id"].combine_chunks().take(pa.array(offsets[:-1])))
    is_unknown = users < 0
    users = np.where(is_unknown, len(known) + np.arange(len(users)), users)
    labels = frame["label"].to_numpy()
    scores = frame["score"].to_numpy()
    news, _ = codes(frame["news_id"])
    summary: dict[str, Any] = {
        "split": splits[0],
        "n_impressions": len(sizes),
        "n_candidates": len(frame),
        "n_clicks": int(labels.sum()),
        "n_users": len(known) if not is_unknown.any() else None,
        "n_unlabelled": n_unlabelled,
        "clustered_by": "impression" if is_unknown.any() else "user",
        "subset_sha": subset_sha(frame),
    }
    values: dict[str, np.ndarray] = {}
    shares: dict[str, Shares] = {}

    is_ranking = sizes > 1
    wanted = [name for name in metrics if METRICS[name].by_click]
    if is_ranking.any():
        rows = np.repeat(is_ranking, sizes)
        kept = np.concatenate([[0], np.cumsum(sizes[is_ranking])])
        case = scores[rows], labels[rows], kept, users[is_ranking], news[rows]
        values, shares = ranking_shares(*case, metrics=wanted)
    summary["n_ranked"] = int(is_ranking.sum())
    summary["auc_undefined"] = int(np.isnan(values["auc"]).sum()) if "auc" in values else None
    for name in wanted:
        summary |= _with_ends(name, shares[name].interval() if shares else None)
    lists = [name for name in metrics if METRICS[name].of_lists]
    places = FirstPlaces.of(case[0], *case[2:]) if lists and is_ranking.any() else None
    for name in lists:
        ends = METRICS[name].of_lists(places) if places else (np.nan,) * 3
        summary |= dict(zip((name, f"{name}_low", f"{name}_high"), map(_or_none, ends), strict=True))

    has_answers = frame["answer"].null_count < len(frame)
    names = [f"{name}{end}" for name in ANSWER_METRICS for end in ("", "_low", "_high")]
    names += ["always_no_accuracy", "tp", "fp", "fn", "tn", "answers_from", "n_answers", "invalid_answers"]
    summary |= dict.fromkeys(names)
    if has_answers or not is_ranking.any():
        if has_answers:
            is_yes, is_valid = _read_answers(frame["answer"])
            is_yes = np.where(is_valid, is_yes, labels == 0)
            summary |= {"answers_from": "answer", "invalid_answers": int((~is_valid).sum())}
        else:
            is_yes = scores > 0
            summary |= {"answers_from": "score > 0", "invalid_answers": 0}
        owner = np.repeat(np.arange(len(sizes)), sizes)
        found = answer_metrics(is_yes, labels, users[owner], news)
        summary["n_answers"] = found.pop("n")
        summary |= found
        values["accuracy"] = (is_yes == (labels == 1)).astype(np.float64)
        one_each = np.ones(len(labels))
        shares["accuracy"] = Shares(values["accuracy"], one_each, owner, users[owner], news)
    return Evaluation(summary, values, shares)


def evaluate_seeds(frames: Sequence[pa.Table], metrics: Sequence[str] = USUAL) -> Evaluation:
    """Measure one method that was trained several times: every impression's value is the mean over its seeds.

    So an interval covers the choice of users and news for the mean seed. ``<metric>_seed_sd`` in the summary is the
    standard deviation of the metric over the seeds, None for one. Ranking metrics alone are pooled; answers are
    those of the first seed.

    Raises:
        UserError: as `evaluate`, and if the seeds did not score the same candidates.
    """
    first, *others = [evaluate(frame, metrics) for frame in frames]
    names = [name for name in first.values if METRICS[name].by_click]
    summary = first.summary | dict.fromkeys(f"{name}_seed_sd" for name in names)
    if not others:
        return Evaluation(summary, first.values, first.shares)
    if any(other.summary["subset_sha"] != first.summary["subset_sha"] for other in others):
        raise UserError("the seeds of one method scored different impressions")
    values, shares = dict(first.values), dict(first.shares)
    for name in (name for name in metrics if METRICS[name].of_lists and summary[name] is not None):
        summary |= dict.fromkeys((f"{name}_low", f"{name}_high"))
        summary[name] = float(np.mean([one.summary[name] for one in (first, *others)]))
    for name in names:
        every = np.stack([one.values[name] for one in (first, *others)])
        values[name] = every.mean(axis=0)
        parts = np.mean([one.shares[name].parts for one in (first, *others)], axis=0)
        shares[name] = replace(first.shares[name], parts=parts)
        summary |= _with_ends(name, shares[name].interval())
        summary[f"{name}_seed_sd"] = _or_none(float(np.nanmean(every, axis=1).std(ddof=1)))
    return Evaluation(summary, values, shares)


def paired_differences(one: Evaluation, baseline: Evaluation) -> dict[str, dict[str, float | None]]:
    """Return the difference, with its interval, of every metric that both evaluations have.

    Raises:
        UserError: if the two did not score the same candidates with the same labels.
    """
    if one.summary["subset_sha"] != baseline.summary["subset_sha"]:
        sizes = " and ".join(
            f"{e.summary['n_impressions']} impressions, {e.summary['n_candidates']} candidates"
            for e in (baseline, one)
        )
        raise UserError(
            f"the runs scored different impressions ({sizes}); a difference between them would mean nothing"
        )
    result = {}
    for name in one.shares:
        if name in baseline.shares:
            found = one.shares[name].minus(baseline.shares[name])
            result[name] = {key: _or_none(getattr(found, key)) for key in ("mean", "low", "high")}
    return result


def subset_sha(frame: pa.Table) -> str:
    """Return a SHA-256 of which candidates with which labels were scored, whatever the scores."""
    digest = hashlib.sha256()
    for name in ("split", "news_id"):
        numbers, texts = codes(frame[name])
        digest.update(numbers.astype("<i8").tobytes())
        digest.update("\0".join(texts).encode())
    for name in ("case_id", "impression_id", "position"):
        digest.update(frame[name].to_numpy().astype("<i8").tobytes())
    digest.update(frame["label"].fill_null(-1).to_numpy().astype("<i1").tobytes())
    return digest.hexdigest()


def _read_answers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (is it Yes, is it Yes or No) of generated answers, by their first word."""
    is_yes, is_no = (
        pc.match_substring_regex(column, rf"^\s*{word}\b", ignore_case=True).fill_null(False).to_numpy()
        for word in ("yes", "no")
    )
    return is_yes, is_yes | is_no


def _with_ends(name: str, found: Interval | None) -> dict[str, float | None]:
    """Return a metric and the ends of its interval as a summary names them, None where it does not apply."""
    ends = {"": "mean", "_low": "low", "_high": "high"}
    return {
        f"{name}{end}": None if found is None else _or_none(getattr(found, key)) for end, key in ends.items()
    }


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
