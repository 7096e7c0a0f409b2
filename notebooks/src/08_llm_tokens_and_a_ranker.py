# %% [markdown]
# # 08 LLM tokens and a ranker
#
# - **Reads**: `models/smollm2-135m`
# - **Writes**: `runs/newspaper`: a synthetic MIND of eight hundred news, by the generator of `data/sample`; `runs/written`: what the
#   model wrote, once; `runs/notebook_08`: a run folder for each method
# - **Time**: five minutes the first time with AVX-512, eleven without, then a minute. **Hardware**: two CPU cores
# - **Previous**: [07 Embeddings and a ranker](07_embeddings_and_a_ranker.ipynb). **Next**:
#   [09 Prompting the LLM](09_prompting_the_llm.ipynb)
#
# You will be able to
# 1. have a language model write structured data, hold it to a schema, and count what goes wrong;
# 2. say whether what it wrote knows more than the headline it was written from;
# 3. put a price on augmented data, and an interval on what it is worth.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from mindlab import report as reporting
from mindlab import tasks
from mindlab.data.mind import read_mind
from mindlab.evaluation.metrics import ranking_metrics
from mindlab.llm.augmentation import Augmenter
from mindlab.llm.writing import HFWriter, count_faults, read_json, write_texts
from mindlab.prompts import NewsTokens
from mindlab.recommenders import pairs_among
from mindlab.recommenders.augmented import behind_titles
from mindlab.recommenders.tfidf import text_cosines, word_weights
from mindlab.runs.compare import compare
from mindlab.runs.notebook import batches_bar, setup
from mindlab.runs.run import Request

# %% tags=["parameters"]
data = "runs/newspaper"
model = "models/smollm2-135m"
template = "smollm2"
seed = 42
n_seeds = 3
limit = 60
n_free = 48
out = "runs/notebook_08"

# %%
setup(data, seed, generate={"n_news": 800, "n_train": 600, "n_dev": 400, "seed": 1})
mind = read_mind(data)
news, splits = mind.news, tasks.Dev().splits(mind)
test = splits["test"].take(tasks.limit(len(splits["test"]), limit, seed))
augmenter = Augmenter(model, template)

# %% [markdown]
# ## 1 Can a small model fill in a form?
#
# A classic ranker counts words, and a headline has ten. **Augmentation** lets a language model add some: for each news keywords,
# two topics, and who would read it. A program has to read the answer, so it must be JSON of one shape, its **schema**. First without
# any help but the examples in the prompt. Keywords come first in them: what a small model has just written about this very headline
# keeps it from copying an example's topics.

# %%
form = NewsTokens()
some = np.random.default_rng(seed).choice(len(news), size=n_free, replace=False)
records = [form.record(title) for title in news.title[some]]
print(records[0]["instruction"])
free = write_texts(records, HFWriter(model, template, max_new_tokens=80), "free", progress=batches_bar)
print(free.texts[0])

# %%
answers = [read_json(text, form.schema) for text in free.texts]
faults = {"free": count_faults(answers)}
bad = [text for text, answer in zip(free.texts, answers, strict=True) if answer.value is None]
print(*bad[:3], sep="\n---\n")

# %% [markdown]
# Now the same model may choose, at every step, only among tokens that can still lead to a valid document. The schema does not
# make it wiser; it makes every answer one that a program can read.

# %%
held = write_texts(
    records, HFWriter(model, template, form.schema, max_new_tokens=96), "held", progress=batches_bar
)
answers = [read_json(text, form.schema) for text in held.texts]
faults["held to the schema"] = count_faults(answers)
display(pd.DataFrame(faults).T.fillna(0).astype(int))
assert faults["held to the schema"]["usable"] >= faults["free"]["usable"]
assert faults["held to the schema"]["usable"] > 0.9 * n_free

# %% [markdown]
# ## 2 Does it know what a headline is about?
#
# All headlines of the catalogue, once; whoever runs this cell again reads the file. A kill in the middle costs one batch. The
# catalogue is a small one, made for this chapter: `data/sample` has four times as many, and its rows are in docs/leaderboard.md.

