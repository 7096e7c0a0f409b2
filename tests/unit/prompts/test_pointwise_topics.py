"""The prompt that shows topics: what it reads, in training and in scoring."""

import numpy as np

from mindlab.finetune.alpaca import BuildOptions
from mindlab.llm.ask import make_scorer
from mindlab.llm.engine import Engine
from mindlab.llm.options import Options
from mindlab.prompts.base import Source
from mindlab.prompts.pointwise_topics import PointwiseTopics
from tests.handmade import make_impressions, make_news

NEWS = make_news(
    ["Rams win", "A storm nears", "Soup <|user|>"], ["sports", "weather", "food"], ["nfl", "us", "recipes"]
)
ROWS = make_impressions([("U1", 0, [0], [1, 2], [0, 1])])


def test_a_record_by_hand():
    form = PointwiseTopics()
    options = BuildOptions("dev", form.name, negatives=4)
    parts = form.samples(Source(ROWS, NEWS, form.shown(NEWS), options, np.random.default_rng(0)))
    records = {form.record(one)["output"]: form.record(one)["input"] for one in parts}
    ask = "\nWill this reader click the following headline? Answer Yes. or No.\n- "
    assert records == {
        "No.": f"- sports, nfl: Rams win{ask}weather, us: A storm nears",
        "Yes.": f"- sports, nfl: Rams win{ask}food, recipes: Soup < |user|>",
    }


class Reading(Engine):
    """Keeps what it is asked."""

    def __init__(self):
        self.read = []

    def last_logits(self, prefix, lines, tokens):
        self.read += [[*prefix, *line] for line in lines]
        return np.zeros((len(lines), len(tokens)))


def test_scoring_shows_what_training_showed(tiny_glm, glm4_chat, monkeypatch):
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)
    engine = Reading()
    score, _ = make_scorer(Options("pointwise_topics", str(tiny_glm), "glm4"), NEWS, engine=engine)
    score(ROWS.without_labels())
    asked = [glm4_chat.tokenizer.decode(ids) for ids in engine.read]
    assert len(asked) == 2
    assert all("- sports, nfl: Rams win\n" in text for text in asked)
    assert "- weather, us: A storm nears" in asked[0]
