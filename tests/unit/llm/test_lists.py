"""mindlab.llm.lists: what a model answers is never trusted, every candidate is accounted for, nothing stops a run."""

import json
import random

import numpy as np
import pytest

from mindlab.llm.lists import (
    LEFT_OUT,
    LIKED,
    NOT_ASKED,
    NOT_LIKED,
    TWICE,
    UNANSWERED,
    ask_lists,
    read_list,
)
from mindlab.llm.writing import EMPTY, NO_JSON, TEXT_AROUND, WRONG_FORM, HFWriter
from mindlab.prompts import JsonList
from tests.handmade import make_impressions

TITLES = ["A storm", "A game", "A storm"]


def item(title, like=True, explanation="e"):
    return {"title": title, "like": like, "explanation": explanation}


def as_text(*items):
    return json.dumps(list(items))


WHOLE = as_text(item("A storm"), item("A game", False), item("A storm", False))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", EMPTY),
        (" \n", EMPTY),
        ("I would read the storm.", NO_JSON),
        (WHOLE[:-10], NO_JSON),
        ("[" * 5000, NO_JSON),
        ('{"title": "A storm", "like": true, "explanation": "e"}', WRONG_FORM),
        ('[{"title": "A storm", "like": "yes", "explanation": "e"}]', WRONG_FORM),
        ('[{"title": "A storm", "like": true}]', WRONG_FORM),
        ("[[1, 2], {}]", WRONG_FORM),
        ("[]", LEFT_OUT),
        (as_text(item("Something else")), NOT_ASKED),
    ],
)
def test_an_answer_of_no_use_is_a_fault(text, fault):
    found = read_list(text, TITLES)
    assert (found.value, found.fault) == (None, fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (WHOLE, None),
        (f"Sure! {WHOLE}", TEXT_AROUND),
        (f"```json\n{WHOLE}\n```", TEXT_AROUND),
        (as_text(item("2. a  STORM "), item('- "A game"', False), item("* A storm", False)), None),
        (as_text(*json.loads(WHOLE), item("A comet")), NOT_ASKED),
        (as_text(*json.loads(WHOLE), item("A game")), TWICE),
        (f"{as_text(*json.loads(WHOLE), item('A game'))} So.", TEXT_AROUND),  # the first that applies
    ],
)
def test_what_can_be_used_is_used(text, fault):
    found = read_list(text, TITLES)
    assert found.value == [(True, "e"), (False, "e"), (False, "e")]
    assert found.fault == fault


def test_a_candidate_that_is_left_out_has_no_answer():
    found = read_list(as_text(item("A game", False, "dull")), TITLES)
    assert (found.value, found.fault) == ([None, (False, "dull"), None], LEFT_OUT)


def test_a_model_that_thinks_first_is_read_by_its_last_list():
    text = f"A list of [one] or {as_text(item('A game', True, 'draft'))}? Rather:\n{WHOLE}"
    assert read_list(text, TITLES, thinking=True).value[1] == (False, "e")
    assert read_list(text, TITLES, thinking=True).fault is None
    assert read_list(text, TITLES).value[1] == (True, "draft")
    assert read_list("I do not know.", TITLES, thinking=True).fault == NO_JSON


def test_no_text_at_all_stops_the_reading():
    """Answers cut, doubled, spoilt and mixed at random: each is read, and each is one candidate's or none's."""
    rng = random.Random(5)
    pieces = [
        *WHOLE,
        "[",
        "]",
        "{",
        "}",
        '"',
        "\\",
        "\ud800",
        "\x00",
        "NaN",
        "1e999",
        "[{",
        '{"title": ',
        "A storm",
    ]
    n_used = 0
    for _ in range(1500):
        text = WHOLE
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(pieces) * rng.randrange(3) + text[at + rng.randrange(4) :]
        for thinking in (False, True):
            found = read_list(text, TITLES, thinking)
            assert found.value is not None or found.fault is not None
            if found.value is not None:
                n_used += 1
                assert len(found.value) == len(TITLES)
                assert found.fault is not None or None not in found.value
    assert n_used > 300


class Scripted:
    """Likes every second headline it is shown; `spoil` may change an answer; the batch after `n_batches` fails."""

    def __init__(self, spoil=lambda text: text, n_batches=None, batch=2):
        self.spoil, self.left, self.batch = spoil, n_batches, batch
        self.asked = []
        self.tokens_read = self.tokens_written = 0

    def about(self):
        return {"writer": "scripted", "batch": self.batch}

    def write(self, records):
        if self.left == 0:
            raise KeyboardInterrupt
        if self.left is not None:
            self.left -= 1
        self.asked += records
        self.tokens_read += 10 * len(records)
        self.tokens_written += len(records)
        answers = []
        for record in records:
            lines = record["input"].split("\n")
            first = lines.index("Which of these headlines will this reader like?") + 1
            last = next(k for k, line in enumerate(lines) if line.startswith("Answer with a JSON list"))
            found = [item(line, k % 2 == 0, f"for {line}") for k, line in enumerate(lines[first:last])]
            answers.append(self.spoil(json.dumps(found)))
        return answers


