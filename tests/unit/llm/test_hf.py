"""The engine against a plain call of the model, one prompt at a time; the scorers' ids against LLaMA-Factory's."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindlab.common.errors import UserError
from mindlab.llm.hf import HFEngine, PackedLinear, Pass, _attend, fitting_tokens, has_bfloat16
from mindlab.llm.score import ListwiseScorer, NextClickScorer, NextTopicScorer, YesNoScorer
from mindlab.prompts import (
    ListParts,
    Listwise,
    NextClick,
    NextClickParts,
    NextTopic,
    NextTopicParts,
    Pointwise,
    PointwiseParts,
)
from mindlab.prompts.chat import ChatTemplate, record_prompt
from mindlab.prompts.records import Budget
from tests.factory_rows import factory_rows

TITLES = [
    *("Rams beat the Browns 20-13", 'The "20 best" pies', "What's next for the S&P 500?", "北京的天气 2022"),
    *("A storm nears the coast", "A storm nears the capital", "A storm nears the capital again"),
    *("'It was never about money': The mayor quits", "12,345.67 votes — so what?", "X", "1"),
    *("Why do cats purr?", '"Never again," she says', "Top 10: the year in pictures!", "新闻：最新消息。"),
]
TOPICS = [
    "sports, football_nfl",
    "food, recipes",
    "finance, markets-500",
    "天气, 北京",
    "sports, football",
] * 3
HISTORY, CANDIDATES = [0, 1, 2, 3, 11], [4, 5, 7, 6, 8, 9, 10, 12, 13, 14, 2, 0]


@pytest.fixture(scope="session")
def models(tiny_glm, smollm2, tmp_path_factory):
    """Folders by name; the random models have weights so large that a wrong mask shows in every score."""
    from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

    def sharp(name, config_class, model_class):
        folder = tmp_path_factory.mktemp(name)
        for path in tiny_glm.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                shutil.copy(path, folder)
        settings = GlmConfig.from_pretrained(tiny_glm).to_dict()
        settings.pop("model_type")
        config = config_class(**{**settings, "initializer_range": 0.3, "dtype": "float32"})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model_class(config).save_pretrained(folder)
        return folder

    return {
        "glm": sharp("glm", GlmConfig, GlmForCausalLM),
        "glm4": sharp("glm4", Glm4Config, Glm4ForCausalLM),
        "smollm2": smollm2,
    }


@pytest.fixture(scope="session")
def engines(models):
    """Engines with so small a budget that most calls take several chunks."""
    return {name: HFEngine(folder, token_budget=48) for name, folder in models.items()}


NAMES = ["glm", "glm4", pytest.param("smollm2", marks=pytest.mark.model)]


@pytest.fixture(params=NAMES)
def both(request, engines, glm4_chat) -> tuple[HFEngine, ChatTemplate]:
    """An engine and its template."""
    is_glm = request.param != "smollm2"
    return engines[request.param], glm4_chat if is_glm else request.getfixturevalue("smollm2_chat")


@pytest.fixture(params=["glm4", pytest.param("smollm2", marks=pytest.mark.model)])
def chat(request) -> ChatTemplate:
    return request.getfixturevalue(f"{request.param}_chat")


@torch.inference_mode()
def plain_logits(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].float()


def plain_log_prob(model, prefix: list[int], line: list[int]) -> float:
    log_probs = plain_logits(model, [*prefix, *line]).log_softmax(1)
    return sum(float(log_probs[len(prefix) + i - 1, token]) for i, token in enumerate(line))


def next_click_record(history: list[int], candidate: int) -> dict[str, str]:
    return NextClick().record(NextClickParts([TITLES[n] for n in (*history, candidate)]))


def pointwise_record(history: list[int], candidate: int, is_click: bool = True) -> dict[str, str]:
    return Pointwise().record(PointwiseParts([TITLES[n] for n in history], TITLES[candidate], is_click))


def make_scorer(engine, chat, cutoff_len=2000, history_length=8, per_token=False) -> NextClickScorer:
    return NextClickScorer(engine, chat, TITLES, NextClick(), history_length, cutoff_len, per_token)


def make_topic_scorer(engine, chat, cutoff_len=2000, history_length=8, per_token=False) -> NextTopicScorer:
    return NextTopicScorer(engine, chat, TITLES, TOPICS, NextTopic(), history_length, cutoff_len, per_token)


def next_topic_record(history: list[int], topics: list[str]) -> dict[str, str]:
    return NextTopic().record(NextTopicParts([TITLES[n] for n in history], topics))


# The engine


def test_line_log_probs_equal_a_plain_call(engines):
    rng = np.random.default_rng(0)
    for name in ("glm", "glm4"):
        model = engines[name].model
        prefix = rng.integers(300, size=30).tolist()
        lines = [rng.integers(300, size=size).tolist() for size in (1, 7, 1, 60, 3, 12, 1, 9, 9, 30, 1)]
        lines += [[*lines[1], 5], lines[1]]  # a common beginning, and the same line twice
        expected = [plain_log_prob(model, prefix, line) for line in lines]
        assert np.std(expected) > 10
        for budget in (1, 20, 31, 64, 10_000):
            engines[name]._token_budget = budget
            np.testing.assert_allclose(engines[name].line_log_probs(prefix, lines), expected, atol=1e-3)
        np.testing.assert_allclose(engines[name].line_log_probs(prefix[:1], lines[:3]), [
            plain_log_prob(model, prefix[:1], line) for line in lines[:3]
        ], atol=1e-3)  # fmt: skip
        engines[name]._token_budget = 48


@pytest.fixture
def passes(engines, monkeypatch):
    """The number of tokens of every pass through the tiny GLM, which has forgotten all prefixes."""
    sizes = []
    decoder = engines["glm"].model.get_decoder()
    forward = decoder.forward

    def counted(input_ids, **rest):
        sizes.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(decoder, "forward", counted)
    engines["glm"].forget()
    return sizes


def test_many_candidates_are_read_in_bounded_chunks_and_the_prefix_once(engines, passes):
    engine = engines["glm"]
    rng = np.random.default_rng(1)
    prefix = rng.integers(300, size=40).tolist()
    lines = [[i, *rng.integers(300, size=5).tolist()] for i in range(120)]  # no two begin alike
    before = engine.tokens_read
    engine.line_log_probs(prefix, lines)
    # Eight lines of 6 fit the budget of 48; the last token of a line predicts nothing that is asked.
    assert passes == [40] + [8 * 5] * 15
    assert engine.tokens_read - before == sum(passes)
    engine.last_logits(prefix, lines, (7, 3))
    assert passes[16:] == [8 * 6] * 15


def test_what_lines_share_is_read_once(engines, passes):
    engine = engines["glm"]
    prefix, lines = [9, 8, 7], [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4], [6], [1, 2]]
    found = engine.line_log_probs(prefix, lines)
    assert passes == [3, 3]  # 1, 2, 3 lead to what is asked
    logits = engine.last_logits(prefix, lines, (7, 3))
    assert passes[2:] == [6]  # 1, 2, 3, 4, 5, 6
    for i, line in enumerate(lines):
        assert found[i] == pytest.approx(plain_log_prob(engine.model, prefix, line), abs=1e-3)
        expected = plain_logits(engine.model, prefix + line)[-1][[7, 3]]
        np.testing.assert_allclose(logits[i], expected, atol=1e-3)
    del passes[:]
    one = engine.line_log_probs(prefix, [[6], [2]])
    assert passes == []  # the prefix alone tells
    assert one[1] == pytest.approx(plain_log_prob(engine.model, prefix, [2]), abs=1e-3)


def test_prefixes_share_their_beginning_whatever_came_before(engines, passes, monkeypatch):
    engine = engines["glm"]
    rng = np.random.default_rng(6)
    system, lines = rng.integers(300, size=10).tolist(), rng.integers(300, size=(4, 5)).tolist()
    first, second, third = ([*system, i, *rng.integers(300, size=14).tolist()] for i in range(3))
    expected = {
        tuple(p): [plain_log_prob(engine.model, p, line) for line in lines]
        for p in (system, first, second, first[:18], [*first, 7], system[1:], third)
    }
    del passes[:]

    def read(prefix):
        """Return the tokens read of the prefix; the lines' 16 go in one pass."""
        del passes[:]
        np.testing.assert_allclose(engine.line_log_probs(prefix, lines), expected[tuple(prefix)], atol=1e-3)
        assert passes[-1] == len(lines) * 4
        return passes[:-1]

    assert read(system) == [10]
    assert read(first) == [15]
    assert read(first) == []  # the same user again
    assert read(second) == [15]  # another: the system prompt is known
    assert read(first[:18]) == [1]  # all its keys are known, the state at its end is not
    assert read([*first, 7]) == [1]
    assert read(system[1:]) == [9]  # no common beginning
    assert read(second) == []
    # Of 50 tokens kept the least lately used go first; what a prefix takes from another is used too.
    monkeypatch.setattr("mindlab.llm.hf.KEPT_TOKENS", 50)
    assert read(third) == [15]
    assert read(second) == []
    assert read(first) == [15]
    monkeypatch.setattr("mindlab.llm.hf.KEPT_TOKENS", 5)
    assert read(third) == [15]  # longer than all that may be kept, and yet read and kept alone
    assert read(third) == []
    assert read(first) == [15]


