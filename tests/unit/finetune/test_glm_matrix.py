"""Every GLM-4 YAML runs, on random models of both architectures, in a LLaMA-Factory checkout it was copied to.

Overridden is only what a small machine must override: train and predict take a model path, use_cpu,
output_dir, max_steps and an adapter path; chat, api and export a model path, an adapter path, export_dir.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindlab.common.errors import UserError
from mindlab.finetune import factory
from mindlab.llm.server import ServerWriter, serve_factory
from mindlab.prompts.chat import quiet_factory
from tests import tiny_glm
from tests.conftest import ROOT

NAMES = {"glm": "glm4_9b_chat", "glm4": "glm4_9b_0414"}
TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}
STEPS = (
    "train/{}_lora_sft",
    "train/{}_lora_sft_next_topic",
    "train/{}_lora_sft_summary",
    "train/{}_qlora_sft",
    "infer/{}_lora_predict",
    "infer/{}_lora_chat",
    "export/{}_lora_merge",
)


@dataclass(frozen=True)
class Lab:
    """A LLaMA-Factory checkout with the YAMLs of one architecture, its tiny model and a trained adapter."""

    root: Path
    name: str
    model: Path
    adapter: Path
    printed: str

    def yaml(self, step: str) -> Path:
        return self.root / f"{step.format(self.name).replace('/', '_')}.yaml"

    def run(self, step: str, **overrides: object) -> str:
        """Run a train or predict YAML in this process, in the checkout; return what it printed."""
        return run_in(
            self.root, self.yaml(step), {"model_name_or_path": str(self.model), "use_cpu": True, **overrides}
        )


def run_in(root: Path, yaml: Path, overrides: dict[str, object]) -> str:
    from llamafactory.train.tuner import run_exp

    printed = io.StringIO()
    with contextlib.chdir(root), quiet_factory(), contextlib.redirect_stdout(printed):
        run_exp(factory.load(yaml, overrides))
    return printed.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {kind: tiny_glm.build(tmp_path_factory.mktemp(kind) / "model", kind=kind) for kind in NAMES}


@pytest.fixture(scope="module")
def checkout(models, tmp_path_factory) -> Path:
    """An empty folder of LLaMA-Factory's shape, filled by --link-to and by copying the YAMLs."""
    root = tmp_path_factory.mktemp("LLaMA-Factory")
    (root / "data").mkdir()
    out = tmp_path_factory.mktemp("built")
    script = [sys.executable, ROOT / "scripts/build_dataset.py", "--data", ROOT / "data/sample", "--out", out]
    fitted = ["--model", models["glm"], "--template", "glm4", "--cutoff-len", 1024, "--link-to", root]
    for protocol, form, n in (
        ("dev", "next_click", 8),
        ("dev", "next_topic", 40),
        ("seed", "likes_dislikes", 10),
        ("sampled", "summary", 10),
    ):
        command = [*script, *fitted, "--protocol", protocol, "--format", form, "--limit", n]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    for path in [ROOT / f"configs/{step.format(name)}.yaml" for name in NAMES.values() for step in STEPS]:
        shutil.copyfile(path, root / path.relative_to(ROOT / "configs").as_posix().replace("/", "_"))
    return root


# The second model goes the same ways, so it takes its time in the slow tests.
@pytest.fixture(scope="module", params=["glm", pytest.param("glm4", marks=pytest.mark.slow)])
def lab(request, models, checkout, tmp_path_factory) -> Lab:
    folder, model = tmp_path_factory.mktemp("saves"), models[request.param]
    yaml = checkout / f"train_{NAMES[request.param]}_lora_sft.yaml"
    paths = {"model_name_or_path": str(model), "output_dir": str(folder / "lora")}
    printed = run_in(checkout, yaml, {**paths, "use_cpu": True, "max_steps": 2})
    return Lab(checkout, NAMES[request.param], model, folder / "lora", printed)


