"""What tests ask of a language model: a request and the row of a model, as scripts/predict.py puts them together."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mindlab.llm.options import Options
from mindlab.recommenders.llm import LLMMethod, ranker
from mindlab.runs.run import Request, Work, run

OF_REQUEST = ("data", "protocol", "split", "limit", "seed")


class Asked(NamedTuple):
    """Which impressions, and what is asked about them."""

    request: Request
    options: Options
    how: dict[str, Any]

    @property
    def method(self) -> LLMMethod:
        """The row."""
        return ranker("llm", self.options, self.how)

    def but(self, **changes: Any) -> "Asked":
        """Return the same with other options."""
        mine = {key: changes.pop(key) for key in OF_REQUEST if key in changes}
        return Asked(replace(self.request, **mine), replace(self.options, **changes), self.how)

    def run(self, out: str | Path, progress: Any = None, how: Any = None, **more: Any) -> Path:
        """Score into the run folder `out`; `how` goes to the engine."""
        more |= {"progress": progress} if progress else {}
        method = ranker("llm", self.options, how or self.how)
        return run(self.request, method, out, **more)

    def work(self, seed: int = 42, **how: Any) -> Work:
        """Return what scores some of the impressions."""
        return Work(self.request, self.method, seed, **how)


def ask(
    data: str, protocol: str, form: str, model: str, template: str, adapter: str | None = None, **options: Any
) -> Asked:
    """Return what is asked; `options` are of `Request` or of `Options`, and `how` for the engine."""
    how = options.pop("how", {})
    mine = {key: options.pop(key) for key in OF_REQUEST if key in options}
    return Asked(Request(data, protocol, **mine), Options(form, model, template, adapter, **options), how)
