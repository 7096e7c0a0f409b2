# %% [markdown]
# # 01 Explore MIND
#
# - **Reads**: `data/sample` (synthetic MIND; or your copy of MIND)
# - **Writes**: nothing
# - **Time on the sample**: seconds. **Hardware**: any CPU
# - **Previous**: [00 Start here](00_start_here.ipynb). **Next**: [02 Build the
#   dataset](02_build_the_dataset.ipynb)
#
# You will be able to
# 1. say what is in each file and column of MIND, and which of them this course uses;
# 2. name the properties of MIND that break a naive recommender, each with a picture;
# 3. say in what the sample is like MIND, and in what it is not.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from mindlab.data.mind import BEHAVIORS_COLUMNS, NEWS_COLUMNS, VALIDATION_DAY, read_mind
from mindlab.data.statistics import MINDSMALL, describe
from mindlab.runs.notebook import setup

# %% tags=["parameters"]
data = "data/sample"
seed = 42

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 2.6), "figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## 1 Which files are there?
#
# Microsoft logged visits to its news page for six weeks in autumn, took out who the users were, and
# published this as MIND: **MINDsmall** with fifty thousand users in training, **MINDlarge** with all.
# Both come as a folder for `train` and one for `dev`; large also has `test`, without the answers. In each
# folder there are four files:
#
# - `news.tsv`, the articles; `behaviors.tsv`, who saw and clicked what;
# - `entity_embedding.vec` and `relation_embedding.vec`: a vector for each entity of Wikidata that occurs,
#   learnt from its links to others (TransE).
#
# This course does not use the two embedding files. They were made for models that cannot read; a language
# model knows the words themselves, some entities have no vector, and vectors of two splits do not go
# together. The sample has none. MIND may not be passed on, so what you see here is **synthetic**: same
# form, our own words.
#
# One news, as it is in the file:

# %%
options = {"sep": "\t", "header": None, "quoting": 3, "keep_default_na": False}
raw_news = pd.read_csv(Path(data) / "train/news.tsv", names=NEWS_COLUMNS, **options)
with_entity = raw_news[raw_news.title_entities != "[]"].iloc[0]
display(with_entity.to_frame("a news"))

# %% [markdown]
# The columns of entities hold JSON: what is named (`Label`), of which kind (`Type`: a place, a person, an
# organisation), its number in Wikidata, how sure the linker was, and where in the text it stands.

# %%
entities = json.loads(with_entity.title_entities)
display(pd.DataFrame(entities))
place, surface = entities[0]["OccurrenceOffsets"][0], entities[0]["SurfaceForms"][0]
print(repr(with_entity.title[place : place + len(surface)]))

# %% [markdown]
# One impression, as it is in the file. The history comes before the candidates, and each candidate carries
# its answer: `-1` clicked, `-0` not.

# %%
raw_behaviors = pd.read_csv(Path(data) / "train/behaviors.tsv", names=BEHAVIORS_COLUMNS, **options)
display(raw_behaviors.iloc[0].to_frame("an impression"))

# %% [markdown]
# There is no text of the article, no time when it was published, and nothing about the user but clicks.
# What a method may know of a user is the history, and titles. `read_mind` reads it all into columns, with
# every news as a number.

# %%
mind = read_mind(data)
train, dev, news = mind.splits["train"], mind.splits["dev"], mind.news
assert with_entity.title[place : place + len(surface)] == surface, "the entity is not where it says"
assert len(train) == len(raw_behaviors)

# %% [markdown]
# ## 2 Who reads?
#
# How much is known of a user? Some have clicked hundreds of times, most a few, some never.

# %%
lengths = np.diff(train.history_offsets)[train.history]
plt.hist(np.minimum(lengths, 100), bins=50)
plt.gca().set(xlabel="clicks in the history (100: or more)", ylabel="impressions")
plt.show()
print(f"median {np.median(lengths):.0f}, longest {lengths.max()}, empty {(lengths == 0).mean():.1%}")

