# %% [markdown]
# # 02 Build the dataset
#
# - **Reads**: `data/sample` (synthetic MIND) and the tokenizer in `models/smollm2-135m`
# - **Writes**: `data/processed/*.json`, their entries in `data/dataset_info.json`, two manifests
# - **Time on the sample**: about a minute. **Hardware**: any CPU
# - **Previous**: [01 Explore MIND](01_explore_mind.ipynb). **Next**: [03 Fine-tune with
#   LLaMA-Factory](03_finetune_with_llamafactory.ipynb)
#
# You will be able to
# 1. read an impression of MIND and say what can go wrong in reading it;
# 2. turn it into a training sample in three prompt formats, each short enough for the model;
# 3. show, with your own eyes, why the tutorial's prompt gives its answer away.

# %%
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from llamafactory.data.processor.processor_utils import infer_seqlen

from mindlab import tasks
from mindlab.common.files import sha256
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import NEWS_COLUMNS, read_mind
from mindlab.finetune import alpaca, factory
from mindlab.prompts import PROMPTS, LikesDislikes, likes_dislikes_parts, neutral_titles, records
from mindlab.prompts.chat import ChatTemplate, record_prompt
from mindlab.prompts.next_click import next_click_parts
from mindlab.prompts.pointwise import pointwise_parts
from mindlab.runs.notebook import setup

# %% tags=["parameters"]
data = "data/sample"
out = "data"
model = "models/smollm2-135m"
template = "smollm2"
seed = 42

# %%
setup(data, seed)

# %% [markdown]
# ## 1 What is one impression?
#
# An **impression** is one visit: a user with a **history** of earlier clicks sees a list of
# **candidates** and **clicks** at least one. `read_mind` is the only user of MIND files in this
# project.

# %%
mind = read_mind(data)
train, news = mind.splits["train"], mind.news
display(pd.DataFrame(mind.report["splits"]))

# %% [markdown]
# One sample: the first impression with a short list and a history. In the file, clicks have label 1.

# %%
sizes = np.diff(train.offsets)
history_sizes = np.diff(train.history_offsets)[train.history]
row = int(np.flatnonzero((sizes >= 5) & (sizes <= 8) & (history_sizes >= 4))[0])
print("reader", train.users[row], "at", train.times[row])
print("history, oldest first:", *news.title[train.user_history(row)[-4:]], sep="\n  ")
candidates, labels = train.candidates(row), train.candidate_labels(row)
display(
    pd.DataFrame({"label": labels, "category": news.category[candidates], "title": news.title[candidates]})
)

# %% [markdown]
# MIND keeps only impressions with a click. Remember this; section 4 needs it.

# %%
clicks = np.add.reduceat(train.labels, train.offsets[:-1])
assert clicks.min() >= 1, "an impression without a click"

# %% [markdown]
# ## 2 What goes wrong in reading it?
#
# Three awkward things are in MIND, and so in the sample: quote marks that quote nothing, zero-width
# spaces (U+200B), and users without a history. First the quotes. The tutorial reads the file with
# pandas' default settings, which take `"` as the start of a quoted cell.

# %%
news_file = Path(data) / "train" / "news.tsv"
options = {"sep": "\t", "header": None, "names": NEWS_COLUMNS, "keep_default_na": False}
as_default = pd.read_csv(news_file, **options)
as_written = pd.read_csv(news_file, quoting=3, **options)
same = as_default.merge(as_written, on="id", how="right", suffixes=("_default", "_written"))
changed = same[same.title_default != same.title_written]
print(len(changed), "of", len(as_written), "titles change, without an error; for example")
display(changed[["title_default", "title_written"]].head(2))

# %% [markdown]
# Now the zero-width space: you cannot see it, but a tokenizer can. `read_mind` removes it.

# %%
raw = as_written[as_written.title.str.contains("\u200b")]
read = news.title[[news.ids.tolist().index(i) for i in raw.id]]
print(len(raw), "titles have one; the first, as in the file and as read:")
print(ascii(raw.title.iloc[0]), ascii(read[0]), sep="\n")

# %% [markdown]
# And a user of whom nothing is known. No model can personalise for them; their candidates will tie.

# %%
no_history = np.flatnonzero(history_sizes == 0)
print(len(no_history), "of", len(train), "impressions have an empty history")
assert not any("\u200b" in title for title in news.title)
assert set(as_written.title.str.replace("\u200b", "")) <= set(news.title), "a title was changed in reading"

