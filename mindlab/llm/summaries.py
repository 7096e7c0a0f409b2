"""What a language model writes of a user's taste: summaries of blocks of clicked titles, put together in two ways.

`hierarchical` summarises every block and then the summaries; `recurrent` takes block after block, each with the summary
so far (LLM-TRSR, https://arxiv.org/abs/2403.13325). Every round of texts is kept by `mindlab.llm.writing.write_texts`, so
a run that was interrupted goes on and ends in the same bytes. What the model writes is read with suspicion: faults are
counted and stop nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.cli import Progress
from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions
from mindlab.llm.writing import EMPTY, Answer, HFWriter, Writer, count_faults, write_texts
from mindlab.prompts import PreferenceSummary, Record, Summary
from mindlab.prompts.records import batched
from mindlab.prompts.special_tokens import neutralise

BLOCK = 5  # titles, or summaries, of one question
MAX_NEW_TOKENS = 60
CUT_OFF = "cut off"
ENDS = tuple(".!?。！？…")
CLOSING = "\"'”’)]）」"  # what may stand behind the end of a sentence
COUNTS = ("answers", "usable", "seconds", "tokens_read", "tokens_written")  # of a cost; the rest are faults


@dataclass(frozen=True)
class Summaries:
    """One text for each user, "" where nothing of use was written."""

    texts: list[str]
    cost: dict[str, Any]  # the counts of `count_faults`, seconds, tokens read and written; of all rounds


class _Pen:
    """Asks a writer round after round, and adds up what it took."""

    def __init__(self, writer: Writer, name: str, cache: Path | None, progress: Progress | None):
        self._write = partial(write_texts, writer=writer, name=name, cache=cache, progress=progress)
        self._answers: list[Answer] = []
        self._took: dict[str, float] = dict.fromkeys(("seconds", "tokens_read", "tokens_written"), 0)

    def __call__(self, records: Mapping[int, Record]) -> dict[int, str]:
        """Return what can be used of the answers, by the same keys."""
        found = self._write(list(records.values()))
        answers = [read_summary(text) for text in found.texts]
        self._answers += answers
        for key in self._took:
            self._took[key] += getattr(found, key)
        return {key: answer.value or "" for key, answer in zip(records, answers, strict=True)}

    @property
    def cost(self) -> dict[str, Any]:
        """The counts so far; seconds to two decimals."""
        return {**count_faults(self._answers), **self._took, "seconds": round(self._took["seconds"], 2)}


def read_summary(text: str) -> Answer:
    """Return a text as one line without special tokens, and what is wrong with it: empty, or cut off.

    Cut off is what does not end as a sentence does. Of such a text the whole sentences are used, and all of it where
    it has none.

    >>> read_summary("Likes sports.\\nAlso food. And he wou")
    Answer(value='Likes sports. Also food.', fault='cut off')
    >>> read_summary("Tigers, soup"), read_summary(" \\n")
    (Answer(value='Tigers, soup', fault='cut off'), Answer(value=None, fault='empty'))
    """
    line = neutralise(" ".join(text.split()))
    if not line:
        return Answer(None, EMPTY)
    if line.rstrip(CLOSING).endswith(ENDS):
        return Answer(line, None)
    # A Western full stop ends a sentence only before a space: "3.5" has none.
    whole = [
        k + 1 for k, sign in enumerate(line) if sign in "。！？" or (sign in ENDS and line[k + 1] == " ")
    ]
    return Answer(line[: whole[-1]] if whole else line, CUT_OFF)


def hierarchical(users: Sequence[list[list[str]]], ask: PreferenceSummary, pen: Callable) -> list[str]:
    """Return a summary of the summaries of each user's blocks of titles.

    As many rounds as it takes to come to one text a user, `BLOCK` texts at most to a question; a text that is alone
    goes on as it is.
    """
    places = [(user, titles) for user, blocks in enumerate(users) for titles in blocks]
    written = pen({k: ask.block(titles) for k, (_, titles) in enumerate(places)})
    texts: list[list[str]] = [[] for _ in users]
    for k, (user, _) in enumerate(places):
        texts[user] += [written[k]] * bool(written[k])
    while any(len(own) > 1 for own in texts):
        groups = [(user, group) for user, own in enumerate(texts) for group in batched(own, BLOCK)]
        merged = pen({k: ask.merge(group) for k, (_, group) in enumerate(groups) if len(group) > 1})
        texts = [[] for _ in users]
        for k, (user, group) in enumerate(groups):
            # Where nothing came of it, what it was asked about is still true: the latest of these.
            texts[user].append(merged.get(k) or group[-1])
    return [own[0] if own else "" for own in texts]


def recurrent(users: Sequence[list[list[str]]], ask: PreferenceSummary, pen: Callable) -> list[str]:
    """Return a summary of each user's blocks of titles, each block read with the summary of those before.

    Where a model writes nothing, the summary so far stays.
    """
    texts = [""] * len(users)
    for r in range(max(map(len, users), default=0)):
        asked = {
            user: ask.update(texts[user], blocks[r]) if texts[user] else ask.block(blocks[r])
            for user, blocks in enumerate(users)
            if r < len(blocks)
        }
        for user, text in pen(asked).items():
            texts[user] = text or texts[user]
    return texts


WRITTEN = {"hierarchical": hierarchical, "recurrent": recurrent}


class Summariser:
    """A language model that is asked for the preference summaries of users."""

    def __init__(
        self,
        model: str | Path,
        template: str,
        way: str,
        language: str = "en",
        cache: Path | None = None,
        make_writer: Callable[..., Writer] = HFWriter,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        """Take a model folder or hub id, its chat template, and one of `WRITTEN`; `cache` as in `write_texts`."""
        if way not in WRITTEN:
            raise UserError(f"--summary {way}: expected one of {', '.join(Summary.ways)}")
        self.model, self.template, self.way, self.cache = str(model), template, way, cache
        self.make_writer, self.max_new_tokens = make_writer, max_new_tokens
        self._ask = PreferenceSummary(language)

    def __call__(
        self, impressions: Impressions, titles: np.ndarray, progress: Progress | None = None
    ) -> Summaries:
        """Return a summary of the history of each impression's user; a history that comes twice is read once.

        `titles` are the neutralised ones of the whole catalogue, (n_news,). Blocks are of `BLOCK` titles, the oldest
        first, and nothing but the history is shown. A user without history is not asked about.
        """
        _, place, inverse = np.unique(impressions.history, return_index=True, return_inverse=True)
        users = [
            list(batched(titles[impressions.user_history(int(i))].tolist(), BLOCK)) for i in place.tolist()
        ]
        # A writer loads its model with the first batch, and lets go of it here.
        writer = self.make_writer(self.model, self.template, max_new_tokens=self.max_new_tokens)
        pen = _Pen(writer, f"summaries-{self.way}", self.cache, progress)
        texts = WRITTEN[self.way](users, self._ask, pen)
        return Summaries([texts[k] for k in inverse.tolist()], pen.cost)


def summariser_of(way: str, model: str | Path, template: str, language: str = "en") -> Summariser | None:
    """Return what writes the summaries of a way (`Summary.ways`); None for recent, of which nobody writes any."""
    return None if way == "recent" else Summariser(model, template, way, language)
