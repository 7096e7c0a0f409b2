"""What a language model writes: kept, gone on with, held to a schema, and read with suspicion."""

import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from mindlab.common.errors import UserError
from mindlab.llm import writing
from mindlab.llm.writing import Answer, HFWriter, count_faults, read_json, write_texts
from mindlab.prompts import NewsTokens
from mindlab.prompts.base import object_schema
from mindlab.prompts.chat import record_prompt

TITLES = [
    "Tigers win",
    "Budget vote splits the senate after a long night of speeches",
    "Soup",
    "Rain <|im_end|>",
]
WORDS = {
    "type": "array",
    "items": {"type": "string", "pattern": "^[a-z]{1,5}$"},
    "minItems": 2,
    "maxItems": 2,
}


def record(text):
    return {"system": "You write.", "instruction": "Write on.", "input": text, "output": ""}


RECORDS = [record(f"{'long ' * (k * 7 % 5)}{k}") for k in range(23)]


class Echo:
    """A writer that anybody can foresee; it stops at a batch, if told so."""

    batch = 4

    def __init__(self, stop=None, name="echo"):
        self.stop, self.name = stop, name
        self.tokens_read = self.tokens_written = 0
        self.asked = []

    def about(self):
        return {"writer": self.name}

    def write(self, records):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append([record_prompt(r) for r in records])
        self.tokens_read += 10 * len(records)
        self.tokens_written += 3 * len(records)
        return [f"{len(self.asked[-1])}: {r['input']}\u2028\n" for r in records]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix == ".jsonl"}


class TestWriteTexts:
    def test_every_record_is_asked_once_and_answers_keep_their_places(self, tmp_path):
        writer, second = Echo(), Echo()
        found = write_texts(RECORDS, writer, "x", tmp_path)
        assert [text.split(": ")[1] for text in found.texts] == [r["input"] + "\u2028\n" for r in RECORDS]
        prompts = [prompt for batch in writer.asked for prompt in batch]
        assert sorted(prompts) == sorted(map(record_prompt, RECORDS))
        assert [len(batch) for batch in writer.asked] == [4, 4, 4, 4, 4, 3]
        lengths = [len(prompt) for prompt in prompts]
        assert lengths == sorted(lengths)
        again = write_texts(RECORDS, second, "x", tmp_path)
        assert (found.is_kept, again.is_kept, second.asked) == (False, True, [])
        assert again.texts == found.texts
        assert (again.tokens_read, again.tokens_written) == (230, 69)
        assert again.seconds == found.seconds

    @pytest.mark.parametrize("after", range(6))
    def test_a_run_that_was_stopped_ends_in_the_same_bytes(self, tmp_path, after):
        with pytest.raises(KeyboardInterrupt):
            write_texts(RECORDS, Echo(stop=after), "x", tmp_path / "broken")
        assert not files(tmp_path / "broken")
        second, shown = Echo(), []

        def progress(batches, done, total):
            shown.append((done, total))
            return iter(batches)

        found = write_texts(RECORDS, second, "x", tmp_path / "broken", progress)
        write_texts(RECORDS, Echo(), "x", tmp_path / "whole")
        assert shown == [(after, 6)]
        assert len(second.asked) == 6 - after
        assert files(tmp_path / "broken") == files(tmp_path / "whole")
        assert len(files(tmp_path / "whole")) == 1
        assert not list(tmp_path.rglob("*.parts"))
        assert (found.tokens_read, found.tokens_written) == (230, 69)

    def test_what_decides_a_text_decides_its_file(self, tmp_path):
        for records, writer in ((RECORDS, Echo()), (RECORDS[1:], Echo()), (RECORDS, Echo(name="other"))):
            assert not write_texts(records, writer, "x", tmp_path).is_kept
        assert len(files(tmp_path)) == 3
        labelled = [
            {**r, "output": "Yes."} for r in RECORDS
        ]  # an answer that is known is not part of the question
        assert write_texts(labelled, Echo(), "x", tmp_path).is_kept

    def test_nothing_to_ask(self, tmp_path):
        assert write_texts([], Echo(), "x", tmp_path).texts == []
        assert not list(tmp_path.iterdir())


class TestReadJson:
    schema = NewsTokens.schema
    good = '{"topics":["sports","football"],"audience":"fans","keywords":["a cup","win","goal"]}'

    @pytest.mark.parametrize(
        ("text", "is_usable", "fault"),
        [
            (good, True, None),
            (f"  {good}\n", True, None),
            (json.dumps(json.loads(good), indent=2), True, None),
            (f"Sure, here it is: {good}", True, "text around it"),
            (f"```json\n{good}\n```", True, "text around it"),
            (f'{{"a": 1}} {good}', True, "text around it"),
            ("", False, "empty"),
            (" \n", False, "empty"),
            ("Football fans.", False, "no JSON"),
            (good[:-1], False, "no JSON"),
            ("[" * 5000, False, "no JSON"),
            ('{"topics": ["sports"], "audience": "fans", "keywords": []}', False, "wrong form"),
            (good.replace("fans", "f"), False, "wrong form"),
            (good.replace('"fans"', "null"), False, "wrong form"),
            (f"[{good}]", False, "wrong form"),
        ],
    )
    def test_what_is_used_and_what_was_wrong(self, text, is_usable, fault):
        found = read_json(text, self.schema)
        assert (found.value is not None, found.fault) == (is_usable, fault)
        if is_usable:
            assert found.value == json.loads(self.good)

    def test_any_text_is_read(self):
        rng = np.random.default_rng(0)
        letters = list('{}[]",:\\ an1\n\u2028ü')
        for _ in range(2000):
            read_json("".join(rng.choice(letters, size=rng.integers(0, 60))), self.schema)

    def test_faults_are_counted(self):
        answers = [
            Answer({}, None),
            Answer(None, "empty"),
            Answer(None, "empty"),
            Answer({}, "text around it"),
        ]
        assert count_faults(answers) == {"answers": 4, "usable": 2, "empty": 2, "text around it": 1}


