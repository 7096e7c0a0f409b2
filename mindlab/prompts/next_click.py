"""The headlines that one user clicked, as an answer that goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions
from mindlab.prompts.base import LINE, Prompt, Record, Source, listed
from mindlab.prompts.users import NO_HISTORY_SHARE, clicks_of_users, permute_titles

SHORTEST_LIST = 3  # titles in a list of one interest


@dataclass(frozen=True)
class NextClickParts:
    """The titles one user clicked, oldest first."""

    titles: list[str]


class NextClick(Prompt):
    """A fixed question; the assistant's answer is the user's clicked titles, one line each.

    Every title is a target of plain supervised fine-tuning. A candidate is scored by how likely its
    line is as the next one after the history, minus how likely it is with no history.
    """

    name = "next_click"
    asks = LINE
    trains = True
    options = ("interests", "permute_titles", "per_token")
    of_users = True
    history_length = 12  # read once for all candidates of an impression
    few = f"{SHORTEST_LIST} clicks in one subcategory (--interests 0 asks for less)"
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

    def samples(self, source: Source) -> Iterator[NextClickParts]:
        """Yield lists of what one user clicked (`next_click_parts`)."""
        options = source.options
        parts = next_click_parts(
            source.rows,
            source.shown,
            options.history_length,
            source.rng,
            source.news.subcategory.astype(str),
            options.interests,
        )
        return permute_titles(parts, "titles", source.rng) if options.permute_titles else parts


def next_click_parts(
    impressions: Impressions,
    titles: np.ndarray,
    history_length: int,
    rng: np.random.Generator,
    subcategory: np.ndarray | None = None,
    interests: int = 0,
) -> Iterator[NextClickParts]:
    """Yield lists of the news that one user clicked, in history or in these impressions, oldest first.

    With `interests` 0 there is one list a user, the latest `history_length` clicks. With N, a user's
    clicks are parted by `subcategory` (n_news,), the most clicked first, N to a list: then a list has a
    topic, and a model can learn from a few thousand lists that the next click is like the last ones
    (docs/recipe.md). Lists of fewer than `SHORTEST_LIST` are left out. `NO_HISTORY_SHARE` of the users
    also give one title alone, the form that has no history.
    """
    clicked = clicks_of_users(impressions)
    # A fixed order first, so that the records depend on the seed alone and not on who came first.
    lists: list[np.ndarray] = []
    for user in sorted(user for user, news in clicked.items() if news):
        news = np.array(clicked[user])
        if rng.random() < NO_HISTORY_SHARE:
            lists.append(rng.choice(news, size=1))
        if not interests:
            lists.append(news[-history_length:])
            continue
        news = news[np.sort(np.unique(news, return_index=True)[1])]  # a news clicked twice counts once
        topics, counts = np.unique(subcategory[news], return_counts=True)
        topics = topics[np.argsort(-counts, kind="stable")]
        for first in range(0, len(topics), interests):
            some = news[np.isin(subcategory[news], topics[first : first + interests])]
            if len(some) >= SHORTEST_LIST:
                lists.append(some[-history_length:])
    for at in rng.permutation(len(lists)):
        yield NextClickParts(titles[lists[at]].tolist())
