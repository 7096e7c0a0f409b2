"""Spoil valid files: bytes, lines, columns, JSON and YAML values, Parquet tables.

Everything is a function of the generator passed, so that a seed and a number name a case for good.
"""

import codecs
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

BROKEN_TEXT = (b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xfe\xff")
ODD_TEXT = (
    "\u2028", "\x85", "\x0b", "\x1c", "\x1b[31m", "\u202e", "\u200b", "\ufeff", "\t", "\t\t\t", "\r", "\n", '"', "'",
    "\\", "\\ud800", "<|im_end|>", "<html>", "${oc.env:HOME}", "{{x}}", "=1+1", "-", "N", "N1-2", "１２", "é", " ",
)  # fmt: skip
ODD_NUMBERS = (
    "0", "-1", "00", "1e999", "-1e999", "NaN", "Infinity", "1.5", "0x10", "9" * 19, "9" * 400, "9" * 5000,
    "18446744073709551616", "2147483648", "１２", "1_000", "true", "null",
)  # fmt: skip
ODD_YAML = (
    "!!python/object/apply:os.system ['echo spoilt']", "!!binary aGk=", "!!set {a, b}", "!unknown x", "&a [*a]", "*none",
    "[1, [2, [3", "{a: b", "[a, b]", "{a: {b: c}}", "2020-01-01", "0o17", "~", ".inf", ".nan", "-.inf", "1e999", "1e-4",
    "${x}", "${oc.env:HOME}", "???", "'", '"', "|", "> x", "@x", "%x", "yes", "on", "-1", "0", "1.5", "9" * 400,
    "9" * 5000, "a" * 5000, "''", "\t", "- x", "? [a]", "<<: *x",
)  # fmt: skip


ODD_NAMES = (
    "../news.tsv",
    "/news.tsv",
    "a/b/news.tsv",
    "news.tsv/",
    "news.tsv",
    "dev",
    "dev/",
    "x",
    "\ud7ff",
    "dev//news.tsv",
)


def spoil(name: str, data: bytes, rng: Rng) -> bytes:
    """Return the bytes of a file after one to three mutations that suit the ending of its name."""
    kinds: list[Mutation] = list(BYTES)
    if name.endswith((".tsv", ".txt")):
        kinds += [*LINES, *LINES, *TABLE, *TABLE]
    elif name.endswith((".json", ".jsonl")):
        kinds += [*LINES, *[json_value] * 2 * len(BYTES), json_deep]
    elif name.endswith(".yaml"):
        kinds += [*LINES, *[yaml_value] * len(BYTES), yaml_laughs]
    elif name.endswith(".parquet"):
        kinds = [flip, flip, cut, drop, zeros, *[parquet_column] * 6, parquet_written]
    elif name.endswith(".gz") and rng.random() < 0.5:
        return gzip.compress(spoil(name.removesuffix(".gz"), gzip.decompress(data), rng), 1, mtime=0)
    elif name.endswith(".zip") and rng.random() < 0.5:
        return inside_zip(data, rng)
    for _ in range(int(rng.integers(1, 4))):
        data = kinds[int(rng.integers(len(kinds)))](data, rng)
    return data


def inside_zip(data: bytes, rng: Rng) -> bytes:
    """Spoil one of the files in a zip, or its name."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            held = old.read(name)
            if name == chosen and rng.random() < 0.8:
                held = spoil(name, held, rng)
            elif name == chosen:
                name = ODD_NAMES[int(rng.integers(len(ODD_NAMES)))]
            new.writestr(name, held)
    return out.getvalue()


def flip(data: bytes, rng: Rng) -> bytes:
    """Change one to eight bytes, near the end as often as anywhere: a footer is short and says much."""
    out = bytearray(data)
    first = max(0, len(out) - 600) if rng.random() < 0.5 else 0
    for _ in range(int(rng.integers(1, 9))):
        if len(out):
            out[int(rng.integers(first, len(out)))] = int(rng.integers(256))
    return bytes(out)


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def drop(data: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def repeat(data: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng, 40)
    return data[:begin] + data[begin:end] * int(rng.choice([2, 3, 50, 5000])) + data[end:]


def move(data: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng)
    at = int(rng.integers(len(data) + 1))
    return data[:at] + data[begin:end] + data[at:]


def zeros(data: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng, 64)
    return data[:begin] + bytes(end - begin) + data[end:]


def nul(data: bytes, rng: Rng) -> bytes:
    return _put(data, b"\0", rng)


def broken_text(data: bytes, rng: Rng) -> bytes:
    return _put(data, BROKEN_TEXT[int(rng.integers(len(BROKEN_TEXT)))], rng)


def odd_text(data: bytes, rng: Rng) -> bytes:
    return _put(data, ODD_TEXT[int(rng.integers(len(ODD_TEXT)))].encode(), rng)


def bom(data: bytes, rng: Rng) -> bytes:
    return codecs.BOM_UTF8 + data


def crlf(data: bytes, rng: Rng) -> bytes:
    return data.replace(b"\n", (b"\r\n", b"\r", b"\n\n")[int(rng.integers(3))])


def utf16(data: bytes, rng: Rng) -> bytes:
    return data.decode("utf-8", "replace").encode(
        ("utf-16", "utf-16-le", "latin-1")[int(rng.integers(3))], "replace"
    )


def odd_number(data: bytes, rng: Rng) -> bytes:
    """Put an odd number in place of a run of digits."""
    places = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if not places:
        return data
    begin = end = places[int(rng.integers(len(places)))]
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    return data[:begin] + ODD_NUMBERS[int(rng.integers(len(ODD_NUMBERS)))].encode() + data[end:]


def nothing(data: bytes, rng: Rng) -> bytes:
    return (b"", b"\n", b" ", b"\0")[int(rng.integers(4))]


def double_line(data: bytes, rng: Rng) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(int(rng.integers(len(lines) + 1)), lines[int(rng.integers(len(lines)))])
    return b"".join(lines)


def drop_line(data: bytes, rng: Rng) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[int(rng.integers(len(lines)))]
    return b"".join(lines)


def shuffle_lines(data: bytes, rng: Rng) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[i] for i in rng.permutation(len(lines)))


def join_lines(data: bytes, rng: Rng) -> bytes:
    return data.replace(b"\n", b" ", int(rng.integers(1, 4)))


def swap_columns(data: bytes, rng: Rng) -> bytes:
    """Swap two columns, in all lines or in one."""
    lines = [line.split(b"\t") for line in data.split(b"\n")]
    some = range(len(lines)) if rng.random() < 0.5 else [int(rng.integers(len(lines)))]
    width = max(map(len, lines))
    a, b = rng.integers(width, size=2).tolist()
    for i in some:
        if max(a, b) < len(lines[i]):
            lines[i][a], lines[i][b] = lines[i][b], lines[i][a]
    return b"\n".join(b"\t".join(line) for line in lines)


def swap_cells(data: bytes, rng: Rng) -> bytes:
    """Copy a cell of one line over a cell of another, or empty it."""
    lines = [line.split(b"\t") for line in data.split(b"\n")]
    one, two = (lines[int(rng.integers(len(lines)))] for _ in range(2))
    cell = one[int(rng.integers(len(one)))] if rng.random() < 0.7 else b""
    two[int(rng.integers(len(two)))] = cell
    return b"\n".join(b"\t".join(line) for line in lines)


def more_columns(data: bytes, rng: Rng) -> bytes:
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    lines[at] = lines[at] + b"\tx" if rng.random() < 0.5 else lines[at].replace(b"\t", b"", 1)
    return b"\n".join(lines)


def bare_labels(data: bytes, rng: Rng) -> bytes:
    """Take the labels from the candidates, of all or of some."""
    some = -1 if rng.random() < 0.5 else int(rng.integers(1, 6))
    return data.replace(b"-0", b"", some).replace(b"-1", b"", some)


def json_value(data: bytes, rng: Rng) -> bytes:
    """Replace, remove, rename or add one value somewhere in the JSON, where it still is JSON."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff")
    try:
        lines = [json.loads(text)]
        joiner = ""
    except (ValueError, RecursionError):
        try:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            joiner = "\n"
        except (ValueError, RecursionError):
            return flip(data, rng)
    if not lines:
        return data
    at = int(rng.integers(len(lines)))
    lines[at] = _changed(lines[at], rng)
    is_ascii = bool(rng.random() < 0.5)
    return joiner.join(json.dumps(line, ensure_ascii=is_ascii) for line in lines).encode(
        "utf-8", "surrogatepass"
    )


