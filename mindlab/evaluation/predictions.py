"""Predictions: the one table that every method writes and every metric reads.

One row is one scored candidate. A *case* is one ranking task: an impression, or one draw of a
sampled protocol. The key is (split, case_id, position); a table in memory is always in key order.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mindlab.common.errors import UserError
from mindlab.common.files import ZIP_RATIO, ZIP_SMALL, atomic_path
from mindlab.data.mind import Impressions, News

SCHEMA = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("case_id", pa.int64()),
        pa.field("impression_id", pa.int64()),
        pa.field("position", pa.int32()),  # in the impression, from 0
        pa.field("news_id", pa.string()),
        pa.field("label", pa.int8()),  # null: the split has no labels
        pa.field("score", pa.float64()),
        pa.field("answer", pa.string()),  # null: the method generates no text
        pa.field("user_id", pa.string()),  # null or absent: intervals cannot be clustered by user
    ]
)
OPTIONAL = ("user_id",)
NULLABLE = ("label", "answer", "user_id")
KEY = ("split", "case_id", "position")
# A fixed date, so that equal predictions make equal bytes.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
ZIP_CASES_PER_CHUNK = 100_000
ROWS_PER_BYTE = 20  # of a predictions file; with scores that differ it is below 1
ROWS_SMALL = 1_000_000  # below, no number of rows does harm


def from_scores(
    split: str,
    impressions: Impressions,
    news: News,
    scores: np.ndarray,
    answers: Sequence[str | None] | None = None,
    *,
    case_ids: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> pa.Table:
    """Return the predictions table of `scores`, which are flat and aligned with `impressions.news`.

    Args:
        split: name of the split, such as "dev".
        impressions: what was scored; its labels, if it has any, go into the table.
        news: the catalogue that `impressions.news` points into.
        scores: float (n_candidates,), higher is better.
        answers: the generated texts, aligned with `scores`, for methods that generate.
        case_ids: int (n_impressions,); default the row number. With a subset pass the row numbers of
            the whole split, so that two subsets never share a case by accident.
        positions: int (n_candidates,), slot of each candidate in its impression; default the slot
            here. The `seed` protocol keeps one candidate per impression and passes its real slot.

    Raises:
        ValueError: if an array does not fit the impressions, or a score is not finite.
    """
    sizes = np.diff(impressions.offsets)
    n = int(impressions.offsets[-1])
    scores = np.asarray(scores, dtype=np.float64)
    case_ids = np.arange(len(impressions)) if case_ids is None else np.asarray(case_ids)
    if positions is None:
        positions = np.arange(n) - np.repeat(impressions.offsets[:-1], sizes)
    if scores.shape != (n,) or np.shape(positions) != (n,) or case_ids.shape != (len(impressions),):
        raise ValueError(
            f"{len(impressions)} impressions with {n} candidates do not fit scores {scores.shape}, "
            f"positions {np.shape(positions)}, case_ids {case_ids.shape}"
        )
    if answers is not None and len(answers) != n:
        raise ValueError(f"{len(answers)} answers for {n} candidates")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {n} scores are NaN or infinite")
    row = np.repeat(np.arange(len(impressions)), sizes)
    labels = impressions.labels
    columns = {
        "split": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [split]).cast(pa.string()),
        "case_id": pa.array(case_ids[row], pa.int64()),
        "impression_id": pa.array(impressions.ids[row], pa.int64()),
        "position": pa.array(positions, pa.int32()),
        "news_id": _texts(news.ids, impressions.news),
        "label": pa.nulls(n, pa.int8()) if labels is None else pa.array(labels, pa.int8()),
        "score": pa.array(scores),
        "answer": pa.nulls(n, pa.string()) if answers is None else pa.array(answers, pa.string()),
        "user_id": _texts(impressions.users, row),
    }
    return pa.table(columns, schema=SCHEMA)


def write_predictions(path: str | Path, frame: pa.Table) -> None:
    """Check `frame` as `read_predictions` does, and write it as Parquet, atomically.

    Raises:
        UserError: if the frame breaks the contract; nothing is written then.
    """
    frame = check_predictions(frame, str(path))
    with atomic_path(path) as temporary:
        # With checksums, or a user takes what a damaged page decodes to.
        pq.write_table(frame, temporary, compression="zstd", write_page_checksum=True)


def read_predictions(path: str | Path) -> pa.Table:
    """Read a predictions file; the table has all columns of `SCHEMA` and is in key order.

    Raises:
        UserError: if the file is missing or unreadable, or breaks the contract.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; predictions are written by scripts/predict.py or compare.py")
    try:
        # Not read_table: given a path like split=dev/x.parquet it would invent a column.
        file = pq.ParquetFile(path, page_checksum_verification=True)
        _check_size(path, file.metadata)
        frame = file.read()
        # Arrow believes what a file says of its texts; a cut or spoilt one is found out here and not in a metric.
        frame.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason}); write it again") from None
    return check_predictions(frame, str(path))


