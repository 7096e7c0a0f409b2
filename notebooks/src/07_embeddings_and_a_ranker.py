# %% [markdown]
# # 07 Embeddings and a ranker
#
# - **Reads**: `data/sample` (synthetic MIND), MiniLM (from a Python package), `models/smollm2-135m`
# - **Writes**: `runs/embeddings`: the vectors of all news, once; `runs/notebook_07`: a run folder for each method
# - **Time on the sample**: seven minutes. **Hardware**: two CPU cores
# - **Previous**: [06 Compare recommenders](06_compare_recommenders.ipynb). **Next**:
#   [08 LLM tokens and a ranker](08_llm_tokens_and_a_ranker.ipynb)
#
# You will be able to
# 1. turn news into vectors, with a sentence encoder and with a language model, and say why their cosines differ so;
# 2. turn a history into a reader, rank by it, and choose all of that without looking at the test day;
# 3. say what a ranker learned on top of the vectors, what an approximate index loses, and who gains: cold news.

# %%
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from sklearn.manifold import TSNE

from mindlab import report as reporting
from mindlab import tasks
from mindlab.data.mind import read_mind
from mindlab.evaluation import retrieval
from mindlab.evaluation.metrics import evaluate, paired_differences
from mindlab.evaluation.predictions import from_scores
from mindlab.evaluation.slices import masks, measure_slices
from mindlab.llm.embeddings import HiddenStates, MiniLMEncoder, news_vectors
from mindlab.recommenders import make_recommender, pairs_among
from mindlab.recommenders.base import score_without_labels
from mindlab.recommenders.embedding import CACHE, EMBEDDED, EmbeddingCosine, history_vectors, unit
from mindlab.runs.compare import compare
from mindlab.runs.notebook import batches_bar, setup
from mindlab.runs.run import Request

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
seed = 42
n_seeds = 3
out = "runs/notebook_07"

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 3), "figure.dpi": 80, "figure.constrained_layout.use": True})
mind = read_mind(data)
news, splits = mind.news, tasks.Dev().splits(mind)
test = splits["test"]

# %% [markdown]
# ## 1 What is near a headline?
#
# An **encoder** reads each title once and leaves a vector. MiniLM was trained so that sentences of like meaning lie in like
# directions. The vectors are kept on disk: run this cell again and nothing is read.

# %%
found = news_vectors(news, MiniLMEncoder(), CACHE, batches_bar)
minilm = unit(found.values[:, 0])
print(f"{len(minilm):,} news, {minilm.shape[1]} numbers each")
one = int(test.news[np.flatnonzero(test.labels)[0]])
near = retrieval.nearest(retrieval.exact_index(minilm), minilm[[one]], 6)[0]
columns = {"cosine": (minilm[near] @ minilm[one]).round(2), "category": news.category[near]}
display(pd.DataFrame({"title": news.title[near], **columns}))

# %% [markdown]
# The first is the headline itself. The others may not share a word with it.
#
# A causal language model was never trained for this. It has a **hidden state** for every token at every layer, and two
# ways to make one vector of them: the *mean* over the title's tokens, or the state of the *last* token, the only one
# that has read all of the title.

# %%
encoder = HiddenStates(model)
states = news_vectors(news, encoder, CACHE, batches_bar)
some = np.random.default_rng(seed).choice(len(news), size=(2, 2000))
spread = {"MiniLM": (minilm[some[0]] * minilm[some[1]]).sum(1)}
for view in (4, 8, 9):
    vectors = unit(states.values[:, view])
    name = f"layer {encoder.views[view]['layer']}, {encoder.views[view]['pooling']}"
    spread[name] = (vectors[some[0]] * vectors[some[1]]).sum(1)

# %%
figure, axes = plt.subplots()
axes.boxplot(list(spread.values()), tick_labels=list(spread), orientation="horizontal", showfliers=False)
axes.set_xlabel("cosine of two news taken at random")
plt.show()

# %% [markdown]
# Two headlines that have nothing to do with each other are nearly parallel in the language model: all its states
# share one large direction. A cosine then measures what all titles have in common. Taking the mean vector away
# (**centring**) leaves what differs.

# %%
assert np.median(spread["MiniLM"]) < 0.3
assert min(np.median(values) for name, values in spread.items() if name != "MiniLM") > 0.3

# %% [markdown]
# ## 2 Which layer, which pooling, which reader?
#
# And a history has to become one vector: the **mean** of what was clicked, a mean in which **recent** clicks count more, or
# **attention**, where each candidate picks the clicks most like it. These are many choices. Each is one more chance to be
# lucky, so they are made on the validation day, and the test day is looked at once.

