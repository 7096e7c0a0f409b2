"""What a language model writes about news and users, as words that a classic ranker can count.

Each headline is asked about once for a catalogue, each user's history once; the answers are JSON, held to a schema
while they are written (`mindlab.llm.writing`). What cannot be used of them is counted, and leaves an empty text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.cli import Progress
from mindlab.data.mind import News
from mindlab.llm.writing import HFWriter, Writer, count_faults, read_json, write_texts
from mindlab.prompts import NewsTokens, ReaderProfile, Record
from mindlab.prompts.special_tokens import neutralise


@dataclass(frozen=True)
class Written:
    """One text for each item, "" where the model was not asked or its answer is of no use."""

    words: list[str]
    answers: list[Any]  # as read from the JSON; None where there is none
    cost: dict[str, Any]  # the counts of `count_faults`, seconds, tokens read and written
    is_kept: bool  # it was there already
    path: Path

    @property
    def saved_seconds(self) -> float:
        """What was not spent because the texts were there already."""
        return self.cost["seconds"] if self.is_kept else 0.0


class Augmenter:
    """A language model that is asked for the tokens of news and the profiles of users."""

    def __init__(
        self,
        model: str | Path,
        template: str,
        language: str = "en",
        cache: Path | None = None,
        make_writer: Callable[..., Writer] = HFWriter,
    ):
        """Take a model folder or hub id and its chat template; `cache` as in `write_texts`."""
        self.model, self.template, self.cache, self.make_writer = str(model), template, cache, make_writer
        self._tokens, self._profile = NewsTokens(language), ReaderProfile(language)

    def news(self, news: News, progress: Progress | None = None) -> Written:
        """Return topics, audience and keywords of every title of the catalogue."""
        records = [self._tokens.record(neutralise(title)) for title in news.title]
        return self._write(self._tokens, records, np.arange(len(news)), len(news), progress)

    def users(
        self, histories: Sequence[Sequence[int]], news: News, progress: Progress | None = None
    ) -> Written:
        """Return the interest profile of each history, an array of rows of `news`, the oldest first.

        Of a user without history nothing is asked.
        """
        asked = [row for row, history in enumerate(histories) if len(history)]
        titles = [[neutralise(news.title[k]) for k in histories[row]] for row in asked]
        records = [self._profile.record(shown) for shown in titles]
        return self._write(self._profile, records, asked, len(histories), progress)

    def _write(
        self, form: Any, records: list[Record], rows: Sequence[int], n: int, progress: Progress | None
    ) -> Written:
        writer = self.make_writer(self.model, self.template, form.schema)
        found = write_texts(records, writer, form.name, self.cache, progress)
        read = [read_json(text, form.schema) for text in found.texts]
        answers: list[Any] = [None] * n
        for row, answer in zip(rows, read, strict=True):
            answers[row] = answer.value
        took = {key: getattr(found, key) for key in ("seconds", "tokens_read", "tokens_written")}
        words = ["" if answer is None else form.words(answer) for answer in answers]
        return Written(words, answers, {**count_faults(read), **took}, found.is_kept, found.path)
