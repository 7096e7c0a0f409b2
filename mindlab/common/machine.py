"""What this computer has, and which parts of the course it can run."""

import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

# For the processes that the course starts: nothing is told to anybody, and what serves serves this machine alone.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
CLOSED = {
    **QUIET,
    "API_HOST": "127.0.0.1",  # LLaMA-Factory's own is 0.0.0.0, of the web pages too
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "GRADIO_SHARE": "0",
}


GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Sizes in GiB; `gpu` is the memory of the largest CUDA device, 0 where there is none."""

    cores: int
    memory: float
    disk: float
    gpu: float
    gpu_name: str = ""


@dataclass(frozen=True)
class Task:
    """A part of the course, what it takes in GiB, and where its figure comes from."""

    name: str
    memory: float
    disk: float
    gpu: float
    source: str


TASKS = (
    Task("Build datasets, simple methods, notebooks 00-02", 4, 1, 0, "measured on the sample"),
    Task("Score with SmolLM2-135M", 4, 1, 0, "measured"),
    Task("Fine-tune SmolLM2-135M (notebook 03, make demo)", 8, 2, 0, "measured: 6 at the peak"),
    Task("Fine-tune GLM-4-9B with QLoRA", 16, 25, 11, "measured: 8.5 on the GPU"),
    Task("Fine-tune GLM-4-9B with LoRA", 24, 25, 22, "measured: 21.3 on the GPU"),
    Task("Score or chat with GLM-4-9B", 24, 25, 19, "published: 19 GB on the GPU"),
    Task("Merge an adapter into GLM-4-9B", 22, 45, 0, "estimated: 20"),
)


def look(folder: str | Path = ".") -> Machine:
    """Return what this machine has: cores, memory, free disk under `folder`, the largest GPU."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    largest = max(gpus, key=lambda gpu: gpu.total_memory, default=None)
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / GIB,
        disk=shutil.disk_usage(folder).free / GIB,
        gpu=largest.total_memory / GIB if largest else 0,
        gpu_name=largest.name if largest else "",
    )


def missing(task: Task, machine: Machine) -> str:
    """Return what the machine lacks for a task, "" if nothing.

    >>> missing(Task("x", 8, 2, 22, ""), Machine(2, 3.8, 100, 0))
    'memory: 8 GiB, here 3.8; a GPU of 22 GiB, here none'
    """
    found = []
    for what, needed, here in (("memory", task.memory, machine.memory), ("disk", task.disk, machine.disk)):
        # A machine sold with 8 GB reports a little less.
        if here < 0.95 * needed:
            found.append(f"{what}: {needed:g} GiB, here {here:.1f}")
    if machine.gpu < 0.95 * task.gpu:
        found.append(f"a GPU of {task.gpu:g} GiB, here " + (f"{machine.gpu:.1f}" if machine.gpu else "none"))
    return "; ".join(found)


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees; return whether its allocator took that (glibc's does).

    By default glibc gives much of it back to the system and takes it anew, page by page: a sixth of the time of
    reading MIND. What is larger than 32 MiB still goes back at once. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another libc, or Windows
        return False
    mmap_threshold, trim_threshold, arenas = -3, -1, -8
    return all(
        mallopt(name, value)
        for name, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (arenas, 1))
    )
