"""mindlab.finetune.plan: its counts are those of real models, its bytes are right by hand and beside the engine's."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.finetune import plan
from mindlab.finetune.alpaca import BuildOptions, build
from mindlab.finetune.plan import GIB, Training
from tests.conftest import ROOT

SMOLLM2 = ROOT / "models/smollm2-135m"
SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False, "attention_bias": True,
}  # fmt: skip


def model(kind, shape=SHAPE, device="meta", **more):
    """Return transformers' own model of a shape; on the meta device it has real modules and takes no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{"pad_token_id": 0, "eos_token_id": [0], **shape, **more})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def adapted(kind, targets, device="meta", **more):
    """Return a model with LoRA of rank 8 as LLaMA-Factory sets it up: bf16 weights, float32 adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.device(device):
        made = model(kind, device=device, **more).to(torch.bfloat16)
        made = get_peft_model(made, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    made.enable_input_require_grads()
    return made


def shape_of(kind, **more):
    return plan.Shape(kind, model(kind, **more))


def test_the_known_models_have_their_published_size():
    shape = plan.shape_of("zai-org/glm-4-9b-chat-hf")
    assert shape.parameters == 9_399_951_360  # LLaMA-Factory's log in its issue 5025
    assert shape.lora_parameters(8) == 23_797_760
    assert shape.weight_bytes(4) / GIB == pytest.approx(6.23, abs=0.01)
    with pytest.raises(UserError, match=r"lora_target 'query_key_value': .* has q_proj"):
        shape.lora_parameters(8, "query_key_value")


@pytest.mark.parametrize("target", ["all", "q_proj,v_proj"])
@pytest.mark.parametrize("kind", ["glm", "llama", "qwen3"])
def test_lora_parameters_are_pefts(kind, target):
    shape = shape_of(kind)
    names = list(shape.linears) if target == "all" else target.split(",")
    made = adapted(kind, names)
    assert shape.lora_parameters(8, target) == sum(p.numel() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("target", ["all", "q_proj,v_proj"])
@pytest.mark.parametrize("kind", ["glm", "glm4", "llama"])
def test_activations_are_what_autograd_keeps(kind, target):
    kept, shape = {}, shape_of(kind)
    names = list(shape.linears) if target == "all" else target.split(",")
    for layers in (2, 3):
        made = adapted(kind, names, "cpu", num_hidden_layers=layers)
        kept[layers] = [kept_bytes(made, tokens) for tokens in (64, 128)]
    # Differences leave what one layer keeps of a token: no embedding, no loss, no adapter weights.
    counted = (kept[3][1] - kept[3][0] - kept[2][1] + kept[2][0]) / 64
    # The last norm counts as a third of a layer's here, of which a real model has dozens.
    assert shape.activation_bytes(8, target) == pytest.approx(counted, rel=0.08)
    assert abs(shape.activation_bytes(8, target) / counted - 1) < abs(shape.activation_bytes(0) / counted - 1)


def kept_bytes(made, tokens):
    """Return the bytes of the distinct storages that autograd keeps in a forward pass, weights left out."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in made.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    ids = torch.randint(0, 512, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        made(input_ids=ids, labels=ids, use_cache=False)
    return sum(size for size, _ in seen.values())


def test_memory_by_hand():
    shape, training = shape_of("llama", attention_bias=False), Training(batch=2, rank=1, cutoff_len=4)
    found = plan.training_memory(shape, training)
    assert found["weights"] == 2 * shape.parameters
    inputs_and_outputs = 64 + 128 + 2 * (64 + 32) + 128 + 64 + 2 * (64 + 160) + 160 + 64
    assert found["adapter, gradients, Adam"] == 16 * 3 * inputs_and_outputs
    assert found["logits"] == 14 * 512 * 8
    each = shape.activation_bytes(1) * 8
    assert found["activations"] == 2 * 64 * 8 * 3 + each
    assert found["total"] == sum(value for part, value in found.items() if part != "total")
    whole = plan.training_memory(shape, replace(training, has_checkpointing=False))
    assert whole["activations"] == 3 * each
    four = plan.training_memory(shape, replace(training, bits=4))
    rest = shape.parameters - shape.layer_weights
    assert four["weights"] == pytest.approx(shape.layer_weights * 4.127 / 8 + rest * 2, rel=1e-4)


def test_scoring_memory_is_what_the_engine_fills():
    from mindlab.llm.hf import fitting_tokens

    shape = plan.shape_of("glm-4-9b-chat-hf")
    for prefix in (10, 1000):  # the MLP is more, the attention to the prefix is more
        free = 2.5 * GIB
        tokens = fitting_tokens(shape.config, free, prefix, plan.HEAD_ROWS)
        assert 64 <= tokens < plan.TOKENS_A_PASS
        held, more = (
            plan.scoring_memory(shape, prefix, n)["total"] - shape.weight_bytes() - plan.OVERHEAD
            for n in (tokens, tokens + 1)
        )
        assert held <= 0.8 * free < more


def test_training_settings_come_from_the_yaml():
    from mindlab.finetune import factory

    glm = Training.of(factory.load(ROOT / "configs/train/glm4_9b_chat_qlora_sft.yaml"))
    assert (glm.batch, glm.rank, glm.cutoff_len, glm.bits, glm.method) == (1, 8, 1024, 4, "QLoRA")
    small = Training.of(factory.load(ROOT / "configs/train/smollm2_135m_lora_sft.yaml"))
    assert (small.has_checkpointing, small.is_packed, small.rank) == (False, True, 4)
    assert Training.of({}) == Training()  # LLaMA-Factory's and transformers' defaults
    for settings, message in (
        ({"finetuning_type": "full"}, "finetuning_type 'full'"),
        ({"lora_rank": -1}, "lora_rank: -1"),
        ({"cutoff_len": "long"}, "cutoff_len: 'long'"),
    ):
        with pytest.raises(UserError, match=message):
            Training.of(settings)


def test_a_shape_is_found_by_name_or_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE}))
    assert plan.shape_of(str(tmp_path)).parameters == shape_of("llama").parameters
    for text, message in (
        ("{", "not JSON"),
        ('{"model_type": "no such"}', "makes no model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "makes no model"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            plan.shape_of(str(tmp_path))
    with pytest.raises(UserError, match="not one of glm-4-9b-chat-hf"):
        plan.shape_of("no/such-model")


def test_records_are_counted_as_the_builder_makes_them(tmp_path):
    mind = read_mind(ROOT / "data/sample")
    for form in ("next_topic", "pointwise"):
        made = build(mind, BuildOptions("dev", form), tmp_path)["datasets"][f"mind_dev_{form}_train"]
        each, length = plan.training_tokens(mind, form, lambda record: len(record["input"]), sampled=50)
        assert each == pytest.approx(made["records"] / 3000)
        assert 100 < length < 3000


def script(*words):
    command = [sys.executable, "scripts/plan.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no-such"], "error: no-such: no such model folder, and not one of"),
        (["--config", "configs/none.yaml"], "error: configs/none.yaml: no such file"),
    ],
)
def test_a_users_mistake_is_one_line(words, message):
    done = script(*words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.model
def test_the_plan_as_json():
    made = json.loads(script("--model", SMOLLM2, "--json").stdout)
    assert made["parameters"] == 134_515_008
    assert {row["data"] for row in made["training"]} == set(plan.MIND)
    assert all(hours > 0 for row in made["training"] for hours in row["hours"].values())
