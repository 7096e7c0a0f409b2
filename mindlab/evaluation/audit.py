"""Leak audit of a data set: can its answers be told without reading a headline, or were they seen in training?

``audit(path)`` takes Alpaca JSON (ours or anyone's, one file or a folder) or a MIND folder and returns verdicts.
A LEAK is one of three: a rule that cannot read (`mindlab.evaluation.blind_rule`), fitted on the training part, beats the best
constant answer on the test part by more than its interval; an impression stands in both parts; a prompt lost its
question. Everything else that a user of the numbers should know is a NOTE.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mindlab.common.errors import UserError
from mindlab.common.files import check_characters, read_json
from mindlab.data.mind import Impressions, Mind, read_mind
from mindlab.evaluation.blind_rule import LEVEL, MOST_ANSWERS, BlindRule, Layout, Prompt, fit, learn
from mindlab.evaluation.intervals import paired_difference
from mindlab.evaluation.leak_rule import leak_rule

SEED = 0
ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
}
ROLES = {"train": ("train", "training", "fit"), "test": ("test", "valid", "validation", "val", "dev", "eval")}
LEAST_TITLES = 5  # shown in two records, in any order: the same impression
MOST_REPEATED = (
    0.2  # of the test records that may ask a training record's question; in MIND it is 14 % of candidates
)
MOST_RECORD = 1 << 23  # characters of one Alpaca record; a long prompt has some 10,000
BLOCK = 1 << 20  # characters read at a time
_SPACE = re.compile(r"[ \t\n\r]*")  # JSON's
MOST_CANDIDATES = 200_000  # of a MIND split, for the rule over candidates


@dataclass(frozen=True)
class Verdict:
    """What one check found: `kind` is "LEAK", "NOTE" or "ok"; `count` of `total` cases, and one of them."""

    kind: str
    check: str
    text: str
    count: int | None = None
    total: int | None = None
    example: str | None = None


@dataclass(frozen=True)
class Audit:
    """The verdicts on one data set, leaks first."""

    name: str
    verdicts: list[Verdict]

    @property
    def has_leak(self) -> bool:
        """Whether any verdict is a LEAK."""
        return any(verdict.kind == "LEAK" for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``audit.py --json`` prints."""
        return {"name": self.name, "leak": self.has_leak, "verdicts": [asdict(v) for v in self.verdicts]}


@dataclass(frozen=True)
class Part:
    """The records of one split."""

    name: str
    prompts: list[Prompt]
    outputs: list[Any]

    def __len__(self) -> int:
        return len(self.outputs)

    def take(self, rows: Iterable[int]) -> "Part":
        """Return the records of `rows`."""
        rows = list(rows)
        return Part(self.name, [self.prompts[i] for i in rows], [self.outputs[i] for i in rows])


Measure = Callable[[Sequence[Prompt]], list[int]]  # tokens of each prompt


