"""What evaluate.py of github.com/msnews/MIND does, restated plainly: one line and one impression at a time."""

import json

import numpy as np
from sklearn.metrics import roc_auc_score


def dcg(labels, scores, k):
    top = labels[np.argsort(scores)[::-1]][:k]
    return np.sum((2**top - 1) / np.log2(np.arange(len(top)) + 2))


def measure(labels, scores, auc=roc_auc_score):
    labels, scores = np.asarray(labels, float), np.asarray(scores, float)
    by_rank = labels[np.argsort(scores)[::-1]]
    return {
        "auc": auc(labels, scores),
        "mrr": np.sum(by_rank / (np.arange(len(labels)) + 1)) / labels.sum(),
        "ndcg5": dcg(labels, scores, 5) / dcg(labels, labels, 5),
        "ndcg10": dcg(labels, scores, 10) / dcg(labels, labels, 10),
    }


def parse_line(line):
    impression_id, values = line.strip("\n").split()
    return impression_id, json.loads(values)


def score_submission(truth, submission):
    """Return the means over impressions; both are lines of ``impid [...]``, of labels and of ranks.

    An impression whose labels are masked, ``[]``, is skipped with its line; a line that is not there
    counts as a tie of all candidates.
    """
    rows = []
    for i, line in enumerate(truth):
        impression_id, labels = parse_line(line)
        if not labels:
            continue
        found, ranks = impression_id, [1] * len(labels)
        if i < len(submission):
            try:
                found, ranks = parse_line(submission[i])
            except ValueError:
                raise ValueError(f"line {i + 1}: Invalid Input Format") from None
        if found != impression_id:
            raise ValueError(f"line {i + 1}: Inconsistent Impression Id {found} and {impression_id}")
        scores = [1.0 / rank for rank in ranks]
        if not all(0 <= score <= 1 for score in scores):
            raise ValueError(f"line {i + 1}: a rank is below 1")
        rows.append(measure(labels, scores))
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}
