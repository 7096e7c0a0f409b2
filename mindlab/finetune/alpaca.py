"""Build Alpaca JSON for LLaMA-Factory: samples, the dataset_info entry that names them, and a manifest.

Data sets are found the LLaMA-Factory way: every YAML says ``dataset_dir: data``, and
``data/dataset_info.json`` names the files under ``data/processed/``.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.errors import UserError
from mindlab.common.files import atomic_path, inside, lock, read_json, sha256, write_json
from mindlab.common.parallel import thread_map
from mindlab.data.mind import Impressions, Mind
from mindlab.prompts import PROMPTS, check_options, prompt_of, trained_for
from mindlab.prompts.base import Source
from mindlab.prompts.records import RECORDS, Budget, Part, RecordWriter, Shortening, batched, blocks
from mindlab.prompts.summary import check_way
from mindlab.tasks import TASKS

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}


@dataclass(frozen=True)
class BuildOptions:
    """What a data set depends on besides the data."""

    protocol: str
    format: str
    seed: int = 42
    negatives: int = 4
    history_length: int | None = None  # None: the format's own
    language: str = "en"
    limit: int | None = None
    interests: int = 1  # next_click: subcategories of a user to one list; 0: one list a user
    permute_titles: bool = False  # next_click, next_topic: a control, the titles dealt out to any user
    summary: str = "recent"  # summary: who wrote the summaries (`Summary.ways`)
    model: str | None = None  # whose tokenizer counts; None: nothing is counted, nothing shortened
    template: str | None = None
    cutoff_len: int | None = None

    def __post_init__(self) -> None:
        """Write the format's own history length down, so that the manifest tells it."""
        if self.history_length is None and self.format in PROMPTS:
            object.__setattr__(self, "history_length", PROMPTS[self.format].history_length)


def make_budget(options: BuildOptions) -> Budget | None:
    """Return the token budget that the options ask for, none without a model."""
    if options.model is None:
        return None
    from mindlab.prompts.chat import ChatTemplate  # imports LLaMA-Factory: ten seconds

    chat = ChatTemplate.load(options.model, options.template)
    return Budget(chat.count, chat.estimate, options.cutoff_len)


