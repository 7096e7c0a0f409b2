"""One question about all candidates, each behind a letter."""

from dataclasses import dataclass
from typing import ClassVar

from mindlab.prompts.base import LETTER, Prompt, Record, listed, question


@dataclass(frozen=True)
class ListParts:
    """A user's history, oldest first, and the candidates in the order in which they are shown."""

    history: list[str]
    candidates: list[str]


class Listwise(Prompt):
    """History and all candidates, each behind a letter; the answer is a letter, read from the logits of all of them.

    There is no right answer to train on: `record` leaves it empty.
    """

    name = "listwise"
    asks = LETTER
    options = ("orders",)
    usual_orders = 3  # of the candidates, whose scores are averaged
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    texts: ClassVar = {
        "en": {
            "system": "You are a news recommender.",
            "instruction": "Here are headlines that a reader clicked, oldest first.",
            "no_history": "(none yet)",
            "input": "{history}\nWhich of these headlines will this reader click next?\n{candidates}\n"
            "Answer with one letter.",
        },
        "zh": {
            "system": "你是一个新闻推荐系统。",
            "instruction": "下面是一位读者点击过的新闻标题，按时间从早到晚排列。",
            "no_history": "（暂无）",
            "input": "{history}\n这位读者接下来会点击下面哪一条新闻？\n{candidates}\n请只回答一个字母。",
        },
    }

    def record(self, parts: ListParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest history titles; ValueError beyond 26 candidates."""
        marks = self.letters[: len(parts.candidates)]
        lines = (f"{mark}. {title}" for mark, title in zip(marks, parts.candidates, strict=True))
        history = listed(parts.history[dropped:]) or self.text["no_history"]
        return question(self.text, history=history, candidates="\n".join(lines))
