"""Time the scoring engine against the naive way: one whole prompt per candidate.

Both score the same impressions with the same model, in turn (A B A B ...), so that a noisy machine treats
them alike. Prints the ratio, its range over the rounds, and the largest difference of a score.

Examples:
  python benchmarks/scoring.py
  python benchmarks/scoring.py --impressions 12 --rounds 5
"""

import sys
import time

import numpy as np
import torch

from mindlab import cli
from mindlab.chat import ChatTemplate
from mindlab.llm.hf import HFEngine
from mindlab.llm.score import NextClickScorer
from mindlab.mind import read_mind
from mindlab.prompts import NextClick
from mindlab.protocols import limit
from mindlab.runs import peak_memory_mb


@torch.inference_mode()
def naive(engine: HFEngine, prefix: list[int], line: list[int]) -> float:
    """Return log P(line | prefix) from one pass over the whole prompt, with all logits."""
    logits = engine.model(torch.tensor([prefix + line])).logits[0].log_softmax(-1)
    return sum(logits[len(prefix) - 1 + i, token].item() for i, token in enumerate(line))


def main() -> None:
    """Run the rounds and print the comparison."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--template", default="smollm2")
    parser.add_argument("--impressions", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    mind = read_mind(args.data)
    dev = mind.splits["dev"]
    dev = dev.take(limit(len(dev), args.impressions, seed=0))
    engine = HFEngine(args.model)
    chat = ChatTemplate.load(args.model, args.template)
    form = NextClick()
    scorer = NextClickScorer(engine, chat, mind.news.title, form, form.history_length, 4096)
    cases = [
        (scorer.prefix(dev.reader_history(i).tolist()), [scorer.line(n) for n in dev.candidates(i).tolist()])
        for i in range(len(dev))
    ]
    ratios, worst = [], 0.0
    for number in range(args.rounds):
        begin = time.perf_counter()
        shared = [engine.line_log_probs(prefix, lines) for prefix, lines in cases]
        middle = time.perf_counter()
        whole = [np.array([naive(engine, prefix, line) for line in lines]) for prefix, lines in cases]
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - begin))
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in zip(shared, whole, strict=True)))
        print(
            f"round {number + 1}: engine {middle - begin:.1f} s, naive {end - middle:.1f} s", file=sys.stderr
        )
    n = sum(len(lines) for _, lines in cases)
    print(f"{len(dev)} impressions, {n} candidates, {args.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"naive / engine: {np.median(ratios):.2f} times (range {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest difference of a log-probability: {worst:.1e}; peak memory {peak_memory_mb():.0f} MiB")


if __name__ == "__main__":
    cli.run(main)