def _check_size(path: Path, about: pq.FileMetaData) -> None:
    """Raise `UserError` for a file that would grow beyond what predictions do when it is read."""
    size = path.stat().st_size
    unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if about.num_rows > max(ROWS_SMALL, ROWS_PER_BYTE * size) or unpacked > max(ZIP_SMALL, ZIP_RATIO * size):
        raise UserError(
            f"{path}: {about.num_rows:,} rows of {unpacked:,} bytes in a file of {size:,}, more than predictions pack "
            "so tightly; write it again"
        )


def seed_files(run: str | Path) -> list[Path]:
    """Return the predictions of a run folder, one file for each training seed.

    >>> [path.as_posix() for path in seed_files("runs/no_such_run")]
    ['runs/no_such_run/predictions.parquet']
    """
    return [Path(run) / "predictions.parquet", *sorted(Path(run).glob("predictions-*.parquet"))]


def check_predictions(frame: pa.Table, source: str) -> pa.Table:
    """Return `frame` cast to `SCHEMA` and sorted by key; `source` names it in messages.

    A missing `user_id` is added as nulls.

    Raises:
        UserError: on a missing, unknown or mistyped column, no rows, a null where none may be, a NaN
            or infinite score, a label other than 0 and 1, a negative position, a duplicate key, or a
            case that holds two impressions, two users, or labels for some candidates only.
    """
    frame = _cast(frame, source)
    order = _key_order(frame)
    if order is not None:
        frame = frame.take(pa.array(order))
    frame = frame.combine_chunks()

    score = frame["score"].to_numpy()
    _refuse(~np.isfinite(score), "score is NaN or infinite, every score must be finite", frame, source)
    label = frame["label"].fill_null(0).to_numpy()
    _refuse((label != 0) & (label != 1), "label must be 0, 1 or null", frame, source)
    position = frame["position"].to_numpy()
    _refuse(position < 0, "position must be 0 or more", frame, source)

    same_case = ~case_starts(frame)
    repeated = same_case & np.concatenate([[False], position[1:] == position[:-1]])
    _refuse(repeated, "the key (split, case_id, position) appears twice, keep one row", frame, source)
    for name, values in (
        ("impression_id", frame["impression_id"].to_numpy()),
        ("user_id", codes(frame["user_id"])[0]),
        ("label given or not", frame["label"].is_null().to_numpy()),
    ):
        differs = same_case & np.concatenate([[False], values[1:] != values[:-1]])
        _refuse(differs, f"a case must have one {name}, this row differs from the row before", frame, source)
    return frame


def case_starts(frame: pa.Table) -> np.ndarray:
    """Return bool (n_rows,): True on the first row of each case of a table in key order."""
    case = frame["case_id"].to_numpy()
    split = codes(frame["split"])[0]
    changed = (case[1:] != case[:-1]) | (split[1:] != split[:-1])
    return np.concatenate([[True], changed]) if len(case) else np.zeros(0, bool)


def case_offsets(frame: pa.Table) -> np.ndarray:
    """Return int64 (n_cases + 1,): case i is rows offsets[i]:offsets[i + 1] of a table in key order."""
    return np.append(np.flatnonzero(case_starts(frame)), len(frame)).astype(np.int64)


def codes(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, list[str]]:
    """Return a text column as int64 codes in order of first appearance (null is -1) and its values."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array.dictionary_encode()
    numbers = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return numbers, encoded.dictionary.to_pylist()


def ranks(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return int64 ranks from 1 (best) within each case; equal scores keep the order of position.

    >>> ranks(np.array([0.1, 0.9, 0.9, 5.0]), np.array([0, 3, 4])).tolist()
    [3, 1, 2, 1]
    """
    case = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-scores, case))  # lexsort is stable
    result = np.empty(len(scores), np.int64)
    result[order] = np.arange(len(scores)) - offsets[:-1][case] + 1
    return result


