"""Run again what a manifest tells, and say what came out differently.

What can be run again: a run folder of `mindlab.runs.run`, the output folder of a training by
`mindlab.finetune.factory`, the manifest of a data set by `mindlab.finetune.alpaca`, and a folder that holds any of these.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab.common.errors import UserError
from mindlab.common.files import read_json, sha256
from mindlab.common.manifest import data_hashes, provenance, read_manifest
from mindlab.data.mind import read_mind
from mindlab.evaluation.metrics import PART_METRICS, evaluate
from mindlab.evaluation.predictions import KEY, read_predictions, seed_files
from mindlab.finetune import alpaca, factory
from mindlab.llm.options import Options
from mindlab.llm.summaries import summariser_of
from mindlab.recommenders import METHODS
from mindlab.recommenders.base import Method
from mindlab.recommenders.llm import ranker
from mindlab.runs import compare
from mindlab.runs.run import Request
from mindlab.runs.run import run as run_again
from mindlab.tasks import task_of

# Sums in another order, by other threads or another processor, differ in the last digits of a score.
METRIC_TOLERANCE = 1e-6
SUFFIX = ".manifest.json"  # of data sets


@dataclass(frozen=True)
class Finding:
    """One thing that was compared, whether it is the same, and how it differs if not to the last bit."""

    run: str
    what: str
    is_same: bool
    text: str


def reproduce(run: Path, out: Path, bar: Callable[..., Iterator] | None = None) -> Iterator[Finding]:
    """Run `run` again into `out`, and yield what was compared; `bar` shows the progress of a scoring.

    Nothing is run where the inputs are not those of then: the first findings say so. What is in `out` already is gone
    on with. Caches of vectors and of written texts are used: their names hold hashes of all they depend on.

    Raises UserError if there is nothing to run, an input is missing, or the manifest is of another version.
    """
    found = list(_parts(run))
    if not found:
        raise UserError(
            f"{run}: no manifest.json, {factory.RECORD} or *{SUFFIX}; give a run folder, a training or a data set"
        )
    for path in found:
        place = out / path.name.removesuffix(SUFFIX) if len(found) > 1 else out
        if path.name.endswith(SUFFIX):
            yield from _data_set(path, place)
        elif (path / factory.RECORD).is_file():
            yield from _training(path, place)
        else:
            yield from _predictions(path, place, bar)


def _parts(run: Path) -> Iterator[Path]:
    """Yield what can be run again in a folder: itself, or what it holds."""
    if _is_part(run):
        yield run
    elif run.is_dir():
        yield from sorted(run.glob(f"*{SUFFIX}"))
        yield from (path for path in sorted(run.iterdir()) if path.is_dir() and _is_part(path))


def _is_part(path: Path) -> bool:
    """Return whether a file or a folder is itself one thing that can be run again."""
    if path.is_file():
        return path.name.endswith(SUFFIX)
    return (path / factory.RECORD).is_file() or "request" in read_manifest(path)


def changes_of_environment(run: Path) -> list[str]:
    """Return how versions, commit and hardware differ from those in a run's manifest; [] if nothing is known of them.

    They make no difference on their own, and explain one.
    """
    then, now = read_manifest(run) if run.is_dir() else {}, provenance()
    lines = []
    for key in ("python", "git_commit"):
        if then.get(key) not in (None, now[key]):
            lines.append(f"{key}: {then[key]} then, {now[key]} now")
    for key in ("packages", "hardware"):
        before = then.get(key)
        for name in before if isinstance(before, dict) else ():
            if before[name] != now[key].get(name):
                lines.append(f"{name}: {before[name]} then, {now[key].get(name)} now")
    return lines


def _inputs(name: str, known: Mapping[str, str]) -> list[Finding]:
    """Return the input files that are not those of then."""
    findings = []
    for path, expected in known.items():
        if not Path(path).is_file():
            raise UserError(
                f"{path}: no such file, but {name} was made from it; get it, or run where it lies"
            )
        if sha256(path) != expected:
            findings.append(Finding(name, path, False, "other contents than then; nothing was run"))
    return findings


def _part_of(kind: type, asked: Mapping[str, Any], source: Path) -> Any:
    """Return the dataclass `kind` of what was asked; what is lacking has its default."""
    names = {field.name for field in fields(kind)}
    try:
        return kind(**{key: value for key, value in asked.items() if key in names})
    except TypeError as error:
        raise UserError(f"{source}: not a whole request ({error}); make the run again") from None


def _check_known(asked: Iterable[str], known: Iterable[str], source: Path) -> None:
    if unknown := set(asked) - set(known):
        raise UserError(
            f"{source}: of another version of this project: it asks for {', '.join(sorted(unknown))}"
        )


def _asked(name: str, asked: Mapping[str, Any], source: Path) -> tuple[Request, Method, int]:
    """Return the request, the method and the number of trainings of a run folder's manifest."""
    own = ("encoder", "cross_encoder", "cross_pairs")
    tuned = ("config", "records", "overrides")
    known = {field.name for kind in (Request, Options) for field in fields(kind)} | {"n_seeds", *own, *tuned}
    _check_known(asked, known, source)
    request = _part_of(Request, asked, source)
    if (
        "format" in asked and "config" not in asked
    ):  # a model that was tuned beside it has its name in the registry
        return request, ranker(name, _part_of(Options, asked, source)), 1
    methods = METHODS | compare.own_methods(*(asked.get(option) for option in own))
    if name not in methods:
        raise UserError(f"{source}: no method {name!r} in this version of the project")
    return request, methods[name], asked.get("n_seeds") or 1


