# %% [markdown]
# # 10 A BERT that reads user and candidate together
#
# - **Reads**: `data/sample` (synthetic MIND), MiniLM (from a Python package), and runs in `data/reference_runs`
# - **Writes**: `runs/cross_encoders`: what was trained, kept; `runs/notebook_10`: a run folder for each method
# - **Time on the sample**: seven minutes, most of it training. **Hardware**: two CPU cores
# - **Previous**: [09 Prompting the LLM](09_prompting_the_llm.ipynb). The encoder is that of
#   [07 Embeddings and a ranker](07_embeddings_and_a_ranker.ipynb). **Next**:
#   [11 Preference summaries](11_preference_summaries.ipynb)
#
# You will be able to
# 1. build the input of a cross-encoder, say what each token sees, and which texts are cut;
# 2. fine-tune it with transformers' `Trainer`, break that off, go on, and prove that nothing was lost;
# 3. weigh what it ranks against what it costs, beside an encoder that reads every news once, and combine the two.

# %%
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from mindlab import report as reporting
from mindlab import tasks
from mindlab.data.mind import read_mind
from mindlab.evaluation.metrics import evaluate, evaluate_seeds, paired_differences
from mindlab.evaluation.predictions import case_offsets, from_scores, ranks, read_predictions, seed_files
from mindlab.evaluation.retrieval import rerank
from mindlab.finetune.plan import MIND
from mindlab.llm.embeddings import MiniLMEncoder, news_vectors
from mindlab.recommenders import METHODS, make_recommender, pairs_among
from mindlab.recommenders.base import UNTRAINED, keep_candidates, score_without_labels
from mindlab.recommenders.cross_encoder import CROSS, FOLDER, make
from mindlab.recommenders.cross_encoder.model import NOTHING, CrossEncoder, Settings
from mindlab.runs.compare import compare, own_methods
from mindlab.runs.notebook import LossCurve, setup
from mindlab.runs.run import Request

# %% tags=["parameters"]
data = "data/sample"
seed = 42
n_seeds = 1
n_test = 40
most_pairs = 1200
control_pairs = 2400
demo_pairs = 160
stop_at = 10
kept = "data/reference_runs/compare"
out = "runs/notebook_10"

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 3), "figure.dpi": 80, "figure.constrained_layout.use": True})
mind = read_mind(data)
news, splits = mind.news, tasks.Dev().splits(mind)
rows = tasks.limit(len(splits["test"]), n_test, seed)
test = splits["test"].take(rows)

# %% [markdown]
# ## 1 What does it read?
#
# In notebook 07 a headline became a vector before anybody knew who would read it: user and candidate met in a cosine. That
# is a **bi-encoder**. A **cross-encoder** reads both texts in one pass. BERT was pretrained with such pairs: half of the
# time the second text was the sentence after the first, and the state of `[CLS]` had to tell (*next sentence prediction*). MiniLM's makers
# left that task out, but the form is the same: here the first text is what a user clicked last, the second is the candidate, and
# the question is whether it is clicked.

# %%
untrained = CrossEncoder(settings=Settings(most_pairs=0))
untrained.fit(splits["train"], news, None, np.random.default_rng(seed))
sizes = np.diff(test.history_offsets)[test.history]
one = int(test.offsets[np.argmax(sizes > 2)])
tokens, segments = untrained.tokens(test, one)
for segment in (0, 1):
    print(segment, *[token for token, part in zip(tokens, segments, strict=True) if part == segment])

# %% [markdown]
# Segment and place are vectors that are added to each word's. Everything sees everything: in all layers a word of the candidate
# weighs every word of the history. Two awkward cases: a user who has clicked nothing is a text of their own, and where a pair is
# too long the oldest clicks go, never the candidate.

# %%
nobody = int(np.flatnonzero(np.diff(test.history_offsets) == 0)[0])
stranger = replace(test, history=np.full(len(test), nobody, test.history.dtype))
print(*untrained.tokens(stranger, one)[0])
short = CrossEncoder(settings=Settings(most_pairs=0, most_tokens=40))
short.fit(splits["train"], news, None, np.random.default_rng(seed))
cut = short.tokens(test, one)[0]
print(*cut)

