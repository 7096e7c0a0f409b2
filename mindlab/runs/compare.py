"""Run recommenders that need no language model into run folders like those of `mindlab.llm.predict`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab.common.errors import UserError
from mindlab.common.files import lock, write_json
from mindlab.common.manifest import (
    REQUEST,
    data_hashes,
    is_started,
    peak_memory_mb,
    provenance,
    reset_peak_memory,
)
from mindlab.data.mind import Impressions, Mind, News, no_impressions, read_mind
from mindlab.evaluation import predictions
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.recommenders import METHODS, cross_encoder, embedding
from mindlab.recommenders.base import CLICKS, Method, Recommender, score_without_labels
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task, limit, task_of
from mindlab.tasks.base import CANDIDATE


@dataclass(frozen=True)
class Request:
    """Everything the runs of `compare` depend on, but for the contents of the data."""

    data: str
    protocol: str = "dev"
    split: str = "test"
    limit: int | None = None
    seed: int = 42
    n_seeds: int = (
        3  # trainings of a method whose weights are learned; the first has `seed`, the next `seed` + 1
    )
    encoder: str | None = None  # a causal language model, for a further row of its hidden states
    cross_encoder: str | None = None  # an encoder, for rows that read reader and candidate with it
    cross_pairs: int | None = None  # that the training of a cross-encoder reads, if not its own number

    @property
    def own(self) -> dict[str, tuple[Method, tuple[str, ...]]]:
        """The rows that the request's own models make, by name, each with the options that it depends on.

        >>> [*Request("data/sample", encoder="zai-org/glm-4-9b-chat-hf").own]
        ['glm-4-9b-chat-hf-hidden-states']
        """
        found: list[tuple[Method, tuple[str, ...]]] = []
        if self.encoder:
            found.append((embedding.of_model(self.encoder), ("encoder",)))
        if self.cross_pairs:
            found.append((cross_encoder.methods(None, self.cross_pairs)[0], ("cross_pairs",)))
        if self.cross_encoder:
            trained, untrained = cross_encoder.methods(self.cross_encoder, self.cross_pairs)
            found += [(trained, ("cross_encoder", "cross_pairs")), (untrained, ("cross_encoder",))]
        return {method.name: (method, options) for method, options in found}

    @property
    def methods(self) -> dict[str, Method]:
        """All rows that the request may ask for, by name."""
        return METHODS | {name: method for name, (method, _) in self.own.items()}


def compare(
    request: Request,
    names: list[str],
    out: Path,
    progress: Callable[[Iterable[str]], Iterator[str]] = iter,
) -> list[Path]:
    """Fit and score each named recommender; return its run folders, ``out/<name>``.

    A run that is there already, of the same request and data, is kept. Fitting uses the protocol's
    `train` split (the refit, 9-14 November), `valid` being part of it. Of data without a training split only
    what needs no clicks applies; that may choose on `valid`. Raises UserError for an unknown name or one that does
    not apply, a folder that holds another run, and one that another process is writing to.
    """
    task = task_of(request.protocol)
    task.files(request.split, request.data)  # does it apply to the data?
    # A task may need train alone; dev is read for the log of the past, which the streaming rows ask.
    folders = task_of("dev").files(request.split, request.data)
    for name in names:
        check(name, request, "train" in folders)
    hashes = data_hashes(request.data, folders)
    mind: Mind | None = None
    for name in progress(names):
        run, method = out / name, request.methods[name]
        asked = {**asdict(request), **_of_own(request, method), "inputs_sha256": hashes}
        if is_started(run, asked):  # the request is written last
            continue
        mind = mind or read_mind(request.data, folders)
        with lock(run):
            if not is_started(run, asked):  # nor by who held the lock before
                _run_one(method, request, mind, run, hashes)
                write_json(run / REQUEST, asked)
    return [out / name for name in names]


def _of_own(request: Request, method: Method) -> dict[str, Any]:
    """Return the options of a request that not every row depends on, None where this one does not."""
    _, mine = request.own.get(method.name, (method, ()))
    options = ("encoder", "cross_encoder", "cross_pairs")
    return {
        "n_seeds": _n_seeds(request, method),
        **{option: getattr(request, option) if option in mine else None for option in options},
    }


def check(name: str, request: Request, has_training: bool) -> None:
    """Raise UserError unless there is a method of that name, and it applies to the request's task and data."""
    methods, task = request.methods, task_of(request.protocol)
    if name not in methods:
        raise UserError(f"no recommender {name!r}; expected one of {', '.join(methods)}")
    if not methods[name].applies(task):
        raise UserError(f"{name} does not apply to protocol {task.name} (see mindlab/tasks)")
    if not methods[name].applies(task, has_training):
        raise UserError(
            f"{name} learns from clicks, and {request.data} has no training split; leave it out, or use a MIND "
            "folder with train/"
        )


def names_of(protocol: str, has_training: bool = True) -> list[str]:
    """Return the recommenders that apply to a protocol, on data with or without a training split.

    >>> "popularity" in names_of("dev", has_training=False), names_of("seed", has_training=False)
    (False, [])
    """
    task = task_of(protocol)
    return [name for name, method in METHODS.items() if method.applies(task, has_training)]


