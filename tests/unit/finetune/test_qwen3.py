"""The Qwen3 YAML trains a random Qwen3, and what it trained scores: the same ids in both."""

import json

import numpy as np
import pytest

from mindlab.data.mind import read_mind
from mindlab.finetune import factory
from mindlab.finetune.alpaca import BuildOptions, build, make_budget
from mindlab.llm.options import template_of
from mindlab.tasks import Dev
from tests.asked import ask
from tests.conftest import ROOT
from tests.tiny_glm import SPLIT

CONFIG = ROOT / "configs/train/qwen3_0_6b_lora_sft_next_topic.yaml"
CHATML = (
    "{% for item in messages %}<|im_start|>{{ item['role'] }}\n{{ item['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory):
    """A random Qwen3 with two small layers, and a tokenizer of its design."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    inner = Tokenizer(models.BPE(byte_fallback=False))
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    inner.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator(read_mind(ROOT / "data/sample").news.title[:500].tolist(), trainer)
    inner.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=specials[1:2],
        chat_template=CHATML,
    )
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = AutoConfig.for_model("qwen3", vocab_size=(len(tokenizer) + 63) // 64 * 64, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_yaml_trains_and_its_adapter_scores(tiny_qwen3, tmp_path):
    assert template_of(tiny_qwen3) == factory.load(CONFIG)["template"] == "qwen3_nothink"
    mind = read_mind(ROOT / "data/sample")
    counted = {"model": str(tiny_qwen3), "template": "qwen3_nothink", "cutoff_len": 1024}
    options = BuildOptions("dev", "next_topic", limit=40, **counted)
    build(mind, options, tmp_path / "data", make_budget(options))
    overrides = {
        "model_name_or_path": str(tiny_qwen3), "dataset_dir": str(tmp_path / "data"), "use_cpu": True, "bf16": False,
        "output_dir": str(tmp_path / "adapter"), "max_steps": 3, "preprocessing_num_workers": 1,
    }  # fmt: skip
    adapter = factory.train(CONFIG, overrides, root=ROOT)
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 16
    asked = ask(str(ROOT / "data/sample"), "dev", "next_topic", str(tiny_qwen3), "qwen3_nothink", limit=3)
    scores = []
    for weights in (None, str(adapter)):
        work = asked.but(adapter=weights).work()
        scores.append(work(work.rows)["score"].to_numpy())
    assert np.isfinite(scores).all()
    assert len(scores[0]) == len(Dev().splits(mind)["test"].take(work.rows).news)
    assert not np.array_equal(*scores)
