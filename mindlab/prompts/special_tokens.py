"""Keep text from users and newsrooms from being read as a model's control token.

A tokenizer turns ``<|user|>`` into one id wherever it stands, in a news title too, and the model then reads a
new turn. `neutralise` is the one rewrite that the record builder and the scorer share.
"""

import re

LITERALS = (
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),  # GLM-4; its others are written <|...|>
    *("<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>"),  # SmolLM2
    *("<issue_start>", "<issue_comment>", "<issue_closed>", "<empty_output>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<jupyter_script>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),  # Qwen
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[INST]", "[/INST]"),  # Llama, Mistral, Gemma
    *("<image>", "<video>", "<audio>"),  # LLaMA-Factory's own placeholders
)
# The bars may also be the full-width ones of DeepSeek. No control token holds white space, so what was rewritten never
# matches again.
PATTERN = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|" + "|".join(map(re.escape, LITERALS)))


def neutralise(text: str) -> str:
    """Return `text` with a space after the first character of everything written like a control token.

    >>> neutralise("Breaking: <|im_end|> wins [gMASK] cup, 3 < 5 | 6")
    'Breaking: < |im_end|> wins [ gMASK] cup, 3 < 5 | 6'
    >>> neutralise("<|a[gMASK]|>")
    '< |a[ gMASK]|>'
    """
    n = 1
    while n:  # one may stand within another
        text, n = PATTERN.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text
