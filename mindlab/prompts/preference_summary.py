"""A sentence or two about one user."""

from typing import ClassVar

from mindlab.prompts.base import Prompt, Record, listed


class PreferenceSummary(Prompt):
    """Titles that a user clicked; the answer is a sentence or two on what the user likes. Three questions.

    `block` asks about titles alone, `merge` about several answers, `update` about an answer and the titles clicked since
    (LLM-TRSR, https://arxiv.org/abs/2403.13325). Without an example and with the question last: a small model copies an
    example, whoever the user is.
    """

    name = "preference_summary"
    texts: ClassVar = {
        "en": {
            "system": "You describe news readers for a recommender.",
            "block": "Here are headlines that one reader clicked, oldest first.",
            "merge": "Here are descriptions of what one reader likes, oldest first.",
            "update": "Here is what one reader likes, and the headlines that the reader clicked since.",
            "likes": "The reader likes: {summary}\nClicked since:",
            "ask": "In one or two sentences, which topics does this reader like?",
        },
        "zh": {
            "system": "你为新闻推荐系统描述读者。",
            "block": "下面是同一位读者点击过的新闻标题，按时间从早到晚排列。",
            "merge": "下面是对同一位读者喜好的几段描述，按时间从早到晚排列。",
            "update": "下面是一位读者的喜好，以及这位读者此后点击的新闻标题。",
            "likes": "这位读者的喜好：{summary}\n此后点击：",
            "ask": "请用一两句话说明这位读者喜欢哪些主题。",
        },
    }

    def block(self, titles: list[str]) -> Record:
        """Return the record that asks about titles, oldest first, without an answer."""
        return self._record("block", listed(titles))

    def merge(self, summaries: list[str]) -> Record:
        """Return the record that asks about several summaries of one user, oldest first."""
        return self._record("merge", listed(summaries))

    def update(self, summary: str, titles: list[str]) -> Record:
        """Return the record that asks about a summary and the titles clicked since, oldest first."""
        return self._record("update", f"{self.text['likes'].format(summary=summary)}\n{listed(titles)}")

    def _record(self, kind: str, shown: str) -> Record:
        asked = f"{shown}\n{self.text['ask']}"
        return {"system": self.text["system"], "instruction": self.text[kind], "input": asked, "output": ""}
