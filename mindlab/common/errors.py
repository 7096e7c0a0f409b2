"""The one exception that means: the user can mend this."""

import re

LONGEST = 1500  # characters of a line: what it quotes from a file may have any length
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """A user's mistake, told in one line: the file, the line, what was expected, the next step.

    Scripts print it as ``error: ...`` and exit with code 2; it never becomes a traceback. What a hostile file brings
    into the text cannot steer a terminal: control characters and halves of a character are shown as escapes.

    >>> print(UserError("news.tsv: a title \x1b[31m"))
    news.tsv: a title \\x1b[31m
    """

    def __init__(self, text: str, shown: str = ""):
        """Take the line, and what another program printed, to be shown below it; very long lines are cut in the middle."""
        super().__init__("\n".join(map(_printable, [text, *shown.splitlines()])))


def _printable(line: str) -> str:
    line, half = _UNSHOWABLE.sub(lambda found: ascii(found[0])[1:-1], line), LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"
