"""The one kind of error that is the user's to mend: the command line prints it as one line, without traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something outside the code is wrong: a config value, a file, the machine.

    The message is one line: the config path or file, the value found, what is allowed, what to do.
    """


class DamagedSampleError(UserError):
    """A sample whose bytes are not those that were written: it can be left out, and must be counted."""


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """The value of an option, if it is one of those allowed."""
    if value not in (known := tuple(allowed)):
        raise UserError(f"{name} {value!r}: can be {', '.join(known)}")
    return value


REQUEUE = 75
"""Exit code: nothing is wrong, run the same command again (EX_TEMPFAIL of sysexits.h)."""


class PreemptedError(Exception):
    """A scheduler asked the training to stop, and its last step is saved."""
