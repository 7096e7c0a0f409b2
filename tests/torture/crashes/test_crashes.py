"""A folder has one writer; a full disk, a folder that is gone and a half-written input end in one line.

A dozen of these run with `make test`; the rest, marked `torture`, with `pytest -m torture tests/torture`. What faults at every
write and kills at any moment do is tried by tests/torture/chaos.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mindlab import report
from mindlab.common import cli, files
from mindlab.common.errors import UserError
from mindlab.common.files import LOCK, atomic_path, lock, write_text
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.predictions import SCHEMA, read_predictions, write_predictions
from mindlab.finetune import alpaca, factory
from mindlab.llm.embeddings import news_vectors
from mindlab.llm.options import template_of
from mindlab.llm.writing import write_texts
from mindlab.runs import compare
from mindlab.runs.run import Request
from tests.asked import ask
from tests.conftest import ROOT
from tests.torture.chaos.stages import Echo, Hashes
from tests.unit.finetune.test_factory import SLOW, YAML, fake, is_alive
from tests.unit.runs.test_llm_runs import request_of, rows_of  # noqa: F401

torture = pytest.mark.torture
RECORDS = [{"system": "", "instruction": "Write.", "input": str(k), "output": ""} for k in range(9)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic MIND: 60 and 40 impressions."""
    folder = tmp_path_factory.mktemp("data")
    make_sample(folder, 60, 40, seed=2)
    return folder


