"""The two kinds of error that users meet, and the checks of single values that raise the first.

A caller's mistake is an `ArgumentError`, a checkpoint's a `WeightsError`. Both are sentences that help: what
was given, what is allowed, what to do.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from numbers import Integral, Real
from typing import Any


class WeightsError(RuntimeError):
    """A checkpoint that cannot be found, read, converted or loaded.

    Its message names the file, the first offending keys, and the command that repairs it.
    """


class ArgumentError(ValueError):
    """An argument with a value that is not allowed. All messages share one grammar:

        NAME is VALUE; it has to ALLOWED.

    name:    the argument, as the library spells it; the command line shows its flag in place of it.
    value:   what was given.
    allowed: completes "it has to ...", such as "be a whole number from 1 to 1000".
    given:   replaces "is VALUE" where the value itself says little, such as "has 3 entries for 2 prompts".
    """

    def __init__(self, name: str, value: Any, allowed: str, *, given: str | None = None):
        self.name, self.value, self.allowed = name, value, allowed
        self.given = f"is {shown(value)}" if given is None else given
        super().__init__(self.sentence(name))

    def sentence(self, name: str) -> str:
        """The message, with the argument under another name."""
        return f"{name} {self.given}; it has to {self.allowed}."

    def __reduce__(self) -> tuple:
        return _rebuilt, (self.name, self.value, self.allowed, self.given)


def _rebuilt(name: str, value: Any, allowed: str, given: str) -> ArgumentError:
    return ArgumentError(name, value, allowed, given=given)


def require_whole(name: str, value: Any, least: int, most: int | None = None, where: str = "") -> int:
    """A whole number within bounds, of Python or NumPy, as an int; ArgumentError for anything else.

    `where` ends the message, such as "for pndm".
    """
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        raise ArgumentError(name, value, f"be a whole number {bounds} {where}".rstrip())
    return int(value)


def require_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, finite: bool = True
) -> float:
    """A number within bounds, of Python or NumPy, as a float; ArgumentError for anything else."""
    found = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number beyond all floats
            found = float(value)
    if math.isnan(found) or (finite and math.isinf(found)) or not least <= found <= most:
        if math.isfinite(least) and math.isfinite(most):
            bounds = f"a number from {least:g} to {most:g}"
        elif math.isfinite(least):
            bounds = f"a {'finite ' if finite else ''}number of at least {least:g}"
        else:
            bounds = "a finite number" if finite else "a number"
        raise ArgumentError(name, value, f"be {bounds}")
    return found


def require_bool(name: str, value: Any) -> bool:
    """True or False; ArgumentError for anything else."""
    if not isinstance(value, bool):
        raise ArgumentError(name, value, "be True or False")
    return value


def require_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of some names; ArgumentError for anything else."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(name, value, f"be one of {', '.join(choices)}")
    return value


def require_texts(name: str, value: Any) -> list[str]:
    """One text or a non-empty list of texts, as a list; ArgumentError for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise ArgumentError(name, value, "be a text or a list of at least one text")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise ArgumentError(f"{name}[{index}]", text, "be a text")
    return list(value)


def shown(value: Any) -> str:
    """A value as a message shows it: 80 characters at most."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} too long to show"


def some(names: list[str], most: int = 3) -> str:
    """The first few of many names, in quotes, and how many more there are: for messages."""
    first = ", ".join(f"'{name}'" for name in names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
