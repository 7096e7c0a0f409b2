"""The main job on a laptop, start to finish: build, fine-tune, score, compare.

Builds next_click records from the committed sample, LoRA-tunes SmolLM2-135M through LLaMA-Factory with
configs/train/smollm2_135m_lora_sft.yaml, scores base and tuned model on seeded-random dev impressions,
and puts them beside the rows that need no model. Each step first prints the command that does it alone.
What is done already is skipped; after Ctrl-C run the same command again.

Examples:
  make demo
  python scripts/demo.py --update README.md                       (what made the README's table)
  python scripts/demo.py --limit 20 --steps 2 --out runs/try      (a quick look, not a result)
"""

import json
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from mindlab import cli, embedded_model, factory
from mindlab import report as reporting
from mindlab.alpaca import BuildOptions, build, is_built, make_budget
from mindlab.compare import Request as CompareRequest
from mindlab.compare import compare
from mindlab.errors import UserError
from mindlab.files import write_json, write_text
from mindlab.llm.predict import Request, predict
from mindlab.mind import read_mind
from mindlab.runs import data_hashes, provenance

CONFIG = Path("configs/train/smollm2_135m_lora_sft.yaml")
MODEL = f"models/{embedded_model.NAME}"
TEMPLATE = "smollm2"
ROWS = ["random", "popularity", "popularity-streaming", "category", "tfidf", "oracle"]
BASE, TUNED = "smollm2-next_click-base", "smollm2-next_click-lora"


def step(number: int, what: str, command: str) -> None:
    """Say what comes next and which command does it alone."""
    print(f"\n[{number}/6] {what}\n      $ {command}", file=sys.stderr, flush=True)


def build_records(data: str) -> None:
    """Write the next_click data sets, unless they are there."""
    cutoff_len = factory.load(CONFIG)["cutoff_len"]
    options = BuildOptions("dev", "next_click", model=MODEL, template=TEMPLATE, cutoff_len=cutoff_len)
    hashes = data_hashes(data, ("train", "dev"))
    if is_built(Path("data"), options, hashes):
        print("      already built", file=sys.stderr)
        return
    mind = read_mind(data)
    build(
        mind, options, Path("data"), make_budget(options), hashes,
        lambda items, name: tqdm(items, desc=name, unit=" records"),
    )  # fmt: skip


def score(data: str, adapter: str | None, limit: int, out: Path) -> Path:
    """Score one model on the dev impressions, with a progress bar."""
    request = Request(
        data, "dev", "next_click", MODEL, TEMPLATE, adapter, limit=limit,
        cutoff_len=factory.load(CONFIG)["cutoff_len"],
    )  # fmt: skip
    return predict(
        request, out, lambda cases, done, n: iter(tqdm(cases, initial=done, total=n, unit=" impressions"))
    )


def main() -> None:
    """Run the six steps."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample", help="folder with train/ and dev/")
    parser.add_argument("--limit", type=int, default=150, help="dev impressions to score (default 150)")
    parser.add_argument("--steps", type=int, help="training steps (default: as in the YAML)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="also put the table between FILE's demo-table marks"
    )
    args = parser.parse_args()
    if not CONFIG.is_file():
        raise UserError(f"{CONFIG}: not here; run the demo in the root of the repository")

    step(1, "the embedded model", f"python scripts/get_model.py {embedded_model.NAME}")
    embedded_model.build(MODEL, lambda line: print(f"      {line}", file=sys.stderr))

    cut = factory.load(CONFIG)["cutoff_len"]
    step(
        2, "Alpaca records from MIND-shaped TSVs",
        f"python scripts/build_dataset.py --data {args.data} --protocol dev --format next_click --out data "
        f"--model {MODEL} --template {TEMPLATE} --cutoff-len {cut}",
    )  # fmt: skip
    build_records(args.data)

    overrides = {} if args.steps is None else {"max_steps": args.steps}
    if args.out != Path("runs/demo"):
        overrides["output_dir"] = (args.out / "adapter").as_posix()
    words = " ".join(f"{key}={value}" for key, value in overrides.items())
    step(3, "LoRA fine-tuning by LLaMA-Factory", f"llamafactory-cli train {CONFIG} {words}".rstrip())
    adapter = factory.train(CONFIG, overrides, lambda line: print(f"      {line}", file=sys.stderr))

    common = f"--data {args.data} --protocol dev --format next_click --model {MODEL} --cutoff-len {cut}"
    step(
        4,
        "score the base model",
        f"python scripts/predict.py {common} --limit {args.limit} --out {args.out / BASE}",
    )
    score(args.data, None, args.limit, args.out / BASE)
    step(
        5, "score the tuned model",
        f"python scripts/predict.py {common} --adapter {adapter} --limit {args.limit} --out {args.out / TUNED}",
    )  # fmt: skip
    tuned = score(args.data, str(adapter), args.limit, args.out / TUNED)

    runs = " ".join(str(args.out / name) for name in (BASE, TUNED))
    step(6, "the rows that are always there, and the table", f"python scripts/evaluate.py {runs}")
    simple = compare(
        CompareRequest(args.data, limit=args.limit), ROWS, args.out, lambda names: iter(tqdm(names))
    )
    table = report(args.data, args.out, [*simple, args.out / BASE, tuned], adapter)
    print(f"\n{table}\n")
    if args.update:
        update(args.update, table)
    print(args.out / "report.html")


def update(file: Path, table: str) -> None:
    """Replace what stands between the demo-table marks of a Markdown file."""
    head, begin, rest = file.read_text(encoding="utf-8").partition("<!-- demo-table -->\n")
    _, end, tail = rest.partition("<!-- /demo-table -->")
    if not (begin and end):
        raise UserError(f"{file}: has no <!-- demo-table --> and <!-- /demo-table --> marks")
    write_text(file, f"{head}{begin}```\n{table.strip()}\n```\n{end}{tail}")


def report(data: str, out: Path, runs: list[Path], adapter: Path) -> str:
    """Write leaderboard.json, leaderboard.md, report.html and the manifest; return the table as text."""
    train_seconds = json.loads((adapter / "train_results.json").read_text(encoding="utf-8"))["train_runtime"]
    board = reporting.leaderboard(
        runs,
        pairs=[(TUNED, BASE)],
        train_seconds={TUNED: train_seconds},
        context={
            "title": "mindlab demo: SmolLM2-135M, base and fine-tuned, beside the simple rows",
            "data": data,
            "synthetic": (Path(data) / "train" / "oracle_utility.npy").exists(),
            "command": "make demo",
            "notes": [
                "The tuned row has one training seed. A demo, not a result: docs/recipe.md logs the search for a recipe."
            ],
        },
    )
    reporting.write_leaderboard(out, board, factory.read_loss(adapter))
    shutil.copyfile(adapter / "training_loss.png", out / "training_loss.png")
    write_json(
        out / "manifest.json", {"runs": [run.name for run in runs], "adapter": str(adapter), **provenance()}
    )
    return reporting.as_text(board)


if __name__ == "__main__":
    cli.run(main)