def audit(path: str | Path, measure: Measure | None = None, cutoff_len: int | None = None) -> list[Audit]:
    """Audit an Alpaca file, a folder of them (or one with dataset_info.json), or a MIND folder or zip.

    A file is audited with the file beside it that its name calls for (``x_train.json``, ``x_test.json``); one that
    stands alone is parted 8 to 2. With `measure` and `cutoff_len`, tokens are counted: what LLaMA-Factory would
    cut off is the question.

    Raises:
        UserError: if there is nothing to audit, or a file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected Alpaca JSON or a MIND folder")
    if path.suffix in (".json", ".jsonl"):
        pairs = [pair for pair in _pairs(_files(path.parent)) if path in pair]
        pairs = pairs or [(path, None)]
    elif path.is_dir() and (files := _files(path)):
        pairs = _pairs(files)
    else:
        return [_audit_mind(path, read_mind(path, missing="drop"))]
    return [_audit_alpaca(train, test, measure, cutoff_len) for train, test in pairs]


def read_alpaca(path: Path) -> Part:
    """Read a JSON list or JSON lines of Alpaca records; columns as dataset_info.json names them, if it does."""
    columns = ALPACA | _columns(path)
    prompts, outputs = [], []
    same: dict[Any, Any] = {}  # one instruction and few answers stand in most records: kept once
    for i, record in enumerate(_records(path)):
        if not isinstance(record, dict):
            raise UserError(
                f"{path}: record {i} is {_short(repr(record))}, expected a list of Alpaca records"
            )
        if columns["prompt"] not in record or columns["response"] not in record:
            raise UserError(
                f"{path}: record {i} has no {columns['prompt']!r} and {columns['response']!r}; "
                "name its columns in a dataset_info.json beside it"
            )
        history = record.get(columns["history"]) or []
        if not isinstance(history, list) or not all(isinstance(turn, list) for turn in history):
            raise UserError(
                f"{path}: record {i} has a {columns['history']!r} that is no list of turns; mend it"
            )
        turns = [str(text) for turn in history for text in turn]
        head, body = str(record[columns["prompt"]] or ""), str(record.get(columns["query"]) or "")
        fixed = str(record.get(columns["system"]) or "")
        if not body:  # the instruction is the prompt
            head, body = "", head
        head, output = "\n".join(filter(None, [fixed, head])), record[columns["response"]]
        prompts.append(Prompt(same.setdefault(head, head), "\n".join([*turns, body])))
        outputs.append(same.setdefault(output, output) if isinstance(output, str) else output)
    if not outputs:
        raise UserError(f"{path}: expected a list of Alpaca records, at least one")
    return Part(path.name, prompts, outputs)


def _records(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON list or of JSON lines, one at a time: a file may be larger than memory takes."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _json_lines(file) if path.suffix == ".jsonl" else _json_list(file)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: not JSON (nested too deeply); expected a list of Alpaca records") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of Alpaca records") from None


def _json_lines(file: TextIO) -> Iterator[Any]:
    number = 0
    while line := file.readline(MOST_RECORD):
        number += 1
        if len(line) == MOST_RECORD:
            raise ValueError(f"line {number} is longer than {MOST_RECORD:,} characters")
        if line.strip():
            try:
                value = json.loads(line)
                check_characters(line, value)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            yield value


def _json_list(file: TextIO) -> Iterator[Any]:
    """Yield the values of a JSON list, with no more of its text in memory than a record and a block."""
    decoder = json.JSONDecoder()
    text, at, is_end, number = "", 0, False, 0

    def more(least: int) -> None:
        nonlocal text, at, is_end
        block = file.read(max(least, BLOCK))
        is_end = len(block) < max(least, BLOCK)
        text, at = text[at:] + block, 0

    def next_sign() -> str:
        """Return the sign after white space, "" at the end of the file."""
        nonlocal at
        while True:
            at = _SPACE.match(text, at).end()
            if at < len(text) or is_end:
                return text[at : at + 1]
            more(BLOCK)

    if next_sign() != "[":
        raise ValueError("it does not begin with [")
    at += 1
    if next_sign() == "]":
        at += 1
    else:
        while True:
            next_sign()
            while True:
                try:
                    value, end = decoder.raw_decode(text, at)
                except json.JSONDecodeError as error:
                    if is_end:
                        raise ValueError(f"record {number}: {error.msg}") from None
                else:
                    if end < len(text) or is_end:  # a number might go on in the next block
                        break
                if len(text) - at > MOST_RECORD:
                    raise ValueError(f"record {number} is broken, or longer than {MOST_RECORD:,} characters")
                more(
                    len(text) - at
                )  # twice as much each time, so that a long record is read through few times
            check_characters(text[at:end], value)
            yield value
            number, at = number + 1, end
            sign = next_sign()
            at += 1
            if sign == "]":
                break
            if sign != ",":
                raise ValueError(f"a comma or ] is missing after record {number - 1}")
    if next_sign():
        raise ValueError("something stands after its end")


def _columns(path: Path) -> dict[str, str]:
    """Return the columns that a dataset_info.json beside or above a file gives it."""
    for folder in (path.parent, path.parent.parent):
        info = folder / "dataset_info.json"
        if not info.is_file():
            continue
        for name, entry in read_json(info, "mend it or move it away").items():
            file_name = entry.get("file_name") if isinstance(entry, dict) else None
            if not isinstance(file_name, str) or not file_name or folder / file_name != path:
                continue
            columns = entry.get("columns") or {}
            if not isinstance(columns, dict) or not all(isinstance(text, str) for text in columns.values()):
                raise UserError(f"{info}: the columns of {_short(name)!r} are no names; mend them")
            return columns
    return {}


def _files(folder: Path) -> list[Path]:
    """Return the Alpaca files of a folder, and of its processed/."""
    found = [
        path
        for pattern in ("*.json", "*.jsonl", "processed/*.json", "processed/*.jsonl")
        for path in sorted(folder.glob(pattern))
        if path.name != "dataset_info.json" and "manifest" not in path.name
    ]
    return [path for path in found if _looks_alpaca(path)]


def _looks_alpaca(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            start = file.read(200).lstrip()
    except OSError:  # it is not there to be audited: a folder named x.json, a link to nowhere
        return False
    return start.startswith("{" if path.suffix == ".jsonl" else "[")


def _pairs(files: list[Path]) -> list[tuple[Path, Path | None]]:
    """Pair training with test files by name; `train` goes with `test`, `fit` with `valid`."""
    groups: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for path in files:
        words = re.split(r"([_.\-]+)", path.stem)
        at = [i for i, word in enumerate(words) if any(word.lower() in names for names in ROLES.values())]
        role = words[at[-1]].lower() if at else "train"
        stem = "".join(word for i, word in enumerate(words) if not at or i not in (at[-1], at[-1] - 1))
        groups[path.parent, stem].setdefault(role, path)
    pairs: list[tuple[Path, Path | None]] = []
    for roles in groups.values():
        trains = {role: path for role, path in roles.items() if role in ROLES["train"]}
        tests = {role: path for role, path in roles.items() if role in ROLES["test"]}
        for role, path in trains.items():
            wanted = ("valid", "validation", "val") if role == "fit" else ("test", "dev", "eval")
            if "fit" not in trains:
                wanted = ROLES["test"]
            pairs.append((path, next((tests[word] for word in wanted if word in tests), None)))
        if not trains:
            pairs += [(path, None) for path in tests.values()]
    return pairs


def _audit_alpaca(
    train_file: Path, test_file: Path | None, measure: Measure | None, cutoff: int | None
) -> Audit:
    train = read_alpaca(train_file)
    name = train_file.as_posix()
    verdicts: list[Verdict] = []
    if test_file is None:
        order = np.random.default_rng(SEED).permutation(len(train)).tolist()
        cut = len(train) * 4 // 5
        test, train = train.take(order[cut:]), train.take(order[:cut])
        verdicts.append(Verdict("NOTE", "parts", "stands alone, so it was parted 8 to 2 for the rule"))
    else:
        test = read_alpaca(test_file)
        name += f", {test_file.as_posix()}"
    verdicts += _outputs(train, test)
    # LLaMA-Factory drops what is no text, so no model is trained on it either.
    train, test = (
        part.take(i for i, output in enumerate(part.outputs) if isinstance(output, str))
        for part in (train, test)
    )
    if len(train) and len(test):
        answers = sorted(set(train.outputs))
        layout = Layout(train.prompts, answers if len(answers) <= MOST_ANSWERS else [])
        contents = [[_content(layout, prompt) for prompt in part.prompts] for part in (train, test)]
        users = [content.user for content in contents[1]]
        verdicts.append(_rule(layout, train, test, users))
        verdicts += _sharing(train, test, contents, has_parts=test_file is not None)
        verdicts += _questions([train, test], measure, cutoff)
        verdicts += _answers(test)
    return Audit(name, _sorted(verdicts))


def _sorted(verdicts: list[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda verdict: ("LEAK", "NOTE", "ok").index(verdict.kind))


def _outputs(*parts: Part) -> list[Verdict]:
    wrong = [
        (part.name, i, o) for part in parts for i, o in enumerate(part.outputs) if not isinstance(o, str)
    ]
    if not wrong:
        return [Verdict("ok", "outputs", "every output is a text")]
    name, row, output = wrong[0]
    text = "outputs are no texts: LLaMA-Factory drops such records and says so in a warning alone"
    shown = f"{name}, record {row}: {output!r}"
    return [Verdict("NOTE", "outputs", text, len(wrong), sum(map(len, parts)), shown)]


def _rule(layout: Layout, train: Part, test: Part, users: list[bytes]) -> Verdict:
    rng = np.random.default_rng(SEED)
    rule = fit(layout, train.prompts, train.outputs, test.prompts, test.outputs, users, rng)
    if rule is None:
        return _copied(test)
    return _rule_verdict(rule)


def _rule_verdict(rule: BlindRule) -> Verdict:
    interval = f"{rule.gain.mean:+.3f} [{rule.gain.low:+.3f}, {rule.gain.high:+.3f}] at {LEVEL:.0%}"
    numbers = (
        f"accuracy {rule.accuracy:.3f} where the best constant answer has {rule.constant:.3f}, {interval}"
    )
    if rule.is_leak:
        text = f"a rule that reads no headline gives the answer: {rule.text}; {numbers}"
        return Verdict("LEAK", "rule", text, int(rule.is_right.sum()), len(rule.is_right))
    return Verdict(
        "ok", "rule", f"no rule that reads no headline beats a constant; {numbers}", None, len(rule.is_right)
    )


def _copied(test: Part) -> Verdict:
    """Judge answers that are free text: is the whole of an answer in its prompt?"""
    is_copy = np.array(
        [len(o.strip()) > 20 and o.strip() in p.body for o, p in zip(test.outputs, test.prompts, strict=True)]
    )
    constant = Counter(test.outputs).most_common(1)[0][1] / len(test)
    gain = paired_difference(
        is_copy,
        np.full(len(test), constant),
        np.arange(len(test)),
        level=LEVEL,
    )
    if gain.low > 0:
        row = int(is_copy.argmax())
        text = "the whole answer stands in the prompt"
        return Verdict("LEAK", "rule", text, int(is_copy.sum()), len(test), _short(test.outputs[row]))
    return Verdict(
        "ok", "rule", "answers are free text, and not in their prompts", int(is_copy.sum()), len(test)
    )


@dataclass(frozen=True, slots=True)
class Content:
    """What a prompt shows: its longest list (of what a user clicked, as a rule), and all its items, sorted."""

    user: bytes  # hashes: what is asked is which are the same; b"" for no list
    items: bytes
    n_items: int
    n_others: int  # items outside the longest list


def _content(layout: Layout, prompt: Prompt) -> Content:
    fields = layout.fields(prompt.body).values()
    items = [item for one in fields for item in one.items]
    longest = max((one.items for one in fields), key=len, default=[])
    user, every = (
        hashlib.sha256("\n".join(some).encode()).digest()[:16] for some in (longest, sorted(items))
    )
    return Content(user if longest else b"", every, len(items), len(items) - len(longest))


def _sharing(train: Part, test: Part, contents: list[list[Content]], has_parts: bool) -> list[Verdict]:
    """Judge what stands in both parts, and prompts that stand twice."""
    found = []
    seen = {one.items for one in contents[0] if one.n_items >= LEAST_TITLES}
    again = [i for i, one in enumerate(contents[1]) if one.items in seen]
    # One user and one candidate may well meet twice: MIND shows a user the same news again.
    shared = [i for i in again if contents[1][i].n_others > 2]
    if has_parts and (shared or len(again) > MOST_REPEATED * len(test)):
        text = "test impressions stand in the training part too (the same headlines, in any order)"
        shared = shared or again
        example = _short(test.prompts[shared[0]].body)
        found.append(Verdict("LEAK", "shared impressions", text, len(shared), len(test), example))
    elif has_parts:
        found.append(Verdict("ok", "shared impressions", "no impression stands in both parts", 0, len(test)))
        if again:
            text = "test records ask what training records ask: the same user and news, at another time"
            found.append(Verdict("NOTE", "repeated pairs", text, len(again), len(test)))
    users = {one.user for one in contents[0] if one.user}
    again = [i for i, one in enumerate(contents[1]) if one.user in users]
    if has_parts and again:
        text = "test records show a list that training records show: the same users, in both parts"
        found.append(Verdict("NOTE", "shared users", text, len(again), len(test)))
    answers: dict[Prompt, str] = {}
    twice: dict[Prompt, None] = {}
    for part in (train, test):
        for prompt, output in zip(part.prompts, part.outputs, strict=True):
            if answers.setdefault(prompt, output) != output:
                twice[prompt] = None
    is_choice = len(set(test.outputs)) <= MOST_ANSWERS  # free text may well differ
    if twice and is_choice:
        text = "prompts stand more than once, with different answers: no model can get all of them right"
        n = sum(prompt in twice for part in (train, test) for prompt in part.prompts)
        found.append(
            Verdict(
                "NOTE", "duplicate prompts", text, n, len(train) + len(test), _short(next(iter(twice)).body)
            )
        )
    return found


def _questions(parts: list[Part], measure: Measure | None, cutoff: int | None) -> list[Verdict]:
    """Judge whether every prompt still has its question: LLaMA-Factory cuts from the end."""
    total = sum(map(len, parts))
    prompts = [prompt for part in parts for prompt in part.prompts]
    if measure is not None and cutoff is not None:
        tokens = np.array(measure(prompts))
        long = np.flatnonzero(tokens > cutoff)
        if len(long):
            text = f"prompts are longer than {cutoff} tokens (up to {tokens.max():,}): the end, with the question, is cut off"
            example = _short(prompts[long[0]].body)
            return [Verdict("LEAK", "questions", text, len(long), total, example)]
        text = f"the longest prompt has {tokens.max():,} tokens of {cutoff}"
        return [Verdict("ok", "questions", text, 0, total)]
    usual = _usual_end([prompt.body.rstrip() for prompt in prompts])
    lengths = np.array([len(prompt.body) for prompt in prompts])
    # A prompt that was cut is long, and lacks the end that nearly all others have.
    cut = [
        i for i, prompt in enumerate(prompts)
        if usual and not prompt.body.rstrip().endswith(usual) and lengths[i] >= 0.8 * lengths.max()
    ]  # fmt: skip
    if cut:
        text = f"long prompts do not end in {usual!r} as the others do: their question is cut off"
        return [Verdict("LEAK", "questions", text, len(cut), total, "..." + prompts[cut[0]].body[-80:])]
    text = (
        "not counted in tokens: give --model, --template and --cutoff-len to see what training would cut off"
    )
    return [Verdict("NOTE", "questions", text)]


def _usual_end(bodies: list[str]) -> str:
    """Return the longest end, of up to 12 characters, that most prompts share; "" if there is none."""
    for length in range(12, 0, -1):
        end, count = Counter(body[-length:] for body in bodies).most_common(1)[0]
        if count >= (0.7 if length > 2 else 0.9) * len(bodies):
            return end
    return ""


def _answers(test: Part) -> list[Verdict]:
    counts = Counter(test.outputs).most_common()
    if not 1 < len(counts) <= MOST_ANSWERS:
        return []
    text = f"always answering {counts[0][0]!r} has accuracy {counts[0][1] / len(test):.3f}: the level to start from"
    return [Verdict("NOTE", "constant answer", text, counts[0][1], len(test))]


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most // 2] + " ... " + text[-most // 2 :]


def _audit_mind(path: Path, mind: Mind) -> Audit:
    """Audit impressions: `train` against `dev`, every candidate a case."""
    labelled = {name: rows for name, rows in mind.splits.items() if rows.labels is not None}
    if not labelled:
        raise UserError(f"{path}: no split with labels, so there is nothing to audit")
    verdicts: list[Verdict] = []
    if {"train", "dev"} <= set(labelled):
        verdicts += _mind_sharing(mind, labelled["train"], labelled["dev"])
        verdicts.append(_mind_rule(labelled["train"], labelled["dev"]))
    for name, rows in labelled.items():
        verdicts += _mind_split(name, rows, mind)
    return Audit(path.as_posix(), _sorted(verdicts))


def _keys(rows: Impressions) -> list[tuple[str, int, bytes]]:
    """Return user, time and the candidates in any order, of every impression."""
    times = rows.times.astype(np.int64)
    return [(rows.users[i], int(times[i]), np.sort(rows.candidates(i)).tobytes()) for i in range(len(rows))]


def _mind_sharing(mind: Mind, train: Impressions, dev: Impressions) -> list[Verdict]:
    seen = set(_keys(train))
    shared = [i for i, key in enumerate(_keys(dev)) if key in seen]
    kind, text = "ok", "no impression of dev (user, time, candidates) stands in train"
    example = None
    if shared:
        kind, text = "LEAK", "impressions of dev stand in train: the same user, time and candidates"
        example = f"impression {dev.ids[shared[0]]} of dev, user {dev.users[shared[0]]}"
    found = [Verdict(kind, "shared impressions", text, len(shared), len(dev), example)]
    users = np.isin(dev.users.astype(str), np.unique(train.users.astype(str)))
    found.append(
        Verdict(
            "NOTE", "shared users", "impressions of dev are of users in train", int(users.sum()), len(dev)
        )
    )
    days = np.intersect1d(*(rows.times.astype("datetime64[D]") for rows in (train, dev)))
    if len(days):
        text = f"days are in both train and dev, such as {days[0]}: what is clicked today is known from today"
        found.append(Verdict("NOTE", "shared days", text, len(days)))
    return found


def _mind_rule(train: Impressions, dev: Impressions) -> Verdict:
    """Fit the rule over candidates; it sees places, sizes and ids, and no news."""
    rng = np.random.default_rng(SEED)
    parts, owners = [], None
    for rows in (train, dev):
        table, owner = _places(rows)
        keep = np.sort(rng.permutation(len(owner))[:MOST_CANDIDATES])
        parts.append(
            (np.column_stack(list(table.values()))[keep], np.where(rows.labels[keep] == 1, "1", "0"))
        )
        owners = owner[keep]
    return _rule_verdict(learn(list(table), *parts, dev.users[owners].tolist()))


def _places(rows: Impressions) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what is known of each candidate without reading it, and its impression."""
    sizes = np.diff(rows.offsets)
    owner = np.repeat(np.arange(len(rows)), sizes)
    place = np.arange(len(owner)) - rows.offsets[:-1][owner]
    order = np.lexsort((rows.news, owner))
    among = np.empty(len(owner), dtype=np.int64)
    among[order] = place
    return {
        "place": place,
        "place from the end": sizes[owner] - 1 - place,
        "candidates": sizes[owner],
        "is in the history": _in_history(rows, owner),
        "history has items": np.diff(rows.history_offsets)[rows.history][owner],
        "id has place": among,
        "minute of the hour": rows.times.astype("datetime64[m]").astype(np.int64)[owner] % 60,
    }, owner


