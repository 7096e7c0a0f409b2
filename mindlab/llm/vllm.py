"""Score with vLLM, in an environment of its own, many impressions at once.

vLLM pins another torch and transformers than LLaMA-Factory, so it runs in a second environment
(requirements-serve.txt says how to make it) as a worker process: `mindlab.llm.vllm_worker`. Token ids are made
here, by the same scorers that ask `HFEngine`; the worker gets ids and returns log-probabilities, so it needs
neither a tokenizer nor this package. A LoRA adapter is merged into a copy of the model first: vLLM's loader
refuses one on GLM-4's fused `gate_up_proj`.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common import machine
from mindlab.common.errors import UserError
from mindlab.common.files import sha256
from mindlab.common.manifest import peak_memory_mb
from mindlab.llm.engine import Ask, Engine, Ids

WORKER = Path(__file__).with_name("vllm_worker.py")
SERVE_PYTHON = os.environ.get("MINDLAB_SERVE_PYTHON", ".venv-serve/bin/python")
HOW = (
    "make vLLM's environment: python3.11 -m venv .venv-serve, then .venv-serve/bin/pip install -r "
    "requirements-serve.txt (read its notes), or name its Python with --serve-python"
)
# Set for the worker where the user's environment does not say otherwise.
ENVIRONMENT = {
    **machine.QUIET,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine within the worker: on a CPU it gets all cores that way
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; without it vLLM takes most of the machine's memory
    "VLLM_LOGGING_LEVEL": "WARNING",
}
MAX_NEW_TOKENS = 8  # HFEngine.answer's


class VllmEngine(Engine):
    """A causal language model in a vLLM worker process, with prefix caching, asked in bulk."""

    def __init__(
        self,
        model_path: str | Path,
        adapter: str | Path | None = None,
        longest: int = 1024,
        *,
        serve_python: str | Path = SERVE_PYTHON,
        bulk: int = 50,
        dtype: str | None = None,
        merged: str | Path = "models/merged",
        **settings: Any,
    ):
        """Start a worker and wait until it has the model, about ten seconds for a small one.

        `longest` is the longest prompt in tokens, `bulk` how many impressions to take at once. `dtype` is by
        default HFEngine's: bfloat16 on a GPU, else float32. A model with an adapter in it is kept in the folder
        `merged`. `settings` are `vllm.LLM`'s own, such as `block_size`.

        Raises UserError if there is no such Python, no vLLM in it, no such model, or the worker does not start.
        """
        # What costs nothing to find out comes first.
        if shutil.which(serve_python) is None:
            raise UserError(f"{serve_python}: no such Python; {HOW}")
        import torch

        has_gpu = torch.cuda.is_available()
        dtype = dtype or ("bfloat16" if has_gpu else "float32")
        config = _config(model_path)
        self.n_parameters = _count_parameters(config)
        if adapter is not None:
            model_path = merge(model_path, adapter, dtype, merged)
        self.bulk = bulk
        # Above `longest`: the line of a candidate that does not fit even without history, and an answer.
        limit = min(longest + 256, getattr(config, "max_position_embeddings", sys.maxsize))
        self._settings = {
            "model": str(model_path),
            "dtype": dtype,
            "max_model_len": limit,
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # not the model's own: nothing is sampled
            "seed": 0,
            "enforce_eager": True,  # compiling takes a minute or two and gains a tenth at best
            # On a CPU vLLM's own choice is 128, which halves the speed: what prompts share ends within a block.
            **({} if has_gpu else {"block_size": 32}),
            **settings,
        }
        self.worker_peak_mb = 0.0
        self._start(Path(shutil.which(serve_python)))

    def line_log_probs(self, prefix: Ids, lines: Sequence[Ids]) -> np.ndarray:
        """As `Engine`."""
        return self.bulk_line_log_probs([(prefix, lines)])[0]

    def last_logits(self, prefix: Ids, lines: Sequence[Ids], tokens: Ids) -> np.ndarray:
        """As `Engine`; the rows are log-probabilities."""
        return self.bulk_last_logits([(prefix, lines)], tokens)[0]

    def answer(self, prompt: Ids, head: Ids, tokens: Ids, stop: Ids) -> tuple[np.ndarray, list[int]]:
        """As `Engine`."""
        return self.bulk_answers([prompt], head, tokens, stop)[0]

    def bulk_line_log_probs(self, asks: Sequence[Ask]) -> list[np.ndarray]:
        """As `Engine`."""
        return [np.array(values) for values in self._ask("line_log_probs", asks=list(asks))]

    def bulk_last_logits(self, asks: Sequence[Ask], tokens: Ids) -> list[np.ndarray]:
        """As `Engine`; the rows are log-probabilities."""
        return [np.array(rows) for rows in self._ask("last_log_probs", asks=list(asks), tokens=list(tokens))]

    def bulk_answers(
        self, prompts: Sequence[Ids], head: Ids, tokens: Ids, stop: Ids
    ) -> list[tuple[np.ndarray, list[int]]]:
        """As `Engine`."""
        question = {"prompts": list(prompts), "head": list(head), "tokens": list(tokens), "stop": list(stop)}
        found = self._ask("answers", **question, max_tokens=MAX_NEW_TOKENS)
        return [(np.array(values), ids) for values, ids in found]

    def forget(self) -> None:
        """As `Engine`: empty vLLM's prefix cache."""
        self._ask("forget")

    def peak_mb(self) -> float:
        """Return the peak of this process and the worker's, summed, in MiB."""
        return peak_memory_mb() + self.worker_peak_mb

    def about(self) -> dict[str, Any]:
        """Return vLLM's version, its settings and how long it took to start."""
        return {"vllm": {**self._about, **self._settings}}

    def close(self) -> None:
        """End the worker."""
        self._end()

    def _start(self, python: Path) -> None:
        handle, log = tempfile.mkstemp(prefix="vllm-", suffix=".log")
        self._log = Path(log)
        with os.fdopen(handle, "wb") as file:
            self._process = subprocess.Popen(
                # -P: the worker's folder, which holds a vllm.py, must not come before vLLM on its path.
                [python, "-P", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding="utf-8",
                env={**ENVIRONMENT, **os.environ},
                start_new_session=True,  # Ctrl-C is this process's to handle; and one signal ends all its processes
            )
        self._end = weakref.finalize(self, _end, self._process, self._log)
        self._about = self._reply()
        self._send(self._settings)
        self._about |= self._reply()

    def _ask(self, what: str, **question: Any) -> Any:
        self._send({"what": what, **question})
        reply = self._reply()
        self.tokens_read, self.worker_peak_mb = reply["tokens_read"], reply["peak_mb"]
        return reply["result"]

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # then there is no reply, which says more
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        """Return the worker's next reply; raise UserError if it is an error or none comes."""
        line = self._process.stdout.readline()
        reply = json.loads(line) if line.endswith("\n") else {}
        if reply and "error" not in reply:
            return reply
        if self._end.detach():
            _end(self._process, self._log, keep_log=True)
        if reply.get("is_missing"):
            raise UserError(f"{self._process.args[0]}: {reply['error']}; {HOW}")
        died = f"its process ended (exit code {self._process.returncode})"
        raise UserError(
            f"vLLM failed: {reply.get('error', died)}; its log is {self._log}; finished parts are kept, the same "
            "command goes on after them"
        )


def merge(model: str | Path, adapter: str | Path, dtype: str, folder: str | Path) -> Path:
    """Return the folder of the model with the LoRA adapter in its weights, made once for the same contents.

    It holds config, weights in `dtype` and tokenizer, in a subfolder of `folder` named by the model and a hash.
    It takes the memory of the model (GLM-4-9B: 18 GiB in bfloat16, estimated) and as much disk.

    Raises UserError if the model or the adapter cannot be read or do not fit.
    """
    names = ("*.safetensors", "config.json", "adapter_config.json")
    files = sorted(path for place in (model, adapter) for name in names for path in Path(place).glob(name))
    known = [str(model), dtype, *map(sha256, files)]
    target = (
        Path(folder) / f"{Path(model).name}-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]}"
    )
    if target.is_dir():
        return target
    import torch
    from transformers import AutoTokenizer

    from mindlab.llm.hf import load_model

    merged = load_model(model, adapter, getattr(torch, dtype))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        whole = Path(temporary) / "model"
        merged.save_pretrained(whole)
        AutoTokenizer.from_pretrained(model).save_pretrained(whole)
        whole.replace(target)
    return target


def _config(model: str | Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load the model {model}: {reason}; give a model folder (scripts/get_model.py makes one) or "
            "a hub id"
        ) from error


def _count_parameters(config: Any) -> int:
    """Return how many parameters the model of a config has, without making them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _end(process: subprocess.Popen, log: Path, keep_log: bool = False) -> None:
    """End the worker with all it started; remove its log unless it is to be kept."""
    # It has nothing to save. If it has ended by itself, wait for its exit code.
    with suppress(subprocess.TimeoutExpired):
        if keep_log:
            process.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.close()
    if not keep_log:
        log.unlink(missing_ok=True)
