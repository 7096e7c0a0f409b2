"""One question for each candidate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions
from mindlab.prompts.base import YES_NO, Prompt, Record, Source, latest, listed, yes_no


@dataclass(frozen=True)
class PointwiseParts:
    """A user's history, oldest first, and one candidate."""

    history: list[str]
    candidate: str
    is_click: bool


class Pointwise(Prompt):
    """History and one candidate; the answer is Yes. or No.; scored by log P(Yes) - log P(No)."""

    name = "pointwise"
    asks = YES_NO
    trains = True
    options = ("negatives",)
    history_length = 8  # a prompt for every candidate: its length is paid often
    texts: ClassVar = {
        "en": {
            "system": "You are a news recommender.",
            "instruction": "Here are headlines that a reader clicked, oldest first.",
            "no_history": "(none yet)",
            "input": "{history}\nWill this reader click the following headline? Answer Yes. or No.\n- {candidate}",
        },
        "zh": {
            "system": "你是一个新闻推荐系统。",
            "instruction": "下面是一位读者点击过的新闻标题，按时间从早到晚排列。",
            "no_history": "（暂无）",
            "input": "{history}\n这位读者会点击下面这条新闻吗？请回答 Yes. 或 No.\n- {candidate}",
        },
    }

    def record(self, parts: PointwiseParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest history titles."""
        head, tail = self.around(parts.history[dropped:])
        return {
            "system": self.text["system"],
            "instruction": self.text["instruction"],
            "input": head + parts.candidate + tail,
            "output": yes_no(parts.is_click),
        }

    def around(self, history: list[str]) -> tuple[str, str]:
        """Return the text of `input` before and after the candidate."""
        head, _, tail = self.text["input"].partition("{candidate}")
        return head.format(history=listed(history) or self.text["no_history"]), tail

    def samples(self, source: Source) -> Iterator[PointwiseParts]:
        """Yield every click and some non-clicks of the same impression (`pointwise_parts`)."""
        options = source.options
        return pointwise_parts(
            source.rows, source.shown, options.history_length, options.negatives, source.rng
        )

    def parts(self, history: list[str], candidate: str, summary: str = "") -> PointwiseParts:
        """Return the parts of the question about one candidate."""
        return PointwiseParts(history, candidate, False)


def pointwise_parts(
    impressions: Impressions,
    titles: np.ndarray,
    history_length: int,
    negatives: int,
    rng: np.random.Generator,
) -> Iterator[PointwiseParts]:
    """Yield every click and up to `negatives` non-clicks of the same impression per click, shuffled."""
    rows, places = [], []
    for i in range(len(impressions)):
        labels = impressions.candidate_labels(i)
        clicks, others = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        keep = rng.permutation(others)[: negatives * len(clicks)]
        places.append(np.concatenate([clicks, keep]))
        rows.append(np.full(len(places[-1]), i))
    row, place = np.concatenate(rows), np.concatenate(places)
    for at in rng.permutation(len(row)):
        i = int(row[at])
        history = impressions.user_history(i)
        yield PointwiseParts(
            history=titles[latest(history, history_length)].tolist(),
            candidate=titles[impressions.candidates(i)[place[at]]],
            is_click=bool(impressions.candidate_labels(i)[place[at]]),
        )
