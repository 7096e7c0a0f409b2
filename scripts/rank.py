"""Rank your own headlines for a user, with a language model, base or tuned.

Two text files, one headline a line: what the user clicked, oldest first, and what to rank. The score is
next_click's: how much likelier the model finds the headline after this history than after none, in nats;
only differences between headlines mean something. With --format pointwise it is log P(Yes) - log P(No).

Examples:
  python scripts/rank.py --history history.txt --candidates candidates.txt --model models/smollm2-135m
  python scripts/rank.py --history history.txt --candidates candidates.txt --model models/smollm2-135m \\
      --adapter data/reference_runs/demo/smollm2-next_click-lora/adapter
  python scripts/rank.py --history history.txt --candidates candidates.txt --model models/smollm2-135m --json
"""

import json
import sys
from pathlib import Path

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.llm.options import Options, template_of
from mindlab.prompts import NextClick, Pointwise, prompt_of
from mindlab.prompts.base import LINE
from mindlab.recommenders.llm import rank_titles

MOST_BYTES = 10_000_000  # some hundred thousand headlines


def read_titles(path: Path) -> list[str]:
    """Return the headlines of a text file, one a line; empty lines and list dashes do not count."""
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path}: larger than {MOST_BYTES:,} bytes, expected text with one headline a line"
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected text with one headline a line") from error
    except (UnicodeDecodeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a UTF-8 text file with one headline a line ({error})") from error
    return [title for line in lines if (title := line.strip().removeprefix("- ").strip())]


def main() -> None:
    """Read the two files, score, print the ranking."""
    parser = cli.parser(__doc__)
    parser.add_argument("--history", required=True, type=Path, help="what the user clicked, oldest first")
    parser.add_argument("--candidates", required=True, type=Path, help="the headlines to rank")
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--adapter", help="output_dir of a LLaMA-Factory LoRA run of this model")
    parser.add_argument("--format", choices=(NextClick.name, Pointwise.name), default=NextClick.name)
    parser.add_argument(
        "--template", help="LLaMA-Factory template (default: told by the model's config.json)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {rank, score, title}")
    args = parser.parse_args()
    history, candidates = read_titles(args.history), read_titles(args.candidates)
    if not candidates:
        raise UserError(f"{args.candidates}: holds no headline")
    if not history and prompt_of(args.format).asks == LINE:
        raise UserError(
            f"{args.history}: holds no headline; without a history next_click cannot tell any apart"
        )
    asked = Options(args.format, args.model, args.template or template_of(args.model), args.adapter)
    if len(history) > asked.history_length:
        print(f"only the latest {asked.history_length} of {len(history)} clicks are read", file=sys.stderr)
    ranking = rank_titles(asked, history, candidates)
    if args.json:
        rows = [{"rank": i, "score": score, "title": title} for i, (title, score) in enumerate(ranking, 1)]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        for i, (title, score) in enumerate(ranking, 1):
            print(f"{i:>3}  {score:+8.2f}  {title}")


if __name__ == "__main__":
    cli.run(main)
