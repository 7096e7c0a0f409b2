"""Turn MIND into Alpaca JSON for LLaMA-Factory.

Writes OUT/processed/*.json, their entries in OUT/dataset_info.json, and a manifest. With --model and
--template every sample is measured in tokens as LLaMA-Factory will count them, and made to fit
--cutoff-len by leaving titles out (oldest history first; in likes_dislikes dislikes first, then likes
but one); LLaMA-Factory itself would cut off the question.

Examples:
  python scripts/build_dataset.py --data data/sample --protocol seed --format likes_dislikes --out data \\
      --model models/smollm2-135m --template smollm2 --cutoff-len 1024
  python scripts/build_dataset.py --data data/sample --protocol dev --format next_click --out data
  python scripts/build_dataset.py --data data/raw/MINDsmall --protocol seed --format likes_dislikes \\
      --out data --no-shorten --link-to ../LLaMA-Factory
  python scripts/build_dataset.py --data data/sample --protocol sampled --format summary --summary recurrent \\
      --out data --model models/smollm2-135m --template smollm2 --limit 100
  python scripts/build_dataset.py --data data/raw/MINDlarge --protocol dev --format next_click --out data \\
      --model zai-org/glm-4-9b-chat-hf --template glm4 --engine ray --address auto
"""

import sys
from pathlib import Path

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.finetune.alpaca import BuildOptions, build, check_factory, link_to, make_budget
from mindlab.llm.summaries import summariser_of
from mindlab.prompts import PROMPTS, Summary, prompt_of
from mindlab.prompts.summary import check_way
from mindlab.report import written_text
from mindlab.runs import distributed
from mindlab.tasks import task_of


def main() -> None:
    """Parse the arguments, build, and say what was made."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--data", required=True, type=Path, help="folder with train/ and dev/ (MIND or a sample)"
    )
    parser.add_argument(
        "--protocol", required=True, help="seed (the tutorial's), dev (the honest one) or sampled"
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=sorted(name for name, one in PROMPTS.items() if one.trains),
        help="the prompt format",
    )
    parser.add_argument("--out", required=True, type=Path, help="LLaMA-Factory's dataset_dir, usually data")
    parser.add_argument("--model", help="model folder or hub id whose tokenizer counts; needs --template")
    parser.add_argument("--template", help="LLaMA-Factory template: glm4, smollm2, ...")
    parser.add_argument("--cutoff-len", type=int, default=1024, help="as in the training YAML (default 1024)")
    parser.add_argument("--no-shorten", action="store_true", help="keep every title, as the tutorial does")
    parser.add_argument(
        "--negatives", type=int, default=4, help="pointwise: non-clicks per click (default 4)"
    )
    parser.add_argument(
        "--history",
        type=int,
        help="latest titles of a user to use (next_click, next_topic 12, pointwise 8, summary 5)",
    )
    parser.add_argument(
        "--summary",
        choices=Summary.ways,
        default="recent",
        help="summary: how --model writes what a user likes (default recent: not at all)",
    )
    parser.add_argument(
        "--language", choices=("en", "zh"), default="en", help="language of the prompt's frame"
    )
    parser.add_argument("--limit", type=int, help="a seeded random choice of that many impressions per split")
    parser.add_argument(
        "--interests", type=int, default=1,
        help="next_click: subcategories of a user to one list (default 1; 0: one list a user)",
    )  # fmt: skip
    parser.add_argument(
        "--permute-titles",
        action="store_true",
        help="next_click, next_topic: a control, titles dealt out to any user",
    )
    parser.add_argument(
        "--missing", choices=("error", "drop"), default="error", help="unknown news: stop or drop"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--link-to", type=Path, help="also put the data sets into this LLaMA-Factory checkout"
    )
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="here: this process; ray: the machines of a Ray cluster, the same bytes (docs/distributed.md)",
    )
    distributed.add_arguments(parser)
    args = parser.parse_args()
    if bool(args.model) != bool(args.template):
        raise UserError("--model and --template go together; give both or neither")
    for name in ("negatives", "history", "limit", "cutoff_len"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.interests < 0:
        raise UserError(f"--interests {args.interests}: expected 0 or more")
    if args.link_to:
        check_factory(args.link_to)

    if args.summary != "recent" and not args.model:
        raise UserError(f"--summary {args.summary} is written by a model; give --model and --template")
    check_way(prompt_of(args.format), args.summary)

    counted = {"model": args.model, "template": args.template, "cutoff_len": args.cutoff_len}
    options = BuildOptions(
        protocol=args.protocol,
        format=args.format,
        seed=args.seed,
        negatives=args.negatives,
        history_length=args.history,
        language=args.language,
        limit=args.limit,
        interests=args.interests,
        permute_titles=args.permute_titles,
        summary=args.summary,
        **({} if args.no_shorten or not args.model else counted),
    )
    run = distributed.chosen(args)
    write = summariser_of(args.summary, args.model, args.template, args.language)
    splits = task_of(args.protocol).files("test", args.data)
    mind = read_mind(args.data, splits, args.missing)
    manifest = build(
        mind,
        options,
        args.out,
        make_budget(options),
        data_hashes(args.data, splits),
        cli.records_bar,
        run,
        write,
    )
    for name, made in manifest["datasets"].items():
        print(f"{name}: {made['records']:,} records, tokens {made['tokens']}", file=sys.stderr)
        if "texts_written" in made:
            print(written_text(name, "summaries", made["texts_written"]), file=sys.stderr)
        too_long = 0 if made["tokens"] == "unchecked" else made["tokens"]["still_too_long"]
        if too_long:
            print(f"warning: {too_long} records of {name} do not fit even at their shortest", file=sys.stderr)
    if args.link_to:
        link_to(args.out, args.link_to, list(manifest["datasets"]))
    print(args.out / "processed")


if __name__ == "__main__":
    cli.run(main)