# %% [markdown]
# A trap: the history is **frozen**. It holds the clicks of the four weeks before, the same in every line of a
# user, and what they click on Monday is not in their history on Tuesday.

# %%
readers = pd.DataFrame({"user": train.users, "history": train.history})
print("visits of a reader, on average:", round(len(readers) / readers["user"].nunique(), 1))
histories = readers.groupby("user")["history"].nunique()
print("readers with more than one history:", (histories > 1).sum())

# %% [markdown]
# And a second one: users of `train` are mostly not those of `dev`. What is learnt about a user by name
# is of no use on the last day; it has to be read from the history.

# %%
both = np.intersect1d(train.users.astype(str), dev.users.astype(str))
print(len(both), "of", len(set(dev.users)), "readers of dev were in train")
assert (histories == 1).all()
assert len(both) < len(set(dev.users)) / 2

# %% [markdown]
# ## 3 What is clicked?
#
# A list has two candidates or two hundred, and almost always one or two clicks.

# %%
sizes = np.diff(train.offsets)
clicks = np.add.reduceat(train.labels.astype(int), train.offsets[:-1])
figure, axes = plt.subplots(1, 2)
axes[0].hist(np.minimum(sizes, 150), bins=50)
axes[0].set(xlabel="candidates (150: or more)", ylabel="impressions")
axes[1].bar(*np.unique(np.minimum(clicks, 6), return_counts=True))
axes[1].set(xlabel="clicks (6: or more)")
plt.show()
print(f"{train.labels.mean():.1%} of all candidates are clicked; always saying No is right for the rest")

# %% [markdown]
# So accuracy says nothing here: a program that always answers No is hard to beat, and useless. And the
# smallest number of clicks is not zero: a visit without a click was not kept. Notebook 02 shows what that
# does to the tutorial.
#
# Does it help to know the topic? These are the shares of clicks by category, against the shares of what was
# shown:

# %%
shown = pd.Series(news.category[train.news]).value_counts(normalize=True)
clicked = pd.Series(news.category[train.news[train.labels == 1]]).value_counts(normalize=True)
shares = pd.DataFrame({"of what was shown": shown, "of the clicks": clicked}).sort_values("of what was shown")
shares.tail(10)[::-1].plot.bar(width=0.8, rot=40, xlabel="", ylabel="share")
plt.show()

# %% [markdown]
# For all users together hardly. For one user it does: how often is a click in the category that this
# user's history has most of, and how often is that so for a candidate that was not clicked?

# %%
favourite = np.array(
    [
        pd.Series(news.category[train.user_history(i)]).mode().get(0, "") if lengths[i] else ""
        for i in range(len(train))
    ]
)
is_favourite = news.category[train.news] == np.repeat(favourite, sizes)
known = np.repeat(lengths > 0, sizes)
hit = {
    name: is_favourite[known & (train.labels == label)].mean() for name, label in (("clicked", 1), ("not", 0))
}
print({name: f"{share:.1%}" for name, share in hit.items()})

# %%
assert clicks.min() >= 1
assert hit["clicked"] > hit["not"], "readers do not follow their own topics"

# %% [markdown]
# ## 4 When?
#
# Training days, and then one day of `dev`. This course fits on all training days but the last, chooses on
# the last, and reports on `dev`, once.

# %%
days = pd.Series(np.concatenate([train.times, dev.times])).dt.date
split = pd.Series(np.where(np.arange(len(days)) < len(train), "train", "dev"), name="split")
pd.crosstab(days, split).plot.bar(stacked=True, rot=0, xlabel="", ylabel="impressions")
plt.show()

# %% [markdown]
# News die fast. How many of the candidates of `dev` had been shown at all in the days a method is fitted on?

# %%
is_fit = train.times.astype("datetime64[D]") < VALIDATION_DAY
seen = np.zeros(len(news), bool)
seen[train.news[np.repeat(is_fit, sizes)]] = True
unseen = 1 - seen[dev.news].mean()
print(f"{unseen:.0%} of the candidates of dev were never shown before {VALIDATION_DAY}")

# %% [markdown]
# So a method that learns a number for each news (its popularity, an embedding by its id) knows nothing about
# most of what it must rank. One that reads the title does. That is the case for language models here, and
# the case for measuring them against popularity *of the same day*, which needs no reading at all.
#
# And a few news get most of the clicks:

# %%
per_news = np.sort(np.bincount(train.news[train.labels == 1], minlength=len(news)))[::-1]
curve = np.cumsum(per_news) / per_news.sum()
plt.plot(np.arange(1, len(curve) + 1) / len(curve), curve)
plt.gca().set(xlabel="share of news, most clicked first", ylabel="share of clicks")
plt.show()
tenth = curve[len(curve) // 10]
print(f"a tenth of the news has {tenth:.0%} of the clicks")

# %%
assert train.times.max() < dev.times.min(), "dev must come after train"
assert unseen > 0.5
assert tenth > 0.3

# %% [markdown]
# ## 5 Is the sample like MIND?
#
# What public reports say of MINDsmall, beside the same statistics here. The letters say where a value comes
# from; [data/README.md](../data/README.md) explains them.

# %%
found = describe(mind)
compared = pd.DataFrame(MINDSMALL, index=["MINDsmall", "from"]).T
compared["here"] = pd.Series(found).round(2)
display(compared.dropna())

# %% [markdown]
# It is smaller, and it is like MIND in what trips up a method: rare clicks, frozen histories, new users,
# unseen news. It is **not** MIND in what people want: interests come from a generator that can be read
# ([data/README.md](../data/README.md)). A table made on it ranks methods on this generator.

# %%
assert compared["here"].notna().sum() > 20
assert abs(found["train: clicked candidates"] - 4.05) < 1, "clicks are not as rare as in MIND"

# %% [markdown]
# ## Exercises
#
# **1 Predict.** The order of candidates in a line was shuffled by Microsoft. If you rank by position in the line,
# what AUC do you get? Compute the share of clicks in the first and in the second half of the lists.

# %% tags=["solution"]
# One half: position says nothing. In a log that was not shuffled it would say most.
position = np.concatenate([np.arange(size) / size for size in sizes])
first = (position[train.labels == 1] < 0.5).mean()
print(f"{first:.1%} of the clicks are in the first half")
assert abs(first - (position < 0.5).mean()) < 0.05

# %% [markdown]
# **2 Change.** How many candidates are already in the user's history, and are they clicked more often or
# less than others?

# %% tags=["solution"]
repeated = np.concatenate([np.isin(train.candidates(i), train.user_history(i)) for i in range(len(train))])
rates = {"in the history": train.labels[repeated].mean(), "not": train.labels[~repeated].mean()}
print(repeated.sum(), "of", len(repeated), {name: f"{rate:.1%}" for name, rate in rates.items()})
assert 0 < repeated.mean() < 0.05

# %% [markdown]
# **3 Build.** Age is not in MIND, but can be estimated: the time since a news was first shown. Compute it
# for every candidate of `train` from what was shown **before or at** that time, and assert that no age is
# negative.

# %% tags=["solution"]
when = np.repeat(train.times, sizes)
first_shown = pd.Series(when).groupby(train.news).transform("min").to_numpy()
age = (when - first_shown) / np.timedelta64(1, "h")
print("median age in hours of what is clicked:", round(np.median(age[train.labels == 1]), 1))
print("and of what is not:", round(np.median(age[train.labels == 0]), 1))
assert (age >= 0).all()

# %% [markdown]
# ## What you made
#
# Nothing on disk. You have seen what a method is up against. Next: [02 Build the
# dataset](02_build_the_dataset.ipynb).
