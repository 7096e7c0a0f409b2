"""Score every case of a protocol's split with a language model, part by part, so that a kill costs little.

A run folder holds ``request.json`` (what was asked), ``parts/*.parquet`` while it is going on, and at
the end ``predictions.parquet`` and ``manifest.json``. Running the same request again goes on with the
parts that are missing; a finished run is left as it is. A part is a function of the request alone, so parts
may be scored in any order, by any number of processes (`mindlab.runs.distributed`): the same bytes.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mindlab.common.errors import UserError
from mindlab.common.files import atomic_path, lock, read_json, sha256, write_json
from mindlab.common.manifest import REQUEST, data_hashes, is_started, provenance, reset_peak_memory
from mindlab.data.mind import Impressions, Mind, News, read_mind
from mindlab.evaluation import predictions
from mindlab.evaluation.calibration import log_odds_shift
from mindlab.finetune import alpaca, factory
from mindlab.llm.engine import Engine
from mindlab.prompts import (
    PROMPTS,
    JsonList,
    Prompt,
    Record,
    check_options,
    likes_dislikes_parts,
    prompt_of,
    yes_no,
)
from mindlab.prompts.base import ANSWER, LETTER, LINE, TOPIC, WRITTEN, YES_NO, latest
from mindlab.prompts.next_topic import topics_of
from mindlab.prompts.records import Budget, Shortening, batched, fit_budget
from mindlab.prompts.summary import check_way
from mindlab.tasks import limit, task_of
from mindlab.tasks.base import VALIDATION

ENGINES = ("hf", "vllm")
CASES_PER_PART = {"hf": 20, "vllm": 100}  # by engine: one that answers in bulk gets enough for it
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
    token_budget: int | None = None  # None: what suits the machine
    dtype: str | None = None  # of the weights: float32, bfloat16, int8; None: float32, on a GPU bfloat16
    summary: str = "recent"  # format summary: how the base model wrote them (`mindlab.prompts.Summary.ways`)
    orders: int | None = None  # format listwise: of the candidates, whose scores are averaged; None: its own
    thinking: bool = False  # format json_list: the model reasons before it answers
    constrained: bool = False  # format json_list: held to a JSON schema of the candidates
    base_url: str | None = (
        None  # format json_list: an OpenAI-compatible server, which knows the model by its name
    )

    def __post_init__(self) -> None:
        """Write the format's own history length and orders down, so that the request tells them."""
        prompt = PROMPTS.get(self.format)
        if prompt and self.history_length is None:
            object.__setattr__(self, "history_length", prompt.history_length)
        if prompt and self.orders is None and "orders" in prompt.options:
            object.__setattr__(self, "orders", prompt.usual_orders)

    @property
    def prompt(self) -> Prompt:
        """The prompt in the request's language."""
        return prompt_of(self.format)(self.language)


@dataclass(frozen=True)
class Scored:
    """One case's result: `positions` of the impression's candidates, a score each, perhaps an answer."""

    positions: np.ndarray
    scores: np.ndarray
    answers: list[str | None] | None = None


def template_of(model: str | Path) -> str:
    """Return LLaMA-Factory's template name for a model folder, from its config.json.

    Raises UserError where the folder does not tell.
    """
    path = Path(model) / "config.json"
    kind = read_json(path, "get the model again").get("model_type") if path.is_file() else None
    if not isinstance(kind, str) or kind not in TEMPLATE_OF:
        raise UserError(f"cannot tell the chat template of {model}; give --template (glm4, smollm2, ...)")
    return TEMPLATE_OF[kind]


