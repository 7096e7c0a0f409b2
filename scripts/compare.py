"""Compare recommenders on the same impressions: one table, with intervals and cost, and a page with plots.

Fits and scores every method that applies to the protocol; those that are learned are trained with several seeds.
The rows of SmolLM2-135M, untrained and tuned through LLaMA-Factory, and of other methods that take seconds an
impression, are scored on a seeded choice of impressions (--llm-limit), and all rows of the table are measured on
just these; what the other methods reach on all impressions stands in a table of its own, in the folder all/. Further rows come from run folders of
scripts/predict.py (--add), if they scored the same impressions. What is done already is kept; after Ctrl-C run the
same command again.

Examples:
  python scripts/compare.py --data data/sample --out runs/compare
  python scripts/compare.py --data data/sample --out runs/compare --keep data/reference_runs/compare \\
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
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindlab import cli, kept, protocols
from mindlab import report as reporting
from mindlab.compare import BLIND, ORACLE, Request, compare, cross_encoder_rows, encoder_row, names_of
from mindlab.errors import UserError
from mindlab.llm import rows
from mindlab.mind import Impressions, Mind, read_mind
from mindlab.predictions import read_predictions, write_prediction_zip
from mindlab.recommenders import COSTLY, EMBEDDED, NEURAL, PAIRS, SIMPLE
from mindlab.recommenders.oracle import FILE_NAME
from mindlab.slices import masks, measure_slices

TABLES = ("leaderboard.json", "leaderboard.md", "slices.json")


def arguments() -> argparse.Namespace:
    """Return the command line, its table's place in a document checked."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and dev/")
    parser.add_argument("--protocol", choices=protocols.PROTOCOLS, default="dev")
    parser.add_argument(
        "--split",
        choices=("test", "valid", "submission"),
        default="test",
        help="valid: 14 November, to choose on; submission: MIND's unlabelled test split, a prediction.zip a row",
    )
    known = ", ".join([*SIMPLE, *COSTLY, *rows.NAMES, *rows.SAMPLED_NAMES, ORACLE, *BLIND])
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {known} (default: all that apply)")
    parser.add_argument("--limit", type=int, help="a seeded random choice of impressions (default: all)")
    parser.add_argument(
        "--llm-limit",
        type=int,
        default=100,
        help="the same for language models, without --limit (default 100)",
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
        help="also fine-tune this encoder, such as a BERT, to read reader and candidate together: a folder or hub id",
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
    is_synthetic = (Path(args.data) / "train" / FILE_NAME).exists()
    names, llm = names_asked(args, is_synthetic)
    request = Request(
        args.data, args.protocol, args.split, args.limit, args.seed, args.seeds,
        args.encoder, args.cross_encoder, args.cross_pairs,
    )  # fmt: skip
    if args.encoder:
        names.append(encoder_row(request))
    if llm or EMBEDDED in names:
        rows.get_model()
    # A submission ranks everything.
    costly = [name for name in names if name in COSTLY and args.split != protocols.SUBMISSION]
    names = [name for name in names if name not in costly]
    own_cross = cross_encoder_rows(request)
    (names if args.split == protocols.SUBMISSION else costly).extend(own_cross)
    with tqdm(names, unit=" methods", file=sys.stderr) as bar:
        runs = compare(request, names, args.out, lambda _: named(bar))
    if args.split == protocols.SUBMISSION:
        for run in runs:  # the server has the labels, so there is nothing to compare here
            write_prediction_zip(run / "prediction.zip", read_predictions(run / "predictions.parquet"))
            print(run / "prediction.zip")
        return
    llm_limit = args.limit or args.llm_limit
    with tqdm(costly, unit=" costly methods", file=sys.stderr, disable=not costly) as bar:
        llm_runs = compare(replace(request, limit=llm_limit), costly, args.out, lambda _: named(bar))
    llm_runs += [
        rows.make_summary_row(name, args.data, llm_limit, args.out, seed=args.seed)
        if name in rows.SAMPLED_NAMES
        else rows.make_row(name, args.data, llm_limit, args.out, seed=args.seed, protocol=args.protocol)
        for name in llm
    ]

    mind = read_mind(args.data)
    splits = protocols.splits_of(args.protocol, mind, args.seed)
    n = len(splits[args.split])
    whole, some = (protocols.limit(n, most, args.seed) for most in (args.limit, llm_limit))
    notes = notes_of(args.protocol, splits[args.split].take(whole))
    context = {
        "title": "Recommenders on the same impressions",
        "data": args.data,
        "synthetic": is_synthetic,
        "command": shlex.join(["python", *sys.argv]),
    }
    boards = {}  # by folder, with the cases that its rows are measured on
    pairs = [*PAIRS, *([own_cross, (own_cross[0], "minilm")] if own_cross else [])]
    own = [pair for pair in pairs if set(pair) <= {*names, *costly}]
    some_only = [*costly, *llm]
    if some_only and len(some) < len(whole):
        if runs:
            pairs = [pair for pair in own if set(pair) <= set(names)]
            boards["all"] = (
                reporting.leaderboard(runs, pairs=pairs, context=context | {"notes": notes}),
                whole,
            )
        notes = [
            *notes,
            f"Language models and cross-encoders scored a seeded choice of {len(some)} of the {len(whole)} impressions, and all rows "
            "are measured on just these; the other methods on all impressions: all/report.html.",
        ]
    cases = some if some_only else whole
    pairs = [*own, *(pair for pair in (*rows.PAIRS, *rows.SAMPLED_PAIRS) if set(pair) <= set(llm))]
    every = [*runs, *llm_runs, *args.add]
    board = reporting.leaderboard(every, pairs=pairs, cases=cases, context=context | {"notes": notes})
    boards["."] = board, cases
    for folder, (one, its_cases) in boards.items():
        page = write(args.out / folder, one, mind, splits, args.split, its_cases)
        if args.update:
            kept.update(args.update, args.keep / folder, reporting.as_text(one))
    if args.keep:
        keep(args.out, args.keep, boards, [*runs, *llm_runs])
    print(reporting.as_text(board))
    print(page)


def names_asked(args: argparse.Namespace, is_synthetic: bool) -> tuple[list[str], list[str]]:
    """Return the recommenders to run, and the rows of language models."""
    # The training of a language model has seen the validation day.
    takes_llm = rows.names_of(args.protocol) if args.split == "test" else ()
    is_labelled = args.split != protocols.SUBMISSION
    names = [name for name in names_of(args.protocol) if name != ORACLE or (is_synthetic and is_labelled)]
    names = [name for name in names if name not in COSTLY or is_labelled]
    names = args.only.split(",") if args.only else [*names, *takes_llm]
    llm = [name for name in names if name in {*rows.NAMES, *rows.SAMPLED_NAMES}]
    for name in llm:
        if name not in takes_llm:
            where = [protocol for protocol in protocols.PROTOCOLS if name in rows.names_of(protocol)]
            kinds = f"protocol{'s' if len(where) > 1 else ''} {' and '.join(where)}"
            raise UserError(f"{name} applies to split test of the {kinds} alone")
    return [name for name in names if name not in llm], llm


def keep(out: Path, folder: Path, boards: Iterable[str], runs: list[Path]) -> None:
    """Copy the tables, and the rows that take a minute or more to make."""
    for place in boards:
        kept.keep([out / place / name for name in TABLES], folder / place)
    for run in runs:
        if run.name in (*NEURAL, EMBEDDED, *COSTLY, *rows.NAMES, *rows.SAMPLED_NAMES):
            kept.keep_run(run, folder)
        adapter = out / "training" / run.name / "adapter"
        if adapter.is_dir():
            kept.keep([adapter / name for name in kept.OF_ADAPTER], folder / run.name / "adapter")


def notes_of(protocol: str, test: Impressions) -> list[str]:
    """Return what must be said under every table of a protocol."""
    if protocol == "seed":
        return [
            "The tutorial's protocol: the last candidate of an impression is the question. A recommender says Yes "
            "where it ranks that one alone at the top; leak-rule reads the other candidates' labels, as the "
            "tutorial's prompt shows them. Accuracy here says nothing about ranking."
        ]
    if protocol.startswith("sampled"):
        return [
            f"One click and at most {protocols.NEGATIVES} others a case, so not comparable with any other protocol; "
            f"{protocols.short_share(test):.0%} of the cases have fewer others."
        ]
    return []


def write(
    out: Path,
    board: dict[str, Any],
    mind: Mind,
    splits: dict[str, Impressions],
    split: str,
    cases: np.ndarray,
) -> Path:
    """Write a board with its slices; return the page."""
    train = splits["fit" if split == "valid" else "train"]
    parts = masks(splits[split].take(cases), train, mind.news)
    metric = "accuracy" if board["protocol"] == "seed" else "auc"
    return reporting.write_leaderboard(out, board, slices=measure_slices(board["evaluations"], parts, metric))


def named(bar: tqdm):
    """Yield a bar's names, showing which one is at work."""
    for name in bar:
        bar.set_description(name)
        yield name


if __name__ == "__main__":
    cli.run(main)
