"""One runner for every method: fit, score, resume, and a run folder that says what was done.

A run folder holds ``request.json`` (what was asked), ``parts/`` while a method that takes long is at work, and at the end
``predictions.parquet`` (``predictions-2.parquet`` and so on for further training seeds) and ``manifest.json``. Running the
same request again goes on with the parts that are missing; a finished run is left as it is. A part is a function of the
request alone, so parts may be scored in any order, by any number of processes (`mindlab.runs.distributed`): the same
bytes.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mindlab.common.errors import UserError
from mindlab.common.files import atomic_path, lock, write_json
from mindlab.common.manifest import REQUEST, data_hashes, is_started, provenance, reset_peak_memory
from mindlab.data.mind import Impressions, Mind, no_impressions, read_mind
from mindlab.evaluation import predictions
from mindlab.recommenders.base import CLICKS, Method, Prepared, Recommender, score_without_labels
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task, limit, task_of
from mindlab.tasks.base import CANDIDATE

Progress = Callable[[Iterable, int, int], Iterator]  # (cases, done before, in all)
# An ordered map that scores parts elsewhere, such as `mindlab.runs.distributed.ray_map`.
Spread = Callable[[Callable[[np.ndarray], pa.Table], Iterable[np.ndarray]], Iterator[pa.Table]]


@dataclass(frozen=True)
class Request:
    """Which impressions a run scores."""

    data: str
    protocol: str = "dev"
    split: str = "test"
    limit: int | None = None
    seed: int = 42

    @property
    def task(self) -> Task:
        """The task."""
        return task_of(self.protocol)

    @property
    def files(self) -> tuple[str, ...]:
        """The splits of MIND's files that are read.

        A task may need train alone; dev is read for the log of the past, which the streaming rows ask.
        """
        self.task.files(self.split, self.data)  # does it apply to the data?
        return task_of("dev").files(self.split, self.data)


def run(
    request: Request,
    method: Method,
    out: str | Path,
    *,
    n_seeds: int = 1,
    progress: Progress = lambda items, *_: iter(items),
    spread: Spread | None = None,
    read: Callable[[], Mind] | None = None,
) -> Path:
    """Fit and score a method into the run folder `out` and return it; nothing is done if it is finished already.

    Fitting uses the task's `train` split (the refit, 9-14 November), `valid` being part of it; on split `valid` it uses
    `fit`. A learned method is trained `n_seeds` times, the first with the request's seed, the next with that + 1. Parts
    are scored here, where `progress` moves with every case, or by `spread`: the result is the same, so either may go on
    with what the other began. `read` returns the data, where several runs share it.

    Raises:
        UserError: if the method does not apply to the task or the data, `out` holds a run of another request, another
            process is writing to it, or the request cannot be met.
    """
    out = Path(out)
    check(method, request)
    seeds = n_seeds if method.is_learned else 1
    hashes = {**data_hashes(request.data, request.files), **method.inputs()}
    asked = {**asdict(request), **method.options, "n_seeds": seeds}
    whole = {**asked, "inputs_sha256": hashes}
    if not _is_finished(out, whole):
        with lock(out):
            if not _is_finished(out, whole):  # nor by who held the lock before
                _run(request, method, out, whole, seeds, progress, spread, read)
    return out


def check(method: Method, request: Request) -> None:
    """Raise UserError unless a method applies to the request's task and data."""
    task, has_training = request.task, "train" in request.files
    method.check(task)
    if method.sees_valid and has_training and request.split == "valid":
        raise UserError(f"{method.name} was trained on the validation day, so nothing can be chosen there")
    if not method.applies(task, has_training):
        raise UserError(
            f"{method.name} learns from clicks, and {request.data} has no training split; leave it out, or use a MIND "
            "folder with train/"
        )


def _is_finished(out: Path, whole: Mapping[str, Any]) -> bool:
    """Return whether `out` holds the whole run and nothing else; UserError if it holds another."""
    return is_started(out, whole) and (out / "manifest.json").exists() and not (out / "parts").exists()


