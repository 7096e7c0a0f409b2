"""Prompt formats: one small class each, which turns titles into an Alpaca record.

A record is ``{"system", "instruction", "input", "output"}``, all strings. A format also says how it
gets shorter: `record(parts, dropped)` leaves out `dropped` titles, those that matter least first, so
that the builder can make a prompt fit a token budget without cutting the question off. `history_length`
is how many of a reader's latest titles it shows unless told otherwise.
Titles come in already neutralised (`mindlab.special_tokens`).
"""

from dataclasses import dataclass
from typing import ClassVar

Record = dict[str, str]


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


@dataclass(frozen=True)
class LikesDislikesParts:
    """What the tutorial puts into one prompt; `likes` and `dislikes` are siblings of the target."""

    history: list[str]
    likes: list[str]
    dislikes: list[str]
    target: str
    is_click: bool


class LikesDislikes:
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

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]

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


class Pointwise:
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

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]

    def droppable(self, parts: PointwiseParts) -> int:
        """Return how many history titles can go: all of them."""
        return len(parts.history)

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


@dataclass(frozen=True)
class NextClickParts:
    """The titles one reader clicked, oldest first."""

    titles: list[str]


class NextClick:
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

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]

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


class NextTopic:
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

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]

    def droppable(self, parts: NextTopicParts) -> int:
        """Return how many history titles can go: all of them."""
        return len(parts.history)

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


FORMATS = {form.name: form for form in (LikesDislikes, Pointwise, NextClick, NextTopic)}
YES_NO = (LikesDislikes.name, Pointwise.name)  # whose score is log P(Yes) - log P(No)


def history_length_of(form: str, asked: int | None) -> int | None:
    """Return how many titles of a history to show: as `asked`, else the format's own; None if unknown.

    >>> history_length_of("next_click", 4), history_length_of("likes_dislikes", None)
    (4, 3)
    """
    return asked if asked is not None else getattr(FORMATS.get(form), "history_length", None)
