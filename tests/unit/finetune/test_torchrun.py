"""LLaMA-Factory's two processes, plain and under DeepSpeed, take the steps of one process with twice the batch."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mindlab.finetune import factory
from tests.tiny_glm import RECORDS
from tests.unit.finetune.test_factory import ROOT, YAML, make_data

DEEPSPEED = sorted((ROOT / "configs/deepspeed").glob("*.json"))

TOLERANCE = 5e-4  # of a loss: sums in another order, through one step of a large learning rate


def run(model: Path, folder: Path, name: str, changes: dict[str, object]) -> list[float]:
    """Train two steps of eight different records; return the losses."""
    data = folder / "data"
    if not data.exists():
        make_data(data, RECORDS[0])
        rows = [{**RECORDS[i % 2], "output": f"{i} " * (i + 1)} for i in range(16)]
        (data / "processed/mind_train.json").write_text(json.dumps(rows), encoding="utf-8")
    overrides = {
        "model_name_or_path": str(model), "dataset_dir": str(data), "output_dir": str(folder / name),
        "use_cpu": True, "bf16": False, "max_steps": 2, "logging_steps": 1, "dataloader_num_workers": 0,
        "preprocessing_num_workers": 1, "learning_rate": 0.01, "warmup_steps": 0, "plot_loss": False, **changes,
    }  # fmt: skip
    factory.train(YAML, overrides)
    return [row["loss"] for row in factory.read_loss(folder / name)]


@pytest.fixture(scope="module")
def alone(tiny_glm, tmp_path_factory):
    """The folder with the data, and the losses of one process that gathers eight records a step."""
    folder = tmp_path_factory.mktemp("torchrun")
    losses = run(tiny_glm, folder, "alone", {"gradient_accumulation_steps": 8})
    half = run(tiny_glm, folder, "half", {"gradient_accumulation_steps": 4})
    for one, other in zip(losses, half, strict=True):  # what a process that worked alone would show
        assert abs(one - other) > 10 * TOLERANCE * one
    assert losses[0] - losses[1] > 10 * TOLERANCE * losses[0]  # and a step that was not taken
    return folder, losses


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, *DEEPSPEED], ids=lambda path: path.stem if path else "plain")
def test_two_processes_take_the_steps_of_one(alone, tiny_glm, monkeypatch, config):
    if config and not find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not installed: pip install -r requirements-dist.txt")
    folder, losses = alone
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes = {"gradient_accumulation_steps": 4}
    if config:
        changes["deepspeed"] = str(config)
    if config and config.stem == "zero3":
        changes["use_cpu"] = False  # with it ZeRO-3 counts one process; no GPU in sight is CPU enough
    name = config.stem if config else "plain"
    assert run(tiny_glm, folder, name, changes) == pytest.approx(losses, rel=TOLERANCE)
    printed = (folder / name / factory.OUTPUT).read_text(encoding="utf-8")
    assert "world size: 2" in printed
    states = sorted(path.name for path in (folder / name).rglob("*optim_states.pt"))
    assert len(states) == (2 if config else 0)  # ZeRO: each process keeps its share of the optimizer
