"""An ordered map over the machines of a Ray cluster: ``ray_map(f, jobs)`` yields what ``map(f, jobs)`` does.

Ray Data runs it: each job is a block, a fixed pool of actors holds `f`, results come in the order of the jobs,
and the job of an actor that died is done again. Ray is not in requirements.txt: requirements-dist.txt has it.
"""

import argparse
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from mindlab.common.errors import UserError

Job, Part = TypeVar("Job"), TypeVar("Part")

RETRIES = 3  # of a job whose worker died: one that always dies, for want of memory, must not go on for ever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a script that has --engine the options of ``--engine ray``."""
    parser.add_argument(
        "--address",
        help="ray: local (default) starts Ray here, auto joins this machine's cluster; else HOST:PORT",
    )
    parser.add_argument("--workers", type=int, help="ray: at most that many (default: one a GPU or a core)")


def chosen(args: argparse.Namespace, **options: Any) -> Callable[..., Iterator] | None:
    """Return `ray_map` with `options` and what a script's arguments ask for, None without ``--engine ray``.

    Raises `UserError` for an option of Ray without it, a number of workers below 1, and as `connect` does.
    """
    if args.engine != "ray":
        if given := [name for name in ("address", "workers") if getattr(args, name) is not None]:
            raise UserError(f"--{given[0]} goes with --engine ray")
        return None
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected at least 1")
    connect(args.address or "local")
    return partial(ray_map, address=args.address or "local", workers=args.workers, **options)


def ray_map(
    function: Callable[[Job], Part],
    jobs: Iterable[Job],
    address: str = "local",
    *,
    workers: int | None = None,
    wants_gpu: bool = False,
    jobs_at_once: int = 1024,
) -> Iterator[Part]:
    """Yield ``function(job)`` for every job, in their order, computed by the workers of a Ray cluster.

    Args:
        function: picklable; each worker keeps a copy from job to job, so a model that it loads when first called is loaded
            once a worker. The modules and files that it needs must be on every machine.
        jobs: picklable, and so are the results; drawn as they are needed.
        address: "local" starts Ray here, "auto" joins this machine's cluster; else what ``ray.init`` takes.
        workers: how many at the most; by default one a GPU if `wants_gpu` and there is any, else one a CPU.
        wants_gpu: give each worker a GPU where the cluster has any.
        jobs_at_once: how many are drawn at a time, for which a worker keeps its copy of `function`.

    Raises:
        UserError: if Ray is missing or cannot be reached, if a job kills its worker `RETRIES` times over, and
            the one that `function` raised.
    """
    connect(address)
    import ray
    from ray import cloudpickle
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayActorError

    has = ray.cluster_resources()
    on_gpu = wants_gpu and has.get("GPU", 0) >= 1
    most = workers or int(has.get("GPU" if on_gpu else "CPU", 1))
    work, jobs = cloudpickle.dumps(function), iter(jobs)
    while chunk := [pa.table({"job": _cell(job)}) for job in islice(jobs, jobs_at_once)]:
        size = min(most, len(chunk))
        # No job waits behind another while some worker is idle: a part takes long, a message does not.
        pool = ActorPoolStrategy(
            min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=1
        )
        options = {"num_cpus": 1, "num_gpus": int(on_gpu), "max_task_retries": RETRIES}
        with warnings.catch_warnings():
            # max_task_retries has no other way in; the pinned version takes it.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            results = ray.data.from_arrow(chunk).map_batches(
                Worker,
                fn_constructor_args=(work,),
                batch_size=1,
                batch_format="pyarrow",
                compute=pool,
                **options,
            )
        try:
            for row in results.iter_rows():
                is_result, value = pickle.loads(row["result"])
                if not is_result:
                    raise UserError(value)
                yield value
        except RayActorError as error:
            raise UserError(
                f"a worker died {RETRIES + 1} times over the same job ({type(error).__name__}); has it memory "
                "enough? Fewer workers to a machine leave more to each"
            ) from error


def _cell(value: Any) -> pa.Array:
    return pa.array([pickle.dumps(value)], pa.large_binary())


class Worker:
    """What an actor holds: the function, and so whatever that keeps between two jobs."""

    def __init__(self, pickled: bytes):
        """Take the function as bytes: an actor that fails here would only be said to have died."""
        self._pickled = pickled

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the result of the one job in `batch`, or the message of its `UserError`."""
        try:
            return pa.table({"result": _cell((True, self._function(pickle.loads(batch["job"][0].as_py()))))})
        except UserError as error:
            return pa.table({"result": _cell((False, str(error)))})

    @cached_property
    def _function(self) -> Callable[[Job], Part]:
        try:
            return pickle.loads(self._pickled)
        except ImportError as error:
            raise UserError(
                f"a worker lacks a module ({error}); install the project on every machine of the cluster"
            ) from error


def connect(address: str = "local") -> None:
    """Join or start Ray, unless this process has done so; raise UserError if that cannot be."""
    # It would report its use to its makers, call a restarted actor an error, and knock for a quarter of an hour.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    lost = {} if address == "local" else {"RAY_NUM_REDIS_GET_RETRIES": "1"}
    os.environ.update({**quiet, **lost, **os.environ})
    try:
        import ray
        from ray.data import DataContext
    except ImportError:
        raise UserError("Ray is not installed; pip install -r requirements-dist.txt") from None
    if not ray.is_initialized():
        own = {"include_dashboard": False} if address == "local" else {}
        try:
            if ":" in address:  # told at once where nobody listens
                parts = urlsplit(address if "://" in address else f"ray://{address}")
                socket.create_connection((parts.hostname, parts.port), timeout=10).close()
            ray.init(address, logging_level="ERROR", log_to_driver=False, **own)
        except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError is an OSError
            raise UserError(
                f"--address {address}: no Ray cluster ({' '.join(str(error).split())[:200]}); start one with "
                "`ray start --head`, or take --address local"
            ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
