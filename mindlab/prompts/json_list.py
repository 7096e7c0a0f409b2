"""A JSON list about all candidates."""

from typing import Any, ClassVar

from mindlab.prompts.base import WRITTEN, Prompt, Record, listed, object_schema, question, words_schema
from mindlab.prompts.listwise import ListParts


class JsonList(Prompt):
    """History and candidates; the answer is written: JSON, with `title`, `like` and `explanation` of each candidate.

    What comes back is read by `mindlab.llm.lists`, which trusts none of it.
    """

    name = "json_list"
    asks = WRITTEN
    options = ("thinking", "constrained", "base_url")
    most = 10  # candidates of one answer: a longer one is seldom finished
    schema: ClassVar = {  # to read an answer by
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "like": {"type": "boolean"},
                "explanation": {"type": "string"},
            },
            "required": ["title", "like", "explanation"],
        },
    }
    texts: ClassVar = {
        "en": {
            "system": "You are a news recommender.",
            "instruction": "Here are headlines that a reader clicked, oldest first.",
            "no_history": "(none yet)",
            "input": "{history}\nWhich of these headlines will this reader like?\n{candidates}\n"
            "Answer with a JSON list alone, one object for each of these {n} headlines, in this form:\n"
            '[{{"title": "...", "like": true or false, "explanation": "a few words"}}]',
            "thinking": "\nThink step by step first: what does the reader care for, and which headlines are about that? "
            "Then write the JSON list, and nothing after it.",
        },
        "zh": {
            "system": "你是一个新闻推荐系统。",
            "instruction": "下面是一位读者点击过的新闻标题，按时间从早到晚排列。",
            "no_history": "（暂无）",
            "input": "{history}\n这位读者会喜欢下面哪些新闻？\n{candidates}\n"
            "请只用一个 JSON 列表回答，这 {n} 条新闻每条一个对象，形式如下：\n"
            '[{{"title": "...", "like": true 或 false, "explanation": "几个字"}}]',
            "thinking": "\n请先一步一步思考：这位读者关心什么，哪些新闻与此有关？然后写出 JSON 列表，之后不要再写任何内容。",
        },
    }

    def __init__(self, language: str = "en", thinking: bool = False):
        """Take the language, and whether the model is asked to reason before it answers (chain of thought)."""
        super().__init__(language)
        self.thinking = thinking

    def record(self, parts: ListParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest history titles, and without an answer."""
        history = listed(parts.history[dropped:]) or self.text["no_history"]
        candidates, n = listed(parts.candidates), len(parts.candidates)
        record = question(self.text, history=history, candidates=candidates, n=n)
        return {**record, "input": record["input"] + self.text["thinking"] * self.thinking}

    @staticmethod
    def schema_of(candidates: list[str]) -> dict[str, Any]:
        """Return the JSON schema that holds a model to these candidates: their titles in order, short explanations."""
        items = [
            object_schema(title={"const": title}, like={"type": "boolean"}, explanation=words_schema(80))
            for title in candidates
        ]
        n = len(items)
        return {"type": "array", "prefixItems": items, "items": False, "minItems": n, "maxItems": n}
