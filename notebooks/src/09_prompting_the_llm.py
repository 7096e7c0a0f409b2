# %% [markdown]
# # 09 Prompting the LLM
#
# - **Reads**: `data/sample` (synthetic MIND), `models/smollm2-135m`, and runs in `data/reference_runs`
# - **Writes**: `runs/notebook_09`: a run folder for each prompt; `runs/written`: the lists that the model wrote, once
# - **Time on the sample**: six minutes. **Hardware**: two CPU cores
# - **Previous**: [08 LLM tokens and a ranker](08_llm_tokens_and_a_ranker.ipynb). **Next**:
#   [10 BERT classifier](10_bert_classifier.ipynb)
#
# You will be able to
# 1. ask a language model for a ranking in six ways, none of which trains anything, and put them into one table;
# 2. find out whether it reads the history, or a candidate's place;
# 3. use any model behind an OpenAI-compatible server, and survive whatever it answers.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from mindlab import report as reporting
from mindlab import tasks
from mindlab.data.mind import read_mind
from mindlab.evaluation import probes
from mindlab.evaluation.predictions import read_predictions
from mindlab.llm.ask import make_scorer
from mindlab.llm.lists import ask_lists, read_list
from mindlab.llm.options import Options
from mindlab.llm.server import ServerWriter, serve_factory
from mindlab.prompts import (
    InContext,
    JsonList,
    ListParts,
    Listwise,
    Pointwise,
    PointwiseParts,
    Recency,
    neutral_titles,
)
from mindlab.recommenders.llm import ranker
from mindlab.runs.compare import compare
from mindlab.runs.notebook import bar, setup
from mindlab.runs.run import Request, run

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
template = "smollm2"
seed = 42
n_test = 14
n_lists = 3
n_server = 1
orders = 3
kept = "data/reference_runs/compare"
out = "runs/notebook_09"

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 3), "figure.dpi": 80, "figure.constrained_layout.use": True})
mind = read_mind(data)
splits = tasks.Dev().splits(mind)
test = splits["test"].take(tasks.limit(len(splits["test"]), n_test, seed))
titles = neutral_titles(mind.news)

# %% [markdown]
# ## 1 How can one ask?
#
# The model is not trained, so the prompt is all there is. `pointwise` asks about one candidate and compares the probabilities of Yes and
# No. `recency` names the latest click once more, because models tend to overlook the order of a history. `in_context` turns the latest clicks into
# answered examples. They can only be examples of Yes: a history tells what was clicked, not what was passed over.

# %%
clicks_before = np.diff(test.history_offsets)[test.history]
i = int(
    np.argmax(np.where(np.diff(test.offsets) >= 4, clicks_before, -1))
)  # four candidates at least, to list them
history, candidates = titles[test.user_history(i)][-4:].tolist(), titles[test.candidates(i)].tolist()
asked = PointwiseParts(history, candidates[0], False)
for form in (Pointwise(), Recency(), InContext()):
    print(f"--- {form.name}", form.record(asked)["input"], sep="\n")
assert all(
    form.record(asked)["input"].count(candidates[0]) == 1 for form in (Pointwise(), Recency(), InContext())
)

# %% [markdown]
# `listwise` shows all candidates at once, each behind a letter. The answer is one letter, and one forward pass gives the
# probability of all of them. `json_list` lets the model write: JSON with `title`, `like` and `explanation` of each candidate.

# %%
shown = ListParts(history, candidates[:4])
for form in (Listwise(), JsonList()):
    print(f"--- {form.name}", form.record(shown)["input"], sep="\n")
assert "\nD. " in Listwise().record(shown)["input"]

# %% [markdown]
# ## 2 Which prompt ranks best?
#
# The same impressions for all. A list is scored in several orders and the scores are averaged, **bootstrapping** in the words of the paper below: what a
# letter gets for its place then weighs less. `listwise-one-order` is the same without it. Popularity and MiniLM cost next to nothing, and stand beside them.

# %%
request = Request(data, limit=n_test, seed=seed)
base = Options("pointwise", model, template)
asks = {
    f"smollm2-{form}": Options(form, model, template, history_length=8)
    for form in ("pointwise", "next_click", "recency", "in_context")
}
lists = Options("listwise", model, template)
asks |= {
    "smollm2-listwise-one-order": replace(lists, orders=1),
    "smollm2-listwise": replace(lists, orders=orders),
}


def scored_by(name, asked, request=request):
    """Score the impressions of the request, or what is missing of them."""
    return run(request, ranker(name, asked), Path(out) / name, progress=bar)


runs = compare(request, ["random", "popularity", "minilm"], Path(out))
runs += [scored_by(name, asked) for name, asked in asks.items()]
scored = {run.name: read_predictions(run / "predictions.parquet")["score"].to_numpy() for run in runs}

