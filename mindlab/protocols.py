"""Protocols: which impressions train, which test, and which candidates count.

`seed` is the tutorial's: MINDsmall's training impressions, shuffled and cut 8 to 2, the last candidate
of each as the target. `dev` is the honest one: fit on 9-13 November, choose on the 14th, refit on
9-14, report on the 15th (dev), every candidate of every impression. The two `sampled` ones are what much of the
literature on language models reports, and are here to show how a protocol makes a number:
`sampled-impression` is `dev` with one click and 20 non-clicks of each test impression; `sampled` (as LLM-TRSR,
https://arxiv.org/abs/2403.13325) asks for the last click of a history among 20 news drawn from the whole catalogue.

A folder that has ``valid/`` in place of ``train/`` (mindlab/recprompt.py) has nothing to train on: `dev` and
`sampled-impression` choose on that and report on dev, the other two do not apply.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindlab.errors import UserError
from mindlab.mind import Impressions, Mind, splits_in

VALIDATION = "valid"  # a split of `dev`; of MIND's files only where there is no training split
VALIDATION_DAY = np.datetime64("2019-11-14")
SEED_TRAIN_SHARE = 0.8
PROTOCOLS = ("seed", "dev", "sampled", "sampled-impression")
NEEDS_TRAINING = ("seed", "sampled")
SUBMISSION, SUBMITTED = "submission", "test"  # a split of `dev`, and MIND's name for it
NEGATIVES = 20  # of a test case of the two sampled protocols
INTERACTIONS = 10, 25  # clicks before the target that `sampled` shows: at least, at most


def seed_splits(mind: Mind, seed: int) -> dict[str, Impressions]:
    """Return `train` and `test` of the tutorial: all training impressions, shuffled, cut 8 to 2.

    MINDsmall's 156,965 give 125,572 and 31,393. The shuffle mixes days and readers, as the tutorial does.
    """
    train = _split(mind, "train")
    order = np.random.default_rng(seed).permutation(len(train))
    cut = int(len(train) * SEED_TRAIN_SHARE)
    return {"train": train.take(order[:cut]), "test": train.take(order[cut:])}


def dev_splits(mind: Mind) -> dict[str, Impressions]:
    """Return `fit` (9-13 Nov), `valid` (14 Nov), `train` (both, for the refit) and `test` (dev).

    `submission` is MIND's own test split, which has no labels: what its leaderboard wants ranked. Rows stay in
    file order. A split whose file was not read is left out. Of data without a training split that has ``valid/``,
    that is `valid`, and there is no `fit` and no `train`.
    """
    if "train" not in mind.splits and VALIDATION in mind.splits:
        splits = {VALIDATION: _split(mind, VALIDATION)}
    else:
        train = _split(mind, "train")
        is_valid = train.times.astype("datetime64[D]") >= VALIDATION_DAY
        splits = {
            "fit": train.take(np.flatnonzero(~is_valid)),
            VALIDATION: train.take(np.flatnonzero(is_valid)),
            "train": train,
        }
    if "dev" in mind.splits:
        splits["test"] = mind.splits["dev"]
    if SUBMITTED in mind.splits:
        splits[SUBMISSION] = mind.splits[SUBMITTED]
    return splits


def folders_of(protocol: str, split: str, data: str | Path) -> tuple[str, ...]:
    """Return the splits of MIND's files in the folder `data` that a split of a protocol needs.

    Whether they are there and whole, `read_mind` says.

    Raises:
        UserError: if `data` has ``valid/`` in place of ``train/`` and the protocol needs to train.

    >>> folders_of("seed", "test", "data/sample"), folders_of("dev", "test", "data/sample")
    (('train',), ('train', 'dev'))
    >>> folders_of("dev", "submission", "data/sample")
    ('train', 'dev', 'test')
    """
    try:
        here = splits_in(data)
    except UserError:
        here = ()
    has_training = "train" in here or VALIDATION not in here
    if not has_training:
        _check_training(protocol, here, str(data))
    if protocol == "seed":
        return ("train",)
    return ("train" if has_training else VALIDATION, "dev", *([SUBMITTED] if split == SUBMISSION else []))


def _check_training(protocol: str, splits: Iterable[str], data: str) -> None:
    """Raise `UserError` if a protocol needs the training split, and `splits`, those there are, are without it."""
    if protocol in NEEDS_TRAINING and "train" not in splits:
        raise UserError(
            f"protocol {protocol} needs a training split, and {data} has no train split, only {', '.join(splits)}; "
            "choose --protocol dev, or give a folder that holds train/"
        )


def check(protocol: str) -> None:
    """Raise `UserError` unless there is a protocol of that name."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r}: expected {', '.join(PROTOCOLS)}")


