"""What a fine-tuning or a scoring takes, before a GPU is rented: memory by formula, hours by rates that were measured.

Nothing is run and no GPU is needed; docs/planning.md has the formulas, and what was measured beside them.

Examples:
  python scripts/plan.py
  python scripts/plan.py --config configs/train/glm4_9b_0414_qlora_sft.yaml --model GLM-4-9B-0414
  python scripts/plan.py --data data/raw/MINDsmall --model models/glm-4-9b-chat-hf --tokenizer models/glm-4-9b-chat-hf
"""

import json
from pathlib import Path

from mindlab.common import cli
from mindlab.data.mind import read_mind
from mindlab.finetune import factory, plan
from mindlab.llm.options import template_of
from mindlab.prompts import PROMPTS
from mindlab.prompts.chat import ChatTemplate


def main() -> None:
    """Count, plan, print."""
    parser = cli.parser(__doc__)
    known = ", ".join(plan.KNOWN)
    parser.add_argument(
        "--model", default="glm-4-9b-chat-hf", help=f"folder with a config.json, or one of {known}"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("configs/train/glm4_9b_chat_lora_sft.yaml"),
        help="training YAML whose batch, rank and lengths count (default GLM-4-9B-Chat's)",
    )  # fmt: skip
    parser.add_argument("--data", help="a MIND folder (default: data/sample, scaled to MIND's sizes)")
    parser.add_argument("--tokenizer", default="models/smollm2-135m", help="folder whose tokenizer counts")
    parser.add_argument("--template", help="its LLaMA-Factory template (default: told by its config.json)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    args = parser.parse_args()
    training = plan.Training.of(factory.load(args.config))
    shape = plan.shape_of(args.model)
    memory = {
        training.method: plan.training_memory(shape, training),
        "scoring": plan.scoring_memory(shape, training.cutoff_len),
    }
    chat = ChatTemplate.load(args.tokenizer, args.template or template_of(args.tokenizer))
    mind = read_mind(args.data or "data/sample")
    sizes = (
        {args.data: tuple(len(mind.splits[part]) for part in ("train", "dev"))} if args.data else plan.MIND
    )
    rows = []
    for form in (name for name, prompt in PROMPTS.items() if prompt.trains and not prompt.shows_summary):
        each, tokens = plan.training_tokens(mind, form, chat.count)
        for data, (n_train, _) in sizes.items():
            read = each * n_train * tokens * training.epochs
            hours = {
                f"{r.what}, {r.gpu}": read / r.tokens_a_second / 3600
                for r in plan.RATES
                if r.what != "scoring"
            }
            rows.append(
                {"data": data, "format": form, "records": each * n_train, "tokens": tokens, "hours": hours}
            )
    if args.json:
        print(json.dumps({"parameters": shape.parameters, "memory": memory, "training": rows}, indent=1))
        return
    print(f"{args.model}: {shape.parameters:,} parameters; tokens counted with {args.tokenizer}\n")
    for what, parts in memory.items():
        total = parts["total"] / plan.GIB
        fits = [name for name, gib in plan.GPUS.items() if total <= gib]
        print(
            f"{what}: {total:.1f} GiB at {training.cutoff_len:,} tokens; fits {', '.join(fits) or 'no card here'}"
        )
        print(
            "   "
            + ", ".join(f"{part} {value / plan.GIB:.2f}" for part, value in parts.items() if part != "total")
        )
    print("\nHours of training by measured rates, for a model of some 8 to 9 billion parameters:")
    for row in rows:
        print(f"{row['data']}, {row['format']}: {row['records']:,.0f} records of {row['tokens']:.0f} tokens")
        print("   " + ", ".join(f"{name} {hours:.1f} h" for name, hours in row["hours"].items()))


if __name__ == "__main__":
    cli.run(main)