def build(
    mind: Mind,
    options: BuildOptions,
    out: Path,
    budget: Budget | None = None,
    inputs_sha256: dict[str, str] | None = None,
    progress: Callable[[Iterator[Part], str, int], Iterator[Part]] = lambda parts, *_: parts,
    run: Callable[[Callable[[Any], Part], Iterable[Any]], Iterator[Part]] | None = None,
    write: Callable[[Impressions, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Write the JSON of every training split under ``out/processed`` and their entries in ``out``.

    `out` is a LLaMA-Factory ``dataset_dir``: its ``dataset_info.json`` keeps the entries of others. The
    test split of `dev` and `sampled` is not written: scoring streams it from the columns, with all candidates. Returns
    the manifest, also written beside the files; the same data, options and versions give the same bytes, but for the
    time that `write` took. `write(impressions, titles)` returns the summaries of a split's users
    (`mindlab.llm.summaries.Summariser`); format summary asks for it unless the way is recent.
    `inputs_sha256`, the hashes of the data files, is kept there for `is_built`. `progress(parts, name, n)` is handed
    the parts of each data set, made of n impressions, as they are written. `run` is an ordered map, over this
    machine's threads unless another is given (`mindlab.runs.distributed` has one over a cluster): its function and jobs
    can be pickled.

    Raises UserError for a protocol and format that do not go together, for a split without impressions, for
    one that gives no record, and while another process writes to `out`.
    """
    task = TASKS.get(options.protocol)
    if task is None or options.format not in [prompt.name for prompt in trained_for(task)]:
        known = ", ".join(f"{name} x {form.name}" for name, one in TASKS.items() for form in trained_for(one))
        raise UserError(
            f"protocol {options.protocol!r} with format {options.format!r}: expected one of {known}"
        )
    form = prompt_of(options.format)(options.language)
    check_options(type(form), {"permute_titles": options.permute_titles})
    check_way(form, options.summary)
    if (options.summary != "recent") != (write is not None):
        raise ValueError(
            f"summaries {options.summary}: `write` makes those that a model writes, and no others"
        )
    shown = form.shown(mind.news)
    splits = task.splits(mind, options.seed)
    if "train" not in splits:
        raise UserError(
            "the data has no train split, so there is nothing to train on; give a folder that holds train/"
        )
    if not task.writes_test:
        splits.pop("test", None)
    for split, impressions in splits.items():
        if not len(impressions):
            raise UserError(
                f"the {split} split of protocol {options.protocol} holds no impression; give more data"
            )
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: expected at least 1")
    entries, files = {}, {}
    fast = form.writer(shown) if budget is None else None
    to_json = fast or RecordWriter(form, budget)
    with lock(out):
        for split, impressions in splits.items():
            if options.limit is not None and options.limit < len(impressions):
                keep = np.random.default_rng(options.seed).permutation(len(impressions))[: options.limit]
                impressions = impressions.take(keep)
            name, file_name = form.data_set(task.name, split)
            rng = np.random.default_rng(
                [options.seed, sorted(("fit", "valid", "train", "test")).index(split)]
            )
            if fast:
                parts = (run or thread_map)(to_json, blocks(impressions, form.history_length))
            else:
                written = write(impressions.without_labels(), shown) if write else None
                texts = written and written.texts
                samples = form.samples(Source(impressions, mind.news, shown, options, rng, texts))
                jobs = batched(samples, RECORDS)
                parts = (run or map)(to_json, jobs)
            file = f"processed/{file_name}"
            parts = progress(parts, name, len(impressions))
            whole, digest = _write_list(out / file, parts, f"{name}: no user has {form.few}; give more data")
            entries[name] = {"file_name": file, "columns": COLUMNS}
            files[name] = {
                "file": file,
                "sha256": digest,
                "impressions": len(impressions),
                "records": whole.records,
                **({"records_yes": whole.yes} if form.is_yes_no else {}),
                **({"texts_written": written.cost} if write else {}),
                "tokens": "unchecked"
                if budget is None
                else {"cutoff_len": budget.cutoff_len, **vars(whole.done)},
            }
        _merge_dataset_info(out, entries)
        manifest = {
            "options": vars(options),
            "data": mind.report,
            "inputs_sha256": inputs_sha256,
            "datasets": files,
        }
        write_json(_manifest_path(out, form.data_set(task.name, "train")[0]), manifest)
    return manifest


def _write_list(path: Path, parts: Iterable[Part], if_empty: str) -> tuple[Part, str]:
    """Write the JSON list that `parts` make; return their counts, without data, and the SHA-256 of the file.

    Raises UserError with the text `if_empty`, and leaves no file, if they hold no record.
    """
    n = n_yes = 0
    done, digest = Shortening(), hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(1) as hasher:

        def put(data: bytes | memoryview) -> None:
            hashed = hasher.submit(digest.update, data)
            file.write(data)
            hashed.result()

        put(b"[")
        for part in parts:
            put(memoryview(part.data)[0 if n else 1 :])  # no comma before the first
            n += part.records
            n_yes += part.yes
            done.add(part.done)
        put(b"\n]\n")
        if not n:
            raise UserError(if_empty)
    return Part(b"", n, n_yes, done), digest.hexdigest()


def is_built(out: Path, options: BuildOptions, inputs_sha256: dict[str, str]) -> bool:
    """Return whether `build` with these options, of these data files, has been done and is untouched."""
    name, _ = prompt_of(options.format)().data_set(options.protocol, "train")
    path = _manifest_path(out, name)
    if not path.exists():
        return False
    made = read_json(path, "delete it to build the data set again")
    files = {out / entry["file"]: entry["sha256"] for entry in datasets_of(path, made).values()}
    return (
        made.get("options") == json.loads(json.dumps(vars(options)))
        and made.get("inputs_sha256") == inputs_sha256
        and all(file.exists() and sha256(file) == expected for file, expected in files.items())
    )


def share_of_yes(dataset_dir: str | Path, dataset: str) -> float | None:
    """Return the share of Yes among the records of a data set; None for one that `build` did not make."""
    made = _made(dataset_dir, dataset)
    return made["records_yes"] / made["records"] if "records_yes" in made else None


def texts_written(dataset_dir: str | Path, dataset: str) -> dict[str, Any] | None:
    """Return what writing the summaries of a data set took, with the faults counted; None if there were none."""
    return _made(dataset_dir, dataset).get("texts_written")


def _made(dataset_dir: str | Path, dataset: str) -> dict[str, Any]:
    """Return what the manifest says of a data set; {} for one that `build` did not make."""
    path = _manifest_path(Path(dataset_dir), dataset)
    if not path.is_file():
        return {}
    return datasets_of(path, read_json(path, "build the data set again")).get(dataset, {})


def datasets_of(path: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of a manifest of `build`; raise UserError for one that `build` cannot have written."""
    datasets = manifest.get("datasets")
    is_whole = isinstance(datasets, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("records"), int)
        and 0 <= (yes if isinstance(yes := entry.get("records_yes", 0), int) else -1) <= entry["records"]
        and entry["records"] > 0
        for entry in datasets.values()
    )
    if not is_whole:
        raise UserError(
            f"{path}: not as scripts/build_dataset.py writes it; delete it and build the data set again"
        )
    return datasets


def _manifest_path(out: Path, train: str) -> Path:
    """Return where the manifest of the data sets stands whose training one has the name `train`."""
    return out / "processed" / f"{train.removesuffix('_train')}.manifest.json"


def check_factory(factory: Path) -> None:
    """Raise UserError if `factory` is no folder that `link_to` could write to."""
    if not factory.is_dir():
        raise UserError(f"{factory}: no such folder; give the root of your LLaMA-Factory checkout")


def link_to(out: Path, factory: Path, names: list[str]) -> None:
    """Copy data sets and merge their entries into the ``data/`` of a LLaMA-Factory checkout.

    Raises UserError if `factory` is no folder.
    """
    check_factory(factory)
    info_path, target = out / "dataset_info.json", factory / "data" / "dataset_info.json"
    info = read_json(info_path, "build the data sets again")
    with lock(factory / "data"):
        for name in names:
            source = inside(info_path, info[name])
            with atomic_path(inside(target, info[name])) as path:
                shutil.copyfile(source, path)
        _merge_dataset_info(factory / "data", {name: info[name] for name in names})


def _merge_dataset_info(folder: Path, entries: dict[str, Any]) -> None:
    """Add `entries` to the folder's dataset_info.json, keeping what else is there; ASCII, as it must be."""
    path = folder / "dataset_info.json"
    known: dict[str, Any] = {}
    if path.exists():
        known = read_json(path, "mend it or move it away")
    merged = {**known, **entries}
    if merged != known:  # a checkout whose entries are already there stays unchanged in git
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(merged, indent=2) + "\n", encoding="ascii")
