"""Official MIND metrics on flat arrays, with intervals that respect users.

Ranking metrics are those of ``evaluate.py`` in https://github.com/msnews/MIND, per impression and then
the plain mean over impressions. One rule differs, for ties: the script sorts with
``argsort(score)[::-1]``, so that of two equal scores the later position wins. Here a tie counts as its
**expectation over a uniformly random order of the tied candidates**, computed exactly.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.errors import UserError
from mindlab.predictions import case_offsets, codes

RANKING_METRICS = ("auc", "mrr", "ndcg5", "ndcg10")
ANSWER_METRICS = ("accuracy", "precision", "recall", "f1")
SAMPLED_CUTOFFS = (3, 5, 10)
SAMPLED_METRICS = tuple(f"{name}{k}" for name in ("recall", "mrr") for k in SAMPLED_CUTOFFS)
# With fewer readers than this a percentile interval of 95 % is too narrow to go without a word.
FEW_CLUSTERS = 30
# Resampling draws this many cluster numbers at a time: about 64 MB.
DRAWS_PER_CHUNK = 4_000_000
# Pairs of a click and a candidate compared at a time: about 50 MB.
PAIRS_PER_CHUNK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval; NaN where it is undefined."""

    mean: float
    low: float
    high: float
    n: int  # values that are not NaN
    n_clusters: int  # clusters that hold them


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
        is_click = labels == 1
        if not (is_click | (labels == 0)).all():
            raise ValueError("labels must be 0 or 1")
        self.case_size = np.diff(offsets)
        self.n = len(self.case_size)
        self.largest = int(self.case_size.max(initial=0))
        clicks = np.flatnonzero(is_click)
        self.case = np.searchsorted(offsets, clicks, side="right") - 1
        self.case_clicks = np.bincount(self.case, minlength=self.n)
        self.above, self.tied, self.others_above, self.others_tied = np.zeros((4, len(clicks)), np.int64)
        ends = np.cumsum(self.case_size[self.case])
        first = 0
        while first < len(clicks):
            start = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + PAIRS_PER_CHUNK, side="right")))
            some = slice(first, last)
            sizes = self.case_size[self.case[some]]
            starts = np.cumsum(sizes) - sizes
            shift = offsets[self.case[some]] - starts
            other = np.arange(sizes.sum()) + np.repeat(shift, sizes)
            theirs, mine = scores[other], np.repeat(scores[clicks[some]], sizes)
            is_above, is_tied, is_other = theirs > mine, theirs == mine, ~is_click[other]
            for name, mask in (
                ("above", is_above),
                ("tied", is_tied),
                ("others_above", is_above & is_other),
                ("others_tied", is_tied & is_other),
            ):
                getattr(self, name)[some] = np.add.reduceat(mask, starts, dtype=np.int64)
            first = last

    def expected_sum(self, worth: np.ndarray) -> np.ndarray:
        """Return per impression the expected sum over its clicks of ``worth[rank - 1]``."""
        prefix = np.concatenate([[0.0], np.cumsum(worth)])
        return self.sum((prefix[self.above + self.tied] - prefix[self.above]) / self.tied)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return per impression the sum over its clicks of `values`, one a click."""
        return np.bincount(self.case, weights=values, minlength=self.n)


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
    rank = np.arange(1, ranks.largest + 1)
    clicks, others = ranks.case_clicks, ranks.case_size - ranks.case_clicks
    pairs = ranks.sum(others[ranks.case] - ranks.others_above - 0.5 * ranks.others_tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = {
            "auc": pairs / (clicks * others),
            "mrr": ranks.expected_sum(1.0 / rank) / clicks,
        }
        for k in (5, 10):
            discount = np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)
            ideal = np.concatenate([[0.0], np.cumsum(discount)])[clicks]
            result[f"ndcg{k}"] = ranks.expected_sum(discount) / ideal
    return result


def sampled_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    offsets: np.ndarray,
    cutoffs: Sequence[int] = SAMPLED_CUTOFFS,
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
    rank = np.arange(1, ranks.largest + 1)
    result = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, worth in (("recall", np.ones(len(rank))), ("mrr", 1.0 / rank)):
            for k in cutoffs:
                found = ranks.expected_sum(np.where(rank <= k, worth, 0.0))
                result[f"{name}{k}"] = found / ranks.case_clicks
    return result


def clustered_bootstrap(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the mean of `values` with a percentile interval that resamples whole clusters.

    One user's impressions are alike; drawing users, not impressions, keeps that dependence in the
    interval. Each resample draws as many clusters as there are, with replacement, and takes the mean
    over the values of the drawn ones (the cluster bootstrap; Davison & Hinkley, Bootstrap Methods
    and their Application, 1997, on hierarchical data). With fewer than `FEW_CLUSTERS` it is too narrow: an interval of
    95 % then holds the true mean less often than that (Hesterberg, What Teachers Should Know About the Bootstrap,
    2015).

    Args:
        values: float (n,); NaN means undefined and is left out.
        clusters: (n,), one label a value, such as the user.
        rng: the generator to draw from.
        n_resamples: number of resamples.
        level: coverage, 0.95 for a 95 % interval.

    Returns:
        An Interval; low and high are NaN if fewer than two clusters hold a value.

    >>> clustered_bootstrap(np.ones(4), np.array(list("aabc")), rng=np.random.default_rng(0))
    Interval(mean=1.0, low=1.0, high=1.0, n=4, n_clusters=3)
    """
    rows = clustered_intervals({"value": values}, clusters, rng=rng, n_resamples=n_resamples, level=level)
    return rows["value"]


