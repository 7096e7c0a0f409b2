# %% [markdown]
# # 05 Why ninety-eight percent
#
# - **Reads**: `data/sample` (synthetic MIND), `models/smollm2-135m`, and a run in `data/reference_runs/cue`
# - **Writes**: `runs/notebook_05`: the tutorial's records, a leaky data set of your own, run folders
# - **Time on the sample**: about a minute. **Hardware**: two CPU cores
# - **Previous**: [04 Predict and score](04_predict_and_score.ipynb). **Next**: [06 Compare
#   recommenders](06_compare_recommenders.ipynb)
#
# You will be able to
# 1. reproduce the tutorial's accuracy with one line of code and no model;
# 2. say why precision gives the leak away, and show with one moved headline that a tuned model uses it;
# 3. audit any data set of prompts for leaks of this kind, and build one that has none.

# %%
import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from mindlab import tasks
from mindlab.common.files import sha256
from mindlab.common.manifest import read_manifest
from mindlab.data.mind import read_mind
from mindlab.evaluation.audit import audit
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.evaluation.metrics import answer_metrics, evaluate
from mindlab.evaluation.predictions import read_predictions
from mindlab.finetune import alpaca
from mindlab.llm.hf import HFEngine
from mindlab.llm.score import YesNoScorer
from mindlab.prompts import LikesDislikes, likes_dislikes_parts, neutral_titles
from mindlab.prompts.chat import ChatTemplate
from mindlab.runs import compare
from mindlab.runs.notebook import setup

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
cue = "data/reference_runs/cue"
n_probe = 20
seed = 42
out = "runs/notebook_05"