def json_deep(data: bytes, rng: Rng) -> bytes:
    opening, closing = ((b"[", b"]"), (b'{"a":', b"}"))[int(rng.integers(2))]
    n = int(rng.choice([50, 900, 2000, 100_000]))
    return opening * n + (data if rng.random() < 0.5 else b"1") + closing * n


def yaml_value(data: bytes, rng: Rng) -> bytes:
    """Put an odd value behind a key, or an odd key before a value."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = int(rng.integers(len(lines)))
    key, colon, value = lines[at].partition(":")
    odd = ODD_YAML[int(rng.integers(len(ODD_YAML)))]
    if not colon or rng.random() < 0.1:
        lines[at] = odd
    elif rng.random() < 0.8:
        lines[at] = f"{key}: {odd}"
    else:
        lines[at] = (
            f"{('1', 'null', 'true', '[a]', '1.5', '- a', 'unknown_key', key.upper())[int(rng.integers(8))]}:{value}"
        )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def yaml_laughs(data: bytes, rng: Rng) -> bytes:
    """Ten lines that expand to 9 ** 9 values."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, int(rng.integers(3, 10)))]
    return data + ("\n" + "\n".join(lines) + "\n").encode()


def parquet_column(data: bytes, rng: Rng) -> bytes:
    """Write a Parquet file anew with one column of other values or another type, lacking, doubled or added."""
    try:
        return _parquet(_odd_table(pq.ParquetFile(io.BytesIO(data)).read(), rng), rng)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError):  # spoilt too far already
        return flip(data, rng)


