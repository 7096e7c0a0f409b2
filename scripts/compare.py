"""Compare recommenders on the same impressions: one table, with intervals and cost, and a page with plots.

Fits and scores every method that applies to the protocol and the data; those that are learned are trained with several
seeds. With --llm also the rows of SmolLM2-135M, untrained and tuned through LLaMA-Factory. They, and other methods that
take seconds an impression, are scored on a seeded choice of impressions (--llm-limit), and all rows of the table are
measured on just these; what the other methods reach on all impressions stands in a table of its own, in the folder all/.
Further rows come from run folders of scripts/predict.py (--add), if they scored the same impressions, and from blends.
What is done already is kept; after Ctrl-C run the same command again.

On data without a training split (scripts/download_mind.py --size recprompt) what learns from clicks is left out, and a
tuned SmolLM2 was tuned on data/sample. The published rows of the same impressions stand below, apart.

Examples:
  python scripts/compare.py --data data/sample --out runs/compare
  python scripts/compare.py --data data/raw/recprompt --out runs/recprompt            (counts and vectors: a minute or two)
  python scripts/compare.py --data data/raw/recprompt --out runs/recprompt --llm      (SmolLM2 too)
  python scripts/compare.py --data data/raw/recprompt --out runs/recprompt \\
      --blend both=minilm-lme+category,chosen      (weights chosen on the validation split)
  python scripts/compare.py --data data/sample --llm --out runs/compare --keep data/reference_runs/compare \\
      --update docs/leaderboard.md     (what made that document's table)
  python scripts/compare.py --data data/sample --only popularity,category,lightgbm --limit 150 --out runs/small
  python scripts/compare.py --data data/sample --protocol seed --only always-no,leak-rule,popularity --out runs/seed
  python scripts/compare.py --data data/raw/MINDlarge --split submission --only popularity-streaming --out runs/submit
  python scripts/compare.py --data data/sample --only popularity,category --limit 600 --out runs/with-llm \\
      --add data/reference_runs/recipe-sample/smollm2-next_topic-lora
  python scripts/compare.py --data data/raw/MINDsmall --only popularity,minilm,minilm-readers \\
      --encoder zai-org/glm-4-9b-chat-hf --out runs/encoders     (on a GPU: the vectors of all titles, once)
  python scripts/compare.py --data data/raw/MINDsmall --only popularity,minilm --llm-limit 10000 --seeds 1 \\
      --cross-encoder google-bert/bert-base-uncased --out runs/cross      (on a GPU: fine-tuned, then each pair read)
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindlab import report as reporting
from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import read_json, write_json
from mindlab.data import recprompt
from mindlab.data.mind import Impressions, Mind, no_impressions, read_mind
from mindlab.evaluation.predictions import read_predictions, write_prediction_zip
from mindlab.evaluation.slices import HISTORY, masks, measure_slices
from mindlab.recommenders import METHODS, smollm2
from mindlab.recommenders.oracle import FILE_NAME
from mindlab.report.published import RECPROMPT, read_published
from mindlab.runs import kept
from mindlab.runs.blend import BLENDS, Blend, make_blend, parse_blend
from mindlab.runs.compare import compare, names_of, own_methods
from mindlab.runs.run import Request
from mindlab.tasks import TASKS, limit, task_of
from mindlab.tasks.base import CANDIDATE, SUBMISSION

TABLES = ("leaderboard.json", "leaderboard.md", "slices.json")


def arguments() -> argparse.Namespace:
    """Return the command line, its table's place in a document checked."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and dev/")
    parser.add_argument("--protocol", choices=TASKS, default="dev")
    parser.add_argument(
        "--split",
        choices=("test", "valid", "submission"),
        default="test",
        help="valid: 14 November, to choose on; submission: MIND's unlabelled test split, a prediction.zip a row",
    )
    known = ", ".join([*METHODS, *BLENDS])
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {known} (default: all that apply)")
    parser.add_argument(
        "--llm-seeds",
        type=int,
        default=1,
        help="trainings of a tuned language model (default 1; an hour each)",
    )
    parser.add_argument("--llm", action="store_true", help="also the rows that a language model makes")
    parser.add_argument(
        "--blend",
        action="append",
        default=[],
        type=parse_blend,
        metavar="NAME=A+B",
        help="also a sum of the rows A and B, each standardised in every impression; NAME=A+B,chosen: with weights "
        "chosen on the validation split, not equal ones",
    )
    parser.add_argument("--limit", type=int, help="a seeded random choice of impressions (default: all)")
    parser.add_argument(
        "--llm-limit",
        type=int,
        help="the same for language models, without --limit (default 100; all where nothing is trained)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a learned method (default 3)")
    parser.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="RUN", help="also these run folders"
    )
    parser.add_argument(
        "--encoder",
        metavar="MODEL",
        help="also rank by the hidden states of this causal model: a folder or hub id",
    )
    parser.add_argument(
        "--cross-encoder",
        metavar="MODEL",
        help="also fine-tune this encoder, such as a BERT, to read user and candidate together: a folder or hub id",
    )
    parser.add_argument(
        "--cross-pairs",
        type=int,
        metavar="N",
        help="the pairs that a cross-encoder is trained on (default: its own)",
    )
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each row, and the table")
    kept.add_arguments(parser, "tables and learned rows")
    args = parser.parse_args()
    kept.check(args)
    if args.cross_pairs is not None and args.cross_pairs < 1:
        raise UserError(f"--cross-pairs {args.cross_pairs}: expected at least 1")
    return args


