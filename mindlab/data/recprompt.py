"""Make a MIND-shaped folder of the impressions that RecPrompt measured GPT-4 on.

`scripts/download_mind.py --size recprompt --accept-licence --out data/raw/recprompt`

RecPrompt (Liu et al., https://arxiv.org/abs/2312.10463) published, with its code, the 400 impressions of MINDsmall's
dev that its table was measured on and 100 more to choose prompts on, as two CSVs. They are MIND, so MIND's licence
holds. The rule by which they become ``dev/`` (the 400) and ``valid/`` (the 100), each with a news.tsv and a
behaviors.tsv; there is no training split:

- The order of the impressions and of the candidates is the CSV's. The click stands at each of ten places equally often
  by construction, so no method may use a place.
- The CSVs name no user: each impression is its own, "U" and the impression's id. They have no time: all are at noon of
  MIND's dev day. They have no address and no entities: empty, and "[]".
- Titles, abstracts and categories lose the blanks around them; control characters within become blanks.
- A news article is written once a split, by the number of its id; where its details differ, the first count, the 400
  before the 100. An empty abstract is an empty line of its list, so all lists of a row are equally long; a row where
  they are not is refused.
"""

import csv
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from mindlab.common.errors import UserError
from mindlab.common.files import lock, read_json, sha256, write_json, write_text
from mindlab.data import download

REPOSITORY = "https://github.com/Ruixinhua/rec-prompt"
COMMIT = "f906bf27c78e4970bd3997afa565108bd6b4085b"
BASE = f"https://raw.githubusercontent.com/Ruixinhua/rec-prompt/{COMMIT}/data/"
FILES = {"dev": "MIND_test.csv", "valid": "MIND_valid.csv"}  # by MIND's name of the split; in this order
SHA256 = {
    "MIND_test.csv": "4f23e1e34c76b8dc52bb74740247c89d5fda03e91e4aefcfc99ec169172379d4",
    "MIND_valid.csv": "12015bb465dd0998e9495c5894011abf5c7ae7bcb79712f0095e989ba4b19a9d",
}
TIME = "11/15/2019 12:00:00 PM"
MANIFEST = "manifest.json"
WHAT = "the impressions of RecPrompt's table, in MIND's form"
RULE = (
    "user = U + impression id; time = noon of 15 November 2019; empty address and entities; texts without the blanks "
    "around them, control characters as blanks; each news article once a split, the first details count"
)

_DETAILS = ("news_id", "title", "category", "subvert", "abstract")  # "subvert" is the subcategory
_COLUMNS = (
    *("impression_id", "candidate", "label"),
    *(f"{part}_{name}" for part in ("history", "candidate") for name in _DETAILS),
)
_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


class Article(NamedTuple):
    """A news article, as one row of the CSVs tells it."""

    id: str  # "N123"
    title: str
    category: str
    subcategory: str
    abstract: str


class Row(NamedTuple):
    """One impression; `click` is the index of the clicked candidate."""

    id: int
    history: list[Article]  # in the CSV's order
    candidates: list[Article]
    click: int


def route(base: str = BASE) -> download.Route:
    """Return where to download the CSVs from: the published repository at its commit, unless told otherwise."""
    return download.Route(
        base, kind="CSV", start=b"impression_id,", page=f"{REPOSITORY}/tree/{COMMIT}/data", then="run again"
    )


