"""Blends: a weighted sum of other methods' scores, each first standardised within every impression.

`scripts/compare.py --blend NAME=part+part[,chosen]` makes one. A blend reads predictions and nothing else, so a part may be
any run: a count, vectors, a language model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mindlab.common.errors import UserError
from mindlab.common.files import lock, sha256, write_json
from mindlab.common.manifest import REQUEST, check_same_data, is_started, provenance
from mindlab.evaluation.metrics import subset_sha
from mindlab.evaluation.predictions import case_offsets, read_predictions, seed_files, write_predictions
from mindlab.report import complete_manifest

EQUAL, CHOSEN = "equal", "chosen"
# Of the leaderboard, with equal weights: name -> parts.
BLENDS = {"blend": ("minilm-lme", "categories")}
COMMON = ("data", "protocol", "split", "limit", "seed")  # of a request: the parts have these alike


class Blend(NamedTuple):
    """What `parse_blend` reads."""

    name: str
    parts: tuple[str, ...]
    is_chosen: bool = False  # the weights, on the validation split; else they are equal


def parse_blend(text: str) -> Blend:
    """Return the blend that ``NAME=part+part`` or ``NAME=part+part,chosen`` describes.

    Raises:
        UserError: for anything else, a name that is no plain folder name, fewer than two parts, or one named twice.

    >>> parse_blend("both=minilm+category,chosen")
    Blend(name='both', parts=('minilm', 'category'), is_chosen=True)
    """
    name, is_given, rest = text.partition("=")
    listed, comma, how = rest.partition(",")
    parts = tuple(listed.split("+"))
    if not is_given or not all(parts) or (comma and how != CHOSEN):
        raise UserError(f"--blend {text}: expected NAME=part+part or NAME=part+part,{CHOSEN}")
    _check_names(name, parts)
    return Blend(name, parts, how == CHOSEN)


def z_scores(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return (score - mean) / standard deviation over the candidates of each impression, float64 (n_candidates,).

    The standard deviation is that of the impression's candidates themselves (divided by n, not n - 1). Where all are
    equal, or there is one, the result is 0.

    Args:
        scores: float (n_candidates,), finite.
        offsets: int (n_impressions + 1,); impression i is the slice offsets[i]:offsets[i + 1].

    >>> z_scores(np.array([1.0, 3.0, 5.0, 5.0]), np.array([0, 2, 4])).tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    scores, sizes = np.asarray(scores, np.float64), np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=len(sizes)) / np.maximum(sizes, 1)

    # From the first candidate, so that equal scores are exactly 0, whatever the rounding of their mean.
    centred = scores - scores[np.minimum(offsets[:-1], max(len(scores) - 1, 0))][owner]
    is_flat = mean(centred != 0) == 0
    centred -= mean(centred)[owner]
    spread = np.sqrt(mean(centred**2))
    return np.divide(centred, spread[owner], out=np.zeros_like(centred), where=~is_flat[owner])


def blend_tables(
    tables: Sequence[pa.Table], weights: Sequence[float] | np.ndarray, names: Sequence[str] | None = None
) -> pa.Table:
    """Return the predictions whose score is the weighted sum of the tables' `z_scores`; it holds no answers.

    Args:
        tables: predictions of the same candidates, in key order (as `read_predictions` returns them).
        weights: one a table.
        names: of the tables, for messages.

    Raises:
        UserError: if two tables do not score the same candidates with the same labels, or no case of theirs has two
            candidates to be ranked.
        ValueError: if the weights do not fit the tables, or are not finite.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(tables),) or not np.isfinite(weights).all():
        raise ValueError(f"weights {weights} for {len(tables)} tables")
    z, offsets = _inputs(tables, names)
    if np.diff(offsets).max() < 2:
        raise UserError(
            "a blend compares the candidates of an impression, and these predictions hold one each; "
            "blend runs of another protocol than seed"
        )
    columns = {"score": pa.array(z @ weights), "answer": pa.nulls(len(z), pa.string())}
    frame = tables[0]
    for column, values in columns.items():
        at = frame.schema.get_field_index(column)
        frame = frame.set_column(at, frame.schema.field(at), values)
    return frame


