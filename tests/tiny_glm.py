"""Build a random GLM-4 of 0.3 MB on the spot, so that the GLM-4 YAML itself runs on a CPU in seconds.

Native architectures (`glm`, what zai-org/glm-4-9b-chat-hf is, or `glm4`, GLM-4-9B-0414) and a tokenizer of GLM-4's design: byte-level
BPE with its split pattern, its special tokens behind the vocabulary, the prefix [gMASK]<sop>, its end ids.
LLaMA-Factory's template `glm4` therefore adds no token.
"""

from collections.abc import Iterable
from pathlib import Path

SPECIALS = [
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"),
    *("<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>"),
    "<|end_of_video|>",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>\n{{ item['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# One record as the tutorial has them, in Chinese with English titles, and one with awkward characters.
RECORDS = [
    {
        "system": "你是一个新闻推荐助手。",
        "instruction": "根据用户的偏好，判断用户是否会点击目标新闻，只回答 Yes. 或 No.。",
        "input": '用户喜欢：\n1. "Rams" beat Browns 20-13\n'
        "用户不喜欢：\n目标新闻：What's next for the S&P 500?",
        "output": "Yes.",
    },
    {
        "system": "You recommend news.",
        "instruction": "Name the news this reader clicked, oldest first.",
        "input": "",
        "output": '- It\'s 2019: the "20 best" \u200bpies\n- 12,345.67 votes — so what?\n- 新闻：北京 2022',
    },
]


def build(
    folder: str | Path,
    texts: Iterable[str] = (),
    seed: int = 0,
    kind: str = "glm",
    vocabulary: int = 1024,
    device: str = "cpu",
    **shape: int,
) -> Path:
    """Write model and tokenizer into `folder`; the tokenizer is trained on RECORDS and `texts`.

    `shape` are values of config.json in place of the tiny ones; the weights are drawn on `device`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = build_tokenizer(
        [*(text for record in RECORDS for text in record.values()), *texts], vocabulary
    )
    end_ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    tiny = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(
        kind,
        **{**tiny, **shape},
        max_position_embeddings=4096,
        pad_token_id=end_ids[0],
        eos_token_id=end_ids,
        dtype=torch.bfloat16,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=end_ids, pad_token_id=end_ids[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def build_tokenizer(texts: Iterable[str], vocabulary: int = 1024):
    """Return a tokenizer of GLM-4's design with at most `vocabulary` tokens, trained on `texts`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens(SPECIALS)
    prefix = [(token, inner.token_to_id(token)) for token in ("[gMASK]", "<sop>")]
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="[gMASK]:0 <sop>:0 $A:0", pair="[gMASK]:0 <sop>:0 $A:0 $B:1", special_tokens=prefix
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIALS[1:],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )
