"""Prompt formats: one small class each, which turns titles into an Alpaca record.

A record is ``{"system", "instruction", "input", "output"}``, all strings; in front of a writer (`mindlab.llm.writing`)
it may also have a ``"schema"`` for its answer. A format also says how it gets shorter: `record(parts, dropped)` leaves
out `dropped` titles, those that matter least first, so that the builder can make a prompt fit a token budget without
cutting the question off. `history_length` is how many of a reader's latest titles it shows unless told otherwise.
Titles come in already neutralised (`mindlab.special_tokens`).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

Record = dict[str, Any]


def yes_no(is_click: bool) -> str:
    """Return the answer of a Yes/No format.

    >>> yes_no(True), yes_no(False)
    ('Yes.', 'No.')
    """
    return "Yes." if is_click else "No."


def listed(titles: list[str]) -> str:
    r"""Return titles as every format but the tutorial's lists them.

    >>> listed(["A storm", "A game"])
    '- A storm\n- A game'
    """
    return "\n".join(f"- {title}" for title in titles)


class Prompt:
    """A text for each language."""

    texts: ClassVar[dict[str, dict[str, str]]]

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]


class Format(Prompt):
    """A prompt about a reader that can get shorter: of its history, unless it says otherwise."""

    def droppable(self, parts: Any) -> int:
        """Return how many titles of the history can go: all of them."""
        return len(parts.history)


@dataclass(frozen=True)
class LikesDislikesParts:
    """What the tutorial puts into one prompt; `likes` and `dislikes` are siblings of the target."""

    history: list[str]
    likes: list[str]
    dislikes: list[str]
    target: str
    is_click: bool


class LikesDislikes(Format):
    """The tutorial's prompt, kept as it is: it shows the labels of the target's siblings, so it leaks.

    Every MIND impression has a click, so an empty "User likes:" line proves the answer Yes.
    """

    name = "likes_dislikes"
    history_length = 3
    texts: ClassVar = {
        "en": {
            "system": "",
            "instruction": (
                "You are a news recommendation expert. You are given the user's news click history (or the "
                "note that there is none) and news the user likes and dislikes. Decide whether the user "
                'will like the target news. Answer "Yes." or "No.".'
            ),
            "no_history": "the user has no click history.",
            "input": "User click histories: {history}\nUser likes: {likes}\nUser dislikes: {dislikes}\n"
            'Whether the user will like the target news "{target}"?',
        },
        "zh": {
            "system": "",
            "instruction": (
                "你是一位新闻推荐专家。下面给出用户的新闻点击历史（没有则注明）以及用户喜欢和不喜欢的新闻，"
                '请判断用户是否会喜欢目标新闻，只回答 "Yes." 或 "No."。'
            ),
            "no_history": "该用户没有点击历史。",
            "input": '用户点击历史：{history}\n用户喜欢：{likes}\n用户不喜欢：{dislikes}\n用户是否会喜欢目标新闻 "{target}"？',
        },
    }

    def droppable(self, parts: LikesDislikesParts) -> int:
        """Return how many titles can go: all dislikes, then all likes but one."""
        return len(parts.dislikes) + max(0, len(parts.likes) - 1)

    def record(self, parts: LikesDislikesParts, dropped: int = 0) -> Record:
        """Return the Alpaca record with `dropped` titles left out, dislikes first, from their end.

        One like always stays: leaving the last one out would turn the answer into the leak's Yes.
        """
        n_dislikes = max(0, len(parts.dislikes) - dropped)
        n_likes = len(parts.likes) - max(0, dropped - len(parts.dislikes))

        def quoted(titles: list[str]) -> str:
            return ", ".join(f'"{title}"' for title in titles)

        return {
            "system": self.text["system"],
            "instruction": self.text["instruction"],
            "input": self.text["input"].format(
                history=quoted(parts.history) or self.text["no_history"],
                likes=quoted(parts.likes[:n_likes]),
                dislikes=quoted(parts.dislikes[:n_dislikes]),
                target=parts.target,
            ),
            "output": yes_no(parts.is_click),
        }


@dataclass(frozen=True)
class PointwiseParts:
    """A reader's history, oldest first, and one candidate."""

    history: list[str]
    candidate: str
    is_click: bool