def test_last_logits_equal_a_plain_call(engines):
    rng = np.random.default_rng(2)
    engine = engines["glm4"]
    prefix, lines = (
        rng.integers(300, size=25).tolist(),
        [rng.integers(300, size=n).tolist() for n in (1, 9, 40, 1, 5)],
    )
    expected = [plain_logits(engine.model, [*prefix, *line])[-1][[7, 3, 200]].tolist() for line in lines]
    np.testing.assert_allclose(engine.last_logits(prefix, lines, (7, 3, 200)), expected, atol=1e-3)


def test_an_answer_is_greedy_and_stops_at_the_stop_id(engines):
    engine = engines["glm"]
    for start in range(300):
        prompt = [start, 17, 4, 99]
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(plain_logits(engine.model, ids)[-1].argmax()))
        made = ids[4:]
        if len(set(made)) == 6:
            break
    assert len(set(made)) == 6
    unused = next(i for i in range(300) if i not in made)
    for stop, expected in (([unused], made), ([unused, made[3]], made[:3]), ([made[0]], [])):
        assert engine.answer(prompt, [], (7, 3), stop, max_new_tokens=6)[1] == expected

    # The logits come after the head, whether the model writes the head by itself, another one, or stops.
    for head in ([], made[:2], [made[0] + 1], [made[0], unused]):
        logits, ids = engine.answer(prompt, head, (7, 3), [unused])
        expected = plain_logits(engine.model, [*prompt, *head])[-1][[7, 3]]
        np.testing.assert_allclose(logits, expected, atol=1e-3)
        assert ids[:6] == made
    logits, ids = engine.answer(prompt, made[:2], (7, 3), [made[0]])
    np.testing.assert_allclose(
        logits, plain_logits(engine.model, [*prompt, *made[:2]])[-1][[7, 3]], atol=1e-3
    )
    assert ids == []


