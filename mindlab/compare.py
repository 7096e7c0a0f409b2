"""Run recommenders that need no language model into run folders like those of `mindlab.llm.predict`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab import predictions, protocols
from mindlab.errors import UserError
from mindlab.files import lock, write_json
from mindlab.mind import Impressions, Mind, News, no_impressions, read_mind
from mindlab.recommenders import (
    COSTLY,
    CROSS,
    HIDDEN,
    LEARNED,
    NEEDS_NO_CLICKS,
    SIMPLE,
    STREAMING,
    UNTRAINED,
    hidden_states,
    make_cross_encoder,
    make_recommender,
)
from mindlab.recommenders.base import Recommender, score_without_labels
from mindlab.recommenders.leak_rule import always_no, leak_rule
from mindlab.recommenders.oracle import Oracle
from mindlab.recommenders.past import PastLog
from mindlab.recommenders.popularity import HistoryPopularity
from mindlab.runs import (
    REQUEST,
    data_hashes,
    is_started,
    peak_memory_mb,
    provenance,
    reset_peak_memory,
)

ORACLE = "oracle"
# Answers of the protocol `seed` that look at no news; the second reads the labels of the other candidates.
BLIND = {"always-no": always_no, "leak-rule": leak_rule}


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
    protocols.check(request.protocol)
    protocols.folders_of(request.protocol, request.split, request.data)  # does it apply to the data?
    # `seed` needs train alone; dev is read for the log of the past, which the streaming rows ask.
    folders = protocols.folders_of("dev", request.split, request.data)
    has_training = "train" in folders
    known = [*SIMPLE, *COSTLY, ORACLE, *BLIND, *cross_encoder_rows(request)]
    for name in names:
        if name == encoder_row(request) or (name in cross_encoder_rows(request) and has_training):
            continue
        if name not in known:
            raise UserError(f"no recommender {name!r}; expected one of {', '.join(known)}")
        if not has_training and name not in names_of(request.protocol, has_training):
            raise UserError(
                f"{name} learns from clicks, and {request.data} has no training split; leave it out, or use a MIND "
                "folder with train/"
            )
        if name not in names_of(request.protocol):
            raise UserError(
                f"{name} does not apply to protocol {request.protocol} (see mindlab/protocols.py)"
            )
    hashes = data_hashes(request.data, folders)
    mind: Mind | None = None
    for name in progress(names):
        run = out / name
        own = {
            "n_seeds": _n_seeds(request, name),
            "encoder": request.encoder if name == encoder_row(request) else None,
            "cross_encoder": request.cross_encoder if name in cross_encoder_rows(request) else None,
            "cross_pairs": request.cross_pairs if name in (CROSS, *cross_encoder_rows(request)[:1]) else None,
            "inputs_sha256": hashes,
        }
        asked = {**asdict(request), **own}
        if is_started(run, asked):  # the request is written last
            continue
        mind = mind or read_mind(request.data, folders)
        with lock(run):
            if not is_started(run, asked):  # nor by who held the lock before
                _run_one(name, request, mind, run, hashes)
                write_json(run / REQUEST, asked)
    return [out / name for name in names]


def encoder_row(request: Request) -> str | None:
    """Return the name of the row of the request's own encoder, None if it has none.

    >>> encoder_row(Request("data/sample", encoder="zai-org/glm-4-9b-chat-hf"))
    'glm-4-9b-chat-hf-hidden-states'
    """
    return None if request.encoder is None else Path(request.encoder).name + HIDDEN


def cross_encoder_rows(request: Request) -> tuple[str, ...]:
    """Return the names of the rows of the request's own cross-encoder: trained, and as it was drawn.

    >>> cross_encoder_rows(Request("data/sample", cross_encoder="google-bert/bert-base-uncased"))
    ('bert-base-uncased-cross-encoder', 'bert-base-uncased-cross-encoder-untrained')
    """
    if request.cross_encoder is None:
        return ()
    name = f"{Path(request.cross_encoder).name}-{CROSS}"
    return name, name + UNTRAINED


def names_of(protocol: str, has_training: bool = True) -> list[str]:
    """Return the recommenders that apply to a protocol, on data with or without a training split.

    `sampled` has no times, so nothing that counts clicks in time applies; nor does it in `seed`, which trains and
    tests on the same days. An oracle's utilities belong to whole impressions. What is costly is there for the honest
    protocols.

    >>> "popularity" in names_of("dev", has_training=False), names_of("seed", has_training=False)
    (False, [])
    """
    if not has_training:
        applies = () if protocol in protocols.NEEDS_TRAINING else NEEDS_NO_CLICKS
        return [name for name in names_of(protocol) if name in applies]
    if protocol in ("sampled", "seed"):
        return [*(BLIND if protocol == "seed" else ()), *(name for name in SIMPLE if name not in STREAMING)]
    return [*SIMPLE, *COSTLY, *([ORACLE] if protocol == "dev" else [])]


def _run_one(name: str, request: Request, mind: Mind, run: Path, hashes: Mapping[str, str]) -> None:
    splits = protocols.splits_of(request.protocol, mind, request.seed)
    if request.split not in splits:
        raise UserError(
            f"protocol {request.protocol} has no split {request.split!r}, only {', '.join(splits)}"
        )
    rows = protocols.limit(len(splits[request.split]), request.limit, request.seed)
    test = splits[request.split].take(rows)
    # On the validation split nothing of its own day may be learned from.
    # Without a training split there is nothing to learn from: no history of a test user may get in here.
    train = splits.get("fit" if request.split == "valid" else "train", no_impressions())
    seeds = [request.seed + k for k in range(_n_seeds(request, name))]
    reset_peak_memory()
    train_seconds, score_seconds = [], []
    for k, seed in enumerate(seeds):
        begin = time.perf_counter()
        recommender = _recommender(name, request, mind)
        if recommender is not None:
            # The validation split has no day before it to choose on.
            valid = None if request.split == "valid" else splits.get("valid")
            recommender.fit(train, mind.news, valid, np.random.default_rng(seed))
        fitted = time.perf_counter()
        if recommender is None:
            scores = np.where(BLIND[name](test, np.full(len(test), -1)), 1.0, -1.0)
        else:
            # What was shown and clicked, all of it, whatever the protocol samples.
            is_streaming = recommender.track == "streaming"
            past = PastLog([mind.splits["train"], mind.splits["dev"]]) if is_streaming else None
            scores = score_without_labels(recommender, test, mind.news, past)
            if request.protocol == "seed":
                scores = lead_of_last(scores, test.offsets)
        # Vectors and texts that were there already took their time before.
        train_seconds.append(fitted - begin + getattr(recommender, "saved_seconds", 0.0))
        scored = time.perf_counter() - fitted
        score_seconds.append(scored + getattr(recommender, "saved_scoring_seconds", 0.0))
        file = "predictions.parquet" if k == 0 else f"predictions-{k + 1}.parquet"
        table = _table(request, test, mind.news, scores, rows)
        predictions.write_predictions(run / file, table)
    write_json(
        run / "manifest.json",
        {
            "name": name,
            "protocol": request.protocol,
            "track": getattr(recommender, "track", "static"),
            "request": asdict(request),
            "seeds": seeds,
            "n_impressions": len(rows),
            "params": getattr(recommender, "params", 0),
            "trained_on": None if name in (*NEEDS_NO_CLICKS, *BLIND, ORACLE) else request.data,
            "chosen": getattr(recommender, "chosen", None),  # on the validation day
            "texts_written": getattr(
                recommender, "written", None
            ),  # by a language model: answers, faults, cost
            "train_seconds": round(float(np.mean(train_seconds)), 3),  # of one seed
            "seconds": round(float(np.mean(score_seconds)), 3),
            "ms_per_impression": round(1000 * float(np.mean(score_seconds)) / len(rows), 3),
            "peak_mb": round(peak_memory_mb()),
            **provenance(),
            "inputs_sha256": hashes,
        },
    )


def _recommender(name: str, request: Request, mind: Mind) -> Recommender | None:
    """Return a new recommender of that name; None for the blind answers, which nothing is fitted for."""
    if name in BLIND:
        return None
    if name == ORACLE:
        folder = "dev" if request.split == "test" else "train"
        return Oracle(Path(request.data) / folder, mind.splits[folder])
    if request.protocol == "sampled" and name == HistoryPopularity.name:
        return HistoryPopularity()
    if name == encoder_row(request):
        return hidden_states(request.encoder)
    if name in (CROSS, *cross_encoder_rows(request)):
        return make_cross_encoder(name, None if name == CROSS else request.cross_encoder, request.cross_pairs)
    return make_recommender(name)


def _table(request: Request, test: Impressions, news: News, scores: np.ndarray, rows: np.ndarray) -> pa.Table:
    """Return scores as predictions; in `seed` those of the last candidates, with the answers they give."""
    if request.protocol != "seed":
        return predictions.from_scores(request.split, test, news, scores, case_ids=rows)
    last = test.offsets[1:] - 1
    asked = replace(test, offsets=np.arange(len(test) + 1), news=test.news[last], labels=test.labels[last])
    answers = np.where(scores > 0, "Yes.", "No.").tolist()
    places = np.diff(test.offsets) - 1
    return predictions.from_scores(
        request.split, asked, news, scores, answers, case_ids=rows, positions=places
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


def _n_seeds(request: Request, name: str) -> int:
    """Return how often a method is trained: what is not learned comes out the same every time."""
    return request.n_seeds if name in (*LEARNED, *cross_encoder_rows(request)) else 1


def blind_answers(manifest: Mapping[str, Any], frame: pa.Table) -> dict[str, pa.Table]:
    """Return what always-No and the leak rule answer in the cases of a `seed` run, as predictions tables.

    `frame` holds the run's predictions, one target a case; the labels of the other candidates, which the
    rule reads, come from the data that `manifest` names. Raises UserError where that data is not the one
    the run was made from.
    """
    request = manifest.get("request", {})
    data, known = request.get("data"), manifest.get("inputs_sha256", {})
    found = data_hashes(data, ("train",)) if data and Path(data).exists() else {}
    if not found or any(known.get(file) != value for file, value in found.items()):
        raise UserError(f"no always-No and leak-rule rows: {data} is not the data that the run was made from")
    whole = protocols.seed_splits(read_mind(data, ("train",)), request["seed"])[request["split"]]
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
