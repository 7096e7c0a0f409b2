"""Ask a language model about impressions: from a prompt and an engine to a score for each candidate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.finetune import factory
from mindlab.llm.engine import Engine
from mindlab.llm.lists import LIKED, UNANSWERED
from mindlab.llm.options import Options
from mindlab.llm.score import ListwiseScorer, NextClickScorer, NextTopicScorer, YesNoScorer
from mindlab.prompts import Prompt, Record, likes_dislikes_parts, yes_no
from mindlab.prompts.base import ANSWER, LETTER, LINE, TOPIC, WRITTEN, YES_NO, latest
from mindlab.prompts.chat import ChatTemplate
from mindlab.prompts.next_topic import topics_of
from mindlab.prompts.records import Budget, Shortening, fit_budget


@dataclass(frozen=True)
class Scored:
    """One case's result: `positions` of the impression's candidates, a score each, perhaps an answer."""

    positions: np.ndarray
    scores: np.ndarray
    answers: list[str | None] | None = None


class _Reader(Engine):
    """The engine of a format whose answers were written before: there is nothing left to ask."""

    n_parameters = None  # the answers do not tell


Score = Callable[[Impressions], list[Scored]]


@dataclass(frozen=True)
class Asking:
    """What a way to ask (`mindlab.prompts.base`) makes its scores from."""

    options: Options
    seed: int
    prompt: Prompt
    engine: Engine
    chat: ChatTemplate
    news: News
    shown: np.ndarray  # object (n_news,), how the prompt shows each
    candidates: Sequence[int]  # the news of all impressions to come
    written: Mapping[int, Any]  # `Work.written`

    @property
    def budget(self) -> Budget:
        """How long a prompt may be."""
        return Budget(self.chat.count, self.chat.estimate, self.options.cutoff_len)

    def history(self, impressions: Impressions, i: int) -> list[str]:
        """Return the latest titles of the history of an impression."""
        return self.shown[latest(impressions.user_history(i), self.options.history_length)].tolist()


def make_scorer(
    options: Options,
    news: News,
    candidates: Sequence[int] = (),
    engine: Engine | None = None,
    written: Mapping[int, Any] = MappingProxyType({}),
    *,
    seed: int = 42,
    **how: Any,
) -> tuple[Score, Engine]:
    """Return a function that scores each impression of a table, and the engine behind it, made with `how`.

    With `candidates`, the news of all impressions to come, a score depends on nothing that was scored before.
    `engine` stands in for the model, e.g. to count what would be read (`mindlab.runs.token_counts`). `written` is what a
    model wrote before: what format summary shows of a user, by history; the scores of format json_list, by impression.
    """
    prompt = options.prompt
    if prompt.asks == WRITTEN:
        return _read_lists(written), engine or _Reader()
    chat = ChatTemplate.load(options.model, options.template)
    if options.adapter:
        factory.check_adapter(options.adapter, options.model, options.template)
    engine = engine or _make_engine(options, **how)
    asking = Asking(options, seed, prompt, engine, chat, news, prompt.shown(news), candidates, written)
    return WAYS[prompt.asks](asking), engine


def _by_line(asking: Asking) -> Score:
    """Score by the likelihood of a line: the candidate's own, or its topic's."""
    options, prompt = asking.options, asking.prompt
    first = asking.engine, asking.chat, asking.shown
    limits = options.history_length, options.cutoff_len, options.per_token
    if prompt.asks == LINE:
        scorer = NextClickScorer(*first, prompt, *limits)
    else:
        scorer = NextTopicScorer(*first, topics_of(asking.news), prompt, *limits)
    scorer.expect(asking.candidates)

    def score(impressions: Impressions) -> list[Scored]:
        users = [
            (impressions.user_history(i).tolist(), impressions.candidates(i).tolist())
            for i in range(len(impressions))
        ]
        return [Scored(np.arange(len(scores)), scores) for scores in scorer.score_many(users)]

    return score


def _by_letter(asking: Asking) -> Score:
    """Score by the letter in front of a candidate, the mean over several orders of the candidates."""
    scorer = ListwiseScorer(asking.engine, asking.chat, asking.prompt, asking.budget)

    def score(impressions: Impressions) -> list[Scored]:
        users = [
            (
                asking.history(impressions, i),
                asking.shown[impressions.candidates(i)].tolist(),
                orders_of(asking, int(impressions.ids[i]), len(impressions.candidates(i))),
            )
            for i in range(len(impressions))
        ]
        return [Scored(np.arange(found.shape[1]), found.mean(axis=0)) for found in scorer.score_orders(users)]

    return score


def _by_yes_no(asking: Asking) -> Score:
    """Score by the answer to a question about each candidate."""
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


def orders_of(asking: Asking, impression: int, n: int) -> list[np.ndarray]:
    """Return the orders in which format listwise shows `n` candidates: as they are, then by the seed and the impression.

    So they do not depend on what else is scored.
    """
    rng = np.random.default_rng([asking.seed, impression])
    return [np.arange(n), *(rng.permutation(n) for _ in range(asking.options.orders - 1))]


def _read_lists(written: Mapping[int, np.ndarray]) -> Callable[[Impressions], list[Scored]]:
    """Return what looks up the scores of the lists; the answers are theirs too, none where the list has none."""

    def score(impressions: Impressions) -> list[Scored]:
        found = []
        for impression in impressions.ids.tolist():
            scores = written[impression]
            answers = [None if one == UNANSWERED else yes_no(one == LIKED) for one in scores.tolist()]
            found.append(Scored(np.arange(len(scores)), scores, answers))
        return found

    return score


def _make_engine(options: Options, **how: Any) -> Engine:
    if options.engine == "vllm":
        from mindlab.llm.vllm import VllmEngine

        return VllmEngine(options.model, options.adapter, options.cutoff_len, dtype=options.dtype, **how)
    import torch

    from mindlab.llm.hf import HFEngine

    dtype = getattr(torch, options.dtype) if options.dtype else None
    return HFEngine(options.model, options.adapter, options.token_budget, dtype, **how)
