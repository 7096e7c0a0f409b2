"""Build Alpaca JSON for LLaMA-Factory: samples, the dataset_info entry that names them, and a manifest.

Data sets are found the LLaMA-Factory way: every YAML says ``dataset_dir: data``, and
``data/dataset_info.json`` names the files under ``data/processed/``.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.errors import UserError
from mindlab.files import atomic_path, inside, lock, read_json, sha256, write_json
from mindlab.mind import Impressions, Mind, News
from mindlab.parallel import thread_map
from mindlab.prompts import (
    FORMATS,
    YES_NO,
    LikesDislikes,
    LikesDislikesParts,
    NextClick,
    NextClickParts,
    NextTopic,
    NextTopicParts,
    Pointwise,
    PointwiseParts,
    Summary,
    SummaryParts,
    history_length_of,
)
from mindlab.protocols import splits_of
from mindlab.records import RECORDS, Budget, Part, RecordWriter, Shortening, TutorialWriter, batched, blocks
from mindlab.special_tokens import neutralise

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
FORMATS_OF = {
    "seed": ("likes_dislikes",),
    "dev": ("pointwise", "next_click", "next_topic"),
    "sampled": ("summary",),
}
# The tutorial's names; every other data set is mind_<protocol>_<format>_<split>.
TUTORIAL_NAMES = {"train": ("mind", "mind_train.json"), "test": ("mind_test", "mind_test.json")}
SHORTEST_LIST = 3  # titles in a next_click list of one interest
NO_HISTORY_SHARE = 0.05  # records in the form without history, of next_click (one title alone) and next_topic
TOPICS_ASKED = 6  # clicks that the answer of a next_topic record names the topics of


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
    interests: int = 1  # next_click: subcategories of a reader to one list; 0: one list a reader
    permute_titles: bool = False  # next_click, next_topic: a control, the titles dealt out to any reader
    summary: str = "recent"  # summary: who wrote the summaries (`Summary.ways`)
    model: str | None = None  # whose tokenizer counts; None: nothing is counted, nothing shortened
    template: str | None = None
    cutoff_len: int | None = None

    def __post_init__(self) -> None:
        """Write the format's own history length down, so that the manifest tells it."""
        object.__setattr__(self, "history_length", history_length_of(self.format, self.history_length))


def dataset_name(protocol: str, form: str, split: str) -> tuple[str, str]:
    """Return a data set's name and file name.

    >>> dataset_name("dev", "next_click", "train")
    ('mind_dev_next_click_train', 'mind_dev_next_click_train.json')
    >>> dataset_name("seed", "likes_dislikes", "train")
    ('mind', 'mind_train.json')
    """
    if protocol == "seed" and form == LikesDislikes.name:
        return TUTORIAL_NAMES[split]
    name = f"mind_{protocol}_{form}_{split}"
    return name, f"{name}.json"


def make_budget(options: BuildOptions) -> Budget | None:
    """Return the token budget that the options ask for, none without a model."""
    if options.model is None:
        return None
    from mindlab.chat import ChatTemplate  # imports LLaMA-Factory: ten seconds

    chat = ChatTemplate.load(options.model, options.template)
    return Budget(chat.count, chat.estimate, options.cutoff_len)


def neutral_titles(news: News) -> np.ndarray:
    """Return the titles as prompts show them, object (n_news,): special tokens in them are plain text."""
    return np.array([neutralise(title) for title in news.title], dtype=object)


def topics_of(news: News) -> np.ndarray:
    """Return every news' topic as next_topic names it, object (n_news,)."""
    named = [NextTopic.topic(*pair) for pair in zip(news.category, news.subcategory, strict=True)]
    return np.array([neutralise(topic) for topic in named], dtype=object)


