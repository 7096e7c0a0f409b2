"""Texts that a language model writes: one a prompt, in batches, kept on disk, gone on with after a kill.

A writer answers a batch of records; `write_texts` has it answer all of them and keeps every batch, so that an
interrupted run ends in the same bytes as an unbroken one. What a model writes is never trusted: `read_json` returns
what can be used of an answer, and what was wrong with it, so that faults are counted and stop nothing.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindlab.common.cli import Progress, batches_bar
from mindlab.common.errors import UserError
from mindlab.common.files import lock, sha256, write_json, write_text
from mindlab.llm.score import answer_frame, n_shared
from mindlab.prompts import Record
from mindlab.prompts.chat import ChatTemplate, record_prompt
from mindlab.prompts.records import batched

CACHE = Path("runs/written")
BATCH = 32  # prompts
EMPTY, NO_JSON, TEXT_AROUND, WRONG_FORM = "empty", "no JSON", "text around it", "wrong form"


class Writer(Protocol):
    """What answers prompts with text. A text may depend on its batch, which depends on the request alone."""

    batch: int
    tokens_read: int
    tokens_written: int

    def about(self) -> dict[str, Any]:
        """Return all that the texts depend on beside the records, for JSON."""

    def write(self, records: Sequence[Record]) -> list[str]:
        """Return the answer to each record of a batch, stripped; a record's own output is not read."""


class HFWriter:
    """Greedy answers of a Hugging Face causal language model, each held to a JSON schema: `schema`, or its record's own.

    Without a schema it is free. What the prompts of a batch have in common is read once. The schema is kept by llguidance, which lets through only
    tokens that can still lead to a valid document; an answer cut off at `max_new_tokens` is none.
    """

    def __init__(
        self,
        model: str | Path,
        template: str,
        schema: Mapping[str, Any] | None = None,
        max_new_tokens: int = 96,
        adapter: str | Path | None = None,
        batch: int = BATCH,
        device: str | None = None,
        dtype: str | None = None,
    ):
        """Nothing is loaded before the first batch; `dtype` as in HFEngine, left out bfloat16 where it is fast."""
        self.model_path, self.template, self.adapter = str(model), template, adapter and str(adapter)
        self.schema, self.max_new_tokens, self.batch, self.device = schema, max_new_tokens, batch, device
        self._dtype = dtype
        self.tokens_read = self.tokens_written = 0
        self._engine: Any = None
        self._guidance: Any = None

    @property
    def dtype(self) -> str:
        """The type of the weights in matrix products."""
        from mindlab.llm.hf import has_bfloat16

        return self._dtype or ("bfloat16" if has_bfloat16(self.device) else "float32")

    def about(self) -> dict[str, Any]:
        """Return the model, with the hashes of its files on disk, and how it is asked."""
        folders = [Path(self.model_path), *([Path(self.adapter)] if self.adapter else [])]
        names = (
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "adapter_model.safetensors",
            "tokenizer.json",
        )
        files = [path for folder in folders for name in names if (path := folder / name).is_file()]
        return {
            "writer": "transformers, greedy",
            "model": self.model_path,
            "adapter": self.adapter,
            "sha256": {path.name: sha256(path) for path in files},
            "dtype": self.dtype,
            "template": self.template,
            "schema": self.schema,
            "max_new_tokens": self.max_new_tokens,
            "batch": self.batch,
        }

    def write(self, records: Sequence[Record]) -> list[str]:
        """Return the answers, stripped; raise UserError if there is no such model or the schema cannot be kept."""
        self._load()
        # What comes before the input, and not what this batch happens to share: the same in every batch.
        asked = [{**records[0], "input": "?"}, *records]
        probe, *prompts = [
            self._chat.prompt_ids(r["system"], record_prompt(r)) + self._head(r["system"]) for r in asked
        ]
        n = n_shared([probe, *prompts])
        schemas = [record.get("schema", self.schema) for record in records]
        limit = None
        if any(schemas):
            grammars = [_grammar(json.dumps(schema)) if schema else None for schema in schemas]
            limit = _Constraint(self._words(), grammars, self._stop, self._n_vocabulary)
        answers = self._engine.write(prompts, n, self._stop, self.max_new_tokens, limit)
        self.tokens_read += n + sum(len(p) - n for p in prompts)
        self.tokens_written += sum(map(len, answers))
        return [self._chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]

    def _head(self, system: str) -> list[int]:
        """Return what the template puts before every answer, glm4's newline."""
        return answer_frame(self._chat, system, "?")[0]

    def _load(self) -> None:
        if self._engine is not None:
            return
        import torch

        from mindlab.llm.hf import HFEngine

        self._chat = ChatTemplate.load(self.model_path, self.template)
        self._stop = self._chat.stop_ids()
        dtype = getattr(torch, self.dtype)
        engine = HFEngine(self.model_path, self.adapter, dtype=dtype, device=self.device)
        # A model may have more rows than its tokenizer has words.
        self._n_vocabulary = engine.model.config.vocab_size
        self._engine = engine

    def _words(self) -> Any:
        """Return the tokenizer as llguidance knows it, made once."""
        if self._guidance is None:
            import llguidance.hf

            self._guidance = llguidance.hf.from_tokenizer(self._chat.tokenizer, eos_token=self._stop)
        return self._guidance