# %% [markdown]
# ## 3 How does an impression become a training sample?
#
# A sample is an Alpaca record: `system`, `instruction`, `input`, `output`. LLaMA-Factory trains the model
# to write `output`. A **prompt format** decides what goes where; here are three of them. The tutorial's
# is `likes_dislikes`: the last candidate is the target, the others are in the prompt **with their
# labels**.

# %%
titles = neutral_titles(news)
one = train.take(np.array([row]))
tutorial = PROMPTS["likes_dislikes"]()
parts = next(likes_dislikes_parts(one, titles))
print(tutorial.record(parts)["input"], "\n->", tutorial.record(parts)["output"])

# %% [markdown]
# `pointwise` asks about one candidate and shows no other.

# %%
pointwise = PROMPTS["pointwise"]()
rng = np.random.default_rng(seed)
for sample in list(pointwise_parts(one, titles, history_length=4, negatives=1, rng=rng)):
    record = pointwise.record(sample)
    print(record["input"], "\n->", record["output"], "\n")

# %% [markdown]
# `next_click` has no Yes and No. The question never changes, and the answer is the user's clicked
# titles: every title is something to learn from. This format is what the course trains, on lists that keep to
# one subcategory of a user each (`interests=1`, the default of `scripts/build_dataset.py`).

# %%
next_click = PROMPTS["next_click"]()
sample = next(next_click_parts(one, titles, history_length=4, rng=np.random.default_rng(seed)))
record = next_click.record(sample)
print(record["instruction"], "\n->", record["output"], sep="\n")

# %% [markdown]
# The awkward one: a user without history, in the tutorial's format.

# %%
stranger = next(likes_dislikes_parts(train.take(no_history[:1]), titles))
print(tutorial.record(stranger)["input"][:300])
assert tutorial.text["no_history"] in tutorial.record(stranger)["input"]

# %% [markdown]
# ## 4 Can you see the leak?
#
# Every impression has a click (section 1). So if no other candidate was clicked, the target was. In the
# tutorial's prompt that is an empty line after `User likes:`. Here is one:

# %%
test = tasks.Seed().splits(mind, seed)["test"]
tutorial_test = list(likes_dislikes_parts(test, titles))
leaking = min((p for p in tutorial_test if not p.likes), key=lambda p: len(tutorial.record(p)["input"]))
print(tutorial.record(leaking)["input"], "\n->", tutorial.record(leaking)["output"])

# %% [markdown]
# The aggregate: the answer, against whether the line is empty, over the tutorial's whole test split.

# %%
is_empty = pd.Series([not p.likes for p in tutorial_test], name="'User likes:' is empty")
answer = pd.Series(["Yes." if p.is_click else "No." for p in tutorial_test], name="answer")
leak = pd.crosstab(is_empty, answer)
display(leak)

# %% [markdown]
# There is no `No.` where the line is empty: the cell is zero not by luck but by construction. A model
# that learns to look for the empty line needs to know nothing about news.

# %%
assert leak.loc[True, "No."] == 0, "an empty line no longer proves a click"
assert leak.loc[True, "Yes."] > 0, "no prompt leaks: this is not the tutorial's task"

# %% [markdown]
# ## 5 Does it fit into the model?
#
# A model reads at most `cutoff_len` tokens. What does LLaMA-Factory do with a longer record? It cuts the
# end of the prompt off, and the end is the question.

# %%
cutoff_len = factory.load("configs/new_train.yaml")["cutoff_len"]
chat = ChatTemplate.load(model, template)
longest = max(tutorial_test, key=lambda p: len(tutorial.record(p)["input"]))
record = tutorial.record(longest)
prompt, reply = chat.encode(record["system"], record_prompt(record), record["output"])
kept, _ = infer_seqlen(len(prompt), len(reply), cutoff_len)
print("whole prompt ends:  ", repr(chat.tokenizer.decode(prompt)[-120:]))
print("what is left of it: ", repr(chat.tokenizer.decode(prompt[:kept])[-120:]))

# %% [markdown]
# How often would that happen? And what does the builder do instead? It leaves titles out: here dislikes
# first, then likes but one, and never the target. One like must stay: to leave out the last one would
# make the empty line say something false.

# %%
lengths = np.array(chat.estimate([tutorial.record(p) for p in tutorial_test]))
print(f"{(lengths > cutoff_len).mean():.1%} of the records are longer than {cutoff_len} tokens")
done = records.Shortening()
budget = records.Budget(chat.count, chat.estimate, cutoff_len)
shorter = records.fit_budget(tutorial, longest, int(lengths.max()), budget, done)
print(
    f"the longest: {lengths.max()} tokens, now {chat.count(shorter)}, {done.titles_dropped} titles left out"
)
print(repr(shorter["input"][-120:]))