def likes_dislikes_parts(impressions: Impressions, titles: np.ndarray) -> Iterator[LikesDislikesParts]:
    """Yield the tutorial's sample of every impression: the last candidate is the target."""
    for i in range(len(impressions)):
        shown, labels = titles[impressions.candidates(i)], impressions.candidate_labels(i)
        siblings = labels[:-1] == 1
        yield LikesDislikesParts(
            history=titles[impressions.reader_history(i)[-LikesDislikes.history_length :]].tolist(),
            likes=shown[:-1][siblings].tolist(),
            dislikes=shown[:-1][~siblings].tolist(),
            target=shown[-1],
            is_click=bool(labels[-1]),
        )


def pointwise_parts(
    impressions: Impressions,
    titles: np.ndarray,
    history_length: int,
    negatives: int,
    rng: np.random.Generator,
) -> Iterator[PointwiseParts]:
    """Yield every click and up to `negatives` non-clicks of the same impression per click, shuffled."""
    rows, places = [], []
    for i in range(len(impressions)):
        labels = impressions.candidate_labels(i)
        clicks, others = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        keep = rng.permutation(others)[: negatives * len(clicks)]
        places.append(np.concatenate([clicks, keep]))
        rows.append(np.full(len(places[-1]), i))
    row, place = np.concatenate(rows), np.concatenate(places)
    for at in rng.permutation(len(row)):
        i = int(row[at])
        history = impressions.reader_history(i)
        yield PointwiseParts(
            history=titles[history[len(history) - min(len(history), history_length) :]].tolist(),
            candidate=titles[impressions.candidates(i)[place[at]]],
            is_click=bool(impressions.candidate_labels(i)[place[at]]),
        )


def summary_parts(
    impressions: Impressions,
    titles: np.ndarray,
    texts: Sequence[str],
    history_length: int,
    rng: np.random.Generator,
) -> Iterator[SummaryParts]:
    """Yield every candidate of every impression, shuffled, with the summary of its reader.

    `texts` holds one summary an impression, "" for none. The candidates are already a choice: `sampled` has a click and
    one other.
    """
    owner = np.repeat(np.arange(len(impressions)), np.diff(impressions.offsets))
    for at in rng.permutation(len(owner)).tolist():
        i = int(owner[at])
        history = impressions.reader_history(i)
        yield SummaryParts(
            summary=texts[i],
            history=titles[history[len(history) - min(len(history), history_length) :]].tolist(),
            candidate=titles[impressions.news[at]],
            is_click=bool(impressions.labels[at]),
        )


def clicks_of_readers(impressions: Impressions) -> dict[str, list[int]]:
    """Return the news that each reader clicked, in history and then in these impressions, oldest first."""
    order = np.lexsort((impressions.ids, impressions.times))
    clicked: dict[str, list[int]] = {}
    for i in order:
        user = impressions.users[i]
        if user not in clicked:
            clicked[user] = impressions.reader_history(i).tolist()
        clicked[user].extend(impressions.candidates(i)[impressions.candidate_labels(i) == 1].tolist())
    return clicked


def next_click_parts(
    impressions: Impressions,
    titles: np.ndarray,
    history_length: int,
    rng: np.random.Generator,
    subcategory: np.ndarray | None = None,
    interests: int = 0,
) -> Iterator[NextClickParts]:
    """Yield lists of the news that one reader clicked, in history or in these impressions, oldest first.

    With `interests` 0 there is one list a reader, the latest `history_length` clicks. With N, a reader's
    clicks are parted by `subcategory` (n_news,), the most clicked first, N to a list: then a list has a
    topic, and a model can learn from a few thousand lists that the next click is like the last ones
    (docs/recipe.md). Lists of fewer than `SHORTEST_LIST` are left out. `NO_HISTORY_SHARE` of the readers
    also give one title alone, the form that has no history.
    """
    clicked = clicks_of_readers(impressions)
    # A fixed order first, so that the records depend on the seed alone and not on who came first.
    lists: list[np.ndarray] = []
    for reader in sorted(user for user, news in clicked.items() if news):
        news = np.array(clicked[reader])
        if rng.random() < NO_HISTORY_SHARE:
            lists.append(rng.choice(news, size=1))
        if not interests:
            lists.append(news[-history_length:])
            continue
        news = news[np.sort(np.unique(news, return_index=True)[1])]  # a news clicked twice counts once
        topics, counts = np.unique(subcategory[news], return_counts=True)
        topics = topics[np.argsort(-counts, kind="stable")]
        for first in range(0, len(topics), interests):
            some = news[np.isin(subcategory[news], topics[first : first + interests])]
            if len(some) >= SHORTEST_LIST:
                lists.append(some[-history_length:])
    for at in rng.permutation(len(lists)):
        yield NextClickParts(titles[lists[at]].tolist())


