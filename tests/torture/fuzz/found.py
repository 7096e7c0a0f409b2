"""What the fuzzer found, small: files that once ended in a traceback, a misreading or too much memory.

Each row: the target, the files that differ from its valid ones, and what the one line must say.
"""

import io
import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.torture.fuzz.targets import adapter_files, config_files, mind_files, run_files


@dataclass(frozen=True)
class Found:
    """One input and how it must end: `says` is part of the line; None for a file that is read."""

    target: str
    why: str
    files: dict[str, bytes] = field(repr=False)
    says: str | None


def info(**entry: object) -> bytes:
    return json.dumps({"my_train": {"file_name": "my_train.json", **entry}}).encode()


def one_record(**changes: object) -> bytes:
    return json.dumps([{"instruction": "a", "input": "b", "output": "c", **changes}]).encode()


def table(name: str | None = None, values: object = None, *, twice: str | None = None) -> bytes:
    found = pq.ParquetFile(io.BytesIO(run_files()["tfidf/predictions.parquet"])).read()
    if name is not None:
        found = found.set_column(found.schema.get_field_index(name), name, values)
    out = io.BytesIO()
    pq.write_table(found, out)
    data = out.getvalue()
    if twice is None:
        return data
    old, new = twice.split(">")  # two names of one length, in the footer and in Arrow's own schema
    return data.replace(old.encode(), new.encode())


def not_utf8(n: int) -> pa.Array:
    """Return texts whose bytes Arrow wrote without a look at them."""
    offsets = pa.py_buffer((np.arange(n + 1) * 3).astype(np.int32))
    return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(b"a\xff\x80" * n))


def many_rows(n: int) -> bytes:
    row = pq.ParquetFile(io.BytesIO(run_files()["tfidf/predictions.parquet"])).read().slice(0, 1)
    out = io.BytesIO()
    pq.write_table(row.take(pa.array(np.zeros(n, np.int32))), out, compression="zstd")
    return out.getvalue()


def yaml_with(line: str) -> bytes:
    return config_files()["train.yaml"] + line.encode() + b"\n"


def yaml_without(key: str, line: str) -> bytes:
    lines = config_files()["train.yaml"].decode().splitlines()
    return "\n".join([line if one.startswith(f"{key}:") else one for one in lines]).encode()


def manifest(**changes: object) -> bytes:
    return json.dumps(json.loads(run_files()["popularity/manifest.json"]) | changes).encode()


def record(**changes: object) -> bytes:
    return json.dumps(json.loads(adapter_files()["adapter/mindlab_run.json"]) | changes).encode()


def log_row(**changes: object) -> bytes:
    row = {"current_steps": 1, "total_steps": 3, "loss": 1.0, "elapsed_time": "0:00:01"}
    return json.dumps(row | changes).encode() + b"\n"


N_ROWS = pq.ParquetFile(io.BytesIO(run_files()["tfidf/predictions.parquet"])).metadata.num_rows
DEEP = b"[" * 100_000
LAUGHS = "l0: &l0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)
)
BUILT = {
    "options": {},
    "inputs_sha256": {},
    "datasets": {"mind": {"file": "a", "sha256": "0", "records": 0, "records_yes": 0}},
}