def write_prediction_zip(path: str | Path, frame: pa.Table) -> None:
    """Write the MIND submission: ``prediction.txt`` inside a zip, one ``impid [r1,r2,...]`` a line.

    Ranks are 1..n, 1 for the highest score, in the order of the candidates; ties are broken by
    position, the earlier candidate first. The list has no spaces, because the official parser
    (``parse_line`` of evaluate.py in github.com/msnews/MIND) splits a line at white space. Lines are
    in the order of case_id, which is the order of the split's file.

    Raises:
        UserError: if the frame holds several splits or draws, or a case lacks a position.
    """
    frame = check_predictions(frame, str(path))
    offsets = case_offsets(frame)
    if len(codes(frame["split"])[1]) > 1:
        raise UserError(f"{path}: a submission is one split, these predictions hold several")
    ids = frame["impression_id"].to_numpy()[offsets[:-1]]
    if len(np.unique(ids)) < len(ids):
        raise UserError(f"{path}: an impression is ranked twice; a submission has one line an impression")
    sizes = np.diff(offsets)
    slot = np.arange(len(frame)) - np.repeat(offsets[:-1], sizes)
    missing = slot != frame["position"].to_numpy()
    _refuse(missing, "a submission ranks every candidate, a position before this one lacks", frame, str(path))
    rank = ranks(frame["score"].to_numpy(), offsets)
    entry = zipfile.ZipInfo("prediction.txt", ZIP_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as file,
    ):
        for start in range(0, len(ids), ZIP_CASES_PER_CHUNK):
            stop = min(start + ZIP_CASES_PER_CHUNK, len(ids))
            chunk = offsets[start : stop + 1]
            texts = pa.array(rank[chunk[0] : chunk[-1]]).cast(pa.string())
            lists = pa.ListArray.from_arrays(pa.array(chunk - chunk[0], pa.int32()), texts)
            lines = zip(ids[start:stop].tolist(), pc.binary_join(lists, ",").to_pylist(), strict=True)
            file.write("".join(f"{i} [{joined}]\n" for i, joined in lines).encode())


def _texts(values: np.ndarray, index: np.ndarray) -> pa.Array:
    """Return ``values[index]`` as an Arrow text column without making Python strings."""
    return pa.array(values, pa.string()).take(pa.array(index))


def _cast(frame: pa.Table, source: str) -> pa.Table:
    """Return `frame` with exactly the columns and types of `SCHEMA`."""
    wanted = ", ".join(SCHEMA.names)
    twice = [name for name in SCHEMA.names if frame.column_names.count(name) > 1]
    if twice:
        raise UserError(f"{source}: column {', '.join(twice)} is there twice; keep one")
    missing = [name for name in SCHEMA.names if name not in frame.column_names and name not in OPTIONAL]
    unknown = [name for name in frame.column_names if name not in SCHEMA.names]
    if missing:
        raise UserError(f"{source}: column {', '.join(missing)} missing; predictions hold {wanted}")
    if unknown:
        raise UserError(f"{source}: unknown column {', '.join(unknown)}; predictions hold only {wanted}")
    if not len(frame):
        raise UserError(f"{source}: no rows; expected one for every candidate that was scored")
    columns = []
    for field in SCHEMA:
        if field.name not in frame.column_names:
            columns.append(pa.nulls(len(frame), field.type))
            continue
        column = frame[field.name]
        try:
            if not _may_become(column.type, field):
                raise pa.ArrowInvalid("wrong kind")
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(
                f"{source}: column {field.name} is {column.type}, expected {field.type}; convert it"
            ) from None
        if column.null_count and field.name not in NULLABLE:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise UserError(f"{source}: row {row}: {field.name} is empty; only label, answer, user_id may be")
    return pa.table(columns, schema=SCHEMA)


def _may_become(given: pa.DataType, field: pa.Field) -> bool:
    """Return whether a cast keeps the meaning: "1.5" is text and never a score."""
    is_type = pa.types
    if is_type.is_null(given):
        return field.name in NULLABLE
    if is_type.is_string(field.type):
        inner = given.value_type if is_type.is_dictionary(given) else given
        return is_type.is_string(inner) or is_type.is_large_string(inner) or is_type.is_string_view(inner)
    if field.name == "score":
        return is_type.is_floating(given) or is_type.is_integer(given)
    if field.name == "label":  # pandas turns a nullable integer column into floats
        return is_type.is_integer(given) or is_type.is_floating(given) or is_type.is_boolean(given)
    return is_type.is_integer(given)


def _key_order(frame: pa.Table) -> np.ndarray | None:
    """Return the stable order that sorts the rows by key, None if they are in that order already."""
    split, names = codes(frame["split"])
    split = np.argsort(np.argsort(np.array(names)))[split]
    keys = (split, frame["case_id"].to_numpy(), frame["position"].to_numpy())
    after, equal = np.zeros(max(len(frame) - 1, 0), bool), np.ones(max(len(frame) - 1, 0), bool)
    for key in keys:
        after |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    return np.lexsort(keys[::-1]) if after.any() else None


def _refuse(bad: np.ndarray, what: str, frame: pa.Table, source: str) -> None:
    """Raise a UserError that names the first bad row by its key, if there is one."""
    rows = np.flatnonzero(bad)
    if len(rows):
        key = ", ".join(f"{name} {frame[name][int(rows[0])].as_py()}" for name in KEY)
        raise UserError(f"{source}: {what} ({len(rows)} of {len(frame)} rows; first at {key})")
