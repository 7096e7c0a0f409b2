"""A rule that cannot read: what the form of a prompt, and none of its headlines, says about the answer.

A prompt of any layout is parted at its labels, which are mined from the data: words before a colon, JSON
keys, headings, the openings of lines that most prompts share. What stays of a field is whether it is there,
whether it is empty, how many items it has, its numbers, its letter case, which other field repeats it, and
punctuation. A small decision tree over that is the rule. If it beats the best constant answer on records
that it was not fitted on, the answer can be told without news, and no model need learn taste to tell it.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from mindlab.evaluation.intervals import Interval, paired_difference

MOST_ANSWERS = 30  # distinct outputs up to which a rule may choose among them
MOST_RECORDS = 5_000  # of each split that the rule sees; a seeded choice of more
MOST_MINED = 2_000  # prompts that the layout is mined from
DEEPEST = 4
LEVEL = 0.99  # of the interval that must exclude 0: an audit of many data sets should seldom cry wolf
COMMON = 0.05  # share of the prompts in which a label, a symbol or a constant content must stand
USUAL = 0.5  # share for the opening of a line to count as a label
SHORTEST_COPY = 8  # characters of an item that must stand in another field to count as a copy

LONGEST_LABEL = 40  # characters

_COLON = re.compile("[:：]")
_TAIL = re.compile(r'[^\n:：.。;；,，!?！？{}\[\]()"“”]*$')
_MARK = re.compile(r"【[^】\n]{1,20}】|<[^<>\n]{1,20}>|^#+ .{1,40}$", re.MULTILINE)
_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|「([^」\n]+)」|《([^》\n]+)》')
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)、]|[A-Z][.)])\s+")
_SEPARATORS = (" | ", "|", "；", ";", "、", ", ", "，")


@dataclass(frozen=True, slots=True)  # there may be a million
class Prompt:
    """What the model is shown of one record: the fixed text before, and the rest."""

    head: str  # system and instruction
    body: str  # input, or the instruction where there is no input


@dataclass(frozen=True)
class Field:
    """What stands after one label."""

    content: str
    items: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BlindRule:
    """A fitted rule, and how it does on records that it was not fitted on."""

    text: str
    accuracy: float
    constant: float
    gain: Interval
    is_right: np.ndarray  # bool (n,)

    @property
    def is_leak(self) -> bool:
        """Whether the rule beats the best constant, by more than its interval."""
        return self.gain.low > 0


class Layout:
    """The labels of a data set's prompts, and the numbers that a prompt of it gives."""

    def __init__(self, prompts: Sequence[Prompt], answers: Sequence[str]):
        """Mine labels, symbols and constants from `prompts`; `answers` are the distinct outputs, if they are few."""
        prompts = prompts[:: -(-len(prompts) // MOST_MINED)]
        n = len(prompts)
        self.answers = [answer for answer in answers if answer.strip()]
        held: Counter[str] = Counter()  # prompts that hold a label
        times: Counter[str] = Counter()
        openings: Counter[str] = Counter()
        symbols: Counter[str] = Counter()
        for prompt in prompts:
            found = [label for _, _, label in _labels(prompt.body)]
            held.update(set(found))
            times.update(found)
            openings.update({_opening(line) for line in prompt.body.splitlines()})
            symbols.update(c for c in set(prompt.body) if not c.isalnum() and not c.isspace())
        # What stands twice in many prompts is the way headlines begin ("Watch: ...").
        known = [
            label for label, count in held.most_common(40)
            if count >= max(3, COMMON * n) and times[label] <= 1.05 * count
        ]  # fmt: skip
        starts = [
            opening for opening, count in openings.most_common(20)
            if opening and count >= USUAL * n and not any(opening in x or x in opening for x in known)
        ]  # fmt: skip
        self.labels = known + starts
        self._known, self._starts = frozenset(known), frozenset(starts)
        self.symbols = [s for s, count in symbols.most_common(40) if count >= COMMON * n]
        self.heads = [head for head, _ in Counter(prompt.head for prompt in prompts).most_common(20)]
        fields = [self.fields(prompt.body) for prompt in prompts]
        orders = Counter(tuple(found) for found in fields)
        self.orders = [order for order, _ in orders.most_common(20)]
        contents = Counter(
            (label, found.content)
            for one in fields
            for label, found in one.items()
            if len(found.content) <= 40
        )
        self.constants = [
            pair
            for pair, count in contents.most_common(60)
            if count >= max(3, COMMON * n) and pair[0] and not _NUMBER.fullmatch(pair[1].strip())
        ]
        self.names: list[str] = []

    def fields(self, body: str) -> dict[str, Field]:
        """Part a prompt at its labels; what stands before the first has the label ""."""
        places = [place for place in _labels(body) if place[2] in self._known]
        if self._starts:
            at = 0
            for line in body.splitlines(keepends=True):
                if (opening := _opening(line.rstrip("\n"))) in self._starts:
                    places.append((at, at + len(opening), opening))
                at += len(line)
        found: dict[str, str] = {}
        begin, label = 0, ""
        for start, end, name in sorted(places):
            if start >= begin:
                found[label] = found.get(label, "") + body[begin:start]
                begin, label = end, name
        found[label] = found.get(label, "") + body[begin:]
        return {name: _read(content) for name, content in found.items()}

    def features(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return float64 (n_prompts, n_features); `names` says in words what each is."""
        rows = [self._row(prompt) for prompt in prompts]
        if not self.names:
            self.names = list(rows[0]) if rows else []
        return np.array([list(row.values()) for row in rows], dtype=np.float64)

    def _row(self, prompt: Prompt) -> dict[str, float]:
        body, fields = prompt.body, self.fields(prompt.body)
        row: dict[str, float] = {
            "characters": len(body),
            "lines": body.count("\n") + 1,
            "double spaces": body.count("  "),
            "spaces before an end": len(re.findall(r"[ \t](?=[\"”,，\]\n]|$)", body)),
            "invisible characters": sum(
                body.count(c) for c in set(body) if not c.isprintable() and c not in "\n\t"
            ),
        }
        row |= {f"the fixed text is no. {i + 1}": prompt.head == head for i, head in enumerate(self.heads)}
        row |= {f"the order of fields is no. {i + 1}": tuple(fields) == o for i, o in enumerate(self.orders)}
        row |= {f"the character {symbol!r}": body.count(symbol) for symbol in self.symbols}
        for answer in self.answers:
            word = re.escape(answer.strip().rstrip(".。"))
            row[f"the words {answer!r}"] = len(re.findall(rf"(?<!\w){word}(?!\w)", body))
        absent = Field("")
        for label in ("", *self.labels):
            found = fields.get(label, absent)
            text = found.content
            number = _NUMBER.search(text)
            name = f"[{label or 'beginning'}]"
            row |= {
                f"{name} is there": label in fields,
                f"{name} has items": len(found.items),
                f"{name} has number": float(number.group()) if number and len(number.group()) < 16 else -1.0,
                f"{name} is in lower case": text.islower(),
                f"{name} is in upper case": text.isupper(),
                f"{name} ends in a letter or digit": text[-1:].isalnum(),
            }
        for label, content in self.constants:
            row[f"[{label}] is {content!r}"] = label in fields and fields[label].content == content
        for one in ("", *self.labels):
            items = fields.get(one, absent).items
            for other in ("", *self.labels):
                if one != other:
                    row[f"[{other}] repeats [{one}]"] = _repeats(items, fields.get(other, absent))
        return row


def fit(
    layout: Layout,
    train: Sequence[Prompt],
    train_answers: Sequence[str],
    test: Sequence[Prompt],
    test_answers: Sequence[str],
    clusters: Sequence[Any],
    rng: np.random.Generator,
) -> BlindRule | None:
    """Fit the rule on `train` and measure it on `test`; None where the answers are not a few fixed texts.

    The tree is the smallest within 0.002 of the best accuracy on a fifth of `train`; `clusters` are the
    users of `test` where known. The constant that it must beat is the most frequent answer of `test`.
    """
    if not 1 < len(set(train_answers)) <= MOST_ANSWERS or len(train) < 20 or len(test) < 20:
        return None
    rows = [rng.permutation(len(part))[:MOST_RECORDS] for part in (train, test)]
    x, new = (layout.features([part[i] for i in at]) for part, at in zip((train, test), rows, strict=True))
    y, truth = (
        np.array([part[i] for i in at]) for part, at in zip((train_answers, test_answers), rows, strict=True)
    )
    return learn(layout.names, (x, y), (new, truth), [clusters[i] for i in rows[1]])


def learn(
    names: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    clusters: Sequence[Any],
) -> BlindRule:
    """Fit a tree on `train`, (n, features) and (n,), and measure it on `test`; arguments otherwise as in `fit`."""
    (x, y), (new, truth) = train, test
    cut = len(x) * 4 // 5
    scores = [
        _tree(depth, len(x)).fit(x[:cut], y[:cut]).score(x[cut:], y[cut:]) for depth in range(1, DEEPEST + 1)
    ]
    depth = 1 + next(i for i, score in enumerate(scores) if score >= max(scores) - 0.002)
    tree = _tree(depth, len(x)).fit(x, y)
    is_right = tree.predict(new) == truth
    constant = Counter(truth.tolist()).most_common(1)[0][0]
    cluster = np.unique(np.array([str(one) for one in clusters]), return_inverse=True)[1]
    gain = paired_difference(is_right, truth == constant, cluster, level=LEVEL)
    text = "; ".join(_paths(tree, names, constant)) or f"always {constant!r}"
    return BlindRule(text, float(is_right.mean()), float((truth == constant).mean()), gain, is_right)


def _tree(depth: int, n: int) -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=depth, min_samples_leaf=max(3, n // 200), random_state=0)


def _paths(tree: DecisionTreeClassifier, names: Sequence[str], constant: str) -> list[str]:
    """Return in words when the tree answers something else than `constant`."""
    inner, said = tree.tree_, []

    def answers(node: int) -> set[str]:
        if inner.children_left[node] == -1:
            return {str(tree.classes_[inner.value[node][0].argmax()])}
        return answers(inner.children_left[node]) | answers(inner.children_right[node])

    def walk(node: int, conditions: list[str]) -> None:
        if len(below := answers(node)) == 1:  # the tree may part what it answers alike
            (answer,) = below
            if answer != constant:
                said.append(f"{answer!r} if {' and '.join(conditions) or 'always'}")
            return
        name, border = names[inner.feature[node]], inner.threshold[node]
        is_flag = border == 0.5 and " has " not in name and not name.startswith("the ch")
        low, high = (f"not: {name}", name) if is_flag else (f"{name} <= {border:g}", f"{name} > {border:g}")
        walk(inner.children_left[node], [*conditions, low])
        walk(inner.children_right[node], [*conditions, high])

    walk(0, [])
    return said


def _labels(body: str) -> list[tuple[int, int, str]]:
    """Return (start, end, text) of everything that may be a label: where a line, a sentence or an object begins."""
    found = [(m.start(), m.end(), m.group()) for m in _MARK.finditer(body)]
    for match in _COLON.finditer(body):  # from the colon back, for few characters are colons
        end = match.start()
        piece = body[max(0, end - LONGEST_LABEL - 2) : end].rstrip(" ")
        if is_key := piece.endswith('"'):
            start = piece.rfind('"', 0, -1)
            label = piece[start + 1 : -1] if start >= 0 else ""
        else:
            start = _TAIL.search(piece).start()
            label = piece[start:].strip()
        if not 0 < len(label) <= LONGEST_LABEL or "\n" in label:
            continue
        start += max(0, end - LONGEST_LABEL - 2)
        before = body[max(0, start - 200) : start].rstrip(" \t")
        line = before[before.rfind("\n") + 1 :]
        if is_key:
            is_label = before[-1:] in ("", "{", ",", "\n")
        else:
            is_start = line in ("", "{") or (line[-1] in ".。?？!！" and not _BULLET.match(line + " "))
            is_label = is_start and not _BULLET.match(label)
        if is_label:
            found.append((start, match.end(), label))
    return found


def _opening(line: str) -> str:
    """Return the first three words of a line, or six characters where a script has no spaces."""
    words = line.split()
    if len(words) >= 4:
        return " ".join(words[:3]) if line.startswith(" ".join(words[:3])) else ""
    return line[:6] if len(words) <= 1 and len(line) > 8 else ""


def _read(content: str) -> Field:
    """Return a field's content without what merely parts it from the next, and its items."""
    text = content.strip("\n").rstrip("{").rstrip(' ,"\n}')
    stripped = text.strip()
    if not stripped:
        return Field("")
    if stripped.startswith("["):
        try:
            return Field(text, [str(item) for item in json.JSONDecoder().raw_decode(stripped)[0]])
        except ValueError:
            pass  # a bracket, and no JSON
    quoted = ["".join(match) for match in _QUOTED.findall(content)]
    if quoted:
        return Field(text, quoted)
    lines = [_BULLET.sub("", line).strip() for line in stripped.splitlines() if line.strip()]
    if len(lines) > 1:
        return Field(text, lines)
    separator = next((s for s in _SEPARATORS if s in lines[0]), None)
    return Field(text, lines[0].split(separator) if separator else lines)


def _repeats(items: list[str], other: Field) -> bool:
    if not items or not other.items:
        return False
    if set(items) & set(other.items):
        return True
    return len(items) == 1 and len(items[0]) >= SHORTEST_COPY and items[0].strip(' "?？。.') in other.content