@pytest.fixture(scope="module")
def strong(lab, tmp_path_factory) -> Path:
    """The lab's adapter made loud: two steps leave one that bfloat16 hardly shows."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("strong")
    shutil.copytree(lab.adapter, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(1)
    loud = {
        name: torch.randn(value.shape, generator=generator) if "lora_B" in name else value
        for name, value in weights.items()
    }
    save_file(loud, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def assert_trained(out: Path) -> None:
    adapter = json.loads((out / "adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == TARGETS
    assert adapter["r"] == 8
    assert (out / "adapter_model.safetensors").is_file()
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert 0 < history[-1]["train_loss"] < 20


def test_lora_trains_on_whole_records(lab):
    assert_trained(lab.adapter)
    prompt, labels = (
        lab.printed.split(f"\n{name}:\n")[1].split("<|endoftext|>")[0] for name in ("inputs", "labels")
    )
    assert prompt.startswith(
        "[gMASK]<sop><|system|>\nYou know what news readers click.<|user|>\nList the headlines"
    )
    assert labels.startswith("\n- ")
    assert prompt.endswith(f"<|assistant|>{labels}")


def test_lora_trains_on_packed_records_of_topics(lab, tmp_path, monkeypatch):
    """A row holds several records, numbered in its mask so that none sees its neighbours, and none is lost."""
    from llamafactory.train.sft import workflow

    rows = []
    get_dataset = workflow.get_dataset

    def spy(*arguments, **options):
        found = get_dataset(*arguments, **options)
        rows.extend(found["train_dataset"])
        return found

    monkeypatch.setattr(workflow, "get_dataset", spy)
    lab.run("train/{}_lora_sft_next_topic", output_dir=str(tmp_path / "lora"), max_steps=2)
    assert_trained(tmp_path / "lora")
    records = json.loads((lab.root / "data/processed/mind_dev_next_topic_train.json").read_text("utf-8"))
    held = [len({*row["attention_mask"]} - {0}) for row in rows]
    assert sum(held) == len(records) > len(rows)
    assert max(held) > 1


def test_lora_trains_on_summary_records(lab, tmp_path):
    lab.run("train/{}_lora_sft_summary", output_dir=str(tmp_path / "lora"), max_steps=2)
    assert_trained(tmp_path / "lora")


def test_qlora_trains_on_four_bit_weights(lab, tmp_path, monkeypatch):
    from llamafactory.train.sft import workflow

    kinds = []
    load_model = workflow.load_model

    def spy(*arguments):
        model = load_model(*arguments)
        kinds.append({type(module).__name__ for module in model.modules()})
        return model

    monkeypatch.setattr(workflow, "load_model", spy)
    lab.run("train/{}_qlora_sft", output_dir=str(tmp_path / "qlora"), max_steps=2)
    assert_trained(tmp_path / "qlora")
    assert "Linear4bit" in kinds[0]


def test_predict_answers_every_record_of_the_tutorials_test_set(lab, tmp_path):
    lab.run("infer/{}_lora_predict", output_dir=str(tmp_path / "out"), adapter_name_or_path=str(lab.adapter))
    lines = (tmp_path / "out" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    records = json.loads((lab.root / "data/processed/mind_test.json").read_text(encoding="utf-8"))
    assert len(rows) == len(records) > 0
    for row, record in zip(rows, records, strict=True):
        assert row["label"].strip() == record["output"]  # after a newline, as the template has it
        assert record["input"] in row["prompt"]
        assert row["prompt"].endswith("<|assistant|>")


def test_export_merges_the_adapter(lab, strong, tmp_path):
    import torch
    from llamafactory.train.tuner import export_model
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    paths = {
        "model_name_or_path": str(lab.model),
        "adapter_name_or_path": str(strong),
        "export_dir": str(out),
    }
    with contextlib.chdir(lab.root), quiet_factory():
        export_model(factory.load(lab.yaml("export/{}_lora_merge"), paths))
    assert (out / "Modelfile").is_file()
    base = AutoModelForCausalLM.from_pretrained(lab.model, dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    expected = PeftModel.from_pretrained(base, strong).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    changed = {name.split(".")[-2] for name in found if not torch.equal(found[name], before[name])}
    assert changed == TARGETS
    text = "[gMASK]<sop><|user|>\nHi<|assistant|>"
    assert AutoTokenizer.from_pretrained(out).encode(text) == AutoTokenizer.from_pretrained(lab.model).encode(
        text
    )


def command(lab: Lab, verb: str, adapter: Path) -> list[str]:
    paths = [f"model_name_or_path={lab.model}", f"adapter_name_or_path={adapter}"]
    return [*factory.command(), verb, str(lab.yaml("infer/{}_lora_chat")), *paths]


def quick_environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


@pytest.mark.slow
def test_chat_answers_in_the_terminal(lab, strong):
    done = subprocess.run(
        command(lab, "chat", strong), cwd=lab.root, env=quick_environment(), input="Yes or No?\nexit\n",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # At its end LLaMA-Factory's own thread sometimes aborts the interpreter, after all is said.
    assert done.returncode in (0, -signal.SIGABRT), done.stderr[-2000:]
    answer = done.stdout.split("Assistant: ")[1]
    assert len(answer.strip()) > 20  # a random model hardly ever stops by itself


@pytest.mark.slow
def test_api_answers_over_http(lab, strong, tmp_path, monkeypatch):
    paths = {"model_name_or_path": str(lab.model), "adapter_name_or_path": str(strong)}
    yaml, output = lab.yaml("infer/{}_lora_chat"), tmp_path / "api.txt"
    with serve_factory(yaml, paths, root=lab.root, output=output) as server:
        record = {"system": "", "instruction": "Yes or No?", "input": "", "output": ""}
        writer = ServerWriter(server.base_url, server.model, max_new_tokens=16, batch=1, key=server.key)
        answers = writer.write([record, record])
        assert answers[0] == answers[1] != ""  # greedy
        assert writer.tokens_written
        assert str(strong) in output.read_text()  # the adapter is loaded
        monkeypatch.setenv(server.key, "another")
        with pytest.raises(UserError, match="put the server's key into"):
            writer.write([record])


@pytest.mark.parametrize("step", STEPS)
def test_the_two_models_yamls_differ_in_nothing_but_the_model(step):
    settings = [factory.load(ROOT / f"configs/{step.format(name)}.yaml") for name in NAMES.values()]
    paths = ("model_name_or_path", "adapter_name_or_path", "output_dir", "export_dir")
    chat, newer = ({key: value for key, value in one.items() if key not in paths} for one in settings)
    assert chat == newer
    assert [one["model_name_or_path"] for one in settings] == [
        "zai-org/glm-4-9b-chat-hf",
        "zai-org/GLM-4-9B-0414",
    ]


@pytest.mark.parametrize("name", NAMES.values())
def test_adapters_are_read_from_where_they_are_written(name):
    def setting(step: str, key: str) -> str:
        return factory.load(ROOT / f"configs/{step.format(name)}.yaml")[key]

    trained = setting("train/{}_lora_sft", "output_dir")
    assert setting("infer/{}_lora_chat", "adapter_name_or_path") == trained
    assert setting("export/{}_lora_merge", "adapter_name_or_path") == trained
    assert setting("train/{}_qlora_sft", "output_dir") == trained.replace("/lora/", "/qlora/")
    header = (ROOT / f"configs/infer/{name}_lora_predict.yaml").read_text()
    assert setting("infer/{}_lora_predict", "adapter_name_or_path") in header.split("### model")[0]


def test_a_card_without_bf16_has_an_override():
    for name in NAMES.values():
        path = ROOT / f"configs/train/{name}_qlora_sft.yaml"
        assert "bf16=false fp16=true" in path.read_text()
        factory.validate(path, {"bf16": False, "fp16": True}, ROOT)
