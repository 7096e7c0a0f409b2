"""The tutorial's prompt, which leaks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions
from mindlab.prompts.base import ANSWER, Prompt, Record, Source, yes_no
from mindlab.prompts.tutorial_writer import TutorialWriter
from mindlab.tasks.base import CANDIDATE


@dataclass(frozen=True)
class LikesDislikesParts:
    """What the tutorial puts into one prompt; `likes` and `dislikes` are siblings of the target."""

    history: list[str]
    likes: list[str]
    dislikes: list[str]
    target: str
    is_click: bool


class LikesDislikes(Prompt):
    """The tutorial's prompt, kept as it is: it shows the labels of the target's siblings, so it leaks.

    Every MIND impression has a click, so an empty "User likes:" line proves the answer Yes.
    """

    name = "likes_dislikes"
    asks = ANSWER
    trains = True
    case = CANDIDATE
    history_length = 3
    shows_labels = True
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

    def samples(self, source: Source) -> Iterator[LikesDislikesParts]:
        """Yield the tutorial's sample of every impression."""
        return likes_dislikes_parts(source.rows, source.shown)

    def writer(self, shown: np.ndarray) -> TutorialWriter:
        """Return the fast way."""
        return TutorialWriter(self, shown)

    def data_set(self, task: str, split: str) -> tuple[str, str]:
        """Return the names that the tutorial's configs read.

        >>> LikesDislikes().data_set("seed", "train")
        ('mind', 'mind_train.json')
        """
        return {"train": ("mind", "mind_train.json"), "test": ("mind_test", "mind_test.json")}[split]


def likes_dislikes_parts(impressions: Impressions, titles: np.ndarray) -> Iterator[LikesDislikesParts]:
    """Yield the tutorial's sample of every impression: the last candidate is the target."""
    for i in range(len(impressions)):
        shown, labels = titles[impressions.candidates(i)], impressions.candidate_labels(i)
        siblings = labels[:-1] == 1
        yield LikesDislikesParts(
            history=titles[impressions.user_history(i)[-LikesDislikes.history_length :]].tolist(),
            likes=shown[:-1][siblings].tolist(),
            dislikes=shown[:-1][~siblings].tolist(),
            target=shown[-1],
            is_click=bool(labels[-1]),
        )
