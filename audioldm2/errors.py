"""The two kinds of error that users meet.

A caller's mistake (a bad argument) is a plain `ValueError` that says the name, the value and what is allowed.
A checkpoint's mistake is a `WeightsError` that names the file, the first offending keys and what repairs it.
"""


class WeightsError(RuntimeError):
    """A checkpoint that cannot be found, read, converted or loaded as it is."""


def some(names: list[str], most: int = 3) -> str:
    """The first few of many names, in quotes, and how many more there are: for messages."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