# %%
chooser = make_recommender(EMBEDDED)
chooser.fit(splits["train"], news, splits["valid"], np.random.default_rng(seed))
tried = pd.DataFrame(chooser.tried)
tried["reading"] += " " + tried["strength"].map("{:g}".format).where(tried["strength"] > 0, "")
best = tried.groupby(["layer", "pooling", "centred"])["auc"].max().unstack(["pooling", "centred"])
display(best.round(3))
display(tried.groupby("reading")["auc"].agg(["max", "median"]).round(3))
print("chosen:", chooser.chosen)

# %%
print(
    f"the best of {len(tried)} choices has {tried['auc'].max():.3f} AUC, the worst {tried['auc'].min():.3f}"
)
assert tried["auc"].max() - tried["auc"].min() > 0.02, "the choice would not matter"
assert best[("mean", True)].max() > best[("mean", False)].max() - 0.01, "centring harms"

# %% [markdown]
# ## 3 Do the vectors rank?
#
# `minilm` is the plain mean and cosine. `minilm-readers` and `smollm2-hidden-states` made their choices on the validation
# day. The three `embeddings-...` rows learn from MiniLM's vectors: a logistic regression that weighs every dimension,
# LightGBM over the cosines, and NRMS's attention over the clicked vectors. Beside them stand what they start from, popularity,
# and counting the categories.

# %%
plain = ["popularity", "category", "minilm", "minilm-readers", EMBEDDED]
learned = ["embeddings-logistic", "embeddings-lightgbm", "embeddings-nrms", "embeddings-nrms-untrained"]
runs = compare(Request(data, seed=seed), [*plain, *learned], Path(out), n_seeds=n_seeds)
pairs = pairs_among([*plain, *learned])
context = {"title": "Embeddings and a ranker", "data": data, "synthetic": True}
board = reporting.leaderboard(runs, pairs=pairs, context=context)
table = pd.DataFrame(board["rows"]).set_index("name")
columns = ["seeds", "auc", "auc_low", "auc_high", "ndcg10", "params", "train_seconds", "ms_per_impression"]
display(table[columns].astype(float).round(3))

# %%
for name, against in pairs:
    gain = next(entry["auc"] for entry in table.loc[name, "paired"] if entry["against"] == against)
    print(f"{name} minus {against}: {reporting.difference_text(gain)}, {reporting.verdict(gain)}")
print(reporting.write_leaderboard(Path(out), board))

# %% [markdown]
# Read the intervals, not the ranks. A learned row that does not clear what it starts from has learned nothing that this many
# impressions can show. Training seconds hold the reading of all titles: a minute for the language model, and nothing more for the
# next million impressions, since a news is read once.

# %%
assert table["subset_sha"].nunique() == 1
against = {entry["against"]: entry["auc"] for entry in table.loc["minilm", "paired"]}
assert against["popularity"]["low"] > 0

# %% [markdown]
# ## 4 Can the catalogue be searched?
#
# So far a list was ranked that somebody else had chosen. **Retrieval** finds the list: of all news the nearest to a reader.
# Comparing with every vector is exact. An **approximate** index walks a graph of neighbours and may miss some; the share of
# the exact answer that it finds is its recall, and `effort` is how long it walks.

# %%
readers = history_vectors(test, minilm)
exact, graph = retrieval.exact_index(minilm), retrieval.graph_index(minilm)
wanted = retrieval.nearest(exact, readers, 100)
lines = []
for effort in (None, 10, 30, 100, 300):
    begin = perf_counter()
    answer = retrieval.nearest(exact if effort is None else graph, readers, 100, effort)
    taken = 1e6 * (perf_counter() - begin) / len(readers)
    lines.append(
        {"effort": effort or "exact", "recall": retrieval.recall(answer, wanted), "us per reader": taken}
    )
display(pd.DataFrame(lines).set_index("effort").round(3))

# %% [markdown]
# With a few thousand news the exact search is no slower than the walk; with millions it would be. And how often is a clicked news among the
# hundred nearest of the whole catalogue? Most were shown to the reader for other reasons than likeness.

# %%
hits = retrieval.found_clicks(wanted, test)
by_chance = wanted.shape[1] / len(news)
print(f"clicked news among the hundred nearest: {hits.mean():.3f}, by chance {by_chance:.3f}")
assert lines[-1]["recall"] > 0.95

# %% [markdown]
# ## 5 What does the space look like?
#
# Three hundred and eighty-four directions, squeezed into two. Near points were near; far ones say little.

# %%
shown = np.unique(test.news)
flat = TSNE(random_state=seed, init="pca").fit_transform(minilm[shown])
place = dict(zip(shown.tolist(), flat, strict=True))
figure, axes = plt.subplots(figsize=(7, 5))
for category in pd.Series(news.category[shown]).value_counts().index[:6]:
    here = news.category[shown] == category
    axes.scatter(*flat[here].T, s=4, alpha=0.5, label=category)
