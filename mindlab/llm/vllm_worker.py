"""The side of `mindlab.llm.vllm` that runs in vLLM's own environment: the standard library and vllm, no more.

Started by `VllmEngine` as a script. It reads one JSON object a line from stdin and answers each with one on
stdout: first the settings of the model, then questions in token ids. What vLLM prints goes to stderr.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Prefixes are read before their lines: few enough that the cache still has the first when its lines come, and
# enough for vLLM, which works on 256 prompts at once.
LINES_AT_ONCE = 256
MAX_TOKEN_IDS = 128  # vLLM's own bound on `logprob_token_ids`
Ask = tuple[list[int], list[list[int]]]  # a prefix, and lines that each continue it
Known = dict[tuple[tuple[int, ...], int], float]  # log P(token | ids) by (ids, token)


class Worker:
    """Answers the questions of `mindlab.llm.engine.Engine` in bulk, with a `vllm.LLM` whose prefix cache is on."""

    def __init__(self, llm: Any, sampling_params: Any):
        """Take the model and the class `vllm.SamplingParams`."""
        self.llm = llm
        self.sampling_params = sampling_params
        self.tokens_read = 0  # without those that the prefix cache held

    def forget(self) -> None:
        """Empty the prefix cache."""
        self.llm.reset_prefix_cache()

    def last_log_probs(self, asks: Sequence[Ask], tokens: list[int]) -> list[list[list[float]]]:
        """Return log P(token) after prefix + line, by ask, line and token."""
        prompts = [[*prefix, *line] for prefix, lines in asks for line in lines]
        outputs = iter(self._generate(prompts, [{"logprob_token_ids": tokens}] * len(prompts)))
        return [[self._first(next(outputs), tokens) for _ in lines] for _, lines in asks]

    def line_log_probs(self, asks: Sequence[Ask]) -> list[list[float]]:
        """Return log P(line | prefix) by ask and line.

        vLLM turns its prefix cache off for a request that wants log-probabilities of its prompt, since those of
        cached tokens are lost (at their places stands whatever the memory held). Only the line's are wanted
        here, so the cache is left on. Where it held the beginning of a line too, what is lost is asked for
        token by token.
        """
        self.forget()  # what an earlier call left there would only be lost
        known: Known = {}
        found: list[list[float]] = []
        group: list[Ask] = []
        for place, ask in enumerate(asks, start=1):
            group.append(ask)
            if place == len(asks) or sum(len(lines) for _, lines in group) >= LINES_AT_ONCE:
                found += self._read_lines(group, known)
                group = []
        return found

    def _read_lines(self, asks: Sequence[Ask], known: Known) -> list[list[float]]:
        """Return log P(line | prefix) by ask and line; `known` holds what this cache's tokens have given."""
        jobs = [(tuple(prefix), tuple(line)) for prefix, lines in asks for line in lines]
        # Prefixes first and without logits of their tokens, which each line after them would make again.
        self._read_next([(prefix, line[0]) for prefix, line in jobs], known)
        longer = [job for job in dict.fromkeys(jobs) if len(job[1]) > 1]
        outputs = self._generate(
            [prefix + line[:-1] for prefix, line in longer],  # the last token is predicted and not read
            [
                {"logprob_token_ids": [line[-1]], "prompt_logprobs": 0, "skip_reading_prefix_cache": False}
                for _, line in longer
            ],
        )
        for (prefix, line), output in zip(longer, outputs, strict=True):
            known[prefix + line[:-1], line[-1]] = self._first(output, line[-1:])[0]
            for place in range(1, len(line) - 1):
                if len(prefix) + place > (output.num_cached_tokens or 0):
                    # From the end: the list may leave the cached tokens out.
                    found = output.prompt_logprobs[place + 1 - len(line)]
                    known[prefix + line[:place], line[place]] = found[line[place]].logprob
        steps = [[(prefix + line[:i], token) for i, token in enumerate(line)] for prefix, line in jobs]
        self._read_next([step for line in steps for step in line if step not in known], known)
        totals = iter(sum(known[step] for step in line) for line in steps)
        return [[next(totals) for _ in lines] for _, lines in asks]

    def _read_next(self, steps: Iterable[tuple[tuple[int, ...], int]], known: Known) -> None:
        """Put log P(token | ids) of each (ids, token) into `known`, with one request for the tokens of the same ids."""
        wanted: dict[tuple[int, ...], set[int]] = {}
        for ids, token in steps:
            wanted.setdefault(ids, set()).add(token)
        reads = [
            (ids, sorted(tokens)[i : i + MAX_TOKEN_IDS])
            for ids, tokens in wanted.items()
            for i in range(0, len(tokens), MAX_TOKEN_IDS)
        ]
        outputs = self._generate(
            [ids for ids, _ in reads], [{"logprob_token_ids": tokens} for _, tokens in reads]
        )
        for (ids, tokens), output in zip(reads, outputs, strict=True):
            known.update(zip([(ids, token) for token in tokens], self._first(output, tokens), strict=True))

    def answers(
        self,
        prompts: Sequence[list[int]],
        head: list[int],
        tokens: list[int],
        stop: list[int],
        max_tokens: int,
    ) -> list[tuple[list[float], list[int]]]:
        """Return log P(token) after prompt + head, and the ids generated greedily after each prompt."""
        wanted = {"logprob_token_ids": tokens, "max_tokens": max_tokens, "stop_token_ids": stop}
        outputs = [output.outputs[0] for output in self._generate(prompts, [wanted] * len(prompts))]
        made = [list(output.token_ids) for output in outputs]
        n = len(head)
        found = [
            [output.logprobs[n][token].logprob for token in tokens]
            if ids[:n] == head and len(ids) > n
            else None
            for ids, output in zip(made, outputs, strict=True)
        ]
        others = [i for i, values in enumerate(found) if values is None]
        after_head = self.last_log_probs([(prompts[i], [head]) for i in others], tokens)
        for i, (values,) in zip(others, after_head, strict=True):
            found[i] = values
        return [
            (values, ids[:-1] if ids and ids[-1] in stop else ids)
            for values, ids in zip(found, made, strict=True)
        ]

    def _generate(self, prompts: Sequence[Sequence[int]], wanted: Sequence[dict[str, Any]]) -> list[Any]:
        """Return vLLM's outputs for prompts of token ids, one greedy token each unless `wanted` says otherwise."""
        if not prompts:
            return []
        common = {"temperature": 0.0, "max_tokens": 1, "detokenize": False}
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self.sampling_params(**{**common, **options}) for options in wanted],
            use_tqdm=False,
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            # The last token made is never read.
            self.tokens_read += (
                len(prompt) - (output.num_cached_tokens or 0) + len(output.outputs[0].token_ids) - 1
            )
        return outputs

    @staticmethod
    def _first(output: Any, tokens: Sequence[int]) -> list[float]:
        """Return the log-probabilities of `tokens` for the first generated token."""
        return [output.outputs[0].logprobs[0][token].logprob for token in tokens]


