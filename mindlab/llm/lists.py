"""Recommendations that a language model writes: a JSON list with `title`, `like` and `explanation` of each candidate.

A model is asked for every candidate and may answer anything. What can be used becomes scores, the rest is counted: no
JSON, another form, prose around it, titles that nobody asked about, titles twice, titles left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.cli import Progress
from mindlab.data.mind import Impressions
from mindlab.llm.options import Options
from mindlab.llm.server import ServerWriter
from mindlab.llm.writing import TEXT_AROUND, Answer, HFWriter, Writer, count_faults, read_json, write_texts
from mindlab.prompts import JsonList, ListParts
from mindlab.prompts.records import Budget, Shortening, fit_budget

TOKENS_EACH = 64  # room for one candidate's object
THOUGHTS = 512  # tokens of room to think
AT_ONCE = 16  # answers: they are long, and what is kept of each grows with it
NOT_ASKED, TWICE, LEFT_OUT = "a title not asked about", "a title twice", "a title left out"
LIKED, NOT_LIKED, UNANSWERED = 1.0, 0.0, -1.0  # scores: what was not answered ties at the end


@dataclass(frozen=True)
class Lists:
    """What the model made of each impression's candidates."""

    scores: list[np.ndarray]  # float64 (n_candidates,) each: LIKED, NOT_LIKED or UNANSWERED
    explanations: list[list[str]]  # by candidate, "" for none
    cost: dict[
        str, Any
    ]  # the counts of `count_faults`, `unanswered` candidates, seconds, tokens read and written


def writer_of(options: Options) -> Writer:
    """Return what writes the answers: a server, or its model here."""
    # What is held to a schema ends by itself: room costs it nothing.
    most = JsonList.most * TOKENS_EACH * (1 + options.constrained) + THOUGHTS * options.thinking
    if options.base_url:
        return ServerWriter(options.base_url, options.model, most)
    return HFWriter(
        options.model, options.template, None, most, options.adapter, AT_ONCE, dtype=options.dtype
    )


def read_list(text: str, titles: Sequence[str], thinking: bool = False) -> Answer:
    """Return by candidate what an answer says: (like, explanation), or None where it says nothing.

    The fault is the first that applies of: empty, no JSON, wrong form, text around it, a title that was not asked about,
    twice, left out. With `thinking` the last list counts and prose before it is none. A title is found though its case,
    white space, bullet or number differ; of two candidates with one title the first comes first.

    >>> read_list('[{"title": "A storm", "like": true, "explanation": "weather"}]', ["A game", "A storm"])
    Answer(value=[None, (True, 'weather')], fault='a title left out')
    """
    answer = read_json(text, JsonList.schema)
    if thinking:
        starts = [match.start() for match in re.finditer(r"\[\s*\{", text)]
        found = (read_json(text[start:], JsonList.schema) for start in reversed(starts))
        answer = next((one for one in found if one.value is not None), answer)
    if answer.value is None:
        return answer
    places: dict[str, list[int]] = {}
    for place, title in enumerate(titles):
        places.setdefault(_plain(title), []).append(place)
    value: list[tuple[bool, str] | None] = [None] * len(titles)
    faults = {answer.fault} - {None}
    for item in answer.value:
        mine = places.get(_plain(item["title"]))
        if mine is None:
            faults.add(NOT_ASKED)
        elif not mine:
            faults.add(TWICE)
        else:
            value[mine.pop(0)] = item["like"], item["explanation"]
    if None in value:
        faults.add(LEFT_OUT)
    first = next((fault for fault in (TEXT_AROUND, NOT_ASKED, TWICE, LEFT_OUT) if fault in faults), None)
    return Answer(value if any(value) else None, first)


def _plain(title: str) -> str:
    """Return a title without what a model may change: a bullet or number before it, case, white space, quotes.

    >>> _plain('- "A  Storm"'), _plain("2. A storm "), _plain("7 storms")
    ('a storm', 'a storm', '7 storms')
    """
    title = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", title)
    return " ".join(title.casefold().strip(" \t\n\"“”'").split())


def ask_lists(
    impressions: Impressions,
    titles: np.ndarray,
    form: JsonList,
    writer: Writer,
    *,
    history_length: int,
    budget: Budget | None = None,
    is_constrained: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Lists:
    """Have `writer` answer about all candidates of all impressions, at most `form.most` at once; (n_impressions,) of each.

    `titles` are those of the catalogue, neutralised. The oldest titles of a history go until a prompt fits `budget`.
    With `is_constrained` an answer is held to all of its candidates, in their order, and nothing else. The answers are
    kept in `cache` (`write_texts`), so that a run that is interrupted goes on.
    """
    asked: list[tuple[int, np.ndarray, list[str]]] = []  # impression, places of its candidates, their titles
    records = []
    for i in range(len(impressions)):
        history = titles[impressions.user_history(i)].tolist()
        history = history[max(0, len(history) - history_length) :]
        candidates = titles[impressions.candidates(i)]
        for part in np.array_split(np.arange(len(candidates)), -(-len(candidates) // form.most)):
            parts = ListParts(history, candidates[part].tolist())
            asked.append((i, part, parts.candidates))
            record = (
                form.record(parts) if budget is None else fit_budget(form, parts, 0, budget, Shortening())
            )
            records.append(
                {**record, "schema": form.schema_of(parts.candidates)} if is_constrained else record
            )
    found = write_texts(records, writer, "lists", cache, progress)
    scores = [np.full(len(impressions.candidates(i)), UNANSWERED) for i in range(len(impressions))]
    explanations = [[""] * len(one) for one in scores]
    answers = []
    for (i, part, shown), text in zip(asked, found.texts, strict=True):
        answer = read_list(text, shown, form.thinking)
        answers.append(answer)
        for place, said in zip(part.tolist(), answer.value or (), strict=False):
            if said is not None:
                scores[i][place] = LIKED if said[0] else NOT_LIKED
                explanations[i][place] = said[1]
    took = {
        "seconds": found.seconds,
        "tokens_read": found.tokens_read,
        "tokens_written": found.tokens_written,
    }
    return Lists(scores, explanations, {**count_faults(answers), **unanswered(scores), **took})


def unanswered(scores: Sequence[np.ndarray]) -> Mapping[str, int]:
    """Return how many candidates were left without an answer, if any were.

    >>> unanswered([np.array([LIKED, UNANSWERED])]), unanswered([np.array([LIKED])])
    ({'candidates without an answer': 1}, {})
    """
    n = sum(int((one == UNANSWERED).sum()) for one in scores)
    return {"candidates without an answer": n} if n else {}
