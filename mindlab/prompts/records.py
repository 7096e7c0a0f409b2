"""From samples to the bytes of a JSON file: records made to fit a token budget, put together in blocks.

A writer turns one job, a block of samples, into a `Part`; writers and jobs can be pickled, and parts depend on their
job alone, so any ordered map may run them (`mindlab.finetune.alpaca.build`).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab.data.mind import Impressions
from mindlab.prompts.base import Prompt, Record, yes_no

IMPRESSIONS = 4096  # in a block of the tutorial's samples
RECORDS = 256  # in a block of any other's
SLACK = 8  # tokens by which a batch estimate may differ, at the seams between text and template


@dataclass(frozen=True)
class Budget:
    """How long a sample may be, in tokens as LLaMA-Factory counts them.

    `count(record)` is exact and slow; `estimate(records)` counts many at once and may be off by `SLACK`.
    """

    count: Callable[[Record], int]
    estimate: Callable[[list[Record]], list[int]]
    cutoff_len: int


@dataclass
class Shortening:
    """What the token check did, for the manifest."""

    checked: int = 0
    shortened: int = 0
    titles_dropped: int = 0
    longest: int = 0
    still_too_long: int = 0

    def add(self, other: "Shortening") -> None:
        """Count in what was done elsewhere."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name == "longest" else mine + value)


def fit_budget(form: Prompt, parts: Any, tokens: int, budget: Budget, done: Shortening) -> Record:
    """Return the record of `parts`, of about `tokens` tokens, with as few titles left out as make it fit.

    A record that is too long even at its shortest is returned at its shortest and counted in
    ``done.still_too_long``.
    """
    record = form.record(parts)
    if tokens < 2 * budget.cutoff_len:  # an estimate will do for the others: they are far too long
        tokens = budget.count(record)
    most = form.droppable(parts)
    dropped = 0
    if tokens > budget.cutoff_len and most:
        # Guess by characters, which are free to count, then walk to the exact border by tokens.
        room = budget.cutoff_len / tokens * len(record["input"] + record["output"])
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            shorter = form.record(parts, middle)
            low, high = (
                (low, middle) if len(shorter["input"] + shorter["output"]) <= room else (middle + 1, high)
            )
        dropped = low
        tokens = budget.count(form.record(parts, dropped))
        while tokens > budget.cutoff_len and dropped < most:
            # Few titles are longer than 25 tokens, so this seldom jumps over the border.
            dropped = min(most, dropped + -(-(tokens - budget.cutoff_len) // 25))
            tokens = budget.count(form.record(parts, dropped))
        while dropped > 1 and tokens < budget.cutoff_len:  # is there room for one title more?
            fewer = budget.count(form.record(parts, dropped - 1))
            if fewer > budget.cutoff_len:
                break
            dropped, tokens = dropped - 1, fewer
        record = form.record(parts, dropped)
    done.shortened += dropped > 0
    done.titles_dropped += dropped
    done.still_too_long += tokens > budget.cutoff_len
    done.longest = max(done.longest, tokens)
    return record


def records(form: Prompt, parts: Iterable[Any], budget: Budget | None, done: Shortening) -> Iterator[Record]:
    """Yield the record of every sample, made to fit the budget if there is one."""
    if budget is None:
        yield from map(form.record, parts)
        return
    for block in batched(parts, 256):
        whole = [form.record(p) for p in block]
        for p, record, tokens in zip(block, whole, budget.estimate(whole), strict=True):
            done.checked += 1
            if tokens + SLACK > budget.cutoff_len:
                record = fit_budget(form, p, tokens, budget, done)
            else:
                done.longest = max(done.longest, tokens)
            yield record


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items (itertools has it from Python 3.12 on)."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


@dataclass(frozen=True)
class Part:
    """Some records as JSON, each with a comma and a newline before it."""

    data: bytes | pa.Buffer
    records: int
    yes: int  # records whose answer is Yes
    done: Shortening = field(default_factory=Shortening)


@dataclass(frozen=True)
class RecordWriter:
    """Turns lists of a format's parts into JSON."""

    form: Prompt
    budget: Budget | None

    def __call__(self, parts: list[Any]) -> Part:
        """Return the records of `parts`."""
        done = Shortening()
        found = list(records(self.form, parts, self.budget, done))
        text = "".join(f",\n{json.dumps(record, ensure_ascii=False)}" for record in found)
        yes = sum(record["output"] == yes_no(True) for record in found)
        return Part(text.encode("utf-8"), len(found), yes, done)


def blocks(impressions: Impressions, history_length: int) -> Iterator[Impressions]:
    """Yield the impressions in blocks that hold no history but their own, cut to its latest `history_length` news."""
    ends = impressions.history_offsets
    for first in range(0, len(impressions), IMPRESSIONS):
        block = impressions.take(np.arange(first, min(first + IMPRESSIONS, len(impressions))))
        shown = np.minimum(np.diff(ends)[block.history], history_length)
        offsets = np.concatenate([[0], np.cumsum(shown)]).astype(np.int64)
        latest = np.repeat(ends[1:][block.history] - offsets[1:], shown) + np.arange(offsets[-1])
        yield replace(
            block,
            history=np.arange(len(block), dtype=np.int32),
            history_offsets=offsets,
            history_news=impressions.history_news[latest],
        )
