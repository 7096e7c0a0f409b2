"""Rows of the embedded model: its records, LoRA through LLaMA-Factory, its scores.

What scripts/demo.py and scripts/compare.py share. Each step first prints the command that does it alone; what
is done already is skipped.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindlab.common import cli
from mindlab.common.files import atomic_path
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind, splits_in
from mindlab.finetune import factory
from mindlab.finetune.alpaca import BuildOptions, build, is_built, make_budget
from mindlab.llm import embedded_model
from mindlab.llm.options import Options
from mindlab.llm.summaries import summariser_of
from mindlab.prompts import InContext, Listwise, Recency, Summary
from mindlab.recommenders.llm import ranker
from mindlab.runs.run import Request, run
from mindlab.tasks import task_of
from mindlab.tasks.base import IMPRESSION, USER

CONFIGS = {
    "next_click": Path("configs/train/smollm2_135m_lora_sft.yaml"),
    "next_topic": Path("configs/train/smollm2_135m_lora_sft_next_topic.yaml"),
    "pointwise": Path("configs/train/smollm2_135m_lora_sft_pointwise.yaml"),
    "summary": Path("configs/train/smollm2_135m_lora_sft_summary.yaml"),
}
MODEL = f"models/{embedded_model.NAME}"
TEMPLATE = "smollm2"
REFERENCE_RUNS = Path("data/reference_runs")
TUNED = ("next_topic", "next_click", "pointwise")
SAMPLE = Path("data/sample")  # what a model was tuned on where the data at hand has nothing to train on
# The prompts of notebook 09 that a forward pass answers; nothing is tuned for them.
UNTUNED = (Recency.name, InContext.name, Listwise.name)
# The rows of scripts/compare.py by name: the prompt, and whether the model was tuned.
NAMES = {f"smollm2-{form}-{kind}": (form, kind) for form in TUNED for kind in ("base", "lora")} | {
    f"smollm2-{form}-base": (form, "base") for form in UNTUNED
}
PAIRS = [
    *((f"smollm2-{form}-lora", f"smollm2-{form}-base") for form in TUNED),
    *((f"smollm2-{form}-base", "smollm2-pointwise-base") for form in UNTUNED),
]
# The same for protocol `sampled`: who wrote the summary of the prompt, and whether the model was tuned.
SAMPLED_NAMES = {f"smollm2-{way}-{kind}": (way, kind) for way in Summary.ways for kind in ("base", "lora")}
SAMPLED_PAIRS = [
    *((f"smollm2-{way}-lora", f"smollm2-{way}-base") for way in Summary.ways),
    *(
        (f"smollm2-{way}-{kind}", f"smollm2-recent-{kind}")
        for way in Summary.ways[1:]
        for kind in ("base", "lora")
    ),
]
# Whose summaries are written to train on, of protocol `sampled`: what two cores write in minutes.
MOST_USERS = 30


def say(line: str) -> None:
    """Print one line of progress."""
    print(f"      {line}", file=sys.stderr, flush=True)


def step(what: str, command: str) -> None:
    """Say what comes next and which command does it alone."""
    print(f"\n{what}", file=sys.stderr)
    say(f"$ {command}")


def get_model() -> None:
    """Make the embedded model, unless it is there."""
    step("the embedded model", f"python scripts/get_model.py {embedded_model.NAME}")
    embedded_model.build(MODEL, say)


def names_of(protocol: str, has_training: bool = True) -> tuple[str, ...]:
    """Return the rows of the embedded model that apply to a protocol.

    Without a training split: the prompts that can be tuned, and of the tuned rows those whose adapter the repository
    carries.

    >>> names_of("sampled")[:2], names_of("seed")
    (('smollm2-recent-base', 'smollm2-recent-lora'), ())
    """
    if not has_training:
        rows = {name: kind for name, (form, kind) in NAMES.items() if form in TUNED}
        return tuple(n for n, kind in rows.items() if kind == "base" or carried(n, SAMPLE) is not None)
    of_case = {USER: SAMPLED_NAMES, IMPRESSION: NAMES}
    return tuple(of_case.get(task_of(protocol).case, ()))


def build_records(
    data: str,
    form: str,
    dataset_dir: Path,
    is_control: bool = False,
    *,
    protocol: str = "dev",
    summary: str = "recent",
    limit: int | None = None,
) -> None:
    """Write the data sets of a format, unless they are there; `limit` impressions of each split at most."""
    cutoff_len = factory.load(CONFIGS[form])["cutoff_len"]
    step(
        "Alpaca records from MIND-shaped TSVs",
        f"python scripts/build_dataset.py --data {data} --protocol {protocol} --format {form} --out {dataset_dir} "
        f"--model {MODEL} --template {TEMPLATE} --cutoff-len {cutoff_len}"
        f"{' --permute-titles' if is_control else ''}"
        f"{f' --summary {summary}' if summary != 'recent' else ''}{f' --limit {limit}' if limit else ''}",
    )  # fmt: skip
    options = BuildOptions(
        protocol, form, limit=limit, permute_titles=is_control, summary=summary,
        model=MODEL, template=TEMPLATE, cutoff_len=cutoff_len,
    )  # fmt: skip
    hashes = data_hashes(data, ("train", "dev"))
    if is_built(dataset_dir, options, hashes):
        say("already built")
        return
    mind = read_mind(data)
    write = summariser_of(summary, MODEL, TEMPLATE)
    build(mind, options, dataset_dir, make_budget(options), hashes, cli.records_bar, write=write)


def train(config: Path, overrides: dict[str, Any]) -> Path:
    """Fine-tune by the config and `overrides`; return the adapter's folder."""
    words = " ".join(f"{key}={value}" for key, value in overrides.items())
    step("LoRA fine-tuning by LLaMA-Factory", f"llamafactory-cli train {config} {words}".rstrip())
    return factory.train(config, overrides, say)


