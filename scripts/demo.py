"""The main job on a laptop, start to finish: build, fine-tune, score, compare.

Builds next_click records from the committed sample, LoRA-tunes SmolLM2-135M through LLaMA-Factory with
configs/train/smollm2_135m_lora_sft.yaml, scores base and tuned model on seeded-random dev impressions,
and puts them beside the rows that need no model. Each step first prints the command that does it alone.
What is done already is skipped; after Ctrl-C run the same command again. --format next_topic does the
same with that prompt and its own config.

Where data/raw/recprompt is on the disk (scripts/download_mind.py --size recprompt), the same two models, and category
and MiniLM, are then scored on real news: a seeded 200 of the 400 impressions of MIND that GPT-4 was measured on, with
what was published of GPT-3.5 and GPT-4 below. Nothing of it is fetched here, and --keep copies nothing of it.

--keep copies what another person needs to check and use the run: its tables, manifests and loss, what the
models predicted, and an adapter that is small enough. --update puts the table where a Markdown file has the
marks of that copy.

With --control it also trains on the same titles shared out among random users: what that model gains over
the base is knowledge of how headlines and answers read, not of who reads what.

Examples:
  make demo
  python scripts/demo.py --keep data/reference_runs/demo --update README.md     (what made the README's table)
  python scripts/demo.py --format next_topic --limit 600 --control --out runs/recipe/sample
  python scripts/demo.py --limit 20 --steps 2 --no-real --out runs/try      (a quick look, not a result)
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindlab import report as reporting
from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import write_json
from mindlab.common.manifest import provenance
from mindlab.data import download, recprompt
from mindlab.finetune import factory
from mindlab.llm.options import Options
from mindlab.recommenders import smollm2
from mindlab.recommenders.llm import ranker
from mindlab.report.published import RECPROMPT, read_published
from mindlab.runs import kept
from mindlab.runs.compare import compare
from mindlab.runs.run import Request, run

FORMATS = ("next_click", "next_topic")
DEFAULT_OUT = Path("runs/demo")
KEPT = ("leaderboard.json", "leaderboard.md", "manifest.json", "training_loss.png")
ROWS = ["random", "popularity", "popularity-streaming", "category", "tfidf", "oracle"]
LIMIT = 150  # dev impressions
ONE_SEED = (
    "One training seed a row. docs/recipe.md says how the recipe was chosen, and what it has not yet shown."
)
REAL = Path("data/raw/recprompt")
REAL_ROWS = ["category", "minilm"]
REAL_LIMIT = 200  # of the 400, so that two models take minutes
REAL_GROUP = "prompted"  # of the published rows: GPT-3.5 and GPT-4 as they are


def main() -> None:
    """Run the steps."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data/sample", help="folder with train/ and dev/")
    parser.add_argument(
        "--format", choices=FORMATS, default="next_click", help="the prompt (default next_click)"
    )
    parser.add_argument(
        "--limit", type=int, help=f"impressions to score (default {LIMIT} of dev, {REAL_LIMIT} of real news)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: as in the YAML)")
    parser.add_argument("--control", action="store_true", help="also train on titles shared out anew")
    parser.add_argument(
        "--no-real", action="store_true", help=f"leave out real news, even if {REAL} is there"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    kept.add_arguments(parser, "the run's results")
    args = parser.parse_args()
    limit = LIMIT if args.limit is None else args.limit
    config = smollm2.CONFIGS[args.format]
    if not config.is_file():
        raise UserError(f"{config}: not here; run the demo in the root of the repository")
    kept.check(args)

    smollm2.get_model()

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
            smollm2.build_records(args.data, args.format, Path("data"))
            adapters[name] = smollm2.train(config, steps)
        else:
            folder = args.out / "training" / name
            adapters[name] = smollm2.tune(args.format, args.data, folder, steps, is_control)
    tuned = [
        score(args.data, args.format, adapter, limit, args.out / name) for name, adapter in adapters.items()
    ]
    base = score(args.data, args.format, None, limit, args.out / base_name)

    runs = " ".join(str(run) for run in (base, *tuned))
    cli.step("the rows that are always there, and the table", f"python scripts/evaluate.py {runs}")
    simple = compare(Request(args.data, limit=limit), ROWS, args.out, lambda names: iter(tqdm(names)))
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
                cli.say(f"the weights of {name} stay behind: {size / 1e6:.1f} MB")
    if args.update:
        kept.update(args.update, args.keep, table)
    if recprompt.is_one(REAL) and not args.no_real:
        most = REAL_LIMIT if args.limit is None else min(args.limit, REAL_LIMIT)
        made_by = command(args.out)
        print(on_real_news(args.format, adapters[tuned_name], most, args.out / REAL.name, made_by))
    elif not args.no_real:
        print(
            f"For a second table, on real news: python scripts/download_mind.py --size recprompt --accept-licence "
            f"--out {REAL}, after reading the licence, MIND's: {download.LICENCE}"
        )
    print(args.out / "report.html")


def score(data: str, form: str, adapter: Path | None, limit: int, out: Path) -> Path:
    """Score one model on the test impressions, with a progress bar; return its run folder."""
    config = factory.load(smollm2.CONFIGS[form])
    cli.step(
        f"score {out.name}",
        f"python scripts/predict.py --data {data} --protocol dev --format {form} --model {smollm2.MODEL} "
        f"{f'--adapter {adapter} ' if adapter else ''}--cutoff-len {config['cutoff_len']} --limit {limit} --out {out}",
    )
    asked = Options(
        form,
        smollm2.MODEL,
        smollm2.TEMPLATE,
        str(adapter) if adapter else None,
        cutoff_len=config["cutoff_len"],
    )
    return run(Request(data, limit=limit), ranker(out.name, asked), out, progress=cli.cases_bar)


def on_real_news(form: str, adapter: Path, limit: int, out: Path, made_by: str) -> Path:
    """Score both models and `REAL_ROWS` on at most `limit` impressions of `REAL`; print the table, return its page.

    Everything is written under `out`. If the impressions are the published ones, `prompted_rows` stand below.
    """
    data = REAL.as_posix()
    base, tuned = (
        score(data, form, which, limit, out / f"smollm2-{form}-{kind}")
        for which, kind in ((None, "base"), (adapter, "lora"))
    )
    cli.step(
        "category and MiniLM, and the table on real news",
        f"python scripts/compare.py --data {data} --only {','.join(REAL_ROWS)} --limit {limit} --out {out} "
        f"--add {base} {tuned}",
    )
    simple = compare(Request(data, limit=limit), REAL_ROWS, out, lambda names: iter(tqdm(names)))
    notes = [
        "Choose nothing by these impressions: they are for reporting. docs/real_mind.md has all of them."
    ]
    context = {"title": "mindlab demo, on real news", "data": data, "command": made_by, "notes": notes}
    if recprompt.is_published(REAL):
        context["title"] += ": impressions of MIND that GPT-4 was measured on"
        context["published"] = table = prompted_rows()
        if limit < (n := table["n_impressions"]):
            notes.append(f"The published rows are of all {n} impressions, ours of a seeded {limit} of them.")
    board = reporting.leaderboard([*simple, base, tuned], pairs=[(tuned.name, base.name)], context=context)
    reporting.write_leaderboard(out, board)
    print(f"\nOn real news:\n\n{reporting.as_text(board)}\n")
    return out / "report.html"


def prompted_rows() -> dict[str, Any]:
    """Return the published table with the rows of `REAL_GROUP` alone, and what its authors logged besides."""
    table = read_published(RECPROMPT)
    return table | {"rows": [row for row in table["rows"] if row["group"] == REAL_GROUP]}


def command(out: Path) -> str:
    """Return the command that makes it all again."""
    return "make demo" if out == DEFAULT_OUT else shlex.join(["python", *sys.argv])


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
            "command": command(out),
            "notes": [ONE_SEED],
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