def _run_one(method: Method, request: Request, mind: Mind, run: Path, hashes: Mapping[str, str]) -> None:
    task = task_of(request.protocol)
    splits = task.splits(mind, request.seed)
    if request.split not in splits:
        raise UserError(f"protocol {task.name} has no split {request.split!r}, only {', '.join(splits)}")
    rows = limit(len(splits[request.split]), request.limit, request.seed)
    test = splits[request.split].take(rows)
    # On the validation split nothing of its own day may be learned from.
    # Without a training split there is nothing to learn from: no history of a test user may get in here.
    train = splits.get("fit" if request.split == "valid" else "train", no_impressions())
    seeds = [request.seed + k for k in range(_n_seeds(request, method))]
    reset_peak_memory()
    train_seconds, score_seconds = [], []
    for k, seed in enumerate(seeds):
        begin = time.perf_counter()
        recommender = _recommender(method, request, mind)
        # The validation split has no day before it to choose on.
        valid = None if request.split == "valid" else splits.get("valid")
        recommender.fit(train, mind.news, valid, np.random.default_rng(seed))
        fitted = time.perf_counter()
        scores = _scores(recommender, task, test, mind)
        # Vectors and texts that were there already took their time before.
        train_seconds.append(fitted - begin + recommender.saved_seconds)
        score_seconds.append(time.perf_counter() - fitted + recommender.saved_scoring_seconds)
        file = "predictions.parquet" if k == 0 else f"predictions-{k + 1}.parquet"
        table = _table(request, task, test, mind.news, scores, rows)
        predictions.write_predictions(run / file, table)
    write_json(
        run / "manifest.json",
        {
            "name": method.name,
            "protocol": request.protocol,
            "track": recommender.track,
            "request": asdict(request),
            "seeds": seeds,
            "n_impressions": len(rows),
            "params": recommender.params,
            "trained_on": request.data if CLICKS in method.needs else None,
            "chosen": recommender.chosen,
            "texts_written": recommender.written,
            "train_seconds": round(float(np.mean(train_seconds)), 3),  # of one seed
            "seconds": round(float(np.mean(score_seconds)), 3),
            "ms_per_impression": round(1000 * float(np.mean(score_seconds)) / len(rows), 3),
            "peak_mb": round(peak_memory_mb()),
            **provenance(),
            "inputs_sha256": hashes,
        },
    )


def _recommender(method: Method, request: Request, mind: Mind) -> Recommender:
    """Return a new recommender for the request's task."""
    part = "dev" if request.split == "test" and "dev" in mind.splits else next(iter(mind.splits))
    return method.make().on(task_of(request.protocol), mind.splits[part], Path(request.data) / part)


def _scores(recommender: Recommender, task: Task, test: Impressions, mind: Mind) -> np.ndarray:
    """Return a score for each candidate that the task asks about."""
    if recommender.reads_labels:
        return recommender.score(test, mind.news, None)
    # What was shown and clicked, all of it, whatever the task samples.
    is_streaming = recommender.track == "streaming"
    past = PastLog([mind.splits["train"], mind.splits["dev"]]) if is_streaming else None
    scores = score_without_labels(recommender, test, mind.news, past)
    return lead_of_last(scores, test.offsets) if task.case == CANDIDATE else scores


def _table(
    request: Request, task: Task, test: Impressions, news: News, scores: np.ndarray, rows: np.ndarray
) -> pa.Table:
    """Return scores as predictions; of a task about last candidates theirs, with the answers that they give."""
    if task.case != CANDIDATE:
        return predictions.from_scores(request.split, test, news, scores, case_ids=rows)
    last = test.offsets[1:] - 1
    asked = replace(test, offsets=np.arange(len(test) + 1), news=test.news[last], labels=test.labels[last])
    answers = np.where(scores > 0, "Yes.", "No.").tolist()
    places = np.diff(test.offsets) - 1
    return predictions.from_scores(
        request.split, asked, news, scores, answers, case_ids=rows, positions=places
    )


def _n_seeds(request: Request, method: Method) -> int:
    """Return how often a method is trained: what is not learned comes out the same every time."""
    return request.n_seeds if method.is_learned else 1


def lead_of_last(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return by how much the last candidate of each impression leads the best of the others, (n_impressions,).

    So a recommender answers the tutorial's question: Yes where it ranks the target alone at the top.

    >>> lead_of_last(np.array([1.0, 3.0, 2.0, 2.0]), np.array([0, 2, 4])).tolist()
    [2.0, 0.0]
    """
    last = offsets[1:] - 1
    others = np.array(scores, dtype=np.float64)
    others[last] = -np.inf
    return scores[last] - np.maximum.reduceat(others, offsets[:-1])


def blind_answers(manifest: Mapping[str, Any], frame: pa.Table) -> dict[str, pa.Table]:
    """Return what always-No and the leak rule answer in the cases of a run of the tutorial's task, as predictions tables.

    `frame` holds the run's predictions, one target a case; the labels of the other candidates, which the
    rule reads, come from the data that `manifest` names. Raises UserError where that data is not the one
    the run was made from.
    """
    request = manifest.get("request", {})
    data, known = request.get("data"), manifest.get("inputs_sha256", {})
    found = data_hashes(data, ("train",)) if data and Path(data).exists() else {}
    if not found or any(known.get(file) != value for file, value in found.items()):
        raise UserError(f"no always-No and leak-rule rows: {data} is not the data that the run was made from")
    whole = task_of(manifest["protocol"]).splits(read_mind(data, ("train",)), request["seed"])[
        request["split"]
    ]
    cases = whole.take(frame["case_id"].to_numpy())
    if not np.array_equal(cases.ids, frame["impression_id"].to_numpy()):
        raise UserError(f"no always-No and leak-rule rows: the run's cases are not impressions of {data}")
    tables = {}
    for name, answer in (("always No", always_no), ("leak rule", leak_rule)):
        is_yes = answer(cases, frame["position"].to_numpy())
        columns = {"score": np.where(is_yes, 1.0, -1.0), "answer": np.where(is_yes, "Yes.", "No.")}
        tables[name] = frame
        for column, values in columns.items():
            at = frame.schema.get_field_index(column)
            tables[name] = tables[name].set_column(at, frame.schema.field(column), pa.array(values))
    return tables