class Pointwise(Format):
    """History and one candidate; the answer is Yes. or No.; scored by log P(Yes) - log P(No)."""

    name = "pointwise"
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


class Recency(Pointwise):
    """`pointwise` with the latest click named once more after the history: the recency-focused prompt.

    Of LLMRank (https://arxiv.org/abs/2305.08845), whose authors found that models overlook the order of a history.
    """

    name = "recency"
    texts: ClassVar = {
        language: {**Pointwise.texts[language], "latest": latest}
        for language, latest in (
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


class InContext(Pointwise):
    """`pointwise` with the reader's own latest clicks as answered examples (few-shot), the history before them.

    A history holds clicks alone, so every example is a Yes: all candidates see the same examples, and only how the
    scores lie to each other counts. Of the impression that is asked about nothing is shown.
    """

    name = "in_context"
    n_examples = 2

    def droppable(self, parts: PointwiseParts) -> int:
        """Return how many history titles can go: all but those of the examples."""
        return max(0, len(parts.history) - self.n_examples)

    def around(self, history: list[str]) -> tuple[str, str]:
        """Return the text of `input` before and after the candidate."""
        n = max(0, len(history) - self.n_examples)
        head, tail = super().around(history[:n])
        shown = listed(history[:n]) or self.text["no_history"]
        question = head.removeprefix(shown)
        examples = "".join(f"{question}{title}{tail}\n{yes_no(True)}" for title in history[n:])
        return shown + examples + question, tail


@dataclass(frozen=True)
class ListParts:
    """A reader's history, oldest first, and the candidates in the order in which they are shown."""

    history: list[str]
    candidates: list[str]


class Listwise(Format):
    """History and all candidates, each behind a letter; the answer is a letter, read from the logits of all of them.

    There is no right answer to train on: `record` leaves it empty.
    """

    name = "listwise"
    history_length = 8
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
        return _question(self.text, history=history, candidates="\n".join(lines))


class JsonList(Format):
    """History and candidates; the answer is written: JSON, with `title`, `like` and `explanation` of each candidate.

    What comes back is read by `mindlab.llm.lists`, which trusts none of it.
    """

    name = "json_list"
    history_length = 8
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
        record = _question(self.text, history=history, candidates=candidates, n=n)
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


@dataclass(frozen=True)
class NextClickParts:
    """The titles one reader clicked, oldest first."""

    titles: list[str]


class NextClick(Format):
    """A fixed question; the assistant's answer is the reader's clicked titles, one line each.

    Every title is a target of plain supervised fine-tuning. A candidate is scored by how likely its
    line is as the next one after the history, minus how likely it is with no history.
    """

    name = "next_click"
    history_length = 12  # read once for all candidates of an impression
    texts: ClassVar = {
        "en": {
            "system": "You know what news readers click.",
            "instruction": "List the headlines that one reader clicked, oldest first, one per line.",
        },
        "zh": {
            "system": "你了解读者会点击哪些新闻。",
            "instruction": "请列出同一位读者点击过的新闻标题，按时间从早到晚，每行一条。",
        },
    }

    def droppable(self, parts: NextClickParts) -> int:
        """Return how many titles can go: all but the latest."""
        return max(0, len(parts.titles) - 1)

    def record(self, parts: NextClickParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest titles."""
        return {
            "system": self.text["system"],
            "instruction": self.text["instruction"],
            "input": "",
            "output": listed(parts.titles[dropped:]),
        }

    @staticmethod
    def lines(titles: list[str]) -> str:
        r"""Return the answer that lists `titles`, each line closed by a newline.

        >>> NextClick.lines(["A storm", "A game"])
        '- A storm\n- A game\n'
        """
        return listed(titles) + "\n" * bool(titles)


@dataclass(frozen=True)
class NextTopicParts:
    """The titles a reader clicked, oldest first, and the topics of the next clicks."""

    history: list[str]
    topics: list[str]


class NextTopic(Format):
    """Titles in the prompt, and as answer the topics of what the reader clicks next, one line each.

    A candidate is scored by how likely its topic is as the first line, minus how likely it is with no
    history: the model reads headlines and says what the reader cares for. Candidates of one topic tie.
    """

    name = "next_topic"
    history_length = 12
    texts: ClassVar = {
        "en": {
            "system": "You know what news readers click.",
            "instruction": "A reader clicked these headlines, oldest first. List the topics of the headlines that "
            "this reader clicks next, one per line.",
            "no_history": "(none yet)",
        },
        "zh": {
            "system": "你了解读者会点击哪些新闻。",
            "instruction": "下面是一位读者点击过的新闻标题，按时间从早到晚排列。请列出这位读者接下来会点击的新闻的主题，每行一个。",
            "no_history": "（暂无）",
        },
    }

    def record(self, parts: NextTopicParts, dropped: int = 0) -> Record:
        """Return the Alpaca record without the `dropped` oldest history titles."""
        return {
            "system": self.text["system"],
            "instruction": self.text["instruction"],
            "input": listed(parts.history[dropped:]) or self.text["no_history"],
            "output": "\n".join(parts.topics),
        }

    @staticmethod
    def topic(category: str, subcategory: str) -> str:
        """Return a news' topic as the answer names it.

        >>> NextTopic.topic("sports", "football_nfl")
        'sports, football_nfl'
        """
        return f"{category}, {subcategory}"


def words_schema(most: int) -> dict[str, Any]:
    """Return the JSON schema of a short text: no quotes, brackets or escapes, so that it can be used as it is."""
    return {
        "type": "string",
        "pattern": f'^[^\\s"\\\\{{}}\\[\\],;:/][^"\\\\{{}}\\[\\]\\n\\r\\t]{{1,{most - 1}}}$',
    }


def list_schema(items: dict[str, Any], n: int) -> dict[str, Any]:
    """Return the JSON schema of a list of exactly `n` items."""
    return {"type": "array", "items": items, "minItems": n, "maxItems": n}


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with just these properties, in their order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class NewsTokens(Prompt):
    """One headline; the answer is JSON: three keywords, two topics, the audience. For a classic ranker to count.

    The keywords come first: what a small model has just written about this very headline leads it away from the
    topics of the examples.
    """

    name = "news_tokens"
    schema: ClassVar = object_schema(
        keywords=list_schema(words_schema(16), 3),
        topics=list_schema(words_schema(20), 2),
        audience=words_schema(24),
    )
    texts: ClassVar = {
        "en": {
            "system": "You label headlines for a news recommender.",
            "instruction": "Name three keywords of the headline, two topics, broad before narrow, and who would read it. "
            "Answer with JSON alone, like this:\n"
            "Headline: Rookie goalkeeper saves two penalties in the derby\n"
            '{"keywords":["goalkeeper","penalty","derby"],"topics":["sports","football"],"audience":"football fans"}\n'
            "Headline: Why mortgage rates may fall before spring\n"
            '{"keywords":["mortgage","interest","spring"],"topics":["finance","housing"],"audience":"home buyers"}\n'
            "Headline: Senate votes to delay the new border law\n"
            '{"keywords":["senate","border","law"],"topics":["politics","elections"],"audience":"voters"}\n'
            "Headline: Five soups that are ready in half an hour\n"
            '{"keywords":["soup","dinner","recipe"],"topics":["food","recipes"],"audience":"home cooks"}',
            "input": "Headline: {title}",
        },
        "zh": {
            "system": "你为新闻推荐系统给标题打标签。",
            "instruction": "请给出标题的三个关键词、两个主题（先宽后窄）和会读它的人群。只用 JSON 回答，例如：\n"
            "标题：新秀门将在德比战中扑出两个点球\n"
            '{"keywords":["门将","点球","德比"],"topics":["体育","足球"],"audience":"足球迷"}\n'
            "标题：为什么房贷利率可能在春天前下降\n"
            '{"keywords":["房贷","利率","春天"],"topics":["财经","住房"],"audience":"购房者"}\n'
            "标题：参议院投票推迟新的边境法案\n"
            '{"keywords":["参议院","边境","法案"],"topics":["政治","选举"],"audience":"选民"}\n'
            "标题：半小时就能做好的五道汤\n"
            '{"keywords":["浓汤","晚餐","食谱"],"topics":["美食","食谱"],"audience":"家庭厨师"}',
            "input": "标题：{title}",
        },
    }

    def record(self, title: str) -> Record:
        """Return the record of one headline, without an answer."""
        return _question(self.text, title=title)

    @staticmethod
    def words(answer: dict[str, Any]) -> str:
        """Return an answer as one text.

        >>> NewsTokens.words({"keywords": ["a", "b", "c"], "topics": ["d", "e"], "audience": "f"})
        'a b c d e f'
        """
        return " ".join([*answer["keywords"], *answer["topics"], answer["audience"]])


class ReaderProfile(Prompt):
    """The titles a reader clicked; the answer is JSON: three interests and a few words about the reader.

    Without an example and with the question last: a small model copies an example's interests, whoever the reader is.
    """

    name = "reader_profile"
    history_length = 8
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
        return _question(self.text, history=listed(history[-self.history_length :]))

    @staticmethod
    def words(answer: dict[str, Any]) -> str:
        """Return an answer as one text.

        >>> ReaderProfile.words({"interests": ["a", "b", "c"], "profile": "d e"})
        'a b c d e'
        """
        return " ".join([*answer["interests"], answer["profile"]])


class PreferenceSummary(Prompt):
    """Titles that a reader clicked; the answer is a sentence or two on what the reader likes. Three questions.

    `block` asks about titles alone, `merge` about several answers, `update` about an answer and the titles clicked since
    (LLM-TRSR, https://arxiv.org/abs/2403.13325). Without an example and with the question last: a small model copies an
    example, whoever the reader is.
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
        """Return the record that asks about several summaries of one reader, oldest first."""
        return self._record("merge", listed(summaries))

    def update(self, summary: str, titles: list[str]) -> Record:
        """Return the record that asks about a summary and the titles clicked since, oldest first."""
        return self._record("update", f"{self.text['likes'].format(summary=summary)}\n{listed(titles)}")

    def _record(self, kind: str, shown: str) -> Record:
        asked = f"{shown}\n{self.text['ask']}"
        return {"system": self.text["system"], "instruction": self.text[kind], "input": asked, "output": ""}


@dataclass(frozen=True)
class SummaryParts:
    """What a model wrote about a reader, "" for nothing; the titles clicked last, oldest first; one candidate."""

    summary: str
    history: list[str]
    candidate: str
    is_click: bool


class Summary(Format):
    """A preference summary, the latest titles and one candidate; Yes. or No., scored as `pointwise` (LLM-TRSR).

    The paper's softmax over the probabilities of Yes and No is a rising function of this score: the same ranking.
    """

    name = "summary"
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


def _question(text: dict[str, str], **parts: str | int) -> Record:
    return {
        "system": text["system"],
        "instruction": text["instruction"],
        "input": text["input"].format(**parts),
        "output": "",
    }


FORMATS = {
    form.name: form for form in (LikesDislikes, Pointwise, NextClick, NextTopic, Summary)
}  # to train on
PROMPTED = {
    form.name: form for form in (Recency, InContext, Listwise, JsonList)
}  # that only ask, protocol `dev`
YES_NO = (
    LikesDislikes.name,
    Pointwise.name,
    Summary.name,
    Recency.name,
    InContext.name,
)  # log P(Yes) - log P(No)


def history_length_of(form: str, asked: int | None) -> int | None:
    """Return how many titles of a history to show: as `asked`, else the format's own; None if unknown.

    >>> history_length_of("next_click", 4), history_length_of("likes_dislikes", None)
    (4, 3)
    """
    return asked if asked is not None else getattr({**FORMATS, **PROMPTED}.get(form), "history_length", None)
