"""Score every case of a protocol's split with a language model, part by part, so that a kill costs little.

A run folder holds ``request.json`` (what was asked), ``parts/*.parquet`` while it is going on, and at
the end ``predictions.parquet`` and ``manifest.json``. Running the same request again goes on after the
last whole part; a finished run is left as it is.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mindlab import alpaca, factory, predictions, protocols
from mindlab.calibration import log_odds_shift
from mindlab.errors import UserError
from mindlab.files import atomic_path, sha256, write_json
from mindlab.mind import Impressions, Mind, News, read_mind
from mindlab.prompts import (
    FORMATS,
    LikesDislikes,
    NextClick,
    NextTopic,
    Pointwise,
    PointwiseParts,
    history_length_of,
)
from mindlab.runs import (
    REQUEST,
    data_hashes,
    is_started,
    peak_memory_mb,
    provenance,
    reset_peak_memory,
)

CASES_PER_PART = 20
TEMPLATE_OF = {"glm": "glm4", "glm4": "glm4", "llama": "smollm2"}  # by config.json's model_type


@dataclass(frozen=True)
class Request:
    """Everything a run's predictions depend on, but for the contents of the files it names."""

    data: str
    protocol: str
    format: str
    model: str
    template: str
    adapter: str | None = None
    split: str = "test"
    limit: int | None = None
    seed: int = 42
    history_length: int | None = None  # None: the format's own
    cutoff_len: int = 1024
    per_token: bool = False
    language: str = "en"
    engine: str = "hf"
    token_budget: int = 1024

    def __post_init__(self) -> None:
        """Write the format's own history length down, so that the request tells it."""
        object.__setattr__(self, "history_length", history_length_of(self.format, self.history_length))


@dataclass(frozen=True)
class Scored:
    """One case's result: `positions` of the impression's candidates, a score each, perhaps an answer."""

    positions: np.ndarray
    scores: np.ndarray
    answers: list[str] | None = None


def template_of(model: str | Path) -> str:
    """Return LLaMA-Factory's template name for a model folder, from its config.json.

    Raises UserError where the folder does not tell.
    """
    path = Path(model) / "config.json"
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    if kind not in TEMPLATE_OF:
        raise UserError(f"cannot tell the chat template of {model}; give --template (glm4, smollm2, ...)")
    return TEMPLATE_OF[kind]