def _odd_table(table: pa.Table, rng: Rng) -> pa.Table:
    if not table.num_columns:
        return table
    at = int(rng.integers(table.num_columns))
    name, n = table.column_names[at], len(table)
    kind = int(rng.integers(12))
    column = table.column(at)
    if kind == 0:
        return table.remove_column(at)
    if kind == 1:
        return table.append_column(name if rng.random() < 0.5 else "more", column)
    if kind == 2:
        return table.slice(0, int(rng.integers(n + 1)))
    if kind == 3:
        return pa.concat_tables([table, table.slice(int(rng.integers(n + 1)))])
    if kind == 4:
        return table.take(pa.array(rng.integers(n, size=n) if n else []))
    return table.set_column(at, name, _odd_column(column, n, rng, kind))


def parquet_written(data: bytes, rng: Rng) -> bytes:
    """Write the same table with other pages, compression, encodings."""
    try:
        return _parquet(pq.ParquetFile(io.BytesIO(data)).read(), rng)
    except (pa.ArrowException, OSError, ValueError):
        return cut(data, rng)


def _odd_column(column: pa.ChunkedArray, n: int, rng: Rng, kind: int) -> pa.Array:
    values = column.to_pylist()
    if kind == 5 and n:
        for _ in range(int(rng.integers(1, 4))):
            values[int(rng.integers(n))] = None
        return pa.array(values, column.type)
    if kind == 6:
        return pa.array(
            np.where(rng.random(n) < 0.2, [np.nan, np.inf, -np.inf, 1e308][int(rng.integers(4))], 0.5)
        )
    if kind == 7:
        bounds = [(-(2**63), 2**63 - 1), (-3, 3), (2**31, 2**31 + 5), (0, 2)][int(rng.integers(4))]
        return pa.array(rng.integers(*bounds, size=n))
    if kind == 8:  # text that is not UTF-8, which Arrow does not look at
        size = 3
        offsets = pa.py_buffer((np.arange(n + 1) * size).astype(np.int32))
        return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(b"a\xff\x80" * n))
    if kind == 9:
        return pa.array([str(value) for value in values])
    if kind == 10:
        nested = [[value] for value in values] if rng.random() < 0.5 else [{"a": value} for value in values]
        return pa.array(nested)
    return pa.array(values, column.type).dictionary_encode() if n else pa.nulls(0)


def _parquet(table: pa.Table, rng: Rng) -> bytes:
    out = io.BytesIO()
    options: dict[str, Any] = {
        "compression": ["none", "snappy", "zstd", "gzip"][int(rng.integers(4))],
        "use_dictionary": bool(rng.random() < 0.5),
        "row_group_size": int(rng.integers(1, 40)),
        "data_page_version": ["1.0", "2.0"][int(rng.integers(2))],
    }
    try:
        pq.write_table(table, out, **options)
    except (pa.ArrowException, ValueError):  # such as a column twice
        return b"PAR1PAR1"
    return out.getvalue()


def _changed(value: Any, rng: Rng) -> Any:
    """Return a JSON value with one change at a random place."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[int(rng.integers(len(value)))]
        what = rng.random()
        if what < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.15:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        if what < 0.2:
            return {**value, _odd_key(rng): _odd_value(rng)}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return _odd_value(rng)


def _odd_key(rng: Rng) -> str:
    return ("", "\ud800", "a" * 300, "file_name", "columns", "../x", "\0", "name")[int(rng.integers(8))]


def _odd_value(rng: Rng) -> Any:
    odd: tuple[Any, ...] = (
        None, True, False, 0, -1, 1, 1.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", "\n", "1",
        "x" * 3000, "../../etc/passwd", "/etc/passwd", "\0", "http://x/", [], [None], [1, "a"], [[]], [["a"]], {}, {"a": 1},
        {"file_name": 1}, {"": {}}, "0:00:01", "-1:00:00", "../x", "~", "\x1b[31m", "Yes.", "<|im_end|>",
    )  # fmt: skip
    return odd[int(rng.integers(len(odd)))]


def _span(data: bytes, rng: Rng, most: int | None = None) -> tuple[int, int]:
    begin = int(rng.integers(len(data) + 1))
    end = int(rng.integers(begin, len(data) + 1))
    return begin, end if most is None else min(end, begin + most)


def _put(data: bytes, piece: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + piece + data[at + int(rng.integers(2)) :]


BYTES = (
    flip,
    cut,
    drop,
    repeat,
    move,
    zeros,
    nul,
    broken_text,
    odd_text,
    odd_text,
    bom,
    crlf,
    utf16,
    odd_number,
    nothing,
)
LINES = (double_line, drop_line, shuffle_lines, join_lines)
TABLE = (swap_columns, swap_cells, swap_cells, more_columns, bare_labels, odd_number)