# %%
candidate = [token for token, part in zip(tokens, segments, strict=True) if part == 1]
assert cut[-len(candidate) :] == candidate
assert len(cut) <= min(40, len(tokens))
assert NOTHING in " ".join(untrained.tokens(stranger, one)[0])

# %% [markdown]
# ## 2 Can its training be broken off?
#
# `Trainer` moves all the weights, and a new **head**: one number a pair, trained by binary cross-entropy on clicks and on
# non-clicks of the same impressions. A training of hours will be interrupted one day. Every few steps a checkpoint keeps weights, the
# optimizer's state and the state of the random numbers. Here the stop button is pressed once, and the same call is made again.

# %%
demo = Settings(most_pairs=demo_pairs, checks=1, save_every=4)
folder = Path(out) / "broken"
shutil.rmtree(folder, ignore_errors=True)
curve = LossCurve(stop_at)
broken = CrossEncoder(settings=demo, folder=folder, watch=curve)
with suppress(KeyboardInterrupt):
    broken.fit(splits["train"], news, None, np.random.default_rng(seed))
print("kept:", *sorted(path.name for path in folder.glob("*/checkpoint-*")))

# %%
broken.fit(splits["train"], news, None, np.random.default_rng(seed))
whole = CrossEncoder(settings=demo)
whole.fit(splits["train"], news, None, np.random.default_rng(seed))
print("left in the end:", *sorted(path.name for path in folder.glob("*/*")))

# %% [markdown]
# Did it lose or see anything twice? Then its scores would differ from those of a training that nobody interrupted.

# %%
few = test.take(np.arange(min(5, len(test))))
scores = [score_without_labels(model, few, news) for model in (broken, whole, untrained)]
apart = [np.abs(scores[0] - other).max() for other in scores[1:]]
print(f"broken off minus unbroken: {apart[0]:.1e}; minus untrained: {apart[1]:.1e}")
assert apart[0] < 1e-4 < apart[1]

# %% [markdown]
# ## 3 Does it rank?
#
# How long to train is a choice, so the validation day makes it: a model of the days before is trained and looked at three times, and a new
# one is trained for as long on all days. `cross-encoder-untrained` is the same encoder and the same draw of the head, not
# trained at all. `minilm` is the bi-encoder of notebook 07: the same weights, never trained on a click.

# %%
names = ["popularity", "category", "minilm", CROSS, CROSS + UNTRAINED]
request = Request(data, limit=n_test, seed=seed)
methods = METHODS | own_methods(pairs=most_pairs)
runs = compare(request, names, Path(out), n_seeds=n_seeds, methods=methods)
pairs = pairs_among(names)
context = {"title": "A BERT that reads reader and candidate together", "data": data, "synthetic": True}
board = reporting.leaderboard(runs, pairs=pairs, context=context)
table = pd.DataFrame(board["rows"]).set_index("name")
columns = ["seeds", "auc", "auc_low", "auc_high", "ndcg10", "params", "train_seconds", "ms_per_impression"]
display(table[columns].astype(float).round(3))

# %%
for name, against in [*pairs, (CROSS, "popularity")]:
    gain = next(entry["auc"] for entry in table.loc[name, "paired"] if entry["against"] == against)
    print(f"{name} minus {against}: {reporting.difference_text(gain)}, {reporting.verdict(gain)}")
print(reporting.write_leaderboard(Path(out), board))

# %% [markdown]
# One seed says nothing about the luck of training, and few pairs and few users show little. The repository keeps the predictions
# of three seeds, trained on twice as many pairs, for a hundred impressions of `data/sample`; they are measured here as those
# above were.

# %%
pair = (CROSS, CROSS + UNTRAINED)
more = reporting.leaderboard([Path(kept) / name for name in pair], pairs=[pair])
print(reporting.as_text(more))
assert min(row["seeds"] for row in more["rows"]) > 2

# %% [markdown]
# What it trained is kept, so that fitting again takes no training. This is what the validation day saw:

# %%
models = [make(pairs=most_pairs) for _ in range(n_seeds)]
figure, axes = plt.subplots()
for k, model in enumerate(models):
    model.fit(splits["train"], news, splits["valid"], np.random.default_rng(seed + k))
    found = model.chosen["validation_auc"]
    read = model.settings.check_every * model.settings.batch_size * np.arange(1, len(found) + 1)
    axes.plot(read, found, marker="o", label=f"seed {seed + k}")
axes.axhline(0.5, color="grey", linestyle=":")
axes.set(xlabel="pairs read", ylabel="AUC, validation day")
axes.legend()
plt.show()

# %%
assert table["subset_sha"].nunique() == 1
assert table.loc[CROSS, "params"] == table.loc[CROSS + UNTRAINED, "params"]
assert [model.chosen["steps"] % model.settings.check_every for model in models] == [0] * n_seeds

# %% [markdown]
# ## 4 Is it the code or the clicks?
#
# A method that does not learn may be one that cannot. The test is a **positive control**: the same impressions with labels that have
# no noise. "Clicked" is now what has the category of the user's latest click. The model is not shown categories, it has to
# see from two texts that they are of one kind. Same code, same settings, as many pairs as the kept rows above read. The test
# impressions are those of few candidates: many users for little reading.

# %%
brief = splits["test"].take(np.flatnonzero(np.diff(splits["test"].offsets) <= 16))
easy = {}
for name, some in {"train": splits["train"], "test": brief}.items():
    some = some.take(np.flatnonzero(np.diff(some.history_offsets)[some.history] > 0))
    last = some.history_news[some.history_offsets[some.history + 1] - 1]
    alike = news.category[some.news] == np.repeat(news.category[last], np.diff(some.offsets))
    alike = alike.astype(np.int8)
    share = np.add.reduceat(alike, some.offsets[:-1]) / np.diff(some.offsets)
    easy[name] = replace(some, labels=alike).take(np.flatnonzero((share > 0) & (share < 1)))
print({name: len(some) for name, some in easy.items()}, "impressions")

# %%
log = []
control = CrossEncoder(settings=replace(Settings(), most_pairs=control_pairs), watch=log.append)
control.fit(easy["train"], news, None, np.random.default_rng(seed))
figure, axes = plt.subplots()
shown = pd.DataFrame([row for row in log if "loss" in row]).set_index("current_steps")["loss"]
axes.plot(shown.rolling(5, min_periods=1).mean())
axes.set(xlabel="step", ylabel="loss, easy labels")
plt.show()

# %%
found = []
for model in (control, untrained):
    scores = score_without_labels(model, easy["test"], news)
    frame = from_scores("test", easy["test"], news, scores)
    found.append(evaluate(frame))
gain = paired_differences(*found)["auc"]
print(f"trained on easy labels {found[0].summary['auc']:.3f}, untrained {found[1].summary['auc']:.3f}")
print(reporting.difference_text(gain), reporting.verdict(gain))

# %% [markdown]
# The loss stays flat for a while and then falls: first the state of `[CLS]` must come to mean something. MiniLM was trained on the
# mean of all states and never on that one. Clicks have no such clear rule behind them: what tells the best possible ranking from
# chance is thin, and is spread over more users than this many pairs can show.

# %%
claim = "easy labels were not learned"
assert control_pairs < Settings().most_pairs or gain["low"] > 0, claim  # with fewer pairs nothing is claimed

# %% [markdown]
# ## 5 Does it read the user?
#
# A score of a pair need not depend on both texts. Give every impression the history of another one: what ranks by taste must
# fall to what is left, the candidates alone; what never read the history stays where it was.

# %%
others = replace(test, history=np.random.default_rng(seed).permutation(test.history))
begin = perf_counter()
swapped = score_without_labels(models[0], others, news)
cross_seconds = perf_counter() - begin
lines = {}
for name, model in {CROSS: models[0], "minilm": make_recommender("minilm")}.items():
    model = model if name == CROSS else model.fit(splits["train"], news, None, np.random.default_rng(seed))
    foreign = swapped if name == CROSS else score_without_labels(model, others, news)
    frames = (
        read_predictions(Path(out) / name / "predictions.parquet"),
        from_scores("test", test, news, foreign, case_ids=rows),
    )
    own, other = (evaluate(frame) for frame in frames)
    gain = paired_differences(own, other)["auc"]
    lines[name] = {
        "own": own.summary["auc"],
        "another's": other.summary["auc"],
        "difference": reporting.difference_text(gain),
    }