def predict(
    request: Request,
    out: str | Path,
    progress: Callable[[Iterable, int, int], Iterator] = lambda items, *_: iter(items),
) -> Path:
    """Run `request` into the folder `out` and return it; nothing is done if it is finished already.

    Raises UserError if `out` holds a run of another request, or the request cannot be met.
    """
    out = Path(out)
    asked = {**asdict(request), "inputs_sha256": _input_hashes(request)}
    if is_started(out, asked) and (out / "manifest.json").exists():
        return out
    mind = read_mind(request.data, protocols.folders_of(request.protocol, request.split))
    splits = protocols.splits_of(request.protocol, mind, request.seed)
    if request.split not in splits:
        raise UserError(
            f"protocol {request.protocol} has no split {request.split!r}, only {', '.join(splits)}"
        )
    whole = splits[request.split]
    rows = protocols.limit(len(whole), request.limit, request.seed)
    reset_peak_memory()
    score, engine = make_scorer(request, mind)
    write_json(out / REQUEST, asked)

    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    blocks = [rows[i : i + CASES_PER_PART] for i in range(0, len(rows), CASES_PER_PART)]
    missing = [b for b in range(len(blocks)) if not (parts / f"{b:05d}.parquet").exists()]
    n_done = len(rows) - sum(len(blocks[b]) for b in missing)
    cases = ((b, case) for b in missing for case in blocks[b])
    pending: list[pa.Table] = []
    begin, tokens = time.perf_counter(), 0
    for b, case in progress(cases, n_done, len(rows)):
        impression = whole.take(np.array([case]))
        # Only the tutorial's prompt shows labels, those of the target's siblings.
        found = score(impression if request.format == LikesDislikes.name else impression.without_labels())
        pending.append(_as_table(request.split, impression, mind, found, int(case)))
        if len(pending) == len(blocks[b]):
            cost = {"seconds": str(time.perf_counter() - begin), "tokens": str(engine.tokens_read - tokens)}
            with atomic_path(parts / f"{b:05d}.parquet") as path:
                pq.write_table(pa.concat_tables(pending).replace_schema_metadata(cost), path)
            pending, begin, tokens = [], time.perf_counter(), engine.tokens_read

    tables = [pq.read_table(parts / f"{b:05d}.parquet") for b in range(len(blocks))]
    cost = {key: sum(float(t.schema.metadata[key.encode()]) for t in tables) for key in ("seconds", "tokens")}
    predictions.write_predictions(
        out / "predictions.parquet", pa.concat_tables([t.replace_schema_metadata() for t in tables])
    )
    write_json(
        out / "manifest.json",
        {
            "name": out.name,
            "protocol": request.protocol,
            "track": "static",
            "request": asdict(request),
            "n_impressions": len(rows),
            "params": engine.n_parameters,
            "train_seconds": factory.train_seconds(request.adapter) if request.adapter else None,
            "log_odds_shift": _shift(request, mind),
            "seconds": round(cost["seconds"], 2),
            "tokens": int(cost["tokens"]),
            "ms_per_impression": round(1000 * cost["seconds"] / len(rows), 1),
            "tokens_per_impression": round(cost["tokens"] / len(rows), 1),
            "peak_mb": round(peak_memory_mb()),
            **provenance(),
            "inputs_sha256": asked["inputs_sha256"],
        },
    )
    shutil.rmtree(parts)
    return out


