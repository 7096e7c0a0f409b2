"""mindlab.finetune.plan: its counts are those of real models, its times and bytes are right by hand, its document is its output."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.finetune import plan
from mindlab.finetune.plan import GIB, MODELS, Architecture, Assumptions, Gpu, Reading, Records, Training
from mindlab.finetune.plan_sources import GPUS, MIND, QWENS, checks, llama2
from mindlab.llm.hf import HFEngine
from mindlab.recommenders.llm import LLMRanker
from mindlab.runs import plan_report, token_counts
from mindlab.runs.run import Work
from tests.asked import ask
from tests.conftest import ROOT

SMOLLM2 = ROOT / "models/smollm2-135m"
ASSUME = Assumptions()
GLM = MODELS["glm-4-9b-chat-hf"]
SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False, "attention_bias": True,
}  # fmt: skip
KINDS = [
    ("glm", {}),
    ("glm4", {}),
    ("llama", {}),
    ("llama", {"mlp_bias": True}),
    ("qwen2", {}),
    ("llama", {"tie_word_embeddings": True}),
]
# One unit of everything, so that seconds can be told by hand.
UNIT = Architecture("unit", 10, 1, 1, 2, 1, 1, 1, {"a": (3, 5), "b": (2, 2)})
SLOW = Gpu("slow", 100.0, 1e6, 1e9, "")
PLAIN = Assumptions(utilisation=0.5, bandwidth=0.5, launch_train=0, launch_score=0, overhead=7, network=10)


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
    return plan.architecture_of({"model_type": kind, **SHAPE, **more}, kind)


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_parameters_are_those_of_the_model(kind, more):
    assert shape_of(kind, **more).parameters == sum(p.numel() for p in model(kind, **more).parameters())


@pytest.mark.parametrize(
    ("name", "kind"), [("glm-4-9b-chat-hf", "glm"), ("GLM-4-9B-0414", "glm4"), ("SmolLM2-135M", "llama")]
)
def test_the_known_models_have_their_size(name, kind):
    shape = plan.SMOLLM2 if kind == "llama" else plan.GLM4
    made = model(kind, {**shape, "pad_token_id": None})
    assert MODELS[name].parameters == sum(p.numel() for p in made.parameters())
    inside = {id(p) for layer in made.model.layers for p in layer.parameters() if p.dim() == 2}
    assert MODELS[name].layer_weights == sum(p.numel() for p in made.parameters() if id(p) in inside)


@pytest.mark.parametrize("target", ["all", "q_proj,v_proj"])
@pytest.mark.parametrize("kind", ["glm", "llama"])
def test_lora_parameters_are_pefts(kind, target):
    arch = shape_of(kind)
    made = adapted(kind, list(arch.targets(target)))
    assert arch.lora_parameters(8, target) == sum(p.numel() for p in made.parameters() if p.requires_grad)


def test_lora_of_glm_4_is_what_was_published():
    assert GLM.lora_parameters(8) == 23_797_760
    with pytest.raises(UserError, match="lora_target 'query_key_value': glm-4-9b-chat-hf has q_proj"):
        GLM.lora_parameters(8, "query_key_value")


@pytest.mark.parametrize("kind", ["glm", "glm4", "llama"])
def test_training_operations_are_those_that_torch_counts(kind):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    arch, tokens = shape_of(kind), 32
    angles = 2 * tokens * (16 if kind == "llama" else 8) // 2  # of the positions: a product of two matrices
    made = adapted(kind, list(arch.linears), "cpu")
    ids = torch.randint(0, 512, (1, tokens))
    counted = []
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        loss = made(input_ids=ids, labels=ids, use_cache=False).loss
    counted.append(counter.get_total_flops() - angles)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    counted.append(counter.get_total_flops())
    # The kernel of attention on a CPU is not one that torch counts, so no pairs here.
    training = Training(has_checkpointing=False)
    assert plan.training_flops(arch, training, tokens, 0) == sum(counted)
    again = plan.training_flops(arch, Training(), tokens, 0) - sum(counted)
    assert again == counted[0] - 2 * arch.head_weights * tokens


def test_attention_operations_are_those_that_torch_counts():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    arch, tokens = shape_of("llama", num_key_value_heads=8), 24
    made = model("llama", device="cpu", num_key_value_heads=8)
    made.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        made(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    angles = 2 * tokens * 16 // 2
    assert counter.get_total_flops() - angles == arch.forward_flops(tokens, tokens**2, tokens)


@pytest.mark.parametrize("target", ["all", "q_proj,v_proj"])
@pytest.mark.parametrize("kind", ["glm", "glm4", "llama"])
def test_activations_are_what_autograd_keeps(kind, target):
    kept = {}
    arch = shape_of(kind)
    for layers in (2, 3):
        made = adapted(kind, list(arch.targets(target)), "cpu", num_hidden_layers=layers)
        kept[layers] = [kept_bytes(made, tokens) for tokens in (64, 128)]
    # Differences leave what one layer keeps of a token: no embedding, no loss, no adapter weights.
    counted = (kept[3][1] - kept[3][0] - kept[2][1] + kept[2][0]) / 64
    assert arch.activation_bytes(8, target) == pytest.approx(counted, rel=0.02)
    assert abs(arch.activation_bytes(8, target) / counted - 1) < abs(arch.activation_bytes(0) / counted - 1)


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
    training = Training(batch=2, rank=1, cutoff_len=4, has_checkpointing=False)
    # weights: 2 layers of 15 + 4, 2 norms each, embedding and head of 10, a last norm, at 2 bytes
    # adapter: 2 layers x (8 + 4) x 16. A token and layer keeps 4 x 2 norms + 2 x (2 + 2 + 3) + 4 + 2 x (3 + 1 + 2 + 1)
    found = plan.training_memory(UNIT, training, PLAIN)
    assert found == {
        "weights": 126, "adapter, gradients, Adam": 384, "activations": 8 * 2 * 40, "logits": 14 * 10 * 8,
        "overhead": 7, "total": 126 + 384 + 640 + 1120 + 7,
    }  # fmt: skip
    checkpointed = plan.training_memory(UNIT, replace(training, has_checkpointing=True), PLAIN)
    assert checkpointed["activations"] == 2 * 1 * 8 * 2 + 8 * 40
    four = plan.training_memory(UNIT, replace(training, bits=4), PLAIN)
    assert four["weights"] == pytest.approx(38 * 4.127 / 8 + (63 - 38) * 2, rel=1e-4)


def test_seconds_by_hand():
    training = Training(accumulation=4, rank=1, has_checkpointing=False, epochs=2)
    records = Records("x", 80, np.array([1, 3]))  # 2 tokens and 5 / 2 pairs each on average
    assert records.micro_batch(training) == (2, 2.5, 80)
    # 38 layer weights, 10 of the head, an adapter of 24; attention: 4 x 2 layers x 1 wide
    operations = 2 * 48 * 2 + 8 * 2.5 + 2 * 24 * 2 + (2 * 48 * 2 + 8 * 5 + 4 * 24 * 2)
    assert plan.training_flops(UNIT, training, 2, 2.5) == operations
    each = operations / 50
    assert plan.micro_batch_seconds(UNIT, training, SLOW, PLAIN, 2, 2.5) == pytest.approx(each)
    assert plan.training_seconds(UNIT, training, records, SLOW, PLAIN) == pytest.approx(40 * 4 * each)
    # two GPUs: half the accumulation, and 4 x 24 bytes around the ring in each of 40 updates
    assert plan.training_seconds(UNIT, training, records, SLOW, PLAIN, 2) == pytest.approx(
        40 * (2 * each + 9.6)
    )
    # more GPUs than micro-batches in an update: the batch grows
    many = plan.training_seconds(UNIT, training, records, SLOW, PLAIN, 16)
    assert many == pytest.approx(10 * (each + 2 * 15 / 16 * 9.6))
    assert plan.training_seconds(UNIT, replace(training, max_steps=3), records, SLOW, PLAIN) == pytest.approx(
        12 * each
    )
    slow_host = replace(PLAIN, launch_train=100)
    assert plan.micro_batch_seconds(UNIT, training, SLOW, slow_host, 2, 2.5) == 2 * 2 * 100
    unpacked = plan.micro_batch_seconds(
        UNIT, replace(training, bits=4), replace(SLOW, bandwidth=10), slow_host, 2, 2.5
    )
    assert unpacked == pytest.approx(400 + 2 * 38 * (4.127 / 8 + 4) / 5, rel=1e-4)


def test_rows_are_padded_cut_and_packed_as_the_collator_does():
    records = Records("x", 100, np.array([10, 30, 5000]))
    assert records.micro_batch(Training(cutoff_len=50))[0] == 30  # the mean of 10, 30 and 50
    tokens, _, number = records.micro_batch(Training(batch=4, cutoff_len=50))
    assert number == 25
    longest = [max(row) for row in np.array(np.meshgrid(*[[10, 30, 50]] * 4)).reshape(4, -1).T]
    assert tokens == pytest.approx(4 * np.mean(longest), rel=0.02)
    assert records.micro_batch(Training(batch=2, cutoff_len=50, is_packed=True)) == (
        100,
        2500,
        100 * 30 / 50 / 2,
    )


def test_scoring_seconds_by_hand():
    reading = Reading("x", prefix=3, candidate=2, candidates=4, pairs=6, candidate_pairs=10, scored=8)
    operations = 2 * 38 * 11 + 2 * 10 * 8 + 8 * 46
    assert (reading.tokens, reading.all_pairs) == (11, 46)
    assert plan.scoring_seconds(UNIT, reading, SLOW, PLAIN) == operations / 50
    launched = replace(PLAIN, launch_score=50)
    assert plan.scoring_seconds(UNIT, reading, SLOW, launched) == 100
    assert plan.scoring_seconds(UNIT, reading, SLOW, launched, is_batched=True) == operations / 50
    answer = replace(reading, generated=2)
    assert plan.scoring_seconds(UNIT, answer, SLOW, launched) == 300
    assert plan.scoring_seconds(UNIT, answer, SLOW, launched, is_batched=True) > operations / 50


def test_fewer_candidates_and_a_kept_prefix_read_less():
    reading = Reading("x", prefix=6, candidate=2, candidates=7, pairs=21, candidate_pairs=15, scored=14)
    few = reading.with_candidates(2)
    assert (few.tokens, few.scored, few.all_pairs) == (10, 4, 51)
    kept = reading.with_candidates(2, is_cached=True)
    assert (kept.tokens, kept.scored, kept.all_pairs) == (4, 4, 30)
    one_question = Reading("y", 6, 0, 7, 36, 0, 1)
    assert one_question.with_candidates(2) is one_question


def test_scoring_memory_is_what_the_engine_fills():
    from transformers import AutoConfig

    from mindlab.llm.hf import fitting_tokens

    config = AutoConfig.for_model("glm", **plan.GLM4)
    for prefix in (10, 1000):  # the MLP is more, the attention to the prefix is more
        free = 2.5 * GIB
        tokens = fitting_tokens(config, free, prefix, plan.HEAD_ROWS)
        assert 64 <= tokens < 8192
        held, more = (
            plan.scoring_memory(GLM, replace(ASSUME, overhead=0), n, prefix)["total"] - GLM.weight_bytes()
            for n in (tokens, tokens + 1)
        )
        assert held <= 0.8 * free < more


def test_published_figures_are_met():
    found = list(checks(ASSUME))
    assert sum(c.is_calibration for c in found) == 3
    for c in found:
        if not c.unit:
            assert c.error == 0, c.what
        elif c.unit in ("GB", "s"):
            assert abs(c.error) < 0.5, c.what
    assert np.median([abs(c.error) for c in found if c.unit == "GB"]) <= 0.12
    assert np.median([abs(c.error) for c in found if c.unit == "s"]) <= 0.2
    assert all(abs(c.error) < 0.1 for c in found if c.is_calibration)
    doubled = [
        c.error for c in checks(replace(ASSUME, utilisation=0.8)) if c.unit == "s" and "8,192" in c.what
    ]
    assert min(doubled) < -0.2  # the checks notice a wrong utilisation


def test_shapes_of_the_published_models():
    assert round(llama2("x", 5120, 13824, 40, 40).parameters / 1e9, 2) == 13.02
    assert round(QWENS["1.8B"].parameters / 1e9, 2) == 1.84
    assert round(QWENS["14B"].parameters / 1e9, 2) == 14.17


def test_a_small_model_is_not_planned_like_a_large_one():
    small = MODELS["SmolLM2-135M"]
    assert small.weight_bytes() == small.parameters * 2
    assert GLM.weight_bytes(4) / GIB == pytest.approx(6.23, abs=0.01)
    assert GLM.kv_bytes(1) == 40960


def test_training_settings_come_from_the_yaml():
    from mindlab.finetune import factory

    glm = plan.training_of(factory.load(ROOT / "configs/train/glm4_9b_chat_qlora_sft.yaml"))
    assert glm == Training(1, 8, 8, "all", 1.0, -1, 1024, True, 4, False)
    small = plan.training_of(factory.load(ROOT / "configs/train/smollm2_135m_lora_sft.yaml"))
    assert (small.max_steps, small.has_checkpointing, small.is_packed, small.rank) == (75, False, True, 4)
    # What is not written is LLaMA-Factory's and transformers' default.
    assert plan.training_of({}) == Training(8, 1, 8, "all", 3.0, -1, 2048, True, 16, False)
    with pytest.raises(UserError, match="finetuning_type 'full'"):
        plan.training_of({"finetuning_type": "full"})


def test_an_architecture_is_found_by_name_or_folder(tmp_path):
    assert plan.find_architecture("zai-org/GLM-4-9b-chat-HF") is GLM
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE}))
    assert plan.find_architecture(str(tmp_path)).parameters == shape_of("llama").parameters
    for text, message in (
        ("{", "not JSON"),
        ('{"model_type": "bert"}', "knows glm"),
        ('{"model_type": "glm"}', "has no 'hidden"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            plan.find_architecture(str(tmp_path))
    with pytest.raises(UserError, match="not one of glm-4-9b-chat-hf"):
        plan.find_architecture("no/such-model")


def test_the_counting_engine_by_hand():
    engine = token_counts.CountingEngine(token_budget=4)
    assert engine.line_log_probs([1, 2, 3], [[5, 6], [5, 7, 8], [9]]).tolist() == [0] * 3
    assert engine.prefix.tolist() == [3, 1 + 2 + 3, 1]
    # The last token of a line is not read. At most 4 tokens a pass: first 5, then 5 7 beside a line of nothing.
    assert engine.lines.tolist() == [1 + 2, (3 + 1) + (2 * 3 + 2 * 2**2), 2]
    assert (engine.context, engine.scored, engine.generated, engine.tokens_read) == (3, 2 + 3, 0, 6)
    assert engine.flops(UNIT) == 2 * 38 * 6 + 2 * 10 * 5 + 8 * 24
    engine.reset()
    assert engine.last_logits([1, 2, 4], [[5], [6]], [7, 70_000]).tolist() == [[0, 0]] * 2
    assert engine.prefix.tolist() == [1, 2 + 1, 1]  # 1 2 was kept
    assert engine.lines.tolist() == [2, 2 * 3 + 2 * 1, 1]
    assert (engine.context, engine.scored) == (3, 0)
    engine.reset()
    engine.answer([1] * 4, [8], [5, 6], [0])
    assert engine.prefix.tolist() == [4, 10, 1]
    assert (engine.scored, engine.generated) == (1, 3)  # of the head, Yes, a full stop, the end


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("form", token_counts.PROTOCOL_OF)
def test_the_counting_engine_counts_what_the_engine_reads(form, budget, tiny_glm, glm4_chat):
    protocol = token_counts.PROTOCOL_OF[form]
    asked = ask(str(ROOT / "data/sample"), protocol, form, str(tiny_glm), "glm4", token_budget=budget)
    engine, counting = HFEngine(tiny_glm, token_budget=budget), token_counts.CountingEngine(budget)
    scored = []  # rows that go through the output layer
    engine.model.get_output_embeddings().register_forward_hook(lambda *at: scored.append(at[2].shape[-2]))
    answer_as_trained(engine, glm4_chat)
    methods = [
        replace(asked.method, make=lambda one=one: LLMRanker(asked.options, engine=one))
        for one in (engine, counting)
    ]
    read, counted = (Work(asked.request, method, 42) for method in methods)
    counted.mind = read.mind
    rows = read.rows[:6]  # by reader
    assert len(np.unique(read.whole.history[rows])) < 6
    for first in (True, False):  # with the term without history, and without
        before = engine.tokens_read, counting.tokens_read
        counting.reset()
        scored.clear()
        read(rows), counted(rows)
        n_read, n_counted = engine.tokens_read - before[0], counting.tokens_read - before[1]
        assert n_read == n_counted > 0
        assert sum(scored) == counting.scored + counting.generated
        if form != "likes_dislikes":
            assert n_counted == counting.prefix[0] + counting.lines[0]
            assert counting.prefix[0] < counting.context, first  # a prefix was kept


def answer_as_trained(engine, chat):
    """Make an engine's model generate "Yes." and the end, as the answers of its template begin."""
    ids, stops = chat.answer_ids("", "?", "Yes."), chat.stop_ids()
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    ids = [*ids[:end], stops[0]]
    generate = engine.model.generate

    def forced(inputs, **how):
        n = inputs.shape[1]
        return generate(inputs, prefix_allowed_tokens_fn=lambda _, so_far: [ids[len(so_far) - n]], **how)

    engine.model.generate = forced