def _in_history(rows: Impressions, owner: np.ndarray) -> np.ndarray:
    """Return, for each candidate, whether the user's history holds it."""
    width = 1 + max(rows.news.max(initial=0), rows.history_news.max(initial=0))
    of_history = np.repeat(np.arange(len(rows.history_offsets) - 1), np.diff(rows.history_offsets))
    held = np.unique(of_history * np.int64(width) + rows.history_news)
    return np.isin(rows.history[owner] * np.int64(width) + rows.news, held)


def _mind_split(name: str, rows: Impressions, mind: Mind) -> list[Verdict]:
    """Say what a user of numbers made on a split should know."""
    sizes = np.diff(rows.offsets)
    owner = np.repeat(np.arange(len(rows)), sizes)
    found = []
    held = _in_history(rows, owner)
    if held.any():
        row = int(owner[held.argmax()])
        text = (
            f"{name}: candidates stand in the user's history; {rows.labels[held].mean():.1%} of them are clicked, "
            f"of the others {rows.labels[~held].mean():.1%}"
        )
        example = f"impression {rows.ids[row]}: {_short(str(mind.news.title[rows.news[held.argmax()]]), 80)}"
        found.append(Verdict("NOTE", "candidates in the history", text, int(held.sum()), len(held), example))
    user = np.unique(rows.users.astype(str), return_inverse=True)[1][owner]
    pair = user * np.int64(len(mind.news)) + rows.news
    _, which, count = np.unique(pair, return_inverse=True, return_counts=True)
    clicks = np.bincount(which, weights=rows.labels)
    repeated = count > 1
    if repeated.any():
        mixed = int((repeated & (clicks > 0) & (clicks < count)).sum())
        text = f"{name}: a user is shown the same news again; {mixed:,} such pairs have both labels"
        found.append(Verdict("NOTE", "repeated pairs", text, int((count[repeated] - 1).sum()), len(pair)))
    for place, at in (("first", rows.offsets[:-1]), ("last", rows.offsets[1:] - 1)):
        share = np.add.reduceat(rows.labels, rows.offsets[:-1]) / sizes
        expected, spread = share.sum(), np.sqrt((share * (1 - share)).sum())
        seen = int(rows.labels[at].sum())
        if abs(seen - expected) > 4 * spread:
            text = f"{name}: the {place} candidate is clicked {seen:,} times, {expected:,.0f} expected of a shuffled list"
            found.append(Verdict("NOTE", "label by place", text, seen, len(rows)))
    text = (
        f"{name}: always No has accuracy {1 - rows.labels.mean():.3f} over candidates; use ranking metrics. The "
        f"tutorial's task on it would leak: {_tutorial(rows)}"
    )
    found.append(Verdict("NOTE", "constant answer", text, int((rows.labels == 0).sum()), len(rows.labels)))
    return found


def _tutorial(rows: Impressions) -> str:
    """Return what the leak rule would score on a `seed` task made of these impressions."""
    truth = rows.labels[rows.offsets[1:] - 1] == 1
    right = leak_rule(rows, np.full(len(rows), -1)) == truth
    return f"the leak rule has {right.mean():.3f}, always No {1 - truth.mean():.3f}"
