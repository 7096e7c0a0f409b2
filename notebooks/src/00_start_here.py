# %% [markdown]
# # 00 Start here
#
# - **Reads**: `data/sample` (synthetic MIND), `models/smollm2-135m`
# - **Writes**: nothing
# - **Time on the sample**: a minute. **Hardware**: any CPU
# - **Previous**: `make test` or `make demo`, once, for the set-up. **Next**: [01 Explore
#   MIND](01_explore_mind.ipynb)
#
# You will be able to
# 1. say what a recommender does, and name the three ways in which a language model can take part;
# 2. say why a prompt that asks for a JSON list is not yet a recommender, with an example of your own;
# 3. tell which parts of this course your computer can run, and where to get the rest.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display

from mindlab.common import machine
from mindlab.data.mind import read_mind
from mindlab.llm.hf import HFEngine
from mindlab.prompts.chat import ChatTemplate
from mindlab.runs.notebook import setup

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
template = "smollm2"
max_new_tokens = 160
seed = 42

# %%
setup(data, seed)

# %% [markdown]
# ## 1 What is a recommender?
#
# A recommender decides what a person sees first, where there is more than anyone can look at: **news** on
# a front page, **products** in a shop, **films** and **songs** in a stream, **people** one may know,
# **courses**, **jobs**, **advertisements**. All of them have the same parts: a **user** with a past, a set
# of **candidates**, and an order to put them in. What people then click tells how good the order was, in
# part: they can only click what they were shown.
#
# News is the hard case that this course is about. An article is new, has no clicks yet when it matters
# most, and is dead after two days; so a method must read it. That is where a language model comes in. One
# sample: a user's last clicks, and what they were shown next.

# %%
mind = read_mind(data)
dev, news = mind.splits["dev"], mind.news
sizes, pasts = np.diff(dev.offsets), np.diff(dev.history_offsets)[dev.history]
row = int(np.flatnonzero((sizes >= 5) & (sizes <= 8) & (pasts >= 5))[0])
print("clicked before, oldest first:", *news.title[dev.user_history(row)[-5:]], sep="\n  ")
candidates = dev.candidates(row)
shown = pd.DataFrame({"category": news.category[candidates], "title": news.title[candidates]})
display(shown)

# %% [markdown]
# Write down the order in which you would show them. Then look: which ones did the user click?

# %%
display(shown.assign(clicked=dev.candidate_labels(row)))
assert dev.candidate_labels(row).sum() >= 1

# %% [markdown]
# ## 2 Where can a language model help?
#
# Surveys sort the many ways into three ([Wu et al.](https://arxiv.org/abs/2305.19860)):
#
# - **Embeddings, then a recommender.** The model turns each headline into a vector, once. A classic
#   recommender does the rest: users are means of vectors, candidates are ranked by similarity, or the
#   vectors become features. Cheap when people are waiting, since the model has read everything before.
# - **Tokens, then a recommender.** The model writes something about news or users: topics, keywords, an
#   interest profile. A classic recommender takes that text as features. It can be read and corrected.
# - **The language model is the recommender.** History and candidates go into a prompt, and the model
#   answers: by a word, by a list, by probabilities. It can be prompted as it is, or **fine-tuned** on clicks,
#   which is what [03](03_finetune_with_llamafactory.ipynb) does. It costs the most for each user.
#
# None of the three is the best by its kind. That is measured, and the measuring is most of this course.
#
# The third way is what people try first, and it looks like this: tell the model what somebody liked, ask
# for a JSON list. Films, because everybody knows some.

# %%
liked = ["The Matrix", "Blade Runner", "Arrival"]
disliked = ["Titanic", "The Notebook"]
asked = ["Interstellar", "Notting Hill", "Ex Machina", "Mamma Mia!"]
question = f"""A viewer liked these movies: {json.dumps(liked)}
and disliked these: {json.dumps(disliked)}
For each of these movies say whether the viewer will like it: {json.dumps(asked)}
Answer with a JSON list of objects with the keys "title", "like" (true or false) and "explanation"."""
print(question)

# %% [markdown]
# A large model answers with something that looks right. Here is what the small one of this course writes:

# %%
engine, chat = HFEngine(model), ChatTemplate.load(model, template)
prompt = chat.prompt_ids("You are a movie recommender.", question)
_, ids = engine.answer(prompt, [], [0], chat.stop_ids(), max_new_tokens)
answer = chat.tokenizer.decode(ids, skip_special_tokens=True)
print(answer)

# %% [markdown]
# Is that a recommendation? Check it as a program would have to: does it parse, and does every movie that was
# asked have an answer?

# %%
start, end = answer.find("["), answer.rfind("]") + 1
try:
    rows = json.loads(answer[start:end])
    answered = {row.get("title") for row in rows if isinstance(row, dict)}
except json.JSONDecodeError as error:
    answered = set()
    print("not JSON:", error)
print(len(answered & set(asked)), "of", len(asked), "movies are answered")
assert len(answered & set(asked)) < len(asked), "it answered every movie: ask about more of them"