@pytest.mark.model
def test_records_are_counted_as_the_builder_makes_them(tmp_path):
    from mindlab.data.mind import read_mind
    from mindlab.finetune.alpaca import BuildOptions, build

    mind = read_mind(ROOT / "data/sample")
    count = len  # a record has four keys; what counts here is how many records there are
    for form in ("next_click", "pointwise"):
        made = build(mind, BuildOptions("dev", form), tmp_path)["datasets"][f"mind_dev_{form}_train"][
            "records"
        ]
        records, by_impression, by_reader = token_counts.records(mind, form, count)
        # The builder draws the few records without history with another seed.
        assert records.count == pytest.approx(made, rel=0.01)
        assert by_impression == records.count / 3000
        assert by_reader == pytest.approx(records.count / len(set(mind.splits["train"].users)))
        some, *_ = token_counts.records(mind, form, count, readers=200)
        assert some.count == pytest.approx(made, rel=0.15)
    built = token_counts.read_records(
        tmp_path / "processed/mind_dev_next_click_train.json", count, sampled=10
    )
    assert (built.name, built.lengths.tolist()) == ("mind_dev_next_click_train", [4] * 10)


def test_a_wrong_data_set_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        token_counts.read_records(tmp_path / "none.json", len)
    for text in ("{", '{"a": 1}', "[]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json: (expected a JSON list|holds no record)"):
            token_counts.read_records(tmp_path / "x.json", len)