def score(
    data: str,
    form: str,
    adapter: Path | None,
    limit: int | None,
    out: Path,
    *,
    seed: int = 42,
    protocol: str = "dev",
    split: str = "test",
    summary: str = "recent",
) -> Path:
    """Score one model on a split of a protocol, with a progress bar; return its run folder."""
    cutoff_len = factory.load(CONFIGS.get(form, CONFIGS["pointwise"]))["cutoff_len"]
    step(
        f"score {out.name}",
        f"python scripts/predict.py --data {data} --protocol {protocol} --format {form} --model {MODEL} "
        f"{f'--summary {summary} ' if summary != 'recent' else ''}"
        f"{f'--adapter {adapter} ' if adapter else ''}--cutoff-len {cutoff_len} "
        f"{f'--split {split} ' if split != 'test' else ''}{f'--limit {limit} ' if limit else ''}--out {out}",
    )
    request = Request(data, protocol, split, limit, seed)
    adapter_path = str(adapter) if adapter else None
    asked = Options(form, MODEL, TEMPLATE, adapter_path, cutoff_len=cutoff_len, summary=summary)
    return run(request, ranker(out.name, asked), out, progress=cli.cases_bar)


def make_row(
    name: str,
    data: str,
    limit: int | None,
    out: Path,
    *,
    seed: int = 42,
    protocol: str = "dev",
    split: str = "test",
    n_seeds: int = 1,
) -> Path:
    """Score the row of that name (one of `NAMES`) into ``out/name``; tune its model first where it needs that.

    With `n_seeds` a tuned row is trained that often, and its run folder holds the predictions of each; the run of each
    further seed alone is ``out/seeds/name-SEED``. A model is tuned on the data at hand, or on `SAMPLE` where that has no
    training split. An adapter that the repository carries is taken if it was trained on this very data; else the training
    goes to ``out/training/name``.
    """
    form, kind = NAMES[name]
    adapter = None
    if kind == "lora":
        source = data if "train" in splits_in(data) else SAMPLE.as_posix()
        adapter = carried(name, source)
        if adapter is None:
            adapter = tune(form, source, out / "training" / name)
        else:
            say(f"{adapter}: trained on {source} by {CONFIGS[form]}, so it is not trained again")
    how = {"seed": seed, "protocol": protocol, "split": split}
    first_run = score(data, form, adapter, limit, out / name, **how)
    first = factory.load(CONFIGS[form])["seed"]
    for k in range(1, n_seeds if kind == "lora" else 1):
        one = f"{name}-{first + k}"
        adapter = tune(form, source, out / "training" / one, {"seed": first + k})
        found = score(data, form, adapter, limit, out / "seeds" / one, **how)
        with atomic_path(first_run / f"predictions-{k + 1}.parquet") as path:
            shutil.copyfile(found / "predictions.parquet", path)
    return first_run


def make_summary_row(
    name: str,
    data: str,
    limit: int | None,
    out: Path,
    *,
    seed: int = 42,
    most_users: int = MOST_USERS,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Score the row of that name (one of `SAMPLED_NAMES`) as `make_row` does, under protocol `sampled`.

    A tuned row is trained on a seeded choice of at most `most_users` of the training users: a summary has to be
    written of each. The rows of all ways have the same users.
    """
    summary, kind = SAMPLED_NAMES[name]
    adapter = None
    if kind == "lora":
        how = {"protocol": "sampled", "summary": summary, "limit": most_users}
        adapter = tune("summary", data, out / "training" / name, overrides, **how)
    return score(data, "summary", adapter, limit, out / name, seed=seed, protocol="sampled", summary=summary)


def tune(
    form: str,
    data: str,
    folder: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    is_control: bool = False,
    **records: Any,
) -> Path:
    """Build a format's records and fine-tune on them by its YAML, all within `folder`; return the adapter.

    `records` are further arguments of `build_records`.
    """
    build_records(data, form, folder / "data", is_control, **records)
    own = {"dataset_dir": (folder / "data").as_posix(), "output_dir": (folder / "adapter").as_posix()}
    return train(CONFIGS[form], {**overrides, **own})


def carried(name: str, data: str | Path) -> Path | None:
    """Return the adapter of a row that the repository carries, if the same YAML made it from the same data.

    Where its records and outputs lay, and its seed, do not matter.
    """
    hashes = set(data_hashes(data, ("train", "dev")).values())
    aside = ("dataset_dir", "output_dir", "seed")

    def without_places(settings: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in (settings or {}).items() if key not in aside}

    wanted = without_places(json.loads(json.dumps(factory.load(CONFIGS[NAMES[name][0]]))))
    for adapter in sorted(REFERENCE_RUNS.glob(f"*/{name}/adapter")):
        known = factory.trained_on(adapter).get("inputs_sha256", {})
        if (
            factory.has_weights(adapter)
            and hashes <= set(known.values())
            and without_places(factory.settings_of(adapter)) == wanted
        ):
            return adapter
    return None
