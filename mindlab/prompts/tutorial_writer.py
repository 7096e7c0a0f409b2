"""The tutorial's records by the hundred thousand: bytes laid end to end."""

import json
import re
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.data.mind import Impressions
from mindlab.prompts.base import yes_no
from mindlab.prompts.records import Part

if TYPE_CHECKING:
    from mindlab.prompts.likes_dislikes import LikesDislikes


class TutorialWriter:
    """Turns impressions into the JSON of `likes_dislikes_parts`, a hundred times faster than record by record.

    JSON escapes text letter by letter, so a title is escaped once and not at each of its showings. What is left is to
    lay pieces end to end, the fixed words of the prompt and the titles: one gather over a dictionary of all pieces,
    whose result is the file's bytes.
    """

    def __init__(self, form: "LikesDislikes", titles: np.ndarray):
        """Take the neutralised `titles` of the whole catalogue, str (n_news,)."""
        texts = {name: json.dumps(text, ensure_ascii=False)[1:-1] for name, text in form.text.items()}
        start = f',\n{{"system": "{texts["system"]}", "instruction": "{texts["instruction"]}", "input": "'
        before, after_history, after_likes, after_dislikes, end = re.split(r"\{\w+\}", texts["input"])
        answers = [f'{end}", "output": "{yes_no(is_click)}"}}' for is_click in (False, True)]
        fixed = [
            f"{start}{before}{texts['no_history']}",
            start + before,
            after_history,
            after_likes,
            after_dislikes,
        ]
        bare = pa.array([encode_basestring(title)[1:-1] for title in titles.tolist()], pa.string())
        quoted = pc.binary_join_element_wise('\\"', bare, '\\"', "")
        listed = pc.binary_join_element_wise(", ", quoted, "")
        self._pieces = pa.concat_arrays([pa.array([*fixed, *answers]), bare, quoted, listed])
        n_fixed = len(fixed) + len(answers)
        self._bare, self._first, self._next = (n_fixed + k * len(titles) for k in range(3))

    def __call__(self, block: Impressions) -> Part:
        """Return the records of a block of `blocks`, whose histories are cut to what the prompt shows."""
        n = len(block)
        owner = np.repeat(np.arange(n), np.diff(block.offsets))
        last = block.offsets[1:] - 1
        is_sibling = np.ones(len(owner), bool)
        is_sibling[last] = False
        is_click = block.labels == 1
        lists = [(np.repeat(np.arange(n), np.diff(block.history_offsets)), block.history_news)]
        lists += [(owner[mask], block.news[mask]) for mask in (is_sibling & is_click, is_sibling & ~is_click)]
        sizes = np.array([np.bincount(rows, minlength=n) for rows, _ in lists])
        # Each list stands between two fixed pieces; the target and the answer come last.
        starts = np.cumsum(np.concatenate([[0], sizes.sum(axis=0)[:-1] + 6]))
        pieces = np.empty(int(sizes.sum()) + 6 * n, np.int32)
        pieces[starts] = sizes[0] > 0
        place = starts
        for k, (rows, news) in enumerate(lists):
            rank = np.arange(len(rows)) - (np.cumsum(sizes[k]) - sizes[k])[rows]
            pieces[place[rows] + 1 + rank] = news + np.where(rank == 0, self._first, self._next)
            place = place + 1 + sizes[k]
            pieces[place] = 2 + k
        pieces[place + 1] = self._bare + block.news[last]
        pieces[place + 2] = 5 + is_click[last]
        found = self._pieces.take(pa.array(pieces))
        end = np.frombuffer(found.buffers()[1], np.int32)[len(pieces)]
        return Part(found.buffers()[2][: int(end)], n, int(is_click[last].sum()))