def wait_for(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.fixture
def start():
    """Start Python code in a process of its own; return the process when it has printed a line."""
    started = []

    def start(code):
        child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(child)
        child.line = child.stdout.readline().strip()
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


HOLDER = """
import time
from mindlab.common.files import lock
from mindlab.runs.run import Request
with lock({folder!r}):
    print("held", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_a_second_process_is_refused_and_told_the_first(self, start, tmp_path):
        holder = start(HOLDER.format(folder=str(tmp_path / "run")))
        begin = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"run: process {holder.pid} is writing here; wait"),
            lock(tmp_path / "run"),
        ):
            pass
        assert time.monotonic() - begin < 5  # at once
        assert (tmp_path / "run" / LOCK).read_text() == str(holder.pid)  # its lock is left alone

    def test_the_lock_of_a_killed_process_is_free(self, start, tmp_path):
        holder = start(HOLDER.format(folder=str(tmp_path)))
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK).exists()
        with lock(tmp_path):
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
        assert list(tmp_path.iterdir()) == []

    @torture
    def test_a_folder_that_its_last_holder_removes_meanwhile_is_made_anew(self, tmp_path, monkeypatch):
        opened, open_file = [], os.open

        def late(path, *arguments):
            opened.append(path)
            if len(opened) == 1:
                (tmp_path / "run").rmdir()
            return open_file(path, *arguments)

        monkeypatch.setattr(os, "open", late)
        with lock(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK).exists()

    @torture
    def test_what_a_dead_process_started_is_waited_for(self, tmp_path, monkeypatch):
        code = (
            "import subprocess, sys\nfrom mindlab.common.files import lock\n"
            f"with lock({str(tmp_path)!r}) as handle:\n"
            "    child = [sys.executable, '-c', 'import sys, time; time.sleep(float(sys.argv[1]))', sys.argv[1]]\n"
            "    subprocess.Popen(child, pass_fds=(handle,), stdout=subprocess.DEVNULL)\n"
            "    import os; os._exit(0)\n"
        )
        subprocess.run([sys.executable, "-c", code, "1.5"], cwd=ROOT, check=True)
        begin = time.monotonic()
        with lock(tmp_path):
            assert time.monotonic() - begin > 0.5
        monkeypatch.setattr(files, "PATIENCE", 0.3)
        subprocess.run([sys.executable, "-c", code, "3"], cwd=ROOT, check=True)
        with pytest.raises(UserError, match="is writing here"), lock(tmp_path):
            pass

    def test_it_leaves_nothing_and_no_folder_of_its_own(self, tmp_path):
        with lock(tmp_path / "a" / "b"):
            pass
        assert list(tmp_path.iterdir()) == []
        with lock(tmp_path / "a" / "b"):
            write_text(tmp_path / "a" / "b" / "x", "x")
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]

    @torture
    def test_of_many_at_once_one_at_a_time_holds_it(self, tmp_path):
        """Names come and go while others try: a lock of a file without a name would let two in."""
        inside, most, done = [], [], []

        def work():
            while len(done) < 300:
                try:
                    with lock(tmp_path / "run"):
                        inside.append(1)
                        most.append(len(inside))
                        time.sleep(0.0002)
                        inside.pop()
                        done.append(1)
                except UserError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1

    def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(self, tmp_path):
        (tmp_path / "parts").mkdir()
        left = [tmp_path / ".a.json.x1.tmp", tmp_path / "parts" / ".0.parquet.x2.tmp"]
        for path in left:
            path.write_text("half")
        with atomic_path(tmp_path / "b.txt") as temporary:
            temporary.write_text("b")
            with lock(tmp_path):
                assert not any(path.exists() for path in left)
        assert (tmp_path / "b.txt").read_text() == "b"


@pytest.fixture
def writers(data, tmp_path, tiny_glm, request_of, monkeypatch):  # noqa: F811
    """Everything that writes a folder, by name: the folder, and what writes there."""
    out, mind = tmp_path / "out", read_mind(data)
    build = alpaca.BuildOptions("dev", "next_click", interests=0)
    overrides = fake(tmp_path, monkeypatch, "raise SystemExit('started')")
    shutil.copytree(tiny_glm, overrides["model_name_or_path"])
    finished = compare.compare(Request(str(data)), ["random"], tmp_path / "finished")
    board = report.leaderboard(finished)
    built = tmp_path / "built"
    alpaca.build(mind, build, built)
    (tmp_path / "checkout").mkdir()
    return {
        "build": (out, lambda: alpaca.build(mind, build, out)),
        "link": (
            tmp_path / "checkout" / "data",
            lambda: alpaca.link_to(built, tmp_path / "checkout", ["mind_dev_next_click_fit"]),
        ),
        "predict": (out, lambda: request_of().run(out)),
        "train": (Path(overrides["output_dir"]), lambda: factory.train(YAML, overrides, root=ROOT)),
        "compare": (out / "random", lambda: compare.compare(Request(str(data)), ["random"], out)),
        "report": (out, lambda: report.write_leaderboard(out, board)),
    }


@pytest.mark.parametrize(
    "name",
    ["compare", *(pytest.param(n, marks=torture) for n in ("build", "link", "predict", "train", "report"))],
)
def test_two_processes_do_not_write_one_folder(writers, start, name):
    folder, write = writers[name]
    holder = start(HOLDER.format(folder=str(folder)))
    with pytest.raises(UserError, match=rf"process {holder.pid} is writing here"):
        write()
    assert [path.name for path in folder.iterdir()] == [LOCK]  # nothing was written before it was noticed


@torture
@pytest.mark.parametrize("name", ["texts", "vectors"])
def test_two_processes_do_not_fill_one_cache(data, tmp_path, start, name):
    def write(cache):
        if name == "texts":
            write_texts(RECORDS, Echo(), "x", cache)
        else:
            news_vectors(read_mind(data).news, Hashes(), cache)

    write(tmp_path / "whole")
    made = next(path for path in (tmp_path / "whole").iterdir() if path.suffix in (".jsonl", ".npy"))
    code = HOLDER.replace("lock({folder!r})", "lock({folder!r}, {name!r})")
    holder = start(code.format(folder=str(tmp_path / "cache"), name=f".{made.stem}.lock"))
    with pytest.raises(UserError, match=rf"process {holder.pid} is writing here"):
        write(tmp_path / "cache")
    write(tmp_path / "whole")  # what is whole is read, whoever holds what


@pytest.fixture
def small_disk(tmp_path):
    """Run scripts in a namespace where the folder `disk` is a file system of its own."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount in a namespace of their own")

    def run(options, *words, then="true"):
        line = f'mount -t tmpfs -o {options} none "$0" && "$@"; code=$?; {then}; exit $code'
        command = [*enter, "sh", "-c", line, str(disk), sys.executable, *words]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    return disk, run


def scripts_of(data, out):
    return [
        f"scripts/build_dataset.py --data {data} --protocol seed --format likes_dislikes --out {out}/data",
        f"scripts/compare.py --data {data} --only popularity --out {out}/runs",
    ]