def test_published_sizes_scale_the_sample():
    counted = [
        (Records("next_click", 1, np.array([9])), 0.5, 2.0),
        (Records("pointwise", 1, np.array([9])), 0.5, 2.0),
    ]
    readings = [Reading("likes_dislikes", 5, 0, 3, 15, 0, 1), Reading("pointwise", 5, 1, 3, 15, 6, 0)]
    small, large = plan_report.works(counted, readings, MIND)
    assert [r.count for r in small.records] == [100_000, 156_965 / 2]
    assert small.impressions == [31_393, 73_152]  # the tutorial's own test set
    assert large.impressions[1] == 376_471 + 2_370_727
    assert large.readings[1].candidates == pytest.approx(37.41, abs=0.01)


def test_what_a_gpu_does_not_hold_has_no_hours():
    work = [
        plan_report.Work(
            "w",
            [Records("pointwise", 1000, np.array([100]))],
            [Reading("pointwise", 5, 1, 3, 15, 6, 0)],
            [10],
        )
    ]
    made = plan_report.make_plan(GLM, Training(), GPUS["T4"], ASSUME, work)
    assert made["fits"] == {"LoRA": False, "QLoRA": True, "scoring": False}
    text = plan_report.report(made, "by hand")
    row = next(line for line in text.splitlines() if line.startswith("| w "))
    assert [cell.strip() == "-" for cell in row.split("|")[5:-1]] == [True] * 3 + [False] * 3 + [True]
    assert "T4 (16 GiB) holds QLoRA. T4 (16 GiB) does not hold LoRA, scoring." in text
    assert "T4 has no bfloat16" in text
    assert "1 epoch(s)" in text
    steps = plan_report.make_plan(GLM, Training(max_steps=75), GPUS["T4"], ASSUME, work)
    assert "75 updates, however many records" in plan_report.report(steps, "by hand")
    assert "no bfloat16" not in plan_report.report({**made, "gpu": vars(GPUS["L40S"])}, "by hand")