def choose_weights(tables: Sequence[pa.Table], names: Sequence[str] | None = None) -> np.ndarray:
    """Return the weights under which the clicks of labelled predictions are likeliest, float64, >= 0, with the sum 1.

    A click is taken for a choice among all candidates of its impression, with a probability that is the softmax of
    scale * sum_k weight_k * z_k (conditional logit: McFadden, Conditional logit analysis of qualitative choice
    behavior, 1974). Scale and weights are one vector beta = scale * weights >= 0, and the log-likelihood is concave in
    it. Several clicks of an impression are several terms.

    Args:
        tables: predictions of the validation split, one a method, in key order.
        names: of the methods, for messages.

    Raises:
        UserError: as `blend_tables`; without a click among other candidates; and where no method's weight is above 0,
            because none ranks the clicks above the rest.
    """
    from scipy.optimize import minimize

    z, offsets = _inputs(tables, names)
    label = tables[0]["label"]
    is_click = label.fill_null(0).to_numpy() == 1
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    clicks = np.bincount(owner, weights=is_click, minlength=len(sizes))
    if not np.any((clicks > 0) & (clicks < sizes)):
        raise UserError(
            "weights are chosen by clicks among other candidates, and these predictions hold none; "
            "give runs of a labelled validation split, or take equal weights"
        )
    chosen, n = z[is_click].sum(0), clicks.sum()

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the mean log-likelihood of a click, and its gradient."""
        utility = z @ beta
        most = np.maximum.reduceat(utility, offsets[:-1])
        weight = np.exp(utility - most[owner])
        total = np.add.reduceat(weight, offsets[:-1])
        expected = z.T @ (weight / total[owner] * clicks[owner])
        value = chosen @ beta - clicks @ (most + np.log(total))
        return -value / n, -(chosen - expected) / n

    start = np.full(z.shape[1], 1.0 / z.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * z.shape[1])
    if not found.x.sum() > 1e-6:
        raise UserError(
            f"{', '.join(names or ['the methods'])}: none ranks the clicks of the validation split above the rest, so no "
            "weights can be chosen; take equal weights, or other parts"
        )
    return found.x / found.x.sum()


def make_blend(name: str, runs: Sequence[Path], out: Path, chosen_on: Sequence[Path] | None = None) -> Path:
    """Blend finished runs into the run folder ``out/name`` and return it.

    A part trained with k seeds makes k files of predictions; one with a single file goes into each. What the
    blend costs is what its parts cost. A finished blend of the same parts, by the SHA-256 of their predictions, is
    left as it is.

    Args:
        name: of the blend.
        runs: the run folders of its parts, of the same candidates.
        out: the folder for run folders.
        chosen_on: run folders of the same parts, in the same order, on a validation split, to choose the weights on
            (`choose_weights`; of several seeds the mean); without them the weights are equal.

    Raises:
        UserError: if the parts are fewer than two, share a name, were not made from the same data, do not score the
            same candidates, or differ in their number of seeds (1 goes with any); if `chosen_on` is not the same parts
            on another split; if the folder holds another run, or another process writes to it.
    """
    parts = _read_parts(runs)
    _check_names(name, list(parts))
    on = None if chosen_on is None else _read_parts(chosen_on)
    if on is not None and list(on) != list(parts):
        raise UserError(
            f"{name}: weights for {', '.join(parts)} cannot be chosen on {', '.join(on)}; "
            "give the runs of the same parts in the same order"
        )
    manifests = {part: manifest for part, (_, manifest) in parts.items()}
    more = {f"{part} ({run})": manifest for part, (run, manifest) in (on or {}).items()}
    check_same_data(manifests | more)
    first, *others = manifests
    for other in others:
        if manifests[other]["protocol"] != manifests[first]["protocol"]:
            raise UserError(
                f"{other} is a run of the protocol {manifests[other]['protocol']}, {first} of "
                f"{manifests[first]['protocol']}; blend runs of one protocol"
            )
    request = {key: (manifests[first].get("request") or {}).get(key) for key in COMMON}
    asked = {"name": name, **request, "parts": _hashes(parts), "chosen_on": on and _hashes(on)}
    run = Path(out) / name
    if is_started(run, asked):  # the request is written last
        return run
    with lock(run):
        if not is_started(run, asked):
            manifest = _write(run, parts, on)
            write_json(run / "manifest.json", {"name": name, **manifest, "request": asked})
            write_json(run / REQUEST, asked)
    return run


_Parts = Mapping[str, tuple[Path, dict[str, Any]]]  # by name: folder and manifest


def _write(run: Path, parts: _Parts, on: _Parts | None) -> dict[str, Any]:
    """Write the blend's predictions; return what its manifest says of it beside the name and the request."""
    names, manifests = list(parts), [manifest for _, manifest in parts.values()]
    files = _by_seed(parts)
    tables = [[read_predictions(path) for path in paths] for paths in files]
    weights, where = np.full(len(names), 1 / len(names)), EQUAL
    if on is not None:
        valid = [[read_predictions(path) for path in paths] for paths in _by_seed(on)]
        where, split = valid[0][0]["split"][0].as_py(), tables[0][0]["split"][0].as_py()
        if where == split:
            raise UserError(
                f"{run}: weights chosen on the split {split} that the blend is measured on would be too good; "
                "choose them on another split"
            )
        weights = np.mean([choose_weights(seed, names) for seed in valid], axis=0)
    blends = [blend_tables(seed, weights, names) for seed in tables]
    for k, table in enumerate(blends):
        write_predictions(run / ("predictions.parquet" if k == 0 else f"predictions-{k + 1}.parquet"), table)

    def total(key: str, of: Any = sum, digits: int | None = 3) -> float | None:
        """Return the sum of what the parts say, of those that do."""
        found = [manifest[key] for manifest in manifests if manifest.get(key) is not None]
        return round(of(found), digits) if found else None

    longest = max(parts.values(), key=lambda part: len(seed_files(part[0])))[1]
    return {
        "protocol": manifests[0]["protocol"],
        "track": "streaming" if any(one["track"] == "streaming" for one in manifests) else "static",
        "seeds": longest.get("seeds") or [(longest.get("request") or {}).get("seed")],
        "n_impressions": len(case_offsets(blends[0])) - 1,
        "params": total("params", digits=None),
        "chosen": {"weights": dict(zip(names, weights.tolist(), strict=True)), "on": where},
        "train_seconds": total("train_seconds"),
        "seconds": total("seconds"),
        "ms_per_impression": total("ms_per_impression"),
        "peak_mb": total("peak_mb", max, None),
        **provenance(),
        "inputs_sha256": {
            path: found
            for manifest in manifests
            for path, found in (manifest.get("inputs_sha256") or {}).items()
        },
    }


