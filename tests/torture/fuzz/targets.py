"""What is fuzzed: for each target, small valid files, the product's user of them, and a check of what it read.

A user is called as the scripts call it, so that their printing is covered too. `WrongParse` is a user that
accepted a file and misread it, told by a second, naive user or by what must hold of anything accepted.
"""

import contextlib
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import yaml

from mindlab import report
from mindlab.common import manifest as runs
from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.evaluation import audit as leakage
from mindlab.evaluation import predictions
from mindlab.finetune import alpaca, factory
from mindlab.finetune import plan as planning
from mindlab.llm.options import template_of
from mindlab.prompts import trained_for
from mindlab.tasks import TASKS
from mindlab.tasks.base import USER
from tests.conftest import ROOT
from tests.handmade import make_run, random_impressions

Files = dict[str, bytes]


class WrongParse(AssertionError):
    """The product took a file, and took it for something else than it says."""


@dataclass(frozen=True)
class Target:
    """One user: `files()` are valid, those named in `spoilt` get mutated, `read(folder)` raises UserError or returns."""

    name: str
    files: Callable[[], Files]
    spoilt: tuple[str, ...]
    read: Callable[[Path], None]
    share: int  # of the files of a run
    command: tuple[
        str, ...
    ] = ()  # the script that reads them, {} being the folder; () where none reads just these


def mind_rows(folder: Path, names: dict[str, None] | None = None) -> list[tuple]:
    """Read a split without any of the product's means: the rows as texts, candidates that news.tsv lacks left out."""
    lines = lambda name: (folder / name).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")  # noqa: E731
    rows = []
    for line in filter(None, lines("behaviors.tsv")):
        number, user, time, history, shown = line.split("\t")
        found = [token.partition("-") for token in shown.split(" ") if token]
        kept = [(name, label) for name, _, label in found if names is None or name in names]
        if kept:
            clicked = [token for token in history.split(" ") if token and (names is None or token in names)]
            rows.append((int(number), user, time, clicked, kept))
    return rows


def news_ids(folder: Path) -> dict[str, None]:
    text = (folder / "news.tsv").read_bytes().decode("utf-8-sig")
    return dict.fromkeys(line.split("\t")[0] for line in text.split("\n") if line)


@cache
def mind_files() -> Files:
    rng = np.random.default_rng(7)
    files = {}
    for split, first, days in (("train", 0, (9, 10, 13, 14)), ("dev", 20, (15,))):
        news = "".join(
            f"N{i}\t{('news', 'sports')[i % 2]}\tsub{i % 5}\tHeadline {i} of a few words\t{'Text.' * (i % 3)}\thttps://x/{i}\t[]\t[]\n"
            for i in range(first, first + 30)
        )
        lines = []
        for i in range(1, 26):
            shown = rng.choice(np.arange(first, first + 30), size=int(rng.integers(2, 7)), replace=False)
            clicked = " ".join(f"N{k}" for k in rng.integers(first, first + 30, size=i % 4))
            labels = " ".join(f"N{k}-{int(j == i % len(shown))}" for j, k in enumerate(shown))
            lines.append(
                f"{i}\tU{i % 9}\t11/{days[i % len(days)]}/2019 {1 + i % 12}:{i:02d}:00 {'AP'[i % 2]}M\t{clicked}\t{labels}\n"
            )
        files |= {f"{split}/news.tsv": news.encode(), f"{split}/behaviors.tsv": "".join(lines).encode()}
    return files


@cache
def packed_files() -> Files:
    files = mind_files()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("dev/news.tsv", "dev/behaviors.tsv"):
            archive.writestr(name, files[name])
    return {
        "train/news.tsv.gz": gzip.compress(files["train/news.tsv"], mtime=0),
        "train/behaviors.tsv.gz": gzip.compress(files["train/behaviors.tsv"], mtime=0),
        "MINDsmall_dev.zip": inner.getvalue(),
    }


def read_mind_folder(folder: Path) -> None:
    for missing in ("drop", "error"):
        mind = read_mind(folder, missing=missing)
        check_mind(folder, mind)


def check_mind(folder: Path, mind) -> None:
    known = {split: news_ids(folder / split) for split in ("train", "dev")}
    names = known["train"] | known["dev"]
    if mind.news.ids.tolist() != list(names):
        raise WrongParse(f"news {len(mind.news)}, a naive reader finds {len(names)}")
    for split, rows in mind.splits.items():
        naive = mind_rows(folder / split, names)
        if [row[0] for row in naive] != rows.ids.tolist() or [row[1] for row in naive] != rows.users.tolist():
            raise WrongParse(f"{split}: other ids or users than a naive reader's")
        for i, (_, _, _, clicked, shown) in enumerate(naive):
            if mind.news.ids[rows.user_history(i)].tolist() != clicked:
                raise WrongParse(f"{split}: another history in row {i}")
            if mind.news.ids[rows.candidates(i)].tolist() != [name for name, _ in shown]:
                raise WrongParse(f"{split}: other candidates in row {i}")
            labels = [] if rows.labels is None else rows.candidate_labels(i).tolist()
            if labels != [int(label) for _, label in shown if label]:
                raise WrongParse(f"{split}: other labels in row {i}")