@pytest.mark.parametrize(
    ("number", "options", "what"),
    [
        (1, "size=4k", "No space left on device; free some space"),
        pytest.param(0, "size=4k", "No space left on device; free some space", marks=torture),
        pytest.param(0, "ro", "Read-only file system; choose a folder", marks=torture),
        pytest.param(1, "ro", "Read-only file system; choose a folder", marks=torture),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_line(small_disk, data, number, options, what):
    disk, run = small_disk
    done = run(options, *scripts_of(data, disk)[number].split(), then=f"find {disk} -type f")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert what in done.stderr.splitlines()[-1]
    # Nothing half-written, and nothing that would be in the way later.
    assert done.stdout.split() == []


def test_the_disk_errors_of_a_script_are_one_line_and_other_errors_are_not(capsys, tmp_path):
    def full():
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    with pytest.raises(SystemExit) as end:
        cli.run(full)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'x'}: No space left on device; free some space, and run the same command again to go on\n"
    )

    def other():
        raise OSError("the cluster is gone")

    with pytest.raises(OSError, match="cluster"):
        cli.run(other)


@torture
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), UserError("no such thing"), KeyboardInterrupt()]
)
def test_the_last_line_is_the_errors_and_not_that_of_a_bar_it_left_open(capsys, error):
    def work():
        parts = cli.records_bar(iter([SimpleNamespace(records=1)] * 9), "mind", 9)
        for _ in parts:
            raise error

    with pytest.raises(SystemExit):
        cli.run(work)
    last = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith(("error: no such", "error: No space", "interrupted: "))


@torture
@pytest.mark.parametrize("place", ["out", "out/below"])
def test_a_file_in_the_place_of_a_folder_is_one_line(data, tmp_path, capsys, place):
    (tmp_path / "out").write_text("mine")
    options = alpaca.BuildOptions("dev", "next_click", interests=0)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: alpaca.build(read_mind(data), options, tmp_path / place))
    assert end.value.code == 2
    assert re.fullmatch(r"error: \S+/out\S*: .* choose another folder, and run .*\n", capsys.readouterr().err)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_folder_that_is_deleted_meanwhile(request_of, tmp_path, capsys):  # noqa: F811
    whole = rows_of(request_of().run(tmp_path / "whole"))
    run = tmp_path / "run"

    def delete_at(n):
        def progress(cases, done, total):
            for i, case in enumerate(cases):
                if i == n:
                    shutil.rmtree(run)
                yield case

        return progress

    with pytest.raises(
        UserError, match=r"parts/1-00000.parquet: gone or damaged.*run the same command again"
    ):
        request_of().run(run, delete_at(4))
    assert rows_of(request_of().run(run)) == whole


@torture
def test_a_data_folder_that_is_deleted_meanwhile(data, tmp_path, capsys):
    out = tmp_path / "out"
    options = alpaca.BuildOptions("dev", "next_click", interests=0)

    def delete(parts, *_):
        for part in parts:
            shutil.rmtree(out, ignore_errors=True)
            yield part

    with pytest.raises(SystemExit) as end:
        cli.run(lambda: alpaca.build(read_mind(data), options, out, progress=delete))
    assert end.value.code == 2
    assert "leave the folder in place, and run the same command again" in capsys.readouterr().err
    assert alpaca.build(read_mind(data), options, out) == alpaca.build(
        read_mind(data), options, tmp_path / "whole"
    )


