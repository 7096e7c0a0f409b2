"""What a repository keeps of a run: its small files, and its table in a document."""

import argparse
import shutil
from pathlib import Path

from mindlab.common.errors import UserError
from mindlab.common.files import write_text
from mindlab.evaluation.predictions import seed_files
from mindlab.finetune import factory

OF_ADAPTER = ("adapter_config.json", factory.RECORD, factory.LOSSES, "train_results.json")
LARGEST_KEPT = 5_000_000  # bytes of an adapter's weights: what a repository should carry


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Give a script the options --keep and --update; `what` of a run is copied."""
    parser.add_argument("--keep", type=Path, metavar="DIR", help=f"also copy {what} to DIR")
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="also put the table between FILE's marks of DIR"
    )


def check(args: argparse.Namespace) -> None:
    """Raise UserError if the table of --update has no place: before the work, not after it."""
    if args.update and not args.keep:
        raise UserError("--update needs --keep: a table in a document stands beside what it was made from")
    if args.update:
        around(args.update, args.keep)


def keep(files: list[Path], folder: Path) -> None:
    """Copy files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def keep_run(run: Path, folder: Path) -> None:
    """Copy the manifest and the predictions of a run folder to ``folder/NAME``."""
    keep([run / "manifest.json", *seed_files(run)], folder / run.name)


def keep_adapter(adapter: Path, folder: Path) -> int:
    """Copy an adapter's settings and losses, and its weights if they are small; return the weights' bytes."""
    weights = adapter / "adapter_model.safetensors"
    size = weights.stat().st_size
    keep(
        [*(adapter / name for name in OF_ADAPTER), *([weights] if size <= LARGEST_KEPT else [])],
        folder / "adapter",
    )
    return size


def around(file: Path, folder: Path) -> tuple[str, str]:
    """Return what stands before and after the table of `folder` in a Markdown file, marks included.

    Raises:
        UserError: if the file has no such marks.
    """
    first, last = f"<!-- {folder.as_posix()} -->\n", f"<!-- /{folder.as_posix()} -->"
    head, begin, rest = file.read_text(encoding="utf-8").partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise UserError(f"{file}: has no {first.strip()} and {last} marks")
    return head + begin, end + tail


def has(file: Path, mark: Path) -> bool:
    """Return whether a Markdown file has marks of that name."""
    return f"<!-- {mark.as_posix()} -->" in file.read_text(encoding="utf-8")


def update(file: Path, folder: Path, table: str) -> None:
    """Replace what stands between a Markdown file's marks of `folder` by a table of plain text."""
    put(file, folder, f"```\n{table.strip()}\n```")


def put(file: Path, mark: Path, text: str) -> None:
    """Replace what stands between a Markdown file's marks of that name."""
    head, tail = around(file, mark)
    write_text(file, f"{head}{text.strip()}\n{tail}")
