"""Every YAML under configs/ passes LLaMA-Factory's parser, names what exists, agrees with its partners."""

import json
import re

import pytest

from mindlab.common.errors import UserError
from mindlab.finetune import factory
from mindlab.llm.options import TEMPLATE_OF
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
TRAIN = [path for path in CONFIGS if "output_dir" in factory.load(path)]
CHAT = [path for path in CONFIGS if "infer_backend" in factory.load(path)]
EXPORT = [path for path in CONFIGS if "export_dir" in factory.load(path)]


def test_the_names_that_users_copy_are_there():
    names = {path.relative_to(ROOT / "configs").as_posix() for path in CONFIGS}
    assert {"new_train.yaml", "news_inference.yaml"} <= names
    assert all((TRAIN, CHAT, EXPORT))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_is_valid(path):
    assert factory.validate(path, root=ROOT)["model_name_or_path"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation_strategy": "steps"}, "evaluation_strategy"),
        ({"dataset": "mind,mind_trian"}, "'mind_trian' is not in"),
        ({"eval_dataset": "nothing"}, "'nothing' is not in"),
        ({"flash_attn": "disable"}, "flash_attn: 'disable': expected one of auto, disabled"),
        ({"template": "glm9"}, "template: 'glm9'"),
        ({"template": None}, "no template"),
        ({"cutoff_len": "1e3"}, "cutoff_len: '1e3': expected int"),
        ({"quantization_method": "bitsandbytes"}, "quantization_method"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"stage": "sftt"}, "stage: 'sftt': expected one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_gate_can_fail(change, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        factory.validate(ROOT / "configs/new_train.yaml", change, ROOT)
    assert "new_train.yaml" in str(caught.value) or "dataset_info.json" in str(caught.value)


def test_a_chat_config_takes_no_training_key(tmp_path):
    with pytest.raises(UserError, match="save_steps"):
        factory.validate(ROOT / "configs/news_inference.yaml", {"save_steps": 3}, ROOT)
    with pytest.raises(UserError, match="expected one of huggingface, vllm, sglang"):
        factory.validate(ROOT / "configs/news_inference.yaml", {"infer_backend": "hf"}, ROOT)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken.yaml: not valid YAML"):
        factory.validate(broken)
    broken.write_text("- a\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected lines of the form"):
        factory.validate(broken)
    with pytest.raises(UserError, match="no such file"):
        factory.validate(tmp_path / "none.yaml")


def test_what_the_machine_decides_is_not_judged():
    for change in [
        {"deepspeed": "configs/deepspeed/none.json"},
        {"enable_liger_kernel": True},
        {"tf32": True},
    ]:
        factory.validate(ROOT / "configs/new_train.yaml", change, ROOT)


def test_validating_prints_nothing(capsys):
    factory.validate(ROOT / "configs/new_train.yaml", root=ROOT)
    assert capsys.readouterr() == ("", "")


def test_the_tutorials_pair_agrees():
    train = factory.load(ROOT / "configs/new_train.yaml")
    infer = factory.load(ROOT / "configs/news_inference.yaml")
    assert infer["adapter_name_or_path"] == train["output_dir"] == "saves/mind_news_recommend"
    assert infer["model_name_or_path"] == train["model_name_or_path"] == "zai-org/glm-4-9b-chat-hf"
    assert infer["template"] == train["template"] == "glm4"
    assert train["dataset"] == "mind"


def test_a_model_has_one_template():
    found = {}
    for path in CONFIGS:
        settings = factory.load(path)
        found.setdefault(settings["model_name_or_path"], set()).add(settings["template"])
    assert {model: templates for model, templates in found.items() if len(templates) > 1} == {}
    assert {template for templates in found.values() for template in templates} <= set(TEMPLATE_OF.values())


def test_output_folders_differ_and_resume():
    settings = [factory.load(path) for path in TRAIN]
    assert len({one["output_dir"] for one in settings}) == len(settings)
    for one in settings:
        assert one["dataset_dir"] == "data"
        assert one["overwrite_output_dir"] is False
        assert one["cutoff_len"] <= 1024


def test_headers_say_how_to_run_and_what_it_takes():
    for path in CONFIGS:
        text = path.read_text(encoding="utf-8")
        header = text[: re.search(r"^[^#\n]", text, re.M).start()]
        for word in ["Purpose:", "Command", "Memory:", "Output:", path.relative_to(ROOT).as_posix()]:
            assert word in header, (path, word)


def test_the_deepspeed_files_are_the_two_stages():
    files = sorted((ROOT / "configs").rglob("*.json"))
    assert [path.relative_to(ROOT / "configs").as_posix() for path in files] == [
        "deepspeed/zero2.json",
        "deepspeed/zero3.json",
    ]
    for path, stage in zip(files, (2, 3), strict=True):
        settings = json.loads(path.read_text(encoding="ascii"))
        assert settings["zero_optimization"]["stage"] == stage
        # The YAML decides these; a number here would contradict it, or be taken for it without a word.
        for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            assert settings[name] == "auto"
        assert settings["bf16"] == settings["fp16"] == {"enabled": "auto"}
        name = path.relative_to(ROOT).as_posix()
        factory.validate(ROOT / "configs/train/glm4_9b_chat_lora_sft.yaml", {"deepspeed": name}, ROOT)


def test_every_deepspeed_key_is_one():
    """DeepSpeed itself drops a misspelt key at the top level without a word."""
    pytest.importorskip(
        "deepspeed", reason="DeepSpeed is not installed: pip install -r requirements-dist.txt"
    )
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"bf16", "fp16"}
    for path in (ROOT / "configs/deepspeed").glob("*.json"):
        settings = json.loads(path.read_text(encoding="ascii"))
        assert set(settings) - {"zero_optimization"} <= known
        names = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
        assert set(settings["zero_optimization"]) <= names | set(DeepSpeedZeroConfig.model_fields)


