"""LLM-TRSR's task: the last click of a history among 20 news drawn from the whole catalogue, as much of the literature has it.

https://arxiv.org/abs/2403.13325
"""

from typing import ClassVar

import numpy as np

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, Mind
from mindlab.evaluation.metrics import SAMPLED_METRICS, USUAL
from mindlab.tasks.base import USER, Task
from mindlab.tasks.sampled_impression import NEGATIVES, note
from mindlab.tasks.seed import TRAIN_SHARE

INTERACTIONS = 10, 25  # clicks before the target that are shown: at least, at most


class Sampled(Task):
    """One case a user. Times mean nothing, so what needs the time of a click has nothing to count."""

    name: ClassVar = "sampled"
    case: ClassVar = USER
    metrics: ClassVar = (*USUAL, *SAMPLED_METRICS)
    needs_training: ClassVar = True
    has_times: ClassVar = False
    is_whole: ClassVar = False
    counts_histories: ClassVar = True

    def splits(self, mind: Mind, seed: int) -> dict[str, Impressions]:
        """Return `train` and `test`: one case a user, users shuffled and cut 8 to 2.

        The target is the last news of the user's history, the history what stands before it without the target
        (the latest `INTERACTIONS`; users with fewer are left out). A training case has one other news, a test case
        `NEGATIVES`, drawn uniformly from the whole catalogue without the user's own. All times are the first moment of
        the data.
        """
        self.check_training(mind.splits)
        rng = np.random.default_rng(seed)
        ids, histories = [], []
        for part in mind.splits.values():
            users, first = np.unique(part.users.astype(str), return_index=True)
            for user, row in zip(users.tolist(), first.tolist(), strict=True):
                ids.append(user)
                histories.append(part.user_history(row))
        distinct = np.unique(np.array(ids, dtype=object).astype(str), return_index=True)[1]
        chosen = [
            i for i in distinct.tolist() if (histories[i] != histories[i][-1:]).sum() >= INTERACTIONS[0]
        ]
        if len(chosen) < 2:
            raise UserError(
                f"protocol sampled needs users with more than {INTERACTIONS[0]} clicks; here are none"
            )
        order = rng.permutation(len(chosen))
        cut = int(len(order) * TRAIN_SHARE)
        start = min(part.times.min() for part in mind.splits.values() if len(part))
        return {
            name: _cases(
                [ids[chosen[i]] for i in rows], [histories[chosen[i]] for i in rows], n, mind, start, rng
            )
            for name, rows, n in (("train", order[:cut], 1), ("test", order[cut:], NEGATIVES))
        }

    def share_of_clicks(self, known: Impressions) -> float:
        """Return that of a test case."""
        return 1 / (1 + NEGATIVES)

    def notes(self, test: Impressions) -> list[str]:
        """Return what is not comparable."""
        return [note(test)]


def _cases(
    users: list[str],
    histories: list[np.ndarray],
    negatives: int,
    mind: Mind,
    start: np.datetime64,
    rng: np.random.Generator,
) -> Impressions:
    """Return one impression a user: the last news of the history among `negatives` others."""
    shown, labels = [], []
    for history in histories:
        # Draw a few more than needed: some may be the user's own, or come twice.
        drawn = rng.choice(
            len(mind.news), size=min(len(mind.news), negatives + len(history) + 5), replace=False
        )
        others = drawn[~np.isin(drawn, history)][:negatives]
        order = rng.permutation(1 + len(others))
        shown.append(np.append(history[-1], others)[order])
        labels.append((order == 0).astype(np.int8))
    # MIND's histories repeat news; a target that stands before itself would ask for a copy.
    before = [history[history != history[-1]][-INTERACTIONS[1] :] for history in histories]
    ends = lambda parts: np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)  # noqa: E731
    return Impressions(
        ids=np.arange(1, len(users) + 1, dtype=np.int64),
        users=np.array(users, dtype=object),
        times=np.full(len(users), start),
        history=np.arange(len(users), dtype=np.int32),
        history_offsets=ends(before),
        history_news=np.concatenate(before).astype(np.int32),
        offsets=ends(shown),
        news=np.concatenate(shown).astype(np.int32),
        labels=np.concatenate(labels),
    )
