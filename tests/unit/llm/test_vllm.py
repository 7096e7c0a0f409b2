"""mindlab.llm.vllm and its worker: against HFEngine with a stand-in for vLLM that computes, and with vLLM itself.

The stand-in keeps a prefix cache as vLLM does, and, as vLLM does, returns rubbish for what the cache held.
"""

import gc
import itertools
import json
import os
import shutil
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindlab.common.errors import UserError
from mindlab.common.machine import QUIET
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.predictions import read_predictions
from mindlab.llm import vllm
from mindlab.llm.hf import HFEngine
from mindlab.llm.vllm import VllmEngine, merge
from mindlab.llm.vllm_worker import MAX_TOKEN_IDS, Worker, answer_all
from mindlab.recommenders import llm
from tests.asked import ask
from tests.unit.runs.test_llm_runs import KilledError, killed_after

RUBBISH = 6.1e13


@dataclass
class SamplingParams:
    """The part of vllm.SamplingParams that the worker may use; another name is an error."""

    temperature: float
    max_tokens: int
    detokenize: bool
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_reading_prefix_cache: bool | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        assert self.temperature == 0
        assert self.prompt_logprobs in (None, 0)
        assert len(self.logprob_token_ids) <= MAX_TOKEN_IDS
        if self.skip_reading_prefix_cache is None:
            self.skip_reading_prefix_cache = self.prompt_logprobs is not None


class StandIn:
    """vllm.LLM in miniature: a Hugging Face model, one whole prompt at a time, behind a cache of whole blocks."""

    is_short = (
        False  # vLLM's newer runner leaves out what the cache held, its older one returns rubbish there
    )

    def __init__(self, model, max_model_len, block_size=16, **settings):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.limit, self.block_size, self.settings = max_model_len, block_size, settings
        self.cache, self.seen = set(), []

    def reset_prefix_cache(self):
        self.cache.clear()

    def generate(self, prompts, params, use_tqdm):
        assert use_tqdm is False
        return [self.one(p["prompt_token_ids"], wanted) for p, wanted in zip(prompts, params, strict=True)]

    @torch.inference_mode()
    def log_probs(self, ids):
        return self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)

    def one(self, prompt, wanted):
        if len(prompt) + wanted.max_tokens > self.limit:
            raise ValueError(f"The prompt (length {len(prompt)}) is too long\nsecond line")
        self.seen.append((prompt, wanted))
        blocks = [tuple(prompt[:end]) for end in range(self.block_size, len(prompt) + 1, self.block_size)]
        hits = itertools.takewhile(lambda block: block in self.cache and len(block) < len(prompt), blocks)
        n_cached = 0 if wanted.skip_reading_prefix_cache else max(map(len, hits), default=0)
        self.cache.update(blocks)
        made, shown = [], []
        while len(made) < wanted.max_tokens and not (made and made[-1] in wanted.stop_token_ids):
            last = self.log_probs([*prompt, *made])[-1]
            made.append(int(last.argmax()))
            shown.append({t: entry(last[t]) for t in (made[-1], *wanted.logprob_token_ids)})
        rows = None
        if wanted.prompt_logprobs is not None:
            values = self.log_probs(prompt)
            rows = [{prompt[i + 1]: entry(values[i, prompt[i + 1]])} for i in range(len(prompt) - 1)]
            rows[:n_cached] = [] if self.is_short else [{3: entry(RUBBISH)}] * n_cached
            rows.insert(0, None)
        return SimpleNamespace(
            num_cached_tokens=n_cached,
            prompt_logprobs=rows,
            outputs=[SimpleNamespace(token_ids=made, logprobs=shown)],
        )


def entry(value):
    return SimpleNamespace(logprob=float(value))