class TestTornPredictions:
    @pytest.fixture
    def path(self, tmp_path):
        """Predictions in four row groups, as a long run could have them."""
        n = 4000
        rng = np.random.default_rng(1)
        columns = {
            "split": ["dev"] * n, "case_id": np.arange(n) // 20, "impression_id": np.arange(n) // 20,
            "position": np.arange(n) % 20, "news_id": [f"N{k}" for k in range(n)], "label": rng.integers(0, 2, n),
            "score": rng.normal(size=n), "answer": [None] * n, "user_id": [f"U{k // 20}" for k in range(n)],
        }  # fmt: skip
        table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCHEMA}, schema=SCHEMA)
        pq.write_table(table, tmp_path / "p.parquet", row_group_size=1000, write_page_checksum=True)
        assert len(read_predictions(tmp_path / "p.parquet")) == n
        return tmp_path / "p.parquet"

    def test_a_file_that_ends_in_its_last_row_group_is_refused(self, path):
        last = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
        os.truncate(path, last + 10)
        with pytest.raises(UserError, match=r"p.parquet: not a readable Parquet file .*write it again"):
            read_predictions(path)

    @torture
    @pytest.mark.parametrize("column", range(len(SCHEMA)))
    def test_a_last_row_group_of_zeros_under_a_whole_footer_is_refused(self, path, column):
        about = pq.ParquetFile(path).metadata.row_group(3).column(column)
        with path.open("rb+") as file:
            file.seek(about.data_page_offset)
            file.write(bytes(about.total_compressed_size // 2 or 1))
        with pytest.raises(UserError, match=r"not a readable Parquet file"):
            read_predictions(path)

    @torture
    def test_scores_that_changed_on_the_disk_are_refused(self, tmp_path, path):
        """Without checksums they would be other numbers, and nobody would know."""
        table = pq.read_table(path)
        write_predictions(tmp_path / "q.parquet", table)
        about = (
            pq.ParquetFile(tmp_path / "q.parquet")
            .metadata.row_group(0)
            .column(SCHEMA.get_field_index("score"))
        )
        with (tmp_path / "q.parquet").open("rb+") as file:
            file.seek(
                (about.dictionary_page_offset or about.data_page_offset) + about.total_compressed_size // 2
            )
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(UserError, match=r"not a readable Parquet file \(.*(CRC|crc|checksum)"):
            read_predictions(tmp_path / "q.parquet")

    def test_a_part_that_is_damaged_is_scored_anew(self, request_of, tmp_path):  # noqa: F811
        whole = rows_of(request_of().run(tmp_path / "whole"))
        run = tmp_path / "run"

        def stop(cases, done, total):
            for i, case in enumerate(cases):
                if i == 7:
                    raise KeyboardInterrupt
                yield case

        with pytest.raises(KeyboardInterrupt):
            request_of().run(run, stop)
        part = run / "parts" / "1-00001.parquet"
        os.truncate(part, part.stat().st_size // 2)
        with pytest.raises(UserError, match=r"1-00001.parquet: gone or damaged .*run the same command again"):
            request_of().run(run)
        assert rows_of(request_of().run(run)) == whole
        assert not (run / "parts").exists()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("model.safetensors", 0.5),
        *(
            pytest.param(name, share, marks=torture)
            for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
            for share in (0, 0.5, 0.99)
        ),
    ],
)
def test_a_half_written_model_folder_is_one_line(data, tiny_glm, tmp_path, name, share):
    model = shutil.copytree(tiny_glm, tmp_path / "model")
    os.truncate(model / name, int((model / name).stat().st_size * share))

    def score():
        template = template_of(model)
        asked = ask(str(data), "dev", "next_click", str(model), template, limit=2, history_length=3)
        asked.run(tmp_path / "out")

    with pytest.raises(UserError, match="model"):
        score()
    assert not (tmp_path / "out").exists()


@torture
def test_a_half_written_adapter_is_one_line(tiny_glm, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from mindlab.llm.hf import load_model

    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_glm)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    load_model(tiny_glm, adapter, torch.float32)
    weights = adapter / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(UserError, match="cannot put the adapter"):
        load_model(tiny_glm, adapter, torch.float32)


class TestTornTraining:
    @pytest.fixture
    def out(self, tmp_path):
        """An output folder as a kill leaves it: one whole checkpoint, one half of one, half a line of log."""
        from safetensors.numpy import save_file

        for step in (1, 2):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            save_file({"w": np.zeros(100)}, folder / "adapter_model.safetensors")
            (folder / factory.CHECKPOINT_STATE).write_text(json.dumps({"global_step": step}))
        (tmp_path / factory.LOSSES).write_text('{"current_steps": 1}\n{"current_st')
        (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
        return tmp_path

    @pytest.mark.parametrize(
        "how",
        [
            "half the weights",
            *(pytest.param(how, marks=torture) for how in ("no state", "half a state", "another step")),
        ],
    )
    def test_half_a_checkpoint_is_not_gone_on_with(self, out, how):
        state, weights = (
            out / "checkpoint-2" / n for n in (factory.CHECKPOINT_STATE, "adapter_model.safetensors")
        )
        if how == "no state":
            state.unlink()
        elif how == "half a state":
            os.truncate(state, 5)
        elif how == "another step":
            state.write_text('{"global_step": 1}')
        else:
            os.truncate(weights, weights.stat().st_size // 2)
        factory.discard_torn(out)
        assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
        assert factory.read_rows(out / factory.LOSSES, 0)[0] == [{"current_steps": 1}]
        with (out / factory.LOSSES).open("a") as file:
            file.write('{"current_steps": 2}\n')
        assert len(factory.read_rows(out / factory.LOSSES, 0)[0]) == 2
        assert (out / "adapter_model.safetensors").exists()

    @torture
    def test_whole_checkpoints_stay(self, out):
        factory.discard_torn(out)
        assert len(list(out.glob("checkpoint-*"))) == 2

    @torture
    def test_without_a_checkpoint_half_an_adapter_is_not_in_the_way(self, out):
        for step in (1, 2):
            (out / f"checkpoint-{step}" / factory.CHECKPOINT_STATE).unlink()
        factory.discard_torn(out)
        assert sorted(path.name for path in out.iterdir()) == [factory.LOSSES]


# A trainer that takes its time to end.
RELUCTANT = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), os._exit(0)))
print("trainer", os.getpid(), "arguments", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
class TestNoOrphan:
    """A trainer ends with whoever started it. SLOW prints the pid of a process that the trainer starts."""

    @pytest.fixture
    def code(self, tmp_path, monkeypatch, tiny_glm):
        """Return the code that trains, with a stand-in for LLaMA-Factory that runs for a minute."""
        overrides = fake(tmp_path, monkeypatch, SLOW)
        shutil.copytree(tiny_glm, overrides["model_name_or_path"])
        return (
            "import sys\nfrom mindlab.finetune import factory\n"
            f"factory.command = lambda: [sys.executable, {str(tmp_path / 'fake.py')!r}]\n"
            f"factory.train({str(YAML)!r}, {overrides!r}, root={str(ROOT)!r})\n"
        )

    def helper(self, tmp_path):
        """Return the pid of what the trainer started, once it has."""
        output = tmp_path / "out" / factory.OUTPUT
        assert wait_for(lambda: output.exists() and "arguments" in output.read_text())
        return int(output.read_text().split()[1])

    @pytest.mark.slow
    def test_after_a_sigkill_of_the_launcher_and_until_then_the_folder_is_held(self, code, tmp_path):
        (tmp_path / "fake.py").write_text(RELUCTANT)
        launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        pid = self.helper(tmp_path)
        assert is_alive(pid)
        with (
            pytest.raises(UserError, match=rf"process {launcher.pid} is writing here"),
            lock(tmp_path / "out"),
        ):
            pass
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        with lock(tmp_path / "out"):  # free once the trainer has ended
            assert not is_alive(pid)

    @torture
    @pytest.mark.parametrize("how", ["interrupt", "kill"])
    def test_after_a_notebooks_cell_is_interrupted_or_its_kernel_killed(
        self, code, tmp_path, how, monkeypatch
    ):
        from jupyter_client.manager import KernelManager

        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(ROOT))
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            client.execute(code)
            pid = self.helper(tmp_path)
            assert is_alive(pid)
            if how == "interrupt":
                manager.interrupt_kernel()
                reply = client.get_shell_msg(timeout=30)
                assert reply["content"]["ename"] == "KeyboardInterrupt"
                assert not is_alive(pid)  # when the cell has ended, so has the trainer
            else:
                manager.shutdown_kernel(now=True)
                assert wait_for(lambda: not is_alive(pid), 20)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def test_a_download_that_is_killed_goes_on(tmp_path):
    from tests.unit.data import test_download as server_of

    class Slow(server_of.Handler):
        def send(self, body, most=None, with_range=True):
            self.server.is_slow = not self.headers.get("Range")
            super().send(body, most, with_range)

        def do_GET(self):
            if "slow" in self.path and not self.headers.get("Range"):
                self.server.requests.append((self.path, dict(self.headers)))
                body = server_of.BODY
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.server.gate.wait(60)
                return
            super().do_GET()

    with server_of.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.requests, server.gate = [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}/slow/"
        code = (
            "from mindlab.data import download\ndownload.CHUNK = 1024\n"
            f"download.fetch({server_of.NAME!r}, __import__('pathlib').Path({str(tmp_path)!r}), download.Route({at!r}))"
        )
        child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        part = tmp_path / f"{server_of.NAME}.part"
        assert wait_for(lambda: part.exists() and part.stat().st_size > 4096)
        child.kill()
        child.wait()
        server.gate.set()
        assert not (tmp_path / server_of.NAME).exists()
        kept = part.stat().st_size
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        assert server.requests[-1][1]["Range"] == f"bytes={kept}-"
        assert (tmp_path / server_of.NAME).read_bytes() == server_of.BODY
        server.shutdown()