# %%
pairs = [(name, "smollm2-pointwise") for name in asks if name != "smollm2-pointwise"]
pairs += [("smollm2-listwise", "smollm2-listwise-one-order")]
context = {"title": "Prompting the LLM", "data": data, "synthetic": True}
board = reporting.leaderboard(runs, pairs=pairs, context=context)
print(reporting.as_text(board))
print(reporting.write_leaderboard(Path(out), board))

# %% [markdown]
# Read the pairs, and do not believe them yet. A handful of users is too few for a bootstrap to be sure of its own intervals, and
# where many pairs are looked at, some exclude zero by luck. So ask for more: the repository keeps the predictions for a
# hundred impressions of `data/sample`, and they are measured here as those above were.

# %%
forms = ("next_click", "recency", "in_context", "listwise")
again = [(f"smollm2-{form}-base", "smollm2-pointwise-base") for form in forms]
more = reporting.leaderboard([Path(kept) / name for name in {*sum(again, ())}], pairs=again)
print(reporting.as_text(more))

# %% [markdown]
# Which gains of the first table are left in the second? An interval that includes zero means that this clever prompt was not shown
# to be better than the plain one. A model this small mostly says Yes or No for reasons of its own, and no wording mends that; with a
# larger one the same cells may tell another story.

# %%
table = pd.DataFrame(board["rows"]).set_index("name")
assert table["subset_sha"].nunique() == 1
assert len(more["rows"]) == 1 + len(forms)
assert (table["auc_low"] < table["auc_high"]).all()
assert {entry["against"] for entry in table.loc["smollm2-recency", "paired"]} >= {"smollm2-pointwise"}

# %% [markdown]
# ## 3 Does it look at the place?
#
# Probes change one thing that should not matter. First the order: the same lists backwards, scored again. A model that reads would move
# nothing.

# %%
hidden = test.without_labels()
backwards, places = probes.reverse_candidates(hidden)
score, _ = make_scorer(replace(lists, orders=1), mind.news, np.unique(test.news), seed=seed)
straight = scored["smollm2-listwise-one-order"]
turned = np.concatenate([one.scores for one in score(backwards)])
found = {"listwise": probes.moved(straight, turned[places], test)}
print(f"another first place: {found['listwise']['first_place']:.2f} of the lists")
print(f"rank agreement with itself: {found['listwise']['rank_agreement']:+.2f}")

# %%
place = np.arange(len(test.news)) - np.repeat(test.offsets[:-1], np.diff(test.offsets))
letters = list(Listwise.letters[:12])
means = {
    name: [scores[place == k].mean() for k in range(12)]
    for name, scores in (("as they are", straight), ("backwards", turned))
}
pd.DataFrame(means, index=letters).plot(marker="o", ylabel="mean score of the letter")
plt.axhline(0, color="grey", linestyle="--")
plt.show()
assert np.isfinite(straight).all()
assert straight.std() > 0, "the model says the same about every candidate"

# %% [markdown]
# Two curves of one shape, whatever stands behind the letters, are a liking for letters. Averaging over orders takes it out of the ranking, at the price of
# reading everything again.

# %% [markdown]
# ## 4 Does it read the user?
#
# The next two probes take the history: shuffled, and another user's. If the quality does not fall when the history is a stranger's,
# nothing personal was measured. `pointwise` asks about each candidate alone, so a list's order cannot reach it.

# %%
score, _ = make_scorer(base, mind.news, np.unique(test.news))
rng = np.random.default_rng(seed)
variants = {
    "shuffled": probes.shuffle_histories(hidden, rng),
    "another reader's": probes.swap_histories(hidden, rng),
}
own = scored["smollm2-pointwise"]
for name, changed in variants.items():
    scores = np.concatenate([one.scores for one in score(changed)])
    found[f"history {name}"] = probes.moved(own, scores, test)

# %%
for name, moved in found.items():
    gain = moved["auc_difference"]
    print(f"{name}: AUC {moved['auc'].mean:.3f} -> {moved['auc_changed'].mean:.3f}")
    print(f"    before minus after {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    print(
        f"    another first place in {moved['first_place']:.2f}, rank agreement {moved['rank_agreement']:+.2f}"
    )
assert found["history shuffled"]["rank_agreement"] > found["history another reader's"]["rank_agreement"]
assert found["history another reader's"]["auc_difference"].n == len(test)

# %% [markdown]
# The last probe: does it like what everyone likes? The rank correlation of its scores with the clicks of the training days.

# %%
train = splits["train"]
clicks = np.bincount(train.news[train.labels == 1], minlength=len(mind.news))
for name, scores in (("pointwise", own), ("listwise", straight)):
    liking = probes.popularity_agreement(scores, test, clicks)
    print(f"{name}: {liking.mean:+.3f} [{liking.low:+.3f}, {liking.high:+.3f}]")
assert clicks.sum() == train.labels.sum()

# %% [markdown]
# ## 5 May it write?
#
# What a model writes has to be read by a program. Every candidate is accounted for: liked, not liked, or not answered, which ranks last.
# What is wrong with an answer is counted and stops nothing. Once free, once held to a JSON schema that names these candidates.

