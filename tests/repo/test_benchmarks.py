"""What the benchmarks count and compare is right; that they are fast is for them to show."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import document, gpu, growth, scoring, training
from mindlab.common.errors import UserError
from mindlab.finetune import factory
from tests.conftest import ROOT


def settings_of(name: str, n_records: int = 32, updates: int = 2) -> dict:
    return factory.load(
        ROOT / training.CONFIG, training.overrides(training.SIDES[name], n_records, updates, 42)
    )


def make_rows(tiny_glm: Path, folder: Path, **changes: object):
    """Write four records of the tiny GLM; return the settings of a run on them and the rows it would read."""
    from tests.tiny_glm import RECORDS

    folder.mkdir(exist_ok=True)
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    (folder / "records.json").write_text(json.dumps(RECORDS * 2), encoding="utf-8")
    info = {"few": {"file_name": "records.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="ascii")
    paths = {"model_name_or_path": str(tiny_glm), "dataset_dir": str(folder), "dataset": "few"}
    settings = factory.load(ROOT / training.CONFIG, {**paths, "template": "glm4", **changes})
    return settings, training.preprocess(settings)


def test_padding_is_not_counted_and_records_of_a_packed_row_are():
    padded = {"attention_mask": [1, 1, 1, 0, 0], "labels": [-100, 7, 8, -100, -100]}
    packed = {"attention_mask": [1, 1, 2, 2, 0], "labels": [-100, 7, -100, 9, -100]}
    unmasked = {"attention_mask": [1, 1, 1], "labels": [5, 6, 7]}  # the first is predicted from nothing
    found = training.count_tokens([padded, packed, unmasked])
    assert found == {"rows": 3, "positions": 13, "tokens": 10, "labels": 6}


def test_packed_and_unpacked_sides_read_the_same_tokens(tiny_glm, glm4_chat, tmp_path):
    from tests.tiny_glm import RECORDS

    _, packed = make_rows(tiny_glm, tmp_path, cutoff_len=512)
    _, single = make_rows(tiny_glm, tmp_path, cutoff_len=2048, packing=False, neat_packing=False)
    counts = [training.count_tokens(rows) for rows in (packed, single)]
    tokens = 2 * sum(map(glm4_chat.count, RECORDS))
    labels = 2 * sum(len(glm4_chat.encode("", "x", record["output"])[1]) for record in RECORDS)
    assert [(count["tokens"], count["labels"]) for count in counts] == [(tokens, labels)] * 2
    assert counts[0]["positions"] == 512 * counts[0]["rows"]
    assert (counts[1]["rows"], counts[1]["positions"]) == (4, tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("is_neat", [True, False])
def test_neat_packing_hides_a_record_from_its_neighbours(tiny_glm, glm4_chat, tmp_path, attention, is_neat):
    import torch
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask
    from transformers import AutoModelForCausalLM

    _, rows = make_rows(tiny_glm, tmp_path, cutoff_len=512, neat_packing=is_neat)
    model = AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.float32, attn_implementation=attention)
    collate = SFTDataCollatorWith4DAttentionMask(
        tokenizer=glm4_chat.tokenizer, template=glm4_chat.template, model=model, block_diag_attn=is_neat,
        attn_implementation=attention, neat_packing=is_neat,
    )  # fmt: skip
    batch = collate([rows[0]])
    batch.pop("labels")
    with torch.inference_mode():
        together = model.eval()(**batch).logits[0]
        differences = []
        starts = [i for i, place in enumerate(rows[0]["position_ids"]) if place == 0]
        for start, end in itertools.pairwise(starts[:5]):  # every place of the padding is 0
            alone = model(batch["input_ids"][:, start:end]).logits[0]
            differences.append((together[start:end] - alone).abs().max().item())
    assert len(differences) == 4
    if is_neat:
        assert max(differences) < 1e-4
    else:
        assert min(differences[1:]) > 1e-3


def test_every_side_is_a_valid_run_of_the_same_optimisation():
    same = (
        "lora_rank",
        "lora_target",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
        "stage",
    )
    same += (
        "model_name_or_path",
        "template",
        "dataset",
        "max_samples",
        "num_train_epochs",
        "seed",
        "use_cpu",
    )
    for name in training.SIDES:
        n_records, updates = 32, 2
        changes = training.overrides(training.SIDES[name], n_records, updates, 42)
        settings = factory.validate(ROOT / training.CONFIG, changes, ROOT)
        assert [settings.get(key) for key in same] == [settings_of("example").get(key) for key in same], name
        rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        if settings["packing"]:
            assert rows * settings["cutoff_len"] == training.TOKENS_AN_UPDATE, name
        else:
            assert rows == n_records / updates, name


def test_a_side_with_a_key_that_llamafactory_does_not_know_is_rejected():
    side = training.BEST.and_(group_by_length=True)  # transformers 4 had it
    with pytest.raises(UserError, match="group_by_length"):
        factory.validate(ROOT / training.CONFIG, training.overrides(side, 40, 2, 42), ROOT)


def test_the_ladder_leads_from_the_example_to_the_best_a_setting_a_step():
    steps = list(training.ladder().values())
    assert (steps[0], steps[-1]) == (training.EXAMPLE, training.BEST)
    assert len(set(map(str, steps))) == len(steps)
    assert replace(training.BEST, changes={}) == training.TWIN


def test_records_fill_their_updates_packed_to_either_length():
    # Rows of 1,023 take ten of 100 tokens, rows of 511 five: twenty an update either way.
    assert training.choose_records([100] * 90, 1) == 20
    assert training.choose_records([100] * 90, 3) == 60
    assert training.choose_records([300] * 90, 1) == 4  # two rows of three, but four rows of one
    assert training.choose_records([100] * 7, 1) == 7


def test_the_models_operations_are_counted_by_hand():
    config = {"hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"head_dim": 2, "num_key_value_heads": 1, "vocab_size": 5}
    # Products: q, k, v, o of 4 weights, three of 6, the output layer's 10. An adapter of rank 1: four of 4, three of 5.
    products, adapter = 4 * (16 + 18 + 10), 6 * (16 + 15)
    assert training.flops_a_token(config, 1, [1]) == products + adapter + 12 * 2 * 1
    assert training.flops_a_token(config, 1, [1, 3]) == products + adapter + 12 * 2 * 7 / 4
    assert training.flops_a_token(config, 2, [1]) == products + 2 * adapter + 12 * 2


def test_operations_of_the_profile_are_sorted_by_what_they_serve():
    kinds = {
        ("aten::mm", ((512, 576), (576, 1536))): "products of the layers",
        ("aten::mm", ((512, 576), (576, 99))): "output layer's products",
        ("aten::_log_softmax", ((512, 99),)): "loss over the vocabulary",
        ("aten::_softmax", ((1, 9, 512, 512),)): "attention",
        ("aten::mul", ((1, 9, 512, 512), ())): "attention",
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ((1, 9, 512, 64),)): "attention",
        ("aten::_fused_adamw_", ()): "optimiser",
        ("aten::copy_", ((512, 576),)): "copies and conversions",
        ("aten::silu", ((1, 512, 1536),)): "element-wise",
        ("Optimizer.step#AdamW.step", ()): training.PYTHON,
    }
    assert {case: training.kind_of(*case, 99) for case in kinds} == kinds


def test_a_row_is_paired_by_round_and_says_when_it_was_disturbed():
    quiet = {"other_load": 0.02, "peak_mb": 10.0}
    theirs = [quiet | {"seconds": 40.0}, quiet | {"seconds": 60.0}]
    ours = [quiet | {"seconds": 20.0}, quiet | {"seconds": 20.0}]
    losses = {"best": [1.0, 2.0], "example": [1.5, 1.5], "untrained": 3.0}
    row = training.compare("best", {"best": ours, "example": theirs}, losses, 1000)
    assert (row.low, row.ratio, row.high, row.ours, row.theirs) == (
        2.0,
        2.5,
        3.0,
        "50 tokens/s",
        "20 tokens/s",
    )
    assert row.note == "held-out loss 1.500 against 1.500, 3.000 untrained"
    theirs[1]["other_load"] = 1.5
    assert (
        "DISTURBED: up to 1.5"
        in training.compare("best", {"best": ours, "example": theirs}, losses, 1000).note
    )


# end of benchmarks/training.py


# benchmarks/document.py


@pytest.mark.parametrize("make", document.SECTIONS.values(), ids=document.SECTIONS)
def test_a_section_of_the_document_is_made_of_the_kept_results(make):
    assert make().count("|") > 10


def test_the_exponent_of_a_straight_line_is_one():
    assert growth.exponents([1, 4, 16], [2.0, 8.0, 32.0]) == {"all sizes": 1.0, "last two": 1.0}
    assert growth.exponents([1, 4, 16], [1.0, 4.0, 64.0])["last two"] == 2.0


@pytest.mark.parametrize("form", ["pointwise", "next_click"])
def test_both_sides_of_the_scoring_benchmark_give_the_same_scores(tiny_glm, form):
    from mindlab.llm.hf import HFEngine

    nothing, answers = [7, 8, 9], [11, 12]
    cases = [
        scoring.Case([7, 8, 20, 21, 22], [[30, 31, 32], [30, 40], [50]], [3, 4, 5]),
        scoring.Case([7, 8, 9], [[30, 40], [60, 61]], [4, 6]),  # no history
        scoring.Case([7, 8, 23, 24], [[50], [60, 61], [30, 31, 32]], [5, 6, 3]),
    ]
    ours = scoring.Ours(HFEngine(tiny_glm), nothing, answers).score(form, cases)
    flat = [(c.prefix, line, news) for c in cases for line, news in zip(c.lines, c.news, strict=True)]
    for batch in (1, 3):
        theirs = scoring.Theirs(str(tiny_glm), nothing, answers, batch).score(form, flat)
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert len(set(ours.round(4))) > 4


@pytest.mark.parametrize("name", gpu.TRAININGS)
def test_a_row_of_the_gpu_is_a_yaml_but_for_paths_length_and_its_name(name, tmp_path):
    config, changes = gpu.TRAININGS[name]
    plain, used = factory.load(ROOT / config), gpu.settings_of(name, tmp_path, 12)
    free = {
        "model_name_or_path",
        "dataset_dir",
        "output_dir",
        "max_steps",
        "logging_steps",
        "plot_loss",
        "use_cpu",
    }
    assert {key for key in used if used[key] != plain.get(key)} - free == set(changes)
    assert ("quantization_bit" in used) == ("QLoRA" in name)
    assert used.get("packing", False) == ("packed" in name)
    assert used.get("disable_gradient_checkpointing", False) == ("no checkpointing" in name)


def test_a_row_of_the_gpu_that_fails_says_why_in_a_line(tmp_path):
    found = gpu.attempt("--out", str(tmp_path), "--job", json.dumps(["train", "LoRA"]))
    assert list(found) == ["failed"]
    assert "\n" not in found["failed"]
    assert str(tmp_path) in found["failed"]