class Work:
    """What it takes to score impressions of a request: ``Work(...)(rows)`` is their part of the predictions.

    Data and model are read when they are first needed, and do not travel: a worker on another machine reads
    them there, under the same paths.
    """

    def __init__(
        self,
        request: Request,
        method: Method,
        seed: int,
        prepared: Prepared | None = None,
        read: Callable[[], Mind] | None = None,
    ):
        """Take what is asked; `prepared` is given where it was made before, `read` returns the data."""
        self.request, self.method, self.seed = request, method, seed
        self.fit_seconds = 0.0
        self._read = read or (lambda: read_mind(request.data, request.files))
        if prepared is not None:
            self.prepared = prepared

    def __reduce__(self) -> tuple:
        """Pickle as what was asked, its paths absolute: a worker may run in another folder."""
        data = str(Path(self.request.data).resolve())
        # Written once, where all users are known: a worker has the texts and asks no model for them.
        return Work, (replace(self.request, data=data), self.method.anywhere(), self.seed, self.prepared)

    @cached_property
    def mind(self) -> Mind:
        """The data that the task's splits are made from."""
        return self._read()

    @cached_property
    def splits(self) -> dict[str, Impressions]:
        """The task's splits; UserError if the one that is asked for is not among them."""
        request = self.request
        splits = request.task.splits(self.mind, request.seed)
        if request.split not in splits:
            raise UserError(
                f"protocol {request.protocol} has no split {request.split!r}, only {', '.join(splits)}"
            )
        return splits

    @property
    def whole(self) -> Impressions:
        """All impressions of the split."""
        return self.splits[self.request.split]

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of `whole` that are scored, int.

        In parts a user's follow each other, so that a history is read once.
        """
        rows = limit(len(self.whole), self.request.limit, self.request.seed)
        in_parts = self.method.part_size is not None
        return rows[np.argsort(self.whole.history[rows], kind="stable")] if in_parts else rows

    @cached_property
    def recommender(self) -> Recommender:
        """The recommender, fitted."""
        request = self.request
        part = (
            "dev" if request.split == "test" and "dev" in self.mind.splits else next(iter(self.mind.splits))
        )
        made = self.method.make().on(request.task, self.mind.splits[part], Path(request.data) / part)
        # On the validation split nothing of its own day may be learned from, and no day before it is there to choose on.
        # Without a training split there is nothing to learn from: no history of a test user may get in here.
        is_valid = request.split == "valid"
        train = self.splits.get("fit" if is_valid else "train", no_impressions())
        valid = None if is_valid else self.splits.get("valid")
        reset_peak_memory()
        begin = time.perf_counter()
        made.fit(train, self.mind.news, valid, np.random.default_rng(self.seed))
        self.fit_seconds = time.perf_counter() - begin
        return made

    @cached_property
    def prepared(self) -> Prepared:
        """What was written before anything is scored."""
        return self.recommender.prepare(self.whole.take(self.rows).without_labels(), self.mind.news)

    @cached_property
    def ready(self) -> Recommender:
        """The recommender, ready to score."""
        made, prepared = self.recommender, self.prepared
        made.start(np.unique(self.whole.take(self.rows).news), self.mind.news, prepared)
        return made

    @cached_property
    def past(self) -> PastLog | None:
        """What was shown and clicked, all of it, whatever the task samples; None for a method that may not ask."""
        is_streaming = self.method.track == "streaming"
        return PastLog([self.mind.splits["train"], self.mind.splits["dev"]]) if is_streaming else None

    def close(self) -> None:
        """End what scoring started."""
        if "ready" in self.__dict__:
            self.ready.close()

    def __call__(self, rows: Iterable[int]) -> pa.Table:
        """Return the predictions of some rows of `whole`; the table's metadata says what they cost."""
        made, rows = self.ready, np.array(list(rows), dtype=np.int64)
        before, begin = made.cost(), time.perf_counter()
        test = self.whole.take(rows)
        scores = _scores(made, self.request.task, test, self.mind, self.past)
        seconds = time.perf_counter() - begin
        after = made.cost()
        cost = {
            "seconds": seconds + made.saved_scoring_seconds,
            "tokens": after["tokens"] - before["tokens"] if "tokens" in after else None,
            "peak_mb": after["peak_mb"],
            "fit_seconds": self.fit_seconds + made.saved_seconds,
            "track": made.track,
            "params": made.params,
            "chosen": made.chosen,
            "written": made.written,
            "about": made.about(),
        }
        table = _table(self.request, test, self.mind, scores, made.answers, rows)
        return table.replace_schema_metadata({"cost": json.dumps(cost)})


