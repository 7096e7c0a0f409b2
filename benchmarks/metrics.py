"""Time the metrics against the official script's way: one impression after the other, with scikit-learn.

Both measure the same scores of MINDsmall's dev size (73,152 impressions), in turn (A B A B ...). The loop is what
evaluate.py of github.com/msnews/MIND does: roc_auc_score, and NumPy for MRR and nDCG, on each impression. Then our side
alone measures MINDlarge's dev size, and the intervals are timed on both.

Examples:
  python -m benchmarks.metrics
  python -m benchmarks.metrics --impressions 5000 --rounds 5
"""

import time

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.common import row, write
from mindlab.common import cli
from mindlab.common.manifest import peak_memory_mb, reset_peak_memory
from mindlab.evaluation.metrics import RANKING_METRICS, ranking_metrics, ranking_shares

MINDSMALL_DEV = 73_152
MINDLARGE_DEV = 376_471


def dcg(labels: np.ndarray, scores: np.ndarray, k: int) -> float:
    """Return DCG@k, as the official script has it."""
    shown = labels[np.argsort(scores)[::-1]][:k]
    return float(np.sum((2**shown - 1) / np.log2(np.arange(len(shown)) + 2)))


def official(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float, float]:
    """Return AUC, MRR, nDCG@5 and nDCG@10 of one impression."""
    ranked = labels[np.argsort(scores)[::-1]]
    mrr = float(np.sum(ranked / (np.arange(len(ranked)) + 1)) / np.sum(ranked))
    ndcg = (dcg(labels, scores, k) / dcg(labels, labels, k) for k in (5, 10))
    return float(roc_auc_score(labels, scores)), mrr, *ndcg


def make_case(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, labels and offsets of `n` impressions of MIND's sizes.

    37 candidates in the mean, 24 in the median; 1.5 clicks in the mean, one alone in 72 of 100.
    """
    sizes = np.clip(np.round(rng.lognormal(np.log(24), 0.95, n)), 2, 300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    clicks = np.minimum(rng.geometric(0.72, n), sizes - 1)
    owner = np.repeat(np.arange(n), sizes)
    by_chance = np.lexsort((rng.random(offsets[-1]), owner))  # within each impression
    labels = np.zeros(offsets[-1], np.int8)
    labels[by_chance] = np.arange(offsets[-1]) - offsets[:-1][owner] < clicks[owner]
    return rng.permutation(offsets[-1]).astype(np.float64), labels, offsets


def main() -> None:
    """Run the rounds and print the comparison."""
    parser = cli.parser(__doc__)
    parser.add_argument("--impressions", type=int, default=MINDSMALL_DEV)
    parser.add_argument("--large", type=int, default=MINDLARGE_DEV, help="impressions of the large size")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scores, labels, offsets = make_case(args.impressions, rng)
    parts = list(zip(np.split(labels, offsets[1:-1]), np.split(scores, offsets[1:-1]), strict=True))
    ratios, mine, theirs, peaks, ours = [], [], [], [], {}
    for _ in tqdm(range(args.rounds), unit=" rounds"):
        reset_peak_memory()
        before = peak_memory_mb()
        begin = time.perf_counter()
        ours = ranking_metrics(scores, labels, offsets)
        middle = time.perf_counter()
        peaks.append(peak_memory_mb() - before)
        loop = np.array([official(*part) for part in parts])
        end = time.perf_counter()
        mine.append(middle - begin)
        theirs.append(end - middle)
        ratios.append(theirs[-1] / mine[-1])
    worst = max(float(np.abs(ours[name] - loop[:, k]).max()) for k, name in enumerate(RANKING_METRICS))
    if worst > 1e-9:
        raise SystemExit(f"the two differ by {worst:.1e}")
    size = f"{args.impressions:,} impressions, {len(labels):,} candidates"
    metrics = row(
        "four official metrics", size, "one impression after the other, with scikit-learn", ratios, 100,
        ours=f"{np.median(mine):.3f} s", theirs=f"{np.median(theirs):.1f} s", peak_mb=max(peaks),
        note=f"largest difference {worst:.0e}; memory beside the arrays themselves",
    )  # fmt: skip
    details = {
        "interval_seconds": intervals((scores, labels, offsets), args.impressions, rng),
        "large": large(args.large, rng),
    }
    write("metrics", [metrics], **details)


def intervals(case: tuple[np.ndarray, ...], n: int, rng: np.random.Generator) -> float:
    """Return the seconds of all metrics with their intervals, three impressions to two users, 20,000 news articles."""
    users, news = rng.integers(0, max(2, n * 2 // 3), n), rng.integers(0, 20_000, len(case[0]))
    begin = time.perf_counter()
    for one in ranking_shares(*case, users, news)[1].values():
        one.interval()
    return round(time.perf_counter() - begin, 2)


def large(n: int, rng: np.random.Generator) -> dict[str, float]:
    """Return what MINDlarge's dev size takes."""
    scores, labels, offsets = make_case(n, rng)
    reset_peak_memory()
    begin = time.perf_counter()
    ranking_metrics(scores, labels, offsets)
    seconds = time.perf_counter() - begin
    return {
        "impressions": n,
        "candidates": len(labels),
        "metrics_seconds": round(seconds, 2),
        "interval_seconds": intervals((scores, labels, offsets), n, rng),
        "peak_mb": round(peak_memory_mb()),
    }


if __name__ == "__main__":
    cli.run(main)
