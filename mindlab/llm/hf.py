"""Score candidates with a Hugging Face causal language model, reading once what prompts share.

All candidates of an impression continue one prefix (system, question, history). The engine reads the prefix
once and keeps its keys and values: the next impression of that user finds all of it, one of another user
the system prompt and the question. The candidates go through the model as the trie of their tokens, laid end
to end without padding: the "- The" of ten headlines is two tokens. A token attends to the prefix without a
mask and to its own line in a small square; the two parts are joined by their log-sum-exp, as in Hydragen
(Juravsky et al. 2024). Logits are computed only where a score is read, and on a CPU the matrix products run
in oneDNN. Equal to one prompt at a time up to floating point (tests/unit/llm/test_hf.py).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mindlab.common.errors import UserError
from mindlab.llm.engine import Engine

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # by layer, (key heads, tokens, head size) each
ATTENTION = "mindlab_shared_prefix"
CPU_TOKEN_BUDGET = 1024
KEPT_TOKENS = 4096  # of the latest prefixes, whose keys and values stay in memory


@dataclass
class Prefix:
    """A prefix that the model has read: ids, keys and values, and the hidden state that ends it."""

    ids: list[int]
    layers: KeysAndValues
    last: torch.Tensor


@dataclass
class Pass:
    """What the attention has to know of the tokens of one forward pass, which lie end to end."""

    past: KeysAndValues | None  # seen by every token
    place: torch.Tensor  # (lines, longest line): the token at each place of each line, anything after its end
    back: torch.Tensor  # (tokens,): one place of each token in `place` laid flat
    whole: KeysAndValues = field(default_factory=list)  # the past's and, of a single line, its own; by layer


class Rows:
    """Texts that go on side by side after a beginning that all share: what the attention has to know of them."""

    def __init__(self, past: KeysAndValues, pads: torch.Tensor, room: int):
        """Take the shared keys and values, and of each row how many of its first tokens only fill it up.

        A row gets at most `room` tokens, those included.
        """
        self.past, self.pads, self.room = past, pads, room
        self.read = 0  # tokens of each row so far
        self._own: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # (rows, key heads, room, head size), by layer

    def extend(self, layer: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """Put a layer's new keys and values behind those of its rows; return all of them."""
        if layer == len(self._own):
            # In place from now on: to concatenate would copy everything at every token.
            self._own.append(tuple(x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in new))
        end = self.read + new[0].shape[2]
        for own, x in zip(self._own[layer], new, strict=True):
            own[:, :, self.read : end] = x
        return [own[:, :, :end] for own in self._own[layer]]

    def unseen(self, n_new: int) -> torch.Tensor:
        """Return which tokens the new ones may not see, bool (rows, new tokens, tokens): the filling, and later ones."""
        to = torch.arange(self.read + n_new, device=self.pads.device)
        at = to[-n_new:, None]
        # One token at least is seen, so that the filling has no NaN to pass on.
        return ((to < self.pads[:, None, None]) & (to != at)) | (to > at)

    def positions(self, n_new: int) -> torch.Tensor:
        """Return the places of the new tokens in their texts, int (rows, new tokens)."""
        at = torch.arange(self.read, self.read + n_new, device=self.pads.device)
        return self.past[0][0].shape[1] + (at - self.pads[:, None]).clamp(min=0)

    def take(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self.pads = self.pads[rows]
        self._own = [tuple(x[rows] for x in own) for own in self._own]


class HFEngine(Engine):
    """A causal language model, with or without a LoRA adapter, that scores and generates token ids."""

    def __init__(
        self,
        model_path: str | Path,
        adapter: str | Path | None = None,
        token_budget: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
    ):
        """Load the model, an adapter merged into it; on a GPU in bfloat16, else in float32 unless `dtype` says.

        On a CPU bfloat16 and int8 are the types of the weights in matrix products; all else stays float32.
        `token_budget` bounds the new tokens of one forward pass: left out, it is what suits a CPU, or what
        fits beside the weights on a GPU (`fitting_tokens`).

        Raises UserError if the folder is not a model, the adapter does not fit it, or the machine has no
        fast products of that type.
        """
        self.device = device or _best_device()
        on_cpu = self.device == "cpu"
        dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)
        if dtype == torch.int8 and not on_cpu:
            raise UserError("int8 weights are for a CPU; on a GPU leave the type out, which is bfloat16")
        if on_cpu and dtype == torch.bfloat16 and not has_bfloat16("cpu"):
            raise UserError("this processor has no bfloat16 products (AVX-512 or newer); use float32")
        stored = torch.float32 if dtype == torch.int8 else dtype
        model = load_model(model_path, adapter, stored, ATTENTION)
        self.model = model.to(self.device).eval()
        # Both before the linear layers give their parameters away.
        self.n_parameters = sum(p.numel() for p in model.parameters())  # an adapter merged into them
        self._head_weight = model.get_output_embeddings().weight
        if on_cpu:
            pack(self.model, dtype)
        self._head_rows = 64 if on_cpu else 1024
        self._token_budget = token_budget
        is_cuda = self.device.startswith("cuda")
        self._free_bytes = torch.cuda.mem_get_info(self.device)[0] if is_cuda else None
        self.tokens_read = 0  # tokens put through the model so far
        self._kept: list[Prefix] = []  # the latest used last

    def token_budget(self, n_prefix: int) -> int:
        """Return how many new tokens one pass after a prefix of `n_prefix` tokens may read."""
        if self._token_budget or self._free_bytes is None:
            return self._token_budget or CPU_TOKEN_BUDGET
        return fitting_tokens(self.model.config, self._free_bytes, n_prefix, self._head_rows)

    def forget(self) -> None:
        """Drop what is kept of earlier prefixes, so that a measurement begins anew."""
        self._kept.clear()

    @torch.inference_mode()
    def line_log_probs(self, prefix: Sequence[int], lines: Sequence[Sequence[int]]) -> np.ndarray:
        """Return log P(line | prefix) of every line, natural logarithm, summed over its tokens.

        `prefix` has at least one id, every line too. The result is float64, shape (len(lines),).
        """
        read = self._read(prefix)
        result = np.empty(len(lines))
        for rows in _chunks(lines, self.token_budget(len(prefix))):
            # The token at place i of a line is predicted from place i - 1, the first from the prefix.
            hidden, paths = self._continue(read, [lines[r][:-1] for r in rows])
            source = np.concatenate([[0, *(p + 1 for p in path)] for path in paths])
            tokens = np.concatenate([lines[r] for r in rows])
            log_probs = self._log_softmax_at(torch.cat([read.last[None], hidden]), source, tokens)
            result[rows] = np.add.reduceat(log_probs, np.cumsum([0] + [len(lines[r]) for r in rows[:-1]]))
        return result

    @torch.inference_mode()
    def last_logits(
        self, prefix: Sequence[int], lines: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> np.ndarray:
        """Return the logits of `tokens` after prefix + line, float64 of shape (len(lines), len(tokens))."""
        read = self._read(prefix)
        result = np.empty((len(lines), len(tokens)))
        wanted = self._head_weight[list(tokens)].float()
        for rows in _chunks(lines, self.token_budget(len(prefix))):
            hidden, paths = self._continue(read, [lines[r] for r in rows])
            # In float32: as bfloat16 a logit of 10 would be off by up to 0.03.
            last = hidden[[path[-1] for path in paths]].float()
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

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        n_shared: int,
        stop: Sequence[int],
        max_new_tokens: int,
        allowed: Callable[[Sequence[int], Sequence[Sequence[int]]], np.ndarray] | None = None,
    ) -> list[list[int]]:
        """Return the ids that greedily follow each prompt, without the one of `stop` that ended them.

        The first `n_shared` ids, one at least, are those of all prompts; they are read once, and for the next call too.
        ``allowed(rows, texts)`` may restrict the next id: bool (rows, vocabulary), given which prompts go on and what
        follows them so far.
        """
        beginning = list(prompts[0][:n_shared])
        if not any(kept.ids == beginning for kept in self._kept):
            self.forget()  # read as a whole, whatever came before: the same digits
        past = self._read(beginning).layers
        rests = [list(prompt[n_shared:]) for prompt in prompts]
        width = max(map(len, rests))
        pads = torch.tensor([width - len(rest) for rest in rests], device=self.device)
        rows = Rows(past, pads, width + max_new_tokens)
        going, texts = np.arange(len(prompts)), [[] for _ in prompts]
        is_done = np.zeros(len(prompts), bool)
        new = torch.tensor([[stop[0]] * (width - len(rest)) + rest for rest in rests], device=self.device)
        for _ in range(max_new_tokens):
            self.tokens_read += new.numel()
            hidden = self.model.get_decoder()(
                input_ids=new, position_ids=rows.positions(new.shape[1]), use_cache=False, one_pass=rows
            ).last_hidden_state[:, -1]
            rows.read += new.shape[1]
            logits = self.model.get_output_embeddings()(hidden).float()
            if allowed is not None:
                mask = torch.from_numpy(allowed(going.tolist(), [texts[row] for row in going]))
                logits.masked_fill_(~mask.to(self.device), -torch.inf)
            chosen = logits.argmax(1)
            for k, token in enumerate(chosen.tolist()):
                is_done[k] |= token in stop
                if not is_done[k]:
                    texts[going[k]].append(token)
            if is_done.all():
                break
            if 4 * is_done.sum() >= len(
                is_done
            ):  # often enough not to pay for what is done, no more: it is a copy
                left = np.flatnonzero(~is_done)
                going, is_done = going[left], is_done[left]
                left = torch.from_numpy(left).to(self.device)
                rows.take(left)
                chosen = chosen[left]
            new = chosen[:, None]
        return texts

    def _read(self, ids: Sequence[int]) -> Prefix:
        """Return the prefix `ids` as read, from the longest beginning of it that is kept."""
        ids = list(ids)
        # Of equally long ones the latest, so that no other moves up.
        n, which = max(((_n_common(kept.ids, ids), i) for i, kept in enumerate(self._kept)), default=(0, 0))
        if n:
            known = self._kept.pop(which)
            self._kept.append(known)
            if n == len(ids) == len(known.ids):
                return known
        n = min(n, len(ids) - 1)  # the hidden state at the end is known for a whole prefix alone
        past = [(k[:, :n], v[:, :n]) for k, v in known.layers] if n else None
        whole = torch.arange(len(ids) - n, device=self.device)
        one = Pass(past, whole[None], whole)
        last = self._forward(ids[n:], n + whole, one)[-1]
        self._kept.append(Prefix(ids, one.whole, last))
        while len(self._kept) > 1 and sum(len(kept.ids) for kept in self._kept) > KEPT_TOKENS:
            del self._kept[0]
        return self._kept[-1]

    def _continue(self, read: Prefix, lines: list[Sequence[int]]) -> tuple[torch.Tensor, list[list[int]]]:
        """Return hidden states after `read`, one a node of the lines' trie, and each line's nodes in order."""
        tokens, depths, paths = _trie(lines)
        if not tokens:
            return read.last.new_empty(0, len(read.last)), paths
        place = np.zeros((len(lines), max(map(len, paths))), dtype=np.int64)
        back = np.empty(len(tokens), dtype=np.int64)
        for row, path in enumerate(paths):
            place[row, : len(path)] = path
            back[path] = row * place.shape[1] + np.arange(len(path))
        place, back = (torch.from_numpy(x).to(self.device) for x in (place, back))
        positions = torch.tensor(depths, device=self.device) + len(read.ids)
        return self._forward(tokens, positions, Pass(read.layers, place, back)), paths

    def _forward(self, tokens: list[int], positions: torch.Tensor, one: Pass) -> torch.Tensor:
        """Return the hidden states of one pass, (tokens, hidden size)."""
        self.tokens_read += len(tokens)
        inputs = torch.tensor([tokens], device=self.device)
        return self.model.get_decoder()(
            input_ids=inputs, position_ids=positions[None], use_cache=False, one_pass=one
        ).last_hidden_state[0]

    def _log_softmax_at(self, hidden: torch.Tensor, source: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return log softmax(lm_head(hidden))[source, tokens], in pieces that bound the logits' memory."""
        head = self.model.get_output_embeddings()
        result = np.empty(len(source))
        for start in range(0, len(hidden), self._head_rows):
            logits = head(hidden[start : start + self._head_rows]).float()
            here = np.flatnonzero((source >= start) & (source < start + self._head_rows))
            row, token = (torch.from_numpy(x).to(self.device) for x in (source[here] - start, tokens[here]))
            top = logits.amax(1)
            chosen = logits[row, token] - top[row]
            # In place: logsumexp would write another matrix as wide as the vocabulary.
            total = logits.sub_(top[:, None]).exp_().sum(1).log()
            result[here] = (chosen - total[row]).double().cpu().numpy()
        return result


class PackedLinear(torch.nn.Module):
    """A linear layer in oneDNN's own layout, inference only.

    In float32 it sums the same products as torch.nn.Linear, in another order. torch's own float32 product is
    MKL's, which leaves an AMD processor's wide registers unused: oneDNN was 2.2 times as fast there.
    """

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype):
        """Take the layer's weight, rounded to `dtype`."""
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b in the type of x."""
        made = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "")
        return made.to(x.dtype)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16(device: str | None = None) -> bool:
    """Return whether products in bfloat16 are fast there: on a GPU, and on processors with AVX-512 or newer."""
    if (device or _best_device()) != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace a model's linear layers by ones that hold `dtype`, in place; all else becomes float32."""
    if dtype == torch.int8:
        by_row = {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        with warnings.catch_warnings():  # torch.ao is deprecated; its successor is a package of its own
            warnings.simplefilter("ignore")
            torch.ao.quantization.quantize_dynamic(model, by_row, inplace=True)
    elif torch.backends.mkldnn.is_available():
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, PackedLinear(child, dtype))
    model.float()


