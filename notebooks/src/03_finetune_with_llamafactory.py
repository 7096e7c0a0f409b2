# %% [markdown]
# # 03 Fine-tune with LLaMA-Factory
#
# - **Reads**: `models/smollm2-135m`, the dataset `mind_dev_next_click_train` that notebook 02 wrote, a YAML of
#   `configs/`
# - **Writes**: `saves/notebook_03`: the adapter, its checkpoints and its log
# - **Time on the sample**: about eight minutes. **Hardware**: two CPU cores, 8 GB of memory
# - **Previous**: [02 Build the dataset](02_build_the_dataset.ipynb). **Next**: [04 Predict and
#   score](04_predict_and_score.ipynb)
#
# You will be able to
# 1. say which numbers LoRA trains, and how many they are;
# 2. read a training YAML of LLaMA-Factory, and change it from the command line;
# 3. start a training, watch it, stop it, go on with it, and say what a falling loss does not prove.

# %%
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from IPython.display import Image, display
from llamafactory.chat import ChatModel
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.finetune import factory
from mindlab.llm.hf import HFEngine
from mindlab.llm.score import answer_frame
from mindlab.prompts import NextClick, listed, neutral_titles
from mindlab.prompts.chat import ChatTemplate, quiet_factory, record_prompt
from mindlab.runs.notebook import LossCurve, setup

# %% tags=["parameters"]
data = "data/sample"
model = "models/smollm2-135m"
config = "configs/train/smollm2_135m_lora_sft.yaml"
max_steps = 30
save_steps = 10
stop_at = 12
out = "saves/notebook_03"
seed = 42

# %%
setup(data, seed)

# %% [markdown]
# ## 1 What does LoRA train?
#
# A linear layer multiplies by a matrix. **LoRA** leaves the matrix as it is and adds the product of two thin
# ones, of `lora_rank` columns and rows; only these are trained, and one of them starts at zero, so that at
# the start nothing has changed. What is saved is the two thin ones: the **adapter**. **QLoRA** is the same
# with the frozen matrices held in few bits, so that a large model fits on a small GPU.
#
# How many numbers is that?

# %%
settings = factory.load(config)
print(f"rank {settings['lora_rank']}, on {settings['lora_target']} linear layers")
base = AutoModelForCausalLM.from_pretrained(model)
lora = LoraConfig(r=settings["lora_rank"], target_modules="all-linear")
trainable, total = get_peft_model(base, lora).get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} numbers are trained: {trainable / total:.1%}")
assert trainable < total / 10

# %% [markdown]
# ## 2 What does the YAML say?
#
# LLaMA-Factory takes a YAML and trains. Every setting of the run is in it. Beside the one that is used here:
# the one for GLM-4-9B-Chat, which is what you run on a GPU. Lines that are equal are left out.

# %%
large = factory.load("configs/train/glm4_9b_chat_lora_sft.yaml")
both = pd.DataFrame({"small model": settings, "GLM-4-9B-Chat": large})
display(both[both["small model"].astype(str) != both["GLM-4-9B-Chat"].astype(str)].fillna(""))

# %% [markdown]
# `cutoff_len` is the longest record, `packing` puts several into one row, `template` is the chat format,
# which must be named, or the model is never taught to stop. A mistyped key or dataset should not cost you
# a night; `validate` asks LLaMA-Factory's own parser, and checks what that lets through.

# %%
factory.validate(config)
try:
    factory.validate(config, {"template": "smollm3"})
except UserError as error:
    print(error)
assert settings["template"] == "smollm2"

# %% [markdown]
# ## 3 What does the model learn from?
#
# A record becomes one row of token ids. The model is asked to predict every next token, and the **loss**
# counts only those of the answer: the question is given, not learnt.

# %%
chat = ChatTemplate.load(model, settings["template"])
name = settings["dataset"]
path = Path("data") / factory.read_dataset_info(settings, Path())[1][name]["file_name"]
records = pd.read_json(path).to_dict("records")
record = min((r for r in records if r["output"].count("\n") == 2), key=lambda r: len(r["output"]))
prompt, reply = chat.encode(record["system"], record_prompt(record), record["output"])
print("given: ", repr(chat.tokenizer.decode(prompt)))
print("learnt:", repr(chat.tokenizer.decode(reply)))

# %%
assert record["output"] in chat.tokenizer.decode(reply)
assert not set(reply) & {-100}
assert chat.stop_ids()[0] in reply, "the end of the answer is not learnt"

# %% [markdown]
# ## 4 Start, stop, go on
#
# The next cell does what this does in a terminal, and draws what `trainer_log.jsonl` says while it is
# written:
#
# ```
# llamafactory-cli train configs/train/smollm2_135m_lora_sft.yaml max_steps=30 output_dir=saves/notebook_03
# ```
#
# A smaller run is an override behind the file name, never a second file. In the middle, `LossCurve` does what
# the stop button of the notebook does. (Run a second time, the cell has nothing to do.)

# %%
overrides = {"max_steps": max_steps, "save_steps": save_steps, "output_dir": out}
try:
    factory.train(config, overrides, print, watch=LossCurve(stop_at))
except KeyboardInterrupt:
    print("stopped")

# %% [markdown]
# Has it stopped, really? A trainer that runs on in the background would make everything slow, and nobody would
# know why. And is something left to go on with?

# %%
commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
running = [command for command in commands if "llamafactory" in command and f"output_dir={out}" in command]
print(len(running), "trainers running")
print(sorted(path.name for path in Path(out).glob("checkpoint-*")))

# %% [markdown]
# The same call again goes on from the last checkpoint.