def main() -> None:
    """Fit, score, measure, write the tables and the pages."""
    args = arguments()
    folders = task_of("dev").files(args.split, args.data)
    has_training = "train" in folders
    is_synthetic = (Path(args.data) / "train" / FILE_NAME).exists()
    names, blends = names_asked(args, is_synthetic, has_training)
    request = Request(args.data, args.protocol, args.split, args.limit, args.seed)
    own = own_methods(args.encoder, args.cross_encoder, args.cross_pairs)
    methods = METHODS | own
    how = {"n_seeds": args.seeds, "n_long": args.llm_seeds, "methods": methods, "cases": cli.cases_bar}
    names += [name for name in own if name not in METHODS]
    if any(methods[name].needs_llm for name in names if name in methods):
        smollm2.get_model()
    # A submission ranks everything.
    costly = [
        name for name in names if name in methods and methods[name].is_costly and args.split != SUBMISSION
    ]
    names = [name for name in names if name not in costly]
    with tqdm(names, unit=" methods", file=sys.stderr) as bar:
        runs = compare(request, names, args.out, lambda _: named(bar), **how)
    if args.split == SUBMISSION:
        for run in runs:  # the server has the labels, so there is nothing to compare here
            write_prediction_zip(run / "prediction.zip", read_predictions(run / "predictions.parquet"))
            print(run / "prediction.zip")
        return
    llm_limit = args.limit or args.llm_limit or (100 if has_training else None)
    with tqdm(costly, unit=" costly methods", file=sys.stderr, disable=not costly) as bar:
        llm_runs = compare(replace(request, limit=llm_limit), costly, args.out, lambda _: named(bar), **how)
    for blend in blends:
        run = make_blend(
            blend.name,
            [args.out / part for part in blend.parts],
            args.out,
            weights_from(blend, args, request, how),
        )
        (llm_runs if {*blend.parts} & {*costly} else runs).append(run)

    mind = read_mind(args.data, folders)
    splits = task_of(args.protocol).splits(mind, args.seed)
    n = len(splits[args.split])
    whole, some = (limit(n, most, args.seed) for most in (args.limit, llm_limit))
    notes = task_of(args.protocol).notes(splits[args.split].take(whole))
    context = {
        "title": "Recommenders on the same impressions",
        "data": args.data,
        "synthetic": is_synthetic,
        "command": shlex.join(["python", *sys.argv]),
    }
    if recprompt.is_published(args.data) and args.split == "test":
        context["published"] = table = read_published(RECPROMPT)
        if len(whole) < table["n_impressions"]:
            notes.append(
                f"The published rows are of all {table['n_impressions']} impressions, ours of {len(whole)}."
            )
    boards = {}  # by folder, with the cases that its rows are measured on
    pairs = [(name, against) for name, method in methods.items() for against in method.against]
    pairs += [(blend.name, part) for blend in blends for part in blend.parts]

    def among(found: Iterable[Path]) -> list[tuple[str, str]]:
        here = {run.name for run in found}
        return [pair for pair in pairs if set(pair) <= here]

    if llm_runs and len(some) < len(whole):
        if runs:
            board = reporting.leaderboard(runs, pairs=among(runs), context=context | {"notes": notes})
            boards["all"] = board, whole
        notes = [*notes, note_of_choice(len(some), len(whole))]
    cases = some if llm_runs else whole
    made = [*runs, *llm_runs]
    board = reporting.leaderboard(
        [*made, *args.add], pairs=among(made), cases=cases, context=context | {"notes": notes}
    )
    boards["."] = board, cases
    for folder, (one, its_cases) in boards.items():
        page = write(args.out / folder, one, mind, splits, args.split, its_cases)
        if args.update:
            kept.update(args.update, args.keep / folder, reporting.as_text(one))
            if kept.has(args.update, args.keep / folder / "slices"):
                table = reporting.slices_markdown(read_json(page.parent / "slices.json", "", list), HISTORY)
                kept.put(args.update, args.keep / folder / "slices", table)
    if args.keep:
        keep(args.out, args.keep, boards, made)
    print(reporting.as_text(board))
    print(page)


