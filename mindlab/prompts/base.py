"""What every prompt declares, and what they share.

A record is ``{"system", "instruction", "input", "output"}``, all strings; in front of a writer (`mindlab.llm.writing`)
it may also have a ``"schema"`` for its answer. Titles come in already neutralised (`mindlab.prompts.special_tokens`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.prompts.special_tokens import neutralise
from mindlab.tasks.base import IMPRESSION

Record = dict[str, Any]
# How a prompt that ranks is asked (`mindlab.llm.score`).
LINE = "line"  # how likely is the candidate's own line as the next of the answer?
TOPIC = "topic"  # how likely is the candidate's topic as the first line of the answer?
YES_NO = "yes or no"  # a question for each candidate: log P(Yes) - log P(No)
LETTER = "letter"  # one question, each candidate behind a letter
ANSWER = "answer"  # one question about the last candidate, whose answer is also generated
WRITTEN = "written"  # a text about all candidates, which is read


@dataclass(frozen=True)
class Source:
    """What a prompt makes the records of a training split from."""

    rows: Impressions  # labelled
    news: News
    shown: np.ndarray  # object (n_news,), from `Prompt.shown`
    options: Any  # `mindlab.finetune.alpaca.BuildOptions`
    rng: np.random.Generator  # decides the order and what is drawn
    summaries: Sequence[str] | None = (
        None  # what was written about the user of each impression, "" for nothing
    )


class Prompt:
    """A text for each language, and what can be done with it."""

    name: ClassVar[str]
    texts: ClassVar[dict[str, dict[str, str]]]
    asks: ClassVar[str | None] = None  # how it ranks; None for a prompt that only has something written
    trains: ClassVar[bool] = False  # `samples` are records to fine-tune on
    case: ClassVar[str] = IMPRESSION  # what it asks about: a task with such cases takes it
    history_length: ClassVar[int] = 8  # the latest titles that it shows unless told otherwise
    options: ClassVar[
        tuple[str, ...]
    ] = ()  # of `mindlab.finetune.alpaca.BuildOptions` and of a scoring request, that it takes
    of_users: ClassVar[bool] = False  # its records are of users, and not of impressions
    shows_labels: ClassVar[bool] = False  # of other candidates than the one it asks about
    shows_summary: ClassVar[bool] = False  # a text about the user, that a language model may have written
    few: ClassVar[str] = "two clicks"  # what users need to give a record

    def __init__(self, language: str = "en"):
        self.text = self.texts[language]

    @property
    def is_yes_no(self) -> bool:
        """Whether the answer is Yes or No."""
        return self.asks in (YES_NO, ANSWER)

    def shown(self, news: News) -> np.ndarray:
        """Return how the prompt shows every news article, object (n_news,): its title."""
        return neutral_titles(news)

    def droppable(self, parts: Any) -> int:
        """Return how many titles can be left out: all of the history, unless a prompt says otherwise."""
        return len(parts.history)

    def record(self, parts: Any, dropped: int = 0) -> Record:
        """Return the Alpaca record with `dropped` titles left out, those that matter least first.

        So the builder can make a prompt fit a token budget without cutting the question off.
        """
        raise NotImplementedError

    def samples(self, source: Source) -> Iterator[Any]:
        """Yield the parts of every record of a training split, in their final order."""
        raise NotImplementedError(f"{self.name} only asks")

    def parts(self, history: list[str], candidate: str, summary: str = "") -> Any:
        """Return the parts of the question about one candidate, for prompts that ask so (`YES_NO`)."""
        raise NotImplementedError

    def writer(self, shown: np.ndarray) -> Any | None:
        """Return what turns blocks of impressions into JSON faster than record by record, if there is such a thing."""
        return None

    def data_set(self, task: str, split: str) -> tuple[str, str]:
        """Return a data set's name and file name.

        >>> Prompt.data_set(type("P", (Prompt,), {"name": "next_click"}), "dev", "train")
        ('mind_dev_next_click_train', 'mind_dev_next_click_train.json')
        """
        name = f"mind_{task}_{self.name}_{split}"
        return name, f"{name}.json"


def yes_no(is_click: bool) -> str:
    """Return the answer of a Yes/No format.

    >>> yes_no(True), yes_no(False)
    ('Yes.', 'No.')
    """
    return "Yes." if is_click else "No."


def listed(titles: list[str]) -> str:
    r"""Return titles as every prompt but the tutorial's lists them.

    >>> listed(["A storm", "A game"])
    '- A storm\n- A game'
    """
    return "\n".join(f"- {title}" for title in titles)


def neutral_titles(news: News) -> np.ndarray:
    """Return the titles as prompts show them, object (n_news,): special tokens in them are plain text."""
    return np.array([neutralise(title) for title in news.title], dtype=object)


def latest(news: np.ndarray, most: int) -> np.ndarray:
    """Return the last `most` of a history."""
    return news[max(0, len(news) - most) :]


def question(text: dict[str, str], **parts: str | int) -> Record:
    return {
        "system": text["system"],
        "instruction": text["instruction"],
        "input": text["input"].format(**parts),
        "output": "",
    }


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
