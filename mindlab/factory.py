"""Drive LLaMA-Factory: check a YAML, launch a training run, follow it, read its loss.

``train("configs/train/smollm2_135m_lora_sft.yaml", {"max_steps": 20})`` is the same as
``llamafactory-cli train configs/train/smollm2_135m_lora_sft.yaml max_steps=20``, with a progress bar, a
resumed run instead of a mixed one, and nothing done when the same run is already finished.
"""

import dataclasses
import enum
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mindlab.chat import import_factory, quiet_factory
from mindlab.errors import UserError
from mindlab.files import sha256, write_json

RECORD = "mindlab_run.json"  # what was asked, in the output folder; its "finished" is set last
OUTPUT = "train_output.txt"  # everything LLaMA-Factory printed
LOSSES = "trainer_log.jsonl"  # LLaMA-Factory's own name
# For glibc: freed memory stays with the process. By default it gives every large tensor back to the system and takes
# it anew, page by page, at the cost of 12 to 20 % of a training's time on two cores (benchmarks/training.py).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
# Checked by the presence of a package, or only meaningful on a GPU: not a question about the file.
MACHINE_KEYS = ("deepspeed", "tf32", "pure_bf16", "enable_liger_kernel", "use_unsloth")


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of a YAML as LLaMA-Factory's command line reads them, `overrides` on top."""
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; the configs of this project are in configs/")
    try:
        # OmegaConf, since PyYAML alone reads 1e-4 as text.
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # yaml's and omegaconf's errors have no common class
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected lines of the form key: value")
    return {**settings, **(overrides or {})}


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
    """Return whether a YAML value can be meant for a field annotated `hint`; unknown hints take anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [item.value for item in hint]
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    return True


def choices_of(hint: Any) -> list[str]:
    """Return the values a Literal or Enum annotation allows, or an empty list."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [str(item.value) for item in hint]
    return []


def describe(hint: Any) -> str:
    """Return an annotation as a reader of a YAML would name it."""
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
    return [name.strip() for names in lists for name in names.split(",") if name.strip()]


def read_dataset_info(settings: Mapping[str, Any], root: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of the dataset_info.json that a run in `root` reads."""
    path = root / settings.get("dataset_dir", "data") / "dataset_info.json"
    try:
        # ASCII: LLaMA-Factory opens it with the encoding of the user's locale.
        return path, json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run in the repository root, or set dataset_dir") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON in plain ASCII: {error}") from error


def hash_datasets(settings: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Return the SHA-256 of the file behind each dataset of a run; raise `UserError` if one is missing."""
    info_path, info = read_dataset_info(settings, root)
    hashes = {}
    for name in dataset_names(settings):
        if "file_name" not in info[name]:  # a dataset on a hub
            continue
        file = info_path.parent / info[name]["file_name"]
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
    `UserError` for an invalid YAML, an output folder of another run, and a run that fails.
    """
    root = Path(root)
    path = Path(path)
    settings = load(path, overrides)
    check_datasets(path, settings, root)
    out = root / settings["output_dir"]
    # Through JSON, so that it compares equal to what is read back.
    wanted = json.loads(json.dumps({"settings": settings, "datasets": hash_datasets(settings, root)}))
    if is_finished(out, wanted):
        log(f"{out}: already trained with these settings and data")
        return out
    validate(path, overrides, root)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {**wanted, "finished": False})
    run = [*command(), "train", str(path.resolve()), *map(argument, (overrides or {}).items())]
    # With true, LLaMA-Factory would start anew among the old checkpoints; resuming is ours to offer.
    run.append("overwrite_output_dir=false")
    code = follow(run, out, environment(settings, root), root, watch)
    if code != 0:
        raise UserError(f"{path}: LLaMA-Factory ended with exit code {code}; {failure(out / OUTPUT)}")
    if not has_weights(out):
        raise UserError(f"{path}: LLaMA-Factory ended well but left no weights in {out}; see {out / OUTPUT}")
    write_json(out / RECORD, {**wanted, "finished": True})
    return out


def is_finished(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Return whether `out` holds the finished run `wanted`; raise `UserError` if it holds another one."""
    advice = f"delete {out}, or choose another output_dir"
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if has_weights(out) or any(out.glob("checkpoint-*")):
            raise UserError(f"{out} holds a run that was started by other means; {advice}") from None
        return False
    except ValueError:
        raise UserError(f"{out / RECORD}: not valid JSON; {advice}") from None
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
    return json.loads(path.read_text(encoding="utf-8")).get("settings") if path.is_file() else None


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
    env = dict(os.environ)
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
) -> int:
    """Run a training command, drawing a bar from its trainer_log.jsonl; return its exit code.

    However this function is left, the child and everything it started has ended.
    """
    from tqdm import tqdm

    losses = out / LOSSES
    seen = losses.stat().st_size if losses.exists() else 0  # a resumed run appends
    with (
        (out / OUTPUT).open("ab") as output,
        tqdm(total=None, unit="step", desc="training", file=sys.stderr, smoothing=0) as bar,
    ):
        # A session of its own, so that one signal reaches torchrun's and the data loaders' processes too.
        child = subprocess.Popen(
            run,
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
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
        finally:
            stop(child)
    return child.returncode


def read_rows(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole JSON lines of `path` from byte `start`, and the byte after them.

    A last line without its newline is still being written, and is left for the next call.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], start + len(whole)


def show(bar: Any, row: Mapping[str, Any]) -> None:
    """Move a tqdm bar to the step of one row of trainer_log.jsonl."""
    if bar.total is None and row.get("total_steps"):
        bar.total = row["total_steps"]
        # The time per step counts from here on: loading the model is no measure of it.
        bar.initial = bar.n = row["current_steps"]
        bar.start_t = bar.last_print_t = time.time()
    if "loss" in row:
        bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row.get('lr', 0):.1e}", refresh=False)
    bar.update(row.get("current_steps", bar.n) - bar.n)
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


def failure(output: Path, count: int = 12) -> str:
    """Return the last lines that a failed run printed, and where the rest is."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines() if line.strip()]
    return f"all it printed is in {output}, which ends:\n" + "\n".join(f"  {line}" for line in lines[-count:])


def read_loss(output_dir: str | Path) -> list[dict[str, Any]]:
    """Return the training rows of a run's trainer_log.jsonl, one per step, ascending.

    Keys: current_steps, total_steps, loss, lr, epoch, percentage, elapsed_time, remaining_time. A run that
    went on from a checkpoint logged some steps twice; the later row counts.
    """
    path = Path(output_dir) / LOSSES
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run started?")
    rows, _ = read_rows(path, 0)
    by_step = {row["current_steps"]: row for row in rows if "loss" in row}
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
        days, *clock = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+)", row["elapsed_time"]).groups()
        hours, minutes, seconds = map(int, clock)
        elapsed = 86400.0 * int(days or 0) + 3600 * hours + 60 * minutes + seconds
        total += elapsed - last if elapsed >= last else elapsed
        last = elapsed
    return total