def fitting_tokens(config: Any, free_bytes: int, n_prefix: int, head_rows: int) -> int:
    """Return how many new tokens a pass may read on a GPU with `free_bytes` beside bfloat16 weights.

    Four fifths of the memory hold the keys and values of the kept prefixes, the logits of `head_rows` rows, and
    per token the larger of what a layer's MLP and its attention to `n_prefix` tokens hold at once. At most
    8,192, beyond which products get no faster. `config` is the model's.

    Raises UserError if not even 64 tokens fit.
    """
    bf16, fp32 = 2, 4
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = (KEPT_TOKENS + n_prefix) * 2 * config.num_hidden_layers * key_heads * size * bf16
    logits = head_rows * config.vocab_size * (bf16 + 2 * fp32)
    # Gate, up, the activated gate, their product; or q, k, v before and after rotation and laid out in lines.
    mlp = 4 * config.intermediate_size * bf16
    attention = 3 * (heads + 2 * key_heads) * size * bf16 + heads * n_prefix * (2 * bf16 + fp32)
    token = 2 * config.hidden_size * bf16 + max(mlp, attention)
    fitting = int((0.8 * free_bytes - kept - logits) // token)
    if fitting < 64:
        raise UserError(
            f"{free_bytes / 2**30:.1f} GiB beside the weights are too few for a prompt of {n_prefix} tokens; "
            "take a larger card, a shorter history or a smaller model"
        )
    return min(fitting, 8192)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    one_pass: "Pass | Rows | None" = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from the tokens of a pass to its past and, within each line, to what is before them.

    `query` is (1, heads, tokens, head size); returns (1, tokens, heads, head size). Without a pass, e.g. in
    `generate`, it is transformers' own attention.
    """
    if one_pass is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    if rest.get("sliding_window"):
        raise UserError("this model attends to a sliding window; the shared-prefix attention does not")
    if isinstance(one_pass, Rows):
        return _attend_side_by_side(query, key, value, scaling, one_pass, module.layer_idx)
    place, back = one_pass.place, one_pass.back
    past = one_pass.past and one_pass.past[module.layer_idx]
    if len(place) == 1:
        if past:
            key, value = (torch.cat([a[None], b], 2) for a, b in zip(past, (key, value), strict=True))
        one_pass.whole.append((key[0], value[0]))
        made = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            causal_lower_right(query.shape[2], key.shape[2]),
            scale=scaling,
            enable_gqa=True,
        )
        return made.transpose(1, 2), None
    grouped = query[0].unflatten(0, (len(key[0]), -1))  # by key head
    after = torch.ones(place.shape[1], place.shape[1], dtype=torch.bool, device=place.device).triu(1)
    near, near_sum = _softmax_product(
        grouped[:, :, place], key[0][:, None, place], value[0][:, None, place], scaling, after
    )
    near, near_sum = near.flatten(2, 3)[:, :, back], near_sum.flatten(2, 3)[:, :, back]
    far, far_sum = _softmax_product(grouped.flatten(1, 2), *past, scaling)
    far, far_sum = far.view_as(near), far_sum.view_as(near_sum)
    made = near + (far - near) * torch.sigmoid(far_sum - near_sum).to(near.dtype)
    return made.flatten(0, 1).transpose(0, 1)[None], None


def _softmax_product(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    unseen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(query key^T scaling) value, and the logarithm of the softmax's sum, (..., 1)."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if unseen is not None:
        scores = scores.masked_fill_(unseen, -torch.inf)
    log_sum = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(log_sum).exp_().to(value.dtype) @ value, log_sum


def _attend_side_by_side(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, rows: "Rows", layer: int
) -> tuple[torch.Tensor, None]:
    """Attend from the new tokens of each row to the beginning that all share, and to those of its row.

    `query` is (rows, heads, new tokens, head size); returns (rows, new tokens, heads, head size). The heads of a group
    stand in for tokens: they see the same keys, which are copied neither for them nor, the shared ones, for the rows.
    """
    key, value = rows.extend(layer, key, value)
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # by key head
    unseen = rows.unseen(query.shape[2]).repeat(1, query.shape[1] // key.shape[1], 1)[:, None]
    near, near_sum = _softmax_product(grouped, key, value, scaling, unseen)
    far, far_sum = _softmax_product(grouped.transpose(0, 1).flatten(1, 2), *rows.past[layer], scaling)
    far, far_sum = (x.unflatten(1, (len(query), -1)).transpose(0, 1) for x in (far, far_sum))
    made = near + (far - near) * torch.sigmoid(far_sum - near_sum).to(near.dtype)
    return made.unflatten(2, (-1, query.shape[2])).flatten(1, 2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)


def _trie(lines: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Return the tokens and depths of the lines' trie, and each line's way through it.

    >>> _trie([[5, 6], [5, 7], [6]])
    ([5, 6, 7, 6], [0, 1, 1, 0], [[0, 1], [0, 2], [3]])
    """
    tokens, depths, paths = [], [], []
    nodes: dict[tuple[int, int], int] = {}
    for line in lines:
        path, at = [], -1
        for depth, token in enumerate(line):
            at = nodes.setdefault((at, token), len(tokens))
            if at == len(tokens):
                tokens.append(token)
                depths.append(depth)
            path.append(at)
        paths.append(path)
    return tokens, depths, paths


def _chunks(lines: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Cut the lines, in the order of their tokens, into runs of at most `budget` tokens; none is empty.

    >>> _chunks([[2, 1], [1, 1, 1], [2, 1, 3]], budget=5)
    [[1, 0], [2]]
    """
    chunks: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lines)), key=lines.__getitem__):
        if not chunks or len(lines[row]) > room:
            chunks.append([])
            room = budget
        chunks[-1].append(row)
        room -= len(lines[row])
    return chunks


def _n_common(a: list[int], b: list[int]) -> int:
    """Return how many ids two lists have in common from their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def load_model(
    model_path: str | Path, adapter: str | Path | None, dtype: torch.dtype, attention: str = "sdpa"
) -> torch.nn.Module:
    """Return the model with its weights in `dtype`, an adapter merged into them.

    Raises UserError if the folder is not a model or the adapter does not fit it.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=dtype, attn_implementation=attention, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:  # the last: a file that is not whole
        raise UserError(
            f"cannot load the model {model_path}: {_first_line(error)}; give a model folder "
            "(scripts/get_model.py makes one) or a hub id"
        ) from error
    return model if adapter is None else _with_adapter(model, adapter)


def _with_adapter(model: torch.nn.Module, adapter: str | Path) -> torch.nn.Module:
    """Return the model with the LoRA adapter merged into its weights, as fast as the base alone."""
    from peft import PeftModel

    if (Path(adapter) / "adapter_model.bin").is_file():  # peft would unpickle it where no safetensors file is
        raise UserError(
            f"{Path(adapter) / 'adapter_model.bin'}: a pickle, which can run code; expected adapter_model.safetensors "
            "alone: train the adapter again, or delete the file if both are there"
        )
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"cannot put the adapter {adapter} on the model: {_first_line(error)}; give the output_dir of a "
            "LLaMA-Factory LoRA run of this very model"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