@lru_cache(maxsize=256)  # a schema of all records is read once
def _grammar(schema: str) -> str:
    """Return llguidance's grammar of a JSON schema."""
    from llguidance import LLMatcher

    # Compact, as the examples in the prompts are: white space is tokens.
    tight = {**json.loads(schema), "x-guidance": {"whitespace_flexible": False}}
    grammar = LLMatcher.grammar_from_json_schema(tight)
    if fault := LLMatcher.validate_grammar(grammar):
        raise UserError(f"this JSON schema cannot be kept while writing: {fault}")
    return grammar


class _Constraint:
    """Tells of each text of a batch the tokens with which its document may go on: any, where it has no schema."""

    def __init__(self, words: Any, grammars: Sequence[str | None], stop: list[int], n_vocabulary: int):
        """Take llguidance's tokenizer, and the grammar of each text."""
        from llguidance import LLMatcher

        self._stop, self._n = stop, n_vocabulary
        self._matchers = [grammar and LLMatcher(words, grammar) for grammar in grammars]
        self._read = [0] * len(grammars)

    def __call__(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> np.ndarray:
        allowed = np.zeros((len(rows), self._n), bool)
        for k, (row, ids) in enumerate(zip(rows, texts, strict=True)):
            matcher = self._matchers[row]
            if matcher is None:
                allowed[k] = True
                continue
            if not matcher.is_stopped():
                matcher.consume_tokens(ids[self._read[row] :])
                self._read[row] = len(ids)
            if matcher.is_stopped():  # the document is whole
                allowed[k, self._stop] = True
                continue
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            known = np.unpackbits(bits, bitorder="little")[: self._n].astype(bool)
            allowed[k, : len(known)] = known
        return allowed


@dataclass(frozen=True)
class Texts:
    """The answers to all records, and what writing them took, whenever that was."""

    texts: list[str]
    seconds: float
    tokens_read: int
    tokens_written: int
    is_kept: bool  # they were there already
    path: Path


def write_texts(
    records: Sequence[Record],
    writer: Writer,
    name: str,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Texts:
    """Return the writer's answer to each record, written once for each list of records and kept in `cache`.

    Records are answered in the order of their lengths, in batches that depend on the list alone; each is kept as soon
    as it is there. The file of the texts, ``NAME-KEY.jsonl``, holds nothing that differs from run to run; the time taken
    stands beside it.

    Raises UserError if another process is writing these texts.
    """
    if not records:
        return Texts([], 0.0, 0, 0, True, Path())
    cache = CACHE if cache is None else cache
    asked = json.dumps([writer.about(), *({**r, "output": ""} for r in records)], sort_keys=True)
    path = cache / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl"
    is_kept = _is_whole(path)
    if not is_kept:
        with lock(cache, f".{path.stem}.lock"):
            if not _is_whole(path):  # nor by who held the lock before
                _fill(path, records, writer, progress or batches_bar(f"write {name}"))
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Texts(texts, about["seconds"], about["tokens_read"], about["tokens_written"], is_kept, path)


def _is_whole(path: Path) -> bool:
    """Return whether all answers are there, and nothing of the way to them."""
    return path.exists() and not path.with_suffix(".parts").exists()


def _fill(path: Path, records: Sequence[Record], writer: Writer, progress: Progress) -> None:
    """Write the answers to `path`, and what they took beside it; go on where another run stopped."""
    lengths = [len(record_prompt(record)) for record in records]
    batches = list(batched(np.argsort(lengths, kind="stable").tolist(), writer.batch))
    parts = path.with_suffix(".parts")
    if path.exists():  # stopped while it removed its parts
        shutil.rmtree(parts)
        return
    files = [parts / f"{number:05d}.json" for number in range(len(batches))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    for number in progress(missing, len(batches) - len(missing), len(batches)):
        begin = time.perf_counter()
        before = writer.tokens_read, writer.tokens_written
        texts = writer.write([records[row] for row in batches[number]])
        after = writer.tokens_read, writer.tokens_written
        took = {
            "seconds": time.perf_counter() - begin,
            "tokens": [b - a for a, b in zip(before, after, strict=True)],
        }
        write_json(files[number], {"texts": texts, **took})
    found: list[str] = [""] * len(records)
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for batch, part in zip(batches, kept, strict=True):
        for row, text in zip(batch, part["texts"], strict=True):
            found[row] = text
    read, written = (sum(part["tokens"][k] for part in kept) for k in range(2))
    took = {
        "seconds": round(sum(part["seconds"] for part in kept), 2),
        "tokens_read": read,
        "tokens_written": written,
    }
    write_json(path.with_suffix(".json"), {"n": len(records), **took, **writer.about()})
    # One JSON string a line: a text may hold newlines, some of which `splitlines` alone sees.
    write_text(path, "".join(f"{json.dumps(text)}\n" for text in found))
    shutil.rmtree(parts)


@dataclass(frozen=True)
class Answer:
    """What can be used of a model's answer, None if nothing, and what was wrong with it, None if nothing."""

    value: Any
    fault: str | None


def read_json(text: str, schema: Mapping[str, Any]) -> Answer:
    """Return the first JSON object or array in a text that is valid under `schema`.

    Prose around it is a fault, and what it surrounds is used all the same.

    >>> read_json('Sure! {"a": 1}', {"type": "object"})
    Answer(value={'a': 1}, fault='text around it')
    >>> read_json('{"a": 1', {"type": "object"}), read_json("[]", {"type": "object"})
    (Answer(value=None, fault='no JSON'), Answer(value=None, fault='wrong form'))
    """
    from jsonschema import Draft202012Validator

    if not text.strip():
        return Answer(None, EMPTY)
    decoder, validator = json.JSONDecoder(), Draft202012Validator(schema)
    fault, at = None, 0  # what the first bracket was is what went wrong
    while at < len(text):
        if text[at] in "{[":
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                fault = fault or NO_JSON
            else:
                if validator.is_valid(value):
                    around = text[:at] + text[end:]
                    return Answer(value, TEXT_AROUND if around.strip() else None)
                fault, at = fault or WRONG_FORM, end
                continue
        at += 1
    return Answer(None, fault or NO_JSON)


def count_faults(answers: Iterable[Answer]) -> dict[str, int]:
    """Return how many answers there are, how many can be used, and how many had each fault.

    >>> count_faults([Answer({}, None), Answer(None, EMPTY), Answer({}, TEXT_AROUND)])
    {'answers': 3, 'usable': 2, 'empty': 1, 'text around it': 1}
    """
    answers = list(answers)
    faults = Counter(answer.fault for answer in answers if answer.fault)
    usable = sum(answer.value is not None for answer in answers)
    return {"answers": len(answers), "usable": usable, **dict(sorted(faults.items()))}