def _run(
    request: Request,
    method: Method,
    out: Path,
    whole: Mapping[str, Any],
    n_seeds: int,
    progress: Progress,
    spread: Spread | None,
    read: Callable[[], Mind] | None,
) -> None:
    parts = out / "parts"
    if is_started(out, whole) and (out / "manifest.json").exists():  # stopped while it removed its parts
        shutil.rmtree(parts)
        return
    seeds = [request.seed + k for k in range(n_seeds)]
    by_seed: list[list[dict[str, Any]]] = []  # what each part cost
    for k, seed in enumerate(seeds):
        made = method.ready(request.data, out, k)
        work = Work(request, made, seed, read=read)
        with closing(work):
            tables = _tables(work, out, parts / f"{k + 1}", whole, progress, spread)
        read = lambda mind=work.mind: mind  # noqa: E731
        by_seed.append([json.loads(table.schema.metadata[b"cost"]) for table in tables])
        table = pa.concat_tables([one.replace_schema_metadata() for one in tables])
        in_order = table.sort_by([("case_id", "ascending"), ("position", "ascending")])
        file = "predictions.parquet" if k == 0 else f"predictions-{k + 1}.parquet"
        predictions.write_predictions(out / file, in_order)
    n, costs, first = len(work.rows), [cost for parts_of in by_seed for cost in parts_of], by_seed[0][0]
    written = costs[-1]["written"] or work.prepared.cost
    seconds = sum(cost["seconds"] for cost in costs) / n_seeds
    tokens = None if costs[0]["tokens"] is None else sum(cost["tokens"] for cost in costs)
    if written and work.recommender.scores_are_written:
        for cost in written.values():
            seconds += cost["seconds"]
            tokens = (tokens or 0) + cost["tokens_read"] + cost["tokens_written"]
    write_json(
        out / "manifest.json",
        {
            "name": method.name,
            "protocol": request.protocol,
            "track": first["track"],
            "request": {key: value for key, value in whole.items() if key != "inputs_sha256"},
            "seeds": seeds,
            "n_impressions": n,
            "params": first["params"],
            "trained_on": request.data if CLICKS in method.needs else None,
            "chosen": costs[-1]["chosen"],
            "texts_written": written,
            "train_seconds": round(float(np.mean([parts_of[0]["fit_seconds"] for parts_of in by_seed])), 3),
            "seconds": round(seconds, 3),
            "ms_per_impression": round(1000 * seconds / n, 3),
            "tokens": tokens,
            "tokens_per_impression": None if tokens is None else round(tokens / n, 1),
            "peak_mb": round(max(cost["peak_mb"] for cost in costs)),
            **provenance(),
            **first["about"],
            "inputs_sha256": whole["inputs_sha256"],
        },
    )
    if not (out / REQUEST).exists():
        write_json(out / REQUEST, whole)
    shutil.rmtree(parts, ignore_errors=True)


def _tables(
    work: Work, out: Path, parts: Path, whole: Mapping[str, Any], progress: Progress, spread: Spread | None
) -> list[pa.Table]:
    """Return the predictions of one seed, in parts; those that are missing are scored, and kept until the run is done.

    `parts` is the beginning of their paths.
    """
    size = work.method.part_size
    if size is None:
        return [work(work.rows)]
    rows = work.rows
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    paths = [parts.with_name(f"{parts.name}-{b:05d}.parquet") for b in range(len(blocks))]
    missing = [b for b, path in enumerate(paths) if not path.exists()]
    n_done = len(rows) - sum(len(blocks[b]) for b in missing)
    if spread is None and missing:
        _ = work.ready  # before the progress bar: this may fail, and takes a while
    cases = progress((case for b in missing for case in blocks[b]), n_done, len(rows))
    if spread is None:
        tables = map(work, (islice(cases, len(blocks[b])) for b in missing))
    else:
        tables = spread(work, [blocks[b] for b in missing])
    for b, table in zip(missing, tables, strict=True):
        if not (out / REQUEST).exists():  # not before: a request that cannot be met leaves nothing behind
            write_json(out / REQUEST, whole)
        with atomic_path(paths[b]) as path:
            pq.write_table(table, path, write_page_checksum=True)
        if spread is not None:
            for _ in islice(cases, len(blocks[b])):
                pass
    for _ in cases:  # there is none; a progress bar ends when it is told so
        pass
    return [_read_part(path) for path in paths]


def _read_part(path: Path) -> pa.Table:
    """Return a part; UserError where it is gone or damaged: what is left is gone on with."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if path.exists():
            path.rename(path.with_suffix(".damaged"))
        raise UserError(
            f"{path}: gone or damaged since it was written ({str(error).splitlines()[0]}); run the same command again, "
            "which scores it anew"
        ) from None


def _scores(
    recommender: Recommender, task: Task, test: Impressions, mind: Mind, past: PastLog | None
) -> np.ndarray:
    """Return a score for each candidate that the task asks about."""
    if recommender.answers_last:
        given = test if recommender.reads_labels else test.without_labels()
        return recommender.score(given, mind.news, None)
    scores = score_without_labels(recommender, test, mind.news, past)
    return lead_of_last(scores, test.offsets) if task.case == CANDIDATE else scores


def _table(
    request: Request,
    test: Impressions,
    mind: Mind,
    scores: np.ndarray,
    answers: list[str | None] | None,
    rows: np.ndarray,
) -> pa.Table:
    """Return scores as predictions; of a task about last candidates theirs, with the answers that they give."""
    if request.task.case != CANDIDATE:
        return predictions.from_scores(request.split, test, mind.news, scores, answers, case_ids=rows)
    last = test.offsets[1:] - 1
    labels = None if test.labels is None else test.labels[last]
    asked = replace(test, offsets=np.arange(len(test) + 1), news=test.news[last], labels=labels)
    said = answers or np.where(scores > 0, "Yes.", "No.").tolist()
    places = np.diff(test.offsets) - 1
    return predictions.from_scores(
        request.split, asked, mind.news, scores, said, case_ids=rows, positions=places
    )


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
