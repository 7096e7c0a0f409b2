"""Jobs for the workers of a cluster, in a module that they can import."""

import os
import signal
import time

from mindlab.errors import UserError


def echo(job):
    time.sleep(0.5 if job == "slow" else 0)
    return job, os.getpid()


class Counter:
    """Counts its calls, as a model that is loaded once would be kept."""

    n = 0

    def __call__(self, job):
        self.n += 1
        return self.n


class KillOnce:
    """Kills its own worker by SIGKILL at job 3, the first time."""

    def __init__(self, flag):
        self.flag = flag

    def __call__(self, x):
        if x == 3 and not self.flag.exists():
            self.flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return x, os.getpid()


def die(x):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(x):
    if x == 2:
        raise UserError("news.tsv: line 2 has no title")
    return x


def reciprocal(x):
    return 1 / x