def clustered_intervals(
    columns: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    *,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return `clustered_bootstrap` of each column, all from the same resamples."""
    values = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns.values()])
    is_defined = ~np.isnan(values)
    intervals = _ratio_intervals(
        np.where(is_defined, values, 0.0), is_defined.astype(np.float64), clusters, rng, n_resamples, level
    )
    return dict(zip(columns, intervals, strict=True))


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    clusters: np.ndarray,
    *,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the mean of ``a - b`` over the same impressions, with its interval clustered by user.

    >>> paired_difference(np.array([0.5, 0.75]), np.array([0.25, 0.5]), [1, 2], rng=np.random.default_rng(0))
    Interval(mean=0.25, low=0.25, high=0.25, n=2, n_clusters=2)
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return clustered_bootstrap(difference, clusters, rng=rng, n_resamples=n_resamples, level=level)


def answer_metrics(
    answers_positive: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    rng: np.random.Generator | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return accuracy, precision, recall, F1 and the four counts of Yes/No answers.

    accuracy = (TP + TN) / n, precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP +
    FP + FN), with Yes as the positive class (as in scikit-learn's metrics). A ratio without a
    denominator is None. ``always_no_accuracy``, the share of negatives, belongs beside the accuracy.

    Args:
        answers_positive: bool (n,), True for Yes.
        labels: 0 or 1 (n,).
        clusters: (n,) users; with them (and `rng`) every ratio gets ``_low`` and ``_high``.
        rng: the generator for the intervals.
        n_resamples: as in `clustered_bootstrap`.
        level: as in `clustered_bootstrap`.

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
    if clusters is not None and rng is not None and len(yes):
        numerators = np.column_stack([numerator for numerator, _ in ratios.values()])
        denominators = np.column_stack([denominator for _, denominator in ratios.values()])
        intervals = _ratio_intervals(numerators, denominators, clusters, rng, n_resamples, level)
        for name, interval in zip(ratios, intervals, strict=True):
            result[f"{name}_low"] = _or_none(interval.low)
            result[f"{name}_high"] = _or_none(interval.high)
    return result


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: the summary for metrics.json and the values it is the mean of."""

    summary: dict[str, Any]
    values: dict[str, np.ndarray]  # per case, or per row for accuracy; compare these in pairs
    clusters: dict[str, np.ndarray]  # of the same lengths


def evaluate(frame: pa.Table, *, rng: np.random.Generator, protocol: str | None = None) -> Evaluation:
    """Measure a predictions table of one split: every number that its columns allow.

    Ranking metrics need cases with two candidates or more. Answer metrics need the column `answer`, or
    one candidate in every case (then score > 0 means Yes). An answer is Yes or No by its first word,
    in any case; any other answer is counted in ``invalid_answers`` and taken as wrong. Protocols named
    ``sampled...`` also get Recall@K and MRR@K. Unlabelled cases are left out and counted, as the
    official script skips masked impressions.

    Returns:
        An Evaluation; in its summary a metric that does not apply is None, each has ``_low`` and
        ``_high`` (95 %, clustered by user; by case where users are unknown), and ``subset_sha`` is
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
    clusters: dict[str, np.ndarray] = {}

    is_ranking = sizes > 1
    columns: dict[str, np.ndarray] = {}
    if is_ranking.any():
        rows = np.repeat(is_ranking, sizes)
        kept = np.concatenate([[0], np.cumsum(sizes[is_ranking])])
        columns = ranking_metrics(scores[rows], labels[rows], kept)
        if (protocol or "").startswith("sampled"):
            columns |= sampled_metrics(scores[rows], labels[rows], kept)
        values |= columns
        clusters |= dict.fromkeys(columns, users[is_ranking])
    summary["n_ranked"] = int(is_ranking.sum())
    summary["auc_undefined"] = int(np.isnan(columns["auc"]).sum()) if columns else None
    intervals = clustered_intervals(columns, users[is_ranking], rng=rng) if columns else {}
    for name in (*RANKING_METRICS, *(SAMPLED_METRICS if (protocol or "").startswith("sampled") else ())):
        found = intervals.get(name)
        summary[name] = _or_none(found.mean) if found else None
        summary[f"{name}_low"] = _or_none(found.low) if found else None
        summary[f"{name}_high"] = _or_none(found.high) if found else None

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
        row_users = np.repeat(users, sizes)
        found = answer_metrics(is_yes, labels, row_users, rng=rng)
        summary["n_answers"] = found.pop("n")
        summary |= found
        values["accuracy"] = (is_yes == (labels == 1)).astype(np.float64)
        clusters["accuracy"] = row_users
    return Evaluation(summary, values, clusters)


def evaluate_seeds(
    frames: Sequence[pa.Table], *, rng: np.random.Generator, protocol: str | None = None
) -> Evaluation:
    """Measure one method that was trained several times: every impression's value is the mean over its seeds.

    So an interval covers the choice of readers for the mean seed. ``<metric>_seed_sd`` in the summary is the
    standard deviation of the metric over the seeds, None for one. Ranking metrics alone are pooled; answers are
    those of the first seed.

    Raises:
        UserError: as `evaluate`, and if the seeds did not score the same candidates.
    """
    first, *others = [evaluate(frame, rng=rng, protocol=protocol) for frame in frames]
    names = [name for name in first.values if name != "accuracy"]
    summary = first.summary | dict.fromkeys(f"{name}_seed_sd" for name in names)
    if not others:
        return Evaluation(summary, first.values, first.clusters)
    if any(other.summary["subset_sha"] != first.summary["subset_sha"] for other in others):
        raise UserError("the seeds of one method scored different impressions")
    several = {name: np.stack([one.values[name] for one in (first, *others)]) for name in names}
    values = first.values | {name: value.mean(axis=0) for name, value in several.items()}
    columns = {name: values[name] for name in names}
    for name, found in clustered_intervals(columns, first.clusters[names[0]], rng=rng).items():
        sd = float(np.nanmean(several[name], axis=1).std(ddof=1))
        ends = {"": found.mean, "_low": found.low, "_high": found.high, "_seed_sd": sd}
        summary |= {f"{name}{end}": _or_none(value) for end, value in ends.items()}
    return Evaluation(summary, values, first.clusters)


def paired_differences(
    one: Evaluation, baseline: Evaluation, *, rng: np.random.Generator
) -> dict[str, dict[str, float | None]]:
    """Return `paired_difference` of every metric that both evaluations have.

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
    for name in one.values:
        if name in baseline.values:
            found = paired_difference(one.values[name], baseline.values[name], one.clusters[name], rng=rng)
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


def _ratio_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    clusters: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int,
    level: float,
) -> list[Interval]:
    """Return, per column of two (n, m) arrays, sum / sum with its clustered bootstrap interval.

    Resampling clusters needs their sums only: with W the (resamples, clusters) table of how often each
    cluster was drawn, W @ sums gives every resampled sum at once.
    """
    clusters = np.asarray(clusters)
    if len(clusters) != len(numerators):
        raise ValueError(f"{len(clusters)} clusters for {len(numerators)} values")
    _, cluster = np.unique(clusters, return_inverse=True)
    m = numerators.shape[1]
    n_clusters = int(cluster.max(initial=-1)) + 1
    both = np.concatenate([numerators, denominators], axis=1)
    sums = np.column_stack([np.bincount(cluster, weights=column, minlength=n_clusters) for column in both.T])
    totals = both.sum(axis=0)
    ratios = np.full((n_resamples, m), np.nan)
    chunk = max(1, DRAWS_PER_CHUNK // max(n_clusters, 1))
    for start in range(0, n_resamples if n_clusters > 1 else 0, chunk):
        rows = min(chunk, n_resamples - start)
        draws = rng.integers(0, n_clusters, size=(rows, n_clusters))
        draws += np.arange(rows)[:, None] * n_clusters
        counts = np.bincount(draws.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters)
        drawn = counts.astype(np.float64) @ sums
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios[start : start + rows] = drawn[:, :m] / drawn[:, m:]
    tail = 50.0 * (1.0 - level)
    result = []
    for j in range(m):
        held = int(np.count_nonzero(sums[:, m + j]))
        defined = ratios[~np.isnan(ratios[:, j]), j]
        usable = held > 1 and len(defined)
        low, high = np.percentile(defined, [tail, 100.0 - tail]) if usable else (np.nan, np.nan)
        mean = totals[j] / totals[m + j] if totals[m + j] else np.nan
        n = int(np.count_nonzero(denominators[:, j]))
        result.append(Interval(float(mean), float(low), float(high), n, held))
    return result


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
