"""Read Microsoft's MIND: the only module that opens news.tsv and behaviors.tsv.

from mindlab.mind import read_mind
mind = read_mind("data/sample")
mind.splits["dev"].candidates(0)      # int32 indices into mind.news
"""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mindlab.errors import UserError

SPLITS = ("train", "dev", "test")
NEWS_COLUMNS = (
    "id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)
BEHAVIORS_COLUMNS = ("impression_id", "user_id", "time", "history", "impressions")
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"


@dataclass(frozen=True)
class News:
    """The news catalogue, one entry per news, in columns of equal length."""

    ids: np.ndarray  # str objects, "N123"
    category: np.ndarray  # str objects
    subcategory: np.ndarray  # str objects
    title: np.ndarray  # str objects
    abstract: np.ndarray  # str objects, may be empty
    title_entities: np.ndarray  # str objects, the JSON as in the file
    abstract_entities: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Impressions:
    """Impressions in columns; every news is an int32 index into `News`.

    Impression i shows ``news[offsets[i]:offsets[i + 1]]`` to user ``users[i]`` at ``times[i]``,
    whose history is ``history_news[history_offsets[h]:history_offsets[h + 1]]``, ``h = history[i]``,
    oldest first. MIND freezes one history per user, so each distinct history is stored once.
    """

    ids: np.ndarray  # int64 (n,), as in the file; they restart in every split
    users: np.ndarray  # str objects (n,), "U123"
    times: np.ndarray  # datetime64[s] (n,)
    history: np.ndarray  # int32 (n,), index into the distinct histories
    history_offsets: np.ndarray  # int64 (h + 1,)
    history_news: np.ndarray  # int32 (history_offsets[-1],)
    offsets: np.ndarray  # int64 (n + 1,)
    news: np.ndarray  # int32 (offsets[-1],)
    labels: np.ndarray | None  # int8 (offsets[-1],), None for the unlabelled test split

    def __len__(self) -> int:
        return len(self.ids)

    def candidates(self, i: int) -> np.ndarray:
        """Return the int32 news indices shown in impression i, in the file's order."""
        return self.news[self.offsets[i] : self.offsets[i + 1]]

    def candidate_labels(self, i: int) -> np.ndarray:
        """Return the int8 labels of impression i, aligned with `candidates`."""
        return self.labels[self.offsets[i] : self.offsets[i + 1]]

    def reader_history(self, i: int) -> np.ndarray:
        """Return the int32 news indices the reader of impression i clicked before, oldest first."""
        h = self.history[i]
        return self.history_news[self.history_offsets[h] : self.history_offsets[h + 1]]

    def without_labels(self) -> "Impressions":
        """Return the same impressions as an unlabelled test split."""
        return replace(self, labels=None)

    def take(self, rows: np.ndarray) -> "Impressions":
        """Return the impressions at int `rows`, in that order; the histories stay shared."""
        # Through arange, so that a boolean mask or a negative row means what it means in numpy.
        rows = np.arange(len(self))[np.asarray(rows) if len(rows) else slice(0)]
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = np.repeat(self.offsets[rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return replace(
            self,
            ids=self.ids[rows],
            users=self.users[rows],
            times=self.times[rows],
            history=self.history[rows],
            offsets=offsets,
            news=self.news[flat],
            labels=None if self.labels is None else self.labels[flat],
        )


@dataclass(frozen=True)
class Mind:
    """What `read_mind` returns.

    `report` is JSON-ready: ``{"files": [{"path", "bytes"}], "news", "news_rows_differing", "splits":
    {split: counts}}``. It names the files on disk that were read and counts what they held and what was
    tolerated. `news_rows_differing` are rows that repeat an id and its title with other details (the
    first row is kept); a dropped history entry counts once per distinct history.
    """

    news: News
    splits: dict[str, Impressions]
    report: dict[str, Any]


def read_mind(
    folder: str | Path, splits: Sequence[str] | None = ("train", "dev"), missing: str = "error"
) -> Mind:
    r"""Read MIND's news.tsv and behaviors.tsv, every news an int32 index into one merged catalogue.

    `folder` holds ``train/``, ``dev/``, ``test/``, or MIND's own names (``MINDsmall_train/``), or zips
    of these; or it is one split's folder (then `splits` has one entry, its name), or a zip of any of
    this. The files may be gzipped (``news.tsv.gz``). ``splits=None`` reads every split found. The news
    of all splits read are merged. Zero-width spaces (U+200B) are removed from titles and abstracts.
    A split whose candidates are bare ids (MIND's test split) has ``labels=None``.

    With ``missing="drop"``, candidates and history entries that no news.tsv read here describes are
    dropped and counted in the report, as are impressions left without a candidate.

    Raises:
        UserError: one line for anything a user can mend: a missing, empty, cut or corrupt file, a
            wrong column count, id, label or time, duplicate ids, unknown news (``missing="error"``).
        ValueError: `missing` is neither "error" nor "drop".

    Source: the format as in https://github.com/msnews/msnews.github.io/blob/master/assets/doc/introduction.md
    (which says that news.tsv has 7 columns, and lists the 8 that it has). MIND's text is not quoted:
    read with quotes on, titles and abstracts change without an error.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "news.tsv").write_text(
    ...         'N1\tnews\tus\tA "b\t\thttps://x\t[]\t[]\nN22\tsports\tnfl\tC\t\t\t[]\t[]\n')
    ...     _ = (Path(folder) / "behaviors.tsv").write_text(
    ...         "7\tU1\t11/15/2019 9:05:00 PM\tN22 N1\tN1-0 N22-1\n")
    ...     mind = read_mind(folder, splits=("dev",))
    >>> mind.news.title.tolist()
    ['A "b', 'C']
    >>> dev = mind.splits["dev"]
    >>> dev.candidates(0).tolist(), dev.candidate_labels(0).tolist(), dev.reader_history(0).tolist()
    ([0, 1], [0, 1], [1, 0])
    >>> str(dev.times[0])
    '2019-11-15T21:05:00'
    """
    if missing not in ("error", "drop"):
        raise ValueError(f'missing must be "error" or "drop", not {missing!r}')
    try:
        places = _find_splits(Path(folder), (splits,) if isinstance(splits, str) else splits)
        sources = {
            split: (_member(place, "news.tsv"), _member(place, "behaviors.tsv"))
            for split, (place, _) in places.items()
        }
    except PermissionError as error:
        raise UserError(f"{error.filename}: may not be read; check its permissions") from None
    on_disk: dict[Path, None] = {}
    for split, (_, archive) in places.items():
        on_disk.update(dict.fromkeys([archive] if archive else sources[split]))
    news, counts, differing = _read_news({split: files[0] for split, files in sources.items()})
    index = pd.Index([int(name[1:]) * 32 + len(name) - 1 for name in news.ids], dtype=np.int64)
    impressions = {}
    for split, (_, source) in sources.items():
        impressions[split], more = _read_behaviors(source, index, missing)
        counts[split].update(more)
    files = [{"path": str(path), "bytes": path.stat().st_size} for path in on_disk]
    report = {"files": files, "news": len(news), "news_rows_differing": differing, "splits": counts}
    return Mind(news, impressions, report)


_Place = Path | zipfile.Path  # a folder, on disk or in a zip
_FILE_NAMES = ("news.tsv", "news.tsv.gz", "behaviors.tsv", "behaviors.tsv.gz")
_AGAIN = "fetch it again (scripts/download_mind.py)"


def _find_splits(folder: Path, splits: Sequence[str] | None) -> dict[str, tuple[_Place, Path | None]]:
    """Return, per split, the folder of its two files and the zip on disk it is in, if any."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; pass the folder that holds train/ and dev/")
    root: _Place = folder
    archive = None
    if folder.is_file():
        if folder.suffix.lower() != ".zip":
            raise UserError(f"{folder}: this is a file; pass the folder (or .zip) that holds train/ and dev/")
        root, archive = _open_zip(folder), folder
    found = _named_splits(root, archive, splits or SPLITS)
    if not found and archive and not _holds_data(root):
        inner = [entry for entry in _entries(root) if entry.is_dir()]
        if len(inner) == 1 and not any(_is_split(inner[0].name, split) for split in SPLITS):
            root = inner[0]
            found = _named_splits(root, archive, splits or SPLITS)
    if not found and _holds_data(root):
        if splits is None:
            splits = [split for split in SPLITS if _is_split(folder.name, split)]
        if len(splits) != 1:
            raise UserError(
                f"{folder}: this is the folder of one split, not of {len(splits)}; "
                'pass the folder above it, or name the split: splits=("dev",)'
            )
        return {splits[0]: (root, archive)}
    absent = [split for split in splits or () if split not in found]
    if absent or not found:
        name = absent[0] if absent else "train"
        raise UserError(
            f"{folder}: no split {name!r} here (looked for {name}/, MINDsmall_{name}/, MINDlarge_{name}/, "
            f"MINDdemo_{name}/ or their .zip); there is: {_listing(root)}; "
            "pass the folder that holds it, or fetch it with scripts/download_mind.py"
        )
    return found


def _named_splits(
    root: _Place, archive: Path | None, splits: Sequence[str]
) -> dict[str, tuple[_Place, Path | None]]:
    found = {}
    for split in splits:
        entries = [entry for entry in _entries(root) if _is_split(entry.name, split)]
        folders = [entry for entry in entries if entry.is_dir()]
        zips = [entry for entry in entries if entry.is_file()]
        # An unpacked folder often lies beside the zip it came from, and a failed one may be empty.
        choice = [entry for entry in folders if _holds_data(_unwrap(entry))] or zips or folders
        if len(choice) > 1:
            raise UserError(
                f"{root}: split {split!r} is here more than once ({', '.join(e.name for e in choice)}); "
                "move the ones you do not want elsewhere"
            )
        for entry in choice:
            if entry.is_dir():
                found[split] = (_unwrap(entry), archive)
            else:
                found[split] = (_unwrap(_open_zip(entry)), archive or entry)
    return found


def _is_split(name: str, split: str) -> bool:
    return bool(re.fullmatch(rf"(MIND(demo|small|large)_)?{re.escape(split)}(\.zip)?", name, re.IGNORECASE))


def _entries(place: _Place) -> list[_Place]:
    entries = (entry for entry in place.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    return sorted(entries, key=lambda entry: entry.name)


def _listing(place: _Place) -> str:
    names = [entry.name + "/" * entry.is_dir() for entry in _entries(place)]
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10) or "nothing"


def _holds_data(place: _Place) -> bool:
    return any((place / name).is_file() for name in _FILE_NAMES)


def _unwrap(place: _Place) -> _Place:
    """Return `place`, or its only folder with data where it has none itself."""
    if _holds_data(place):
        return place
    inner = [entry for entry in _entries(place) if entry.is_dir() and _holds_data(entry)]
    return inner[0] if len(inner) == 1 else place


def _open_zip(path: _Place) -> zipfile.Path:
    try:
        # A zip inside a zip has no path of its own on disk.
        return zipfile.Path(zipfile.ZipFile(path if isinstance(path, Path) else path.open("rb")))
    except (zipfile.BadZipFile, EOFError, zlib.error):
        raise UserError(
            f"{path}: not a zip file (a web page or a half download saved under that name?); {_AGAIN}"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be opened ({error}); check the file and its permissions") from None


def _member(place: _Place, name: str) -> _Place:
    for candidate in (name, f"{name}.gz"):
        if (place / candidate).is_file():
            return place / candidate
    raise UserError(
        f"{str(place).rstrip('/')}/{name}: no such file (nor {name}.gz); "
        f"there is: {_listing(place)}; {_AGAIN}"
    )


_BLOCK_BYTES = 1 << 24  # bounds the memory that parsing takes beside the result


def _blocks(source: _Place) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (number of the first line, whole lines, is_cut).

    `is_cut` marks a last line without a newline, which comes as a block of its own (with one added).
    """
    line, rest = 1, b""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(source.open("rb"))
            if source.name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            while chunk := file.read(_BLOCK_BYTES):
                chunk = rest + chunk
                end = chunk.rfind(b"\n") + 1
                rest = chunk[end:]
                if end:
                    yield line, chunk[:end], False
                    line += chunk.count(b"\n", 0, end)
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{source}: the compressed file is corrupt or cut off ({error}); {_AGAIN}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: encrypted, or a compression unknown here
        raise UserError(f"{source}: cannot be read ({error}); check the file and its permissions") from None
    if rest:
        yield line, rest + b"\n", True


def _frames(source: _Place, columns: Sequence[str]) -> Iterator[tuple[int, pd.DataFrame, bool]]:
    """Yield (number of the first line, the rows as str objects, is_cut), checked for text and columns."""
    line = 0
    for line, block, is_cut in _blocks(source):
        if line == 1:
            block = block.removeprefix(b"\xef\xbb\xbf")
            if block[:1000].lstrip().startswith(b"<"):
                raise _error(source, 1, f"a web page (an error or login page), not MIND's data; {_AGAIN}")
        _check_utf8(source, line, block, is_cut)
        if b"\r\n" in block:
            block = block.replace(b"\r\n", b"\n")
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        found = 1 + np.diff(np.searchsorted(np.flatnonzero(data == ord("\t")), ends), prepend=0)
        wrong = np.flatnonzero(found != len(columns))
        if len(wrong):
            row = int(wrong[0])
            if is_cut and found[row] < len(columns):
                raise _cut_off(source, line)
            raise _error(
                source,
                line + row,
                f"{found[row]} tab-separated columns, expected {len(columns)} "
                f"({', '.join(columns)}); {_AGAIN}, and do not save it from a spreadsheet",
            )
        # QUOTE_NONE: MIND does not quote, so a title that opens with " must not swallow what follows.
        frame = pd.read_csv(
            io.BytesIO(block),
            sep="\t",
            header=None,
            names=list(columns),
            index_col=False,
            dtype=object,
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            lineterminator="\n",
            encoding="utf-8",
            low_memory=False,
        )
        yield line, frame, is_cut
    if line == 0:
        raise UserError(f"{source}: the file is empty; {_AGAIN}")


def _check_utf8(source: _Place, line: int, block: bytes, is_cut: bool) -> None:
    position = block.find(b"\0")
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_cut and error.end >= len(block) - 1:  # the newline that _blocks added follows half a character
            raise _cut_off(source, line) from None
        position = error.start
    if position >= 0:
        raise _error(
            source,
            line + block.count(b"\n", 0, position),
            f"byte {block[position]:#04x} is not UTF-8 text; {_AGAIN}, or convert it to UTF-8",
        )


def _error(source: _Place, line: int, text: str) -> UserError:
    return UserError(f"{source}, line {line}: {text}")


def _cut_off(source: _Place, line: int) -> UserError:
    return _error(source, line, f"the file is cut off in this, its last line; {_AGAIN}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _read_news(sources: dict[str, _Place]) -> tuple[News, dict[str, dict[str, int]], int]:
    frames, counts, places = [], {}, []
    for split, source in sources.items():
        parts = []
        for line, frame, is_cut in _frames(source, NEWS_COLUMNS):
            bad = np.flatnonzero(~frame["id"].str.fullmatch("N[0-9]{1,17}").to_numpy(dtype=bool))
            if len(bad):
                text = _quoted(frame["id"].iloc[bad[0]])
                raise _error(
                    source,
                    line + int(bad[0]),
                    f'{text} is not a news id, expected "N" and digits; '
                    "check that this is news.tsv and has no header",
                )
            entities = frame["abstract_entities"].iloc[-1]
            if is_cut and entities.startswith("[") and not entities.endswith("]"):
                raise _cut_off(source, line)
            for column in ("title", "abstract"):
                frame[column] = [text.replace("\u200b", "") for text in frame[column]]
            parts.append(frame.drop(columns="url"))
        frames += parts
        rows = sum(map(len, parts))
        places += [(source, line) for line in range(1, rows + 1)]
        ids = pd.concat([part["id"] for part in parts])
        counts[split] = {"news_rows": rows, "duplicate_news_rows": int(ids.duplicated().sum())}
    table = pd.concat(frames, ignore_index=True)
    codes, _ = pd.factorize(table["id"])
    first = np.unique(codes, return_index=True)[1]  # codes count up in order of appearance
    titles = table["title"].to_numpy(dtype=object)
    conflict = np.flatnonzero(titles != titles[first[codes]])
    if len(conflict):
        row = conflict[0]
        other = first[codes[row]]
        (source, line), (other_source, other_line) = places[row], places[other]
        name = table["id"].iloc[row]
        if source == other_source:
            why = (
                f"on line {other_line} of the same file; a news id may have one title: remove one of the rows"
            )
        else:
            why = (
                f"in {other_source}, line {other_line}; small and large give the same ids to different news: "
                "keep the splits of one size together"
            )
        raise _error(
            source, line, f"{name} has the title {_quoted(titles[row])}, but {_quoted(titles[other])} {why}"
        )
    differs = (table != table.iloc[first[codes]].reset_index(drop=True)).any(axis=1)
    table = table.iloc[first]
    columns = {
        "ids" if column == "id" else column: table[column].to_numpy(dtype=object) for column in table.columns
    }
    return News(**columns), counts, int(differs.sum())


class _Tokens(NamedTuple):
    """The space-separated tokens of many cells, flat."""

    data: np.ndarray  # uint8, the cells' bytes
    starts: np.ndarray  # int64 (t,), where each token starts in data
    ends: np.ndarray
    sizes: np.ndarray  # int64 (cells,), tokens per cell
    keys: np.ndarray  # int64 (t,), see _id_of; -1 for a malformed token
    labels: np.ndarray  # int8 (t,), -1 for a bare id

    def text(self, token: int) -> str:
        return self.data[self.starts[token] : self.ends[token]].tobytes().decode("utf-8")


def _id_of(key: int) -> str:
    """Return the news id of a key: 32 * the number + how many digits it is written with.

    >>> _id_of(32 * 22 + 2), _id_of(32 * 22 + 3)
    ('N22', 'N022')
    """
    return f"N{key // 32:0{key % 32}d}"


def _parse_tokens(cells: Sequence[str]) -> _Tokens:
    """Parse cells of ``N1-0 N22-1`` (labelled) or ``N1 N22`` (bare) without a loop over tokens.

    >>> tokens = _parse_tokens(["N1-0 N22-1", "", "N3", "N4-2 oops"])
    >>> tokens.sizes.tolist(), [_id_of(key) for key in tokens.keys[:3]], tokens.labels[:3].tolist()
    ([2, 0, 1, 2], ['N1', 'N22', 'N3'], [0, 1, -1])
    >>> tokens.keys[3:].tolist(), tokens.text(4)
    ([-1, -1], 'oops')
    """
    data = np.frombuffer("\n".join([*cells, ""]).encode("utf-8"), dtype=np.uint8)
    is_token = (data != ord(" ")) & (data != ord("\n"))
    edges = np.flatnonzero(np.diff(is_token, prepend=False))  # the last byte is never in a token
    starts, ends = edges[::2], edges[1::2]
    sizes = np.diff(np.searchsorted(starts, np.flatnonzero(data == ord("\n"))), prepend=0)
    is_labelled = (ends - starts >= 4) & (data[ends - 2] == ord("-"))
    labels = np.where(is_labelled, data[ends - 1].astype(np.int8) - np.int8(ord("0")), np.int8(-1))
    digits = ends - starts - 1 - 2 * is_labelled
    is_good = (data[starts] == ord("N")) & (digits >= 1) & (digits <= 17) & (labels <= 1)
    is_good &= ~is_labelled | (labels >= 0)
    numbers = np.zeros(len(starts), dtype=np.int64)
    for k in range(min(int(digits.max(initial=0)), 17)):
        is_here = k < digits
        digit = data[np.where(is_here, starts + 1 + k, 0)] - np.uint8(ord("0"))  # wraps: not a digit is > 9
        is_good &= ~is_here | (digit <= 9)
        numbers = np.where(is_here, numbers * 10 + digit, numbers)
    return _Tokens(data, starts, ends, sizes, np.where(is_good, numbers * 32 + digits, -1), labels)


@dataclass
class _Catalogue:
    """Turns keys into news indices, and keeps count of the news that the catalogue lacks."""

    index: pd.Index
    seen: np.ndarray = field(init=False)
    unknown: dict[int, None] = field(default_factory=dict)  # keys, in order of appearance
    first_line: int = 0

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.index), dtype=bool)

    def look_up(self, keys: np.ndarray, lines: np.ndarray) -> np.ndarray:
        news = self.index.get_indexer(keys).astype(np.int32)
        self.seen[news[news >= 0]] = True
        absent = np.flatnonzero(news < 0)
        if len(absent):
            self.unknown.update(dict.fromkeys(pd.unique(keys[absent]).tolist()))
            line = int(lines[absent].min())
            self.first_line = min(self.first_line or line, line)
        return news

    def check(self, source: _Place, missing: str) -> None:
        if not self.unknown:
            return
        known = int(self.seen.sum())
        total = known + len(self.unknown)
        if known < 0.5 * total:
            raise _error(
                source,
                self.first_line,
                f"news.tsv covers only {known} of the {total} news ids in this file: probably a mix of small "
                "and large, which use different news ids; use the news.tsv that came with this file",
            )
        if missing == "error":
            some = ", ".join(map(_id_of, list(self.unknown)[:5]))
            raise _error(
                source,
                self.first_line,
                f"{len(self.unknown)} of the {total} news ids in this file are not in news.tsv ({some}"
                f"{', ...' * (len(self.unknown) > 5)}), the first on this line; use the news.tsv that came "
                'with this file (small and large do not mix), or drop them with missing="drop"',
            )


def _read_behaviors(
    source: _Place, index: pd.Index, missing: str
) -> tuple[Impressions, dict[str, int | None]]:
    catalogue = _Catalogue(index)
    histories: dict[str, int] = {}
    history_sizes, history_news = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ids", "users", "times", "history", "sizes", "news", "labels")
    }
    dropped_candidates = dropped_history = 0
    has_labels = None
    for line, frame, is_cut in _frames(source, BEHAVIORS_COLUMNS):
        lines = np.arange(line, line + len(frame))
        ids, times = _parse_ids(source, line, frame), _parse_times(source, line, frame)

        codes, uniques = pd.factorize(frame["history"])
        texts = list(uniques)
        new = [code for code, text in enumerate(texts) if text not in histories]
        histories.update({texts[code]: len(histories) + k for k, code in enumerate(new)})
        first_lines = lines[np.unique(codes, return_index=True)[1]]
        tokens = _parse_tokens([texts[code] for code in new])
        token_lines = np.repeat(first_lines[new], tokens.sizes)
        _check_history(source, tokens, token_lines)
        found = catalogue.look_up(tokens.keys, token_lines)
        dropped_history += int((found < 0).sum())
        history_sizes.append(_kept_sizes(tokens.sizes, found))
        history_news.append(found[found >= 0])

        tokens = _parse_tokens(frame["impressions"])
        token_lines = np.repeat(lines, tokens.sizes)
        if has_labels is None and len(tokens.labels):
            has_labels = bool("-" in tokens.text(0))
        _check_candidates(source, lines, tokens, token_lines, has_labels, is_cut)
        found = catalogue.look_up(tokens.keys, token_lines)
        dropped_candidates += int((found < 0).sum())

        columns["ids"].append(ids)
        columns["users"].append(frame["user_id"].to_numpy(dtype=object))
        columns["times"].append(times)
        columns["history"].append(np.array([histories[text] for text in texts], dtype=np.int32)[codes])
        columns["sizes"].append(_kept_sizes(tokens.sizes, found))
        columns["news"].append(found[found >= 0])
        columns["labels"].append(tokens.labels[found >= 0])
    catalogue.check(source, missing)

    rows = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    _check_unique(source, rows["ids"])
    sizes, news, labels = rows.pop("sizes"), rows.pop("news"), rows.pop("labels")
    is_kept = sizes > 0
    if not is_kept.any():
        raise UserError(
            f"{source}: no impression has a candidate known to news.tsv; use the news.tsv that came with it"
        )
    rows = {name: column[is_kept] for name, column in rows.items()}
    impressions = Impressions(
        **rows,
        history_offsets=_offsets(np.concatenate(history_sizes)),
        history_news=np.concatenate(history_news),
        offsets=_offsets(sizes[is_kept]),
        news=news,
        labels=labels if has_labels else None,
    )
    counts = {
        "impressions": len(impressions),
        "users": len(pd.unique(impressions.users)),
        "distinct_histories": len(histories),
        "candidates": len(news),
        "clicks": None,
        "impressions_without_click": None,
        "unknown_news": len(catalogue.unknown),
        "dropped_candidates": dropped_candidates,
        "dropped_history_entries": dropped_history,
        "dropped_impressions": int((~is_kept).sum()),
    }
    if has_labels:
        clicks = np.add.reduceat(labels, impressions.offsets[:-1], dtype=np.int64)
        counts.update(clicks=int(clicks.sum()), impressions_without_click=int((clicks == 0).sum()))
    return impressions, counts


def _parse_ids(source: _Place, line: int, frame: pd.DataFrame) -> np.ndarray:
    for row, text in enumerate(frame["impression_id"]):
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise _error(
                source,
                line + row,
                f"{_quoted(text)} is not an impression id, expected a whole number; "
                "check that this is behaviors.tsv and has no header",
            )
    return frame["impression_id"].to_numpy().astype(np.int64)


def _parse_times(source: _Place, line: int, frame: pd.DataFrame) -> np.ndarray:
    times = pd.to_datetime(frame["time"], format=TIME_FORMAT, errors="coerce")
    bad = np.flatnonzero(times.isna())
    if len(bad):
        raise _error(
            source,
            line + int(bad[0]),
            f"{_quoted(frame['time'].iloc[bad[0]])} is not a time like 11/15/2019 9:05:00 PM; {_AGAIN}",
        )
    return times.to_numpy(dtype="datetime64[s]")


def _check_history(source: _Place, tokens: _Tokens, lines: np.ndarray) -> None:
    wrong = np.flatnonzero((tokens.keys < 0) | (tokens.labels >= 0))
    if len(wrong):
        raise _error(
            source,
            int(lines[wrong[0]]),
            f"{_quoted(tokens.text(wrong[0]))} in the history is not a news id, "
            f'expected "N" and digits; {_AGAIN}',
        )


def _check_candidates(
    source: _Place,
    lines: np.ndarray,
    tokens: _Tokens,
    token_lines: np.ndarray,
    has_labels: bool | None,
    is_cut: bool,
) -> None:
    empty = np.flatnonzero(tokens.sizes == 0)
    if len(empty):
        if is_cut:
            raise _cut_off(source, int(lines[0]))
        raise _error(
            source, int(lines[empty[0]]), f"an impression with no candidates; remove the line or {_AGAIN}"
        )
    wrong = np.flatnonzero((tokens.keys < 0) | ((tokens.labels >= 0) != has_labels))
    if not len(wrong):
        return
    token = int(wrong[0])
    if is_cut and token == len(tokens.keys) - 1 and tokens.labels[token] < 0:
        raise _cut_off(source, int(lines[0]))
    text = tokens.text(token)
    match = re.fullmatch("N[0-9]{1,17}(-.*)?", text)
    if match is None:
        what = (
            f'{_quoted(text)} is not a candidate, expected "N", digits and -0 or -1, such as N123-0; {_AGAIN}'
        )
    elif match[1] not in (None, "-0", "-1"):
        what = f"candidate {_quoted(text)} has a label other than 0 or 1; MIND marks a click -1, all else -0"
    elif has_labels:
        what = (
            f"candidate {text} has no label, but those before it have; label all candidates of a file or none"
        )
    else:
        what = f"candidate {text} has a label, but those before it have none; keep the test split by itself"
    raise _error(source, int(token_lines[token]), what)


def _check_unique(source: _Place, ids: np.ndarray) -> None:
    again = np.flatnonzero(pd.Series(ids).duplicated())
    if len(again):
        value = ids[again[0]]
        raise _error(
            source,
            int(again[0]) + 1,
            f"impression id {value} was already used on line {int(np.argmax(ids == value)) + 1}; "
            "ids are unique within a split: renumber or remove one (were two files joined?)",
        )


def _kept_sizes(sizes: np.ndarray, news: np.ndarray) -> np.ndarray:
    """Return how many of each cell's tokens are known news."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(rows[news >= 0], minlength=len(sizes)).astype(np.int64)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
