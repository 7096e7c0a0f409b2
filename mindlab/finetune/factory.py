"""Drive LLaMA-Factory: check a YAML, launch a training run, follow it, read its loss.

``train("configs/train/smollm2_135m_lora_sft.yaml", {"max_steps": 20})`` is the same as
``llamafactory-cli train configs/train/smollm2_135m_lora_sft.yaml max_steps=20``, with a progress bar, a
resumed run instead of a mixed one, and nothing done when the same run is already finished.
"""

import dataclasses
import enum
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from mindlab.common.errors import UserError
from mindlab.common.files import MOST_JSON, inside, is_number, lock, read_json, sha256, write_json, write_text
from mindlab.common.machine import CLOSED
from mindlab.common.manifest import without_secrets
from mindlab.prompts.chat import import_factory, quiet_factory

RECORD = "mindlab_run.json"  # what was asked, in the output folder; its "finished" is set last
OUTPUT = "train_output.txt"  # everything LLaMA-Factory printed
LOSSES = "trainer_log.jsonl"  # LLaMA-Factory's own name
NUMBERS_OF_A_ROW = ("current_steps", "total_steps", "loss", "lr", "epoch", "percentage")
MOST_YAML = 1_000_000  # bytes; ours have some 2,000
MOST_VALUES = 10_000  # of a YAML, its aliases written out
# For glibc: freed memory stays with the process. By default it gives every large tensor back to the system and takes
# it anew, page by page, at the cost of 12 to 20 % of a training's time on two cores (benchmarks/training.py).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
CHECKPOINT_STATE = "trainer_state.json"  # transformers writes it last into a checkpoint
# The process between this one and the trainer or server, its group's leader. It ends the group when its stdin is closed, which
# the system does however this process ends: a SIGKILL, or a notebook's kernel that is shut down, leaves none of them.
KEEPER = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, lambda *_: None)  # it is for the child, whose end is waited for
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(10)
    finally:
        os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
os._exit(code if code >= 0 else 128 - code)
"""
# Checked by the presence of a package, or only meaningful on a GPU: not a question about the file.
MACHINE_KEYS = ("deepspeed", "tf32", "pure_bf16", "enable_liger_kernel", "use_unsloth")


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of a YAML as LLaMA-Factory's command line reads them, `overrides` on top."""
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; the configs of this project are in configs/")
    if path.stat().st_size > MOST_YAML:
        raise UserError(f"{path}: larger than {MOST_YAML:,} bytes, expected a YAML of some dozens of lines")
    try:
        with path.open(encoding="utf-8") as file:
            expanded = values_of(yaml.compose(file, Loader=yaml.SafeLoader), {})
        if expanded > MOST_VALUES:
            raise ValueError(
                f"its aliases make {expanded:.1g} values of it, expected at most {MOST_VALUES:,}"
            )
        # OmegaConf, since PyYAML alone reads 1e-4 as text.
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # yaml's and omegaconf's errors have no common class
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected lines of the form key: value")
    settings = {**settings, **(overrides or {})}
    for key in settings:
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r}: expected a name before the colon")
        if key.endswith("_token") and isinstance(settings[key], str):
            raise UserError(
                f"{path}: {key}: a token in the settings would be kept beside the adapter; take it out, and run "
                "`hf auth login` or set HF_TOKEN"
            )
    return settings


def values_of(node: Any, seen: dict[int, float]) -> float:
    """Return how many values a composed YAML document has when each alias is written out; `seen` holds those known.

    A dozen lines of aliases to aliases make more values than a memory holds, and OmegaConf writes them all out.
    """
    if id(node) not in seen:
        seen[id(node)] = math.inf  # while it is being counted: an alias to what it stands in
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        seen[id(node)] = 1.0 + sum(values_of(part, seen) for part in parts)
    return seen[id(node)]


