"""The one kind of error that is the user's to mend: the command line prints it as one line, without traceback."""


class UserError(ValueError):
    """Something outside the code is wrong: a config value, a file, the machine.

    The message is one line: the config path or file, the value found, what is allowed, what to do.
    """