def names_asked(
    args: argparse.Namespace, is_synthetic: bool, has_training: bool
) -> tuple[list[str], list[Blend]]:
    """Return the methods to run, and the blends of rows.

    Parts of a blend are run even if nobody asked for them by name.
    """
    is_labelled = args.split != SUBMISSION
    usual = []
    for name in names_of(args.protocol, has_training):
        method = METHODS[name]
        is_left_out = (
            (method.track == "ceiling" and not (is_synthetic and is_labelled))
            or (method.is_costly and not is_labelled)
            or (method.needs_llm and not args.llm)
            or (method.on_request and not has_training)
            or (method.sees_valid and has_training and args.split == "valid")
        )
        usual += [] if is_left_out else [name]
    ranks = is_labelled and task_of(args.protocol).case != CANDIDATE
    usual += BLENDS if ranks else ()
    names = args.only.split(",") if args.only else usual
    blends = [Blend(name, BLENDS[name]) for name in names if name in BLENDS] + args.blend
    names = [name for name in names if name not in BLENDS]
    names += [part for blend in blends for part in blend.parts]
    return list(dict.fromkeys(names)), blends


def weights_from(
    blend: Blend, args: argparse.Namespace, request: Request, how: Mapping[str, Any]
) -> list[Path] | None:
    """Return the runs of a blend's parts on the validation split, None for equal weights."""
    if not blend.is_chosen:
        return None
    return compare(replace(request, split="valid", limit=None), blend.parts, args.out / "valid", **how)


def keep(out: Path, folder: Path, boards: Mapping[str, tuple[dict[str, Any], Any]], runs: list[Path]) -> None:
    """Copy the tables, and the rows that take a minute or more to make; of MIND itself nothing but numbers."""
    if not any(board["context"]["synthetic"] for board, _ in boards.values()):
        for place, (board, _) in boards.items():
            write_json(folder / place / "metrics.json", board["rows"])
            write_json(folder / place / "manifest.json", board["manifests"])
            kept.keep([out / place / "slices.json"], folder / place)
        return
    for place in boards:
        kept.keep([out / place / name for name in TABLES], folder / place)
    for run in runs:
        if run.name in METHODS and METHODS[run.name].is_slow:
            kept.keep_run(run, folder)
        adapter = out / "training" / run.name / "adapter"
        if adapter.is_dir():
            kept.keep([adapter / name for name in kept.OF_ADAPTER], folder / run.name / "adapter")


def note_of_choice(some: int, n: int) -> str:
    """Return what must be said under a table that is measured on `some` of `n` impressions."""
    return (
        f"Language models and cross-encoders scored a seeded choice of {some} of the {n} impressions, and all rows "
        "are measured on just these; the other methods on all impressions: all/report.html."
    )


def write(
    out: Path,
    board: dict[str, Any],
    mind: Mind,
    splits: dict[str, Impressions],
    split: str,
    cases: np.ndarray,
) -> Path:
    """Write a board with its slices; return the page."""
    train = splits.get("fit" if split == "valid" else "train", no_impressions())
    parts = masks(splits[split].take(cases), train, mind.news)
    slices = measure_slices(board["evaluations"], parts, task_of(board["protocol"]).headline)
    return reporting.write_leaderboard(out, board, slices=slices)


def named(bar: tqdm):
    """Yield a bar's names, showing which one is at work."""
    for name in bar:
        bar.set_description(name)
        yield name


if __name__ == "__main__":
    cli.run(main)