# %% [markdown]
# A larger model gets the form right far more often. What stays, whatever its size:
#
# - **No order.** `true` or `false` puts nothing first. Without a score there is no ranking and no metric of
#   one.
# - **No guarantee.** An item may be left out, invented, or answered twice, and a service must always
#   answer. It has to be counted as a failure, not dropped.
# - **The explanation explains nothing.** It is text that fits the answer, written after it.
# - **The order of the question matters.** Ask for the same movies in another order, and answers change.
# - **A prompt is small.** A shop has millions of items, and a news site new ones each minute.
# - **It knows what was famous when it was trained**, and not what is popular today.
#
# So [04](04_predict_and_score.ipynb) reads **probabilities** instead of text: every candidate gets a
# number, none can be lost, and what that is worth can be measured.

# %% [markdown]
# ## 3 What can this computer run?

# %%
here = machine.look()
print(f"{here.cores} cores, {here.memory:.0f} GiB of memory, {here.disk:.0f} GiB free on disk,")
print(here.gpu_name or "no CUDA GPU")
lacks = [machine.missing(task, here) for task in machine.TASKS]
table = pd.DataFrame([vars(task) for task in machine.TASKS]).rename(columns={"name": "task"})
table["runs here"] = [f"no: {what}" if what else "yes" for what in lacks]
display(table[["task", "runs here", "memory", "disk", "gpu", "source"]])

# %% [markdown]
# Sizes are in GiB. Where it says no, the notebooks still show how it is done, with the small model or with
# what others have published; nothing in the course needs a GPU to be understood.
#
# And what is already on this disk?

# %%
parts = {
    "the small model": (f"{model}/model.safetensors", "python scripts/get_model.py smollm2-135m"),
    "the sample": (f"{data}/train/behaviors.tsv", "git checkout data/sample"),
    "datasets for LLaMA-Factory": ("data/processed/mind_train.json", "notebook 02"),
    "MINDsmall": ("data/raw/MINDsmall", "python scripts/download_mind.py --size small"),
    "GLM-4-9B-Chat": (
        "models/glm-4-9b-chat-hf",
        "python scripts/get_model.py zai-org/glm-4-9b-chat-hf --from-hub hf",
    ),
}
have = {name: "yes" if Path(path).exists() else "no" for name, (path, _) in parts.items()}
display(pd.DataFrame({"here": have, "get it with": {name: how for name, (_, how) in parts.items()}}))

# %%
assert have["the small model"] == have["the sample"] == "yes", "run make test first"
assert not machine.missing(machine.TASKS[0], here), "this computer is too small for the course"

# %% [markdown]
# ## Exercises
#
# **1 Predict.** A model answers `like: true` for every film. In how many of the points above would its
# answer still pass, as a program would check it? Then say what a number could show that `true` cannot.

# %% tags=["solution"]
# It parses, nothing is missing, nothing invented: it passes. A score could at least tie, and a tie is
# counted as what it is: no better than chance.
always = [{"title": title, "like": True, "explanation": "It is good."} for title in asked]
assert {row["title"] for row in json.loads(json.dumps(always))} == set(asked)

# %% [markdown]
# **2 Change.** Reverse the order of the movies in the question and ask again. Is the answer about the first
# movie the same text?

# %% tags=["solution"]
backwards = question.replace(json.dumps(asked), json.dumps(asked[::-1]))
assert backwards != question
prompt = chat.prompt_ids("You are a movie recommender.", backwards)
_, ids = engine.answer(prompt, [], [0], chat.stop_ids(), max_new_tokens)
print("the same text:", chat.tokenizer.decode(ids, skip_special_tokens=True) == answer)

# %% [markdown]
# **3 Build.** The simplest recommender: rank the candidates of section 1 by how often their category occurs in
# the user's history. Assert that your order has all candidates, each once.

# %% tags=["solution"]
counts = pd.Series(news.category[dev.user_history(row)]).value_counts()
ranked = shown.assign(score=shown["category"].map(counts).fillna(0)).sort_values("score", ascending=False)
display(ranked)
assert sorted(ranked.index) == list(range(len(shown)))

# %% [markdown]
# ## References
#
# - MIND: [Wu et al., ACL 2020](https://msnews.github.io/assets/doc/ACL2020_MIND.pdf); the data:
#   [msnews.github.io](https://msnews.github.io/)
# - Language models and recommenders, surveys: [Wu et al.](https://arxiv.org/abs/2305.19860), [Lin et
#   al.](https://arxiv.org/abs/2306.05817)
# - A model tuned to say Yes or No: TALLRec, [Bao et al.](https://arxiv.org/abs/2305.00447)
# - Language models on MIND: [RecPrompt](https://arxiv.org/abs/2312.10463),
#   [ONCE](https://arxiv.org/abs/2305.06566), [LLM-TRSR](https://arxiv.org/abs/2403.13325)
# - Larger is not better: [Revisiting Language Models in Neural News Recommender
#   Systems](https://arxiv.org/abs/2501.11391)
# - The tools: [LLaMA-Factory](https://github.com/hiyouga/LLaMA-Factory),
#   [GLM-4](https://github.com/zai-org/GLM-4), LoRA: [Hu et al.](https://arxiv.org/abs/2106.09685), QLoRA:
#   [Dettmers et al.](https://arxiv.org/abs/2305.14314)
#
# ## What you made
#
# Nothing on disk. You know what the course is about, and what of it runs here. Next: [01 Explore
# MIND](01_explore_mind.ipynb).