class Work:
    """What it takes to score the cases of a request: ``Work(request)(rows)`` is their part of the predictions.

    Data and model are read when they are first needed, and do not travel: a worker on another machine reads
    them there, under the same paths.
    """

    def __init__(
        self,
        request: Request,
        how: Mapping[str, Any] = MappingProxyType({}),
        written: tuple[dict[int, Any], dict[str, Any] | None] | None = None,
    ):
        """Take the request and what goes to the engine's constructor; nothing is read yet.

        `written` is given where it was written before. Raises UserError for options that do not go together.
        """
        _check(request)
        self.request, self.how = request, dict(how)
        if written is not None:
            self.written = written

    def __reduce__(self) -> tuple:
        """Pickle as the request, its paths absolute: a worker may run in another folder."""

        def absolute(name: str | None) -> str | None:  # a model may be a hub id
            return str(Path(name).resolve()) if name and Path(name).exists() else name

        asked = self.request
        paths = {name: absolute(getattr(asked, name)) for name in ("data", "model", "adapter")}
        # Written once, where all readers are known: a worker has the texts and asks no model for them.
        return Work, (replace(asked, **paths), self.how, self.written)

    @cached_property
    def mind(self) -> Mind:
        """The data that the protocol's split is made from."""
        request = self.request
        folders = task_of(request.protocol).files(request.split, request.data)
        return read_mind(request.data, folders)

    @cached_property
    def whole(self) -> Impressions:
        """All impressions of the split; UserError if the protocol has no such split."""
        request = self.request
        splits = task_of(request.protocol).splits(self.mind, request.seed)
        if request.split not in splits:
            raise UserError(
                f"protocol {request.protocol} has no split {request.split!r}, only {', '.join(splits)}"
            )
        return splits[request.split]

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of `whole` that are scored, int; a reader's follow each other: the history is read once."""
        rows = limit(len(self.whole), self.request.limit, self.request.seed)
        return rows[np.argsort(self.whole.history[rows], kind="stable")]

    @cached_property
    def written(self) -> tuple[dict[int, Any], dict[str, Any] | None]:
        """What a model wrote before anything is scored, and what that took; ({}, None) where it writes nothing.

        Format summary: what the base model says of the readers of `rows`, by their history. Format json_list: the scores
        that its answers come to, by impression id.
        """
        from mindlab.llm.summaries import summariser_of

        request = self.request
        is_list = request.prompt.asks == WRITTEN
        write = summariser_of(request.summary, request.model, request.template, request.language)
        if write is None and not is_list:  # most formats: nothing is read for it
            return {}, None
        titles = request.prompt.shown(self.mind.news)
        asked = self.whole.take(self.rows).without_labels()
        if is_list:
            lists = _lists(request, asked, titles)
            return dict(zip(asked.ids.tolist(), lists.scores, strict=True)), lists.cost
        found = write(asked, titles)
        return dict(zip(asked.history.tolist(), found.texts, strict=True)), found.cost

    @cached_property
    def scorer(self) -> tuple[Callable[[Impressions], list[Scored]], Engine]:
        """The function that scores impressions, and its engine."""
        reset_peak_memory()
        written, _ = self.written
        if self.request.prompt.asks != WRITTEN:  # whose scoring is the writing
            reset_peak_memory()
        candidates = np.unique(self.whole.take(self.rows).news)
        return make_scorer(self.request, self.mind, candidates, written=written, **self.how)

    def close(self) -> None:
        """End the engine, if one was started."""
        if "scorer" in self.__dict__:
            self.scorer[1].close()

    def __call__(self, rows: Iterable[int]) -> pa.Table:
        """Return the predictions of some rows of `whole`; the table's metadata says what they cost."""
        score, engine = self.scorer
        engine.forget()  # what other parts left behind would change the last digits
        begin, tokens, tables = time.perf_counter(), engine.tokens_read, []
        is_shown = self.request.prompt.shows_labels
        for group in batched(rows, engine.bulk):
            impressions = self.whole.take(np.array(group))
            found = score(impressions if is_shown else impressions.without_labels())
            for k, (row, one) in enumerate(zip(group, found, strict=True)):
                impression = impressions.take(np.array([k]))
                tables.append(_as_table(self.request.split, impression, self.mind, one, int(row)))
        cost = {
            "seconds": time.perf_counter() - begin,
            "tokens": engine.tokens_read - tokens,
            "params": engine.n_parameters,
            "peak_mb": engine.peak_mb(),
            "about": engine.about(),
        }
        return pa.concat_tables(tables).replace_schema_metadata({"cost": json.dumps(cost)})