row = int(np.argmax(np.diff(test.offsets)))
click = test.candidates(row)[test.candidate_labels(row) == 1]
axes.scatter(
    *np.array([place[k] for k in test.candidates(row)]).T, s=30, marker="x", color="grey", label="candidates"
)
axes.scatter(*np.array([place[k] for k in click]).T, s=90, marker="*", color="black", label="clicked")
axes.legend(fontsize="small", markerscale=1.5)
plt.show()

# %% [markdown]
# A picture of two dimensions can mislead. In all of them: how often is a news' nearest neighbour of its own category?

# %%
neighbour = retrieval.nearest(exact, minilm[shown], 2)[:, 1]
same = (news.category[neighbour] == news.category[shown]).mean()
by_chance = (pd.Series(news.category).value_counts(normalize=True) ** 2).sum()
print(f"nearest neighbour of the same category: {same:.2f}, by chance {by_chance:.2f}")
assert same > 2 * by_chance

# %% [markdown]
# ## 6 Who gains: cold news
#
# A news that nobody has clicked yet has no clicks to count, but it has a title. That is the case for embeddings, and on a news
# site most of what is clicked is new.

# %%
parts = masks(test, splits["train"], news)
slices = pd.DataFrame(measure_slices(board["evaluations"], parts))
chosen = ["popularity", "category", "minilm", EMBEDDED, "embeddings-nrms"]
for name in chosen:
    slices[name] = [row[name]["mean"] if name in row else None for row in slices["methods"]]
cold = slices[slices["question"] == "clicked news"].set_index("slice")
display(cold[["n", *chosen]].round(3))

# %%
assert cold.loc["none shown", "minilm"] > cold.loc["none shown", "popularity"]

# %% [markdown]
# ## Exercises
#
# **1 Predict.** Give both encoders the same headline in capitals. Which vector moves more?

# %% tags=["solution"]
titles = news.title[test.news[:50]].tolist()
loud = [title.upper() for title in titles]
moved = {}
for name, one in {"MiniLM": MiniLMEncoder(), "language model": HiddenStates(model, layers=[15])}.items():
    before, after = (unit(one.encode(texts)[:, 0]) for texts in (titles, loud))
    moved[name] = (before * after).sum(1).mean()
print(moved)
# MiniLM puts all letters into lower case before it reads: its vectors do not move at all.
assert moved["MiniLM"] > 0.999 > moved["language model"]

# %% [markdown]
# **2 Change.** Ask the model for one word about each headline, and take the state after the question (PromptEOL). Is that
# better than the bare title, on the validation day?

# %% tags=["solution"]
asking = HiddenStates(model, prompt='This news headline: "{}" means in one word:"')
asked = EmbeddingCosine(asking, readings=chooser.readings, centred=chooser.centred)
asked.fit(splits["train"], news, splits["valid"], np.random.default_rng(seed))
framed = pd.DataFrame(asked.tried).groupby("pooling")["auc"].max()
bare = tried.groupby("pooling")["auc"].max()
display(pd.DataFrame({"bare title": bare, "asked for a word": framed}).round(3))
# The validation day may choose; whether the winner is better is for an interval on another day to say.
assert len(asked.tried) == len(chooser.tried)

# %% [markdown]
# **3 Build.** Add the two cosines, MiniLM's and the language model's. Does the sum rank better than the better of the two?

# %% tags=["solution"]
both = []
for name in ("minilm", EMBEDDED):
    one = make_recommender(name).fit(splits["train"], news, splits["valid"], np.random.default_rng(seed))
    scores = score_without_labels(one, test, news)
    both.append(scores / scores.std())
summed = evaluate(from_scores("test", test, news, sum(both)))
gain = paired_differences(summed, board["evaluations"]["minilm"])["auc"]
print(reporting.difference_text(gain), reporting.verdict(gain))
assert 0.5 < summed.summary["auc"] < 1

# %% [markdown]
# ## What you made

# %%
made = [*sorted(Path(out).rglob("predictions*.parquet")), *sorted(CACHE.glob("*.npy"))]
sizes = [path.stat().st_size for path in made]
display(
    pd.DataFrame(
        {
            "file": [path.name if "embeddings" in path.parts else path.as_posix() for path in made],
            "bytes": sizes,
        }
    )
)

# %% [markdown]
# With a GPU and MIND the same code takes GLM-4: `python scripts/compare.py --data data/raw/MINDsmall --only
# popularity,minilm,minilm-readers --encoder zai-org/glm-4-9b-chat-hf --out runs/encoders` (not yet run).
