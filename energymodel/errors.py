"""The two ways in which a command fails; the command line maps them to its exit status.

    ValueError
      └ InputError     unusable input: a file, a field or a flag must change   (exit 2)
    RuntimeError
      └ WorkError      the input was fine, the work failed                     (exit 1)

A message is one sentence that names the file or field and says what would be right.
"""


class InputError(ValueError):
    """Unusable input: the message names the field and the remedy."""


class WorkError(RuntimeError):
    """The work itself failed: the message gives the reason."""
