"""mindlab.runs.distributed: the cluster's map is the built-in one, whoever dies."""

import argparse
import json
import os
import pickle
import socket
from functools import partial

import pyarrow as pa
import pytest

from mindlab.common.errors import UserError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dist.txt")
from mindlab.data.mind import read_mind  # noqa: E402
from mindlab.data.synthetic import make_sample  # noqa: E402
from mindlab.evaluation.predictions import read_predictions  # noqa: E402
from mindlab.finetune.alpaca import BuildOptions, build, make_budget  # noqa: E402
from mindlab.prompts import LikesDislikes, likes_dislikes_parts, neutral_titles  # noqa: E402
from mindlab.prompts.records import RecordWriter  # noqa: E402
from mindlab.recommenders import llm  # noqa: E402
from mindlab.runs import distributed  # noqa: E402
from mindlab.runs.distributed import ray_map  # noqa: E402
from mindlab.runs.notebook import StopAfter  # noqa: E402
from tests.asked import ask  # noqa: E402
from tests.jobs import Counter, FirstWaits, KillOnce, die, echo, reciprocal, refuse  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Start Ray with two workers here, and end it with the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def test_it_is_map_though_the_first_job_ends_last(tmp_path):
    jobs = ["first", b"a\0\0", 5, [1], 5, None, -2, "x"]  # any picklable job, to the last byte
    found = list(ray_map(FirstWaits(tmp_path / "flag"), jobs))
    assert [job for job, _ in found] == jobs
    workers = {pid for _, pid in found}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert list(ray_map(echo, [])) == []


def test_jobs_are_drawn_as_they_are_needed_and_a_worker_keeps_its_function_until_then():
    drawn = []

    def jobs():
        for x in range(100):
            drawn.append(x)
            yield x

    results = ray_map(Counter(), jobs(), workers=1, jobs_at_once=4)
    assert drawn == []
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 1]
    assert len(drawn) == 8
    results.close()