def _read_parts(runs: Sequence[Path]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return folder and manifest of each run, by the run's name."""
    parts: dict[str, tuple[Path, dict[str, Any]]] = {}
    for run in map(Path, runs):
        manifest = complete_manifest(run)
        if manifest["name"] in parts:
            raise UserError(
                f"{run}: a run named {manifest['name']} is in the blend already; name a part once"
            )
        parts[manifest["name"]] = run, manifest
    return parts


def _check_names(name: str, parts: Sequence[str]) -> None:
    """Raise `UserError` unless `name` is a plain folder name and the parts are two or more that differ."""
    if not name or name in (".", "..") or Path(name).name != name:
        raise UserError(f"blend {name!r}: expected a name that a folder can have")
    if len(parts) < 2:
        raise UserError(f"blend {name}: expected two parts or more, there is {', '.join(parts) or 'none'}")
    if len(set(parts)) < len(parts) or name in parts:
        raise UserError(f"blend {name} of {', '.join(parts)}: expected names that differ")


def _by_seed(parts: _Parts) -> list[list[Path]]:
    """Return the files of predictions of every seed, one a part."""
    files = {part: seed_files(run) for part, (run, _) in parts.items()}
    most = max(files, key=lambda part: len(files[part]))
    for part, found in files.items():
        if len(found) not in (1, len(files[most])):
            raise UserError(
                f"{most} has {len(files[most])} seeds, {part} has {len(found)}; make both runs with the same --seeds"
            )
    return [
        [found[k] if len(found) > 1 else found[0] for found in files.values()]
        for k in range(len(files[most]))
    ]


def _hashes(parts: _Parts) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of each part's files of predictions."""
    found = {}
    for part, (run, _) in parts.items():
        files = seed_files(run)
        if not files[0].is_file():
            raise UserError(f"{files[0]}: no such file; make the run of {part} again")
        found[part] = {file.name: sha256(file) for file in files}
    return found


def _inputs(tables: Sequence[pa.Table], names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tables' z-scores, float64 (n_candidates, n_tables), and the offsets of their cases.

    Raises:
        UserError: if a table scores other candidates than the first, or has other labels.
    """
    names = names or [f"table {k + 1}" for k in range(len(tables))]
    wanted = subset_sha(tables[0])
    offsets = case_offsets(tables[0])
    for name, table in zip(names, tables, strict=True):
        if subset_sha(table) != wanted:
            raise UserError(
                f"{names[0]} and {name} cannot be blended: they score other candidates, or with other labels "
                f"({len(tables[0]):,} candidates of {len(offsets) - 1:,} impressions and {len(table):,} of "
                f"{len(case_offsets(table)) - 1:,}); make both runs with the same --data, --protocol, --split and --limit"
            )
    return np.column_stack([z_scores(table["score"].to_numpy(), offsets) for table in tables]), offsets