display(pd.DataFrame(lines).T)

# %% [markdown]
# The difference is what the history is worth to a method. Where its interval holds zero, this many impressions cannot show that the method uses
# the user at all.

# %%
assert not np.array_equal(
    swapped, read_predictions(Path(out) / CROSS / "predictions.parquet")["score"].to_numpy()
)

# %% [markdown]
# ## 6 What does a pair cost?
#
# The bi-encoder reads a headline once, for everybody and for ever. The cross-encoder reads it again for each user, and the user's
# history again for each candidate. Nothing can be kept from one pair for the next.

# %%
encoder = MiniLMEncoder()
tokenizer = encoder.words()[0]
vectors = news_vectors(news, encoder, None)
n_tokens = sum(map(len, tokenizer(news.title.tolist())["input_ids"]))
cost = {
    "minilm, once": (len(news), n_tokens, vectors.seconds),
    f"{CROSS}, {len(test)} impressions": (len(test.news), models[0].tokens_read, cross_seconds),
}
cost = pd.DataFrame(cost, index=["texts or pairs", "tokens", "seconds"]).T
cost["tokens each"] = cost["tokens"] / cost["texts or pairs"]
cost["tokens per second"] = cost["tokens"] / cost["seconds"]
display(cost.round(1))

# %% [markdown]
# Both are the same network on the same cores, so the tokens per second are of one size. What differs is how many must be read, and when:

# %%
n_dev = MIND["MINDsmall"][1]
ms = table["ms_per_impression"].astype(float)
print(f"MINDsmall: {n_dev:,} impressions in its dev set")
for name in ("minilm", CROSS):
    print(f"{name}: {ms[name]:.3f} ms per impression, {ms[name] * n_dev / 3.6e6:.1f} hours for its dev set")
assert ms[CROSS] > 100 * ms["minilm"]

# %% [markdown]
# ## 7 Can the two share the work?
#
# **Retrieve and re-rank**: the bi-encoder ranks everything, the cross-encoder reads only the first `k` and puts them in a new order. The
# cost grows with `k`; the quality, one hopes, too. With `k` of zero it is the bi-encoder, with all it is the cross-encoder.

# %%
first = read_predictions(Path(out) / "minilm" / "predictions.parquet")
offsets, place = case_offsets(first), first.schema.get_field_index("score")
frames = [read_predictions(path) for path in seed_files(Path(out) / CROSS)]
steps = [0, 3, 5, 10, 20, int(np.diff(offsets).max())]
stages = {}
for k in steps:
    scores = [rerank(first["score"].to_numpy(), frame["score"].to_numpy(), offsets, k) for frame in frames]
    tables = [first.set_column(place, first.schema.field(place), [score]) for score in scores]
    stages[k] = evaluate_seeds(tables)

# %%
lines = []
for k, found in stages.items():
    gain = paired_differences(found, stages[0])["auc"]
    share = np.minimum(np.diff(offsets), k).sum() / len(first)
    line = {
        "k": k,
        "auc": found.summary["auc"],
        "ndcg10": found.summary["ndcg10"],
        "minus k = 0": reporting.difference_text(gain),
    }
    lines.append(line | {"pairs read": share, "ms per impression": ms["minilm"] + share * ms[CROSS]})
lines = pd.DataFrame(lines).set_index("k")
display(lines.round(3))

# %%
figure, axes = plt.subplots()
low, high = (np.array([found.summary[f"auc_{end}"] for found in stages.values()]) for end in ("low", "high"))
auc = lines["auc"].to_numpy()
axes.errorbar(lines["ms per impression"], auc, [auc - low, high - auc], marker="o", capsize=3)
for k, x, y in zip(lines.index, lines["ms per impression"], auc, strict=True):
    axes.annotate(f" k = {k}", (x, y))
axes.set(xlabel="ms per impression", ylabel="AUC")
plt.show()

# %% [markdown]
# A `k` that looks best here was found on the test day; to use one, choose it on the validation day. And a second stage can only
# help where it ranks better than the first.

