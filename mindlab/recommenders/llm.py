"""A language model as a recommender: a prompt, a model, an adapter, and the engine that runs them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from mindlab.common.files import sha256
from mindlab.common.manifest import reset_peak_memory
from mindlab.data.mind import Impressions, News
from mindlab.evaluation.calibration import log_odds_shift
from mindlab.finetune import alpaca, factory
from mindlab.llm.ask import Scored, make_scorer
from mindlab.llm.engine import Engine
from mindlab.llm.lists import ask_lists, writer_of
from mindlab.llm.options import Options
from mindlab.llm.summaries import summariser_of
from mindlab.prompts import JsonList
from mindlab.prompts.base import ANSWER, WRITTEN, YES_NO
from mindlab.prompts.chat import ChatTemplate
from mindlab.prompts.records import Budget, batched
from mindlab.recommenders.base import Method, Prepared, Recommender
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task

PART_SIZE = {"hf": 20, "vllm": 100}  # impressions, by engine: one that answers in bulk gets enough for it
# Files of a model or adapter that decide the scores.
WEIGHTS = ("*.safetensors", "tokenizer.json", "config.json", "adapter_config.json")


@dataclass(frozen=True)
class LLMMethod(Method):
    """The row of a language model."""

    asked: Options | None = None
    how: Mapping[str, Any] = field(
        default_factory=dict
    )  # to the engine's constructor: what no score depends on

    def __reduce__(self) -> tuple:
        """Pickle as what is asked."""
        return ranker, (self.name, self.asked, dict(self.how))

    def check(self, task: Task) -> None:
        """Raise UserError for options that do not go together, or not with a task."""
        self.asked.check(task)

    def anywhere(self) -> Self:
        """Return the method with absolute paths, for a worker that runs in another folder."""

        def absolute(name: str | None) -> str | None:  # a model may be a hub id
            return str(Path(name).resolve()) if name and Path(name).exists() else name

        asked = replace(self.asked, model=absolute(self.asked.model), adapter=absolute(self.asked.adapter))
        return ranker(self.name, asked, self.how)

    def inputs(self) -> dict[str, str]:
        """Return the SHA-256 of the files of the model and the adapter that decide the scores, by path."""
        names = (self.asked.model, self.asked.adapter)
        folders = [Path(name) for name in names if name and not self.asked.base_url]
        files = [
            path for folder in folders if folder.is_dir() for name in WEIGHTS for path in folder.glob(name)
        ]
        return {path.as_posix(): sha256(path) for path in sorted(files)}


def ranker(name: str, asked: Options, how: Mapping[str, Any] = MappingProxyType({})) -> LLMMethod:
    """Return the row of a model that is asked so; `how` goes to the engine's constructor.

    Raises:
        UserError: for an unknown format.
    """
    return LLMMethod(
        name,
        lambda: LLMRanker(asked, how, name),
        cases=(asked.prompt.case,),
        is_slow=True,
        is_costly=True,
        needs_llm=True,
        options=asdict(asked),
        part_size=PART_SIZE.get(asked.engine, 1),
        asked=asked,
        how=how,
    )


class LLMRanker(Recommender):
    """Score = what the prompt's way of asking makes of the model's answer (`mindlab.llm.ask`).

    Nothing is fitted: an adapter is trained by LLaMA-Factory (`mindlab.finetune.factory`). `answers` are the texts of the
    last scores, where the prompt has the model write one.
    """

    def __init__(
        self,
        asked: Options,
        how: Mapping[str, Any] = MappingProxyType({}),
        name: str = "llm",
        engine: Engine | None = None,
    ):
        """Take what is asked; `engine` stands in for the model, e.g. to count what would be read."""
        self.asked, self.how, self.name = asked, dict(how), name
        self.engine = engine
        self.reads_labels = asked.prompt.shows_labels
        self.answers_last = asked.prompt.asks == ANSWER
        self.scores_are_written = asked.prompt.asks == WRITTEN
        self._score: Callable[[Impressions], list[Scored]] | None = None

    def on(self, task: Task, split: Impressions, folder: Path) -> Self:
        """Take the task."""
        self._task = task
        return self

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn nothing; remember how often candidates are clicked."""
        self._known = train if len(train) else valid
        # The seed itself: the orders in which candidates are shown follow from it.
        self._seed = int(rng.bit_generator.seed_seq.entropy)
        return self

    def prepare(self, test: Impressions, news: News) -> Prepared:
        """Have written what must be there before anything is scored.

        Format summary: what the base model says of the users, by their history. Format json_list: the scores that the
        answers come to, by impression id.
        """
        asked = self.asked
        shown = asked.prompt.shown(news)
        if asked.prompt.asks == WRITTEN:
            lists = self._lists(test, shown)
            return Prepared(dict(zip(test.ids.tolist(), lists.scores, strict=True)), {"lists": lists.cost})
        write = summariser_of(asked.summary, asked.model, asked.template, asked.language)
        if write is None:
            return Prepared({}, None)
        found = write(test, shown)
        settings = (factory.settings_of(asked.adapter) if asked.adapter else None) or {}
        trained = alpaca.texts_written(settings.get("dataset_dir", ""), settings.get("dataset", ""))
        cost = {
            "summaries of test users": found.cost,
            **({"summaries of training users": trained} if trained else {}),
        }
        return Prepared(dict(zip(test.history.tolist(), found.texts, strict=True)), cost)

    def start(self, candidates: np.ndarray, news: News, prepared: Prepared) -> None:
        """Load the model; `candidates` are the news of all impressions to come."""
        reset_peak_memory()
        self._score, self.engine = make_scorer(
            self.asked, news, candidates, self.engine, prepared.texts, seed=self._seed, **self.how
        )
        self.params = self.engine.n_parameters

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the scores; of a task about last candidates theirs alone, with their answers."""
        if self._score is None:
            self.start(np.unique(test.news), news, self.prepare(test, news))
        self.engine.forget()  # what was scored before would change the last digits
        found: list[Scored] = []
        for rows in batched(range(len(test)), self.engine.bulk):
            found += self._score(test.take(np.array(rows)))
        texts = [text for one in found for text in one.answers or [None] * len(one.scores)]
        self.answers = None if all(text is None for text in texts) else texts
        return np.concatenate([one.scores for one in found]).astype(np.float64)

    def cost(self) -> dict[str, Any]:
        """Return what was read so far, and the largest memory."""
        return {"tokens": self.engine.tokens_read, "peak_mb": self.engine.peak_mb()}

    def about(self) -> dict[str, Any]:
        """Return what a manifest says of the model."""
        adapter = self.asked.adapter
        return {
            "train_seconds": factory.train_seconds(adapter) if adapter else None,
            "trained_on": factory.trained_on(adapter).get("data") if adapter else None,
            "log_odds_shift": self._shift(),
            **self.engine.about(),
        }

    def close(self) -> None:
        """End the engine, if one was started."""
        if self._score is not None:
            self.engine.close()

    def _shift(self) -> float | None:
        """Return `log_odds_shift` for what a Yes/No adapter was trained on; None if that is not known."""
        prompt, adapter = self.asked.prompt, self.asked.adapter
        if not (prompt.asks == YES_NO and prompt.trains and adapter):
            return None
        settings = factory.settings_of(adapter) or {}
        share = alpaca.share_of_yes(settings.get("dataset_dir", ""), settings.get("dataset", ""))
        clicked = self._task.share_of_clicks(self._known)
        return None if share is None else log_odds_shift(share, clicked)

    def _lists(self, test: Impressions, shown: np.ndarray) -> Any:
        """Return what a model writes about the candidates (`mindlab.llm.lists.Lists`)."""
        asked, budget = self.asked, None  # nobody here knows the tokenizer of a server's model
        if not asked.base_url:
            if asked.adapter:
                factory.check_adapter(asked.adapter, asked.model, asked.template)
            chat = ChatTemplate.load(asked.model, asked.template)
            budget = Budget(chat.count, chat.estimate, asked.cutoff_len)
        return ask_lists(
            test,
            shown,
            JsonList(asked.language, asked.thinking),
            writer_of(asked),
            history_length=asked.history_length,
            budget=budget,
            is_constrained=asked.constrained,
        )


def rank_titles(asked: Options, history: list[str], candidates: list[str]) -> list[tuple[str, float]]:
    """Return `candidates` with their scores for a user who clicked `history` (oldest first), best first.

    The titles stand for a catalogue of their own.
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
    score, _ = make_scorer(asked, news)
    scores = score(impression)[0].scores
    # A stable sort: what ties stays in the order given.
    return [(candidates[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