@pytest.fixture(scope="session")
def sharp(tiny_glm, tmp_path_factory) -> Path:
    """The tiny GLM with weights so large that a wrong token shows in every score."""
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_glm, tmp_path_factory.mktemp("sharp") / "glm")
    model = AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 15
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """Let VllmEngine talk to its worker in this process, through JSON, with the stand-in behind it."""
    made = []

    def start(self, python):
        self.inbox = deque()
        lines = iter(lambda: self.inbox.popleft() if self.inbox else "", "")

        def llm(**settings):
            made.append(StandIn(**settings))
            return made[-1]

        self.replies = answer_all(lines, llm, SamplingParams)
        self._about, self._end = {"vllm": "0"}, lambda: None
        self._send(self._settings)
        self._about |= self._reply()

    monkeypatch.setattr(VllmEngine, "_start", start)
    monkeypatch.setattr(VllmEngine, "_send", lambda self, message: self.inbox.append(json.dumps(message)))
    monkeypatch.setattr(VllmEngine, "_reply", lambda self: json.loads(json.dumps(next(self.replies))))
    return made


def some_asks(vocabulary, seed=0):
    """Asks whose prefixes end at, before and behind a block's end, with lines that begin alike or are equal."""
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.integers(vocabulary, size=n).tolist()

    asks = []
    for n in (1, 14, 15, 16, 17, 31, 32, 33, 48):
        lines = [[5, *ids(k)] for k in (0, 1, 2, 9, 17, 33)]
        lines += [[7], lines[3], [*lines[4][:12], 9, 9], [*lines[5][:16], 1], ids(3)]
        asks.append((ids(n), lines))
    # The same prefix again, and one that is another's with the beginning of a line.
    return [*asks, (asks[3][0], asks[4][1]), ([*asks[3][0], 5], [[4, 4], asks[3][1][4][1:]])]


@pytest.mark.parametrize(
    ("block_size", "is_short", "n_lines"), [(1, 0, 256), (4, 1, 5), (16, 0, 30), (16, 1, 256)]
)
def test_line_log_probs_equal_hfs_wherever_a_block_ends(sharp, monkeypatch, block_size, is_short, n_lines):
    monkeypatch.setattr(StandIn, "is_short", is_short)
    monkeypatch.setattr("mindlab.llm.vllm_worker.LINES_AT_ONCE", n_lines)
    worker = Worker(StandIn(sharp, 4096, block_size), SamplingParams)
    asks = some_asks(300)
    expected = HFEngine(sharp).bulk_line_log_probs(asks)
    for _ in range(2):  # again, with a cache that the first call filled
        del worker.llm.seen[:]
        for a, b in zip(worker.line_log_probs(asks), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)
        assert not any(wanted.skip_reading_prefix_cache for _, wanted in worker.llm.seen)
        lines = [wanted for _, wanted in worker.llm.seen if wanted.prompt_logprobs is not None]
        # Few requests beside one for each prefix and line, unless each token is a block.
        assert len(worker.llm.seen) - len(lines) < len(asks) * (3 if block_size > 4 else 30)
    assert np.std(np.concatenate(expected)) > 1


