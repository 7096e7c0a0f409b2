"""Time the scoring engine against two ways of scoring with plain transformers, on whole dev impressions.

`naive` reads one whole prompt per candidate, as a chat loop does. `padded` reads batches of 16 whole prompts,
padded on the right, and computes logits only where a score is read. Both keep next_click's term without
history per news, as the engine does. In a round all sides take their turn on the same impressions: the engine
scores all of them, the slower sides runs of 16 consecutive candidates drawn from them, and candidates per second
are compared. Every score of theirs is compared with the engine's. With --options it compares the engine with
itself instead: shorter weights, other token budgets, two processes of one thread.

Examples:
  python -m benchmarks.scoring
  python -m benchmarks.scoring --impressions 40 --rounds 5 --runs 4
  python -m benchmarks.scoring --options
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.common import in_process, row, write
from mindlab.common import cli
from mindlab.common.manifest import peak_memory_mb
from mindlab.data.mind import Impressions, read_mind
from mindlab.llm.hf import HFEngine, PackedLinear
from mindlab.llm.score import Gain, NextClickScorer, YesNoScorer, n_shared
from mindlab.prompts import NextClick, Pointwise, PointwiseParts, neutral_titles
from mindlab.prompts.chat import ChatTemplate
from mindlab.tasks import limit

FORMATS = ("pointwise", "next_click")
BATCH = 16
TARGETS = {"naive": 6.0, "padded": 3.0}
OTHERS = {
    "naive": "transformers, one whole prompt per candidate, batch 1",
    "padded": f"transformers, padded batches of {BATCH} whole prompts",
}
# torch operators by what they do, for the profile.
GROUPS = {
    "linear layers, head included": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "attention products": ("aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    "softmax and activations": ("aten::exp_", "aten::amax", "aten::sum", "aten::sub", "aten::sub_", "aten::log",
                                "aten::silu", "aten::sigmoid", "aten::masked_fill_", "aten::abs", "aten::eq"),
    "norms, rotation, residuals": ("aten::mul", "aten::add", "aten::pow", "aten::rsqrt", "aten::mean", "aten::neg",
                                   "aten::div_", "aten::sqrt"),
    "copies and gathers": ("aten::index", "aten::copy_", "aten::cat", "aten::clone", "aten::embedding",
                           "aten::index_select"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One impression as token ids: every prompt is the prefix and a line."""

    prefix: list[int]
    lines: list[list[int]]
    news: list[int]


class Cases:
    """The dev impressions of a sample as token ids, in the two formats that score candidates."""

    def __init__(self, args: Namespace):
        self.mind = read_mind(args.data)
        self.dev: Impressions = self.mind.splits["dev"]
        titles = neutral_titles(self.mind.news)
        chat = ChatTemplate.load(args.model, args.template)
        form = NextClick()
        self._clicks = NextClickScorer(None, chat, titles, form, form.history_length, 4096)
        self._titles, self._form = titles, Pointwise()
        self._yes_no = YesNoScorer(None, chat)
        self.nothing, self.answers = self._clicks.nothing, self._yes_no.answers

    def of(self, form: str, rows: Sequence[int]) -> list[Case]:
        """Return the impressions `rows` in a format."""
        return [getattr(self, f"_{form}")(i) for i in rows]

    def _next_click(self, i: int) -> Case:
        news = self.dev.candidates(i).tolist()
        return Case(
            self._clicks.prefix(self.dev.user_history(i).tolist()),
            [self._clicks.line(n) for n in news],
            news,
        )

    def _pointwise(self, i: int) -> Case:
        news = self.dev.candidates(i).tolist()
        history = self._titles[self.dev.user_history(i)[-self._form.history_length :]].tolist()
        records = [self._form.record(PointwiseParts(history, self._titles[n], False)) for n in news]
        prompts = [self._yes_no.ids(record) for record in records]
        n = n_shared(prompts)
        return Case(prompts[0][:n], [prompt[n:] for prompt in prompts], news)


