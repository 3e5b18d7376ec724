"""The one kind of error that is the user's to mend: the command line prints it as one line, without traceback."""


class UserError(ValueError):
    """Something outside the code is wrong: a config value, a file, the machine.

    The message is one line: the config path or file, the value found, what is allowed, what to do.
    """


REQUEUE = 75
"""Exit code: nothing is wrong, run the same command again (EX_TEMPFAIL of sysexits.h)."""


class PreemptedError(Exception):
    """A scheduler asked the training to stop, and its last step is saved."""
