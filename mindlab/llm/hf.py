"""Score candidates with a Hugging Face causal language model, sharing the prompt they have in common.

All candidates of an impression continue one prefix (system, question, history). The engine runs the
prefix together with the first candidates in one packed row, where a candidate sees the prefix and
itself but not its neighbours, keeps the prefix in the KV cache, and feeds the other candidates in
chunks of at most `token_budget` tokens. Nothing is padded, and logits are computed only where a score
is read. Equal to one prompt at a time up to floating point (tests/test_hf.py).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from mindlab.errors import UserError


class HFEngine:
    """A causal language model, with or without a LoRA adapter, that scores and generates token ids."""

    def __init__(
        self,
        model_path: str | Path,
        adapter: str | Path | None = None,
        token_budget: int = 1024,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Load the model; on a GPU in bfloat16, else in float32 unless `dtype` says otherwise.

        `token_budget` bounds the new tokens of one forward pass: memory grows with its square in the
        attention mask, so 1,024 suits a CPU and 8,192 a GPU.

        Raises UserError if the folder is not a model or the adapter does not fit it.
        """
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if self.device.startswith("cuda") else torch.float32)
        try:
            model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load the model {model_path}: {_first_line(error)}; give a model folder "
                "(scripts/get_model.py makes one) or a hub id"
            ) from error
        if adapter is not None:
            model = _with_adapter(model, adapter)
        self.model = model.to(self.device).eval()
        self.token_budget = token_budget
        self.tokens_read = 0  # tokens put through the model so far

    @property
    def n_parameters(self) -> int:
        """How many parameters the model holds, an adapter merged into them."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def line_log_probs(self, prefix: Sequence[int], lines: Sequence[Sequence[int]]) -> np.ndarray:
        """Return log P(line | prefix) of every line, natural logarithm, summed over its tokens.

        `prefix` has at least one id, every line too. The result is float64, shape (len(lines),).
        """
        result = np.empty(len(lines))
        for rows, hidden, before in self._continue(prefix, lines):
            # The token at place i of a line is predicted from place i - 1, the first from the prefix.
            flat = torch.tensor([t for r in rows for t in lines[r]], device=self.device)
            starts = np.cumsum([0] + [len(lines[r]) for r in rows])
            source = torch.cat([before[None], hidden[:-1]])
            source[torch.from_numpy(starts[:-1]).to(self.device)] = before
            log_probs = self._log_softmax_at(source, flat).double().cpu().numpy()
            result[rows] = np.add.reduceat(log_probs, starts[:-1])
        return result

    @torch.inference_mode()
    def last_logits(
        self, prefix: Sequence[int], lines: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> np.ndarray:
        """Return the logits of `tokens` after prefix + line, float64 of shape (len(lines), len(tokens))."""
        result = np.empty((len(lines), len(tokens)))
        wanted = self.model.get_output_embeddings().weight[list(tokens)]
        for rows, hidden, _ in self._continue(prefix, lines):
            ends = np.cumsum([len(lines[r]) for r in rows]) - 1
            last = hidden[torch.from_numpy(ends).to(self.device)]
            result[rows] = (last @ wanted.T).double().cpu().numpy()
        return result

    @torch.inference_mode()
    def answer(
        self,
        prompt: Sequence[int],
        head: Sequence[int],
        tokens: Sequence[int],
        stop: Sequence[int],
        max_new_tokens: int = 8,
    ) -> tuple[np.ndarray, list[int]]:
        """Return the logits of `tokens` after prompt + head, and the ids generated greedily after `prompt`.

        The generated ids come without the stop id that ended them. One reading of the prompt serves both
        where the model writes `head` by itself (it is what every answer of a template begins with, often
        nothing).
        """
        inputs = torch.tensor([list(prompt)], device=self.device)
        made = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(stop),
            pad_token_id=stop[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = made.sequences[0, len(prompt) :].tolist()
        self.tokens_read += len(prompt) + len(ids)
        if ids and ids[-1] in stop:
            ids.pop()
        n = len(head)
        if ids[:n] == list(head) and len(made.logits) > n:
            return made.logits[n][0, list(tokens)].double().cpu().numpy(), ids
        return self.last_logits([*prompt, *head][:-1], [[*prompt, *head][-1:]], tokens)[0], ids

    def _continue(self, prefix: Sequence[int], lines: Sequence[Sequence[int]]):
        """Yield (rows, hidden states of those lines laid end to end, hidden state that ends the prefix)."""
        cache = DynamicCache(config=self.model.config)
        n_prefix = len(prefix)
        before = None
        for rows in chunks([len(line) for line in lines], self.token_budget, n_prefix):
            new = [t for r in rows for t in lines[r]]
            sizes = torch.tensor([len(lines[r]) for r in rows])
            owner = torch.repeat_interleave(torch.arange(len(rows)), sizes)
            starts = torch.cumsum(sizes, 0) - sizes
            place = torch.arange(len(new))
            positions = n_prefix + place - starts[owner]
            among_lines = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
            sees_prefix = torch.ones(len(new), n_prefix, dtype=torch.bool)
            mask = torch.cat([sees_prefix, among_lines], dim=1)
            if before is None:  # the first pass carries the prefix too
                head = torch.ones(n_prefix, n_prefix, dtype=torch.bool).tril()
                head = torch.cat([head, torch.zeros(n_prefix, len(new), dtype=torch.bool)], dim=1)
                mask = torch.cat([head, mask])
                positions = torch.cat([torch.arange(n_prefix), positions])
                new = [*prefix, *new]
            self.tokens_read += len(new)
            hidden = self.model.get_decoder()(
                input_ids=torch.tensor([new], device=self.device),
                position_ids=positions[None].to(self.device),
                attention_mask=mask[None, None].to(self.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            if before is None:
                before = hidden[n_prefix - 1]
                hidden = hidden[n_prefix:]
            cache.crop(n_prefix)
            yield rows, hidden, before

    def _log_softmax_at(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return log softmax(lm_head(hidden))[token] row by row, in pieces that bound the logits' memory."""
        head = self.model.get_output_embeddings()
        pieces = []
        rows = 64 if self.device == "cpu" else 1024
        for h, t in zip(hidden.split(rows), tokens.split(rows), strict=True):
            logits = head(h).float()
            top = logits.amax(1)
            chosen = logits.gather(1, t[:, None])[:, 0] - top
            # In place: logsumexp would write another matrix as wide as the vocabulary.
            pieces.append(chosen - logits.sub_(top[:, None]).exp_().sum(1).log())
        return torch.cat(pieces)


def chunks(sizes: list[int], budget: int, n_prefix: int) -> list[list[int]]:
    """Cut the lines into runs of at most `budget` tokens, the first run less by the prefix; none is empty.

    >>> chunks([3, 3, 3, 3], budget=7, n_prefix=4)
    [[0], [1, 2], [3]]
    """
    cut: list[list[int]] = [[]]
    room = budget - n_prefix
    for row, size in enumerate(sizes):
        if cut[-1] and size > room:
            cut.append([])
            room = budget
        cut[-1].append(row)
        room -= size
    return cut


def _with_adapter(model: torch.nn.Module, adapter: str | Path) -> torch.nn.Module:
    """Return the model with the LoRA adapter merged into its weights, as fast as the base alone."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot put the adapter {adapter} on the model: {_first_line(error)}; give the output_dir of a "
            "LLaMA-Factory LoRA run of this very model"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