def test_a_slow_processor_delays_short_records_and_not_long_ones():
    slow, gpu = ASSUME.with_launches(3.3), GPUS["H100-SXM"]
    short, long = (
        [plan.micro_batch_seconds(GLM, Training(), gpu, assume, n, n**2 / 2) for assume in (ASSUME, slow)]
        for n in (120, 8192)
    )
    assert short[1] == pytest.approx(3.3 * short[0])
    assert long[1] == long[0]
    assert slow.launch_score == pytest.approx(3.3 * ASSUME.launch_score)


def script(*words):
    command = [sys.executable, ROOT / "scripts/plan.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "H1000"], "error: --gpu H1000: known are H100-SXM, A100-80GB"),
        (["--utilisation", "40"], "error: --utilisation 40.0: expected a share"),
        (["--launches", "0"], "error: --launches 0: expected how many times longer"),
        (["--model", "no-such"], "error: no-such: no such model folder, and not one of"),
        (["--config", "configs/none.yaml"], "error: configs/none.yaml: no such file"),
        (["--update", "docs/planning.md", "--json"], "error: --update goes with"),
    ],
)
def test_a_users_mistake_is_one_line(words, message):
    done = script(*words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr


@pytest.mark.model
def test_the_plan_of_a_built_file_as_json(tmp_path):
    records = [{"system": "", "instruction": "Pick one.", "input": "", "output": "A"}] * 30
    (tmp_path / "mine.json").write_text(json.dumps(records))
    done = script("--dataset", tmp_path / "mine.json", "--model", SMOLLM2, "--gpu", "rtx-4090", "--json")
    made = json.loads(done.stdout)
    assert made["gpu"]["name"] == "RTX-4090"
    assert made["model"]["parameters"] == 134_515_008
    assert [(row["format"], row["records"]) for row in made["train"]] == [("mine", 30)]
    assert made["score"] == []


@pytest.mark.model
@pytest.mark.slow
def test_a_measurement_is_predicted():
    from mindlab.data.mind import read_mind

    text = plan_report.measure(
        MODELS["SmolLM2-135M"], read_mind(ROOT / "data/sample"), str(SMOLLM2), "smollm2", 1
    )
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| next_click") or line.startswith("| pointwise")
    ]
    assert len(rows) == 3
    errors = [int(row.split("|")[-2].strip().rstrip("%")) for row in rows[1:]]
    assert all(abs(error) < 100 for error in errors)