# %%
factory.train(config, overrides, print, watch=LossCurve())
losses = pd.DataFrame(factory.read_loss(out)).set_index("current_steps")["loss"]

# %%
assert not running, "a trainer was left running"
assert losses.index.tolist() == list(range(1, max_steps + 1)), "steps are missing or doubled"

# %% [markdown]
# ## 5 What came out?
#
# LLaMA-Factory leaves the adapter, the settings to load it, and its own picture of the loss.

# %%
files = ["adapter_model.safetensors", "adapter_config.json", "trainer_log.jsonl", "training_loss.png"]
display(pd.DataFrame({"bytes": {file: (Path(out) / file).stat().st_size for file in files}}))
display(Image(f"{out}/training_loss.png", width=480))

# %% [markdown]
# The training loss jumps from step to step, because every step has other records. A fairer question: how
# surprised is each model by what some users of `dev` clicked, a day after the last one it was trained on?
# In nats a token, the mean over users.

# %%
mind = read_mind(data)
titles = neutral_titles(mind.news)
dev = mind.splits["dev"]
rows = np.unique(dev.users, return_index=True)[1][:40]
clicked = [dev.candidates(i)[dev.candidate_labels(i) == 1] for i in rows]
texts = ["\n".join([listed(titles[one].tolist()), ""]) for one in clicked]
lines = [chat.tokenizer.encode(text, add_special_tokens=False) for text in texts]
form = NextClick()
system, user = form.text["system"], form.text["instruction"]
question = chat.prompt_ids(system, user) + answer_frame(chat, system, user)[0]

# %%
engines = {"base": HFEngine(model), "tuned": HFEngine(model, out)}
surprise = {
    name: -engine.line_log_probs(question, lines) / [len(line) for line in lines]
    for name, engine in engines.items()
}
print({name: round(float(values.mean()), 2) for name, values in surprise.items()})
better = (surprise["tuned"] < surprise["base"]).mean()
print(f"the tuned model is less surprised in {better:.0%} of {len(rows)} cases")

# %% [markdown]
# It has learnt something: how the headlines of this site are written, and what they are about. **That is not yet
# knowing who clicks what.** A model that knows the style and no user has a low loss and ranks no better than
# before. Whether it ranks better is measured in [04](04_predict_and_score.ipynb), beside methods that cost
# nothing; how hard that was to reach is told, failures included, in [docs/recipe.md](../docs/recipe.md).

# %%
assert surprise["tuned"].mean() < surprise["base"].mean(), "training made it worse at its own task"
assert better > 0.5

# %% [markdown]
# ## 6 Talk to it
#
# The tutorial has two commands, one to train and one to chat:
#
# ```
# llamafactory-cli train configs/new_train.yaml
# llamafactory-cli chat configs/news_inference.yaml
# ```
#
# This is the second, in Python, with the small model in place of GLM-4, before and after.

# %%
inference = factory.load("configs/news_inference.yaml")
small = {
    "model_name_or_path": model,
    "template": settings["template"],
    "infer_dtype": "float32",
    "max_new_tokens": 60,
}
replies = {}
for name, adapter in (("base", None), ("tuned", out)):
    with quiet_factory():
        talker = ChatModel({**inference, **small, "adapter_name_or_path": adapter})
        question_asked = [{"role": "user", "content": user}]
        replies[name] = talker.chat(question_asked, system=system)[0].response_text
    print(f"--- {name}", replies[name], sep="\n")

# %%
assert replies["tuned"] != replies["base"]
wrote_a_list = replies["tuned"].lstrip().startswith("- ")
assert wrote_a_list or max_steps < 30, "the tuned model does not write a list"

# %% [markdown]
# ## Exercises
#
# **1 Predict.** What happens to the number of trained weights if `lora_rank` is doubled? And to the size of the
# adapter on disk? Say it, then compute the first.

# %% tags=["solution"]
# Both double: each of the two thin matrices gets twice as many columns, or rows.
again = AutoModelForCausalLM.from_pretrained(model)
doubled = LoraConfig(r=2 * settings["lora_rank"], target_modules="all-linear")
twice, _ = get_peft_model(again, doubled).get_nb_trainable_parameters()
print(f"{twice:,}")
assert twice == 2 * trainable

# %% [markdown]
# **2 Change.** Which single override trains GLM-4-9B-0414 instead of GLM-4-9B-Chat with the same file? Let
# `validate` confirm that it is accepted.

# %% tags=["solution"]
changed = factory.validate(
    "configs/train/glm4_9b_chat_lora_sft.yaml", {"model_name_or_path": "zai-org/GLM-4-9B-0414"}
)
assert changed["template"] == "glm4", "both speak the same chat format"

# %% [markdown]
# **3 Build.** From the log alone: how many seconds does a step take here, and how long would the steps of
# the YAML take? (The column `elapsed_time` counts from the start of a run, so it begins anew after a stop.)

# %% tags=["solution"]
log = pd.DataFrame(factory.read_loss(out))
elapsed = pd.to_timedelta(log["elapsed_time"]).dt.total_seconds().diff()
a_step = elapsed[elapsed > 0].median()
print(
    f"{a_step:.1f} s a step; {settings['max_steps']} steps: {settings['max_steps'] * a_step / 60:.0f} minutes"
)
assert a_step > 0

# %% [markdown]
# ## What you made

# %%
display(pd.DataFrame({"steps": [len(losses)], "last loss": [losses.iloc[-1].round(2)]}, index=[out]))

# %% [markdown]
# Next: [04 Predict and score](04_predict_and_score.ipynb), with this adapter in `dev_adapter`.
