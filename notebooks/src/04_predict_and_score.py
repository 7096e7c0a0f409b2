# %% [markdown]
# # 04 Predict and score
#
# - **Reads**: `data/sample` (synthetic MIND), `models/smollm2-135m`, and from `data/reference_runs` an adapter
#   and recorded predictions
# - **Writes**: run folders under `runs/notebook_04`: predictions and a manifest each
# - **Time on the sample**: a few minutes. **Hardware**: two CPU cores
# - **Previous**: [03 Fine-tune with LLaMA-Factory](03_finetune_with_llamafactory.ipynb). **Next**: [05 Why
#   ninety-eight percent](05_why_97_8_percent.ipynb)
#
# You will be able to
# 1. measure the tutorial's accuracy, and name the two answers that know nothing about news and must stand
#    beside it;
# 2. rank every candidate of an impression with a language model, and measure it with MIND's own metrics;
# 3. tell from an interval whether a table shows anything.

# %%
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from scipy.stats import rankdata

from mindlab import tasks
from mindlab.common.files import sha256
from mindlab.data.mind import read_mind
from mindlab.evaluation import predictions
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.evaluation.metrics import (
    RANKING_METRICS,
    answer_metrics,
    evaluate,
    paired_differences,
    ranking_metrics,
)
from mindlab.finetune import factory
from mindlab.llm.hf import HFEngine
from mindlab.llm.options import Options
from mindlab.llm.score import NextClickScorer, YesNoScorer
from mindlab.prompts import LikesDislikes, NextClick, likes_dislikes_parts, neutral_titles
from mindlab.prompts.chat import ChatTemplate
from mindlab.recommenders.llm import ranker
from mindlab.runs.compare import compare
from mindlab.runs.notebook import bar, setup
from mindlab.runs.run import Request
from mindlab.runs.run import run as score_all

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
template = "smollm2"
adapter = ""  # trained on the tutorial's records, e.g. "saves/mind_news_recommend"; "": the base model alone
dev_adapter = "data/reference_runs/demo/smollm2-next_click-lora/adapter"  # or your own of notebook 03
n_seed = 40
n_dev = 20
seed = 42
out = "runs/notebook_04"

# %%
setup(data, seed)

# %% [markdown]
# ## 1 The tutorial's way
#
# The tutorial asks the tuned model "will the user like the target news?", takes the text it writes,
# strips it, and counts how often it equals `Yes.` or `No.`. One sample first: what does the **base**
# model write?

# %%
mind = read_mind(data)
titles = neutral_titles(mind.news)
whole = tasks.Seed().splits(mind, seed)["test"]
rows = tasks.limit(len(whole), n_seed, seed)
sample = whole.take(rows)
engine = HFEngine(model)
chat = ChatTemplate.load(model, template)
asker = YesNoScorer(engine, chat)

# %%
parts = min(likes_dislikes_parts(sample, titles), key=lambda p: len(p.likes + p.dislikes))
record = LikesDislikes().record(parts)
print(record["input"], "\n\nright answer:", record["output"])
score, text = asker.answer(record)
print("model writes:", repr(text))
print("log P(Yes) - log P(No):", round(score, 3))

# %% [markdown]
# If the model writes neither `Yes.` nor `No.`, text equality has nothing to compare; the tutorial's count
# takes it as wrong. The last line is another way to ask: which of the two words is more probable as the
# first one? That always has an answer.
#
# The aggregate. The runner, `mindlab.runs.run`, is what `scripts/predict.py` runs; it keeps what is done, so a second run is
# quick.

# %%
longest = factory.load("configs/new_train.yaml")["cutoff_len"]
tuned = {"lora": adapter} if adapter else {}
tables = {}
for name, weights in ({"base": None} | tuned).items():
    method = ranker(name, Options("likes_dislikes", model, template, weights, cutoff_len=longest))
    folder = Path(out) / f"seed-{name}-{n_seed}-{seed}"
    run = score_all(Request(data, "seed", limit=n_seed, seed=seed), method, folder, progress=bar)
    tables[name] = predictions.read_predictions(run / "predictions.parquet")
answers = tables["base"]["answer"].to_pylist()
print(pd.Series(answers).value_counts().head(3).to_string())

# %% [markdown]
# Now the two answers that look at no news: **always No**, and the **leak rule** "Yes, if and only if no
# other candidate was clicked". They are computed from labels that the tutorial's prompt shows.

# %%
last = np.full(n_seed, -1)
labels = tables["base"]["label"].to_numpy()
blind = {"always No": always_no(sample, last), "leak rule": leak_rule(sample, last)}
blind |= {f"{name}, P(Yes) > P(No)": table["score"].to_numpy() > 0 for name, table in tables.items()}
found = {f"{name}, text": evaluate(table).summary for name, table in tables.items()}
for name, is_yes in blind.items():
    found[name] = answer_metrics(is_yes, labels, sample.users)
