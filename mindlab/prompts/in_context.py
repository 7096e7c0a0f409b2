"""`pointwise` with answered examples."""

from mindlab.prompts.base import listed, yes_no
from mindlab.prompts.pointwise import Pointwise, PointwiseParts


class InContext(Pointwise):
    """`pointwise` with the user's own latest clicks as answered examples (few-shot), the history before them.

    A history holds clicks alone, so every example is a Yes: all candidates see the same examples, and only how the
    scores lie to each other counts. Of the impression that is asked about nothing is shown.
    """

    name = "in_context"
    trains = False
    options = ()
    n_examples = 2

    def droppable(self, parts: PointwiseParts) -> int:
        """Return how many history titles can go: all but those of the examples."""
        return max(0, len(parts.history) - self.n_examples)

    def around(self, history: list[str]) -> tuple[str, str]:
        """Return the text of `input` before and after the candidate."""
        n = max(0, len(history) - self.n_examples)
        head, tail = super().around(history[:n])
        shown = listed(history[:n]) or self.text["no_history"]
        question = head.removeprefix(shown)
        examples = "".join(f"{question}{title}{tail}\n{yes_no(True)}" for title in history[n:])
        return shown + examples + question, tail
