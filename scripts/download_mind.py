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

Ctrl-C or a broken line costs nothing: the same command goes on. Files downloaded by hand into the folder
are taken as they are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from mindlab import cli, doctor, download
from mindlab.errors import UserError


def main() -> int:
    """Download and check, or only check; print what was found and, last, the folder."""
    parser = cli.parser(__doc__)
    parser.add_argument("--size", choices=download.FILES, help="which MIND to fetch")
    parser.add_argument("--out", type=Path, help="where to; default data/raw/MIND<size>")
    parser.add_argument(
        "--from", dest="source", default="official", metavar="WHERE",
        help="official (default), recommenders, or the address of a folder",
    )  # fmt: skip
    parser.add_argument("--check", type=Path, metavar="DIR", help="only check this folder")
    args = parser.parse_args()
    if bool(args.check) == bool(args.size):
        raise UserError("say what to do: --size demo|small|large to fetch, or --check DIR")
    folder = args.check or args.out or Path("data/raw") / f"MIND{args.size}"
    if args.size:
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
