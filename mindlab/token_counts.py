"""Count what a model will read: the tokens of training records, and of scoring an impression.

Both are counted on a seeded sample, with LLaMA-Factory's own template and a model's own tokenizer. Scoring is counted
by the scoring code itself, run with an engine that writes down lengths instead of reading.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.alpaca import BuildOptions, neutral_titles, samples
from mindlab.errors import UserError
from mindlab.llm.hf import chunks
from mindlab.mind import Impressions, Mind
from mindlab.plan import Architecture, Reading, Records
from mindlab.prompts import FORMATS, LikesDislikes
from mindlab.protocols import limit, splits_of

PROTOCOL_OF = {name: "seed" if name == LikesDislikes.name else "dev" for name in FORMATS}
ANSWER = 2  # forward passes of one token for "Yes." and its end, after the one that reads the prompt


class CountingEngine:
    """Stands where `mindlab.llm.hf.HFEngine` does, reads nothing, and keeps the lengths of what it was given."""

    def __init__(self, token_budget: int):
        self.token_budget = token_budget
        self.calls: list[
            tuple[int, list[int], int, int]
        ] = []  # prefix, lines, places scored, tokens generated

    def line_log_probs(self, prefix: Sequence[int], lines: Sequence[Sequence[int]]) -> np.ndarray:
        """Return zeros; every token of a line is scored over the whole vocabulary."""
        sizes = [len(line) for line in lines]
        self.calls.append((len(prefix), sizes, sum(sizes), 0))
        return np.zeros(len(lines))

    def last_logits(
        self, prefix: Sequence[int], lines: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> np.ndarray:
        """Return zeros; only the logits of `tokens` are made, which costs nothing that counts."""
        self.calls.append((len(prefix), [len(line) for line in lines], 0, 0))
        return np.zeros((len(lines), len(tokens)))

    def answer(
        self, prompt: Sequence[int], head: Sequence[int], tokens: Sequence[int], *_: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Return zeros and no text; the answer is taken to be the template's head, Yes or No, a full stop, the end."""
        self.calls.append((len(prompt), [], 1, len(head) + ANSWER))
        return np.zeros(len(tokens)), []

    @property
    def tokens(self) -> int:
        """Tokens given so far, generated ones left out."""
        return sum(prefix + sum(lines) for prefix, lines, *_ in self.calls)

    def flops(self, arch: Architecture) -> float:
        """Return the operations of all calls so far, generated tokens left out."""
        return sum(
            arch.forward_flops(prefix + sum(lines), self.pairs(prefix, lines), scored)
            for prefix, lines, scored, _ in self.calls
        )

    def pairs(self, prefix: int, lines: list[int]) -> int:
        """Return the attention pairs that the engine computes: its mask is dense over a pass and the prefix."""
        total, before = 0, prefix  # the first pass carries the prefix
        for rows in chunks(lines, self.token_budget, prefix) if lines else [[]]:
            new = sum(lines[row] for row in rows)
            total += (before + new) * (prefix + new)
            before = 0
        return total


def reading(
    mind: Mind,
    form: str,
    model: str | Path,
    template: str,
    *,
    cutoff_len: int = 1024,
    token_budget: int = 8192,
    sampled: int = 200,
    seed: int = 42,
) -> Reading:
    """Return what scoring the test split in format `form` reads, the mean over a seeded choice of impressions.

    The no-history term of next_click and next_topic, read once for each news or topic, is left out.
    """
    from mindlab.llm.predict import Request, make_scorer

    protocol = PROTOCOL_OF[form]
    split = splits_of(protocol, mind, seed)["test"]
    engine = CountingEngine(token_budget)
    request = Request(
        "", protocol, form, str(model), template, cutoff_len=cutoff_len, token_budget=token_budget
    )
    score, _ = make_scorer(request, mind, engine)
    rows = limit(len(split), sampled, seed)
    sums = np.zeros(7)
    for row in rows:
        impression = split.take(np.array([row]))
        engine.calls.clear()
        score(impression if form == LikesDislikes.name else impression.without_labels())
        if engine.calls:  # an empty history has nothing to compare: all candidates tie, and nothing is read
            prefix, lines, scored, generated = engine.calls[-1]  # the term without history comes first
            passes = len(chunks(lines, token_budget, prefix)) if lines else 1
            sums[:6] += prefix, sum(lines), engine.pairs(prefix, lines), scored, passes, generated
        sums[6] += impression.offsets[-1]
    prefix, lines, pairs, scored, passes, generated, candidates = (sums / len(rows)).tolist()
    return Reading(form, prefix, lines / candidates, candidates, pairs, scored, passes, generated, len(rows))


def records(
    mind: Mind,
    form: str,
    count: Callable[[dict[str, str]], int],
    *,
    sampled: int = 400,
    readers: int = 5000,
    seed: int = 42,
    **options: Any,
) -> tuple[Records, float, float]:
    """Return the training records of a format, and their number for each impression and each reader.

    They are built as scripts/build_dataset.py does, of a seeded choice of at most `readers` readers with all their
    impressions, and scaled to all; `count` gives the tokens of a record.
    """
    protocol = PROTOCOL_OF[form]
    train = splits_of(protocol, mind, seed)["train"]
    part, n_users = of_readers(train, readers, seed)
    rng = np.random.default_rng(seed)
    made = list(
        samples(part, mind.news, neutral_titles(mind.news), BuildOptions(protocol, form, **options), rng)
    )
    chosen = (FORMATS[form]("en").record(made[at]) for at in limit(len(made), sampled, seed))
    lengths = np.array([count(record) for record in chosen])
    total = len(made) / len(part) * len(train)
    return Records(form, total, lengths), total / len(mind.splits["train"]), total / n_users


def of_readers(impressions: Impressions, most: int, seed: int) -> tuple[Impressions, int]:
    """Return the impressions of a seeded choice of at most `most` readers, and how many readers there are."""
    users = impressions.users.astype(str)
    distinct = np.unique(users)
    chosen = distinct[limit(len(distinct), most, seed)]
    return impressions.take(np.flatnonzero(np.isin(users, chosen))), len(distinct)


def read_records(
    path: str | Path, count: Callable[[dict[str, str]], int], sampled: int = 400, seed: int = 42
) -> Records:
    """Return the records of a data set that scripts/build_dataset.py wrote.

    Raises UserError for a file that is no list of Alpaca records.
    """
    path = Path(path)
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        chosen: Iterator[dict[str, str]] = (made[at] for at in limit(len(made), sampled, seed))
        lengths = np.array([count(record) for record in chosen])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; scripts/build_dataset.py makes it") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: expected a JSON list of Alpaca records, as scripts/build_dataset.py writes"
        ) from None
    if not len(made):
        raise UserError(f"{path}: holds no record")
    return Records(path.stem, len(made), lengths)
