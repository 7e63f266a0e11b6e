"""The one exception type for anything a user can put right."""


class UserError(ValueError):
    """Bad input. The message names the wrong value, the reason and the remedy, in one sentence or two.

    Commands print it without a traceback and exit with status 2 (see ``core.cli.main``).
    """