def test_lines_whose_beginning_was_cached_before_are_scored_too(sharp, monkeypatch):
    asks = some_asks(300)[:4]
    worker = Worker(StandIn(sharp, 4096, 4), SamplingParams)
    monkeypatch.setattr(worker.llm, "reset_prefix_cache", lambda: None)
    for _ in range(2):
        for a, b in zip(worker.line_log_probs(asks), HFEngine(sharp).bulk_line_log_probs(asks), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_more_first_tokens_than_vllm_takes_at_once(sharp):
    ask = ([1, 2, 3], [[t] for t in range(2 * MAX_TOKEN_IDS + 5)])
    worker = Worker(StandIn(sharp, 4096), SamplingParams)
    (found,) = worker.line_log_probs([ask])
    np.testing.assert_allclose(found, HFEngine(sharp).line_log_probs(*ask), atol=1e-3)
    assert len(worker.llm.seen) == 3


def test_tokens_read_leaves_out_what_the_cache_held(sharp):
    worker = Worker(StandIn(sharp, 4096, 4), SamplingParams)
    asks = [(list(range(8)), [[20, 21, 22], [23, 24]])]

    def read(question, *words):
        before = worker.tokens_read
        question(*words)
        return worker.tokens_read - before

    assert read(worker.last_log_probs, asks, [1, 2]) == (8 + 3) + 2
    assert read(worker.last_log_probs, asks, [1, 2]) == 3 + 2
    worker.forget()
    assert read(worker.last_log_probs, asks, [1, 2]) == (8 + 3) + 2
    # The prefix alone, then each line but its last token.
    assert read(worker.line_log_probs, asks) == 8 + 2 + 1


@pytest.mark.slow
def test_answers_equal_hfs(sharp, in_process):
    prompts = [prefix for prefix, _ in some_asks(300)]
    engines = HFEngine(sharp), VllmEngine(sharp, serve_python=sys.executable)
    free = [ids for _, ids in engines[0].bulk_answers(prompts, [], [3, 4], [1])]
    assert min(map(len, free)) >= 3
    heads = [[], free[0][:1], free[0][:2], [11, 12]]  # what one answer begins with, and what none does
    for head, stop in itertools.product(heads, ([1], [1, free[0][0]], [1, free[0][2]])):
        asked = (prompts, head, [3, 4], sorted(stop))
        for (a, ids), (b, expected) in zip(*(e.bulk_answers(*asked) for e in engines[::-1]), strict=True):
            assert ids == expected
            np.testing.assert_allclose(a[0] - a[1], b[0] - b[1], atol=1e-3)


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic MIND: 60 and 40 impressions."""
    folder = tmp_path_factory.mktemp("data")
    make_sample(folder, 60, 40, seed=2)
    return folder


@pytest.fixture
def request_of(data, sharp, glm4_chat, monkeypatch):
    monkeypatch.setattr(llm, "PART_SIZE", {"hf": 3, "vllm": 3})
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)

    def request_of(form="next_click", **options):
        protocol = "seed" if form == "likes_dislikes" else "dev"
        base = ask(str(data), protocol, form, str(sharp), "glm4", limit=7, history_length=3)
        return base.but(**options)

    return request_of


def rows_of(run):
    return read_predictions(run / "predictions.parquet").to_pylist()


def assert_same_but_for_rounding(run, other):
    rows = rows_of(run), rows_of(other)
    scores = [[row.pop("score") for row in one] for one in rows]
    assert rows[0] == rows[1]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert np.std(scores[0]) > 0.1


HOW = {"serve_python": sys.executable, "bulk": 4}


@pytest.mark.parametrize("form", ["next_click", "next_topic", "pointwise", "likes_dislikes"])
def test_predictions_equal_hfs(request_of, in_process, tmp_path, form):
    limits = {"cutoff_len": 3000} if form == "likes_dislikes" else {}
    whole = request_of(form, **limits).run(tmp_path / "hf")
    run = request_of(form, engine="vllm", **limits).run(tmp_path / "vllm", how=HOW)
    assert_same_but_for_rounding(run, whole)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["vllm"]["dtype"] == "float32"
    assert manifest["params"] == json.loads((whole / "manifest.json").read_text())["params"]
    assert manifest["tokens"] > 0
    (started,) = in_process
    assert started.settings["enable_prefix_caching"] is True


def test_a_killed_run_goes_on(request_of, in_process, tmp_path):
    request = request_of("pointwise", engine="vllm")
    whole = request.run(tmp_path / "whole", how=HOW)
    with pytest.raises(KilledError):
        request.run(tmp_path / "killed", killed_after(5), how=HOW)
    assert len(list((tmp_path / "killed" / "parts").iterdir())) == 1
    run = request.run(tmp_path / "killed", how=HOW | {"bulk": 50})  # how is free to change
    first, second = in_process[0].seen, in_process[-1].seen
    assert 0 < len(second) < len(first)
    assert second == first[-len(second) :]  # what the kept part holds is not asked again
    assert_same_but_for_rounding(run, whole)


# Adapters


@pytest.fixture
def adapter(sharp, tmp_path):
    """An adapter on the module that vLLM's own loader refuses, and the model with it, unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "gate_up_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(4)
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_once_and_scores_as_hfs(sharp, adapter, in_process, tmp_path, monkeypatch):
    asks = some_asks(300)[:3]
    folder = tmp_path / "merged"
    engine = VllmEngine(sharp, adapter, serve_python=sys.executable, merged=folder)
    found = engine.bulk_line_log_probs(asks)
    for a, b, base in zip(
        found,
        HFEngine(sharp, adapter).bulk_line_log_probs(asks),
        HFEngine(sharp).bulk_line_log_probs(asks),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-3)
        assert np.abs(a - base).max() > 0.1
    (made,) = folder.iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in made.iterdir()}
    assert engine._settings["model"] == str(made)

    monkeypatch.setattr("mindlab.llm.hf.load_model", None)
    assert merge(sharp, adapter, "float32", folder) == made
    with pytest.raises(TypeError):  # another dtype, so it is merged anew
        merge(sharp, adapter, "bfloat16", folder)
    monkeypatch.undo()
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")  # other contents
    assert merge(sharp, adapter, "float32", folder) != made
    assert len(list(folder.iterdir())) == 2  # and nothing temporary


