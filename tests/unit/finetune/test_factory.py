"""new_train.yaml itself trains, on a random GLM; a run is followed, stopped, resumed, and not repeated."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindlab.common.errors import UserError
from mindlab.finetune import factory
from mindlab.prompts.chat import quiet_factory
from tests.conftest import ROOT
from tests.tiny_glm import RECORDS

YAML = ROOT / "configs" / "new_train.yaml"


def make_data(folder: Path, record: dict[str, str]) -> Path:
    """Write a data folder that holds the committed dataset_info.json and one record as `mind`; return it."""
    (folder / "processed").mkdir(parents=True)
    shutil.copyfile(ROOT / "data" / "dataset_info.json", folder / "dataset_info.json")
    rows = json.dumps([record] * 4, ensure_ascii=False)
    (folder / "processed" / "mind_train.json").write_text(rows, encoding="utf-8")
    return folder


def overrides_for(model: Path, data: Path, out: Path) -> dict[str, object]:
    paths = {"model_name_or_path": str(model), "dataset_dir": str(data), "output_dir": str(out)}
    return {**paths, "use_cpu": True, "max_steps": 2}


def run_here(overrides: dict[str, object]) -> None:
    """Train in this process, as `llamafactory-cli train configs/new_train.yaml key=value...` would."""
    from llamafactory.train.tuner import run_exp

    with quiet_factory():
        run_exp(factory.load(YAML, overrides))


@pytest.fixture(scope="module", params=RECORDS, ids=["chinese", "english"])
def trained(request, tiny_glm, tmp_path_factory) -> tuple[dict[str, str], Path, str]:
    """A record, the output folder of new_train.yaml run on it, and what the run printed."""
    folder = tmp_path_factory.mktemp("trained")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_here(overrides_for(tiny_glm, make_data(folder / "data", request.param), folder / "out"))
    return request.param, folder / "out", printed.getvalue()


def test_the_tutorials_yaml_trains_on_the_whole_record(trained):
    record, out, printed = trained
    prompt = "\n".join(part for part in (record["instruction"], record["input"]) if part)
    text = f"[gMASK]<sop><|system|>\n{record['system']}<|user|>\n{prompt}<|assistant|>"
    answer = f"\n{record['output']}<|endoftext|>"
    assert f"inputs:\n{text}{answer}\n" in printed
    assert f"labels:\n{answer}\n" in printed
    ids = json.loads(re.search(r"^label_ids:\n(.*)$", printed, re.M)[1])
    trained = [number for number in ids if number != -100]
    assert ids == [-100] * (len(ids) - len(trained)) + trained

    adapter = json.loads((out / "adapter_config.json").read_text())
    targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert set(adapter["target_modules"]) == targets
    assert adapter["r"] == 8
    assert (out / "adapter_model.safetensors").is_file()
    assert all(
        0 < row["loss"] < 20
        for row in json.loads((out / "trainer_state.json").read_text())["log_history"]
        if "loss" in row
    )


def test_the_chat_yaml_reads_what_the_training_yaml_wrote(trained, tiny_glm):
    from llamafactory.chat import ChatModel

    out = trained[1]
    paths = {"model_name_or_path": str(tiny_glm), "adapter_name_or_path": str(out)}
    with quiet_factory():
        model = ChatModel(factory.load(ROOT / "configs/news_inference.yaml", paths))
        answer = model.chat([{"role": "user", "content": "Yes or No?"}], system="You recommend news.")[0]
    assert 0 < answer.response_length <= 16  # max_new_tokens
    assert (
        answer.response_text
        == model.chat([{"role": "user", "content": "Yes or No?"}], system="You recommend news.")[
            0
        ].response_text
    )  # greedy


def test_a_cutoff_that_is_too_short_takes_the_question_away(tiny_glm, tmp_path, capsys):
    """The negative of the test above: what "nothing cut" would look like if something were."""
    overrides = overrides_for(tiny_glm, make_data(tmp_path / "data", RECORDS[0]), tmp_path / "out")
    run_here({**overrides, "cutoff_len": 40})
    printed = capsys.readouterr().out
    assert "<|assistant|>" not in printed
    assert "S&P 500?" not in printed.split("inputs:\n")[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_through_the_real_command_line_and_is_not_repeated(
    tiny_glm, tmp_path, monkeypatch, capsys
):
    data = make_data(tmp_path / "data", RECORDS[0])
    out = tmp_path / "with space"
    overrides = {**overrides_for(tiny_glm, data, out), "save_steps": 1, "logging_steps": 1}
    run_here(overrides)
    # As if it had been killed after its first step: the newer files are gone, the record is unfinished.
    shutil.rmtree(out / "checkpoint-2")
    (out / "adapter_model.safetensors").unlink()
    settings = factory.load(YAML, overrides)
    record = {"settings": settings, "datasets": factory.hash_datasets(settings, ROOT)}
    (out / factory.RECORD).write_text(json.dumps({**record, "finished": False}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    capsys.readouterr()

    assert factory.train(YAML, overrides, root=ROOT) == out
    output = (out / factory.OUTPUT).read_text(encoding="utf-8")
    assert f"Resuming training from {out / 'checkpoint-1'}" in output
    assert "[gMASK]<sop><|system|>" in output
    assert (out / "adapter_model.safetensors").is_file()
    assert (out / "checkpoint-2").is_dir()
    assert [row["current_steps"] for row in factory.read_loss(out)] == [1, 2]
    assert "2/2" in capsys.readouterr().err

    def never(*arguments):
        raise AssertionError("launched again")

    monkeypatch.setattr(factory, "follow", never)
    said = []
    assert factory.train(YAML, overrides, said.append, ROOT) == out
    assert "already trained" in said[0]
    with pytest.raises(UserError, match=r"other settings \(max_steps 2 -> 3\); delete .* another output_dir"):
        factory.train(YAML, {**overrides, "max_steps": 3}, root=ROOT)
    (data / "processed" / "mind_train.json").write_text("[]")
    with pytest.raises(UserError, match="the file of dataset mind"):
        factory.train(YAML, overrides, root=ROOT)
    (out / factory.RECORD).unlink()
    with pytest.raises(UserError, match="started by other means"):
        factory.train(YAML, overrides, root=ROOT)


# What stands in for llamafactory-cli below: it starts a helper, logs two and a half rows, and waits.
SLOW = """
import subprocess, sys, time
out = dict(a.split("=", 1) for a in sys.argv[3:])["output_dir"]
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("helper", helper.pid, "arguments", *sys.argv[1:], flush=True)
row = '{"current_steps": %d, "total_steps": 9, "loss": 1.5, "lr": 0.001}\\n'
log = open(out + "/trainer_log.jsonl", "a")
log.write(row % 1 + row % 2 + '{"current_st')
log.close()
time.sleep(60)
"""


def fake(tmp_path: Path, monkeypatch, code: str) -> dict[str, object]:
    """Let `code` stand in for llamafactory-cli; return the overrides of a run."""
    (tmp_path / "fake.py").write_text(code)
    monkeypatch.setattr(factory, "command", lambda: [sys.executable, str(tmp_path / "fake.py")])
    return overrides_for(tmp_path / "model", make_data(tmp_path / "data", RECORDS[0]), tmp_path / "out")


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_ctrl_c_ends_the_child_and_what_it_started(tmp_path, monkeypatch, capsys):
    overrides = fake(tmp_path, monkeypatch, SLOW)
    out = Path(overrides["output_dir"])

    seen = []

    def interrupt(row):
        seen.append(row["current_steps"])
        if row["current_steps"] == 2:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        factory.train(YAML, overrides, root=ROOT, watch=interrupt)
    assert seen == [1, 2]
    assert time.monotonic() - started < 30
    words = (out / factory.OUTPUT).read_text().split()
    assert "overwrite_output_dir=false" in words
    assert "use_cpu=true" in words
    deadline = time.monotonic() + 5
    while is_alive(int(words[1])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(words[1]))
    assert json.loads((out / factory.RECORD).read_text())["finished"] is False
    assert len(factory.read_loss(out)) == 2  # the half-written row is no row


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_or_a_closed_terminal_ends_the_child_too(tmp_path, number):
    trainer = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    code = (
        "import os, signal, sys; from pathlib import Path; from mindlab.common import cli; from mindlab.finetune import factory; "
        # Under nohup pytest itself ignores SIGHUP, and a child inherits that.
        f"signal.signal({int(number)}, signal.SIG_DFL); "
        f"out = Path({str(tmp_path)!r}); cli.run(lambda: factory.follow({trainer!r}, out, os.environ, out))"
    )
    script = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    output = tmp_path / factory.OUTPUT
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(output.read_text())
    script.send_signal(number)
    assert "run the same command again" in script.communicate(timeout=30)[1]
    assert script.returncode == 130
    assert not is_alive(pid)


def test_a_failed_run_ends_with_the_last_words_of_llamafactory(tmp_path, monkeypatch, capsys):
    overrides = fake(
        tmp_path, monkeypatch, "print('loading\\nValueError: no such thing'); raise SystemExit(3)"
    )
    with pytest.raises(UserError, match=r"exit code 3(.|\n)*train_output.txt(.|\n)*no such thing"):
        factory.train(YAML, overrides, root=ROOT)
    fake_code = "print('all well')"
    (tmp_path / "fake.py").write_text(fake_code)
    with pytest.raises(UserError, match="left no weights"):
        factory.train(YAML, overrides, root=ROOT)


def test_a_token_that_the_trainer_prints_stays_in_no_file_of_the_run(tmp_path, monkeypatch):
    token = "Zm9vYmFyMTIzNDU2Nzg5"  # looks like nothing: only the variable's name tells
    monkeypatch.setenv("HF_TOKEN", token)
    say = "import os; print('Authorization: Bearer', os.environ['HF_TOKEN'], flush=True); "
    overrides = fake(tmp_path, monkeypatch, say + "raise SystemExit(3)")
    with pytest.raises(UserError) as failed:
        factory.train(YAML, overrides, root=ROOT)
    out = Path(overrides["output_dir"])
    assert "Bearer [secret]" in (out / factory.OUTPUT).read_text(encoding="utf-8")
    assert token not in str(failed.value)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if token.encode() in path.read_bytes()]


def test_missing_data_is_named_before_anything_starts(tmp_path):
    data = make_data(tmp_path / "data", RECORDS[0])
    (data / "processed" / "mind_train.json").unlink()
    with pytest.raises(UserError, match=r"mind_train.json: no such file.*build_dataset"):
        factory.train(YAML, overrides_for(tmp_path, data, tmp_path / "out"), root=ROOT)
    assert not (tmp_path / "out").exists()


def test_rows_are_read_once_and_only_whole(tmp_path):
    log = tmp_path / factory.LOSSES
    assert factory.read_rows(log, 0) == ([], 0)
    log.write_text('{"current_steps": 1}\n{"current')
    rows, seen = factory.read_rows(log, 0)
    assert rows == [{"current_steps": 1}]
    with log.open("a") as file:
        file.write('_steps": 2}\n')
    assert factory.read_rows(log, seen)[0] == [{"current_steps": 2}]


def test_loss_has_one_row_a_step(tmp_path):
    steps = [(1, 3.0), (2, 2.5), (3, 2.4), (2, 2.6), (3, 2.3)]  # resumed after step 1
    lines = [json.dumps({"current_steps": step, "loss": loss}) for step, loss in steps]
    lines += [json.dumps({"current_steps": 3, "eval_loss": 2.0}), json.dumps({"current_steps": 3})]
    (tmp_path / factory.LOSSES).write_text("\n".join(lines) + "\n")
    assert [row["loss"] for row in factory.read_loss(tmp_path)] == [3.0, 2.6, 2.3]
    with pytest.raises(UserError, match="has the run started"):
        factory.read_loss(tmp_path / "none")


def test_the_time_of_a_training_is_that_of_all_its_starts(tmp_path):
    assert factory.train_seconds(tmp_path) is None
    clock = ["0:00:10", "0:02:00", "0:00:30", "23:59:59", "1 day, 0:00:20"]  # stopped after the second row
    lines = [json.dumps({"current_steps": i, "elapsed_time": time}) for i, time in enumerate(clock)]
    (tmp_path / factory.LOSSES).write_text("\n".join(lines) + "\n")
    assert factory.train_seconds(tmp_path) == 120 + 86400 + 20


def test_the_command_is_the_one_of_this_environment(tmp_path):
    assert Path(factory.command()[0]).parent == Path(sys.executable).parent
    (tmp_path / "model").mkdir()
    env = factory.environment({"model_name_or_path": "model", "use_cpu": True}, tmp_path)
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert (env["HF_HUB_OFFLINE"], env["CUDA_VISIBLE_DEVICES"]) == ("1", "")


def test_memory_is_kept_on_a_cpu_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    for name in factory.KEEP_MEMORY:
        monkeypatch.delenv(name, raising=False)
    on_cpu, on_gpu = (
        factory.environment({"model_name_or_path": "model", "use_cpu": use_cpu}, tmp_path)
        for use_cpu in (True, False)
    )
    assert on_cpu.items() >= factory.KEEP_MEMORY.items()
    assert not on_gpu.keys() & factory.KEEP_MEMORY
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert (
        factory.environment({"model_name_or_path": "model", "use_cpu": True}, tmp_path)["MALLOC_TOP_PAD_"]
        == "1"
    )


def test_overrides_reach_llamafactory_unchanged():
    from omegaconf import OmegaConf

    values = {"a": "no", "b": 1e-4, "c": None, "d": "x y=z", "e": True, "f": "1e3", "g": "a: b", "h": "新/闻"}
    values |= {"i": "q_proj,v_proj", "j": "", "k": "[x"}
    assert OmegaConf.to_container(OmegaConf.from_cli(list(map(factory.argument, values.items())))) == values


@pytest.fixture
def adapter(tiny_glm, tmp_path):
    """A folder with the record that a training on the tiny GLM leaves."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    record = {"settings": {"template": "glm4"}, "base": factory.base_of(tiny_glm)}
    (folder / factory.RECORD).write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_an_adapter_fits_its_own_base_and_template_alone(adapter, tiny_glm, tmp_path, capsys):
    assert set(factory.base_of(tiny_glm)) == {"config", "tokenizer", "weights"}
    moved = tmp_path / "under-another-name"
    shutil.copytree(tiny_glm, moved)
    factory.check_adapter(adapter, moved, "glm4")
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"trained with template glm4, asked with smollm2; give --template"):
        factory.check_adapter(adapter, tiny_glm, "smollm2")