FORM = JsonList()
NEWS = np.array([f"Headline {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"], dtype=object)


@pytest.fixture
def impressions():
    """Five impressions, the first of 23 candidates, the last without a history."""
    rows = [("U1", 0, [0, 1, 2], list(range(3, 26)), [0, 1] + [0] * 21)]
    rows += [("U2", 1 + k, [3, 4], [k, k + 5, k + 9], [0, 0, 1]) for k in range(3)]
    rows += [("U3", 9, [], [7, 8], [1, 0])]
    return make_impressions(rows)


def test_a_long_list_is_asked_in_parts_and_every_candidate_is_answered(impressions, tmp_path):
    writer = Scripted()
    found = ask_lists(impressions, NEWS, FORM, writer, history_length=2, cache=tmp_path)
    assert [len(scores) for scores in found.scores] == [23, 3, 3, 3, 2]
    assert len(writer.asked) == 3 + 4  # at most ten at once
    assert max(record["input"].count("Headline") for record in writer.asked) <= 2 + FORM.most
    assert all(set(scores) <= {LIKED, NOT_LIKED} for scores in found.scores)
    assert found.scores[1].tolist() == [LIKED, NOT_LIKED, LIKED]
    assert found.explanations[4] == ["for - Headline H", "for - Headline I"]
    assert found.cost["answers"] == found.cost["usable"] == 7
    assert (found.cost["tokens_read"], found.cost["tokens_written"]) == (70, 7)
    assert "candidates without an answer" not in found.cost


def test_no_label_is_in_a_question(impressions, tmp_path):
    asked = []
    for table in (impressions, impressions.without_labels()):
        writer = Scripted()
        ask_lists(table, NEWS, FORM, writer, history_length=8, cache=tmp_path / str(len(asked)))
        asked.append(writer.asked)
    assert asked[0] == asked[1]
    assert all(record["output"] == "" for record in asked[0])


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda text: "", EMPTY),
        (lambda text: "I like them all.", NO_JSON),
        (lambda text: text[:-1], NO_JSON),
        (lambda text: '{"like": true}', WRONG_FORM),
    ],
)
def test_malformed_answers_leave_their_candidates_last_and_are_counted(impressions, tmp_path, spoil, fault):
    found = ask_lists(impressions, NEWS, FORM, Scripted(spoil), history_length=8, cache=tmp_path)
    assert all((scores == UNANSWERED).all() for scores in found.scores)
    assert (found.cost["answers"], found.cost["usable"], found.cost[fault]) == (7, 0, 7)
    assert found.cost["candidates without an answer"] == 34
    assert UNANSWERED < NOT_LIKED < LIKED


def test_a_kill_half_way_costs_no_answer(impressions, tmp_path):
    whole = ask_lists(impressions, NEWS, FORM, Scripted(), history_length=8, cache=tmp_path / "whole")
    killed = Scripted(n_batches=2)
    with pytest.raises(KeyboardInterrupt):
        ask_lists(impressions, NEWS, FORM, killed, history_length=8, cache=tmp_path / "killed")
    rest = Scripted()
    again = ask_lists(impressions, NEWS, FORM, rest, history_length=8, cache=tmp_path / "killed")
    assert (len(killed.asked), len(rest.asked)) == (4, 3)
    files = [next((tmp_path / name).glob("*.jsonl")).read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    assert all(map(np.array_equal, whole.scores, again.scores))
    assert whole.explanations == again.explanations


@pytest.mark.parametrize("kind", ["tiny_glm", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_held_to_its_candidates_any_model_answers_all_of_them(impressions, request, tmp_path, kind):
    """Random weights too."""
    model, template = request.getfixturevalue(kind), {"tiny_glm": "glm4", "smollm2": "smollm2"}[kind]
    titles = np.array([f'{name} – "é"' for name in NEWS], dtype=object)
    some = impressions.take(np.array([1, 4]))
    writer = HFWriter(model, template, max_new_tokens=600, dtype="float32")
    how = {"history_length": 2, "cache": tmp_path}
    held = ask_lists(some, titles, FORM, writer, is_constrained=True, **how)
    assert {name: n for name, n in held.cost.items() if " " in name} == {}, (
        "faults have spaces in their names"
    )
    assert (held.cost["answers"], held.cost["usable"]) == (2, 2)
    assert all(set(scores) <= {LIKED, NOT_LIKED} for scores in held.scores)
    assert all(len(text) >= 2 for said in held.explanations for text in said)
    if kind == "tiny_glm":  # the other writes on and on
        free = ask_lists(some, titles, FORM, writer, **how)
        assert len(list(tmp_path.glob("*.jsonl"))) == 2, "the schema is part of the question"
        assert any((scores == UNANSWERED).any() for scores in free.scores)