def read_packed(folder: Path) -> None:
    read_mind(folder, missing="drop")


def check_folder(folder: Path) -> None:
    run_script("download_mind", "--check", str(folder))


def build_from_mind(folder: Path) -> None:
    """Build every format of whatever the user takes; a split may hold one impression, or no label."""
    refusals = []
    for task in TASKS.values():
        for form in trained_for(task):
            try:
                run_script(
                    "build_dataset", "--data", str(folder), "--protocol", task.name, "--format", form.name, "--missing", "drop",
                    "--out", str(folder / "out"), "--interests", "0",
                )  # fmt: skip
            except UserError as error:
                check_line(str(error))
                if task.case != USER:  # which these few users are too short for
                    refusals.append(error)
    if refusals:
        raise refusals[0]
    for entry in json.loads((folder / "out" / "dataset_info.json").read_bytes()).values():
        for record in json.loads((folder / "out" / entry["file_name"]).read_bytes()):
            if not record["output"] or not all(isinstance(text, str) for text in record.values()):
                raise WrongParse(f"a record without an answer, or with other things than texts: {record}")


def audit_folder(folder: Path) -> None:
    run_script("audit", str(folder))
    run_script("audit", str(folder), "--json")


@cache
def alpaca_files() -> Files:
    rng = np.random.default_rng(3)

    def records(n: int) -> list[dict[str, str]]:
        return [
            {
                "system": "You recommend news.",
                "instruction": "Say whether the reader clicks.",
                "input": f'Clicked: "Title {rng.integers(40)}", "Title {rng.integers(40)}"\nLikes: {"x" * (i % 2)}\nQuestion: "Title {i}"?',
                "output": ("Yes.", "No.")[int(rng.integers(2))],
            }
            for i in range(n)
        ]

    text = lambda value: json.dumps(value, indent=1).encode()  # noqa: E731
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    info = {name: {"file_name": f"{name}.json", "columns": columns} for name in ("my_train", "my_test")}
    lines = "".join(json.dumps(record) + "\n" for record in records(30))
    return {
        "my_train.json": text(records(60)),
        "my_test.json": text(records(30)),
        "other.jsonl": lines.encode(),
        "dataset_info.json": text(info),
    }


def audit_alpaca(folder: Path) -> None:
    run_script("audit", str(folder))
    for name in ("my_train.json", "my_test.json"):
        column = leakage.read_alpaca(folder / name)
        made = json.loads((folder / name).read_text(encoding="utf-8-sig"))
        if len(column) != len(made):
            raise WrongParse(f"{name}: {len(column)} records of {len(made)}")


@cache
def run_files() -> Files:
    import tempfile

    impressions = random_impressions(np.random.default_rng(1), n=12)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, signal in (("popularity", 0.5), ("tfidf", 1.0)):
            run = Path(folder) / name
            run.mkdir()
            about = {
                "inputs_sha256": {"data/dev/behaviors.tsv": "0" * 64},
                "request": {"format": "pointwise", "seed": 1},
            }
            make_run(run, signal, seed=len(name), impressions=impressions, **about)
            files |= {f"{name}/{file.name}": file.read_bytes() for file in run.iterdir()}
    return files


def evaluate_runs(folder: Path) -> None:
    for name in ("popularity", "tfidf"):
        path = folder / name / "predictions.parquet"
        check_frame(predictions.read_predictions(path), path)
    run_script("evaluate", str(folder / "popularity"), str(folder / "tfidf"))
    run_script("evaluate", "--predictions", str(folder / "popularity" / "predictions.parquet"), "--json")
    run_script(
        "evaluate", str(folder / "tfidf"), "--prediction-zip", str(folder / "prediction.zip"),
    )  # fmt: skip


def check_frame(frame, path: Path) -> None:
    """What must hold of an accepted table, told from the file by Arrow alone."""
    raw = pq.ParquetFile(path).read()
    score = frame["score"].to_numpy()
    keys = list(
        zip(
            frame["split"].to_pylist(),
            frame["case_id"].to_pylist(),
            frame["position"].to_pylist(),
            strict=True,
        )
    )
    if (
        len(frame) != len(raw)
        or not np.isfinite(score).all()
        or len(set(keys)) < len(keys)
        or keys != sorted(keys)
    ):
        raise WrongParse(f"{len(frame)} rows of {len(raw)}, or scores or keys that break the contract")
    if sorted(score.tolist()) != sorted(float(value) for value in raw["score"].to_pylist()):
        raise WrongParse("other scores than in the file")