def get(
    out: Path,
    source: Path | download.Route,
    expected: Mapping[str, str] | None = SHA256,
    log: Callable[[str], None] = lambda line: None,
    bars: download.Bars = lambda name: nullcontext(None),
) -> bool:
    """Write the folder `out` from the two CSVs, unless it is there; return whether anything was done.

    `source` is a folder that holds the CSVs, or where to download them from (they stay in `out`, and what is there
    is not fetched again). `expected` holds the SHA-256 of each; None takes any pair of the same form. The manifest
    is written last. Raises UserError for another SHA-256, a file that is no such CSV, and an `out` that holds the
    rows of other CSVs.
    """
    if isinstance(source, Path):
        csvs = {split: source / name for split, name in FILES.items()}
        for path in csvs.values():
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file; --from takes a folder that holds {' and '.join(FILES.values())}"
                )
            _check_hash(path, expected)
        hashes = {path.name: sha256(path) for path in csvs.values()}
    else:
        csvs, hashes = {split: out / name for split, name in FILES.items()}, expected
    known = _manifest(out)
    if known is not None and hashes is not None and known.get("csv_sha256") != dict(hashes):
        raise UserError(f"{out}: holds the rows of other CSVs (see its {MANIFEST}); choose another --out")
    if known is not None and not changed(out):
        log(f"{out}: already here")
        return False
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, expected a folder; choose another --out")
    with lock(out):
        if not isinstance(source, Path):
            for path in csvs.values():
                _download(path, source, expected, log, bars)
            hashes = {path.name: sha256(path) for path in csvs.values()}
        rows = read_pair(csvs)
        (out / MANIFEST).unlink(missing_ok=True)  # it must not stand beside files that it does not describe
        texts = as_tsv(rows)
        for name, text in texts.items():
            write_text(out / name, text)
        write_json(out / MANIFEST, _describe(out, rows, hashes, texts))
    return True


def is_one(folder: str | Path) -> bool:
    """Return whether a folder was written by `get`, and whole."""
    return _manifest(Path(folder)) is not None


def is_published(folder: str | Path) -> bool:
    """Return whether a folder was written by `get` from the published CSVs, whose table has GPT-4 in it."""
    return (_manifest(Path(folder)) or {}).get("csv_sha256") == SHA256


def changed(folder: str | Path) -> list[str]:
    """Return the files of a folder written by `get` that are not as it wrote them, by their name in it."""
    folder = Path(folder)
    written = (_manifest(folder) or {}).get("sha256", {})
    return [
        name
        for name, value in written.items()
        if not (folder / name).is_file() or sha256(folder / name) != value
    ]


def read_pair(csvs: Mapping[str, Path]) -> dict[str, list[Row]]:
    """Return the impressions of each split's CSV; UserError also for an id that both have."""
    rows = {split: read_csv(path) for split, path in csvs.items()}
    seen: dict[int, Path] = {}
    for split, found in rows.items():
        for row in found:
            if row.id in seen:
                raise UserError(
                    f"{csvs[split]}: impression {row.id} is also in {seen[row.id]}; no impression may both be chosen "
                    "on and be reported: remove one"
                )
            seen[row.id] = csvs[split]
    return rows


