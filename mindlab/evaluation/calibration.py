"""Calibration of P(Yes): of the candidates that get 30 %, are 30 % clicked?"""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from mindlab.evaluation.intervals import mean_intervals
from mindlab.evaluation.predictions import codes

N_BINS = 10


def log_odds_shift(share_of_yes: float, share_of_clicks: float) -> float:
    """Return what training on too few non-clicks adds to the log-odds of a Yes.

    A model that has learnt the share of Yes among its records says that share; among the candidates of the
    impressions behind them it is another one. Take the shift from the scores, and P(Yes) is about a candidate that a
    user sees (prior correction; King & Zeng, Political Analysis 2001).

    >>> round(log_odds_shift(0.5, 0.2), 3)
    1.386
    """
    return math.log(share_of_yes / (1 - share_of_yes)) - math.log(share_of_clicks / (1 - share_of_clicks))


def calibration(frame: pa.Table, *, n_bins: int = N_BINS, shift: float | None = None) -> dict[str, Any]:
    """Return how the P(Yes) of a Yes/No prompt compares with the share of clicks.

    The score of such a prompt is log P(Yes) - log P(No) (`mindlab.llm.score.YesNoScorer`), so between these two
    answers P(Yes) = 1 / (1 + exp(-score)).

    Args:
        frame: predictions; rows without a label are left out. Intervals are 95 %, over users (cases where users are unknown)
            and the news asked about.
        n_bins: bins of equally many candidates, by P(Yes).
        shift: from `log_odds_shift`, if the model was trained on a choice of non-clicks.

    Returns:
        ``n``, ``share`` (of clicks), ``mean`` (of P(Yes)), ``ece`` (the expected calibration error: the mean
        distance of a bin's P(Yes) from its share of clicks; Naeini et al., AAAI 2015, with equally full bins),
        ``brier`` (the mean squared distance of P(Yes) from the label) and ``bins``, each with ``n``, ``mean``,
        ``share``, ``low`` and ``high``; and in ``undone`` again mean, ece and brier, the shift taken from the
        scores (None without one). Brier of the constant answer is ``share * (1 - share)``.
    """
    frame = frame.filter(frame["label"].is_valid())
    labels, scores = frame["label"].to_numpy().astype(np.float64), frame["score"].to_numpy()
    users = frame["user_id"]
    known = frame["case_id"].to_numpy() if users.null_count else codes(users)[0]
    places = np.array_split(np.argsort(scores, kind="stable"), min(n_bins, len(scores)))
    columns = np.full((len(places), len(scores)), np.nan)
    for column, place in zip(columns, places, strict=True):
        column[place] = labels[place]
    intervals = mean_intervals(dict(enumerate(columns)), known, codes(frame["news_id"])[0])
    p = _probabilities(scores)
    bins = [
        {
            "n": len(place),
            "mean": float(p[place].mean()),
            "share": float(labels[place].mean()),
            "low": None if np.isnan(intervals[k].low) else max(intervals[k].low, 0.0),
            "high": None if np.isnan(intervals[k].high) else min(intervals[k].high, 1.0),
        }
        for k, place in enumerate(places)
    ]
    undone = None if shift is None else _distances(_probabilities(scores - shift), labels, places)
    share = float(labels.mean())
    return {"n": len(p), "share": share, **_distances(p, labels, places), "bins": bins, "undone": undone}


def _probabilities(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -700, 700)))


def _distances(p: np.ndarray, labels: np.ndarray, places: list[np.ndarray]) -> dict[str, float]:
    """Return the mean of P(Yes), and how far it is from the labels, by bin and by candidate."""
    away = sum(abs(float((p[place] - labels[place]).sum())) for place in places)
    return {"mean": float(p.mean()), "ece": away / len(p), "brier": float(np.mean((p - labels) ** 2))}