def _predictions(run: Path, out: Path, bar: Callable[..., Iterator] | None) -> Iterator[Finding]:
    manifest = read_manifest(run)
    asked, known = manifest["request"], manifest.get("inputs_sha256") or {}
    if changed := _inputs(run.name, known):
        yield from changed
        return
    name = manifest.get("name") or run.name
    request, method, n_seeds = _asked(name, asked, run / "manifest.json")
    again = run_again(request, method, out / name, n_seeds=n_seeds, **({"progress": bar} if bar else {}))
    if not known:
        yield Finding(run.name, "inputs", True, "the manifest has no hashes, so nothing is known of them")
    files = [path for path in seed_files(run) if path.is_file()]
    for file in files or seed_files(run)[:1]:
        where = again / file.name
        if not where.is_file():
            yield Finding(run.name, file.name, False, "there was one then, now there is none")
            continue
        yield compare_predictions(run.name, file.name, read_predictions(file), read_predictions(where))


def compare_predictions(run: str, file: str, then: pa.Table, now: pa.Table) -> Finding:
    """Return how two predictions tables differ; they are the same if all metrics are within `METRIC_TOLERANCE`."""
    if then.equals(now):
        return Finding(run, file, True, f"the same {len(then):,} rows")
    # The table of an older version may have had no users.
    columns = [*KEY, "impression_id", "news_id", "label"]
    if len(then) != len(now) or not then.select(columns).equals(now.select(columns)):
        return Finding(
            run, file, False, f"other candidates or labels: {len(then):,} rows then, {len(now):,} now"
        )
    scores = float(np.max(np.abs(then["score"].to_numpy() - now["score"].to_numpy())))
    answers = int(np.sum(then["answer"].fill_null("").to_numpy() != now["answer"].fill_null("").to_numpy()))
    text = f"{len(then):,} rows; scores differ by at most {scores:.2g}"
    if answers:
        text += f", {answers:,} answers differ"
    if then["label"].null_count == len(then):  # no labels, no metrics
        return Finding(run, file, scores == 0 and not answers, text)
    before, after = (_metrics(table) for table in (then, now))
    apart = {name: abs(before[name] - after[name]) for name in before}
    worst = max(apart, key=lambda name: apart[name])
    text += f", metrics by at most {apart[worst]:.2g} ({worst})"
    return Finding(run, file, apart[worst] <= METRIC_TOLERANCE, text)


def _metrics(frame: pa.Table) -> dict[str, float]:
    """Return the metrics of a table that are numbers, without their intervals.

    Without the two parts either: a mean taken away from almost equal scores leaves ties that the last digit decides.
    """
    summary = evaluate(frame).summary
    return {
        name: float(value)
        for name, value in summary.items()
        if isinstance(value, int | float)
        and not name.endswith(("_low", "_high"))
        and name not in PART_METRICS
    }