def leaderboard(folder: Path) -> None:
    board = report.leaderboard([folder / "popularity", folder / "tfidf"])
    encodable(report.as_text(board))
    report.write_leaderboard(folder / "board", board)
    rows = json.loads((folder / "board" / "leaderboard.json").read_text(encoding="utf-8"))
    if not all(row["auc"] is None or 0 <= row["auc"] <= 1 for row in rows):
        raise WrongParse("an AUC outside 0 to 1")


@cache
def config_files() -> Files:
    text = (ROOT / "configs/train/smollm2_135m_lora_sft.yaml").read_bytes()
    info = {
        "mind_dev_next_click_train": {"file_name": "processed/a.json", "columns": alpaca.COLUMNS},
        "mind": {"file_name": "processed/a.json"},
        "far": {"hf_hub_url": "a/b"},
    }
    return {
        "train.yaml": text,
        "chat.yaml": (ROOT / "configs/infer/glm4_9b_chat_lora_chat.yaml").read_bytes(),
        "data/dataset_info.json": json.dumps(info, indent=2).encode(),
        "data/processed/a.json": b'[{"instruction": "a", "input": "b", "output": "c"}]\n',
    }


def validate_configs(folder: Path) -> None:
    (folder / "models").mkdir(exist_ok=True)
    for name in ("train.yaml", "chat.yaml"):
        settings = factory.validate(folder / name, root=folder)
        # OmegaConf, and so LLaMA-Factory, takes a byte order mark for nothing, wherever it stands.
        naive = yaml.safe_load((folder / name).read_text(encoding="utf-8").replace("\ufeff", ""))
        if set(settings) != set(naive):
            raise WrongParse(f"{name}: keys {sorted(set(settings) ^ set(naive))} in one reader alone")
        if name == "train.yaml":
            factory.hash_datasets(settings, folder)


@cache
def adapter_files() -> Files:
    record = {
        "settings": {"template": "smollm2", "model_name_or_path": "base", "output_dir": "adapter"},
        "datasets": {"mind": "0" * 64},
        "base": {},
        "finished": True,
    }
    rows = [
        {"current_steps": i, "total_steps": 3, "loss": 1.5 / i, "lr": 1e-4, "epoch": 0.1 * i, "percentage": 33.3 * i,
         "elapsed_time": f"0:00:0{i}", "remaining_time": "0:00:03"}
        for i in (1, 2, 3)
    ]  # fmt: skip
    dump = lambda value: json.dumps(value, indent=1).encode()  # noqa: E731
    return {
        "adapter/mindlab_run.json": dump(record),
        "adapter/adapter_config.json": dump({"base_model_name_or_path": "models/base", "peft_type": "LORA"}),
        "adapter/adapter_model.safetensors": b"",
        "adapter/trainer_log.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "base/config.json": dump({"model_type": "llama", "hidden_size": 8, "vocab_size": 99}),
        "run/request.json": dump({"data": "data", "seed": 1}),
    }


def read_adapter(folder: Path) -> None:
    """Every small JSON that a scoring or a resumed training reads; each by itself, for a refusal ends a read."""
    out = folder / "adapter"
    wanted = json.loads(adapter_files()["adapter/mindlab_run.json"])
    refusals = []
    for read in (
        lambda: factory.settings_of(out),
        lambda: factory.check_adapter(out, folder / "base", "smollm2"),
        lambda: factory.read_loss(out),
        lambda: factory.train_seconds(out),
        lambda: template_of(folder / "base"),
        lambda: runs.is_started(folder / "run", {"data": "data", "seed": 1}),
        lambda: factory.is_finished(out, wanted),
    ):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                read()
        except UserError as error:
            check_line(str(error))
            refusals.append(error)
    if refusals:
        raise refusals[0]


@cache
def build_files() -> Files:
    files = {f"mind/{name}": data for name, data in mind_files().items()}
    info = json.dumps(
        {"other": {"file_name": "other.json"}, "mind": {"file_name": "old.json"}}, indent=2
    ).encode()
    manifest = {
        "options": {},
        "inputs_sha256": {},
        "datasets": {
            "mind": {"file": "processed/mind_train.json", "sha256": "0", "records": 2, "records_yes": 1}
        },
    }
    return files | {
        "out/dataset_info.json": info,
        "checkout/data/dataset_info.json": info,
        "kept/processed/mind.manifest.json": json.dumps(manifest).encode(),
    }


