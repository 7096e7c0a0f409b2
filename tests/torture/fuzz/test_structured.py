"""Bad input by structure: hypothesis makes any JSON, YAML, table or cells, and shrinks what fails to its cause."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindlab.evaluation import predictions
from tests.torture.fuzz import harness
from tests.torture.fuzz.targets import TARGETS, adapter_files, alpaca_files, build_files, run_files

LIMITS = settings(
    max_examples=60, deadline=10_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
TEXTS = st.text(st.characters(codec=None), max_size=8)  # halves of characters too
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def ends_well(name, files):
    with tempfile.TemporaryDirectory() as folder:
        harness.write_files(Path(folder), TARGETS[name].files() | files)
        kind, said = harness.outcome(TARGETS[name].read, Path(folder))
    assert kind in ("parsed", "refused"), said


def like(value):
    """Return what has the shape of a JSON value, with any value in place of any part."""
    if isinstance(value, dict):
        return st.fixed_dictionaries({}, optional={key: like(part) for key, part in value.items()}) | VALUES
    if isinstance(value, list):
        return st.lists(like(value[0]) if value else VALUES, max_size=4) | VALUES
    return st.just(value) | VALUES


JSON_FILES = [
    (name, file)
    for name, files in (
        ("alpaca", alpaca_files),
        ("build", build_files),
        ("manifest", run_files),
        ("adapter", adapter_files),
    )
    for file in files()
    if file.endswith(".json") and "tfidf" not in file
]


@pytest.mark.parametrize(("name", "file"), JSON_FILES)
def test_any_json(name, file):
    valid = json.loads(TARGETS[name].files()[file])

    @LIMITS
    @given(like(valid))
    def check(value):
        ends_well(name, {file: json.dumps(value).encode()})

    check()


@LIMITS
@given(st.lists(like(json.loads(adapter_files()["adapter/trainer_log.jsonl"].splitlines()[0])), max_size=4))
def test_any_training_log(rows):
    ends_well(
        "adapter", {"adapter/trainer_log.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    )


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12) | st.sampled_from(
    [
        "N1",
        "N1-0",
        "N1-1 N2-0",
        "N1 N2",
        "1",
        "2",
        "U1",
        "11/9/2019 9:05:00 AM",
        "11/31/2019 9:05:00 AM",
        "N1-2",
        "[]",
        "",
    ]
)


# MIND's own numbers of columns, 5 and 8, and one less and one more.
@pytest.mark.parametrize(("file", "least"), [("train/behaviors.tsv", 4), ("train/news.tsv", 7)])
def test_any_cells(file, least):
    @LIMITS
    @given(
        st.lists(st.lists(CELLS, min_size=least, max_size=least + 2), max_size=5),
        st.sampled_from(["\n", "\r\n"]),
        st.booleans(),
    )
    def check(rows, newline, is_whole):
        text = newline.join("\t".join(row) for row in rows) + newline * is_whole
        ends_well("mind", {file: text.encode()})

    check()


KEYS = st.sampled_from(
    [
        "model_name_or_path",
        "template",
        "dataset",
        "dataset_dir",
        "cutoff_len",
        "output_dir",
        "stage",
        "finetuning_type",
        "lora_rank",
        "lora_target",
        "max_steps",
        "num_train_epochs",
        "learning_rate",
        "bf16",
        "fp16",
        "quantization_bit",
        "do_train",
        "eval_dataset",
        "val_size",
        "report_to",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "save_steps",
        "infer_backend",
        "deepspeed",
        "resume_from_checkpoint",
    ]
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
)


@LIMITS
@given(
    st.dictionaries(
        KEYS | PLAIN,
        PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(PLAIN, PLAIN, max_size=2),
        max_size=5,
    )
)
def test_any_yaml(changes):
    valid = yaml.safe_load(TARGETS["plan"].files()["train.yaml"])
    text = yaml.safe_dump(valid | changes, allow_unicode=True).encode()
    ends_well("config", {"train.yaml": text})
    ends_well("plan", {"train.yaml": text})


COLUMNS = {
    "int": st.integers(-(2**63), 2**63 - 1), "small": st.integers(-1, 2), "float": st.floats(), "text": st.text(st.characters(codec="utf-8"), max_size=4),
    "bool": st.booleans(), "list": st.lists(st.integers(0, 3), max_size=2),
}  # fmt: skip


@LIMITS
@given(st.data())
def test_any_columns_of_predictions(data):
    n = data.draw(st.integers(0, 5))
    columns = {}
    for field in predictions.SCHEMA:
        if data.draw(st.integers(0, 3)):  # mostly what belongs there
            columns[field.name] = pa.array(list(range(n)), pa.int64()).cast(field.type)
        elif data.draw(st.booleans()):
            kind = data.draw(st.sampled_from(sorted(COLUMNS)))
            columns[field.name] = pa.array(
                data.draw(st.lists(st.none() | COLUMNS[kind], min_size=n, max_size=n))
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(pa.table(columns), path)
        ends_well("predictions", {"tfidf/predictions.parquet": path.read_bytes()})


def test_a_planted_fault_is_found_and_shrunk(monkeypatch):
    """The tests above can fail: a user that trips over one shape of JSON is told by its smallest example."""
    from dataclasses import replace

    def read(folder):
        value = json.loads((folder / "adapter/mindlab_run.json").read_text())
        if isinstance(value, dict) and value.get("settings") == []:
            raise KeyError("planted")

    monkeypatch.setitem(TARGETS, "adapter", replace(TARGETS["adapter"], read=read))
    valid = json.loads(adapter_files()["adapter/mindlab_run.json"])
    seen = []

    @settings(LIMITS, max_examples=2000, derandomize=True, database=None)
    @given(like(valid))
    def check(value):
        try:
            ends_well("adapter", {"adapter/mindlab_run.json": json.dumps(value).encode()})
        except AssertionError:
            seen.append(value)
            raise

    with pytest.raises(AssertionError, match="planted"):
        check()
    assert seen[-1] == {"settings": []}
