"""Turn a record into token ids exactly as LLaMA-Factory does, with LLaMA-Factory's own template object.

Training goes through ``llamafactory-cli``; scoring does not. Both must see the same ids, so nothing here
writes a chat format by hand.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindlab.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def record_prompt(record: Mapping[str, str]) -> str:
    r"""Return what the user says in an Alpaca record: instruction and input on lines of their own.

    An empty part is skipped, as LLaMA-Factory's converter does.

    >>> record_prompt({"instruction": "Pick one.", "input": "A or B", "output": "A"})
    'Pick one.\nA or B'
    >>> record_prompt({"instruction": "Pick one.", "input": ""})
    'Pick one.'
    """
    return "\n".join(part for part in (record.get("instruction"), record.get("input")) if part)


def check_model(model: str | Path, root: str | Path = ".") -> None:
    """Raise `UserError` unless `model` is a folder, seen from `root`, or may be a hub id such as zai-org/GLM-4-9B-0414."""
    path = Path(root) / model
    # models/ is this project's own folder, which a fresh clone lacks.
    is_local = Path(model).is_absolute() or str(model).count("/") != 1 or Path(model).parts[0] == "models"
    if not path.is_dir() and (is_local or path.parent.is_dir()):
        raise UserError(f"{model}: no such model folder; make it with scripts/get_model.py")


class ChatTemplate:
    """LLaMA-Factory's template of one name around the tokenizer of one model.

    In all methods `instruction` is the whole text of the user (`record_prompt` of a record). An empty
    `system` means the template's default: none for glm4, "You are a helpful AI assistant named SmolLM, ..."
    for smollm2.
    """

    def __init__(self, name: str, template: Any, tokenizer: "PreTrainedTokenizerBase"):
        self.name = name
        self.template = template
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, model_path: str | Path, template_name: str) -> "ChatTemplate":
        """Return the template `template_name` with the tokenizer in `model_path` (a folder or a hub id).

        Raises `UserError` when LLaMA-Factory cannot be imported, or the template or tokenizer is not found.
        """
        factory = import_factory()
        if template_name not in factory.TEMPLATES:
            raise UserError(
                f"LLaMA-Factory has no template {template_name!r}; GLM-4 takes glm4, SmolLM2 smollm2"
            )
        from transformers import AutoTokenizer

        check_model(model_path)
        try:
            # As llamafactory.model.loader.load_tokenizer does.
            tokenizer = AutoTokenizer.from_pretrained(model_path, use_fast=True, padding_side="right")
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{model_path}: cannot read its tokenizer: {reason}") from error
        with quiet_factory():  # it would print "Add ... to stop words" on stdout
            template = factory.get_template_and_fix_tokenizer(
                tokenizer, factory.DataArguments(template=template_name)
            )
        return cls(template_name, template, tokenizer)

    def prompt_ids(self, system: str, instruction: str) -> list[int]:
        """Return the ids of everything up to and including the assistant's header."""
        return self.encode(system, instruction, "")[0]

    def answer_ids(self, system: str, instruction: str, output: str) -> list[int]:
        """Return the ids trained on: the answer with the template's own newlines and its end of turn.

        For glm4 that is newline, answer, ``<|endoftext|>``; for smollm2 answer, ``<|im_end|>``, newline.
        """
        return self.encode(system, instruction, output)[1]

    def count(self, record: Mapping[str, str]) -> int:
        """Return how many tokens LLaMA-Factory makes of an Alpaca record, prompt and answer."""
        return sum(map(len, self.encode(record.get("system", ""), record_prompt(record), record["output"])))

    def estimate(self, records: Sequence[Mapping[str, str]]) -> list[int]:
        """Return `count` of many records, quickly: off by the few tokens that merge at seams."""
        overhead: dict[str, int] = {}
        texts = []
        for record in records:
            if (system := record.get("system", "")) not in overhead:
                probe = {"system": system, "instruction": "x", "output": "x"}
                overhead[system] = self.count(probe) - 2
            texts += [record_prompt(record), record["output"]]
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [
            overhead[record.get("system", "")] + prompt + answer
            for record, prompt, answer in zip(records, lengths[::2], lengths[1::2], strict=True)
        ]

    def stop_ids(self) -> list[int]:
        """Return the ids that end a generated answer: eos and the template's stop words, ascending."""
        return sorted(self.template.get_stop_token_ids(self.tokenizer))

    @property
    def special_strings(self) -> list[str]:
        """The strings that this tokenizer turns into a control token wherever they stand."""
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]

    def encode(self, system: str, instruction: str, output: str) -> tuple[list[int], list[int]]:
        """Return `prompt_ids` and `answer_ids` of one record."""
        messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": output}]
        prompt, answer = self.template.encode_oneturn(self.tokenizer, messages, system or None)
        # efficient_eos: the template leaves the eos to the processor, which adds it to the last turn.
        return prompt, [*answer, self.tokenizer.eos_token_id] if self.template.efficient_eos else answer


def import_factory() -> Any:
    """Return a namespace with the three parts of LLaMA-Factory's data code that `ChatTemplate` needs."""
    from types import SimpleNamespace

    try:
        from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments
    except (ImportError, OSError, RuntimeError) as error:
        # llamafactory.data imports torchaudio without need. One built for another torch raises OSError
        # (libc10_cuda.so); torchvision's mismatch raises RuntimeError (operator torchvision::nms).
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"cannot import LLaMA-Factory ({type(error).__name__}: {reason}); install requirements.txt, with "
            "torch, torchvision and torchaudio from one index"
        ) from error
    return SimpleNamespace(
        TEMPLATES=TEMPLATES,
        get_template_and_fix_tokenizer=get_template_and_fix_tokenizer,
        DataArguments=DataArguments,
    )


@contextmanager
def quiet_factory() -> Iterator[None]:
    """Keep LLaMA-Factory, and through it transformers, from logging anything but errors in a `with` block.

    LLaMA-Factory logs to stdout, and its argument parser turns transformers' logging up for good.
    """
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("llamafactory")
    old = logger.level, transformers_logging.get_verbosity(), os.environ.get("LLAMAFACTORY_VERBOSITY")
    os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"  # read at import, and by the parser
    logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        logger.setLevel(old[0])
        transformers_logging.set_verbosity(old[1])
        if old[2] is None:
            del os.environ["LLAMAFACTORY_VERBOSITY"]
        else:
            os.environ["LLAMAFACTORY_VERBOSITY"] = old[2]
