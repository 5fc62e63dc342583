"""The one exception type for mistakes that a user can mend."""


class NasRetrainError(Exception):
    """Bad input or a broken surrounding (a file, a key, a full disk).

    The message names the file or key, what was expected and the remedy; the command line prints it alone, without
    a traceback. Anything else that escapes is a defect of this package.
    """
