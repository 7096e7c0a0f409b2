"""Words about one user, for a classic ranker to count."""

from typing import Any, ClassVar

from mindlab.prompts.base import Prompt, Record, list_schema, listed, object_schema, question, words_schema


class ReaderProfile(Prompt):
    """The titles a user clicked; the answer is JSON: three interests and a few words about the user.

    Without an example and with the question last: a small model copies an example's interests, whoever the user is.
    """

    name = "reader_profile"
    schema: ClassVar = object_schema(interests=list_schema(words_schema(20), 3), profile=words_schema(80))
    texts: ClassVar = {
        "en": {
            "system": "You describe news readers for a recommender.",
            "instruction": "Here are headlines that one reader clicked.",
            "input": "{history}\nWhich topics interest this reader? Answer with JSON alone.",
        },
        "zh": {
            "system": "你为新闻推荐系统描述读者。",
            "instruction": "下面是同一位读者点击过的新闻标题。",
            "input": "{history}\n这位读者对哪些主题感兴趣？只用 JSON 回答。",
        },
    }

    def record(self, history: list[str]) -> Record:
        """Return the record of a history, oldest first, without an answer; its latest titles are shown."""
        return question(self.text, history=listed(history[-self.history_length :]))

    @staticmethod
    def words(answer: dict[str, Any]) -> str:
        """Return an answer as one text.

        >>> ReaderProfile.words({"interests": ["a", "b", "c"], "profile": "d e"})
        'a b c d e'
        """
        return " ".join([*answer["interests"], answer["profile"]])
