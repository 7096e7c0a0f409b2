"""Tasks: which impressions train, which test, what is asked about them, and by which metrics. One class a file.

`TASKS` are those that the commands know by --protocol; a new one is a file and a line here.
"""

from mindlab.common.errors import UserError
from mindlab.tasks.base import Task, limit
from mindlab.tasks.dev import Dev
from mindlab.tasks.sampled import Sampled
from mindlab.tasks.sampled_impression import SampledImpression
from mindlab.tasks.seed import Seed

__all__ = ["TASKS", "Dev", "Sampled", "SampledImpression", "Seed", "Task", "limit", "task_of"]

TASKS: dict[str, Task] = {task.name: task for task in (Seed(), Dev(), Sampled(), SampledImpression())}


def task_of(name: str) -> Task:
    """Return the task of that name.

    Raises:
        UserError: if there is none.

    >>> task_of("dev").headline
    'auc'
    """
    if name not in TASKS:
        raise UserError(f"protocol {name!r}: expected {', '.join(TASKS)}")
    return TASKS[name]