def test_dataset_info_maps_every_column():
    info = json.loads((ROOT / "data/dataset_info.json").read_text(encoding="ascii"))
    assert list(info)[:2] == ["mind", "mind_test"]
    assert [info[name]["file_name"] for name in ("mind", "mind_test")] == [
        "processed/mind_train.json",
        "processed/mind_test.json",
    ]
    # Columns are all or nothing: a column that is not named is dropped without a word.
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    for name, entry in info.items():
        assert entry["columns"] == columns
        if name not in ("mind", "mind_test"):
            assert re.fullmatch(r"mind_[a-z-]+_[a-z_]+_(fit|valid|train|test)", name)
            assert entry["file_name"] == f"processed/{name}.json"


# A server's command, and what must stand before it for this machine alone to reach it.
SERVERS = {
    r"llamafactory-cli api\b": ("API_HOST=127.0.0.1", "API_KEY="),
    r"llamafactory-cli web(chat|ui)\b": ("GRADIO_SERVER_NAME=127.0.0.1", "GRADIO_ANALYTICS_ENABLED=False"),
    r"\b(vllm serve|vllm\.entrypoints)": ("--host 127.0.0.1", "--api-key"),
    r"\btensorboard --": ("--host 127.0.0.1",),
}


def open_servers(text):
    """Return the lines that start a server which others on the network could reach, and `(or webchat)`."""
    return [
        line
        for line in text.splitlines()
        for command, words in SERVERS.items()
        if re.search(command, line) and not all(word in line for word in words)
    ] + re.findall(r".*\bor webchat\b.*", text)


def test_every_server_command_listens_on_this_machine_alone():
    names = (
        "*.md",
        "configs/**/*.yaml",
        "configs/*.md",
        "docs/*.md",
        "notebooks/src/*.py",
        "scripts/*.py",
        "Makefile",
    )
    files = [file for name in names for file in ROOT.glob(name)]
    assert len(files) > 40
    assert {str(file): found for file in files if (found := open_servers(file.read_text("utf-8")))} == {}
    for line in (
        "API_PORT=8000 llamafactory-cli api x.yaml",
        "vllm serve m",
        "tensorboard --logdir x",
        "(or webchat)",
    ):
        assert open_servers(line)