def next_topic_parts(
    impressions: Impressions,
    titles: np.ndarray,
    topics: np.ndarray,
    history_length: int,
    rng: np.random.Generator,
) -> Iterator[NextTopicParts]:
    """Yield `TOPICS_ASKED` successive clicks of a reader as topics, with the clicks before them as titles.

    A reader's clicks, in history and in these impressions, are parted from the latest back; `titles` and
    `topics` are (n_news,). `NO_HISTORY_SHARE` of the samples show no history.
    """
    clicked = clicks_of_readers(impressions)
    samples: list[tuple[list[int], list[int]]] = []
    for reader in sorted(clicked):  # so that the records depend on the seed alone and not on who came first
        news = clicked[reader]
        for end in range(len(news), 1, -TOPICS_ASKED):
            begin = max(1, end - TOPICS_ASKED)
            history = news[max(0, begin - history_length) : begin]
            samples.append(([] if rng.random() < NO_HISTORY_SHARE else history, news[begin:end]))
    for at in rng.permutation(len(samples)):
        history, following = samples[at]
        yield NextTopicParts(titles[history].tolist(), topics[following].tolist())


def permute_titles(parts: Iterable[Any], field: str, rng: np.random.Generator) -> Iterator[Any]:
    """Yield `parts` with the titles of their `field` dealt out anew, as many to each as before.

    What a model learns from these is how headlines and answers read, and nothing of what goes together.
    """
    parts = list(parts)
    titles = [title for part in parts for title in getattr(part, field)]
    order = iter(rng.permutation(len(titles)).tolist())
    for part in parts:
        yield replace(part, **{field: [titles[next(order)] for _ in getattr(part, field)]})