def test_an_adapter_of_another_model_is_the_users_to_mend(sharp, tmp_path):
    with pytest.raises(UserError, match="cannot put the adapter"):
        merge(sharp, tmp_path, "float32", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# The process


FAKE = """
import os, sys
__version__ = "9.9"
print("noise on stdout")
print("quiet:", [name for name in os.environ["EXPECTED"].split() if os.environ.get(name)])
class SamplingParams:
    def __init__(self, **options): self.__dict__.update(options)
class LLM:
    def __init__(self, model, **_):
        if os.environ["FAKE"] == "no start": raise ValueError("no room for the KV cache\\nand more")
        if os.environ["FAKE"] == "killed at start": os._exit(7)
        print("more noise")
    def generate(self, prompts, params, use_tqdm):
        if os.environ["FAKE"] == "killed": os.kill(os.getpid(), 9)
        if os.environ["FAKE"] == "fails": raise RuntimeError("out of memory")
        from types import SimpleNamespace as N
        return [
            N(num_cached_tokens=None, outputs=[N(token_ids=[0], logprobs=[
                {t: N(logprob=-float(t + len(p["prompt_token_ids"]))) for t in one.logprob_token_ids}])])
            for p, one in zip(prompts, params)
        ]
"""


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch, sharp):
    """Put a package named vllm on the worker's path, and return a function that starts an engine with it."""
    (tmp_path / "path" / "vllm").mkdir(parents=True)
    (tmp_path / "path" / "vllm" / "__init__.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXPECTED", " ".join(QUIET))

    def start(mode="", **how):
        monkeypatch.setenv("FAKE", mode)
        return VllmEngine(sharp, serve_python=sys.executable, **how)

    return start


def test_a_worker_answers_and_ends(fake_vllm, tmp_path):
    engine = fake_vllm()
    assert engine.about()["vllm"]["vllm"] == "9.9"
    asks = [([1, 2], [[3], [4, 5]]), ([1], [[2] * 100_000])]
    found = engine.bulk_last_logits(asks, [8, 9])
    assert [rows.tolist() for rows in found] == [[[-11, -12], [-12, -13]], [[-100_009, -100_010]]]
    assert engine.last_logits([1, 2], [[3]], [8]).tolist() == [[-11]]
    assert engine.tokens_read == 3 + 4 + 100_001 + 3
    process, (log,) = engine._process, tmp_path.glob("vllm-*.log")
    assert "noise on stdout" in log.read_text()
    assert f"quiet: {list(QUIET)}" in log.read_text()  # no telemetry from the worker
    engine.close()
    engine.close()
    assert process.poll() is not None
    assert not log.exists()


