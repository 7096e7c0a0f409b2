"""Time our scoring engine against vLLM: the same model and prompts, many impressions in bulk, prefix cache on.

vLLM is tried at each block size on a few impressions; the best one then scores all of them, and so does our
engine, in turn. Starting vLLM is told apart and counts for neither. Prompts are token ids made
beforehand. Both sides have all cores and the same dtype. The ranks of the scores must agree.

vLLM has an environment of its own (requirements-serve.txt says how to make it). Without one there is nothing to
measure: the script says so and ends well, and leaves the results of an earlier run as they are.

Examples:
  python -m benchmarks.vllm_scoring
  python -m benchmarks.vllm_scoring --impressions 8 --try-on 3 --block-sizes 32,128
  python -m benchmarks.vllm_scoring --dtype bfloat16 --formats pointwise
"""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.common import row, write
from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.manifest import peak_memory_mb
from mindlab.data.mind import Impressions, read_mind
from mindlab.llm.engine import Engine
from mindlab.llm.hf import HFEngine
from mindlab.llm.options import template_of
from mindlab.llm.score import NextClickScorer, YesNoScorer
from mindlab.llm.vllm import HOW, SERVE_PYTHON, VllmEngine
from mindlab.prompts import NextClick, Pointwise, PointwiseParts, neutral_titles
from mindlab.prompts.chat import ChatTemplate
from mindlab.tasks import limit

CUTOFF_LEN = 1024
AGREEMENT = 0.99  # Spearman's coefficient, the least that counts as the same ranking


class Prompts:
    """The prompts of impressions in one format, and what is asked of an engine about them."""

    def __init__(self, form: str, chat: ChatTemplate, titles: np.ndarray, dev: Impressions):
        """Make the token ids: one ask an impression, one line a candidate."""
        self.form, self.answers = form, None
        if form == Pointwise.name:
            scorer = YesNoScorer(None, chat)
            self.answers = scorer.answers
            self.asks = [scorer.ask(records(titles, dev, i)) for i in range(len(dev))]
        else:
            click = NextClick()
            scorer = NextClickScorer(None, chat, titles, click, click.history_length, CUTOFF_LEN)
            self.asks = [
                (scorer.prefix(dev.user_history(i).tolist()), [scorer.line(n) for n in dev.candidates(i)])
                for i in range(len(dev))
            ]

    def score(self, engine: Engine, n: int | None = None) -> tuple[list[np.ndarray], float]:
        """Return the scores of the first `n` impressions, and the seconds."""
        engine.forget()  # or it would remember the prompts of the last round
        begin = time.perf_counter()
        if self.answers:
            found = [x[:, 0] - x[:, 1] for x in engine.bulk_last_logits(self.asks[:n], self.answers)]
        else:
            found = engine.bulk_line_log_probs(self.asks[:n])
        return found, time.perf_counter() - begin

    def count(self, n: int | None = None) -> int:
        """Return the candidates of the first `n` impressions."""
        return sum(len(lines) for _, lines in self.asks[:n])


def records(titles: np.ndarray, dev: Impressions, i: int) -> list[dict[str, str]]:
    """Return the pointwise records of one impression."""
    form = Pointwise()
    history = titles[dev.user_history(i)[-form.history_length :]].tolist()
    return [form.record(PointwiseParts(history, title, False)) for title in titles[dev.candidates(i)]]


def agreement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """Return Spearman's coefficient over all candidates, and the mean and least of those within impressions."""
    within = [
        spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True) if len(a) > 2 and np.ptp(a) > 0
    ]
    return {
        "overall": float(spearmanr(np.concatenate(ours), np.concatenate(theirs)).statistic),
        "within_mean": float(np.mean(within)),
        "within_least": float(np.min(within)),
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)),
    }


def start(args: Any, block_size: int) -> VllmEngine:
    """Return vLLM at a block size, 0 its own choice."""
    settings = {"block_size": block_size} if block_size else {}
    begin = time.perf_counter()
    engine = VllmEngine(
        args.model, longest=CUTOFF_LEN, serve_python=args.serve_python, dtype=args.dtype,
        enforce_eager=not args.compile, **settings,
    )  # fmt: skip
    print(
        f"vLLM at block size {block_size or 'default'} started in {time.perf_counter() - begin:.0f} s",
        file=sys.stderr,
    )
    return engine