def predict(
    request: Request,
    out: str | Path,
    progress: Callable[[Iterable, int, int], Iterator] = lambda items, *_: iter(items),
    how: Mapping[str, Any] = MappingProxyType({}),
    run: Callable[[Callable[[np.ndarray], pa.Table], Iterable[np.ndarray]], Iterator[pa.Table]] | None = None,
) -> Path:
    """Run `request` into the folder `out` and return it; nothing is done if it is finished already.

    `how` goes to the engine's constructor: what it takes that no score depends on (`VllmEngine`). `run` is an
    ordered map that scores the parts elsewhere, such as `mindlab.runs.distributed.ray_map`; without it they are scored
    here, where `progress` moves with every case. The result is the same, so either may go on with what the other
    began.

    Raises UserError if `out` holds a run of another request, another process is writing to it, or the request cannot
    be met.
    """
    out = Path(out)
    asked = {**asdict(request), "inputs_sha256": _input_hashes(request)}
    if not _is_finished(out, asked):
        with lock(out):
            if not _is_finished(out, asked):  # nor by who held the lock before
                _predict(request, asked, out, progress, how, run)
    return out


def _is_finished(out: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether `out` holds the whole run `asked` and nothing else; UserError if it holds another."""
    return is_started(out, asked) and (out / "manifest.json").exists() and not (out / "parts").exists()


def _predict(
    request: Request,
    asked: Mapping[str, Any],
    out: Path,
    progress: Callable[[Iterable, int, int], Iterator],
    how: Mapping[str, Any],
    run: Callable[[Callable[[np.ndarray], pa.Table], Iterable[np.ndarray]], Iterator[pa.Table]] | None,
) -> None:
    parts = out / "parts"
    if is_started(out, asked) and (out / "manifest.json").exists():  # stopped while it removed its parts
        shutil.rmtree(parts)
        return
    work = Work(request, how)
    mind, rows = work.mind, work.rows
    size = CASES_PER_PART.get(request.engine, 1)
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    missing = [b for b in range(len(blocks)) if not (parts / f"{b:05d}.parquet").exists()]
    n_done = len(rows) - sum(len(blocks[b]) for b in missing)
    if run is None and missing:
        _ = work.scorer  # before the progress bar: this may fail, and takes a while
    cases = progress((case for b in missing for case in blocks[b]), n_done, len(rows))
    if run is None:
        tables = map(work, (islice(cases, len(blocks[b])) for b in missing))
    else:
        tables = run(work, [blocks[b] for b in missing])
    with closing(work):
        for b, table in zip(missing, tables, strict=True):
            if not (out / REQUEST).exists():  # not before: a request that cannot be met leaves nothing behind
                write_json(out / REQUEST, asked)
            with atomic_path(parts / f"{b:05d}.parquet") as path:
                pq.write_table(table, path, write_page_checksum=True)
            if run is not None:
                for _ in islice(cases, len(blocks[b])):
                    pass
    for _ in cases:  # there is none; a progress bar ends when it is told so
        pass

    tables = [_read_part(parts / f"{b:05d}.parquet") for b in range(len(blocks))]
    costs = [json.loads(table.schema.metadata[b"cost"]) for table in tables]
    seconds, tokens = (sum(cost[key] for cost in costs) for key in ("seconds", "tokens"))
    if request.prompt.asks == WRITTEN:  # the scoring is the writing
        took = work.written[1]
        seconds, tokens = seconds + took["seconds"], tokens + took["tokens_read"] + took["tokens_written"]
    table = pa.concat_tables([t.replace_schema_metadata() for t in tables])
    in_order = table.sort_by([("case_id", "ascending"), ("position", "ascending")])
    predictions.write_predictions(out / "predictions.parquet", in_order)
    write_json(
        out / "manifest.json",
        {
            "name": out.name,
            "protocol": request.protocol,
            "track": "static",
            "request": asdict(request),
            "n_impressions": len(rows),
            "params": costs[0]["params"],
            "train_seconds": factory.train_seconds(request.adapter) if request.adapter else None,
            "trained_on": factory.trained_on(request.adapter).get("data") if request.adapter else None,
            "log_odds_shift": _shift(request, mind),
            "texts_written": _texts_written(request, work.written[1]),
            "seconds": round(seconds, 2),
            "tokens": tokens,
            "ms_per_impression": round(1000 * seconds / len(rows), 1),
            "tokens_per_impression": round(tokens / len(rows), 1),
            "peak_mb": round(max(cost["peak_mb"] for cost in costs)),
            **provenance(),
            **costs[0]["about"],
            "inputs_sha256": asked["inputs_sha256"],
        },
    )
    shutil.rmtree(parts)


def _read_part(path: Path) -> pa.Table:
    """Return a part; UserError where it is gone or damaged: what is left is gone on with."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if path.exists():
            path.rename(path.with_suffix(".damaged"))
        raise UserError(
            f"{path}: gone or damaged since it was written ({str(error).splitlines()[0]}); run the same command again, "
            "which scores it anew"
        ) from None


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
    scores = score(impression)[0].scores
    # A stable sort: what ties stays in the order given.
    return [(candidates[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def _shift(request: Request, mind: Mind) -> float | None:
    """Return `log_odds_shift` for what a Yes/No adapter was trained on; None if that is not known."""
    prompt = request.prompt
    if not (prompt.asks == YES_NO and prompt.trains and request.adapter):
        return None
    settings = factory.settings_of(request.adapter) or {}
    share = alpaca.share_of_yes(settings.get("dataset_dir", ""), settings.get("dataset", ""))
    known = mind.splits["train"] if "train" in mind.splits else mind.splits[VALIDATION]
    clicked = task_of(request.protocol).share_of_clicks(known)
    return None if share is None else log_odds_shift(share, clicked)


def _texts_written(request: Request, cost: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what writing took: the lists, or the summaries of the readers scored and of those trained on."""
    if cost is None:
        return None
    if request.prompt.asks == WRITTEN:
        return {"lists": cost}
    settings = (factory.settings_of(request.adapter) if request.adapter else None) or {}
    trained = alpaca.texts_written(settings.get("dataset_dir", ""), settings.get("dataset", ""))
    return {
        "summaries of test readers": cost,
        **({"summaries of training readers": trained} if trained else {}),
    }


def _check(request: Request) -> None:
    """Raise UserError for options that do not go together."""
    task, prompt = task_of(request.protocol), PROMPTS.get(request.format)
    if prompt is None or prompt.case != task.case:
        raise UserError(f"protocol {request.protocol} does not go with format {request.format}")
    if request.engine not in ENGINES:
        raise UserError(f"engine {request.engine!r}: expected {' or '.join(ENGINES)}")
    check_way(prompt, request.summary)
    given = ("per_token", "orders", "thinking", "constrained", "base_url")
    check_options(prompt, {option: getattr(request, option) for option in given})
    if request.thinking and request.constrained:
        raise UserError("--thinking writes prose and --constrained forbids it: give one of them")
    if prompt.asks == WRITTEN and request.engine != "hf":
        raise UserError(
            f"--format {prompt.name} is written, which --engine {request.engine} does not do; --base-url can"
        )
    for option, value in (("--adapter", request.adapter), ("--constrained", request.constrained)):
        if value and request.base_url:
            raise UserError(
                f"{option} does not go with --base-url: the server decides what it loads and how it writes"
            )


def _lists(request: Request, asked: Impressions, titles: np.ndarray) -> Any:
    """Return what a model writes about the candidates of impressions (`mindlab.llm.lists.Lists`)."""
    from mindlab.llm.lists import ask_lists, writer_of

    budget = None  # nobody here knows the tokenizer of a server's model
    if not request.base_url:
        from mindlab.prompts.chat import ChatTemplate

        if request.adapter:
            factory.check_adapter(request.adapter, request.model, request.template)
        chat = ChatTemplate.load(request.model, request.template)
        budget = Budget(chat.count, chat.estimate, request.cutoff_len)
    form = JsonList(request.language, request.thinking)
    return ask_lists(
        asked,
        titles,
        form,
        writer_of(request),
        history_length=request.history_length,
        budget=budget,
        is_constrained=request.constrained,
    )


class _Reader(Engine):
    """The engine of a format whose answers were written before: there is nothing left to ask."""

    n_parameters = None  # the answers do not tell


Score = Callable[[Impressions], list[Scored]]


@dataclass(frozen=True)
class Asking:
    """What a way to ask (`mindlab.prompts.base`) makes its scores from."""

    request: Request
    prompt: Prompt
    engine: Engine
    chat: Any  # mindlab.prompts.chat.ChatTemplate
    news: News
    shown: np.ndarray  # object (n_news,), how the prompt shows each
    candidates: Sequence[int]  # the news of all impressions to come
    written: Mapping[int, Any]  # `Work.written`

    @property
    def budget(self) -> Budget:
        """How long a prompt may be."""
        return Budget(self.chat.count, self.chat.estimate, self.request.cutoff_len)

    def history(self, impressions: Impressions, i: int) -> list[str]:
        """Return the latest titles of the history of an impression."""
        return self.shown[latest(impressions.reader_history(i), self.request.history_length)].tolist()


def make_scorer(
    request: Request,
    mind: Mind,
    candidates: Sequence[int] = (),
    engine: Engine | None = None,
    written: Mapping[int, Any] = MappingProxyType({}),
    **how: Any,
) -> tuple[Score, Engine]:
    """Return a function that scores each impression of a table, and the engine behind it, made with `how`.

    With `candidates`, the news of all impressions to come, a score depends on nothing that was scored before.
    `engine` stands in for the model, e.g. to count what would be read (`mindlab.llm.token_counts`). `written` is what a
    model wrote before (`Work.written`): what format summary shows of a user, the scores of format json_list.
    """
    from mindlab.prompts.chat import ChatTemplate

    _check(request)
    prompt = request.prompt
    if prompt.asks == WRITTEN:
        return _read_lists(written), engine or _Reader()
    chat = ChatTemplate.load(request.model, request.template)
    if request.adapter:
        factory.check_adapter(request.adapter, request.model, request.template)
    engine = engine or _make_engine(request, **how)
    shown = prompt.shown(mind.news)
    asking = Asking(request, prompt, engine, chat, mind.news, shown, candidates, written)
    return WAYS[prompt.asks](asking), engine


def _by_line(asking: Asking) -> Score:
    """Score by the likelihood of a line: the candidate's own, or its topic's."""
    from mindlab.llm.score import NextClickScorer, NextTopicScorer

    request, prompt = asking.request, asking.prompt
    first = asking.engine, asking.chat, asking.shown
    limits = request.history_length, request.cutoff_len, request.per_token
    if prompt.asks == LINE:
        scorer = NextClickScorer(*first, prompt, *limits)
    else:
        scorer = NextTopicScorer(*first, topics_of(asking.news), prompt, *limits)
    scorer.expect(asking.candidates)

    def score(impressions: Impressions) -> list[Scored]:
        users = [
            (impressions.reader_history(i).tolist(), impressions.candidates(i).tolist())
            for i in range(len(impressions))
        ]
        return [Scored(np.arange(len(scores)), scores) for scores in scorer.score_many(users)]

    return score


def _by_letter(asking: Asking) -> Score:
    """Score by the letter in front of a candidate, the mean over several orders of the candidates."""
    from mindlab.llm.score import ListwiseScorer

    scorer = ListwiseScorer(asking.engine, asking.chat, asking.prompt, asking.budget)

    def score(impressions: Impressions) -> list[Scored]:
        users = [
            (
                asking.history(impressions, i),
                asking.shown[impressions.candidates(i)].tolist(),
                orders_of(asking.request, int(impressions.ids[i]), len(impressions.candidates(i))),
            )
            for i in range(len(impressions))
        ]
        return [Scored(np.arange(found.shape[1]), found.mean(axis=0)) for found in scorer.score_orders(users)]

    return score


def _by_yes_no(asking: Asking) -> Score:
    """Score by the answer to a question about each candidate."""
    from mindlab.llm.score import YesNoScorer

    prompt, budget = asking.prompt, asking.budget
    scorer = YesNoScorer(asking.engine, asking.chat)

    def records(impressions: Impressions, i: int) -> list[Record]:
        history, text = asking.history(impressions, i), asking.written.get(int(impressions.history[i]), "")
        parts = [prompt.parts(history, shown, text) for shown in asking.shown[impressions.candidates(i)]]
        # All candidates share one history, the longest that fits the longest of them.
        longest = max(parts, key=lambda one: asking.chat.count(prompt.record(one)))
        done = Shortening()
        fit_budget(prompt, longest, 0, budget, done)
        return [prompt.record(one, done.titles_dropped) for one in parts]

    def score(impressions: Impressions) -> list[Scored]:
        groups = [records(impressions, i) for i in range(len(impressions))]
        return [Scored(np.arange(len(scores)), scores) for scores in scorer.score_many(groups)]

    return score


def _by_answer(asking: Asking) -> Score:
    """Score the last candidate by the answer, and write it."""
    from mindlab.llm.score import YesNoScorer

    prompt, budget = asking.prompt, asking.budget
    scorer = YesNoScorer(asking.engine, asking.chat)

    def score(impressions: Impressions) -> list[Scored]:
        records = [
            fit_budget(prompt, parts, 0, budget, Shortening())
            for parts in likes_dislikes_parts(impressions, asking.shown)
        ]
        return [
            Scored(np.array([len(impressions.candidates(i)) - 1]), np.array([value]), [text])
            for i, (value, text) in enumerate(scorer.answer_many(records))
        ]

    return score


WAYS: dict[str, Callable[[Asking], Score]] = {
    LINE: _by_line, TOPIC: _by_line, YES_NO: _by_yes_no, LETTER: _by_letter, ANSWER: _by_answer,
}  # fmt: skip


def orders_of(request: Request, impression: int, n: int) -> list[np.ndarray]:
    """Return the orders in which format listwise shows `n` candidates: as they are, then by the seed and the impression.

    So they do not depend on what else is scored.
    """
    rng = np.random.default_rng([request.seed, impression])
    return [np.arange(n), *(rng.permutation(n) for _ in range(request.orders - 1))]


def _read_lists(written: Mapping[int, np.ndarray]) -> Callable[[Impressions], list[Scored]]:
    """Return what looks up the scores of the lists; the answers are theirs too, none where the list has none."""
    from mindlab.llm.lists import LIKED, UNANSWERED

    def score(impressions: Impressions) -> list[Scored]:
        found = []
        for impression in impressions.ids.tolist():
            scores = written[impression]
            answers = [None if one == UNANSWERED else yes_no(one == LIKED) for one in scores.tolist()]
            found.append(Scored(np.arange(len(scores)), scores, answers))
        return found

    return score


def _make_engine(request: Request, **how: Any) -> Engine:
    if request.engine == "vllm":
        from mindlab.llm.vllm import VllmEngine

        return VllmEngine(request.model, request.adapter, request.cutoff_len, dtype=request.dtype, **how)
    import torch

    from mindlab.llm.hf import HFEngine

    dtype = getattr(torch, request.dtype) if request.dtype else None
    return HFEngine(request.model, request.adapter, request.token_budget, dtype, **how)


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
    return replace(
        impression,
        offsets=np.array([0, len(positions)]),
        news=impression.news[positions],
        labels=None if impression.labels is None else impression.labels[positions],
    )


def _input_hashes(request: Request) -> dict[str, str]:
    """Return the SHA-256 of the files that decide the scores: data, weights, adapter, tokenizer."""
    folders = [Path(name) for name in (request.model, request.adapter) if name and not request.base_url]
    names = ("*.safetensors", "tokenizer.json", "config.json", "adapter_config.json")
    files = [path for folder in folders if folder.is_dir() for name in names for path in folder.glob(name)]
    hashes = {path.as_posix(): sha256(path) for path in sorted(files)}
    folders = task_of(request.protocol).files(request.split, request.data)
    return {**data_hashes(request.data, folders), **hashes}
