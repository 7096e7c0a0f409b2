"""mindlab.distributed: the cluster's map is the built-in one, whoever dies."""

import os
import pickle

import pyarrow as pa
import pytest

from mindlab.errors import UserError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dist.txt")

from mindlab import distributed  # noqa: E402
from mindlab.distributed import ray_map  # noqa: E402
from tests.jobs import Counter, KillOnce, die, echo, reciprocal, refuse  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Start Ray with two workers here, and end it with the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def test_it_is_map_though_the_first_job_is_the_slowest_and_two_workers_share():
    jobs = ["slow", b"a\0\0", 5, [1], 5, None, -2, "x"]  # any picklable job, to the last byte
    found = list(ray_map(echo, jobs))
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
    found = list(ray_map(KillOnce(tmp_path / "killed"), range(8)))
    assert [x for x, _ in found] == list(range(8))
    killed = int((tmp_path / "killed").read_text())
    assert dict(found)[3] != killed


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