def validate(
    path: str | Path, overrides: Mapping[str, Any] | None = None, root: str | Path = "."
) -> dict[str, Any]:
    """Check a train, export or chat YAML without a GPU, a model or data; return its settings.

    LLaMA-Factory's own parser rejects unknown keys and forbidden combinations. It does not look at types,
    choices, the template or the dataset names, so these are checked here. `root` is the folder the run is
    started in. Raises `UserError` naming the file and the key. Seeds the global random generators, as the
    parser does.
    """
    from llamafactory.hparams import get_infer_args, get_train_args

    settings = load(path, overrides)
    is_train = "output_dir" in settings
    try:
        with quiet_factory():
            if is_train:
                parsed = get_train_args(portable(settings))
            else:
                parsed = get_infer_args({**settings, "infer_backend": "huggingface"})
    except Exception as error:  # ValueError for most, but also ImportError, TypeError, AttributeError
        raise UserError(f"{path}: LLaMA-Factory rejects it: {' '.join(str(error).split())}") from error
    check_values(path, settings, parsed)
    check_template(path, settings)
    if is_train:
        check_datasets(path, settings, Path(root))
    return settings


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` without what the machine at hand decides, so that the parser judges only the file."""
    kept = {key: value for key, value in settings.items() if key not in MACHINE_KEYS}
    # bf16 without a GPU raises unless use_cpu; an existing output_dir would be searched for checkpoints.
    return {**kept, "use_cpu": True, "output_dir": "never-made", "resume_from_checkpoint": None}


def check_values(path: str | Path, settings: Mapping[str, Any], parsed: tuple[Any, ...]) -> None:
    """Raise `UserError` for a value that is not of its key's type, or not one of its choices."""
    for arguments in parsed:
        if not dataclasses.is_dataclass(arguments):
            continue
        hints = typing.get_type_hints(type(arguments))
        for field in dataclasses.fields(arguments):
            value = settings.get(field.name)
            hint = hints[field.name]
            if field.name in settings and value is not None and not fits(value, hint):
                choices = f"one of {', '.join(named)}" if (named := choices_of(hint)) else describe(hint)
                raise UserError(f"{path}: {field.name}: {value!r}: expected {choices}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a YAML value can be meant for a field annotated `hint`; a hint that pydantic does not know takes all."""
    try:
        # Strict, and by way of JSON: there an Enum is named by its value, and a whole number is a float too.
        TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except PydanticSchemaGenerationError:
        return True
    except ValidationError:
        return False
    return True


def choices_of(hint: Any) -> list[str]:
    """Return the values a Literal or Enum annotation allows, or an empty list."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [str(item.value) for item in hint]
    return []


def describe(hint: Any) -> str:
    """Return an annotation as a user of a YAML would name it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def check_template(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the file names a template that LLaMA-Factory has."""
    name = settings.get("template")
    if name is None:
        raise UserError(f"{path}: no template; a guessed one leaves the end of the answer out of the labels")
    if name not in import_factory().TEMPLATES:
        raise UserError(
            f"{path}: template: {name!r}: LLaMA-Factory has none of this name; e.g. glm4, smollm2"
        )


def check_datasets(path: str | Path, settings: Mapping[str, Any], root: Path) -> None:
    """Raise `UserError` unless every dataset of the file is in dataset_info.json."""
    info_path, info = read_dataset_info(settings, root)
    names = dataset_names(settings)
    if not names:
        raise UserError(f"{path}: names no dataset")
    for name in names:
        if name not in info:
            raise UserError(f"{path}: dataset: {name!r} is not in {info_path}; it has {', '.join(info)}")


def dataset_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the datasets a run reads, training ones first."""
    lists = [settings.get(key) or "" for key in ("dataset", "eval_dataset")]
    for names in lists:
        if not isinstance(names, str):
            raise UserError(f"dataset: {names!r}: expected names with commas between")
    return [name.strip() for names in lists for name in names.split(",") if name.strip()]


def read_dataset_info(settings: Mapping[str, Any], root: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of the dataset_info.json that a run in `root` reads."""
    folder = settings.get("dataset_dir") or "data"
    if not isinstance(folder, str):
        raise UserError(f"dataset_dir: {folder!r}: expected the name of a folder")
    path = root / folder / "dataset_info.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run in the repository root, or set dataset_dir")
    # ASCII: LLaMA-Factory opens it with the encoding of the user's locale.
    return path, read_json(path, "it must be JSON in plain ASCII", encoding="ascii")


def hash_datasets(settings: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Return the SHA-256 of the file behind each dataset of a run; raise `UserError` if one is missing."""
    info_path, info = read_dataset_info(settings, root)
    hashes = {}
    for name in dataset_names(settings):
        if isinstance(info[name], dict) and "file_name" not in info[name]:  # a dataset on a hub
            continue
        file = inside(info_path, info[name])
        if not file.is_file():
            raise UserError(
                f"{file}: no such file, but dataset {name} needs it; see scripts/build_dataset.py"
            )
        hashes[name] = sha256(file)
    return hashes


def train(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = lambda line: None,
    root: str | Path = ".",
    watch: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Path:
    """Run ``llamafactory-cli train path key=value...`` in `root`; return the output folder.

    A finished run with the same settings and data is not repeated, an interrupted one goes on from its last
    checkpoint. Draws a progress bar on stderr; LLaMA-Factory's own words go to train_output.txt. `watch` is
    called with every row of trainer_log.jsonl as it is written; what it raises ends the training. Raises
    `UserError` for an invalid YAML, an output folder of another run or that another process writes to, and a run that
    fails.
    """
    root = Path(root)
    path = Path(path)
    settings = load(path, overrides)
    for key in ("output_dir", "model_name_or_path"):
        if not isinstance(settings.get(key), str):
            raise UserError(f"{path}: {key}: {settings.get(key)!r}: a training needs a text here")
    check_datasets(path, settings, root)
    out = root / settings["output_dir"]
    # Through JSON, so that it compares equal to what is read back.
    wanted = json.loads(json.dumps({"settings": settings, "datasets": hash_datasets(settings, root)}))
    if is_finished(out, wanted):
        log(f"{out}: already trained with these settings and data")
        return out
    validate(path, overrides, root)
    with lock(out) as handle:
        if not is_finished(out, wanted):  # nor by who held the lock before
            _launch(path, settings, wanted, overrides or {}, out, root, watch, handle)
    return out


def _launch(
    path: Path,
    settings: Mapping[str, Any],
    wanted: dict[str, Any],
    overrides: Mapping[str, Any],
    out: Path,
    root: Path,
    watch: Callable[[Mapping[str, Any]], None],
    handle: int,
) -> None:
    """Do what `train` says, in an `out` that is locked by `handle`."""
    discard_torn(out)
    # What the adapter belongs to: see `check_adapter`.
    wanted["base"] = base_of(root / settings["model_name_or_path"])
    wanted["trained_on"] = source_of(settings, root)
    write_json(out / RECORD, {**wanted, "finished": False})
    run = [*command(), "train", str(path.resolve()), *map(argument, overrides.items())]
    # With true, LLaMA-Factory would start anew among the old checkpoints; resuming is ours to offer.
    run.append("overwrite_output_dir=false")
    try:
        code = follow(run, out, environment(settings, root), root, watch, handle)
    finally:
        hide_secrets(out / OUTPUT)
    if code != 0:
        raise UserError(
            f"{path}: LLaMA-Factory ended with exit code {code}; all it printed is in {out / OUTPUT}, which ends:",
            last_lines(out / OUTPUT),
        )
    if not has_weights(out):
        raise UserError(f"{path}: LLaMA-Factory ended well but left no weights in {out}; see {out / OUTPUT}")
    write_json(out / RECORD, {**wanted, "finished": True})


def discard_torn(out: Path) -> None:
    """Remove what a killed training left half-written in its output folder, so that what is whole is gone on with.

    That is a checkpoint whose last file is not whole or whose weights are not, and after it the last line of
    trainer_log.jsonl if it has no end. Without a checkpoint to go on from, weights of the whole run go too:
    LLaMA-Factory refuses to start beside them.
    """
    checkpoints = [path for path in out.glob("checkpoint-*") if path.is_dir()]
    torn = [path for path in checkpoints if not is_whole(path)]
    for path in torn:
        shutil.rmtree(path)
    if len(torn) == len(checkpoints):
        patterns = ("adapter_*", "*.safetensors", "*.bin", "*.index.json")
        for path in {path for pattern in patterns for path in out.glob(pattern)}:
            path.unlink()
    losses = out / LOSSES
    if losses.exists():
        data = losses.read_bytes()
        if (end := data.rfind(b"\n") + 1) < len(data):
            os.truncate(losses, end)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint of transformers' Trainer was written to its end."""
    from safetensors import SafetensorError, safe_open

    try:
        state = json.loads((checkpoint / CHECKPOINT_STATE).read_text(encoding="utf-8"))
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="pt"):  # reads the header, and compares it with the size
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return isinstance(state, dict) and checkpoint.name == f"checkpoint-{state.get('global_step')}"


def is_finished(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Return whether `out` holds the finished run `wanted`; raise `UserError` if it holds another one."""
    advice = f"delete {out}, or choose another output_dir"
    if not (out / RECORD).exists():
        if has_weights(out) or any(out.glob("checkpoint-*")):
            raise UserError(f"{out} holds a run that was started by other means; {advice}")
        return False
    record = read_record(out / RECORD, advice)
    old = record.get("settings", {})
    new = wanted["settings"]
    changed = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    changed += [
        f"the file of dataset {name}"
        for name, value in wanted["datasets"].items()
        if record.get("datasets", {}).get(name) != value
    ]
    if changed:
        raise UserError(f"{out} holds a run with other settings ({'; '.join(changed)}); {advice}")
    return bool(record.get("finished")) and has_weights(out)


def settings_of(out: str | Path) -> dict[str, Any] | None:
    """Return the settings that a training of `train` was run with; None for a folder of another origin."""
    path = Path(out) / RECORD
    return read_record(path, "train it again").get("settings") if path.is_file() else None


def source_of(settings: Mapping[str, Any], root: str | Path = ".") -> dict[str, Any]:
    """Return which news data a training's records were built from: ``data``, its folder, and ``inputs_sha256`` by file.

    The manifest beside the records tells (`mindlab.finetune.alpaca.build`); {} for records of another origin.
    """
    for path in sorted((Path(root) / settings["dataset_dir"]).glob("processed/*.manifest.json")):
        manifest = read_json(path, "build the records again")
        inputs = manifest.get("inputs_sha256") or {}
        if inputs and any(name in manifest.get("datasets", {}) for name in dataset_names(settings)):
            return {"data": Path(os.path.commonpath(inputs)).as_posix(), "inputs_sha256": inputs}
    return {}


def trained_on(adapter: str | Path) -> dict[str, Any]:
    """Return what `source_of` found when the adapter was trained; {} where its record does not tell."""
    path = Path(adapter) / RECORD
    return read_record(path, "train it again")["trained_on"] if path.is_file() else {}


def read_record(path: Path, advice: str) -> dict[str, Any]:
    """Return the record of a training, its parts being objects; raise `UserError` for anything else."""
    record = read_json(path, advice)
    record.setdefault("trained_on", {})
    for key in ("settings", "datasets", "base", "trained_on"):
        if not isinstance(record.get(key, {}), dict):
            raise UserError(f"{path}: {key} is {record[key]!r}, expected an object; {advice}")
    return record


def base_of(model: str | Path) -> dict[str, str]:
    """Return SHA-256 hashes of what an adapter depends on in a model folder; {} for a hub id.

    ``config``: config.json without what a library writes of itself; ``tokenizer``: tokenizer.json; ``weights``: the
    first 64 rows of the first and the last tensor of each safetensors file, by name, which tells a fine-tuned
    model from its base in a fraction of the time that all bytes take.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json", "get the model again")
    own = {key: config[key] for key in config if key not in ("transformers_version", "_name_or_path")}
    hashes = {"config": hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()}
    if (folder / "tokenizer.json").is_file():
        hashes["tokenizer"] = sha256(folder / "tokenizer.json")
    if files := sorted(folder.glob("model*.safetensors")):
        import torch
        from safetensors import safe_open

        digest = hashlib.sha256()
        for file in files:
            with safe_open(file, framework="pt") as weights:
                names = sorted(weights.keys())
                for name in (names[0], names[-1]):
                    part = weights.get_slice(name)[:64].contiguous().view(torch.uint8)
                    digest.update(name.encode() + part.numpy().tobytes())
        hashes["weights"] = digest.hexdigest()
    return hashes


def check_adapter(adapter: str | Path, model: str | Path, template: str) -> None:
    """Raise `UserError` unless an adapter belongs to the model and was trained with the template.

    The record of its training decides. Without one (an adapter of another origin) peft's adapter_config.json names
    the base; that is compared by its last part, and a warning on stderr says that no more could be.
    """
    folder = Path(adapter)
    record = read_record(path, "train it again") if (path := folder / RECORD).is_file() else {}
    trained = record.get("settings", {}).get("template")
    if trained not in (None, template):
        raise UserError(
            f"{path}: trained with template {trained}, asked with {template}; give --template {trained}"
        )
    known, found = record.get("base", {}), base_of(model)
    for part in known:
        if part in found and known[part] != found[part]:
            raise UserError(
                f"{path}: the {part} of its base is not that of {model}; give the --model that it was trained on, "
                "or train it again"
            )
    if known and found:
        return
    config = folder / "adapter_config.json"
    if not config.is_file():  # the engine says what is missing
        return
    named = read_json(config, "get the adapter again").get("base_model_name_or_path")
    if not isinstance(named, str | None):
        raise UserError(
            f"{config}: base_model_name_or_path is {named!r}, expected a text; get the adapter again"
        )
    if named and Path(named).name.lower() != Path(model).resolve().name.lower():
        raise UserError(
            f"{config}: an adapter of {named}, not of {model}; give the --model that it was trained on"
        )
    print(f"warning: {folder} has no hashes of its base; only the name {named} was compared", file=sys.stderr)


def hide_secrets(path: Path) -> None:
    """Take tokens out of a text file, if it holds any."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if (hidden := without_secrets(text)) != text:
        write_text(path, hidden)


def has_weights(out: Path) -> bool:
    """Return whether a folder holds an adapter or a whole model."""
    return any((out / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")) or any(
        out.glob("model*.safetensors")
    )


def command() -> list[str]:
    """Return the LLaMA-Factory command line of this interpreter's own environment."""
    beside = Path(sys.executable).parent / "llamafactory-cli"
    if beside.is_file():
        return [str(beside)]
    return [sys.executable, "-m", "llamafactory.cli"]


def argument(item: tuple[str, Any]) -> str:
    """Return one override as ``key=value`` for OmegaConf, which reads the value as YAML.

    >>> [argument(item) for item in [("max_steps", 3), ("use_cpu", True), ("eval_strategy", "no")]]
    ['max_steps=3', 'use_cpu=true', 'eval_strategy="no"']
    """
    from omegaconf import OmegaConf

    key, value = item
    if isinstance(value, str):
        try:
            is_plain = OmegaConf.to_container(OmegaConf.from_cli([f"key={value}"]))["key"] == value
        except Exception:  # text that is no YAML, e.g. "[x"
            is_plain = False
        return f"{key}={value}" if is_plain else f"{key}={json.dumps(value, ensure_ascii=False)}"
    return f"{key}={json.dumps(value)}"


def environment(settings: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Return the environment of the child: this venv first on PATH, no network for a local model."""
    env = {**CLOSED, **os.environ}
    # LLaMA-Factory starts `torchrun` by name.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env["PYTHONUNBUFFERED"] = "1"
    if (root / str(settings["model_name_or_path"])).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if settings.get("use_cpu"):
        # With a GPU in sight LLaMA-Factory loads the weights in float16, and with two it starts torchrun.
        env["CUDA_VISIBLE_DEVICES"] = ""
        env = {**KEEP_MEMORY, **env}
    return env


def follow(
    run: list[str],
    out: Path,
    env: Mapping[str, str],
    root: Path,
    watch: Callable[[Mapping[str, Any]], None] = lambda row: None,
    handle: int | None = None,
) -> int:
    """Run a training command as `kept` does, drawing a bar from its trainer_log.jsonl; return its exit code."""
    from tqdm import tqdm

    losses = out / LOSSES
    seen = losses.stat().st_size if losses.exists() else 0  # a resumed run appends
    with (
        (out / OUTPUT).open("ab") as output,
        tqdm(total=None, unit="step", desc="training", file=sys.stderr, smoothing=0) as bar,
        kept(run, output, env, root, handle) as child,
    ):
        is_running = True
        while is_running:
            try:
                child.wait(timeout=0.5)
                is_running = False
            except subprocess.TimeoutExpired:
                pass
            rows, seen = read_rows(losses, seen)
            for row in rows:
                show(bar, row)
                watch(row)
    return child.returncode


@contextmanager
def kept(
    run: list[str], output: IO[bytes], env: Mapping[str, str], root: Path, handle: int | None = None
) -> Iterator[subprocess.Popen]:
    """Run a command in `root` while the block lasts; its words go to `output`.

    However the block is left, the child and everything it started has ended; if this process is killed, that is so
    some seconds later, see `KEEPER`. Until then it holds the lock of `handle`, a file descriptor.
    """
    # A session of its own, so that one signal reaches torchrun's and the data loaders' processes too.
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", KEEPER, *run],
        cwd=root,
        env=env,
        stdin=subprocess.PIPE,
        pass_fds=() if handle is None else (handle,),
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        try:
            stop(child)
        finally:
            child.stdin.close()


def read_rows(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole JSON lines of `path` from byte `start`, and the byte after them.

    A last line without its newline is still being written, and is left for the next call.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(MOST_JSON + 1)
    if len(data) > MOST_JSON:
        raise UserError(f"{path}: more than {MOST_JSON:,} bytes, expected a training's log; train it again")
    whole = data[: data.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} from byte {start:,}: not JSON ({error}); train it again"
            ) from None
        if not isinstance(row, dict) or not all(is_number(row.get(key)) for key in NUMBERS_OF_A_ROW):
            raise UserError(
                f"{path}: line {number} from byte {start:,}: not a row of a training's log; train it again"
            )
        rows.append(row)
    return rows, start + len(whole)


def show(bar: Any, row: Mapping[str, Any]) -> None:
    """Move a tqdm bar to the step of one row of trainer_log.jsonl."""
    if bar.total is None and row.get("total_steps") and row.get("current_steps") is not None:
        bar.total = row["total_steps"]
        # The time per step counts from here on: loading the model is no measure of it.
        bar.initial = bar.n = row["current_steps"]
        bar.start_t = bar.last_print_t = time.time()
    if row.get("loss") is not None:
        bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row.get('lr') or 0:.1e}", refresh=False)
    if row.get("current_steps") is not None:
        bar.update(row["current_steps"] - bar.n)
    bar.refresh()


def stop(child: subprocess.Popen) -> None:
    """End a child and its whole process group, with force after ten seconds."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):
            break  # the group is empty
        try:
            child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue


def last_lines(output: Path, count: int = 12) -> str:
    """Return the last lines that a failed run printed."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-count:])


def read_loss(output_dir: str | Path) -> list[dict[str, Any]]:
    """Return the training rows of a run's trainer_log.jsonl, one per step, ascending.

    Keys: current_steps, total_steps, loss, lr, epoch, percentage, elapsed_time, remaining_time. A run that
    went on from a checkpoint logged some steps twice; the later row counts.
    """
    path = Path(output_dir) / LOSSES
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run started?")
    rows, _ = read_rows(path, 0)
    by_step = {
        row["current_steps"]: row
        for row in rows
        if row.get("loss") is not None and row.get("current_steps") is not None
    }
    return [by_step[step] for step in sorted(by_step)]


def train_seconds(output_dir: str | Path) -> float | None:
    """Return how long a training took, to the second, all its resumed parts together; None without a log.

    trainer_log.jsonl counts the time of each start anew. What a stop lost is part of the time it took.
    """
    path = Path(output_dir) / LOSSES
    if not path.is_file():
        return None
    total = last = 0.0
    for row in read_rows(path, 0)[0]:
        found = re.fullmatch(
            r"(?:(\d{1,9}) days?, )?(\d{1,9}):(\d{1,9}):(\d{1,9})", str(row.get("elapsed_time")), re.ASCII
        )
        if found is None:
            raise UserError(
                f"{path}: elapsed_time {row.get('elapsed_time')!r}: expected a time like 0:01:30; train it again"
            )
        days, *clock = found.groups()
        hours, minutes, seconds = map(int, clock)
        elapsed = 86400.0 * int(days or 0) + 3600 * hours + 60 * minutes + seconds
        total += elapsed - last if elapsed >= last else elapsed
        last = elapsed
    return total