FOUND = (
    # dataset_info.json, as the audit reads it
    Found("alpaca", "info is a text", {"dataset_info.json": b'"x"'}, "holds a JSON str, expected an object"),
    Found("alpaca", "info is nothing", {"dataset_info.json": b""}, "dataset_info.json: not JSON"),
    Found("alpaca", "info is not UTF-8", {"dataset_info.json": b'{"a": "\xff"}'}, "dataset_info.json: not JSON"),
    Found("alpaca", "info is nested too deeply", {"dataset_info.json": DEEP}, "nested too deeply"),
    Found("alpaca", "info after a byte order mark", {"dataset_info.json": b"\xef\xbb\xbf" + info()}, None),
    Found("alpaca", "columns are a list", {"dataset_info.json": info(columns=["a"])}, "are no names"),
    Found("alpaca", "a column is an object", {"dataset_info.json": info(columns={"history": {}})}, "are no names"),
    Found("alpaca", "file_name is a number", {"dataset_info.json": info(file_name=1.5)}, None),
    # Alpaca records
    Found("alpaca", "history is a number", {"my_train.json": one_record(history=5)}, "no list of turns"),
    Found("alpaca", "a turn is a number", {"my_train.json": one_record(history=[5])}, "no list of turns"),
    Found("alpaca", "half a character", {"my_train.json": one_record(output="\ud800")}, "holds half a character"),
    Found("alpaca", "half a character, in lines", {"other.jsonl": b'{"instruction": "\\ud800", "output": ""}\n'}, "line 1: holds half"),
    Found("alpaca", "nested too deeply", {"my_train.json": DEEP}, "nested too deeply"),
    Found("alpaca", "a line separator in a text", {"other.jsonl": '{"instruction": "a\u2028b", "output": "c"}\n'.encode() * 6}, None),
    Found("alpaca", "two lists", {"my_train.json": one_record() * 2}, "something stands after its end"),
    Found("alpaca", "a comma is missing", {"my_train.json": one_record()[:-1] + one_record()[1:]}, "a comma or ] is missing"),
    # what build_dataset.py finds in its folders
    Found("build", "info is a list", {"out/dataset_info.json": b"[1]"}, "holds a JSON list, expected an object"),
    Found("build", "info is not UTF-8", {"out/dataset_info.json": b"\xff"}, "dataset_info.json: not JSON"),
    Found("build", "the checkout's info is a text", {"checkout/data/dataset_info.json": b'"x"'}, "expected an object"),
    Found("build", "an entry of the manifest is a list", {"kept/processed/mind.manifest.json": b'{"datasets": {"mind": []}}'}, "not as scripts/build_dataset.py writes it"),
    Found("build", "the manifest counts no records", {"kept/processed/mind.manifest.json": json.dumps(BUILT).encode()}, "not as scripts/build_dataset.py writes it"),
    Found("build", "the manifest after a byte order mark", {"kept/processed/mind.manifest.json": b"\xef\xbb\xbf{}"}, "not as scripts/build_dataset.py writes it"),
    # predictions
    Found("predictions", "a text that is not UTF-8", {"tfidf/predictions.parquet": table("news_id", not_utf8(N_ROWS))}, "not a readable Parquet file"),
    Found("predictions", "an answer that is not UTF-8", {"tfidf/predictions.parquet": table("answer", not_utf8(N_ROWS))}, "not a readable Parquet file"),
    Found("predictions", "a name that is not UTF-8", {"tfidf/predictions.parquet": table(twice="answer>answ\xe9")}, "predictions"),
    Found("predictions", "a column twice", {"tfidf/predictions.parquet": table(twice="case_id>user_id")}, "is there twice"),
    Found("predictions", "far more rows than bytes", {"tfidf/predictions.parquet": many_rows(2_000_000)}, "more than predictions pack so tightly"),
    # manifests
    Found("manifest", "a number that no float holds", {"popularity/manifest.json": manifest(params=10**400)}, "expected a number or null"),
    Found("manifest", "hashes are a list", {"popularity/manifest.json": manifest(inputs_sha256=["a"])}, "inputs_sha256 is no object"),
    Found("manifest", "a hash is a list", {"popularity/manifest.json": manifest(inputs_sha256={"data/dev/behaviors.tsv": []})}, "inputs_sha256 is no object"),
    Found("manifest", "the request is a text", {"popularity/manifest.json": manifest(request="x")}, "request is no object"),
    Found("manifest", "a newline in the protocol", {"popularity/manifest.json": manifest(protocol="a\nb")}, "protocols a\\nb and dev"),
    Found("manifest", "half a character in the name", {"popularity/manifest.json": manifest(name="\ud800")}, "holds half a character"),
    Found("manifest", "nested too deeply", {"popularity/manifest.json": DEEP}, "nested too deeply"),
    # configs
    Found("config", "a key that is a number", {"train.yaml": yaml_with("1: 2")}, "1: expected a name before the colon"),
    Found("config", "aliases that grow to 9 ** 9 values", {"train.yaml": yaml_with(LAUGHS)}, "its aliases make"),
    Found("config", "an alias to what it stands in", {"train.yaml": yaml_with("a: &a [*a]")}, "its aliases make inf values"),
    Found("config", "a value of 5,000 characters", {"train.yaml": yaml_without("max_steps", f"cutoff_len: {'a' * 5000}")}, "cutoff_len"),
    Found("config", "info is a number", {"data/dataset_info.json": b"1"}, "holds a JSON int, expected an object"),
    Found("config", "file_name is a list", {"data/dataset_info.json": b'{"mind_dev_next_click_train": {"file_name": ["a"]}}'}, "expected the name of a file"),
    Found("config", "file_name has a newline", {"data/dataset_info.json": b'{"mind_dev_next_click_train": {"file_name": "a\\nb"}}'}, "a\\nb: no such file"),
    Found("config", "file_name of 3,000 letters", {"data/dataset_info.json": b'{"mind_dev_next_click_train": {"file_name": "%s"}}' % (b"x" * 3000)}, "File name too long"),
    Found("config", "an entry is a text", {"data/dataset_info.json": b'{"mind_dev_next_click_train": "a"}'}, "expected the name of a file"),
    # what a training leaves
    Found("adapter", "the record is a list", {"adapter/mindlab_run.json": b"[]"}, "holds a JSON list, expected an object"),
    Found("adapter", "its settings are a text", {"adapter/mindlab_run.json": record(settings="x")}, "settings is 'x', expected an object"),
    Found("adapter", "a template of two lines", {"adapter/mindlab_run.json": record(settings={"template": "\n"})}, "template"),
    Found("adapter", "the base's name is a number", {"adapter/adapter_config.json": b'{"base_model_name_or_path": 1}', "adapter/mindlab_run.json": record(base={})}, "expected a text"),
    Found("adapter", "a log that is no JSON", {"adapter/trainer_log.jsonl": b"{\n"}, "line 1 from byte 0: not JSON"),
    Found("adapter", "a row that is a number", {"adapter/trainer_log.jsonl": b"1\n"}, "not a row of a training's log"),
    Found("adapter", "a loss that is a text", {"adapter/trainer_log.jsonl": log_row(loss="x")}, "not a row of a training's log"),
    Found("adapter", "no elapsed time", {"adapter/trainer_log.jsonl": log_row(elapsed_time=None)}, "expected a time like"),
    Found("adapter", "an elapsed time below 0", {"adapter/trainer_log.jsonl": log_row(elapsed_time="-1:00:00")}, "expected a time like"),
    Found("adapter", "the model's config is a text", {"base/config.json": b'"x"'}, "holds a JSON str, expected an object"),
    Found("adapter", "a model type that is a list", {"base/config.json": b'{"model_type": []}'}, "cannot tell the chat template"),
    Found("adapter", "the request is no JSON", {"run/request.json": b""}, "request.json: not JSON"),
    # MIND
    Found("mind", "a line of 9 MB", {"train/news.tsv": mind_files()["train/news.tsv"] + b"x" * 9_000_000}, "line 31: longer than 8,388,608 bytes"),
)  # fmt: skip