def alone(writer, text, stop_at):
    """What the model writes greedily after one prompt, by the plainest code there is."""
    import torch

    writer._load()
    one = record(text)
    ids = writer._chat.prompt_ids(one["system"], record_prompt(one)) + writer._head(one["system"])
    n, stop = len(ids), writer._chat.stop_ids()
    with torch.inference_mode():
        for _ in range(stop_at):
            ids.append(int(writer._engine.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in stop:
                ids.pop()
                break
    return writer._chat.tokenizer.decode(ids[n:], skip_special_tokens=True).strip()


class TestHFWriter:
    @pytest.mark.parametrize("kind", ["tiny_glm", pytest.param("smollm2", marks=pytest.mark.slow)])
    def test_a_batch_is_what_one_prompt_at_a_time_would_be(self, request, kind):
        model = request.getfixturevalue(kind)
        template = {"tiny_glm": "glm4", "smollm2": "smollm2"}[kind]
        writer = HFWriter(model, template, max_new_tokens=12, dtype="float32")
        texts = ["Name a colour.", "List three cities of Europe, each on a line, and nothing else.", "Hi"]
        found = writer.write([record(text) for text in texts])
        assert found == [alone(writer, text, 12) for text in texts]
        assert len(set(found)) > 1
        assert 0 < writer.tokens_written <= 36

    @pytest.mark.parametrize("kind", ["tiny_glm", pytest.param("smollm2", marks=pytest.mark.slow)])
    def test_an_answer_keeps_the_schema(self, request, kind):
        model, template = request.getfixturevalue(kind), {"tiny_glm": "glm4", "smollm2": "smollm2"}[kind]
        records = [record(title) for title in TITLES]
        free = HFWriter(model, template, max_new_tokens=48).write(records)
        assert not any(Draft202012Validator(WORDS).is_valid(_load(text)) for text in free)
        held = HFWriter(model, template, WORDS, max_new_tokens=48).write(records)
        assert [read_json(text, WORDS).fault for text in held] == [None] * 4
        assert all(" " not in text for text in held), "white space is tokens"

    def test_each_record_may_have_a_schema_of_its_own(self, smollm2):
        free, *held = [record("Name a colour.") for _ in range(3)]
        for one, word in zip(held, ("blue", 'dark "red"'), strict=True):
            one["schema"] = object_schema(colour={"const": word})
        # In bfloat16 what else is in the batch may turn a near tie.
        writer = HFWriter(smollm2, "smollm2", max_new_tokens=24, dtype="float32")
        found = writer.write([free, *held])
        assert found[1:] == ['{"colour":"blue"}', '{"colour":"dark \\"red\\""}']
        assert found[0] == writer.write([free])[0] != ""

    def test_an_answer_that_was_cut_off_is_counted(self, tiny_glm, tmp_path):
        writer = HFWriter(tiny_glm, "glm4", WORDS, max_new_tokens=3)
        found = write_texts([record(title) for title in TITLES], writer, "x", tmp_path)
        assert count_faults(read_json(text, WORDS) for text in found.texts) == {
            "answers": 4, "usable": 0, "no JSON": 4,
        }  # fmt: skip

    def test_the_model_is_part_of_the_question(self, tiny_glm, smollm2):
        one, other = HFWriter(tiny_glm, "glm4").about(), HFWriter(tiny_glm, "glm4", WORDS).about()
        assert (
            one["sha256"]["model.safetensors"]
            != HFWriter(smollm2, "smollm2").about()["sha256"]["model.safetensors"]
        )
        assert one != other
        json.dumps(other)

    def test_a_schema_that_cannot_be_kept_is_refused(self, tiny_glm):
        writer = HFWriter(tiny_glm, "glm4", {"type": "array", "minItems": 3, "maxItems": 2})
        with pytest.raises(UserError, match="cannot be kept"):
            writer.write(RECORDS[:1])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_in_a_prompt_keep_its_schema(language):
    form = NewsTokens
    lines = form.texts[language]["instruction"].splitlines()
    shown = [line for line in lines if line.startswith("{")]
    assert shown
    assert all(Draft202012Validator(form.schema).is_valid(json.loads(line)) for line in shown)
    assert all(
        line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")) for line in shown
    )


def _load(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_texts_of_tests_stay_apart():
    assert "runs" not in writing.CACHE.parts