def answer_all(lines: Iterator[str], llm_class: Any, sampling_params: Any) -> Iterator[dict[str, Any]]:
    """Yield the reply to each line: the settings, then questions. An error is a reply too, and the last one."""
    try:
        begin = time.perf_counter()
        worker = Worker(llm_class(**json.loads(next(lines))), sampling_params)
        yield {"startup_seconds": round(time.perf_counter() - begin, 1)}
        for line in lines:
            question = json.loads(line)
            result = getattr(worker, question.pop("what"))(**question)
            yield {"result": result, "tokens_read": worker.tokens_read, "peak_mb": peak_memory_mb()}
    except Exception as error:
        import traceback

        traceback.print_exc()
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        yield {"error": f"{type(error).__name__}: {reason}"}


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1]) / 2**10
    return 0.0


def main() -> None:
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM logs to stdout, which carries the replies
    try:
        import vllm
    except Exception as error:  # a broken torch raises OSError or RuntimeError
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reply = {"error": f"cannot import vllm ({type(error).__name__}: {first})", "is_missing": True}
        print(json.dumps(reply), file=replies, flush=True)
        return
    print(json.dumps({"vllm": vllm.__version__}), file=replies, flush=True)
    for reply in answer_all(iter(sys.stdin.readline, ""), vllm.LLM, vllm.SamplingParams):
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