columns = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "tp", "fp", "fn", "tn"]
display(pd.DataFrame(found).T[[*columns, "invalid_answers"]].astype(float).round(3))

# %% [markdown]
# *Always No* is the level that accuracy starts from. The leak rule is above it without having read a
# title. A tuned model that scores what the leak rule scores, with a precision of one, has found the rule.
# These are few records; the rule itself costs nothing on all of them:

# %%
n_whole = len(whole)
is_yes = leak_rule(whole, np.full(n_whole, -1))
targets = whole.labels[whole.offsets[1:] - 1]
rule = answer_metrics(is_yes, targets, whole.users)
display(pd.Series({"n": n_whole} | {key: rule[key] for key in [*columns, "always_no_accuracy"]}).round(3))

# %%
assert (tables["base"]["case_id"].to_numpy() == rows).all(), "the model scored other records"
assert rule["fp"] == 0, "the rule said Yes where the target was not clicked"
assert rule["accuracy"] > rule["always_no_accuracy"]

# %% [markdown]
# ## 2 The honest way
#
# Nothing in the prompt may come from the impression that is being ranked. `next_click` asks for the
# titles a user clicks, lets the model read the history as its own answer so far, and scores a candidate
# by how probable its line is as the next one, **minus** how probable it is without any history. One
# sample:

# %%
dev = mind.splits["dev"]
dev_rows = tasks.limit(len(dev), n_dev, seed)
cut = factory.load("configs/train/smollm2_135m_lora_sft.yaml")["cutoff_len"]
form = NextClick()
scorer = NextClickScorer(engine, chat, titles, form, form.history_length, cut)
sizes = np.diff(dev.offsets)
row = int(np.flatnonzero((sizes >= 5) & (sizes <= 8))[0])
history, candidates = dev.user_history(row), dev.candidates(row)
print(*titles[history[-form.history_length :]], sep="\n")
one = pd.DataFrame({"score": scorer.score(history.tolist(), candidates.tolist())})
one["clicked"], one["title"] = dev.candidate_labels(row), titles[candidates]
display(one.sort_values("score", ascending=False).round(2))

# %% [markdown]
# The awkward one: no history, so both terms are the same and every candidate ties. The metrics count a
# tie as the expectation over random order: such an impression has an AUC of one half, whatever the file's
# order is.

# %%
stranger = int(np.flatnonzero(np.diff(dev.history_offsets)[dev.history] == 0)[0])
tied = scorer.score([], dev.candidates(stranger).tolist())
lone = dev.candidate_labels(stranger)
auc = ranking_metrics(tied, lone, np.array([0, len(lone)]))["auc"][0]
assert (tied == 0).all()
assert auc == 0.5

# %% [markdown]
# The aggregate: the base model, the one with the adapter in `dev_adapter` (what `make demo` trained, in the
# repository so that nobody must wait for it), and methods that need no language model, on the **same** seeded
# choice of dev impressions, with every candidate.

# %%
tuned = {"lora": dev_adapter} if dev_adapter else {}
runs = {}
for name, weights in ({"base": None} | tuned).items():
    method = ranker(f"smollm2-{name}", Options("next_click", model, template, weights, cutoff_len=cut))
    folder = Path(out) / f"dev-{name}-{n_dev}-{seed}"
    runs[method.name] = score_all(Request(data, limit=n_dev, seed=seed), method, folder, progress=bar)
simple = ["random", "popularity", "category", "tfidf"]
made = compare(Request(data, limit=n_dev, seed=seed), simple, Path(out) / f"simple-{n_dev}-{seed}")
runs |= dict(zip(simple, made, strict=True))

# %%
measured = {}
for name, run in runs.items():
    table = predictions.read_predictions(run / "predictions.parquet")
    measured[name] = evaluate(table)
columns = ["n_impressions", "auc", "auc_low", "auc_high", "mrr", "ndcg5", "ndcg10"]
leaderboard = pd.DataFrame({name: one.summary for name, one in measured.items()}).T[columns]
display(leaderboard.astype(float).round(3).sort_values("auc", ascending=False))

# %% [markdown]
# Before you believe any order of these rows, look where `random` stands. AUC, MRR and nDCG are MIND's
# official metrics: of each impression, then the mean. The interval resamples users, because one
# user's impressions are alike.

# %%
assert len({one.summary["subset_sha"] for one in measured.values()}) == 1, "methods scored other candidates"
assert leaderboard[list(RANKING_METRICS)].astype(float).stack().between(0, 1).all()

# %% [markdown]
# ## 3 Does this table show anything?
#
# Compare on the same impressions: the difference to `random`, impression by impression, with its
# interval.

# %%
against = {}
for name, one in measured.items():
    against[name] = paired_differences(one, measured["random"])["auc"]