# %%
tokens = augmenter.news(news, batches_bar)
shown = pd.DataFrame({"title": news.title[some], "written": [tokens.words[k] for k in some]})
with pd.option_context("display.max_colwidth", 90):
    display(shown.head(8))
print(json.dumps(tokens.cost, indent=1))

# %% [markdown]
# The generator knows each news' category and did not tell the model. If the words say more than the headline, a simple
# classifier should find the category in them more often. It is trained on nine tenths of the news and asked about the rest,
# ten times.

# %%
texts = {"title": list(news.title), "written": tokens.words, "both": behind_titles(news, tokens)}
right = {}
for name, values in texts.items():
    classifier = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    right[name] = cross_val_predict(classifier, values, news.category, cv=10) == news.category
chance = pd.Series(news.category).value_counts(normalize=True).max()
display(pd.Series({name: hit.mean() for name, hit in right.items()} | {"largest category": chance}).round(3))

# %%
difference = right["both"].astype(float) - right["title"]
error = difference.std() / np.sqrt(len(difference))
print(f"both minus title: {difference.mean():+.3f}, two standard errors {2 * error:.3f}")
assert right["written"].mean() > chance, "what it wrote has nothing to do with the news"

# %% [markdown]
# What it wrote comes from the headline, so it can add only what the model knew before: that a *goalkeeper* is football. Where the
# headlines are many and their words repeat, a classifier learns that from the headlines.

# %% [markdown]
# ## 3 What does it make of a user?
#
# The user's latest clicks, in; three interests and a few words, out, with no example this time. Unlike the words about news, this has to be written for every
# user, and again when they have clicked.

