"""Time the metrics against the official script's way: one impression after the other, with scikit-learn.

Both measure the same scores of MINDsmall's dev size (73,152 impressions), in turn (A B A B ...). The loop is what
evaluate.py of github.com/msnews/MIND does: roc_auc_score, and NumPy for MRR and nDCG, on each impression. Prints the
ratio, its range over the rounds, the largest difference of a metric, and the time of the bootstrap.

Examples:
  python benchmarks/metrics.py
  python benchmarks/metrics.py --impressions 5000 --rounds 5
"""

import sys
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from mindlab import cli
from mindlab.metrics import RANKING_METRICS, clustered_intervals, ranking_metrics
from mindlab.runs import peak_memory_mb, reset_peak_memory

MINDSMALL_DEV = 73_152
RESAMPLES = 1000


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
    """Return scores, labels and offsets of `n` impressions of MIND's sizes: 37 candidates in the mean, 24 median."""
    sizes = np.clip(np.round(rng.lognormal(np.log(24), 0.95, n)), 2, 300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    labels = np.zeros(offsets[-1], np.int8)
    labels[offsets[:-1] + rng.integers(0, sizes)] = 1
    return rng.permutation(offsets[-1]).astype(np.float64), labels, offsets


def main() -> None:
    """Run the rounds and print the comparison."""
    parser = cli.parser(__doc__)
    parser.add_argument("--impressions", type=int, default=MINDSMALL_DEV)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scores, labels, offsets = make_case(args.impressions, rng)
    parts = list(zip(np.split(labels, offsets[1:-1]), np.split(scores, offsets[1:-1]), strict=True))
    ratios, peaks, ours = [], [], {}
    for number in range(args.rounds):
        reset_peak_memory()
        begin = time.perf_counter()
        ours = ranking_metrics(scores, labels, offsets)
        middle = time.perf_counter()
        peaks.append(peak_memory_mb())
        loop = np.array([official(*part) for part in parts])
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - begin))
        print(f"round {number + 1}: ours {middle - begin:.2f} s, loop {end - middle:.1f} s", file=sys.stderr)
    worst = max(float(np.abs(ours[name] - loop[:, k]).max()) for k, name in enumerate(RANKING_METRICS))
    users = rng.integers(0, max(2, args.impressions * 2 // 3), args.impressions)
    begin = time.perf_counter()
    clustered_intervals(ours, users, rng=rng, n_resamples=RESAMPLES)
    seconds = time.perf_counter() - begin
    print(f"{args.impressions:,} impressions, {len(labels):,} candidates, {args.rounds} rounds")
    print(f"loop / ours: {np.median(ratios):.0f} times (range {min(ratios):.0f} to {max(ratios):.0f})")
    print(f"largest difference of an impression's metric: {worst:.1e}; peak memory {max(peaks):.0f} MiB")
    print(f"{RESAMPLES} resamples of readers, four metrics: {seconds:.1f} s")


if __name__ == "__main__":
    cli.run(main)