def read_csv(path: Path) -> list[Row]:
    """Return the impressions of one CSV, in its order.

    Raises:
        UserError: one line that names the file and, where it is one, the row (the first below the header is 1).
    """
    rows: list[Row] = []
    first: dict[int, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise UserError(
                    f"{path}: no column {', '.join(absent)}; expected a CSV with {', '.join(_COLUMNS)}"
                )
            for number, cells in enumerate(reader, 1):
                try:
                    row = _parse(cells)
                    if row.id in first:
                        raise ValueError(f"impression {row.id} was already in row {first[row.id]}")
                except ValueError as error:
                    raise UserError(f"{path}, row {number}: {error}; fetch the file again") from None
                first[row.id] = number
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV in UTF-8 ({error}); fetch the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not rows:
        raise UserError(f"{path}: no row below the header; fetch the file again")
    return rows


def as_tsv(rows: Mapping[str, list[Row]]) -> dict[str, str]:
    """Return the text of each file of the folder, by its name in it: ``dev/news.tsv`` and so on."""
    known: dict[str, Article] = {}
    texts = {}
    for split, found in rows.items():
        here = {article.id for row in found for article in (*row.history, *row.candidates)}
        for row in found:
            for article in (*row.history, *row.candidates):
                known.setdefault(article.id, article)
        # By number, so that not even the place in the catalogue tells where a candidate stood.
        news = [known[name] for name in sorted(here, key=lambda name: (int(name[1:]), name))]
        texts[f"{split}/news.tsv"] = _lines(
            (a.id, a.category, a.subcategory, a.title, a.abstract, "", "[]", "[]") for a in news
        )
        texts[f"{split}/behaviors.tsv"] = _lines(
            (
                str(row.id),
                f"U{row.id}",
                TIME,
                " ".join(article.id for article in row.history),
                " ".join(f"{article.id}-{int(k == row.click)}" for k, article in enumerate(row.candidates)),
            )
            for row in found
        )
    return texts


def clean(text: str) -> str:
    r"""Return a text of a CSV as MIND's files may hold it.

    >>> clean(" A\tB\u2028C ")
    'A B C'
    """
    return _CONTROL.sub(" ", text).strip()


def _lines(rows: Any) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _parse(cells: Mapping[str, Any]) -> Row:
    """Return a row of the CSV; ValueError says what is wrong with it."""
    if None in cells or None in cells.values():
        raise ValueError(f"expected {len(cells) - (None in cells)} cells, as the header has")
    number, label = cells["impression_id"], cells["label"]
    if not re.fullmatch("[0-9]{1,18}", number, re.ASCII):
        raise ValueError(f"impression_id {number[:30]!r}, expected digits")
    history, candidates = _articles(cells, "history"), _articles(cells, "candidate")
    # `label` counts the lines of this column.
    shown = [" ".join(line.split()) for line in cells["candidate"].split("\n")]
    titles = [" ".join(f"C{k}: {article.title}".split()) for k, article in enumerate(candidates, 1)]
    if shown != titles:
        raise ValueError("the lines of candidate are not C1, C2, ... with the titles of candidate_title")
    place = re.fullmatch("C([1-9][0-9]{0,3})", label.strip(), re.ASCII)
    if not place or int(place[1]) > len(candidates):
        raise ValueError(
            f"label {label[:30]!r}, expected the clicked candidate, one of C1 to C{len(candidates)}"
        )
    names = [article.id for article in candidates]
    if len(set(names)) < len(names):
        raise ValueError("a news article is twice among the candidates")
    return Row(int(number), history, candidates, int(place[1]) - 1)


def _articles(cells: Mapping[str, str], part: str) -> list[Article]:
    lists = {name: [clean(text) for text in cells[f"{part}_{name}"].split("\n")] for name in _DETAILS}
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} in {part}_{name}" for name, size in sizes.items())
        raise ValueError(f"lists of unequal length ({told})")
    for name in lists["news_id"]:
        if not re.fullmatch("N[0-9]{1,17}", name, re.ASCII):
            raise ValueError(f'{part}_news_id has {name[:30]!r}, expected "N" and digits')
    return [Article(*details) for details in zip(*lists.values(), strict=True)]


def _check_hash(path: Path, expected: Mapping[str, str] | None) -> None:
    if expected is not None and (found := sha256(path)) != expected[path.name]:
        raise UserError(
            f"{path}: SHA-256 is {found}, the published file's is {expected[path.name]}; fetch it again from "
            f"{REPOSITORY} at commit {COMMIT}, or pass --any-contents for a pair of your own of the same form"
        )


def _download(
    path: Path,
    source: download.Route,
    expected: Mapping[str, str] | None,
    log: Callable[[str], None],
    bars: download.Bars,
) -> None:
    if path.exists():
        log(f"{path}: already here")
        _check_hash(path, expected)
        return
    part, _ = download.transfer(path.name, path.parent, source, log, bars)
    found = sha256(part)
    if expected is not None and found != expected[path.name]:
        part.unlink()
        raise UserError(
            f"{path}: SHA-256 is {found}, the published file's is {expected[path.name]}; run again to fetch it anew"
        )
    part.replace(path)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder written by `get`, None if there is none or it is of other data."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    known = read_json(path, f"delete it and run scripts/download_mind.py again for {folder}")
    return known if known.get("what") == WHAT else None


def _describe(
    out: Path, rows: Mapping[str, list[Row]], hashes: Mapping[str, str], texts: Mapping[str, str]
) -> dict[str, Any]:
    is_published = dict(hashes) == SHA256
    return {
        "what": WHAT,
        "source": {"repository": REPOSITORY, "commit": COMMIT} if is_published else "a pair of one's own",
        "csv_sha256": dict(hashes),
        "rule": RULE,
        "licence": f"MIND is Microsoft's, for research that earns no money, not to be passed on: {download.LICENCE}",
        "impressions": {split: len(found) for split, found in rows.items()},
        "sha256": {name: sha256(out / name) for name in texts},
    }