# %%
setup(data, seed)
plt.rcParams.update({"figure.figsize": (7, 2.6), "figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## 1 What does the tutorial measure?
#
# It takes the last candidate of each impression as the target, puts the **other candidates of the same
# impression** into the prompt, sorted by whether the user clicked them, and asks for Yes or No. Here is
# one such record, the shortest whose answer is Yes:

# %%
mind = read_mind(data)
titles = neutral_titles(mind.news)
test = tasks.Seed().splits(mind, seed)["test"]
parts = list(likes_dislikes_parts(test, titles))
shortest = min((p for p in parts if p.is_click), key=lambda p: len(p.likes + p.dislikes))
print(LikesDislikes().record(shortest)["input"])

# %% [markdown]
# Nobody clicked another headline of this list. But MIND holds only impressions with at least one click.
# So who was it? Before any model: how often are two answers right that read no headline, **always No**, and
# **Yes, if and only if no other candidate was clicked**?

# %%
last = np.full(len(test), -1)
truth = test.labels[test.offsets[1:] - 1]
found = {
    name: answer_metrics(rule(test, last), truth, test.users)
    for name, rule in {"always No": always_no, "the leak rule": leak_rule}.items()
}
columns = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "tp", "fp", "fn", "tn"]
display(pd.DataFrame(found).T[columns].astype(float).round(3))

# %%
assert found["the leak rule"]["fp"] == 0, "a Yes of the rule is certain: every impression has a click"
assert found["the leak rule"]["accuracy_low"] > found["always No"]["accuracy"]

# %% [markdown]
# ## 2 Does a tuned model do this?
#
# A public re-run of the tutorial (Qwen3 with eight billion weights, on MINDsmall) published its four counts:
# [evaluation_results_full.json](https://github.com/Wuxb02/Qwen3_rec). A model that has learnt taste makes
# mistakes of both kinds. A model that has learnt the rule says Yes only where Yes is certain.

# %%
published = {"tp": 883, "fp": 0, "fn": 193, "tn": 8924}
n = sum(published.values())
rerun = {
    "accuracy": (published["tp"] + published["tn"]) / n,
    "always No": (published["fp"] + published["tn"]) / n,
    "precision": published["tp"] / (published["tp"] + published["fp"]),
    "recall": published["tp"] / (published["tp"] + published["fn"]),
}
ours = found["the leak rule"] | {"always No": found["always No"]["accuracy"]}
table = {"re-run, tuned model": rerun, "sample, one line of code": {key: ours[key] for key in rerun}}
display(pd.DataFrame(table).T.round(3))

# %% [markdown]
# Not one false Yes among thousands of chances, and a recall that is the share of clicks that come alone.
# That is the signature of the rule. (It does not prove that the model uses nothing else; it shows that
# nothing else is needed.)

# %%
assert published["fp"] == found["the leak rule"]["fp"] == 0

# %% [markdown]
# ## 3 Can we watch a model learn it?
#
# SmolLM2 with its 135 million weights is small, and on a CPU only short prompts can be trained in minutes. So take
# the impressions of the sample with at most eight candidates, and do with them just what the tutorial does: build,
# tune (sixty steps), predict. `data/README.md` has the commands; the run is in `data/reference_runs/cue`.

# %%
short = Path(out) / "short"
(short / "train").mkdir(parents=True, exist_ok=True)
shutil.copy(Path(data) / "train/news.tsv", short / "train")
lines = (Path(data) / "train/behaviors.tsv").read_text("utf-8").splitlines(keepends=True)
few = [line for line in lines if len(line.split("\t")[4].split()) <= 8]
(short / "train/behaviors.tsv").write_text("".join(few), "utf-8")
manifest = read_manifest(Path(cue) / "lora")
same = sha256(short / "train/behaviors.tsv") in manifest["inputs_sha256"].values()
print(f"{len(few)} impressions, those of the recorded run: {same}")

# %%
asked = tasks.Seed().splits(read_mind(short, ("train",)), seed)["test"]
recorded = {name: read_predictions(Path(cue) / name / "predictions.parquet") for name in ("base", "lora")}
small = {f"{name}, its text": evaluate(table).summary for name, table in recorded.items()}
truth_here = recorded["lora"]["label"].to_numpy()
for name, rule in {"always No": always_no, "the leak rule": leak_rule}.items():
    small[name] = answer_metrics(rule(asked, np.full(len(asked), -1)), truth_here, asked.users)
display(pd.DataFrame(small).T[[*columns, "invalid_answers"]].astype(float).round(3))

# %% [markdown]
# The untuned model does not answer the question at all. The tuned one has the signature: every Yes is right. Is it
# the empty line that it reads? That can be tested. Take records that it answers with Yes, and **move one headline
# from the dislikes to the likes**. History and target stay as they are, letter for letter.

# %%
tuned = YesNoScorer(HFEngine(model, Path(cue) / "lora/adapter"), ChatTemplate.load(model, "smollm2"))
form = LikesDislikes()
says_yes = recorded["lora"]["score"].to_numpy() > 0
records = list(likes_dislikes_parts(asked, neutral_titles(read_mind(short, ("train",)).news)))
probed = [record for record, yes in zip(records, says_yes, strict=True) if yes and not record.likes][:n_probe]
moved = [replace(p, likes=p.dislikes[:1], dislikes=p.dislikes[1:]) for p in probed]
scores = {
    name: np.array([tuned.score([form.record(p)])[0] for p in parts])
    for name, parts in {"as it was": probed, "one headline moved": moved}.items()
}
display(pd.DataFrame({name: {"Yes": int((s > 0).sum()), "of": len(s)} for name, s in scores.items()}).T)

# %% [markdown]
# The answer hangs on a line that has nothing to do with the target, and that nobody has when the page is opened. A
# recommender that is used would get both lines empty, always. Its accuracy in the lab says nothing about that day.

# %%
assert small["lora, its text"]["fp"] == 0
assert small["lora, its text"]["accuracy_low"] > small["always No"]["accuracy"]
assert (scores["as it was"] > 0).mean() > 0.9
assert (scores["one headline moved"] > 0).mean() < 0.5

# %% [markdown]
# ## 4 Where does it leak most?
#
# The rule misses only clicks that have company, and long lists have more clicks. With two candidates it
# must be right always: one of them was clicked.

# %%
sizes = np.diff(test.offsets)
groups = pd.cut(sizes, [1, 2, 5, 10, 20, 50, 100, sizes.max() + 1])
rows = pd.DataFrame({"candidates": groups, "truth": truth, "yes": leak_rule(test, last)})
rows["right"] = rows["yes"] == (rows["truth"] == 1)
by_size = rows.groupby("candidates", observed=True).agg(
    impressions=("right", "size"), accuracy=("right", "mean"), always_no=("truth", lambda t: 1 - t.mean())
)
by_size["recall"] = rows[rows["truth"] == 1].groupby("candidates", observed=True)["yes"].mean()
display(by_size.round(3))

# %%
axes = by_size[["accuracy", "always_no", "recall"]].plot.bar(rot=0, xlabel="candidates of the impression")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
plt.show()

# %% [markdown]
# In the short lists the rule wins most over always No; in the long ones it barely matters what is
# answered, because almost every answer is No. An accuracy over all of them is a mixture of a leak and of a
# constant.

# %%
assert by_size["accuracy"].iloc[0] == 1.0
assert (by_size["accuracy"] >= by_size["always_no"]).all()

# %% [markdown]
# ## 5 Would you have seen it?
#
# `scripts/audit.py` fits a rule that sees only the form of a prompt (which fields there are, how many items
# they have, punctuation, never a headline) and asks whether it beats the best constant answer on records
# that it was not fitted on. It takes any Alpaca data set. On the tutorial's records:

# %%
tutorial = Path(out) / "tutorial"
alpaca.build(mind, alpaca.BuildOptions("seed", "likes_dislikes", seed), tutorial)
(verdicts,) = audit(tutorial)
display(
    pd.DataFrame([(v.kind, v.check, v.text) for v in verdicts.verdicts])
    .style.hide(axis="index")
    .hide(axis="columns")
)

# %%
assert verdicts.has_leak
assert "[User likes]" in verdicts.verdicts[0].text, "the audit names the field that tells"

# %% [markdown]
# ## 6 What does honest scoring say?
#
# The same news and the same users, nothing known of the impression, every candidate ranked, MIND's own
# metrics, and simple methods only. (What a language model adds is in notebook 04.)

# %%
simple = ["random", "popularity", "category", "tfidf"]
runs = compare.compare(compare.Request(data, seed=seed), simple, Path(out) / "dev")
measured = {}
for name, run in zip(simple, runs, strict=True):
    predictions = read_predictions(run / "predictions.parquet")
    measured[name] = evaluate(predictions).summary
honest = pd.DataFrame(measured).T[["n_impressions", "auc", "auc_low", "auc_high", "mrr", "ndcg5", "ndcg10"]]
display(honest.astype(float).round(3))

# %% [markdown]
# That is the scale on which news recommendation happens: between a half and, for the best systems on MIND's
# own leaderboard, not quite three quarters. Whoever reports nearly one has asked another question.

# %%
assert honest["auc"].astype(float).between(0.4, 0.9).all()
assert honest.loc["category", "auc_low"] > honest.loc["random", "auc"]

# %% [markdown]
# ## Exercises
#
# **1 Predict.** The target is the last candidate. Would the rule score less if it were a random one?

# %% tags=["solution"]
# No: the lists are shuffled, so every place is like the last.
place = np.random.default_rng(seed).integers(0, sizes)
is_right = leak_rule(test, place) == (test.labels[test.offsets[:-1] + place] == 1)
print(f"{is_right.mean():.3f} at a random place, {found['the leak rule']['accuracy']:.3f} at the last")
assert abs(is_right.mean() - found["the leak rule"]["accuracy"]) < 0.03

# %% [markdown]
# **2 Change.** Take the honest `pointwise` records and plant a leak of your own, one that a careless author
# could make. The audit must find it.

# %% tags=["solution"]
# A popularity counted over everything, the click in question included.
mine = Path(out) / "mine"
alpaca.build(mind, alpaca.BuildOptions("dev", "pointwise", seed), mine)
assert not any(found.has_leak for found in audit(mine))
for path in (mine / f"processed/mind_dev_pointwise_{part}.json" for part in ("fit", "valid")):
    records = json.loads(path.read_text(encoding="utf-8"))
    rng = np.random.default_rng(seed)
    for record in records:
        clicks = rng.poisson(0.5) + (record["output"] == "Yes.") * rng.integers(1, 4)
        record["input"] += f"\nClicks so far: {clicks}"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
caught = [found for found in audit(mine) if found.has_leak]
print(caught[0].verdicts[0].text)
assert "Clicks so far" in caught[0].verdicts[0].text

# %% [markdown]
# **3 Build.** Another way to fool oneself: parts that share impressions. Put some of the tutorial's training
# records into its test file, and let the audit name that fault too.

# %% tags=["solution"]
train_file, test_file = (tutorial / f"processed/mind_{part}.json" for part in ("train", "test"))
records = json.loads(test_file.read_text(encoding="utf-8"))
records += json.loads(train_file.read_text(encoding="utf-8"))[:50]
test_file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
shared = [v for v in audit(tutorial)[0].verdicts if v.check == "shared impressions"]
print(shared[0].kind, shared[0].count, shared[0].text)
assert shared[0].kind == "LEAK"

# %% [markdown]
# ## What you made

# %%
made = sorted(Path(out).glob("*/processed/*_*.json")) + [run / "predictions.parquet" for run in runs]
display(
    pd.DataFrame(
        {"file": [path.as_posix() for path in made], "bytes": [path.stat().st_size for path in made]}
    )
)

# %% [markdown]
# Next: [06 Compare recommenders](06_compare_recommenders.ipynb); and `python scripts/audit.py` on a data set of your
# own.
