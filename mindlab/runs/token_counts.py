"""Count what a model will read: the tokens of training records, and of scoring an impression.

Both are counted on a seeded sample, with LLaMA-Factory's own template and a model's own tokenizer. Scoring is counted
by the scoring code itself, run with an engine whose forward pass writes lengths down instead of reading.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, Mind
from mindlab.finetune.alpaca import BuildOptions
from mindlab.finetune.plan import Architecture, Reading, Records
from mindlab.llm.hf import HFEngine, Pass, Prefix
from mindlab.llm.options import Options
from mindlab.prompts import PROMPTS, prompt_of
from mindlab.recommenders.llm import LLMRanker, ranker
from mindlab.runs.run import Request, Work
from mindlab.tasks import TASKS, limit, task_of

# The task of each prompt that is trained on. Without those that show a summary: most of what they take is writing, which
# depends on what is written.
PROTOCOL_OF = {
    name: next(task.name for task in TASKS.values() if task.case == prompt.case)
    for name, prompt in PROMPTS.items()
    if prompt.trains and not prompt.shows_summary
}
ANSWER = 3  # ids: Yes or No, a full stop, the end; the last is written but not read


class CountingEngine(HFEngine):
    """The engine without a model: it keeps prefixes and cuts lines as ever, but a forward pass is only counted.

    It takes the answer of `likes_dislikes` to be what the template trains: Yes or No, a full stop, the end.
    """

    n_parameters = 0

    def __init__(self, token_budget: int | None = None):
        """Take the new tokens of one pass at most; nothing is loaded."""
        self.device, self._token_budget, self._free_bytes = "cpu", token_budget, None
        self._kept, self._is_prefix = [], False
        # A hidden state is one zero; rows of the output layer are wanted of any id.
        self._head_weight = torch.zeros(1, 1).expand(2**31, 1)
        self.tokens_read = 0
        self.reset()

    def reset(self) -> None:
        """Count from zero; what is kept of earlier prefixes stays."""
        self.context = 0  # tokens of the prefixes asked about, read or kept
        self.prefix, self.lines = np.zeros(3), np.zeros(3)  # tokens, attention pairs, passes of each
        self.scored = 0  # rows put through the output layer
        self.generated = 0  # forward passes of one token

    def flops(self, arch: Architecture) -> float:
        """Return the operations counted so far, generated tokens left out."""
        tokens, pairs, _ = self.prefix + self.lines
        return arch.forward_flops(tokens, pairs, self.scored)

    def answer(
        self, prompt: Sequence[int], head: Sequence[int], tokens: Sequence[int], *_: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Return zeros and no text."""
        n, written = len(prompt), len(head) + ANSWER
        self.context += n
        self.prefix += n, n * (n + 1) / 2, 1
        self.scored += 1
        self.generated += written - 1  # the first comes with the prompt
        self.tokens_read += n + written
        return np.zeros(len(tokens)), []

    def _read(self, ids: Sequence[int]) -> Prefix:
        self.context += len(ids)
        self._is_prefix = True
        read = super()._read(ids)
        self._is_prefix = False
        return read

    def _forward(self, tokens: list[int], positions: torch.Tensor, one: Pass) -> torch.Tensor:
        n, past = len(tokens), int(positions.min())
        lines, longest = one.place.shape
        # One line goes through a causal kernel, several through a masked square each.
        near = n * (n + 1) / 2 if lines == 1 else lines * longest**2
        (self.prefix if self._is_prefix else self.lines)[:] += n, n * past + near, 1
        self.tokens_read += n
        return torch.zeros(n, 1)

    def _log_softmax_at(self, hidden: torch.Tensor, source: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        self.scored += len(hidden)
        return np.zeros(len(source))


def reading(
    mind: Mind,
    form: str,
    model: str | Path,
    template: str,
    *,
    cutoff_len: int = 1024,
    token_budget: int = 8192,
    parts: int = 10,
    seed: int = 42,
) -> Reading:
    """Return what scoring the test split in format `form` reads, the mean over a seeded choice of a run's parts.

    The no-history term of next_click and next_topic, read once for each news or topic, is left out.
    """
    asked = Options(form, str(model), template, cutoff_len=cutoff_len, token_budget=token_budget)
    engine = CountingEngine(token_budget)
    method = replace(ranker(form, asked), make=lambda: LLMRanker(asked, engine=engine))
    work = Work(Request("", PROTOCOL_OF[form]), method, seed, read=lambda: mind)
    size = method.part_size
    blocks = [work.rows[i : i + size] for i in range(0, len(work.rows), size)]
    histories = np.diff(work.whole.history_offsets)[work.whole.history[work.rows]]
    work([work.rows[histories.argmax()]])  # reads the no-history term, if any reader has a history
    engine.reset()
    chosen = [blocks[at] for at in limit(len(blocks), parts, seed)]
    for rows in chosen:
        work(rows)
    rows = np.concatenate(chosen)
    candidates = float(np.diff(work.whole.offsets)[rows].mean())
    (prefix, pairs, prefix_passes), (lines, line_pairs, line_passes) = engine.prefix, engine.lines
    n = len(rows)
    return Reading(
        form, prefix / n, lines / n / candidates, candidates, pairs / n, line_pairs / n / candidates, engine.scored / n,
        (prefix_passes + line_passes) / n, engine.generated / n, engine.context / n, n,
    )  # fmt: skip


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
    train = task_of(protocol).splits(mind, seed)["train"]
    part, n_users = of_readers(train, readers, seed)
    rng, prompt = np.random.default_rng(seed), prompt_of(form)()
    asked = BuildOptions(protocol, form, **options)
    made = list(prompt.samples(part, mind.news, prompt.shown(mind.news), asked, rng))
    chosen = (prompt.record(made[at]) for at in limit(len(made), sampled, seed))
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
        if not isinstance(made, list):
            raise TypeError
        chosen: Iterator[dict[str, str]] = (made[at] for at in limit(len(made), sampled, seed))
        lengths = np.array([count(record) for record in chosen])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; scripts/build_dataset.py makes it") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            f"{path}: expected a JSON list of Alpaca records, as scripts/build_dataset.py writes"
        ) from None
    if not len(made):
        raise UserError(f"{path}: holds no record")
    return Records(path.stem, len(made), lengths)
