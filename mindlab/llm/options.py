"""What a language model is asked, and which: all that scores depend on beside the impressions."""

from dataclasses import dataclass
from pathlib import Path

from mindlab.common.errors import UserError
from mindlab.common.files import read_json
from mindlab.prompts import PROMPTS, Prompt, check_options, prompt_of
from mindlab.prompts.base import WRITTEN
from mindlab.prompts.summary import check_way
from mindlab.tasks import Task

ENGINES = ("hf", "vllm")
# By config.json's model_type.
TEMPLATE_OF = {"glm": "glm4", "glm4": "glm4", "llama": "smollm2", "qwen3": "qwen3_nothink"}


@dataclass(frozen=True)
class Options:
    """What is asked of which model, and how."""

    format: str
    model: str
    template: str
    adapter: str | None = None
    history_length: int | None = None  # None: the format's own
    cutoff_len: int = 1024
    per_token: bool = False
    language: str = "en"
    engine: str = "hf"
    token_budget: int | None = None  # None: what suits the machine
    dtype: str | None = None  # of the weights: float32, bfloat16, int8; None: float32, on a GPU bfloat16
    summary: str = "recent"  # format summary: how the base model wrote them (`mindlab.prompts.Summary.ways`)
    orders: int | None = None  # format listwise: of the candidates, whose scores are averaged; None: its own
    thinking: bool = False  # format json_list: the model reasons before it answers
    constrained: bool = False  # format json_list: held to a JSON schema of the candidates
    base_url: str | None = (
        None  # format json_list: an OpenAI-compatible server, which knows the model by its name
    )

    def __post_init__(self) -> None:
        """Write the format's own history length and orders down, so that the request tells them."""
        prompt = PROMPTS.get(self.format)
        if prompt and self.history_length is None:
            object.__setattr__(self, "history_length", prompt.history_length)
        if prompt and self.orders is None and "orders" in prompt.options:
            object.__setattr__(self, "orders", prompt.usual_orders)

    @property
    def prompt(self) -> Prompt:
        """The prompt in the language asked for."""
        return prompt_of(self.format)(self.language)

    def check(self, task: Task) -> None:
        """Raise UserError for options that do not go together, or not with a task."""
        prompt = PROMPTS.get(self.format)
        if prompt is None or prompt.case != task.case:
            raise UserError(f"protocol {task.name} does not go with format {self.format}")
        if self.engine not in ENGINES:
            raise UserError(f"engine {self.engine!r}: expected {' or '.join(ENGINES)}")
        check_way(prompt, self.summary)
        given = ("per_token", "orders", "thinking", "constrained", "base_url")
        check_options(prompt, {option: getattr(self, option) for option in given})
        if self.thinking and self.constrained:
            raise UserError("--thinking writes prose and --constrained forbids it: give one of them")
        if prompt.asks == WRITTEN and self.engine != "hf":
            raise UserError(
                f"--format {prompt.name} is written, which --engine {self.engine} does not do; --base-url can"
            )
        for option, value in (("--adapter", self.adapter), ("--constrained", self.constrained)):
            if value and self.base_url:
                raise UserError(
                    f"{option} does not go with --base-url: the server decides what it loads and how it writes"
                )


def template_of(model: str | Path) -> str:
    """Return LLaMA-Factory's template name for a model folder, from its config.json.

    Raises UserError where the folder does not tell.
    """
    path = Path(model) / "config.json"
    kind = read_json(path, "get the model again").get("model_type") if path.is_file() else None
    if not isinstance(kind, str) or kind not in TEMPLATE_OF:
        raise UserError(f"cannot tell the chat template of {model}; give --template (glm4, smollm2, ...)")
    return TEMPLATE_OF[kind]
