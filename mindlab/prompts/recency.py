"""`pointwise` that points at the latest click."""

from typing import ClassVar

from mindlab.prompts.base import listed
from mindlab.prompts.pointwise import Pointwise, PointwiseParts


class Recency(Pointwise):
    """`pointwise` with the latest click named once more after the history: the recency-focused prompt.

    Of LLMRank (https://arxiv.org/abs/2305.08845), whose authors found that models overlook the order of a history.
    """

    name = "recency"
    trains = False
    options = ()
    texts: ClassVar = {
        language: {**Pointwise.texts[language], "latest": words}
        for language, words in (
            ("en", "The headline that the reader clicked last is:"),
            ("zh", "这位读者最近一次点击的新闻标题是："),
        )
    }

    def droppable(self, parts: PointwiseParts) -> int:
        """Return how many history titles can go: all but the latest."""
        return max(0, len(parts.history) - 1)

    def around(self, history: list[str]) -> tuple[str, str]:
        """Return the text of `input` before and after the candidate."""
        head, tail = super().around(history)
        if not history:
            return head, tail
        shown = listed(history)
        return f"{shown}\n{self.text['latest']}\n{listed(history[-1:])}{head.removeprefix(shown)}", tail
