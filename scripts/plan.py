"""Plan a fine-tuning or a scoring run before renting GPUs: memory, and hours on 1, 8 and 64 of them.

Without arguments: GLM-4-9B-Chat on H100, for MINDsmall and MINDlarge at their published sizes, with the tokens counted
on data/sample. Nothing is run and no GPU is needed; docs/planning.md has the formulas and what they were checked against.

Examples:
  python scripts/plan.py
  python scripts/plan.py --gpu RTX-4090 --config configs/train/glm4_9b_0414_qlora_sft.yaml --model GLM-4-9B-0414
  python scripts/plan.py --dataset data/processed/mind_dev_next_click_train.json
  python scripts/plan.py --data data/raw/MINDsmall --model models/glm-4-9b-chat-hf --tokenizer models/glm-4-9b-chat-hf
  python scripts/plan.py --measure      (score a few impressions here, and compare with the prediction)
  python scripts/plan.py --update docs/planning.md
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.finetune import factory
from mindlab.finetune import plan as planning
from mindlab.finetune.plan_sources import GPUS, MIND, MindSize
from mindlab.runs import kept
from mindlab.runs import plan_report as text

SAMPLE = "data/sample"
SMALL = "SmolLM2-135M"


def arguments() -> argparse.Namespace:
    """Return the command line, its values checked."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--model", default="glm-4-9b-chat-hf",
        help=f"folder with a config.json, or one of {', '.join(planning.MODELS)} (default the first)",
    )  # fmt: skip
    parser.add_argument("--gpu", default="H100-SXM", help=f"one of {', '.join(GPUS)} (default H100-SXM)")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/train/glm4_9b_chat_lora_sft.yaml"),
        help="training YAML whose batch, rank, epochs and lengths count (default GLM-4-9B-Chat's)",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        help="a MIND folder to count on and to plan for (default: the sample, scaled to MIND's sizes)",
    )
    parser.add_argument("--dataset", type=Path, help="a built JSON: plan its training alone")
    parser.add_argument(
        "--tokenizer",
        default="models/smollm2-135m",
        help="model folder whose tokenizer counts (default SmolLM2's)",
    )
    parser.add_argument("--template", help="its LLaMA-Factory template (default: told by its config.json)")
    parser.add_argument(
        "--utilisation", type=float, default=planning.Assumptions.utilisation,
        help="share of a GPU's peak that is reached (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--launches", type=float, default=1.0, metavar="TIMES",
        help="how many times longer than assumed the processor takes to launch a kernel (default 1; docs/performance.md "
        "has a machine of 3.3)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--measure", action="store_true", help="time SmolLM2 here instead, beside its prediction"
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="also write into FILE's marks")
    args = parser.parse_args()
    if args.gpu.upper() not in (names := {name.upper(): name for name in GPUS}):
        raise UserError(f"--gpu {args.gpu}: known are {', '.join(GPUS)}")
    args.gpu = names[args.gpu.upper()]
    if not 0 < args.utilisation <= 1:
        raise UserError(f"--utilisation {args.utilisation}: expected a share, above 0 and at most 1")
    if not 0 < args.launches <= 1000:
        raise UserError(
            f"--launches {args.launches:g}: expected how many times longer, above 0 and at most 1000"
        )
    if args.update and (args.json or args.measure or args.data or args.dataset):
        raise UserError("--update goes with the plan for MIND's published sizes alone")
    return args


def main() -> None:
    """Count, plan, print."""
    args = arguments()
    if args.measure:
        arch = planning.find_architecture(args.tokenizer)
        print(text.measure(arch, read_mind(args.data or SAMPLE), args.tokenizer, template_of(args)))
        return
    plan, parts = make(args)
    if args.update:  # what only the document shows
        parts["plan-gpus"] = text.gpu_table()
    print(json.dumps(plan, indent=1) if args.json else "\n\n".join(parts.values()))
    if args.update:
        for name, part in parts.items():
            kept.put(args.update, Path(name), part)
        print(args.update)


def make(args: argparse.Namespace) -> tuple[dict, dict[str, str]]:
    """Return the plan, and its parts in words by the name of their marks."""
    arch, gpu = planning.find_architecture(args.model), GPUS[args.gpu]
    training = planning.training_of(factory.load(args.config))
    assume = planning.Assumptions(utilisation=args.utilisation).with_launches(args.launches)

    from mindlab.prompts.chat import ChatTemplate
    from mindlab.runs import token_counts  # imports torch and LLaMA-Factory: seconds

    template = template_of(args)
    print("counting tokens ...", file=sys.stderr)
    chat = ChatTemplate.load(args.tokenizer, template)
    counted_by = f"counted with the tokenizer of {args.tokenizer}"
    if planning.find_architecture(args.tokenizer).vocabulary != arch.vocabulary:
        counted_by += f", not that of {arch.name}, which is not here (--tokenizer names its folder)"
    if args.dataset:
        records = token_counts.read_records(args.dataset, chat.count)
        work = [text.Work(args.dataset.name, [records], [], [])]
        plan = text.make_plan(arch, training, gpu, assume, work)
        return plan, {"plan": text.report(plan, counted_by)}

    mind = read_mind(args.data or SAMPLE)
    forms = token_counts.PROTOCOL_OF
    counted = [token_counts.records(mind, form, chat.count) for form in forms]
    readings = [
        token_counts.reading(
            mind,
            form,
            args.tokenizer,
            template,
            cutoff_len=training.cutoff_len,
            token_budget=text.TOKEN_BUDGET,
        )
        for form in forms
    ]
    sizes = [size_of(args.data, mind)] if args.data else MIND
    counted_by += f" on {args.data or SAMPLE}"
    work = text.works(counted, readings, sizes)
    plan = text.make_plan(arch, training, gpu, assume, work)
    last = f"{gpu.name} does not hold {arch.name} for scoring: no fleet of it scores a billion impressions."
    if plan["fits"]["scoring"]:
        small = planning.MODELS[SMALL], work[-1].readings
        stored = text.STORED.stat().st_size, pq.read_metadata(text.STORED).num_rows
        last = text.billion(arch, gpu, assume, sizes[-1], work[-1].readings, small, stored)
    return plan, {
        "plan": text.report(plan, counted_by),
        "plan-checks": text.all_checks(assume),
        "plan-billion": last,
    }


def template_of(args: argparse.Namespace) -> str:
    """Return the template to count with."""
    from mindlab.llm.options import template_of

    return args.template or template_of(args.tokenizer)


def size_of(name: str, mind) -> MindSize:
    """Return the size of a MIND that was read."""
    train, dev = mind.splits["train"], mind.splits["dev"]
    return MindSize(Path(name).name, len(train), len(set(train.users)), len(dev), int(dev.offsets[-1]))


if __name__ == "__main__":
    cli.run(main)