# %%
some, free = replace(request, limit=n_lists), Options("json_list", model, template)
written = {
    "free": scored_by("smollm2-json_list", free, some),
    "held to the schema": scored_by("smollm2-json_list-constrained", replace(free, constrained=True), some),
}
few = reporting.leaderboard([*written.values()], context=context)
faults = {name: few["manifests"][run.name]["texts_written"]["lists"] for name, run in written.items()}
display(pd.DataFrame(faults).fillna(0).round(0).astype(int))

# %%
print(reporting.as_text(few))
held = faults["held to the schema"]
assert held["usable"] == held["answers"] >= n_lists
assert "candidates without an answer" not in held

# %% [markdown]
# The schema makes the model answer about every candidate, once. It does not make it right: only the ranking says what the answers are
# worth, and two values cannot rank much. A larger model can also be let think before it
# answers (`--thinking`): it reasons in prose, and only its last list counts.

# %%
thought = 'The reader follows weather. [maybe one] So:\n[{"title": "A storm", "like": true, "explanation": "weather"}]'
for text in ("", "I like them all!", '[{"title": "A storm", "like": tr', thought):
    print(read_list(text, ["A storm", "A game"], thinking=True))
assert read_list(thought, ["A storm"], thinking=True).fault is None
assert JsonList(thinking=True).record(shown)["input"] != JsonList().record(shown)["input"]

# %% [markdown]
# ## 6 What if the model is elsewhere?
#
# `--base-url` asks any server that speaks OpenAI's protocol: vLLM, Ollama, a hosted one. LLaMA-Factory has one too. Here it starts for the
# time of a block, listens on this machine alone, and asks for a key that nobody types or reads.

# %%
overrides = {
    "model_name_or_path": model,
    "template": template,
    "adapter_name_or_path": None,
    "infer_dtype": "float32",
}
some = test.take(np.argsort(np.diff(test.offsets), kind="stable")[:n_server]).without_labels()
with serve_factory("configs/news_inference.yaml", overrides) as server:
    writer = ServerWriter(server.base_url, server.model, max_new_tokens=160, key=server.key)
    served = ask_lists(some, titles, JsonList(), writer, history_length=8)
print(served.cost)
assert served.cost["answers"] >= n_server
assert [len(one) for one in served.scores] == np.diff(some.offsets).tolist()

# %% [markdown]
# ## Exercises
#
# **1 Predict.** The prompt of `pointwise` with half the history. Does the ranking get worse?

# %% tags=["solution"]
short = scored_by("smollm2-pointwise-4", replace(base, history_length=4))
both = reporting.leaderboard([*runs, short], pairs=[(short.name, "smollm2-pointwise")])
rows = {row["name"]: row for row in both["rows"]}
gain = next(e for e in rows[short.name]["paired"] if e["against"] == "smollm2-pointwise")
print(reporting.difference_text(gain["auc"]), reporting.verdict(gain["auc"]))
assert gain["auc"]["low"] <= gain["auc"]["high"]

# %% [markdown]
# **2 Change.** How much of the places is left after averaging over an order and its reverse?

# %% tags=["solution"]
mean = (straight + turned[places]) / 2
agreement = probes.rank_correlations(mean, -place.astype(float), test.offsets)
alone = probes.rank_correlations(straight, -place.astype(float), test.offsets)
print(
    f"liking for the top of the list: {np.nanmean(alone):+.3f} in one order, {np.nanmean(agreement):+.3f} in two"
)
assert abs(np.nanmean(agreement)) < abs(np.nanmean(alone))

# %% [markdown]
# **3 Build.** A probe of your own: the candidates' titles in capitals. Assert that the news and labels are the same as before.

# %% tags=["solution"]
loud = replace(mind.news, title=np.array([t.upper() for t in mind.news.title], dtype=object))
score, _ = make_scorer(base, loud, np.unique(test.news))
shouted = np.concatenate([one.scores for one in score(hidden)])
result = probes.moved(own, shouted, test)
print(f"rank agreement {result['rank_agreement']:+.2f}, another first place in {result['first_place']:.2f}")
assert len(shouted) == len(test.news)

# %% [markdown]
# ## What you made

# %%
made = [*sorted(Path(out).rglob("predictions.parquet")), Path(out) / "report.html"]
sizes = [path.stat().st_size for path in made]
display(pd.DataFrame({"file": [path.as_posix() for path in made], "bytes": sizes}))

# %% [markdown]
# With a GPU, MIND and a larger model: `python scripts/predict.py --data data/raw/MINDsmall --protocol dev --format listwise --model
# zai-org/glm-4-9b-chat-hf --out runs/glm4-listwise`, or a server with `--format json_list --thinking --base-url` (not yet run).
# The prompts and the probes: Hou et al., [Large Language Models are Zero-Shot Rankers](https://arxiv.org/abs/2305.08845); asking
# pointwise, pairwise and listwise: Dai et al., [Uncovering ChatGPT's Capabilities](https://arxiv.org/abs/2305.02182).
