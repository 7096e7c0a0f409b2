"""Prompts: one file each, which holds its texts, its records, and how it ranks.

`PROMPTS` are those that the commands know by --format; a new one is a file and a line here. The others have something
written, by `mindlab.llm.writing`.
"""

from typing import Any

from mindlab.common.errors import UserError
from mindlab.prompts.base import Prompt, Record, listed, neutral_titles, yes_no
from mindlab.prompts.in_context import InContext
from mindlab.prompts.json_list import JsonList
from mindlab.prompts.likes_dislikes import LikesDislikes, LikesDislikesParts, likes_dislikes_parts
from mindlab.prompts.listwise import ListParts, Listwise
from mindlab.prompts.news_tokens import NewsTokens
from mindlab.prompts.next_click import NextClick, NextClickParts
from mindlab.prompts.next_topic import NextTopic, NextTopicParts
from mindlab.prompts.pointwise import Pointwise, PointwiseParts
from mindlab.prompts.pointwise_topics import PointwiseTopics
from mindlab.prompts.preference_summary import PreferenceSummary
from mindlab.prompts.reader_profile import ReaderProfile
from mindlab.prompts.recency import Recency
from mindlab.prompts.summary import Summary, SummaryParts
from mindlab.tasks import Task

__all__ = [
    "PROMPTS",
    "InContext",
    "JsonList",
    "LikesDislikes",
    "LikesDislikesParts",
    "ListParts",
    "Listwise",
    "NewsTokens",
    "NextClick",
    "NextClickParts",
    "NextTopic",
    "NextTopicParts",
    "Pointwise",
    "PointwiseParts",
    "PreferenceSummary",
    "Prompt",
    "ReaderProfile",
    "Recency",
    "Record",
    "Summary",
    "SummaryParts",
    "check_options",
    "likes_dislikes_parts",
    "listed",
    "neutral_titles",
    "prompt_of",
    "trained_for",
    "yes_no",
]

PROMPTS: dict[str, type[Prompt]] = {
    prompt.name: prompt
    for prompt in (
        *(LikesDislikes, Pointwise, PointwiseTopics, NextClick, NextTopic, Summary),
        *(Recency, InContext, Listwise, JsonList),
    )
}


def prompt_of(name: str) -> type[Prompt]:
    """Return the prompt of that name.

    Raises:
        UserError: if there is none.

    >>> prompt_of("next_click").history_length
    12
    """
    if name not in PROMPTS:
        raise UserError(f"format {name!r}: expected {', '.join(PROMPTS)}")
    return PROMPTS[name]


def trained_for(task: Task) -> list[type[Prompt]]:
    """Return the prompts whose records a task trains on.

    >>> from mindlab.tasks import Sampled
    >>> [prompt.name for prompt in trained_for(Sampled())]
    ['summary']
    """
    return [prompt for prompt in PROMPTS.values() if prompt.trains and prompt.case == task.case]


def check_options(prompt: type[Prompt], given: dict[str, Any]) -> None:
    """Raise UserError for an option, by name, that is given (not empty) and of other prompts alone."""
    for option, value in given.items():
        takers = [other.name for other in PROMPTS.values() if option in other.options]
        if value and takers and prompt.name not in takers:
            raise UserError(
                f"--{option.replace('_', '-')} goes with --format {' or '.join(takers)} alone, not with {prompt.name}"
            )