@pytest.mark.parametrize("part", ["config", "tokenizer", "weights"])
def test_an_adapter_of_another_base_is_refused(adapter, tiny_glm, tmp_path, part):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_glm, other)
    if part == "weights":
        weights = load_file(other / "model.safetensors")
        weights[max(weights)][0] += 1
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    else:
        file = other / f"{part}.json"
        changed = {**json.loads(file.read_text(encoding="utf-8")), "added": 1}
        file.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(UserError, match=rf"the {part} of its base is not that of .*give the --model"):
        factory.check_adapter(adapter, other, "glm4")


def test_an_adapter_without_hashes_is_compared_by_name_with_a_warning(tiny_glm, tmp_path, capsys):
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": f"x/{tiny_glm.name}"}), encoding="utf-8")
    factory.check_adapter(tmp_path, tiny_glm, "glm4")
    assert "only the name" in capsys.readouterr().err
    config.write_text('{"base_model_name_or_path": "x/another"}', encoding="utf-8")
    with pytest.raises(UserError, match="an adapter of x/another, not of"):
        factory.check_adapter(tmp_path, tiny_glm, "glm4")


def test_scoring_asks_whether_the_adapter_fits(adapter, tiny_glm):
    from mindlab.llm.options import Options
    from mindlab.recommenders.llm import rank_titles

    request = Options("next_click", str(tiny_glm), "chatglm3", str(adapter))
    with pytest.raises(UserError, match="trained with template glm4"):
        rank_titles(request, ["a"], ["b"])


