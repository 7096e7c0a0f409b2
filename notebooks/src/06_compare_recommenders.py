# %% [markdown]
# # 06 Compare recommenders
#
# - **Reads**: `data/sample` (synthetic MIND), `models/smollm2-135m`, the adapter in `data/reference_runs`
# - **Writes**: `runs/notebook_06`: a run folder for each method and protocol, and `report.html`
# - **Time on the sample**: a few minutes. **Hardware**: two CPU cores
# - **Previous**: [05 Why ninety-eight percent](05_why_97_8_percent.ipynb). **Next**: [07 Embeddings and a
#   ranker](07_embeddings_and_a_ranker.ipynb)
#
# You will be able to
# 1. put methods into one table so that their numbers can be compared, and say when that is forbidden;
# 2. tell how much of a number is made by the protocol and how much by the method;
# 3. find out for whom a number holds, and what it costs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from mindlab import report as reporting
from mindlab import tasks
from mindlab.data.mind import read_mind
from mindlab.evaluation.metrics import evaluate, paired_differences
from mindlab.evaluation.predictions import from_scores
from mindlab.evaluation.slices import masks, measure_slices
from mindlab.recommenders.base import history_share, score_without_labels
from mindlab.recommenders.past import PastLog
from mindlab.recommenders.popularity import StreamingPopularity
from mindlab.runs.compare import compare
from mindlab.runs.notebook import bar, setup
from mindlab.runs.run import Request

# %% tags=["parameters"]
data = "data/sample"
seed = 42
n_llm = 60
n_seeds = 3
out = "runs/notebook_06"

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 3), "figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## 1 What may stand in one table?
#
# Rows that ranked **the same candidates of the same impressions**, and that knew the same. So a table here is made from
# run folders, it refuses runs of different impressions, and it keeps two tracks apart. A *static* row knows nothing
# that happened after the training days. A *streaming* row may also use what other users did earlier on the
# test day, as a live system would.

# %%
names = [
    "random",
    "popularity",
    "category",
    "tfidf",
    "minilm",
    "popularity-streaming",
    "freshness",
    "lightgbm",
]
runs = compare(Request(data, seed=seed), [*names, "oracle"], Path(out) / "dev", n_seeds=n_seeds)
board = reporting.leaderboard(runs, context={"data": data, "synthetic": True})
table = pd.DataFrame(board["rows"]).set_index("name")
display(table[["track", "seeds", "auc", "auc_low", "auc_high", "mrr", "ndcg5", "ndcg10"]].round(3))

# %% [markdown]
# `oracle` ranks by the utility that the generator drew the clicks from. It is the ceiling, not a method. On real data
# there is no such row, and nobody knows how far a perfect ranking is away. On synthetic data there is one, and it says
# how much of a click is chance.

# %%
assert table["subset_sha"].nunique() == 1, "rows of different impressions"
assert table["auc"].idxmax() == "oracle"
assert table.loc["random", "auc_low"] < 0.5 < table.loc["random", "auc_high"]

# %% [markdown]
# ## 2 Is a difference real?
#
# Two rows were measured on the same users, so what one user's taste does to both cancels in the difference. The
# interval to look at is that of the **paired difference**, not whether two intervals overlap.

# %%
pairs = {row["name"]: row["paired"][0]["auc"] for row in board["rows"] if row["paired"]}
gains = pd.DataFrame(pairs).T.astype(float).sort_values("mean")
ends = gains[["low", "high"]].sub(gains["mean"], axis=0).abs().T
figure, axes = plt.subplots()
axes.errorbar(gains["mean"], gains.index, xerr=ends.to_numpy(), fmt="o", capsize=3)
axes.axvline(0, color="grey", linestyle="--")
axes.set_xlabel("AUC minus that of popularity, with 95 % intervals")
plt.show()

# %% [markdown]
# The comparison is with `popularity`, within the static track only. A row whose interval holds zero has not shown a
# gain, however nice its mean is. And each further row is one more chance to be lucky.

# %%
assert gains.loc["category", "low"] > 0
assert gains.loc["random", "low"] < 0 < gains.loc["random", "high"]

