"""What a scorer asks of a model, whatever runs it: log-probabilities of token ids, for one user or many."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindlab.common.manifest import peak_memory_mb

Ids = Sequence[int]
Ask = tuple[Ids, Sequence[Ids]]  # a prefix, and lines that each continue it


class Engine:
    """A causal language model that scores and generates token ids.

    An engine answers the three questions one at a time, in bulk, or both: the forms in bulk here ask one at a
    time, and an engine that gains from many prompts at once turns it round. What is asked together may share
    nothing, and the answers do not depend on what is asked together.
    """

    n_parameters: int  # of the model, an adapter merged into it
    tokens_read: int = 0  # tokens put through the model so far
    bulk: int = 1  # how many impressions it likes to be asked at once

    def line_log_probs(self, prefix: Ids, lines: Sequence[Ids]) -> np.ndarray:
        """Return log P(line | prefix) of every line, natural logarithm, summed over its tokens.

        `prefix` has at least one id, every line too. The result is float64, shape (len(lines),).
        """
        raise NotImplementedError

    def last_logits(self, prefix: Ids, lines: Sequence[Ids], tokens: Ids) -> np.ndarray:
        """Return the logits of `tokens` after prefix + line, float64 of shape (len(lines), len(tokens)).

        A row may be off by a constant, as log-probabilities are: only its differences mean something.
        """
        raise NotImplementedError

    def answer(self, prompt: Ids, head: Ids, tokens: Ids, stop: Ids) -> tuple[np.ndarray, list[int]]:
        """Return the logits of `tokens` after prompt + head, as `last_logits`, and the ids generated greedily.

        The ids follow `prompt`, eight at most, and come without the one of `stop` that ended them.
        """
        raise NotImplementedError

    def bulk_line_log_probs(self, asks: Sequence[Ask]) -> list[np.ndarray]:
        """Return `line_log_probs` of each ask."""
        return [self.line_log_probs(*ask) for ask in asks]

    def bulk_last_logits(self, asks: Sequence[Ask], tokens: Ids) -> list[np.ndarray]:
        """Return `last_logits` of each ask."""
        return [self.last_logits(*ask, tokens) for ask in asks]

    def bulk_answers(
        self, prompts: Sequence[Ids], head: Ids, tokens: Ids, stop: Ids
    ) -> list[tuple[np.ndarray, list[int]]]:
        """Return `answer` of each prompt."""
        return [self.answer(prompt, head, tokens, stop) for prompt in prompts]

    def forget(self) -> None:
        """Drop what is kept of earlier prompts: the next answers are those of an engine just made."""

    def peak_mb(self) -> float:
        """Return the largest resident memory since `reset_peak_memory`, in MiB, of all its processes."""
        return peak_memory_mb()

    def about(self) -> dict[str, Any]:
        """Return what a manifest should say of the engine beyond this environment's packages."""
        return {}

    def close(self) -> None:
        """End what the engine started; asking it again is an error."""