# The scorers against one plain call per candidate


@pytest.mark.parametrize("name", ["glm", "glm4", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_texts_side_by_side_are_what_each_would_be_alone(engines, name):
    engine, rng = engines[name], np.random.default_rng(5)
    shared = rng.integers(5, 300, size=20).tolist()
    prompts = [[*shared, *rng.integers(5, 300, size=n).tolist()] for n in (1, 12, 3, 7, 30, 2, 2, 5)]

    def alone(prompt, stop):
        ids = list(prompt)
        while len(ids) < len(prompt) + 9:
            ids.append(int(plain_logits(engine.model, ids)[-1].argmax()))
            if ids[-1] in stop:
                return ids[len(prompt) : -1]
        return ids[len(prompt) :]

    free = [alone(prompt, []) for prompt in prompts]
    # Texts end one by one, so that the batch gets smaller on the way.
    stop = sorted({free[0][0], free[1][2], free[2][4], free[3][4], free[4][6]})
    expected = [alone(prompt, stop) for prompt in prompts]
    assert len({len(text) for text in expected}) > 2
    engine.forget()
    read = [engine.tokens_read]
    for order in (1, -1):
        assert engine.write(prompts[::order], 20, stop, 9) == expected[::order]
        read.append(engine.tokens_read)
    first, second = np.diff(read)
    assert first - second == 20, "the beginning is read once"


def test_what_a_text_may_go_on_with(engines):
    engine = engines["glm"]
    prompts = [[7, 8, 9, k] for k in range(5)]
    seen = []

    def allowed(rows, texts):
        seen.append((list(rows), [list(text) for text in texts]))
        mask = np.zeros((len(rows), engine.model.config.vocab_size), bool)
        for k, (row, text) in enumerate(zip(rows, texts, strict=True)):
            mask[k, 20 + row if len(text) <= row else 3] = True
        return mask

    assert engine.write(prompts, 3, [3], 4, allowed) == [[20 + k] * min(k + 1, 4) for k in range(5)]
    assert seen[0] == ([0, 1, 2, 3, 4], [[]] * 5)
    assert seen[-1][0] == [2, 3, 4], "what is done is not asked about for long"


def test_next_click_scores_equal_one_plain_call_per_candidate(both):
    engine, chat = both
    candidates = CANDIDATES if chat.name == "glm4" else CANDIDATES[:3]
    n_end = 1 if chat.name == "glm4" else 2  # <|endoftext|>; <|im_end|> and a newline

    def log_prob(history, candidate):
        """Score the last line of the whole record, its end of turn cut off."""
        ((ids, _),) = factory_rows(chat, [next_click_record(history, candidate)])
        line = chat.tokenizer.encode(f"- {TITLES[candidate]}", add_special_tokens=False)
        ids = ids[: len(ids) - n_end]
        assert ids[-len(line) :] == line
        return plain_log_prob(engine.model, ids[: -len(line)], line)

    expected = np.array([log_prob(HISTORY, n) - log_prob([], n) for n in candidates])
    scorer = make_scorer(engine, chat)
    np.testing.assert_allclose(scorer.score(HISTORY, candidates), expected, atol=1e-3)
    # Again, from the kept no-history terms, and in another order.
    np.testing.assert_allclose(scorer.score(HISTORY, candidates[::-1]), expected[::-1], atol=1e-3)
    mean = make_scorer(engine, chat, per_token=True).score(HISTORY, candidates)
    np.testing.assert_allclose(mean, expected / [len(scorer.line(n)) for n in candidates], atol=1e-3)
    assert np.std(expected) > 0.1


def test_next_topic_scores_equal_one_plain_call_per_topic(both):
    engine, chat = both
    candidates = CANDIDATES[:5] if chat.name == "glm4" else CANDIDATES[:3]

    def log_prob(history, candidate):
        """Score the first of two lines of a record, as training has them."""
        ((ids, labels),) = factory_rows(chat, [next_topic_record(history, [TOPICS[candidate], "x"])])
        line = chat.tokenizer.encode(f"{TOPICS[candidate]}\n", add_special_tokens=False)
        begin = labels.count(-100) + (chat.name == "glm4")  # its answers begin with a newline
        assert ids[begin : begin + len(line)] == line
        return plain_log_prob(engine.model, ids[:begin], line), len(line)

    with_history, lengths = zip(*(log_prob(HISTORY, n) for n in candidates), strict=True)
    expected = np.array(with_history) - [log_prob([], n)[0] for n in candidates]
    scorer = make_topic_scorer(engine, chat)
    np.testing.assert_allclose(scorer.score(HISTORY, candidates), expected, atol=1e-3)
    # Again, from the kept no-history terms, and in another order, with a candidate of the same topic.
    twice = [*candidates[::-1], candidates[0] + 5]
    found = scorer.score(HISTORY, twice)
    np.testing.assert_allclose(found, [*expected[::-1], expected[0]], atol=1e-3)
    assert found[-1] == found[-2]
    mean = make_topic_scorer(engine, chat, per_token=True).score(HISTORY, candidates)
    np.testing.assert_allclose(mean, expected / lengths, atol=1e-3)
    assert np.std(expected) > 0.1


def test_yes_no_scores_equal_one_plain_call_per_candidate(both):
    engine, chat = both
    scorer = YesNoScorer(engine, chat)
    yes, no = scorer.answers
    candidates = CANDIDATES if chat.name == "glm4" else CANDIDATES[:3]
    expected = []
    for n in candidates:
        (ids, labels), (others, _) = factory_rows(
            chat, [pointwise_record(HISTORY, n), pointwise_record(HISTORY, n, is_click=False)]
        )
        place = next(i for i, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b)
        assert (ids[place], others[place], labels[place]) == (yes, no, yes)
        logits = plain_logits(engine.model, ids[:place])[-1].log_softmax(0)
        expected.append(float(logits[yes] - logits[no]))
    found = scorer.score([pointwise_record(HISTORY, n) for n in candidates])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(
        scorer.score([pointwise_record(HISTORY, candidates[0])]), expected[:1], atol=1e-3
    )
    np.testing.assert_allclose(
        scorer.score([pointwise_record(HISTORY, candidates[0])] * 2), expected[:1] * 2, atol=1e-3
    )


def test_the_answers_are_yes_and_no(chat):
    scorer = YesNoScorer(None, chat)
    assert [chat.tokenizer.decode([token]) for token in scorer.answers] == (
        ["Yes", "No"] if chat.name == "smollm2" else [chat.tokenizer.decode([t]) for t in scorer.answers]
    )
    for answer, token in zip(("Yes.", "No."), scorer.answers, strict=True):
        record = {**pointwise_record(HISTORY, 4), "output": answer}
        ((ids, _),) = factory_rows(chat, [record])
        asked = scorer.ids(record)
        assert ids[: len(asked) + 1] == [*asked, token]


# Ids


def test_next_click_ids_are_llamafactorys_for_every_title(chat):
    scorer = make_scorer(None, chat)
    end = [chat.tokenizer.eos_token_id] if chat.name == "glm4" else chat.tokenizer.encode("<|im_end|>\n")
    records, ours = [], []
    for n in range(len(TITLES)):
        for history in (HISTORY, [n], list(range(8)), []):
            records.append(next_click_record(history, n))
            ours.append(scorer.prefix(history) + scorer.line(n) + end)
            prompt = chat.prompt_ids(records[-1]["system"], record_prompt(records[-1]))
            answer = chat.answer_ids(records[-1]["system"], record_prompt(records[-1]), records[-1]["output"])
            assert ours[-1] == prompt + answer
    assert [ids for ids, _ in factory_rows(chat, records)] == ours


def test_next_topic_ids_are_llamafactorys_for_every_topic(chat):
    scorer = make_topic_scorer(None, chat)
    histories = (HISTORY, [3], list(range(8)), [])
    asked = [(history, topic) for history in histories for topic in sorted(set(TOPICS))]
    records = [next_topic_record(history, [topic, "news, newsus"]) for history, topic in asked]
    for (history, topic), (ids, labels) in zip(asked, factory_rows(chat, records), strict=True):
        ours = scorer.prefix(history) + chat.tokenizer.encode(f"{topic}\n", add_special_tokens=False)
        assert ids[: len(ours)] == ours
        trained = chat.tokenizer.decode([i for i in labels if i != -100])
        assert trained.strip("\n").startswith(f"{topic}\nnews, newsus")


def test_pointwise_ids_are_llamafactorys_for_every_title(chat):
    scorer = YesNoScorer(None, chat)
    records = [pointwise_record(history, n) for n in range(len(TITLES)) for history in (HISTORY, [n], [])]
    for record, (ids, labels) in zip(records, factory_rows(chat, records), strict=True):
        asked = scorer.ids(record)
        assert ids[: len(asked)] == asked
        assert labels[len(asked)] == ids[len(asked)] == scorer.answers[0]


# History


def test_an_empty_history_gives_equal_scores(engines, glm4_chat):
    for make in (make_scorer, make_topic_scorer):
        scorer = make(engines["glm"], glm4_chat)
        assert scorer.score([], CANDIDATES).tolist() == [0.0] * len(CANDIDATES)
        assert len(set(scorer.score(HISTORY, CANDIDATES).tolist())) > 1


def test_next_topic_drops_the_oldest_titles_only(chat):
    longest = max(len(chat.tokenizer.encode(f"{topic}\n", add_special_tokens=False)) for topic in TOPICS)
    whole = make_topic_scorer(None, chat)
    n_end = 1 if chat.name == "glm4" else 2
    for dropped in range(len(HISTORY) + 1):
        kept = HISTORY[dropped:]
        just = len(whole.prefix(kept)) + longest + n_end
        assert make_topic_scorer(None, chat, cutoff_len=just).prefix(HISTORY) == whole.prefix(kept)
    with pytest.raises(UserError, match="does not hold the question"):
        make_topic_scorer(None, chat, cutoff_len=just - 1)
    assert make_topic_scorer(None, chat, history_length=2).prefix(HISTORY) == whole.prefix(HISTORY[-2:])


def test_cutoff_len_drops_the_oldest_titles_only_and_no_more_than_needed(chat):
    history, line = [3, 7, 8, 12, 0, 1], 30
    whole = make_scorer(None, chat, cutoff_len=10**6)
    n_end = 1 if chat.name == "glm4" else 2
    seen = set()
    for cutoff_len in range(60, len(whole.prefix(history)) + line + n_end + 3, 3):
        try:
            prefix = make_scorer(None, chat, cutoff_len).prefix(history, line)
        except UserError:
            continue  # not even the question
        fitting = [k for k in range(7) if len(whole.prefix(history[k:])) + line + n_end <= cutoff_len]
        dropped = min(fitting, default=6)
        assert prefix == whole.prefix(history[dropped:])
        seen.add(dropped)
    assert seen == set(range(7))


def test_history_length_keeps_the_latest_titles(chat):
    assert make_scorer(None, chat, history_length=2).prefix(HISTORY) == make_scorer(None, chat).prefix(
        HISTORY[-2:]
    )


def test_a_cutoff_len_below_the_question_is_the_users_to_mend(glm4_chat):
    with pytest.raises(UserError, match="cutoff_len 10 does not hold the question"):
        make_scorer(None, glm4_chat, cutoff_len=10)


# Loading


def test_a_merged_adapter_scores_as_the_unmerged_one(models, engines, glm4_chat, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models["glm"], dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, target_modules=["q_proj", "v_proj", "o_proj"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        unmerged = get_peft_model(base, config).eval()
    unmerged.save_pretrained(tmp_path)
    merged = HFEngine(models["glm"], tmp_path, token_budget=48)
    rng = np.random.default_rng(5)
    prefix, lines = rng.integers(300, size=20).tolist(), rng.integers(300, size=(9, 8)).tolist()
    found = merged.line_log_probs(prefix, lines)
    np.testing.assert_allclose(found, [plain_log_prob(unmerged, prefix, line) for line in lines], atol=1e-3)
    assert np.abs(found - engines["glm"].line_log_probs(prefix, lines)).min() > 0.01
    assert merged.n_parameters == engines["glm"].n_parameters


needs_bfloat16 = pytest.mark.skipif(not has_bfloat16("cpu"), reason="this processor has no bfloat16 products")


@pytest.mark.parametrize(
    ("dtype", "most"),
    [pytest.param(torch.bfloat16, 0.02, marks=needs_bfloat16), (torch.int8, 0.1)],
)
def test_shorter_weights_change_a_score_little(models, engines, dtype, most):
    rng = np.random.default_rng(7)
    prefix, lines = rng.integers(300, size=20).tolist(), rng.integers(300, size=(9, 8)).tolist()
    expected = engines["glm4"].line_log_probs(prefix, lines)
    short = HFEngine(models["glm4"], dtype=dtype)
    found = short.line_log_probs(prefix, lines)
    assert 0 < np.abs(found - expected).max() < most * np.abs(expected).max()
    assert short.n_parameters == engines["glm4"].n_parameters
    logits = short.last_logits(prefix, lines, (7, 3)) - engines["glm4"].last_logits(prefix, lines, (7, 3))
    assert 0 < np.abs(logits).max() < most * 100


def packed_and_not(bias, dtype):
    """Return what a layer makes of something, its weights packed as `dtype`, and as they are."""
    layer = torch.nn.Linear(40, 24, bias=bias)
    x = torch.randn(1, 7, 40)
    with torch.inference_mode():
        return PackedLinear(layer, dtype)(x), layer(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(bias):
    np.testing.assert_allclose(*packed_and_not(bias, torch.float32), atol=1e-5)


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_packed_short_is_nearly_the_layer(bias):
    short, expected = packed_and_not(bias, torch.bfloat16)
    assert short.dtype == torch.float32
    assert 0 < float((short - expected).abs().max()) < 0.05


def test_a_types_missing_hardware_is_the_users_to_mend(models, monkeypatch):
    with pytest.raises(UserError, match="int8 weights are for a CPU"):
        HFEngine(models["glm"], device="cuda", dtype=torch.int8)
    monkeypatch.setattr("mindlab.llm.hf.has_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="no bfloat16 products"):
        HFEngine(models["glm"], dtype=torch.bfloat16)


GLM4_9B = SimpleNamespace(
    hidden_size=4096,
    intermediate_size=13696,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    num_hidden_layers=40,
    vocab_size=151552,
)


def test_the_pass_that_fits_a_gpu():
    # Kept: (4,096 + 1,000) x 2 x 40 x 2 x 128 x 2 bytes = 208,732,160. Logits: 1,024 x 151,552 x 10 bytes =
    # 1,551,892,480. A token: 2 x 4,096 x 2 = 16,384, and the larger of MLP 4 x 13,696 x 2 = 109,568 and
    # attention 3 x 36 x 128 x 2 + 32 x 1,000 x 8 = 283,648; together 300,032.
    fixed, token = 208_732_160 + 1_551_892_480, 300_032
    for n in (64, 1000, 5000):
        free = (fixed + n * token) / 0.8
        assert fitting_tokens(GLM4_9B, int(free) + 2, 1000, 1024) == n
        if n > 64:
            assert fitting_tokens(GLM4_9B, int(free) - 2, 1000, 1024) == n - 1
    # A short prefix: the MLP is the larger, 16,384 + 109,568, and 4,106 tokens are kept.
    free = (1_551_892_480 + 4_106 * 40_960 + 700 * 125_952) / 0.8
    assert fitting_tokens(GLM4_9B, int(free) + 2, 10, 1024) == 700
    # A card of 80 GiB has 60 beside the weights, and reads as much as is of use.
    assert fitting_tokens(GLM4_9B, 60 * 2**30, 1000, 1024) == 8192
    with pytest.raises(
        UserError, match=r"2\.0 GiB beside the weights are too few for a prompt of 1000 tokens"
    ):
        fitting_tokens(GLM4_9B, 2 * 2**30, 1000, 1024)


def test_the_budget_follows_from_the_machine_unless_given(models, engines):
    assert engines["glm"].token_budget(1000) == 48
    engine = HFEngine(models["glm"])
    assert engine.token_budget(1000) == 1024
    engine._free_bytes = 2**30  # as on a GPU
    settings = engine.model.config
    assert engine.token_budget(10) == fitting_tokens(settings, 2**30, 10, engine._head_rows) == 8192
    engine._free_bytes = 20 * 2**20
    assert engine.token_budget(2000) == fitting_tokens(settings, 20 * 2**20, 2000, engine._head_rows) < 8192


def test_a_sliding_window_is_refused():
    one = Pass(None, torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    layer = SimpleNamespace(layer_idx=0)
    x = torch.zeros(1, 2, 1, 4)
    with pytest.raises(UserError, match="sliding window"):
        _attend(layer, x, x, x, None, 1.0, one, sliding_window=4)
    assert _attend(layer, x, x, x, None, 1.0, one, sliding_window=None)[0].shape == (1, 1, 2, 4)


def test_a_missing_model_or_adapter_is_the_users_to_mend(models, tmp_path):
    with pytest.raises(UserError, match="cannot load the model"):
        HFEngine(tmp_path)
    with pytest.raises(UserError, match="cannot put the adapter"):
        HFEngine(models["glm"], tmp_path)


def make_listwise(engine, chat, cutoff_len=2000) -> ListwiseScorer:
    return ListwiseScorer(engine, chat, Listwise(), Budget(chat.count, chat.estimate, cutoff_len))


def naive_listwise(engine, chat, history, candidates, order) -> np.ndarray:
    """Score one list by one plain call of the model on the whole prompt, the letters' ids found anew."""
    form = Listwise()
    record = form.record(ListParts(history, [candidates[k] for k in order]))
    answers = [chat.answer_ids("", "?", letter) for letter in form.letters]
    place = next(k for k, ids in enumerate(zip(*answers, strict=False)) if len(set(ids)) > 1)
    prompt = chat.prompt_ids(record["system"], record_prompt(record)) + answers[0][:place]
    log_probs = plain_logits(engine.model, prompt)[-1][
        [ids[place] for ids in answers[: len(order)]]
    ].log_softmax(0)
    scores = np.empty(len(order))
    scores[order] = log_probs.numpy() + np.log(len(order))
    return scores


def test_listwise_scores_equal_one_plain_call_per_order(both):
    engine, chat = both
    rng = np.random.default_rng(3)
    users = [
        (
            [TITLES[k] for k in history],
            [TITLES[k] for k in shown],
            [rng.permutation(len(shown)) for _ in range(2)],
        )
        for history, shown in ((HISTORY, CANDIDATES), ([], [4, 5]), ([1, 2], [7, 3, 9]))
    ]
    expected = [
        [naive_listwise(engine, chat, history, shown, order) for order in orders]
        for history, shown, orders in users
    ]
    scorer = make_listwise(engine, chat)
    found = scorer.score_orders(users)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    np.testing.assert_allclose(np.exp(found[0]).mean(axis=1), 1)  # 0 is what a blind choice gives
    assert np.ptp(found[0]) > 0.01
    for user, one in zip(users, found, strict=True):  # whoever is scored with them
        np.testing.assert_allclose(scorer.score_orders([user])[0], one, atol=1e-3)


def test_more_candidates_than_letters_or_room_make_more_lists(engines, glm4_chat):
    engine = engines["glm"]
    many = [f"{TITLES[k % len(TITLES)]} {k}" for k in range(60)]
    order = np.random.default_rng(1).permutation(60)
    history = [TITLES[k] for k in HISTORY]
    scorer = make_listwise(engine, glm4_chat)
    lists = scorer.lists(history, many, order)
    assert [len(part) for part, _ in lists] == [20, 20, 20]
    assert np.concatenate([part for part, _ in lists]).tolist() == order.tolist()
    (found,) = scorer.score_orders([(history, many, [order])])
    for part, record in lists:
        expected = naive_listwise(engine, glm4_chat, history, [many[k] for k in part], np.arange(20))
        np.testing.assert_allclose(found[0, part], expected, atol=1e-3)
        assert record["input"].count("\n- ") + record["input"].startswith("- ") == len(HISTORY)
    cut = glm4_chat.count(lists[0][1]) - 40
    short = make_listwise(engine, glm4_chat, cut).lists(history, many, order)
    assert all(glm4_chat.count(record) <= cut for _, record in short)
    assert len({record["input"].split("Which of")[0] for _, record in short}) == 1  # all of one history
    assert sorted(np.concatenate([part for part, _ in short]).tolist()) == list(range(60))
    tiny = make_listwise(engine, glm4_chat, min(map(glm4_chat.count, (r for _, r in short))) // 3)
    assert len(tiny.lists(history, many, order)) > 3


def test_yes_and_no_of_several_tokens_are_refused():
    class Chat:
        name = "letters"

        def answer_ids(self, system, instruction, output):
            return [ord(letter) for letter in output]

    with pytest.raises(UserError, match="template letters: Yes and No are not one token each"):
        YesNoScorer(None, Chat())


def test_a_pickled_adapter_or_model_is_refused(models, tmp_path):
    import shutil

    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model.bin: a pickle"):
        HFEngine(models["glm"], tmp_path)
    pickled = tmp_path / "pickled"
    shutil.copytree(models["glm"], pickled)
    from safetensors.torch import load_file

    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the model"):
        HFEngine(pickled)