# %% [markdown]
# ## 3 How does the protocol make the number?
#
# The **same methods** under four protocols. `seed` is the tutorial's: one question an impression, accuracy; a
# recommender says Yes where it ranks the target alone at the top. `dev` is the official way. `sampled-impression`
# keeps of each impression one click and a few others. `sampled` asks for the last click of a history among
# news drawn from the whole catalogue, most of which nobody would have shown to that user.

# %%
shown = {"seed": "accuracy", "dev": "auc", "sampled-impression": "auc", "sampled": "auc"}
static = ["random", "popularity", "category", "tfidf", "minilm"]
blind = ["always-no", "leak-rule"]  # which answer the tutorial's question and look at no news
found = {}
for protocol, metric in shown.items():
    asked = [*static, *(blind if tasks.task_of(protocol).case == "candidate" else ())]
    folders = compare(Request(data, protocol, seed=seed), asked, Path(out) / protocol)
    measured = {folder.name: reporting.leaderboard_row(folder) for folder in folders}
    found[f"{protocol}\n{reporting.LABELS[metric]}"] = {name: row[metric] for name, row in measured.items()}
by_protocol = pd.DataFrame(found)
display(by_protocol.round(3))

# %%
axes = by_protocol.loc[static].T.plot(marker="o", ylim=(0.4, 1))
axes.axhline(0.5, color="grey", linestyle="--")
axes.plot([0, 0], by_protocol.loc[blind].iloc[:, 0], "kx")
for name in blind:
    axes.annotate(name, (0, by_protocol.loc[name].iloc[0]), xytext=(8, -3), textcoords="offset points")
axes.legend(loc="upper center", ncols=5, fontsize="small", bbox_to_anchor=(0.5, 1.2))
plt.show()

# %% [markdown]
# Not one method changed, and every number did. Two crosses that read no headline win the first column. In the last
# one, popularity is worth something again: a news that somebody clicked is compared with news that nobody was ever shown.
# A number without its protocol says nothing, and numbers of two protocols cannot be compared.

# %%
first, honest, _, last = by_protocol.columns
assert by_protocol.loc["leak-rule", first] > by_protocol.loc[static, first].max()
assert by_protocol.loc["popularity", last] > by_protocol.loc["popularity", honest] + 0.05

# %% [markdown]
# ## 4 For whom does it hold?
#
# A mean over all impressions hides who is served. Slices cut the same scores by what is known of the user and of the
# news.

# %%
mind = read_mind(data)
splits = tasks.Dev().splits(mind)
parts = masks(splits["test"], splits["train"], mind.news)
slices = pd.DataFrame(measure_slices(board["evaluations"], parts))
chosen = ["category", "popularity-streaming", "lightgbm"]
for name in chosen:
    slices[name] = [row[name]["mean"] if name in row else None for row in slices["methods"]]
display(slices.set_index(["question", "slice"])[["n", *chosen]].round(3))

# %% [markdown]
# Look at *clicks in the history*: who has clicked nothing yet has no categories to count, and `category` cannot
# rank for that user. And at *candidates*: a long list is not harder for AUC, but it is for the first places.
# Many slices were looked at; a surprise in one of them is a question, not an answer.

# %%
cold = slices[(slices["question"] == "clicks in the history") & (slices["slice"] == "0")].iloc[0]
assert cold["n"] < 20 or abs(cold["category"] - 0.5) < 0.02

# %% [markdown]
# ## 5 What does it cost?
#
# Now a language model, untuned and tuned for a few minutes (the adapter that the repository carries), on a seeded choice
# of impressions, because each takes it about half a second. All other rows are measured on just these impressions.

# %%
llm = ["smollm2-next_click-base", "smollm2-next_click-lora"]
llm_runs = compare(Request(data, limit=n_llm, seed=seed), llm, Path(out) / "dev", cases=bar)
some = tasks.limit(len(splits["test"]), n_llm, seed)
context = {"title": "Recommenders on the same impressions", "data": data, "synthetic": True}
both = reporting.leaderboard([*runs, *llm_runs], pairs=[tuple(reversed(llm))], cases=some, context=context)
costs = pd.DataFrame(both["rows"]).set_index("name").drop("oracle")
columns = ["auc", "auc_low", "auc_high", "params", "train_seconds", "ms_per_impression", "peak_mb"]
display(costs[columns].astype(float).round(3))