def test_a_killed_worker_changes_nothing(tmp_path):
    jobs = ["ab", "cd", "ef", "gh", "ij"]
    found = list(ray_map(KillOnce(echo, tmp_path / "killed"), jobs))
    assert [job for job, _ in found] == jobs
    assert (tmp_path / "killed").read_text() not in {str(pid) for _, pid in found[-1:]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic MIND: 60 and 40 impressions."""
    folder = tmp_path_factory.mktemp("data")
    make_sample(folder, 60, 40, seed=2)
    return folder


def test_scores_are_the_same_bytes_here_there_and_with_a_worker_killed(data, tiny_glm, tmp_path, monkeypatch):
    """Parts of two impressions, the first two of one user; the worker dies with a model and half a part."""
    monkeypatch.setattr(llm, "PART_SIZE", {"hf": 2})
    # Relative paths, which the workers must find all the same.
    monkeypatch.chdir(data.parent)
    request = ask(data.name, "dev", "next_click", str(tiny_glm), "glm4", limit=12, history_length=3)
    here = request.run(tmp_path / "here")

    def killed(work, jobs):
        return ray_map(KillOnce(work, tmp_path / "killed"), jobs, workers=2)

    seen = []

    def progress(cases, done, total):
        for case in cases:
            seen.append((done, total))
            yield case

    # What the cluster goes on with has two cases of a run that was cut off here.
    with pytest.raises(KeyboardInterrupt):
        request.run(tmp_path / "there", StopAfter(3))
    there = request.run(tmp_path / "there", progress, spread=killed)
    assert (tmp_path / "killed").exists()
    assert seen == [(2, 12)] * 10
    for name in ("predictions.parquet", "request.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
    one, other = (json.loads((run / "manifest.json").read_text()) for run in (here, there))
    for name in ("n_impressions", "params", "request", "inputs_sha256", "log_odds_shift"):
        assert one[name] == other[name]
    assert other["peak_mb"] > 0
    assert len(set(read_predictions(here / "predictions.parquet")["score"].to_pylist())) > 100


def test_a_request_that_no_worker_can_meet_leaves_nothing_behind(data, tiny_glm, tmp_path):
    request = ask(str(data), "dev", "next_click", str(tiny_glm), "glm4", limit=2, cutoff_len=10)
    with pytest.raises(UserError, match=r"^cutoff_len 10 does not hold the question alone"):
        request.run(tmp_path / "run", spread=lambda *work: ray_map(*work, workers=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "form"), [("seed", "likes_dislikes"), ("dev", "pointwise")])
def test_records_are_the_same_bytes_here_and_there(data, tmp_path, monkeypatch, protocol, form):
    monkeypatch.setattr("mindlab.finetune.alpaca.RECORDS", 50)
    mind = read_mind(data)
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder, run in zip(folders, (None, partial(ray_map, workers=1)), strict=True):
        build(mind, BuildOptions(protocol, form), folder, run=run)
    files = [path.relative_to(folders[0]) for path in sorted(folders[0].rglob("*.json"))]
    assert len(files) == (4 if protocol == "seed" else 5)
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_records_that_are_counted_can_travel(data, tiny_glm):
    """A worker gets the tokenizer and LLaMA-Factory's template with its function."""
    mind = read_mind(data)
    budget = make_budget(
        BuildOptions("seed", "likes_dislikes", model=str(tiny_glm), template="glm4", cutoff_len=300)
    )
    write = RecordWriter(LikesDislikes("en"), budget)
    parts = list(likes_dislikes_parts(mind.splits["train"], neutral_titles(mind.news)))
    part = write(parts)
    assert part.done.shortened > 5
    assert pickle.loads(pickle.dumps(write))(parts) == part


def test_the_options_of_ray_go_with_ray(monkeypatch):
    def chosen(*words):
        parser = argparse.ArgumentParser()
        parser.add_argument("--engine", default="hf")
        distributed.add_arguments(parser)
        return distributed.chosen(parser.parse_args(words), jobs_at_once=7)

    assert chosen() is None
    run = chosen("--engine", "ray", "--workers", "2")
    assert (run.func, run.keywords) == (ray_map, {"address": "local", "workers": 2, "jobs_at_once": 7})
    for words, message in [
        (["--address", "auto"], "--address goes with --engine ray"),
        (["--workers", "2"], "--workers goes with --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers 0: expected at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            chosen(*words)


def test_a_job_that_always_kills_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "RETRIES", 1)
    with pytest.raises(UserError, match=r"^a worker died 2 times over the same job .*memory enough"):
        list(ray_map(die, [1], workers=1))


def test_a_users_mistake_in_a_worker_is_one_here():
    results = ray_map(refuse, range(4), workers=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match=r"^news.tsv: line 2 has no title$"):
        next(results)


def test_a_machine_that_lacks_the_code_is_told_in_one_line():
    class NotHere:
        def __reduce__(self):
            return __import__, ("not_installed",)

    worker = distributed.Worker(pickle.dumps(NotHere()))
    made = worker(pa.table({"job": pa.array([pickle.dumps(1)], pa.large_binary())}))
    is_result, message = pickle.loads(made["result"][0].as_py())
    assert not is_result
    assert message.startswith(
        "a worker lacks a module (No module named 'not_installed'); install the project"
    )


@pytest.mark.slow
def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(Exception, match="ZeroDivisionError"):
        list(ray_map(reciprocal, [0], workers=1))


def test_a_cluster_that_is_not_there_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def init(*args, **options):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"--address auto: no Ray cluster \(Could not find") as caught:
        distributed.connect("auto")
    assert "\n" not in str(caught.value)


def test_an_address_where_nobody_listens_is_told_soon(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray would knock for many minutes"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # a port that nobody else takes, and nobody listens on
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:none"):
            with pytest.raises(UserError, match=f"--address {address}: no Ray cluster"):
                distributed.connect(address)