def build(folder: Path) -> None:
    alpaca.share_of_yes(folder / "kept", "mind")
    alpaca.is_built(folder / "kept", alpaca.BuildOptions("seed", "likes_dislikes"), {})
    run_script(
        "build_dataset", "--data", str(folder / "mind"), "--protocol", "seed", "--format", "likes_dislikes", "--missing",
        "drop", "--out", str(folder / "out"), "--link-to", str(folder / "checkout"),
    )  # fmt: skip
    for place in (folder / "out", folder / "checkout" / "data"):
        info = json.loads((place / "dataset_info.json").read_bytes())
        if not {"mind", "mind_test"} <= set(info):
            raise WrongParse(f"{place}: lacks the new entries")


def read_headlines(folder: Path) -> None:
    for name in ("history.txt", "candidates.txt"):
        titles = script_module("rank").read_titles(folder / name)
        if any(not title.strip() for title in titles):
            raise WrongParse(f"{name}: an empty headline")
        encodable("".join(titles))


@cache
def plan_files() -> Files:
    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    return {
        "model/config.json": json.dumps(config, indent=1).encode(),
        "train.yaml": config_files()["train.yaml"],
    }


def plan(folder: Path) -> None:
    """As scripts/plan.py, but for the tokens: a tokenizer takes ten seconds to load."""
    shape = planning.shape_of(str(folder / "model"))
    training = planning.Training.of(factory.load(folder / "train.yaml"))
    for parts in (
        planning.training_memory(shape, training),
        planning.scoring_memory(shape, training.cutoff_len),
    ):
        json.dumps(parts, allow_nan=False)


def headline_files() -> Files:
    return {
        "history.txt": "- One title\nAnother: “title”\n".encode(),
        "candidates.txt": "A\n\n- B\n标题\n".encode(),
    }


TARGETS = {
    target.name: target
    for target in (
        Target(
            "mind", mind_files, tuple(mind_files()), read_mind_folder, 24, ("download_mind.py", "--check", "{}"),
        ),
        Target("mind-packed", packed_files, tuple(packed_files()), read_packed, 8, ("download_mind.py", "--check", "{}")),
        Target("mind-audit", mind_files, tuple(mind_files()), audit_folder, 4, ("audit.py", "{}")),
        Target("alpaca", alpaca_files, tuple(alpaca_files()), audit_alpaca, 14, ("audit.py", "{}")),
        Target("mind-check", mind_files, tuple(mind_files()), check_folder, 4, ("download_mind.py", "--check", "{}")),
        Target(
            "mind-build", mind_files, tuple(mind_files()), build_from_mind, 6,
            ("build_dataset.py", "--data", "{}", "--protocol", "dev", "--format", "pointwise", "--out", "{}/out"),
        ),
        Target("plan", plan_files, tuple(plan_files()), plan, 5),
        Target(
            "build", build_files, tuple(name for name in build_files() if not name.startswith("mind/")), build, 5,
            ("build_dataset.py", "--data", "{}/mind", "--protocol", "seed", "--format", "likes_dislikes", "--out",
             "{}/out", "--link-to", "{}/checkout"),
        ),
        Target("predictions", run_files, tuple(name for name in run_files() if name.endswith("parquet")), evaluate_runs, 16,
               ("evaluate.py", "{}/popularity", "{}/tfidf")),
        Target("manifest", run_files, tuple(name for name in run_files() if name.endswith("json")), leaderboard, 6,
               ("evaluate.py", "{}/popularity", "{}/tfidf")),
        Target("config", config_files, tuple(config_files())[:3], validate_configs, 14),
        Target("adapter", adapter_files, tuple(adapter_files()), read_adapter, 6),
        Target("headlines", headline_files, ("history.txt", "candidates.txt"), read_headlines, 3),
    )
}  # fmt: skip


@cache
def script_module(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"scripts.{name}")


def run_script(name: str, *words: str) -> int:
    """Call a script's main in this process; what it prints must be text that a terminal takes."""
    out, error, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"scripts/{name}.py", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = script_module(name).main() or 0
    finally:
        sys.argv = before
    encodable(out.getvalue() + error.getvalue())
    if "--json" in words:
        json.loads(out.getvalue())
    return code


def encodable(text: str) -> None:
    text.encode("utf-8")


def check_line(text: str) -> None:
    """Raise WrongParse unless an error is one line that a terminal can show."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise WrongParse("an error text that cannot be printed") from None
    if len(text.splitlines()) != 1 or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise WrongParse(f"an error of several lines, or with control characters: {text!r}")
    if len(text) > LONGEST_LINE:
        raise WrongParse(f"an error of {len(text)} characters: {text[:200]!r}")


LONGEST_LINE = 2000
