"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake, told in one line: the file, the line, what was expected, the next step.

    Scripts print it as ``error: ...`` and exit with code 2; it never becomes a traceback.
    """