def rank_titles(request: Request, history: list[str], candidates: list[str]) -> list[tuple[str, float]]:
    """Return `candidates` with their scores for a reader who clicked `history` (oldest first), best first.

    The titles stand for a catalogue of their own; `request.data` is not read. Formats: next_click, pointwise.
    """
    titles = np.array([*history, *candidates], dtype=object)
    blank = np.full(len(titles), "", dtype=object)
    news = News(
        np.array([f"N{i}" for i in range(len(titles))], dtype=object), blank, blank, titles, *[blank] * 3
    )
    n = len(history)
    impression = Impressions(
        ids=np.array([1]),
        users=np.array(["U1"], dtype=object),
        times=np.array(["2019-11-15"], dtype="datetime64[s]"),
        history=np.array([0], dtype=np.int32),
        history_offsets=np.array([0, n]),
        history_news=np.arange(n, dtype=np.int32),
        offsets=np.array([0, len(candidates)]),
        news=np.arange(n, len(titles), dtype=np.int32),
        labels=None,
    )
    score, _ = make_scorer(request, Mind(news, {"test": impression}, {}))
    scores = score(impression).scores
    # A stable sort: what ties stays in the order given.
    return [(candidates[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def _shift(request: Request, mind: Mind) -> float | None:
    """Return `log_odds_shift` for what a pointwise adapter was trained on; None if that is not known."""
    if request.format != Pointwise.name or not request.adapter:
        return None
    settings = factory.settings_of(request.adapter) or {}
    share = alpaca.share_of_yes(settings.get("dataset_dir", ""), settings.get("dataset", ""))
    return None if share is None else log_odds_shift(share, float(mind.splits["train"].labels.mean()))


def make_scorer(
    request: Request, mind: Mind, engine: Any = None
) -> tuple[Callable[[Impressions], Scored], Any]:
    """Return a function that scores one impression (given as a table of one), and the engine behind it.

    `engine` stands in for the model, e.g. to count what would be read (`mindlab.token_counts`).
    """
    from mindlab.alpaca import (
        FORMATS_OF,
        Budget,
        Shortening,
        fit_budget,
        likes_dislikes_parts,
        neutral_titles,
        topics_of,
    )
    from mindlab.chat import ChatTemplate
    from mindlab.llm.hf import HFEngine
    from mindlab.llm.score import NextClickScorer, NextTopicScorer, YesNoScorer

    # The sampled impressions ask what `dev` asks, of fewer candidates.
    asked = "dev" if request.protocol == "sampled-impression" else request.protocol
    if request.format not in FORMATS_OF.get(asked, ()):
        raise UserError(f"protocol {request.protocol} does not go with format {request.format}")
    if request.engine != "hf":
        raise UserError(f"engine {request.engine!r}: expected hf")
    chat = ChatTemplate.load(request.model, request.template)
    engine = engine or HFEngine(request.model, request.adapter, request.token_budget)
    titles = neutral_titles(mind.news)
    form = FORMATS[request.format](request.language)

    if request.format in (NextClick.name, NextTopic.name):
        limits = request.history_length, request.cutoff_len, request.per_token
        if request.format == NextClick.name:
            scorer = NextClickScorer(engine, chat, titles, form, *limits)
        else:
            scorer = NextTopicScorer(engine, chat, titles, topics_of(mind.news), form, *limits)

        def score(impression: Impressions) -> Scored:
            scores = scorer.score(impression.reader_history(0).tolist(), impression.candidates(0).tolist())
            return Scored(np.arange(len(scores)), scores)

        return score, engine

    answers = YesNoScorer(engine, chat)
    budget = Budget(chat.count, chat.estimate, request.cutoff_len)
    if request.format == Pointwise.name:

        def score(impression: Impressions) -> Scored:
            history = titles[impression.reader_history(0)[-request.history_length :]].tolist()
            candidates = titles[impression.candidates(0)]
            # All candidates share one history, the longest that fits the longest of them.
            parts = [PointwiseParts(history, title, False) for title in candidates]
            longest = max(parts, key=lambda p: chat.count(form.record(p)))
            done = Shortening()
            fit_budget(form, longest, 0, budget, done)
            scores = answers.score([form.record(p, done.titles_dropped) for p in parts])
            return Scored(np.arange(len(scores)), scores)

        return score, engine

    def score(impression: Impressions) -> Scored:
        parts = next(iter(likes_dislikes_parts(impression, titles)))
        record = fit_budget(form, parts, 0, budget, Shortening())
        target = np.array([len(impression.candidates(0)) - 1])
        value, text = answers.answer(record)
        return Scored(target, np.array([value]), [text])

    return score, engine


def _as_table(split: str, impression: Impressions, mind: Mind, found: Scored, case: int) -> pa.Table:
    """Return the prediction rows of one case: the scored positions of one impression."""
    shown = _at_positions(impression, found.positions)
    return predictions.from_scores(
        split,
        shown,
        mind.news,
        found.scores,
        found.answers,
        case_ids=np.array([case]),
        positions=found.positions,
    )


def _at_positions(impression: Impressions, positions: np.ndarray) -> Impressions:
    from dataclasses import replace

    return replace(
        impression,
        offsets=np.array([0, len(positions)]),
        news=impression.news[positions],
        labels=None if impression.labels is None else impression.labels[positions],
    )


def _input_hashes(request: Request) -> dict[str, str]:
    """Return the SHA-256 of the files that decide the scores: data, weights, adapter, tokenizer."""
    folders = [Path(request.model), *([Path(request.adapter)] if request.adapter else [])]
    names = ("*.safetensors", "tokenizer.json", "config.json", "adapter_config.json")
    files = [path for folder in folders if folder.is_dir() for name in names for path in folder.glob(name)]
    hashes = {path.as_posix(): sha256(path) for path in sorted(files)}
    return {**data_hashes(request.data, protocols.folders_of(request.protocol, request.split)), **hashes}