differences = pd.DataFrame(against).T.astype(float)
differences["shows a difference"] = (differences.low > 0) | (differences.high < 0)
display(differences.round(3))

# %% [markdown]
# Where the interval holds zero the table shows **nothing**, in either direction, and where it does not,
# one choice of impressions and one synthetic world is still all there is. With so few impressions no
# order of the rows should be quoted. An interval shrinks with the square root of the number of
# impressions: four times as many make it half as wide. This is how many would make the base model's
# interval one AUC point wide on each side:

# %%
base = differences.loc["smollm2-base"]
half = (base.high - base.low) / 2
print(f"now {n_dev} impressions, plus or minus {half:.3f}; for 0.010 about {n_dev * (half / 0.01) ** 2:,.0f}")

# %% [markdown]
# So here is more. `data/reference_runs` holds what the models of two longer runs predicted: of `make demo`,
# and of the recipe in [docs/recipe.md](../docs/recipe.md), which asks for the topics of the next clicks
# (`next_topic`), trains four times as long and scores every dev impression of the sample. Tuned minus base:

# %%
recorded = {
    "next_click": "data/reference_runs/demo/smollm2-next_click",
    "next_topic": "data/reference_runs/recipe-sample/smollm2-next_topic",
}
gains = {}
for name, run in recorded.items():
    pair = [predictions.read_predictions(f"{run}-{kind}/predictions.parquet") for kind in ("base", "lora")]
    untuned, better = (evaluate(table) for table in pair)
    gain = paired_differences(better, untuned)["auc"]
    kept = {"base": untuned.summary["auc"], "tuned": better.summary["auc"]}
    gains[name] = {"impressions": untuned.summary["n_impressions"]} | kept | gain
display(pd.DataFrame(gains).T.round(3))

# %% [markdown]
# Read `low` and `high` before `mean`. And whatever they say: a table on the sample ranks methods on this
# generator, not on MIND.

# %%
assert differences.loc["random", ["mean", "low", "high"]].eq(0).all(), "random differs from itself"
assert (differences.low <= differences["mean"]).all()

# %% [markdown]
# ## Exercises
#
# **1 Predict.** Multiply all scores by ten and add one. Which metrics change?

# %% tags=["solution"]
# None: they read the order alone.
table = predictions.read_predictions(runs["tfidf"] / "predictions.parquet")
scores, dev_labels = table["score"].to_numpy(), table["label"].to_numpy()
offsets = predictions.case_offsets(table)
before, after = (ranking_metrics(s, dev_labels, offsets) for s in (scores, 10 * scores + 1))
assert all(np.allclose(before[name], after[name]) for name in RANKING_METRICS)

# %% [markdown]
# **2 Change.** Run `category` on all dev impressions instead of `n_dev`. Assert that its interval is
# narrower.

# %% tags=["solution"]
run = compare(Request(data, seed=seed), ["category"], Path(out) / f"simple-all-{seed}")[0]
table = predictions.read_predictions(run / "predictions.parquet")
all_of_them = evaluate(table).summary
print({key: round(all_of_them[key], 3) for key in ("auc", "auc_low", "auc_high")}, len(dev), "impressions")
few = measured["category"].summary
assert all_of_them["auc_high"] - all_of_them["auc_low"] < few["auc_high"] - few["auc_low"]

# %% [markdown]
# **3 Build.** Make a new method: the mean of the ranks that `tfidf` and `category` give within an
# impression. Write its predictions table with `predictions.from_scores` and assert that it scored the
# same candidates as the others.

# %% tags=["solution"]
chosen = dev.take(dev_rows)
both = [
    predictions.read_predictions(runs[name] / "predictions.parquet")["score"]
    for name in ("tfidf", "category")
]
bounds = zip(chosen.offsets[:-1], chosen.offsets[1:], strict=True)
blend = np.concatenate([rankdata(both[0][a:b]) + rankdata(both[1][a:b]) for a, b in bounds])
table = predictions.from_scores("test", chosen, mind.news, blend, case_ids=dev_rows)
blended = evaluate(table).summary
print({key: round(blended[key], 3) for key in ("auc", "auc_low", "auc_high")})
assert blended["subset_sha"] == measured["tfidf"].summary["subset_sha"]

# %% [markdown]
# ## What you made

# %%
made = {name: run / "predictions.parquet" for name, run in runs.items()}
files = {
    "file": [path.as_posix() for path in made.values()],
    "rows": [len(predictions.read_predictions(path)) for path in made.values()],
    "sha256": [sha256(path)[:16] for path in made.values()],
}
display(pd.DataFrame(files, index=list(made)))

# %% [markdown]
# Next: run this notebook again with the adapter of notebook 03, `saves/notebook_03`, in `dev_adapter`; then
# [05 Why ninety-eight percent](05_why_97_8_percent.ipynb).
