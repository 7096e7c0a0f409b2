"""The main job on a laptop, start to finish: build, fine-tune, score, compare.

Builds next_click records from the committed sample, LoRA-tunes SmolLM2-135M through LLaMA-Factory with
configs/train/smollm2_135m_lora_sft.yaml, scores base and tuned model on seeded-random dev impressions,
and puts them beside the rows that need no model. Each step first prints the command that does it alone.
What is done already is skipped; after Ctrl-C run the same command again. --format next_topic does the
same with that prompt and its own config.

--keep copies what another person needs to check and use the run: its tables, manifests and loss, what the
models predicted, and an adapter that is small enough. --update puts the table where a Markdown file has the
marks of that copy.

With --control it also trains on the same titles dealt out to random readers: what that model gains over
the base is knowledge of how headlines and answers read, not of who reads what.

Examples:
  make demo
  python scripts/demo.py --keep data/reference_runs/demo --update README.md     (what made the README's table)
  python scripts/demo.py --format next_topic --limit 600 --control --out runs/recipe/sample
  python scripts/demo.py --limit 20 --steps 2 --out runs/try      (a quick look, not a result)
"""

import shlex
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from mindlab import cli, factory, kept
from mindlab import report as reporting
from mindlab.compare import Request, compare
from mindlab.errors import UserError
from mindlab.files import write_json
from mindlab.llm import rows
from mindlab.runs import provenance

FORMATS = ("next_click", "next_topic")
DEFAULT_OUT = Path("runs/demo")
KEPT = ("leaderboard.json", "leaderboard.md", "manifest.json", "training_loss.png")
ROWS = ["random", "popularity", "popularity-streaming", "category", "tfidf", "oracle"]


def main() -> None:
    """Run the steps."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample", help="folder with train/ and dev/")
    parser.add_argument(
        "--format", choices=FORMATS, default="next_click", help="the prompt (default next_click)"
    )
    parser.add_argument("--limit", type=int, default=150, help="dev impressions to score (default 150)")
    parser.add_argument("--steps", type=int, help="training steps (default: as in the YAML)")
    parser.add_argument("--control", action="store_true", help="also train on titles dealt out anew")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    kept.add_arguments(parser, "the run's results")
    args = parser.parse_args()
    config = rows.CONFIGS[args.format]
    if not config.is_file():
        raise UserError(f"{config}: not here; run the demo in the root of the repository")
    kept.check(args)

    rows.get_model()

    # The default run uses the folders that the configs name, any other keeps to its own.
    is_default = args.out == DEFAULT_OUT
    steps = {} if args.steps is None else {"max_steps": args.steps}
    base_name, tuned_name, control = (
        f"smollm2-{args.format}-{kind}" for kind in ("base", "lora", "permuted")
    )
    adapters = {}
    for name in (tuned_name, control) if args.control else (tuned_name,):
        is_control = name == control
        if is_default and not is_control:
            rows.build_records(args.data, args.format, Path("data"))
            adapters[name] = rows.train(config, steps)
        else:
            folder = args.out / "training" / name
            adapters[name] = rows.tune(args.format, args.data, folder, steps, is_control)
    tuned = [
        rows.score(args.data, args.format, adapter, args.limit, args.out / name)
        for name, adapter in adapters.items()
    ]
    base = rows.score(args.data, args.format, None, args.limit, args.out / base_name)

    runs = " ".join(str(run) for run in (base, *tuned))
    rows.step("the rows that are always there, and the table", f"python scripts/evaluate.py {runs}")
    simple = compare(Request(args.data, limit=args.limit), ROWS, args.out, lambda names: iter(tqdm(names)))
    pairs = [(tuned_name, against.name) for against in (base, *tuned[1:])]
    table = report(args.data, args.out, [*simple, base, *tuned], adapters, pairs)
    print(f"\n{table}\n")
    if args.keep:
        kept.keep([args.out / name for name in KEPT], args.keep)
        for run in (base, *tuned):  # the simple rows take seconds to make
            kept.keep_run(run, args.keep)
        for name, adapter in adapters.items():
            size = kept.keep_adapter(adapter, args.keep / name)
            if size > kept.LARGEST_KEPT:
                rows.say(f"the weights of {name} stay behind: {size / 1e6:.1f} MB")
    if args.update:
        kept.update(args.update, args.keep, table)
    print(args.out / "report.html")


def report(
    data: str, out: Path, runs: list[Path], adapters: dict[str, Path], pairs: list[tuple[str, str]]
) -> str:
    """Write leaderboard.json, leaderboard.md, report.html and the manifest; return the table as text."""
    board = reporting.leaderboard(
        runs,
        pairs=pairs,
        context={
            "title": "mindlab demo: SmolLM2-135M, base and fine-tuned, beside the simple rows",
            "data": data,
            "synthetic": (Path(data) / "train" / "oracle_utility.npy").exists(),
            "command": "make demo" if out == DEFAULT_OUT else shlex.join(["python", *sys.argv]),
            "notes": [
                "One training seed a row. docs/recipe.md says how the recipe was chosen, and what it has not yet shown."
            ],
        },
    )
    adapter = adapters[pairs[0][0]]
    reporting.write_leaderboard(out, board, factory.read_loss(adapter))
    shutil.copyfile(adapter / "training_loss.png", out / "training_loss.png")
    write_json(
        out / "manifest.json",
        {
            "runs": [run.name for run in runs],
            "adapters": {name: str(path) for name, path in adapters.items()},
            **provenance(),
        },
    )
    return reporting.as_text(board)


if __name__ == "__main__":
    cli.run(main)