def _training(run: Path, out: Path) -> Iterator[Finding]:
    from omegaconf import OmegaConf

    path = run / factory.RECORD
    record = factory.read_record(path, "train it again")
    settings, known = record.get("settings", {}), record.get("datasets", {})
    for key in ("model_name_or_path", "output_dir"):
        if not isinstance(settings.get(key), str):
            raise UserError(f"{path}: settings name no {key}; train it again")
    found = factory.hash_datasets(settings, Path())
    changed = [name for name in {**known, **found} if known.get(name) != found.get(name)]
    if (base := record.get("base")) and base != factory.base_of(settings["model_name_or_path"]):
        changed.append(settings["model_name_or_path"])
    if changed:
        for name in changed:
            yield Finding(run.name, name, False, "other contents than then; nothing was run")
        return
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.yaml"
    OmegaConf.save({**settings, "output_dir": str(out.resolve() / "adapter")}, config)
    again = factory.train(config)
    yield from compare_weights(run, again)


def compare_weights(run: Path, again: Path) -> Iterator[Finding]:
    """Yield how the weights of two trainings differ: they are the same if every byte is."""
    import torch
    from safetensors.torch import load_file

    files = sorted(run.glob("*.safetensors"))
    if not files:
        yield Finding(run.name, "weights", False, "not there, so that there is nothing to compare with")
    for file in files:
        other = again / file.name
        if not other.is_file():
            yield Finding(run.name, file.name, False, "there was one then, now there is none")
        elif (digest := sha256(file)) == sha256(other):
            yield Finding(run.name, file.name, True, f"the same bytes, SHA-256 {digest[:16]}...")
        else:
            then, now = load_file(file), load_file(other)
            if {name: value.shape for name, value in then.items()} != {
                name: value.shape for name, value in now.items()
            }:
                yield Finding(run.name, file.name, False, "other tensors")
                continue
            apart = max(
                float(torch.max(torch.abs(then[name].double() - now[name].double()))) for name in then
            )
            yield Finding(run.name, file.name, False, f"other bytes; weights differ by at most {apart:.2g}")


def _data_set(path: Path, out: Path) -> Iterator[Finding]:
    name = path.name.removesuffix(SUFFIX)
    manifest = read_manifest_of_data(path)
    known = manifest["inputs_sha256"]
    if changed := _inputs(name, known):
        yield from changed
        return
    _check_known(manifest["options"], [field.name for field in fields(alpaca.BuildOptions)], path)
    options = _part_of(alpaca.BuildOptions, manifest["options"], path)
    data = data_of(known)
    splits = task_of(options.protocol).files("test", data)
    mind = read_mind(data, splits)
    write = summariser_of(options.summary, options.model, options.template, options.language)
    hashes = data_hashes(data, splits)
    again = alpaca.build(mind, options, out, alpaca.make_budget(options), hashes, write=write)
    for one, then in manifest["datasets"].items():
        now = again["datasets"].get(one, {})
        is_same = then["sha256"] == now.get("sha256")
        text = (
            f"the same bytes, SHA-256 {then['sha256'][:16]}..."
            if is_same
            else f"other bytes; {then['records']:,} records then, {now.get('records', 0):,} now"
        )
        yield Finding(name, one, is_same, text)


def read_manifest_of_data(path: Path) -> dict[str, Any]:
    """Return the manifest of a data set; raise UserError if `build` cannot have written it."""
    advice = "build the data set again"
    manifest = read_json(path, advice)
    alpaca.datasets_of(path, manifest)
    if not isinstance(manifest.get("options"), dict):
        raise UserError(f"{path}: not as scripts/build_dataset.py writes it; {advice}")
    hashes = manifest.get("inputs_sha256")
    if (
        not isinstance(hashes, dict)
        or not hashes
        or not all(isinstance(value, str) for value in hashes.values())
    ):
        raise UserError(f"{path}: has no hashes of its data, so that the data cannot be found; {advice}")
    return manifest


def data_of(files: Iterable[str]) -> Path:
    """Return the MIND folder, or the zip, that hashed files belong to.

    >>> data_of(["data/sample/train/news.tsv", "data/sample/train/behaviors.tsv"]).as_posix()
    'data/sample'
    """
    files = list(files)
    if len(files) == 1:
        return Path(files[0])
    folder = Path(os.path.commonpath(files))
    is_split = folder.name in ("train", "dev", "test") or folder.name.endswith(("_train", "_dev", "_test"))
    return folder.parent if is_split else folder
