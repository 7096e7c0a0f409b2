"""What one format does with an engine: from a user's history and candidates to one score each.

Prompts are LLaMA-Factory's own token ids (`mindlab.prompts.chat`), so the model is asked exactly what it was
trained on. `NextClickScorer` and `NextTopicScorer` read likelihoods, `YesNoScorer` the logits of Yes and No,
`ListwiseScorer` those of letters. Each scores one user, or many at once for the engines that gain from it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mindlab.common.errors import UserError
from mindlab.llm.engine import Engine
from mindlab.prompts import ListParts, Listwise, NextClick, NextTopic, NextTopicParts, Record
from mindlab.prompts.chat import ChatTemplate, record_prompt
from mindlab.prompts.records import Budget, Shortening, fit_budget


def answer_frame(chat: ChatTemplate, system: str, user: str) -> tuple[list[int], int]:
    """Return the ids that the template puts before an answer, and how many it puts behind.

    "- " starts a line of titles; where its dash stands in an answer tells what is around.
    """
    dash = chat.tokenizer.encode("-", add_special_tokens=False)[0]
    around = chat.answer_ids(system, user, "-")
    n_head = around.index(dash)
    return around[:n_head], len(around) - n_head - 1


def n_shared(prompts: Sequence[list[int]]) -> int:
    """Return how many ids all prompts begin with in common; at least the last id of each is not counted.

    >>> n_shared([[1, 2, 3], [1, 2, 4, 5]]), n_shared([[1, 2], [1, 2, 3]]), n_shared([[1, 2]])
    (2, 1, 1)
    """
    shortest = min(map(len, prompts)) - 1
    first = np.array([p[:shortest] for p in prompts])
    same = (first == first[0]).all(axis=0)
    return shortest if same.all() else int(np.argmin(same))


def one_token_answers(chat: ChatTemplate, answers: Mapping[str, str]) -> tuple[list[int], tuple[int, ...]]:
    """Return the ids that the template puts before an answer, and the one id by which each of `answers` is told.

    `answers` are by name. Raises UserError if two of them differ in more than one id, or one has no id of its own.
    """
    ids = [chat.answer_ids("", "?", answer) for answer in answers.values()]
    place = n_shared(ids)
    found = tuple(one[place] for one in ids)
    if len(set(found)) < len(found) or any(one[place + 1 :] != ids[0][place + 1 :] for one in ids):
        told = f"({' and '.join(map(str, ids))})" if len(ids) < 3 else ""
        raise UserError(
            f"template {chat.name}: {' and '.join(answers)} are not one token each {told}, so their logits cannot be "
            "compared; use the format next_click with this tokenizer"
        )
    return ids[0][:place], found


class Gain:
    """How much likelier lines are after one prefix than after `nothing`, the prefix without history.

    The second term is what the model thinks of a line for any user; it is computed once per key. In floating
    point it depends on the lines computed with it: those of `expected` are computed together, before the first
    score, so that a score does not depend on which came before.
    """

    def __init__(self, engine: Engine, nothing: list[int], per_token: bool):
        self.engine, self.nothing, self.per_token = engine, nothing, per_token
        self.expected: dict[int, list[int]] = {}
        self._without_history: dict[int, float] = {}

    def __call__(
        self, asks: Sequence[tuple[list[int], Sequence[int], Sequence[list[int]]]]
    ) -> list[np.ndarray]:
        """Return the gains of the lines of each ask, (prefix, keys, lines), as float64.

        That is log P(line | prefix) - log P(line | nothing), both by token if asked; 0 after `nothing` itself.
        """
        with_history = [ask for ask in asks if ask[0] != self.nothing]
        if with_history and self.expected:
            values = self.engine.line_log_probs(self.nothing, list(self.expected.values()))
            self._without_history.update(zip(self.expected, values.tolist(), strict=True))
            self.expected = {}
            self.engine.forget()
        new = {
            key: line
            for _, keys, lines in with_history
            for key, line in zip(keys, lines, strict=True)
            if key not in self._without_history
        }
        questions = [(self.nothing, list(new.values()))] * bool(new)
        questions += [(prefix, lines) for prefix, _, lines in with_history]
        found = iter(self.engine.bulk_line_log_probs(questions))
        if new:
            self._without_history.update(zip(new, next(found).tolist(), strict=True))
        gains = []
        for prefix, keys, lines in asks:
            if prefix == self.nothing:
                gains.append(np.zeros(len(lines)))
                continue
            gain = next(found) - np.array([self._without_history[key] for key in keys])
            gains.append(gain / np.array([len(line) for line in lines]) if self.per_token else gain)
        return gains


class NextClickScorer:
    """Score = log P(candidate's line | history) - log P(candidate's line | no history), one model.

    The second term is what the model thinks of the headline for any user; it is kept per news. With
    `per_token` both terms are divided by the line's number of tokens. A user without history gives
    equal scores, which the metrics treat as ties.
    """

    def __init__(
        self,
        engine: Engine,
        chat: ChatTemplate,
        titles: Sequence[str],
        form: NextClick,
        history_length: int,
        cutoff_len: int,
        per_token: bool = False,
    ):
        """Take the neutralised `titles` of the whole catalogue; a history is cut to its latest titles.

        Raises UserError if `cutoff_len` does not even hold the question.
        """
        self.titles = titles
        self.history_length = history_length
        self.cutoff_len = cutoff_len
        self._system, self._user = form.text["system"], form.text["instruction"]
        self._chat = chat
        self._question = chat.prompt_ids(self._system, self._user)
        self._head, self._n_tail = answer_frame(chat, self._system, self._user)
        self._gain = Gain(engine, self._question + self._head, per_token)
        self.nothing = self._gain.nothing  # the ids before a line for a user without history
        if len(self.nothing) >= cutoff_len:
            raise UserError(f"cutoff_len {cutoff_len} does not hold the question alone; give a larger one")
        self._lines: dict[int, list[int]] = {}

    def expect(self, candidates: Sequence[int]) -> None:
        """Tell all candidates to come (news indices), so that a score depends on nothing scored before."""
        self._gain.expected = {n: self.line(n) for n in candidates}

    def line(self, news: int) -> list[int]:
        """Return the ids of a candidate's line, "- title" without the newline that ends it."""
        if news not in self._lines:
            text = f"- {self.titles[news]}"
            self._lines[news] = self._chat.tokenizer.encode(text, add_special_tokens=False)
        return self._lines[news]

    def prefix(self, history: Sequence[int], longest_line: int = 0) -> list[int]:
        """Return the ids of question and history; the oldest titles go until all fits `cutoff_len`."""
        kept = list(history)[-self.history_length :] if self.history_length else []
        while kept:
            answer = NextClick.lines([self.titles[n] for n in kept]) + "-"
            ids = self._chat.answer_ids(self._system, self._user, answer)
            ids = self._question + ids[: len(ids) - self._n_tail - 1]
            if len(ids) + longest_line + self._n_tail <= self.cutoff_len:
                return ids
            kept = kept[1:]
        return self._question + self._head

    def score(self, history: Sequence[int], candidates: Sequence[int]) -> np.ndarray:
        """Return the float64 scores of `candidates` (news indices) for a user with that history."""
        return self.score_many([(history, candidates)])[0]

    def score_many(self, users: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
        """Return `score` of each user's (history, candidates)."""
        asks = []
        for history, candidates in users:
            lines = [self.line(n) for n in candidates]
            asks.append((self.prefix(history, max(map(len, lines))), candidates, lines))
        return self._gain(asks)


class NextTopicScorer:
    """Score = log P(candidate's topic | history) - log P(candidate's topic | no history), one model.

    The topic is the first line of the answer, its newline included. Candidates of one topic tie, and so do
    all candidates of a user without history.
    """

    def __init__(
        self,
        engine: Engine,
        chat: ChatTemplate,
        titles: Sequence[str],
        topics: Sequence[str],
        form: NextTopic,
        history_length: int,
        cutoff_len: int,
        per_token: bool = False,
    ):
        """Take the neutralised `titles` and the `topics` of the whole catalogue, (n_news,) each.

        Raises UserError if `cutoff_len` does not even hold the question and an answer.
        """
        self.titles = titles
        self.history_length = history_length
        self._chat, self._form = chat, form
        names, self._topic_of = np.unique(np.asarray(topics, dtype=str), return_inverse=True)
        self._lines = [chat.tokenizer.encode(f"{name}\n", add_special_tokens=False) for name in names]
        question = self._question([])
        self._head, n_tail = answer_frame(chat, form.text["system"], form.text["instruction"])
        self._room = cutoff_len - len(self._head) - n_tail - max(map(len, self._lines))
        if len(question) > self._room:
            raise UserError(f"cutoff_len {cutoff_len} does not hold the question alone; give a larger one")
        self._gain = Gain(engine, question + self._head, per_token)

    def expect(self, candidates: Sequence[int]) -> None:
        """Tell all candidates to come (news indices), so that a score depends on nothing scored before."""
        topics = np.unique(self._topic_of[np.asarray(candidates, dtype=int)]).tolist()
        self._gain.expected = {topic: self._lines[topic] for topic in topics}

    def _question(self, history: list[str]) -> list[int]:
        record = self._form.record(NextTopicParts(history, []))
        return self._chat.prompt_ids(record["system"], record_prompt(record))

    def prefix(self, history: Sequence[int]) -> list[int]:
        """Return the ids of the question about a history; the oldest titles go until it fits `cutoff_len`."""
        kept = [self.titles[n] for n in history[-self.history_length :]]
        while len(question := self._question(kept)) > self._room:
            kept = kept[1:]
        return question + self._head

    def score(self, history: Sequence[int], candidates: Sequence[int]) -> np.ndarray:
        """Return the float64 scores of `candidates` (news indices) for a user with that history."""
        return self.score_many([(history, candidates)])[0]

    def score_many(self, users: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
        """Return `score` of each user's (history, candidates)."""
        asks, places = [], []
        for history, candidates in users:
            topics, place = np.unique(self._topic_of[np.asarray(candidates)], return_inverse=True)
            asks.append((self.prefix(history), topics.tolist(), [self._lines[t] for t in topics]))
            places.append(place)
        return [gain[place] for gain, place in zip(self._gain(asks), places, strict=True)]


class YesNoScorer:
    """Score = log P(Yes) - log P(No) at the first place of the answer, from logits, never from text."""

    def __init__(self, engine: Engine, chat: ChatTemplate):
        """Find the template's Yes and No: the ids that differ between the answers "Yes." and "No."."""
        self.engine = engine
        self.chat = chat
        # `_head` is what comes before the answer: glm4's newline.
        self._head, self.answers = one_token_answers(chat, {"Yes": "Yes.", "No": "No."})

    def ids(self, record: Record) -> list[int]:
        """Return the ids of a record's prompt up to the place where Yes or No comes."""
        return self.chat.prompt_ids(record["system"], record_prompt(record)) + self._head

    def ask(self, records: Sequence[Record]) -> tuple[list[int], list[list[int]]]:
        """Return the ids of the records' prompts: what all begin with, and what each goes on with."""
        prompts = [self.ids(record) for record in records]
        n = n_shared(prompts)
        return prompts[0][:n], [p[n:] for p in prompts]

    def score(self, records: Sequence[Record]) -> np.ndarray:
        """Return the float64 scores of records that share a beginning, e.g. one impression's candidates."""
        return self.score_many([records])[0]

    def score_many(self, groups: Sequence[Sequence[Record]]) -> list[np.ndarray]:
        """Return `score` of each group of records."""
        found = self.engine.bulk_last_logits([self.ask(records) for records in groups], self.answers)
        return [logits[:, 0] - logits[:, 1] for logits in found]

    def answer_many(self, records: Sequence[Record]) -> list[tuple[float, str]]:
        """Return the score and the generated text, stripped: the tutorial's way of reading a prediction."""
        prompts = [self.chat.prompt_ids(record["system"], record_prompt(record)) for record in records]
        found = self.engine.bulk_answers(prompts, self._head, self.answers, self.chat.stop_ids())
        return [
            (
                float(logits[0] - logits[1]),
                self.chat.tokenizer.decode(out, skip_special_tokens=True).strip(),
            )
            for logits, out in found
        ]

    def answer(self, record: Record) -> tuple[float, str]:
        """Return `answer_many` of one record."""
        return self.answer_many([record])[0]


class ListwiseScorer:
    """Score = log P(letter) + log n at the first place of the answer, among the n letters of a list.

    0 is what a blind choice gives, so that lists of different lengths can be compared. The mean over several orders of
    the candidates (bootstrapping, https://arxiv.org/abs/2305.08845) cancels what the model gives a letter for its place.
    """

    def __init__(self, engine: Engine, chat: ChatTemplate, form: Listwise, budget: Budget):
        """Find the template's letters; a prompt that `budget` does not hold is parted into more lists."""
        self.engine, self.chat, self.form, self.budget = engine, chat, form, budget
        self._head, self._letters = one_token_answers(chat, {letter: letter for letter in form.letters})

    def lists(
        self, history: list[str], candidates: Sequence[str], order: np.ndarray
    ) -> list[tuple[np.ndarray, Record]]:
        """Return what each list shows, places in `candidates`, and its prompt; as many as it takes, all of one history."""
        n = -(-len(candidates) // len(self.form.letters))
        while True:
            parts = np.array_split(order, n)
            shown = [ListParts(history, [candidates[k] for k in part]) for part in parts]
            longest = max(shown, key=lambda one: self.chat.count(self.form.record(one)))
            done = Shortening()
            fit_budget(self.form, longest, 0, self.budget, done)
            if not done.still_too_long or n == len(candidates):
                records = [self.form.record(one, done.titles_dropped) for one in shown]
                return list(zip(parts, records, strict=True))
            n += 1

    def score_orders(
        self, users: Sequence[tuple[list[str], Sequence[str], Sequence[np.ndarray]]]
    ) -> list[np.ndarray]:
        """Return the scores of each user's (history titles, candidate titles, orders), float64 (n_orders, n_candidates).

        An order is a permutation of the candidates' places; the scores stand in the candidates' own order.
        """
        asks, places = [], []
        for history, candidates, orders in users:
            lists = [
                (k, *one) for k, order in enumerate(orders) for one in self.lists(history, candidates, order)
            ]
            prompts = [
                self.chat.prompt_ids(record["system"], record_prompt(record)) + self._head
                for *_, record in lists
            ]
            n = n_shared(prompts)
            asks.append((prompts[0][:n], [prompt[n:] for prompt in prompts]))
            places.append([(k, part) for k, part, _ in lists])
        found = self.engine.bulk_last_logits(asks, self._letters)
        scores = [np.empty((len(orders), len(candidates))) for _, candidates, orders in users]
        for of_user, logits, lists in zip(scores, found, places, strict=True):
            for (k, part), row in zip(lists, logits, strict=True):
                shown = row[: len(part)]
                of_user[k, part] = shown - np.logaddexp.reduce(shown) + np.log(len(part))
        return scores
