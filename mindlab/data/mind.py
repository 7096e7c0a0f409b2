"""Read Microsoft's MIND: the only module that opens news.tsv and behaviors.tsv.

from mindlab.data.mind import read_mind
mind = read_mind("data/sample")
mind.splits["dev"].candidates(0)      # int32 indices into mind.news
"""

import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.common.errors import UserError
from mindlab.common.files import check_zip
from mindlab.common.parallel import thread_map

# Training runs from 9 to 14 November 2019, dev is the 15th; what is chosen is chosen on the 14th.
VALIDATION_DAY = np.datetime64("2019-11-14")
SPLITS = ("train", "valid", "dev", "test")  # MIND has no valid/; a folder without train/ may hold one
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
_TAKEN_ROWS = 1 << 16  # impressions that are copied at a time


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

    def user_history(self, i: int) -> np.ndarray:
        """Return the int32 news indices the user of impression i clicked before, oldest first."""
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
        news = np.empty(offsets[-1], self.news.dtype)
        labels = None if self.labels is None else np.empty(offsets[-1], self.labels.dtype)
        shift = self.offsets[rows] - offsets[:-1]
        for first in range(0, len(rows), _TAKEN_ROWS):  # the places of all candidates would take 8 bytes each
            some = slice(first, min(first + _TAKEN_ROWS, len(rows)))
            begin, end = offsets[some.start], offsets[some.stop]
            places = np.repeat(shift[some], sizes[some]) + np.arange(begin, end)
            news[begin:end] = self.news[places]
            if labels is not None:
                labels[begin:end] = self.labels[places]
        return replace(
            self,
            ids=self.ids[rows],
            users=self.users[rows],
            times=self.times[rows],
            history=self.history[rows],
            offsets=offsets,
            news=news,
            labels=labels,
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


def no_impressions() -> Impressions:
    """Return labelled impressions of which there are none, nor histories: what there is to learn from without train/."""
    return Impressions(
        ids=np.zeros(0, np.int64),
        users=np.zeros(0, object),
        times=np.zeros(0, "datetime64[s]"),
        history=np.zeros(0, np.int32),
        history_offsets=np.zeros(1, np.int64),
        history_news=np.zeros(0, np.int32),
        offsets=np.zeros(1, np.int64),
        news=np.zeros(0, np.int32),
        labels=np.zeros(0, np.int8),
    )


def splits_in(folder: str | Path) -> tuple[str, ...]:
    """Return the splits that a folder or zip holds, in the order of `SPLITS`; UserError as of `read_mind` if none."""
    try:
        return tuple(_find_splits(Path(folder), None))
    except PermissionError as error:
        raise UserError(f"{error.filename}: may not be read; check its permissions") from None


def read_mind(
    folder: str | Path, splits: Sequence[str] | None = ("train", "dev"), missing: str = "error"
) -> Mind:
    r"""Read MIND's news.tsv and behaviors.tsv, every news an int32 index into one merged catalogue.

    `folder` holds ``train/``, ``dev/``, ``test/`` (or ``valid/``), or MIND's own names (``MINDsmall_train/``), or zips
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
    >>> dev.candidates(0).tolist(), dev.candidate_labels(0).tolist(), dev.user_history(0).tolist()
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
    keys = np.array([int(name[1:]) * 32 + len(name) - 1 for name in news.ids], dtype=np.int64)
    impressions = {}
    for split, (_, source) in sources.items():
        impressions[split], more = _read_behaviors(source, keys, missing)
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
        archive = zipfile.ZipFile(path if isinstance(path, Path) else path.open("rb"))
        check_zip(archive, str(path))
        return zipfile.Path(archive)
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


_MOST_LINE = 1 << 23  # bytes of a line: parsing takes some thirty times as many
_BLOCK_BYTES = 1 << 22  # bounds the memory that parsing takes beside the result, and fits a cache


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
                if len(rest) > _MOST_LINE:
                    line += chunk.count(b"\n", 0, end)
                    raise _error(
                        source,
                        line,
                        f"longer than {_MOST_LINE:,} bytes, expected one news or impression (MIND's have some "
                        f"thousands); {_AGAIN}, or give each its line",
                    )
                if end:
                    yield line, chunk[:end], False
                    line += chunk.count(b"\n", 0, end)
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{source}: the compressed file is corrupt or cut off ({error}); {_AGAIN}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: encrypted, or a compression unknown here
        raise UserError(f"{source}: cannot be read ({error}); check the file and its permissions") from None
    if rest:
        yield line, rest + b"\n", True


class _Block(NamedTuple):
    """Whole lines of a file, as columns of text."""

    line: int  # number of the first
    columns: dict[str, pa.StringArray]
    is_cut: bool  # see _blocks

    @property
    def lines(self) -> np.ndarray:
        return np.arange(self.line, self.line + len(next(iter(self.columns.values()))))


def _parse_block(source: _Place, columns: Sequence[str], line: int, block: bytes, is_cut: bool) -> _Block:
    """Return the lines as columns, checked for text and column count.

    MIND does not quote, so the lines are split at tabs and nothing else: a title that opens with " must not
    swallow what follows.
    """
    if line == 1:
        block = block.removeprefix(b"\xef\xbb\xbf")
        if block[:1000].lstrip().startswith(b"<"):
            raise _error(source, 1, f"a web page (an error or login page), not MIND's data; {_AGAIN}")
    _check_utf8(source, line, block, is_cut)
    if b"\r\n" in block:
        block = block.replace(b"\r\n", b"\n")
    ends = pa.py_buffer(np.array([0, len(block) - 1], np.int32))
    text = pa.StringArray.from_buffers(1, ends, pa.py_buffer(block))
    cells = pc.split_pattern(pc.split_pattern(text, "\n").flatten(), "\t")
    found = pc.list_value_length(cells).to_numpy()
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
    flat = cells.flatten()
    every = np.arange(0, len(flat), len(columns))
    return _Block(line, {name: flat.take(pa.array(every + k)) for k, name in enumerate(columns)}, is_cut)


def _parsed(source: _Place, parse: Callable[[int, bytes, bool], Any]) -> Iterator[Any]:
    """Yield what `parse` makes of each block of the file, in order, on all cores."""
    is_empty = True
    for found in thread_map(lambda block: parse(*block), _blocks(source)):
        is_empty = False
        yield found
    if is_empty:
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
    tables, counts, places = [], {}, []
    for split, source in sources.items():
        parts = list(_parsed(source, lambda *block, source=source: _parse_news(source, *block)))
        tables += parts
        rows = sum(map(len, parts))
        places += [(source, line) for line in range(1, rows + 1)]
        distinct = pc.count_distinct(pa.chunked_array([part["id"] for part in parts])).as_py()
        counts[split] = {"news_rows": rows, "duplicate_news_rows": rows - distinct}
    table = pa.Table.from_batches(tables).combine_chunks()
    encoded = table["id"].combine_chunks().dictionary_encode()  # codes count up in order of appearance
    codes = encoded.indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    again = np.flatnonzero(first[codes] != np.arange(len(codes)))
    earlier = first[codes[again]]
    differs = np.zeros(len(again), bool)
    for name in table.column_names:
        is_other = pc.not_equal(table[name].take(again), table[name].take(earlier)).to_numpy()
        differs |= is_other
        if name == "title" and is_other.any():
            at = np.flatnonzero(is_other)[0]
            raise _title_conflict(table, int(again[at]), int(earlier[at]), places)
    table = table.take(first)
    columns = {
        "ids" if name == "id" else name: table[name].to_numpy(zero_copy_only=False)
        for name in table.column_names
    }
    return News(**columns), counts, int(differs.sum())


def _parse_news(source: _Place, line: int, block: bytes, is_cut: bool) -> pa.RecordBatch:
    columns = _parse_block(source, NEWS_COLUMNS, line, block, is_cut).columns
    bad = _not_matching(columns["id"], "^N[0-9]{1,17}$")
    if len(bad):
        text = _quoted(columns["id"][bad[0]].as_py())
        raise _error(
            source,
            line + int(bad[0]),
            f'{text} is not a news id, expected "N" and digits; '
            "check that this is news.tsv and has no header",
        )
    entities = columns["abstract_entities"][-1].as_py()
    if is_cut and entities.startswith("[") and not entities.endswith("]"):
        raise _cut_off(source, line)
    for name in ("title", "abstract"):
        columns[name] = pc.replace_substring(columns[name], "\u200b", "")
    del columns["url"]
    return pa.RecordBatch.from_pydict(columns)


def _not_matching(texts: pa.StringArray, pattern: str) -> np.ndarray:
    """Return the rows whose text the regular expression does not match."""
    return np.flatnonzero(~pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))


def _title_conflict(table: pa.Table, row: int, other: int, places: list[tuple[_Place, int]]) -> UserError:
    (source, line), (other_source, other_line) = places[row], places[other]
    title, other_title = (_quoted(table["title"][at].as_py()) for at in (row, other))
    if source == other_source:
        why = f"on line {other_line} of the same file; a news id may have one title: remove one of the rows"
    else:
        why = (
            f"in {other_source}, line {other_line}; small and large give the same ids to different news: "
            "keep the splits of one size together"
        )
    name = table["id"][row].as_py()
    return _error(source, line, f"{name} has the title {title}, but {other_title} {why}")


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


def _parse_tokens(cells: pa.StringArray) -> _Tokens:
    """Parse cells of ``N1-0 N22-1`` (labelled) or ``N1 N22`` (bare) without a loop over tokens.

    >>> tokens = _parse_tokens(pa.array(["N1-0 N22-1", "", "N3", "N4-2 oops"]))
    >>> tokens.sizes.tolist(), [_id_of(key) for key in tokens.keys[:3]], tokens.labels[:3].tolist()
    ([2, 0, 1, 2], ['N1', 'N22', 'N3'], [0, 1, -1])
    >>> tokens.keys[3:].tolist(), tokens.text(4)
    ([-1, -1], 'oops')
    """
    text = pc.binary_join_element_wise(cells, "", "\n").buffers()[2] if len(cells) else b""
    padded = np.zeros(8 + len(text), np.uint8)  # 8 bytes before the first token, for _read_numbers
    data = padded[8:]
    data[:] = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((data == ord(" ")) | (data == ord("\n")))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    is_token = ends > starts
    is_last = data[ends] == ord("\n")
    sizes = np.diff(np.cumsum(is_token)[is_last], prepend=0)
    if not is_token.all():  # a cell is empty, or has a space too many
        starts, ends = starts[is_token], ends[is_token]
    is_labelled = (ends - starts >= 4) & (data[ends - 2] == ord("-"))
    labels = np.where(is_labelled, data[ends - 1].astype(np.int8) - np.int8(ord("0")), np.int8(-1))
    stops = ends - 2 * is_labelled
    digits = stops - starts - 1
    is_good = (data[starts] == ord("N")) & (digits >= 1) & (digits <= 17) & (labels <= 1)
    is_good &= ~is_labelled | (labels >= 0)
    numbers, are_digits = _read_numbers(padded, stops, np.where(is_good, digits, 1))
    is_good &= are_digits
    return _Tokens(data, starts, ends, sizes, np.where(is_good, numbers * 32 + digits, -1), labels)


_ONES = np.uint64(0x0101010101010101)


def _read_numbers(padded: np.ndarray, stops: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the decimal number of ``digits[i]`` digits that ends before ``padded[8 + stops[i]]``.

    Eight digits at a time lie in one 64-bit word, which takes a dozen operations and no loop over digits.
    Source: D. Lemire, "Quickly parsing eight digits" (2022).

    Args:
        padded: uint8, 8 bytes and then the text.
        stops: int64 (t,).
        digits: int64 (t,), 1 to 17.

    Returns:
        int64 (t,) numbers and bool (t,), whether all were digits.

    >>> numbers, _ = _read_numbers(np.frombuffer(b"........N407 12345678901", np.uint8), np.array([4, 16]), np.array([3, 11]))
    >>> numbers.tolist()
    [407, 12345678901]
    """
    words = np.ndarray(len(padded) - 7, "<u8", buffer=padded, strides=(1,))  # words[k]: the 8 bytes before k
    numbers = np.zeros(len(stops), np.int64)
    are_digits = np.ones(len(stops), bool)
    for place in range(0, int(digits.max(initial=0)), 8):
        n = np.clip(digits - place, 0, 8)
        word = words[np.maximum(stops - place, 0)]
        # Bytes that belong to what stands before the number become zeros.
        keep = np.where(n > 0, ~np.uint64(0) << (8 * (8 - np.maximum(n, 1))).astype(np.uint64), np.uint64(0))
        word = (word & keep) | (_ONES * np.uint64(ord("0")) & ~keep)
        high = _ONES * np.uint64(0xF0)
        are_digits &= ((word & high) == _ONES * np.uint64(0x30)) & (
            ((word + _ONES * np.uint64(0x06)) & high) == _ONES * np.uint64(0x30)
        )
        word -= _ONES * np.uint64(ord("0"))
        word = word * np.uint64(10) + (word >> np.uint64(8))  # pairs
        low = np.uint64(0x000000FF000000FF)
        fours = (word & low) * np.uint64(100 + (1_000_000 << 32))
        fours += ((word >> np.uint64(16)) & low) * np.uint64(1 + (10_000 << 32))
        numbers += (fours >> np.uint64(32)).astype(np.int64) * 10**place
    return numbers, are_digits


@dataclass
class _Unknown:
    """Keeps count of the news that the catalogue lacks."""

    n_news: int
    seen: np.ndarray = field(init=False)
    keys: dict[int, None] = field(default_factory=dict)  # in order of appearance
    first_line: int = 0

    def __post_init__(self) -> None:
        self.seen = np.zeros(self.n_news, dtype=bool)

    def count(self, news: np.ndarray, keys: np.ndarray, lines: np.ndarray) -> int:
        """Return how many of `news` are -1, and remember their `keys` and the first of their `lines`."""
        absent = np.flatnonzero(news < 0)
        self.seen[news if not len(absent) else news[news >= 0]] = True
        if len(absent):
            self.keys.update(dict.fromkeys(keys[absent].tolist()))
            line = int(lines[absent].min())
            self.first_line = min(self.first_line or line, line)
        return len(absent)

    def check(self, source: _Place, missing: str) -> None:
        if not self.keys:
            return
        known = int(self.seen.sum())
        total = known + len(self.keys)
        if known < 0.5 * total:
            raise _error(
                source,
                self.first_line,
                f"news.tsv covers only {known} of the {total} news ids in this file: probably a mix of small "
                "and large, which use different news ids; use the news.tsv that came with this file",
            )
        if missing == "error":
            some = ", ".join(map(_id_of, list(self.keys)[:5]))
            raise _error(
                source,
                self.first_line,
                f"{len(self.keys)} of the {total} news ids in this file are not in news.tsv ({some}"
                f"{', ...' * (len(self.keys) > 5)}), the first on this line; use the news.tsv that came "
                'with this file (small and large do not mix), or drop them with missing="drop"',
            )


class _Behaviors(NamedTuple):
    """One block of behaviors.tsv, parsed; news are indices into the catalogue, -1 where it lacks them."""

    block: _Block
    ids: np.ndarray
    times: np.ndarray
    users: pa.DictionaryArray
    history: np.ndarray  # per row, which of the block's distinct histories
    texts: list[str]  # of these
    parsed: np.ndarray  # which of these are in `clicked`
    clicked: "_Tokens"
    clicked_news: np.ndarray
    clicked_lines: np.ndarray
    shown: "_Tokens"
    shown_news: np.ndarray

    @property
    def shown_lines(self) -> np.ndarray:
        return np.repeat(self.block.lines, self.shown.sizes)


def _parse_behaviors(
    source: _Place, catalogue: "_Catalogue", known: dict[str, int], line: int, block: bytes, is_cut: bool
) -> _Behaviors:
    """Parse a block; of its histories those that are not `known` yet, for most come again and again."""
    parsed = _parse_block(source, BEHAVIORS_COLUMNS, line, block, is_cut)
    columns = parsed.columns
    ids, times = (
        _parse_ids(source, line, columns["impression_id"]),
        _parse_times(source, line, columns["time"]),
    )
    histories = columns["history"].dictionary_encode()
    history = histories.indices.to_numpy()
    texts = histories.dictionary.to_pylist()
    new = np.array([k for k, text in enumerate(texts) if text not in known], dtype=np.int64)
    clicked = _parse_tokens(histories.dictionary.take(pa.array(new)))
    first_lines = parsed.lines[np.unique(history, return_index=True)[1]]
    clicked_lines = np.repeat(first_lines[new], clicked.sizes)
    _check_history(source, clicked, clicked_lines)
    shown = _parse_tokens(columns["impressions"])
    return _Behaviors(
        parsed,
        ids,
        times,
        columns["user_id"].dictionary_encode(),
        history,
        texts,
        new,
        clicked,
        catalogue.look_up(clicked.keys),
        clicked_lines,
        shown,
        catalogue.look_up(shown.keys),
    )


class _Catalogue:
    """Turns keys (`_id_of`) into indices of the news with these `keys`, -1 for those that are not there."""

    def __init__(self, keys: np.ndarray):
        self._keys, self._table = pa.array(keys), None
        if keys.max(initial=0) < 1 << 24:  # numbers up to half a million, 64 MiB; MIND's end at 130,379
            self._table = np.full(int(keys.max(initial=0)) + 2, -1, np.int32)
            self._table[keys] = np.arange(len(keys))

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        if self._table is None:
            return pc.index_in(pa.array(keys), value_set=self._keys).fill_null(-1).to_numpy()
        return self._table[np.minimum(keys, len(self._table) - 1)]  # its last is no news', nor is key -1


class _Growing:
    """An array that grows at its end: enlarging a large one moves its pages, where joining many would copy all."""

    def __init__(self, dtype: type):
        self._data, self._size = np.empty(1 << 16, dtype), 0

    def extend(self, values: np.ndarray) -> None:
        end = self._size + len(values)
        if end > len(self._data):
            self._data.resize(max(end, len(self._data) * 5 // 4), refcheck=False)
        self._data[self._size : end] = values
        self._size = end

    def finish(self) -> np.ndarray:
        self._data.resize(self._size, refcheck=False)
        return self._data


def _read_behaviors(
    source: _Place, keys: np.ndarray, missing: str
) -> tuple[Impressions, dict[str, int | None]]:
    catalogue, unknown = _Catalogue(keys), _Unknown(len(keys))
    histories: dict[str, int] = {}
    history_sizes, history_news = [np.zeros(0, np.int64)], _Growing(np.int32)
    news, labels = _Growing(np.int32), _Growing(np.int8)
    columns: dict[str, list[Any]] = {name: [] for name in ("ids", "users", "times", "history", "sizes")}
    dropped_candidates = dropped_history = 0
    has_labels = None
    for rows in _parsed(source, lambda *block: _parse_behaviors(source, catalogue, histories, *block)):
        known = len(histories)
        codes = [histories.setdefault(text, len(histories)) for text in rows.texts]
        codes = np.array(codes, dtype=np.int32)
        new = codes[rows.parsed] >= known  # another block may have brought one in the meantime
        is_new = np.repeat(new, rows.clicked.sizes)
        found = rows.clicked_news[is_new]
        dropped_history += unknown.count(found, rows.clicked.keys[is_new], rows.clicked_lines[is_new])
        history_sizes.append(_kept_sizes(rows.clicked.sizes[new], found))
        history_news.extend(found[found >= 0])

        tokens, found = rows.shown, rows.shown_news
        if has_labels is None and len(tokens.labels):
            has_labels = bool("-" in tokens.text(0))
        _check_candidates(source, rows.block, tokens, has_labels)
        dropped = unknown.count(found, tokens.keys, rows.shown_lines)
        dropped_candidates += dropped

        columns["ids"].append(rows.ids)
        columns["users"].append(rows.users)
        columns["times"].append(rows.times)
        columns["history"].append(codes[rows.history])
        columns["sizes"].append(_kept_sizes(tokens.sizes, found))
        news.extend(found[found >= 0] if dropped else found)
        labels.extend(tokens.labels[found >= 0] if dropped else tokens.labels)
    unknown.check(source, missing)

    users = pa.chunked_array(columns.pop("users")).combine_chunks()
    columns = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    _check_unique(source, columns["ids"])
    sizes, news, labels = columns.pop("sizes"), news.finish(), labels.finish()
    is_kept = sizes > 0
    if not is_kept.any():
        raise UserError(
            f"{source}: no impression has a candidate known to news.tsv; use the news.tsv that came with it"
        )
    user_codes = users.indices.to_numpy()[is_kept]
    impressions = Impressions(
        **{name: column[is_kept] for name, column in columns.items()},
        users=users.dictionary.to_numpy(zero_copy_only=False)[user_codes],
        history_offsets=_offsets(np.concatenate(history_sizes)),
        history_news=history_news.finish(),
        offsets=_offsets(sizes[is_kept]),
        news=news,
        labels=labels if has_labels else None,
    )
    counts = {
        "impressions": len(impressions),
        "users": int(np.count_nonzero(np.bincount(user_codes))),
        "distinct_histories": len(histories),
        "candidates": len(news),
        "clicks": None,
        "impressions_without_click": None,
        "unknown_news": len(unknown.keys),
        "dropped_candidates": dropped_candidates,
        "dropped_history_entries": dropped_history,
        "dropped_impressions": int((~is_kept).sum()),
    }
    if has_labels:
        clicks = np.flatnonzero(labels)  # few: summing the labels of each would make all of them 8 bytes wide
        clicked = np.unique(np.searchsorted(impressions.offsets, clicks, side="right"))
        counts.update(clicks=len(clicks), impressions_without_click=len(impressions) - len(clicked))
    return impressions, counts


def _parse_ids(source: _Place, line: int, texts: pa.StringArray) -> np.ndarray:
    bad = _not_matching(texts, "^[0-9]{1,18}$")
    if len(bad):
        raise _error(
            source,
            line + int(bad[0]),
            f"{_quoted(texts[bad[0]].as_py())} is not an impression id, expected a whole number; "
            "check that this is behaviors.tsv and has no header",
        )
    return pc.cast(texts, pa.int64()).to_numpy()


_TIME = "^[0-9]{1,2}/[0-9]{1,2}/[0-9]{4} [0-9]{1,2}:[0-9]{2}:[0-9]{2} [AP]M$"  # strptime alone takes "1/2/20199:05"


def _parse_times(source: _Place, line: int, texts: pa.StringArray) -> np.ndarray:
    bad = _not_matching(texts, _TIME)
    if not len(bad):
        times = pc.strptime(texts, format=TIME_FORMAT, unit="s", error_is_null=True)
        months = pc.cast(pc.list_element(pc.split_pattern(texts, "/"), 0), pa.int64())
        is_good = pc.equal(pc.month(times), months).fill_null(False)  # it takes 31 February for 3 March
        bad = np.flatnonzero(~is_good.to_numpy(zero_copy_only=False))
    if len(bad):
        raise _error(
            source,
            line + int(bad[0]),
            f"{_quoted(texts[bad[0]].as_py())} is not a time like 11/15/2019 9:05:00 PM; {_AGAIN}",
        )
    return times.to_numpy()


def _check_history(source: _Place, tokens: _Tokens, lines: np.ndarray) -> None:
    wrong = np.flatnonzero((tokens.keys < 0) | (tokens.labels >= 0))
    if len(wrong):
        raise _error(
            source,
            int(lines[wrong[0]]),
            f"{_quoted(tokens.text(wrong[0]))} in the history is not a news id, "
            f'expected "N" and digits; {_AGAIN}',
        )


def _check_candidates(source: _Place, block: _Block, tokens: _Tokens, has_labels: bool | None) -> None:
    lines, is_cut = block.lines, block.is_cut
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
    raise _error(source, int(np.repeat(lines, tokens.sizes)[token]), what)


def _check_unique(source: _Place, ids: np.ndarray) -> None:
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        again = np.setdiff1d(np.arange(len(ids)), np.unique(ids, return_index=True)[1])
        value = ids[again[0]]
        raise _error(
            source,
            int(again[0]) + 1,
            f"impression id {value} was already used on line {int(np.argmax(ids == value)) + 1}; "
            "ids are unique within a split: renumber or remove one (were two files joined?)",
        )


def _kept_sizes(sizes: np.ndarray, news: np.ndarray) -> np.ndarray:
    """Return how many of each cell's tokens are known news."""
    if (news >= 0).all():
        return sizes.astype(np.int64)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(rows[news >= 0], minlength=len(sizes)).astype(np.int64)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