def test_a_forgotten_worker_ends(fake_vllm, tmp_path):
    engine = fake_vllm()
    process = engine._process
    del engine
    gc.collect()
    assert process.poll() is not None
    assert list(tmp_path.glob("vllm-*.log")) == []


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("no start", "vLLM failed: ValueError: no room for the KV cache; its log is"),
        ("killed at start", r"vLLM failed: its process ended \(exit code 7\)"),
        ("killed", r"vLLM failed: its process ended \(exit code -9\)"),
        ("fails", "vLLM failed: RuntimeError: out of memory"),
    ],
)
def test_a_worker_that_fails_is_told_in_one_line(fake_vllm, tmp_path, mode, message):
    with pytest.raises(UserError, match=message) as caught:
        fake_vllm(mode).bulk_last_logits([([1], [[2]])], [3])
    assert "\n" not in str(caught.value)
    (log,) = tmp_path.glob("vllm-*.log")  # kept, and named
    assert str(log) in str(caught.value)
    assert ("Traceback" in log.read_text()) == (mode in ("no start", "fails"))


def test_what_is_missing_is_told_in_one_line(sharp, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for model, python, message in (
        (
            sharp,
            tmp_path / "none" / "python",
            r"none/python: no such Python; make vLLM's environment: python3.11",
        ),
        (sharp, sys.executable, r"cannot import vllm \(ModuleNotFoundError: .*\); make vLLM's environment"),
        (tmp_path, sys.executable, "cannot load the model"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            VllmEngine(model, serve_python=python)
        assert "\n" not in str(caught.value)


def test_the_script_tells_how_to_get_vllm(request_of, data, sharp, tmp_path, monkeypatch, capsys):
    from mindlab.common import cli
    from scripts import predict as script

    words = ["--data", data, "--protocol", "dev", "--format", "pointwise", "--model", sharp]
    words += ["--engine", "vllm", "--serve-python", tmp_path / "python", "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(script.main)
    captured = capsys.readouterr()
    assert (end.value.code, captured.out) == (2, "")
    assert captured.err.splitlines()[-1].startswith(f"error: {tmp_path / 'python'}: no such Python; make")
    assert not (tmp_path / "run").exists()


# vLLM itself


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(
    "MINDLAB_SERVE_PYTHON" not in os.environ,
    reason="MINDLAB_SERVE_PYTHON is not set to the Python of an environment made of requirements-serve.txt",
)
@pytest.mark.parametrize("block_size", [32, 128])
def test_vllm_itself_scores_as_hf(smollm2, block_size):
    ours = HFEngine(smollm2)
    engine = VllmEngine(smollm2, serve_python=vllm.SERVE_PYTHON, block_size=block_size, enforce_eager=True)
    assert engine.n_parameters == ours.n_parameters
    asks = some_asks(40_000)
    asks += [(prefix * 8, lines) for prefix, lines in asks]  # beyond a block of 128
    for _ in range(2):
        for a, b in zip(engine.bulk_line_log_probs(asks), ours.bulk_line_log_probs(asks), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)
    tokens = [3, 4, 900]
    for a, b in zip(engine.bulk_last_logits(asks, tokens), ours.bulk_last_logits(asks, tokens), strict=True):
        np.testing.assert_allclose(a - a[:, :1], b - b[:, :1], atol=1e-3)
    prompts = [prefix for prefix, _ in asks]
    for head in ([], [11], [11, 12]):
        asked = (prompts, head, [3, 4], [2])
        for (a, ids), (b, expected) in zip(
            engine.bulk_answers(*asked), ours.bulk_answers(*asked), strict=True
        ):
            assert ids == expected
            np.testing.assert_allclose(a[0] - a[1], b[0] - b[1], atol=1e-3)
    engine.close()