def samples(
    impressions: Impressions,
    news: News,
    titles: np.ndarray,
    options: BuildOptions,
    rng: np.random.Generator,
    texts: Sequence[str] | None = None,
) -> Iterator[Any]:
    """Yield the parts of every sample of one split, in their final order; `texts` as in `summary_parts`."""
    if options.format == LikesDislikes.name:
        return likes_dislikes_parts(impressions, titles)
    if options.format == Pointwise.name:
        return pointwise_parts(impressions, titles, options.history_length, options.negatives, rng)
    if options.format == Summary.name:
        texts = [""] * len(impressions) if texts is None else texts
        return summary_parts(impressions, titles, texts, options.history_length, rng)
    if options.format == NextTopic.name:
        parts = next_topic_parts(impressions, titles, topics_of(news), options.history_length, rng)
        shown = "history"
    else:
        subcategory = news.subcategory.astype(str)
        parts = next_click_parts(
            impressions, titles, options.history_length, rng, subcategory, options.interests
        )
        shown = "titles"
    return permute_titles(parts, shown, rng) if options.permute_titles else parts


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
    time that `write` took. `write(impressions, titles)` returns the summaries of a split's readers
    (`mindlab.summaries.Summariser`); format summary asks for it unless the way is recent.
    `inputs_sha256`, the hashes of the data files, is kept there for `is_built`. `progress(parts, name, n)` is handed
    the parts of each data set, made of n impressions, as they are written. `run` is an ordered map, over this
    machine's threads unless another is given (`mindlab.distributed` has one over a cluster): its function and jobs
    can be pickled.

    Raises UserError for a protocol and format that do not go together, for a split without impressions, for
    one that gives no record, and while another process writes to `out`.
    """
    if options.format not in FORMATS_OF.get(options.protocol, ()):
        known = ", ".join(f"{p} x {f}" for p, forms in FORMATS_OF.items() for f in forms)
        raise UserError(
            f"protocol {options.protocol!r} with format {options.format!r}: expected one of {known}"
        )
    if options.permute_titles and options.format not in (NextClick.name, NextTopic.name):
        raise UserError(
            f"permuted titles are a control of next_click and next_topic; format {options.format} has none"
        )
    check_summary(options.format, options.summary)
    if (options.summary != "recent") != (write is not None):
        raise ValueError(
            f"summaries {options.summary}: `write` makes those that a model writes, and no others"
        )
    form = FORMATS[options.format](options.language)
    titles = neutral_titles(mind.news)
    splits = splits_of(options.protocol, mind, options.seed)
    if options.protocol in ("dev", "sampled"):
        splits.pop("test", None)
    for split, impressions in splits.items():
        if not len(impressions):
            raise UserError(
                f"the {split} split of protocol {options.protocol} holds no impression; give more data"
            )
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: expected at least 1")
    entries, files = {}, {}
    is_fast = budget is None and options.format == LikesDislikes.name
    to_json = TutorialWriter(form, titles) if is_fast else RecordWriter(form, budget)
    few = "two clicks"
    if options.format == NextClick.name:
        few = f"{SHORTEST_LIST} clicks in one subcategory (--interests 0 asks for less)"
    with lock(out):
        for split, impressions in splits.items():
            if options.limit is not None and options.limit < len(impressions):
                keep = np.random.default_rng(options.seed).permutation(len(impressions))[: options.limit]
                impressions = impressions.take(keep)
            name, file_name = dataset_name(options.protocol, options.format, split)
            rng = np.random.default_rng(
                [options.seed, sorted(("fit", "valid", "train", "test")).index(split)]
            )
            if is_fast:
                parts = (run or thread_map)(to_json, blocks(impressions, form.history_length))
            else:
                written = write(impressions.without_labels(), titles) if write else None
                texts = written and written.texts
                jobs = batched(samples(impressions, mind.news, titles, options, rng, texts), RECORDS)
                parts = (run or map)(to_json, jobs)
            file = f"processed/{file_name}"
            parts = progress(parts, name, len(impressions))
            whole, digest = _write_list(out / file, parts, f"{name}: no reader has {few}; give more data")
            entries[name] = {"file_name": file, "columns": COLUMNS}
            files[name] = {
                "file": file,
                "sha256": digest,
                "impressions": len(impressions),
                "records": whole.records,
                **({"records_yes": whole.yes} if options.format in YES_NO else {}),
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
        write_json(_manifest_path(out, dataset_name(options.protocol, options.format, "train")[0]), manifest)
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
    path = _manifest_path(out, dataset_name(options.protocol, options.format, "train")[0])
    if not path.exists():
        return False
    made = read_json(path, "delete it to build the data set again")
    files = {out / entry["file"]: entry["sha256"] for entry in datasets_of(path, made).values()}
    return (
        made.get("options") == json.loads(json.dumps(vars(options)))
        and made.get("inputs_sha256") == inputs_sha256
        and all(file.exists() and sha256(file) == expected for file, expected in files.items())
    )


def check_summary(form: str, way: str) -> None:
    """Raise UserError for a way of writing summaries that there is not, or that the format has no place for."""
    if way not in Summary.ways:
        raise UserError(f"--summary {way}: expected one of {', '.join(Summary.ways)}")
    if way != "recent" and form != Summary.name:
        raise UserError(f"--summary {way} goes with format {Summary.name} alone, not with {form}")


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