# %%
rows = np.unique(test.history)
histories = [test.history_news[slice(*test.history_offsets[h : h + 2])].tolist() for h in rows]
profiles = augmenter.users(histories, news, batches_bar)
for k in np.argsort([len(history) for history in histories])[[0, len(histories) // 2]]:
    print("\n".join(f"- {title}" for title in news.title[histories[k][-5:]]) or "(no clicks)")
    print("->", profiles.words[k] or "(not asked)", "\n")
print(json.dumps(profiles.cost, indent=1))

# %% [markdown]
# Does a profile name what its user clicked, or what any user would? The share of its words that occur in the titles it was
# written from, against the titles of the user after.

# %%
read = [row for row, words in enumerate(profiles.words) if words]
said = [set(profiles.words[row].lower().split()) for row in read]
clicked = [set(" ".join(news.title[histories[row]]).lower().split()) for row in read]
own = [len(a & b) / len(a) for a, b in zip(said, clicked, strict=True)]
other = [len(a & b) / len(a) for a, b in zip(said, clicked[1:] + clicked[:1], strict=True)]
print(f"of its words, in its own reader's titles: {np.mean(own):.3f}; in another's: {np.mean(other):.3f}")
assert np.mean(own) > np.mean(other)

# %% [markdown]
# ## 4 What does it add to a ranker?
#
# `tokens-tfidf` is `tfidf` over the titles and the words behind them; nothing is trained. `titles-lightgbm` learns from how near a
# candidate's title is to the history, in words and in MiniLM's vectors; `tokens-lightgbm` from the same and from the model's
# words and profiles. Each stands beside the same method without the language model.

# %%
everywhere = ["popularity", "category", "minilm", "tfidf", "tokens-tfidf", "titles-lightgbm"]
request = Request(data, seed=seed)
runs = compare(request, everywhere, Path(out), n_seeds=n_seeds)
pairs = pairs_among(everywhere)
context = {"title": "LLM tokens and a ranker", "data": data, "synthetic": True}
whole = reporting.leaderboard(runs, pairs=pairs, context=context)
print(reporting.as_text(whole))

# %% [markdown]
# A profile for every user is dear, so the last row is measured on fewer impressions, and the others again on just these.

# %%
few = Request(data, limit=limit, seed=seed)
runs += compare(few, ["tokens-lightgbm"], Path(out), n_seeds=n_seeds)
cases = tasks.limit(len(splits["test"]), limit, seed)
pairs.append(("tokens-lightgbm", "titles-lightgbm"))
board = reporting.leaderboard(runs, pairs=pairs, cases=cases, context=context)
print(reporting.as_text(board))
print(reporting.write_leaderboard(Path(out), board))

# %%
for name, found in (("all impressions", whole), ("the smaller choice", board)):
    rows = {row["name"]: row for row in found["rows"]}
    for entry in rows["tokens-tfidf"]["paired"]:
        if entry["against"] == "tfidf":
            print(f"tokens-tfidf minus tfidf, {name}: {reporting.verdict(entry['auc'])}")
assert {row["subset_sha"] for row in board["rows"]} != {row["subset_sha"] for row in whole["rows"]}
assert all(row["auc_low"] < row["auc"] < row["auc_high"] for row in board["rows"])

# %% [markdown]
# Read the pairs: an interval that includes zero means that this augmentation was not worth its price here, whatever a larger model's might be.

# %% [markdown]
# ## 5 What does it cost?
#
# The words about a news are written once and serve every user; a profile serves one. That decides which of the two a newspaper can
# afford.

# %%
costs = pd.DataFrame({"news": tokens.cost, "readers": profiles.cost}).T
costs["seconds per thousand"] = 1000 * costs["seconds"] / costs["answers"]
costs["tokens per answer"] = (costs["tokens_read"] + costs["tokens_written"]) / costs["answers"]
costs["tokens per second"] = (costs["tokens_read"] + costs["tokens_written"]) / costs["seconds"]
display(costs.fillna(0).round(1))
assert (costs["seconds per thousand"] > 0).all()

# %% [markdown]
# ## Exercises
#
# **1 Predict.** You take the examples out of the prompt and keep the schema. How many answers are valid, and what happens
# to the words?

# %% tags=["solution"]
bare = [{**r, "instruction": r["instruction"].split(" Answer with")[0]} for r in records]
writer = HFWriter(model, template, form.schema, max_new_tokens=96)
unshown = write_texts(bare, writer, "bare", progress=batches_bar)
read = [read_json(text, form.schema) for text in unshown.texts]
print(count_faults(read))
print(*unshown.texts[:3], sep="\n")
# The schema keeps the form. What goes into it came from the examples.
assert count_faults(read)["usable"] >= 0.5 * n_free

# %% [markdown]
# **2 Change.** Let the ranker count the written words alone, without the titles. Better or worse than the titles alone?

# %% tags=["solution"]
full = splits["test"]
for name, values in texts.items():
    scores = text_cosines(full.without_labels(), values, word_weights(values))
    print(f"{name}: {np.nanmean(ranking_metrics(scores, full.labels, full.offsets)['auc']):.3f}")
assert len(texts["written"]) == len(news)

# %% [markdown]
# **3 Build.** Write a schema with one more field, the mood of a headline, one of three words. Ask for it, and assert that every answer has it.

# %% tags=["solution"]
moods = ["calm", "worrying", "funny"]
schema = {
    "type": "object",
    "properties": {"mood": {"enum": moods}},
    "required": ["mood"],
    "additionalProperties": False,
}
asked = [{**r, "instruction": "Is this headline calm, worrying or funny? Answer with JSON."} for r in records]
found = write_texts(asked, HFWriter(model, template, schema, 16), "mood", progress=batches_bar)
read = [read_json(text, schema) for text in found.texts]
print(pd.Series([answer.value["mood"] for answer in read]).value_counts())
assert all(answer.value["mood"] in moods for answer in read)

# %% [markdown]
# ## What you made

# %%
made = [*sorted(Path(out).rglob("predictions*.parquet")), tokens.path, profiles.path]
sizes = [path.stat().st_size for path in made]
display(pd.DataFrame({"file": [path.as_posix() for path in made], "bytes": sizes}))

# %% [markdown]
# With a GPU, MIND and a larger writer the same code runs with `data="data/raw/MINDsmall"`,
# `model="zai-org/glm-4-9b-chat-hf"`, `template="glm4"` (not yet run). The idea, with larger models: Liu et al.,
# [ONCE](https://arxiv.org/abs/2305.06566); the schema while writing: Willard and Louf,
# [Efficient Guided Generation](https://arxiv.org/abs/2307.09702).