def test_a_dataset_outside_the_data_folder_is_refused(tiny_glm, tmp_path):
    data = make_data(tmp_path / "data", RECORDS[0])
    (tmp_path / "outside.json").write_text("[]", encoding="utf-8")
    for name in ("../outside.json", str(tmp_path / "outside.json")):
        (data / "dataset_info.json").write_text(json.dumps({"mind": {"file_name": name}}), encoding="ascii")
        with pytest.raises(UserError, match="expected a file within"):
            factory.train(YAML, overrides_for(tiny_glm, data, tmp_path / "out"), root=ROOT)


def test_a_token_among_the_settings_is_refused_and_not_repeated():
    with pytest.raises(UserError, match=r"hf_hub_token: .*HF_TOKEN") as refused:
        factory.load(YAML, {"hf_hub_token": "planted-token-1234"})
    assert "planted" not in str(refused.value)


def test_what_a_training_starts_is_closed_and_quiet(tmp_path, monkeypatch):
    for name in factory.CLOSED:
        monkeypatch.delenv(name, raising=False)
    env = factory.environment({"model_name_or_path": "x"}, tmp_path)
    assert (env["API_HOST"], env["GRADIO_SERVER_NAME"], env["GRADIO_SHARE"]) == (
        "127.0.0.1",
        "127.0.0.1",
        "0",
    )
    assert (env["DO_NOT_TRACK"], env["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1")