# %%
assert chat.count(shorter) <= cutoff_len
assert longest.target in shorter["input"]
assert bool(longest.likes) == ("User likes: \n" not in shorter["input"])

# %% [markdown]
# ## 6 Build both datasets
#
# The tutorial's, which leaks, and the honest one. The protocol `dev` trains on the first days, and is
# tested on the last. This is what `scripts/build_dataset.py` does.

# %%
wanted = {
    ("seed", "likes_dislikes"): ("configs/new_train.yaml", ("train",)),
    ("dev", "next_click"): ("configs/train/smollm2_135m_lora_sft.yaml", ("train", "dev")),
}
manifests = {}
for (protocol, form), (config, splits) in wanted.items():
    cut = factory.load(config)["cutoff_len"]
    options = alpaca.BuildOptions(protocol, form, seed, model=model, template=template, cutoff_len=cut)
    hashes = data_hashes(data, splits)
    limits = alpaca.make_budget(options)
    manifests[options] = alpaca.build(read_mind(data, splits), options, Path(out), limits, hashes)

# %% [markdown]
# The manifest says what is in each file, and what shortening did to it.

# %%
datasets = {name: made for manifest in manifests.values() for name, made in manifest["datasets"].items()}
counts = pd.DataFrame({name: made["tokens"] for name, made in datasets.items()}).T
counts.insert(0, "records", [made["records"] for made in datasets.values()])
display(counts)

# %% [markdown]
# LLaMA-Factory finds a dataset by its name in `dataset_info.json`. The names of `columns` tell it which
# key of a record is what.

# %%
info = factory.read_dataset_info({"dataset_dir": out}, Path())[1]
print(info["mind"])

# %%
for options, manifest in manifests.items():
    assert alpaca.is_built(Path(out), options, manifest["inputs_sha256"]), options
assert set(datasets) <= set(info)
assert counts.still_too_long.sum() == 0, "a record does not fit; LLaMA-Factory would cut its question off"

# %% [markdown]
# ## Exercises
#
# **1 Predict.** The target is always the last candidate. If it were a random one, would the leak go away?
# Say why before you run the answer.

# %% tags=["solution"]
# No. Nothing in the argument uses the place: one click at least, none among the others, so it is the target.
place = np.random.default_rng(seed).integers(0, np.diff(test.offsets))
flat = test.offsets[:-1] + place
others = np.add.reduceat(test.labels, test.offsets[:-1]) - test.labels[flat]
print(pd.crosstab(others == 0, test.labels[flat]))
assert (test.labels[flat][others == 0] == 1).all()

# %% [markdown]
# **2 Change.** `LikesDislikes("zh")` writes the frame in Chinese, the titles stay. Does a record get
# longer or shorter in tokens of this model? Assert your answer for the record in section 3.

# %% tags=["solution"]
english, chinese = (chat.count(LikesDislikes(language).record(parts)) for language in ("en", "zh"))
print("tokens in English:", english, "in Chinese:", chinese)
assert chinese > english, "a tokenizer made for English spends more tokens on a Chinese sentence"

# %% [markdown]
# **3 Build.** Write pointwise records of an impression, shuffle its labels, and write them again. Assert
# that the set of prompts does not change, so that this format cannot leak what the tutorial's leaks.
# (Keep all candidates: `negatives` as large as the list.)

# %% tags=["solution"]
shuffled = train.take(np.array([row]))
shuffled.labels[:] = np.random.default_rng(seed).permutation(shuffled.labels)
prompts = []
for impression in (one, shuffled):
    rng = np.random.default_rng(seed)
    made = pointwise_parts(impression, titles, history_length=4, negatives=len(labels), rng=rng)
    prompts.append({record_prompt(pointwise.record(p)) for p in made})
assert prompts[0] == prompts[1]

# %% [markdown]
# ## What you made

# %%
files = {name: Path(out) / made["file"] for name, made in datasets.items()}
made = {
    "file": [path.as_posix() for path in files.values()],
    "records": [datasets[name]["records"] for name in files],
    "sha256": [sha256(path)[:16] for path in files.values()],
}
display(pd.DataFrame(made, index=list(files)))

# %% [markdown]
# The same data, seed and versions give the same bytes, so your hashes are these. Train on them:
# [03 Fine-tune with LLaMA-Factory](03_finetune_with_llamafactory.ipynb).