# %%
assert np.isclose(lines["auc"].iloc[0], table.loc["minilm", "auc"])
assert np.isclose(lines["auc"].iloc[-1], table.loc[CROSS, "auc"])
assert lines["pairs read"].is_monotonic_increasing

# %% [markdown]
# ## Exercises
#
# **1 Predict.** Users without a history are one text to this model. If all users were such, how many scores would a
# news have, and would the ranking be better than chance?

# %% tags=["solution"]
alone = score_without_labels(models[0], stranger, news)
spread = pd.Series(alone).groupby(test.news).agg(np.ptp).max()
found = evaluate(from_scores("test", test, news, alone)).summary
print(
    f"one score a news, up to {spread:.0e}; AUC {found['auc']:.3f} [{found['auc_low']:.3f}, {found['auc_high']:.3f}]"
)
# The same text, the same score: what is left is whether some headlines are clicked more by everybody.
assert spread < 1e-3

# %% [markdown]
# **2 Change.** Let the model that was trained on several clicks read the last one alone. How much does that save, and do the
# rankings stay alike?

# %% tags=["solution"]
model = make(pairs=most_pairs)
model.fit(splits["train"], news, splits["valid"], np.random.default_rng(seed))
model.settings = replace(model.settings, history_length=1)
last = score_without_labels(model, test, news)
own = models[0].score(few.without_labels(), news)
print(f"tokens a pair: {model.tokens_read / len(test.news):.0f} instead of {cost['tokens each'].iloc[1]:.0f}")
print("correlation with the scores of the whole history:", np.corrcoef(own, last[: len(own)])[0, 1].round(2))
assert model.tokens_read / len(test.news) < cost["tokens each"].iloc[1]

# %% [markdown]
# **3 Build.** A recommender of two stages that really reads the first `k` and no more. Its scores must rank as `rerank` does with
# all of the second stage's scores.


# %% tags=["solution"]
class TwoStages:
    """The first recommender ranks all candidates, the second reads the k best."""

    name, track = "two-stages", "static"

    def __init__(self, first, second, k):
        self.first, self.second, self.k = first, second, k

    def fit(self, train, news, valid, rng):
        self.first.fit(train, news, valid, rng)
        self.second.fit(train, news, valid, rng)
        return self

    def score(self, test, news, past=None):
        first = self.first.score(test, news, past)
        second = np.zeros(len(first))
        best = np.flatnonzero(ranks(first, test.offsets) <= self.k)
        second[best] = self.second.score(keep_candidates(test, best), news, past)
        return rerank(first, second, test.offsets, self.k)


# %% tags=["solution"]
begin, before = perf_counter(), models[0].tokens_read
stage = TwoStages(make_recommender("minilm").fit(splits["train"], news, None, None), models[0], 5)
fast = score_without_labels(stage, few, news)
read = models[0].tokens_read - before
slow = rerank(stage.first.score(few, news), models[0].score(few.without_labels(), news), few.offsets, 5)
print(f"{read:,} tokens instead of {models[0].tokens_read - before - read:,}")
assert np.array_equal(ranks(fast, few.offsets), ranks(slow, few.offsets))

# %% [markdown]
# ## What you made

# %%
made = [
    *sorted(Path(out).rglob("predictions*.parquet")),
    *sorted(FOLDER.glob(f"{CROSS}-*/model/*.safetensors")),
]
display(
    pd.DataFrame(
        {"file": [path.as_posix() for path in made], "bytes": [path.stat().st_size for path in made]}
    )
)

# %% [markdown]
# With a GPU and MIND the same code takes any encoder of the hub, such as BERT itself: `python scripts/compare.py --data
# data/raw/MINDsmall --only popularity,minilm --llm-limit 10000 --seeds 1 --cross-encoder google-bert/bert-base-uncased --out
# runs/cross` (not yet run). `--cross-pairs` bounds its training.
#
# Sources: Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding* (NAACL 2019); Nogueira and
# Cho, *Passage Re-ranking with BERT* (2019); Wang et al., *MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
# Pre-Trained Transformers* (NeurIPS 2020); Reimers and Gurevych, *Sentence-BERT* (EMNLP 2019), for why one reads every news once.