# %%
figure, axes = plt.subplots()
axes.scatter(costs["ms_per_impression"].clip(lower=0.001), costs["auc"])
for name, row in costs.iterrows():
    place = max(row["ms_per_impression"], 0.001), row["auc"]
    axes.annotate(name, place, xytext=(4, 3), textcoords="offset points", fontsize="small")
axes.set(xscale="log", xlabel="milliseconds per impression", ylabel="AUC")
axes.margins(x=0.45)
plt.show()

# %%
gain = {row["name"]: row["paired"] for row in both["rows"]}[llm[1]]
tuned = next(entry["auc"] for entry in gain if entry["against"] == llm[0])
print(f"tuned minus untuned: {reporting.difference_text(tuned)}")
print(reporting.verdict(tuned))
print(reporting.write_leaderboard(out, both))

# %% [markdown]
# The page has all of this as plots. So few impressions decide nothing about the language model; the longer runs are in
# `docs/recipe.md`. What they do show is the price: many thousand times the time of counting categories.

# %%
assert costs.loc[llm, "n_impressions"].eq(len(some)).all()
assert costs.loc[llm[0], "ms_per_impression"] > 1000 * costs.loc["category", "ms_per_impression"]

# %% [markdown]
# ## Exercises
#
# **1 Predict.** With a quarter of the impressions, how much wider is an interval?

# %% tags=["solution"]
# About twice as wide: the error of a mean falls with the root of the number of users.
quarter = tasks.limit(len(splits["test"]), len(splits["test"]) // 4, seed)
few = reporting.leaderboard(runs, cases=quarter)
widths = {}
for name, one in {"all": board, "a quarter": few}.items():
    row = next(row for row in one["rows"] if row["name"] == "category")
    widths[name] = row["auc_high"] - row["auc_low"]
print(widths)
assert 1.5 < widths["a quarter"] / widths["all"] < 2.7

# %% [markdown]
# **2 Change.** Make `popularity-streaming` forget more slowly, or not at all. Is that better?

# %% tags=["solution"]
test, past = splits["test"], PastLog([mind.splits["train"], mind.splits["dev"]])
rng = np.random.default_rng(seed)
aucs = {}
for hours in (1.0, 4.0, 12.0, 48.0, None):
    recommender = StreamingPopularity(half_life_hours=hours).fit(splits["train"], mind.news, None, rng)
    scores = score_without_labels(recommender, test, mind.news, past)
    predictions = from_scores("test", test, mind.news, scores)
    aucs[hours] = evaluate(predictions).summary["auc"]
display(pd.Series(aucs, name="auc").rename_axis("half-life, hours").round(3))
# To choose the best of these by the test day would be cheating: that is what the validation day is for.
assert len(aucs) == 5

# %% [markdown]
# **3 Build.** Write a recommender that beats causal popularity, with an interval to show for it.


# %% tags=["solution"]
class PopularTopics(StreamingPopularity):
    """The click rate so far, times how much of the user's history is of the candidate's category."""

    name = "popular-topics"

    def score(self, test, news, past):
        return super().score(test, news, past) * (0.05 + history_share(test, news.category))


mine = PopularTopics().fit(splits["train"], mind.news, None, rng)
scores = score_without_labels(mine, test, mind.news, past)
evaluation = evaluate(from_scores("test", test, mind.news, scores))
against = board["evaluations"]["popularity-streaming"]
gain = paired_differences(evaluation, against)["auc"]
print(reporting.difference_text(gain), reporting.verdict(gain))
assert gain["low"] > 0

# %% [markdown]
# ## What you made

# %%
made = [*sorted(Path(out).rglob("predictions.parquet")), Path(out) / "report.html"]
sizes = [path.stat().st_size for path in made]
display(pd.DataFrame({"file": [path.as_posix() for path in made], "bytes": sizes}))

# %% [markdown]
# Next: `python scripts/compare.py --data data/sample --out runs/compare` makes the whole table, with NRMS, NAML, LSTUR and
# a tuned Yes/No model. On two cores it takes about half an hour.