class Ours:
    """The engine: scores of whole impressions."""

    def __init__(self, engine: HFEngine, nothing: list[int], answers: Sequence[int]):
        self.engine, self.answers, self.nothing = engine, answers, nothing

    def score(self, form: str, cases: list[Case]) -> np.ndarray:
        """Return every candidate's score, nothing kept from an earlier call."""
        self.engine.forget()
        if form == "next_click":
            gain = Gain(self.engine, self.nothing, per_token=False)
            return np.concatenate(gain([(c.prefix, c.news, c.lines) for c in cases]))
        logits = [self.engine.last_logits(c.prefix, c.lines, self.answers) for c in cases]
        return np.concatenate(logits) @ [1.0, -1.0]


class Theirs:
    """Plain transformers: scores of candidates given as (prefix, line, news)."""

    def __init__(self, model_path: str, nothing: list[int], answers: Sequence[int], batch: int):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.nothing, self.answers, self.batch = nothing, list(answers), batch

    @torch.inference_mode()
    def score(self, form: str, candidates: list[tuple[list[int], list[int], int]]) -> np.ndarray:
        """Return every candidate's score."""
        read = self._yes_no if form == "pointwise" else self._log_probs
        scores = self._in_batches(read, [(prefix, line) for prefix, line, _ in candidates])
        if form == "next_click":
            lines = {
                news: (self.nothing, line) for prefix, line, news in candidates if prefix != self.nothing
            }
            without = dict(zip(lines, self._in_batches(read, list(lines.values())), strict=True))
            scores = [s - without.get(news, s) for s, (_, _, news) in zip(scores, candidates, strict=True)]
        return np.array(scores)

    def _in_batches(self, read: Callable, prompts: list[tuple[list[int], list[int]]]) -> list[float]:
        return [
            score for i in range(0, len(prompts), self.batch) for score in read(prompts[i : i + self.batch])
        ]

    def _hidden(self, prompts: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        rows = [torch.tensor(prefix + line) for prefix, line in prompts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        sizes = torch.tensor([len(r) for r in rows])
        # Without padding no mask, as transformers has it fastest.
        mask = (torch.arange(ids.shape[1]) < sizes[:, None]).long() if len(rows) > 1 else None
        return self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def _yes_no(self, prompts: list[tuple[list[int], list[int]]]) -> list[float]:
        hidden = self._hidden(prompts)
        last = torch.stack([hidden[i, len(p) + len(q) - 1] for i, (p, q) in enumerate(prompts)])
        logits = self.model.lm_head(last)[:, self.answers].double()
        return (logits[:, 0] - logits[:, 1]).tolist()

    def _log_probs(self, prompts: list[tuple[list[int], list[int]]]) -> list[float]:
        hidden = self._hidden(prompts)
        scores = []
        for states, (prefix, line) in zip(hidden, prompts, strict=True):
            logits = self.model.lm_head(states[len(prefix) - 1 : len(prefix) + len(line) - 1])
            log_probs = logits.log_softmax(-1).gather(1, torch.tensor(line)[:, None])
            scores.append(log_probs.double().sum().item())
        return scores


def draw(cases: list[Case], n_runs: int, rng: np.random.Generator) -> tuple[list[tuple], np.ndarray]:
    """Return `n_runs` runs of `BATCH` consecutive candidates of the impressions, and their places."""
    flat = [(c.prefix, line, news) for c in cases for line, news in zip(c.lines, c.news, strict=True)]
    starts = rng.choice(len(flat) // BATCH, size=min(n_runs, len(flat) // BATCH), replace=False) * BATCH
    places = (np.sort(starts)[:, None] + np.arange(BATCH)).ravel()
    return [flat[p] for p in places], places


def compare(args: Namespace) -> None:
    """Measure all sides, the rate of the products and the profile; write results/scoring.json."""
    load = os.getloadavg()[0]
    cases = Cases(args)
    side = cases.nothing, cases.answers
    ours = Ours(HFEngine(args.model), *side)
    theirs = {name: Theirs(args.model, *side, batch) for name, batch in (("naive", 1), ("padded", BATCH))}
    theirs["padded"].model = theirs["naive"].model
    rng = np.random.default_rng(0)
    chosen = np.random.default_rng(1).permutation(len(cases.dev))
    rates: dict[tuple[str, str], list[float]] = {}
    worst = dict.fromkeys(FORMATS, 0.0)
    sizes, tokens, whole = (dict.fromkeys(FORMATS, 0) for _ in range(3))
    for number in range(args.rounds):
        rows = np.sort(chosen[number * args.impressions : (number + 1) * args.impressions])
        rows = rows[np.argsort(cases.dev.history[rows], kind="stable")]  # as mindlab.llm.predict has them
        for form in FORMATS:
            asked = cases.of(form, rows)
            if number == 0:
                ours.score(form, asked[:1])  # what happens once, of any side, is not timed
            drawn, places = draw(asked, args.runs, rng)
            before, begin = ours.engine.tokens_read, time.perf_counter()
            scores = ours.score(form, asked)
            rates.setdefault((form, "ours"), []).append(len(scores) / (time.perf_counter() - begin))
            tokens[form] += ours.engine.tokens_read - before
            whole[form] += sum(len(c.prefix) + len(line) for c in asked for line in c.lines)
            sizes[form] += len(scores)
            for name, other in theirs.items():
                if number == 0:
                    other.score(form, drawn[:1])
                begin = time.perf_counter()
                found = other.score(form, drawn)
                rates.setdefault((form, name), []).append(len(found) / (time.perf_counter() - begin))
                worst[form] = max(worst[form], float(np.abs(found - scores[places]).max()))
            took = ", ".join(f"{name} {rates[form, name][-1]:.1f}" for name in ("ours", *theirs))
            print(f"round {number + 1}, {form}, candidates/s: {took}", file=sys.stderr)
    usage = {form: utilisation(ours, cases.of(form, rows[:4]), form) for form in FORMATS}
    peaks = {
        (form, name): in_process("scoring", *_words(args), "--job", json.dumps([form, name]))
        for form in FORMATS
        for name in ("ours", *theirs)
    }
    table = []
    for form in FORMATS:
        for name in theirs:
            ratios = np.array(rates[form, "ours"]) / rates[form, name]
            table.append(
                row(
                    f"LLM scoring, SmolLM2, `{form}`",
                    f"{args.rounds * args.impressions} dev impressions, {sizes[form]:,} candidates",
                    OTHERS[name],
                    ratios,
                    TARGETS[name],
                    ours=f"{np.median(rates[form, 'ours']):.0f} candidates/s",
                    theirs=f"{np.median(rates[form, name]):.1f} candidates/s",
                    peak_mb=peaks[form, "ours"]["peak_mb"],
                    other_peak_mb=peaks[form, name]["peak_mb"],
                    note=f"{args.rounds * args.runs * BATCH} scores equal to {worst[form]:.0e}; "
                    f"whole prompts are {whole[form] / tokens[form]:.1f} times the tokens that we read",
                )
            )
    write("scoring", table, threads=torch.get_num_threads(), load_before=round(load, 2), utilisation=usage)


def utilisation(ours: Ours, asked: list[Case], form: str) -> dict:
    """Return achieved FLOP/s of the linear layers' work over the whole time, the products' own rate, a profile.

    The rate is that of the model's own layers, alone, on as many rows as a mean pass has: packed for oneDNN as
    the engine has them, and as torch.nn.Linear has them (MKL).
    """
    flops, calls = 0, 0
    layers = [m for m in ours.engine.model.modules() if isinstance(m, PackedLinear)]

    def count(layer: PackedLinear, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal flops
        flops += 2 * output.numel() * inputs[0].shape[-1]

    def count_pass(*_: object) -> None:
        nonlocal calls
        calls += 1

    hooks = [layer.register_forward_hook(count) for layer in layers]
    hooks.append(ours.engine.model.get_decoder().register_forward_hook(count_pass))
    before = ours.engine.tokens_read
    ours.score(form, asked)
    n_tokens = ours.engine.tokens_read - before
    for hook in hooks:
        hook.remove()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        ours.score(form, asked)
        times.append(time.perf_counter() - begin)
    seconds = float(np.median(times))
    rates = product_rates(ours.engine.model, n_tokens // calls)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        ours.score(form, asked)
        profiled = 1e6 * (time.perf_counter() - begin)
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    groups = {group: sum(own.get(name, 0) for name in names) for group, names in GROUPS.items()}
    groups["other operators"] = sum(own.values()) - sum(groups.values())
    groups["outside operators (Python)"] = max(0.0, profiled - sum(own.values()))
    return {
        "candidates": sum(len(c.lines) for c in asked),
        "passes": calls,
        "tokens_per_pass": n_tokens // calls,
        "gflop": round(flops / 1e9, 1),
        "seconds": round(seconds, 3),
        "achieved_gflops": round(flops / seconds / 1e9, 1),
        **rates,
        "share_of_packed_rate": round(flops / seconds / 1e9 / rates["packed_gflops"], 3),
        "profile_percent": {name: round(100 * took / profiled, 1) for name, took in groups.items()},
    }


@torch.inference_mode()
def product_rates(model: torch.nn.Module, n_rows: int) -> dict[str, float]:
    """Return GFLOP/s of one decoder layer's products on `n_rows` rows, packed and by torch.nn.Linear, in turn."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    hidden, mlp = config.hidden_size, config.intermediate_size
    shapes = [(hidden, q), *[(hidden, kv)] * 2, (q, hidden), *[(hidden, mlp)] * 2, (mlp, hidden)]
    # Many layers, so that weights come from memory as in the model.
    plain = [torch.nn.Linear(*shape, bias=False) for _ in range(config.num_hidden_layers) for shape in shapes]
    sides = {"mkl": plain, "packed": [PackedLinear(layer, torch.float32) for layer in plain]}
    inputs = {width: torch.randn(n_rows, width) for width in {shape[0] for shape in shapes}}
    flops = 2 * n_rows * sum(a * b for a, b in shapes) * config.num_hidden_layers
    best = dict.fromkeys(sides, 0.0)
    for _ in range(4):
        for name, layers in sides.items():
            begin = time.perf_counter()
            for layer, reference in zip(layers, plain, strict=True):
                layer(inputs[reference.in_features])
            best[name] = max(best[name], flops / (time.perf_counter() - begin) / 1e9)
    return {f"{name}_gflops": round(rate, 1) for name, rate in best.items()}


def job(args: Namespace) -> None:
    """Run one side alone and print its peak memory, or its seconds, as JSON."""
    form, name, *rest = json.loads(args.job)
    cases = Cases(args)
    side = cases.nothing, cases.answers
    asked = cases.of(form, limit(len(cases.dev), 3, seed=2))
    if name in TARGETS:
        n = 2 if name == "naive" else BATCH
        flat = [(c.prefix, line, news) for c in asked for line, news in zip(c.lines, c.news, strict=True)]
        Theirs(args.model, *side, 1 if name == "naive" else BATCH).score(form, flat[:n])
        print(json.dumps({"peak_mb": round(peak_memory_mb())}))
        return
    ours = Ours(HFEngine(args.model), *side)
    if name == "ours":
        ours.score(form, asked)
        print(json.dumps({"peak_mb": round(peak_memory_mb())}))
        return
    (part, parts), threads = rest, 2 // rest[1]
    torch.set_num_threads(threads)
    mine = cases.of(form, limit(len(cases.dev), args.impressions, seed=3)[part::parts])
    ours.score(form, mine[:1])
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    begin = time.perf_counter()
    ours.score(form, mine)
    print(json.dumps({"seconds": time.perf_counter() - begin}))


def options(args: Namespace) -> None:
    """Compare the engine's options with its default, in turn; write results/scoring_options.json."""
    from scipy.stats import spearmanr

    from mindlab.evaluation.metrics import ranking_metrics

    cases = Cases(args)
    side = cases.nothing, cases.answers
    names = ("float32", "bfloat16", "int8")
    engines = {name: Ours(HFEngine(args.model, dtype=getattr(torch, name)), *side) for name in names}
    rows = limit(len(cases.dev), args.impressions, seed=3)
    labels = np.concatenate([cases.dev.candidate_labels(i) for i in rows])
    offsets = np.concatenate([[0], np.cumsum([len(cases.dev.candidates(i)) for i in rows])])
    table, budgets = [], {}
    for form in FORMATS:
        asked = cases.of(form, rows)
        scores: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for ours in engines.values():
            ours.score(form, asked[:1])
        for _ in range(args.rounds):
            for name, ours in engines.items():
                begin = time.perf_counter()
                scores[name] = ours.score(form, asked)
                seconds[name].append(time.perf_counter() - begin)
                print(f"{form}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
        auc = {name: ranking_metrics(s, labels, offsets)["auc"] for name, s in scores.items()}
        for name in names[1:]:
            change = np.abs(scores[name] - scores["float32"])
            both = [np.split(scores[kind], offsets[1:-1]) for kind in ("float32", name)]
            rho = np.mean([spearmanr(a, b).statistic for a, b in zip(*both, strict=True) if np.ptp(a) > 0])
            difference = auc[name] - auc["float32"]
            error = difference.std(ddof=1) / np.sqrt(len(rows))
            table.append(
                row(
                    f"LLM scoring, {name} weights, `{form}`",
                    f"{len(rows)} dev impressions, {offsets[-1]:,} candidates",
                    "the engine in float32",
                    np.array(seconds["float32"]) / seconds[name],
                    None,
                    ours=f"{offsets[-1] / np.median(seconds[name]):.0f} candidates/s",
                    theirs=f"{offsets[-1] / np.median(seconds['float32']):.0f} candidates/s",
                    note=f"scores of standard deviation {scores['float32'].std():.2f} change by {np.median(change):.3f}"
                    f" (median) and {change.max():.2f} (most); Spearman {rho:.3f} within impressions; AUC changes by "
                    f"{difference.mean():+.4f}, standard error {error:.4f}",
                )
            )
        engine = engines["float32"].engine
        for budget in (128, 512, 1024, 2048):
            engine._token_budget = budget
            begin = time.perf_counter()
            n = len(engines["float32"].score(form, asked[:4]))
            budgets[f"{form}, {budget}"] = round(n / (time.perf_counter() - begin), 1)
        engine._token_budget = None
    del engines
    for form in FORMATS:
        took = [[_together(args, form, parts) for parts in (1, 2)] for _ in range(args.rounds)]
        one, two = zip(*took, strict=True)
        table.append(
            row(
                f"LLM scoring, two processes of one thread, `{form}`",
                f"{len(rows)} dev impressions, {offsets[-1]:,} candidates",
                "one process of two threads",
                np.divide(one, two),
                None,
                ours=f"{offsets[-1] / np.median(two):.0f} candidates/s",
                theirs=f"{offsets[-1] / np.median(one):.0f} candidates/s",
                note="loading not counted, the slower process counts",
            )
        )
    write("scoring_options", table, candidates_per_second_by_token_budget=budgets)


def _together(args: Namespace, form: str, parts: int) -> float:
    """Return the seconds that `parts` processes with two threads in all take for the impressions."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scoring",
        *_words(args),
        "--impressions",
        str(args.impressions),
    ]
    running = [
        subprocess.Popen(
            [*command, "--job", json.dumps([form, "part", part, parts])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(parts)
    ]
    for process in running:
        process.stdout.readline()
    outputs = []
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        outputs.append(process.communicate()[0])
    return max(json.loads(output.splitlines()[-1])["seconds"] for output in outputs)


def _words(args: Namespace) -> list[str]:
    return ["--data", args.data, "--model", args.model, "--template", args.template]


def main() -> None:
    """Run the rounds and keep the results."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--template", default="smollm2")
    parser.add_argument("--impressions", type=int, default=8, help="of a round (default 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1, help="runs of 16 candidates for the slower sides")
    parser.add_argument("--options", action="store_true", help="compare the engine's own options")
    parser.add_argument("--job", help="internal: one side in a process of its own")
    args = parser.parse_args()
    if args.job:
        job(args)
    elif args.options:
        options(args)
    else:
        compare(args)


if __name__ == "__main__":
    cli.run(main)