def main() -> int:
    """Choose a block size, run the rounds, write the rows."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--impressions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--formats", default="pointwise,next_click")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--block-sizes", default="32,64,128", help="to choose from; on a CPU multiples of 32")
    parser.add_argument("--try-on", type=int, default=6, help="impressions to choose the block size on")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model (slower to start)")
    parser.add_argument("--serve-python", default=SERVE_PYTHON)
    parser.add_argument("--name", default="vllm", help="of the file of results")
    args = parser.parse_args()
    if shutil.which(args.serve_python) is None:
        print(f"skipped, vLLM is not here ({args.serve_python}): {HOW}")
        return 0
    formats = args.formats.split(",")
    if unknown := set(formats) - {Pointwise.name, NextClick.name}:
        raise UserError(f"--formats {', '.join(sorted(unknown))}: expected pointwise, next_click or both")

    mind = read_mind(args.data)
    dev = mind.splits["dev"]
    dev = dev.take(limit(len(dev), args.impressions, seed=0))
    chat = ChatTemplate.load(args.model, template_of(args.model))
    prompts = [Prompts(form, chat, neutral_titles(mind.news), dev) for form in formats]
    ours = HFEngine(args.model, dtype=getattr(torch, args.dtype))

    sizes = [int(size) for size in args.block_sizes.split(",")]
    tried: dict[str, dict[int, float]] = {one.form: {} for one in prompts}
    startup: dict[int, float] = {}
    theirs = None
    for size in sizes:
        if theirs is not None:
            theirs.close()
        theirs = start(args, size)
        startup[size] = theirs.about()["vllm"]["startup_seconds"]
        for one in prompts:
            one.score(theirs, 1)  # the first call is slow
            if len(sizes) > 1:
                _, seconds = one.score(theirs, args.try_on)
                tried[one.form][size] = one.count(args.try_on) / seconds
                print(
                    f"{one.form}, block size {size}: {tried[one.form][size]:.1f} candidates/s",
                    file=sys.stderr,
                )
    rows, details = [], {}
    is_same = True
    for one in prompts:
        best = max(tried[one.form], key=tried[one.form].get, default=sizes[0])
        if best != size:
            theirs.close()
            theirs, size = start(args, best), best
            one.score(theirs, 1)
        one.score(ours, 1)
        pairs = []
        for number in range(args.rounds):
            our_scores, our_seconds = one.score(ours)
            their_scores, their_seconds = one.score(theirs)
            pairs.append((our_seconds, their_seconds))
            print(
                f"{one.form}, round {number + 1}: ours {our_seconds:.1f} s, vLLM {their_seconds:.1f} s",
                file=sys.stderr,
            )
        found = agreement(our_scores, their_scores)
        is_same &= min(found["overall"], found["within_mean"]) >= AGREEMENT
        ours_s, theirs_s = np.median(pairs, axis=0)
        n = one.count()
        version = theirs.about()["vllm"]["vllm"]
        rows.append(
            row(
                f"score `{one.form}`",
                f"{args.impressions} impressions, {n:,} candidates",
                f"vLLM {version}, prefix cache on, block size {best or 'default'}, {args.dtype} on both sides",
                [b / a for a, b in pairs],
                3.0 if one.form == Pointwise.name else None,
                ours=f"{n / ours_s:.1f} candidates/s",
                theirs=f"{n / theirs_s:.1f} candidates/s",
                peak_mb=peak_memory_mb(),
                other_peak_mb=theirs.worker_peak_mb,
                note=f"Spearman of the scores {found['overall']:.4f}, within impressions {found['within_mean']:.4f} "
                f"(least {found['within_least']:.4f}); vLLM's start, {startup[best]:.0f} s, not counted",
            )
        )  # fmt: skip
        details[one.form] = {"candidates_per_second_by_block_size": tried[one.form], "agreement": found}
    write(
        args.name, rows, formats=details, startup_seconds=startup, threads=torch.get_num_threads(),
        is_compiled=args.compile, dtype=args.dtype,
    )  # fmt: skip
    if not is_same:
        print(f"the scores do not agree in rank: a coefficient is below {AGREEMENT}", file=sys.stderr)
    return 0 if is_same else 1


if __name__ == "__main__":
    cli.run(main)