def splits_of(protocol: str, mind: Mind, seed: int) -> dict[str, Impressions]:
    """Return the splits of the protocol with that name."""
    check(protocol)
    _check_training(protocol, mind.splits, "the data")
    if protocol == "seed":
        return seed_splits(mind, seed)
    if protocol == "dev":
        return dev_splits(mind)
    if protocol == "sampled-impression":
        splits = dev_splits(mind)
        return {
            name: part if name in ("fit", "train") else sampled_impressions(part, seed)
            for name, part in splits.items()
        }
    return sampled_splits(mind, seed)


def sampled_impressions(impressions: Impressions, seed: int, negatives: int = NEGATIVES) -> Impressions:
    """Return the impressions with one click and at most `negatives` non-clicks each, all by chance and shuffled.

    An impression with fewer non-clicks keeps all of them: `short_share` says how many those are.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(impressions)), np.diff(impressions.offsets))
    is_click = impressions.labels == 1
    order = np.lexsort((rng.random(len(owner)), ~is_click, owner))  # clicks first, each kind by chance
    clicks = np.bincount(owner, weights=is_click, minlength=len(impressions)).astype(np.int64)
    place = np.arange(len(owner)) - impressions.offsets[:-1][owner]
    rank = np.where(is_click[order], place, place - clicks[owner])
    kept = order[np.where(is_click[order], rank < 1, rank < negatives)]
    kept = kept[np.lexsort((rng.random(len(kept)), owner[kept]))]
    sizes = np.bincount(owner[kept], minlength=len(impressions))
    return replace(
        impressions,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        news=impressions.news[kept],
        labels=impressions.labels[kept],
    )


def short_share(impressions: Impressions, negatives: int = NEGATIVES) -> float:
    """Return the share of impressions with fewer than `negatives` non-clicks."""
    return float(np.mean(np.diff(impressions.offsets) < 1 + negatives)) if len(impressions) else 0.0


def sampled_splits(mind: Mind, seed: int) -> dict[str, Impressions]:
    """Return `train` and `test` of `sampled`: one case a reader, readers shuffled and cut 8 to 2.

    The target is the last news of the reader's history, the history what stands before it without the target
    (the latest `INTERACTIONS`; readers with fewer are left out). A training case has one other news, a test case
    `NEGATIVES`, drawn uniformly from the whole catalogue without the reader's own. Times mean nothing here: all
    are the first moment of the data, so what needs the time of a click has nothing to count.
    """
    rng = np.random.default_rng(seed)
    readers, histories = [], []
    for part in mind.splits.values():
        users, first = np.unique(part.users.astype(str), return_index=True)
        for user, row in zip(users.tolist(), first.tolist(), strict=True):
            readers.append(user)
            histories.append(part.reader_history(row))
    distinct = np.unique(np.array(readers, dtype=object).astype(str), return_index=True)[1]
    chosen = [i for i in distinct.tolist() if (histories[i] != histories[i][-1:]).sum() >= INTERACTIONS[0]]
    if len(chosen) < 2:
        raise UserError(
            f"protocol sampled needs readers with more than {INTERACTIONS[0]} clicks; here are none"
        )
    order = rng.permutation(len(chosen))
    cut = int(len(order) * SEED_TRAIN_SHARE)
    start = min(part.times.min() for part in mind.splits.values() if len(part))
    return {
        name: _cases(
            [readers[chosen[i]] for i in rows], [histories[chosen[i]] for i in rows], n, mind, start, rng
        )
        for name, rows, n in (("train", order[:cut], 1), ("test", order[cut:], NEGATIVES))
    }


def _cases(
    readers: list[str],
    histories: list[np.ndarray],
    negatives: int,
    mind: Mind,
    start: np.datetime64,
    rng: np.random.Generator,
) -> Impressions:
    """Return one impression a reader: the last news of the history among `negatives` others."""
    shown, labels = [], []
    for history in histories:
        # Draw a few more than needed: some may be the reader's own, or come twice.
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
        ids=np.arange(1, len(readers) + 1, dtype=np.int64),
        users=np.array(readers, dtype=object),
        times=np.full(len(readers), start),
        history=np.arange(len(readers), dtype=np.int32),
        history_offsets=ends(before),
        history_news=np.concatenate(before).astype(np.int32),
        offsets=ends(shown),
        news=np.concatenate(shown).astype(np.int32),
        labels=np.concatenate(labels),
    )


def limit(n: int, most: int | None, seed: int) -> np.ndarray:
    """Return the rows of a seeded random choice of at most `most` of `n` impressions, ascending."""
    if most is None or most >= n:
        return np.arange(n)
    if most < 1:
        raise UserError(f"--limit {most}: expected at least 1")
    return np.sort(np.random.default_rng(seed).choice(n, size=most, replace=False))


def _split(mind: Mind, name: str) -> Impressions:
    if name not in mind.splits:
        raise UserError(
            f"the data has no {name} split, only {', '.join(mind.splits)}; give a folder that holds {name}/"
        )
    impressions = mind.splits[name]
    if impressions.labels is None:
        raise UserError(f"the {name} split carries no labels; this protocol needs them")
    return impressions
