"""The topics of what a user clicks next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.prompts.base import TOPIC, Prompt, Record, Source, listed
from mindlab.prompts.special_tokens import neutralise
from mindlab.prompts.users import NO_HISTORY_SHARE, clicks_of_users, permute_titles

TOPICS_ASKED = 6  # clicks that the answer of a record names the topics of


@dataclass(frozen=True)
class NextTopicParts:
    """The titles a user clicked, oldest first, and the topics of the next clicks."""

    history: list[str]
    topics: list[str]


class NextTopic(Prompt):
    """Titles in the prompt, and as answer the topics of what the user clicks next, one line each.

    A candidate is scored by how likely its topic is as the first line, minus how likely it is with no
    history: the model reads headlines and says what the user cares for. Candidates of one topic tie.
    """

    name = "next_topic"
    asks = TOPIC
    trains = True
    options = ("permute_titles", "per_token")
    of_users = True
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

    def samples(self, source: Source) -> Iterator[NextTopicParts]:
        """Yield titles, and the topics of the clicks that follow (`next_topic_parts`)."""
        options, topics = source.options, topics_of(source.news)
        parts = next_topic_parts(source.rows, source.shown, topics, options.history_length, source.rng)
        return permute_titles(parts, "history", source.rng) if options.permute_titles else parts


def topics_of(news: News) -> np.ndarray:
    """Return every news' topic as next_topic names it, object (n_news,)."""
    named = [NextTopic.topic(*pair) for pair in zip(news.category, news.subcategory, strict=True)]
    return np.array([neutralise(topic) for topic in named], dtype=object)


def next_topic_parts(
    impressions: Impressions,
    titles: np.ndarray,
    topics: np.ndarray,
    history_length: int,
    rng: np.random.Generator,
) -> Iterator[NextTopicParts]:
    """Yield `TOPICS_ASKED` successive clicks of a user as topics, with the clicks before them as titles.

    A user's clicks, in history and in these impressions, are parted from the latest back; `titles` and
    `topics` are (n_news,). `NO_HISTORY_SHARE` of the samples show no history.
    """
    clicked = clicks_of_users(impressions)
    samples: list[tuple[list[int], list[int]]] = []
    for user in sorted(clicked):  # so that the records depend on the seed alone and not on who came first
        news = clicked[user]
        for end in range(len(news), 1, -TOPICS_ASKED):
            begin = max(1, end - TOPICS_ASKED)
            history = news[max(0, begin - history_length) : begin]
            samples.append(([] if rng.random() < NO_HISTORY_SHARE else history, news[begin:end]))
    for at in rng.permutation(len(samples)):
        history, following = samples[at]
        yield NextTopicParts(titles[history].tolist(), topics[following].tolist())
