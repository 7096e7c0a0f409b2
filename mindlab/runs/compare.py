"""Run recommenders by their names in the leaderboard, into run folders beside each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab.common.errors import UserError
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import Mind, read_mind
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.recommenders import METHODS, cross_encoder, embedding
from mindlab.recommenders.base import Method
from mindlab.runs.run import Progress, Request, check, run
from mindlab.tasks import task_of


def own_methods(
    encoder: str | None = None, encoder_pair: str | None = None, pairs: int | None = None
) -> dict[str, Method]:
    """Return the rows of models of one's own, by name.

    Args:
        encoder: a causal language model, for a row of its hidden states.
        encoder_pair: an encoder, for rows that read user and candidate with it.
        pairs: how many pairs a cross-encoder's training reads, if not its own number.

    >>> [*own_methods(encoder="zai-org/glm-4-9b-chat-hf")]
    ['glm-4-9b-chat-hf-hidden-states']
    """
    found = [embedding.of_model(encoder)] if encoder else []
    if pairs:
        found.append(cross_encoder.methods(None, pairs)[0])
    if encoder_pair:
        found += cross_encoder.methods(encoder_pair, pairs)
    return {method.name: method for method in found}


def compare(
    request: Request,
    names: Iterable[str],
    out: str | Path,
    progress: Callable[[Iterable[str]], Iterator[str]] = iter,
    *,
    n_seeds: int = 3,
    n_long: int = 1,
    methods: Mapping[str, Method] = METHODS,
    cases: Progress = lambda items, *_: iter(items),
) -> list[Path]:
    """Fit and score each named method; return its run folders, ``out/<name>``.

    What is learned is trained `n_seeds` times, or `n_long` where that takes an hour each; the data is read once. `methods` are those that may be named. `cases`
    is a progress over the cases of each method that is scored in parts.

    Raises:
        UserError: for an unknown name, before anything is run, and as `mindlab.runs.run.run` does.
    """
    names = list(names)
    for name in names:
        if name not in methods:
            raise UserError(f"no recommender {name!r}; expected one of {', '.join(methods)}")
        check(methods[name], request)

    @cache
    def read() -> Mind:
        return read_mind(request.data, request.files)

    runs = []
    for name in progress(names):
        method = methods[name]
        seeds = n_long if method.trains_long else n_seeds
        runs.append(run(request, method, Path(out) / name, n_seeds=seeds, progress=cases, read=read))
    return runs


def names_of(protocol: str, has_training: bool = True) -> list[str]:
    """Return the recommenders that apply to a protocol, on data with or without a training split.

    >>> "popularity" in names_of("dev", has_training=False), names_of("seed", has_training=False)
    (False, [])
    """
    task = task_of(protocol)
    return [name for name, method in METHODS.items() if method.applies(task, has_training)]


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
