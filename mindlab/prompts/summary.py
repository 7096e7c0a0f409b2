"""What a language model wrote about a user, and one question for each candidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions
from mindlab.prompts.base import YES_NO, Prompt, Record, Source, latest, listed, yes_no
from mindlab.tasks.base import USER


@dataclass(frozen=True)
class SummaryParts:
    """What a model wrote about a user, "" for nothing; the titles clicked last, oldest first; one candidate."""

    summary: str
    history: list[str]
    candidate: str
    is_click: bool


class Summary(Prompt):
    """A preference summary, the latest titles and one candidate; Yes. or No., scored as `pointwise` (LLM-TRSR).

    The paper's softmax over the probabilities of Yes and No is a rising function of this score: the same ranking.
    """

    name = "summary"
    asks = YES_NO
    trains = True
    case = USER  # a summary is written for each
    options = ("summary",)
    shows_summary = True
    history_length = 5
    ways: ClassVar = ("recent", "hierarchical", "recurrent")  # who wrote the summary; recent: nobody
    texts: ClassVar = {
        "en": {
            "system": "You are a news recommender.",
            "instruction": "Here is what is known of a reader.",
            "summary": "The reader likes: {summary}\n",
            "no_history": "(none yet)",
            "input": "{summary}Headlines that the reader clicked last, oldest first:\n{history}\n"
            "Will this reader click the following headline? Answer Yes. or No.\n- {candidate}",
        },
        "zh": {
            "system": "你是一个新闻推荐系统。",
            "instruction": "下面是关于一位读者的信息。",
            "summary": "这位读者的喜好：{summary}\n",
            "no_history": "（暂无）",
            "input": "{summary}这位读者最近点击的新闻标题，按时间从早到晚排列：\n{history}\n"
            "这位读者会点击下面这条新闻吗？请回答 Yes. 或 No.\n- {candidate}",
        },
    }

    def record(self, parts: SummaryParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest history titles."""
        summary = self.text["summary"].format(summary=parts.summary) if parts.summary else ""
        head, _, tail = self.text["input"].partition("{candidate}")
        history = listed(parts.history[dropped:]) or self.text["no_history"]
        return {
            "system": self.text["system"],
            "instruction": self.text["instruction"],
            "input": head.format(summary=summary, history=history) + parts.candidate + tail,
            "output": yes_no(parts.is_click),
        }

    def samples(self, source: Source) -> Iterator[SummaryParts]:
        """Yield every candidate, with the summary of its user (`summary_parts`)."""
        texts = [""] * len(source.rows) if source.summaries is None else source.summaries
        return summary_parts(source.rows, source.shown, texts, source.options.history_length, source.rng)

    def parts(self, history: list[str], candidate: str, summary: str = "") -> SummaryParts:
        """Return the parts of the question about one candidate."""
        return SummaryParts(summary, history, candidate, False)


def summary_parts(
    impressions: Impressions,
    titles: np.ndarray,
    texts: Sequence[str],
    history_length: int,
    rng: np.random.Generator,
) -> Iterator[SummaryParts]:
    """Yield every candidate of every impression, shuffled, with the summary of its user.

    `texts` holds one summary an impression, "" for none. The candidates are already a choice: `sampled` has a click and
    one other.
    """
    owner = np.repeat(np.arange(len(impressions)), np.diff(impressions.offsets))
    for at in rng.permutation(len(owner)).tolist():
        i = int(owner[at])
        history = impressions.user_history(i)
        yield SummaryParts(
            summary=texts[i],
            history=titles[latest(history, history_length)].tolist(),
            candidate=titles[impressions.news[at]],
            is_click=bool(impressions.labels[at]),
        )


def check_way(prompt: Prompt | type[Prompt], way: str) -> None:
    """Raise UserError for a way of writing summaries that there is not, or that a prompt has no place for."""
    if way not in Summary.ways:
        raise UserError(f"--summary {way}: expected one of {', '.join(Summary.ways)}")
    if way != Summary.ways[0] and not prompt.shows_summary:
        raise UserError(f"--summary {way} goes with format {Summary.name} alone, not with {prompt.name}")
