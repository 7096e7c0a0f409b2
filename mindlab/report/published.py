"""Tables of results that others published. Each has its source."""

from pathlib import Path
from typing import Any

from mindlab.common.errors import UserError
from mindlab.common.files import is_number, read_json

# LLM-TRSR's table of results, the half on MIND: Zheng et al., arXiv 2403.13325, "The performance of different models". Read
# off a public transcription of the paper's LaTeX source, not off its PDF. The last two rows are the paper's own methods.
LLM_TRSR_SOURCE = "https://arxiv.org/abs/2403.13325"
LLM_TRSR_METRICS = ("recall3", "recall5", "recall10", "mrr3", "mrr5", "mrr10")
LLM_TRSR = {
    "NCF": (0.7010, 0.8030, 0.9240, 0.5523, 0.5759, 0.5926),
    "DIN": (0.7900, 0.8620, 0.9330, 0.6352, 0.6519, 0.6616),
    "DIEN": (0.7300, 0.8200, 0.9140, 0.6045, 0.6251, 0.6379),
    "GRU4Rec": (0.6650, 0.7970, 0.9260, 0.5305, 0.5610, 0.5787),
    "NARM": (0.5820, 0.7330, 0.8930, 0.4142, 0.4489, 0.4703),
    "SASRec": (0.8420, 0.8960, 0.9410, 0.7447, 0.7574, 0.7636),
    "CORE": (0.5170, 0.5580, 0.6370, 0.4392, 0.4488, 0.4586),
    "TALLRec": (0.8580, 0.9020, 0.9590, 0.7708, 0.7807, 0.7885),
    "LLM-TRSR-Hierarchical": (0.9160, 0.9430, 0.9750, 0.8505, 0.8568, 0.8611),
    "LLM-TRSR-Recurrent": (0.9060, 0.9390, 0.9840, 0.8400, 0.8475, 0.8534),
}

RECPROMPT = Path("data/published/recprompt.json")  # of the impressions in mindlab/data/recprompt.py
PUBLISHED_METRICS = ("auc", "mrr", "ndcg5", "ndcg10")
PUBLISHED_GROUPS = ("simple", "neural", "prompted", "tuned prompts")


def read_published(path: str | Path) -> dict[str, Any]:
    """Return a published table of results, such as data/published/recprompt.json.

    Returns:
        ``authors``, ``paper``, ``repository``, ``commit`` and ``table`` (where it was read), ``remark`` (to be said beside it),
        ``n_impressions``, and ``rows``: ``name``, ``group`` (of `PUBLISHED_GROUPS`), each of `PUBLISHED_METRICS` as a
        fraction, the same with ``_sd`` (standard deviation over the authors' runs), ``trained_on`` (a text),
        ``categories`` (did it read them) and ``categories_by`` (how that is known). ``logged`` has a remark and rows of
        its own, of runs that the source records outside its table. None means: the source does not say.

    Raises:
        UserError: if the file is missing or is not such a table.

    >>> table = read_published("data/published/recprompt.json")
    >>> len(table["rows"]), table["rows"][-1]["name"], table["rows"][-1]["auc"]
    (16, 'RecPrompt CoT, GPT-4', 0.6943)
    """
    advice = "restore it from the repository"
    table = read_json(path, advice)
    logged = table.get("logged") or {"remark": "", "rows": []}
    try:
        texts = [table[key] for key in ("authors", "paper", "repository", "commit", "table", "remark")]
        rows, more = table["rows"], logged["rows"]
        for row in [*rows, *more]:
            texts += [row["name"], row["categories_by"]]
            numbers = [row[metric] for metric in PUBLISHED_METRICS]
            numbers += [row[f"{metric}_sd"] for metric in PUBLISHED_METRICS if row in rows]
            if not all(is_number(value) and value is not None and 0 <= value <= 1 for value in numbers):
                raise UserError(f"{path}: {row['name']!r} holds {numbers}, expected fractions; {advice}")
            if row["group"] not in PUBLISHED_GROUPS:
                raise UserError(f"{path}: {row['name']!r} is of no known group, {row['group']!r}; {advice}")
            if row["categories"] not in (True, False, None) or not isinstance(row["trained_on"], str | None):
                raise UserError(f"{path}: {row['name']!r} has an unfit categories or trained_on; {advice}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a table of published rows ({error!r}); {advice}") from None
    if not rows or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"{path}: a table of published rows without rows, or without a text; {advice}")
    return table | {"logged": logged}
