"""Get Microsoft's MIND from its owner, or check a copy of it.

MIND may not be redistributed. Before the first download, in a browser: read the licence terms on
https://msnews.github.io/, log in at https://huggingface.co/datasets/yjw1029/MIND and accept them there.
Then give this machine your token, once: `hf auth login`, or HF_TOKEN in the environment.

  python scripts/download_mind.py --size small --out data/raw/MINDsmall
      MINDsmall, 84 MB in two zips, which need no unpacking; large: 635 MB without its test split
  python scripts/download_mind.py --check data/raw/MINDsmall
      is it whole, is it MIND, is it one size: a line for each fault, with what to do; exit code 1 if any
  python scripts/download_mind.py --size demo --out data/raw/MINDdemo --from recommenders
  python scripts/download_mind.py --size small --out data/raw/MINDsmall --from https://my.server/mind/
      from another place that you may use: no token is sent there

400 impressions of MINDsmall's dev that GPT-4 was measured on, and 100 to choose on, as published with the RecPrompt
paper (https://arxiv.org/abs/2312.10463; 3.5 MB, no account needed). They are MIND too: read its licence, then say so.

  python scripts/download_mind.py --size recprompt --accept-licence --out data/raw/recprompt
      a MIND folder without a training split: dev/ holds the 400, valid/ the 100
  python scripts/download_mind.py --size recprompt --accept-licence --out data/raw/recprompt --from Downloads
      from a folder that holds MIND_test.csv and MIND_valid.csv; with --any-contents, from a pair of your own
  python scripts/download_mind.py --check data/raw/recprompt

Ctrl-C or a broken line costs nothing: the same command goes on. Files downloaded by hand into the folder
are taken as they are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data import check as doctor
from mindlab.data import download, recprompt

RECPROMPT = "recprompt"
SIZES = (*download.FILES, RECPROMPT)


def main() -> int:
    """Download and check, or only check; print what was found and, last, the folder."""
    parser = cli.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, help="which MIND to fetch")
    parser.add_argument(
        "--out", type=Path, help="where to; default data/raw/MIND<size>, or data/raw/recprompt"
    )
    parser.add_argument(
        "--from", dest="source", default="official", metavar="WHERE",
        help="official (default), recommenders, or the address of a folder; of recprompt also a folder on the disk",
    )  # fmt: skip
    parser.add_argument(
        "--accept-licence", action="store_true", help="you have read MIND's licence; recprompt needs it"
    )
    parser.add_argument(
        "--any-contents", action="store_true",
        help="recprompt: take a pair of CSVs of the same form that are not the published ones",
    )  # fmt: skip
    parser.add_argument("--check", type=Path, metavar="DIR", help="only check this folder")
    args = parser.parse_args()
    if bool(args.check) == bool(args.size):
        raise UserError(f"say what to do: --size {'|'.join(SIZES)} to fetch, or --check DIR")
    if args.any_contents and args.size != RECPROMPT:
        raise UserError("--any-contents goes with --size recprompt alone")
    name = RECPROMPT if args.size == RECPROMPT else f"MIND{args.size}"
    folder = args.check or args.out or Path("data/raw") / name
    if args.size == RECPROMPT:
        if not args.accept_licence:
            raise UserError(
                "these impressions are Microsoft's MIND, for research that earns no money, not to be passed on: read "
                f"the licence, {download.LICENCE}, and run again with --accept-licence"
            )
        expected = None if args.any_contents else recprompt.SHA256
        recprompt.get(folder, find_recprompt(args.source), expected, log, bars)
    elif args.size:
        log(f"MIND is Microsoft's, for research that earns no money, not to be passed on: {download.LICENCE}")
        route = find_route(args.source, args.size)
        for name in download.FILES[args.size]:
            download.fetch(name, folder, route, log, bars)
    log(f"reading {folder}")
    findings = doctor.examine(folder)
    for finding in findings:
        print(finding)
    print(folder)
    return int(any(finding.is_fault for finding in findings))


def find_route(source: str, size: str) -> download.Route:
    """Return where to download from."""
    if source == "recommenders":
        return download.Route(download.RECOMMENDERS)
    if source == "official":
        if size == "demo":
            raise UserError("the official page has no MINDdemo; --from recommenders is its only known place")
        return download.official()
    if not source.startswith(("http://", "https://")):
        raise UserError(f"--from {source}: expected official, recommenders, or an address with https://")
    return download.Route(source.rstrip("/") + "/")


def find_recprompt(source: str) -> Path | download.Route:
    """Return the folder that holds the CSVs, or where to download them from."""
    if source == "official":
        return recprompt.route()
    if source.startswith(("http://", "https://")):
        return recprompt.route(source.rstrip("/") + "/")
    if not Path(source).is_dir():
        raise UserError(
            f"--from {source}: expected a folder that holds {' and '.join(recprompt.FILES.values())}, or an address "
            "with https://"
        )
    return Path(source)


def log(line: str) -> None:
    """Print one line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bars(name: str) -> Iterator[tqdm]:
    """Show a progress bar in bytes."""
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar


if __name__ == "__main__":
    cli.run(main)
