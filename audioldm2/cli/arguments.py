"""Parsers of the command line. The flags of `generate` are built from the option fields of the library."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, Field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from audioldm2.adapters.model import LARGEST_WEIGHT
from audioldm2.cli.streams import print_result

DASH_HINT = "a text that begins with '-' is given as --negative-prompt='-...', or after -- at the end"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one sentence in a ValueError, without the usage in front of it."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.register("type", Path, lambda text: Path(nonempty(text)))  # what `type=Path` means
        self.second: dict[str, str] = {}  # option -> what its flag sets too: another option or a second entry

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += f"; {self._hint(message.split()[2])}"
        elif "--negative-prompt" in self._option_string_actions and (
            "expected one argument" in message or "ignored explicit argument" in message
        ):
            message += f"; {DASH_HINT}"
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help.")

    def _hint(self, word: str) -> str:
        """What an unknown word was probably meant to be."""
        flag = word.split("=")[0].replace("_", "-")
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        takes_prompt = "--prompts" in self._option_string_actions
        if takes_prompt and (not close or close == ["--prompts"]):
            return "a prompt stands without a flag, in quotes"
        return f"did you mean {close[0]}?" if close else f"there is no {flag}"

    def flag_of(self, name: str) -> str:
        """The flag that sets an argument of the library; `name` itself where none does.

        Arguments and flags belong together where the `dest` of the flag is the name of the argument. An entry
        of a list, such as `seed[1]`, has the flag of the list.
        """
        base, bracket, entry = name.partition("[")
        for wanted, rest in ((name, ""), (base, bracket + entry)):
            for action in self._actions:
                flags = [flag for flag in action.option_strings if flag.startswith("--")]
                if flags and wanted in (action.dest, self.second.get(action.dest)):
                    return flags[0] + rest
        return name

    def _print_message(self, message: str, file: Any = None) -> None:
        """For --help and --version; argparse ignores an output that is full."""
        print_result(message.rstrip("\n"))


def new_parser(prog: str, description: str, *, usage: str | None = None, epilog: str | None = None) -> Parser:
    """A parser whose --help keeps the line breaks of its description."""
    return Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=30),
        allow_abbrev=False,  # --prompt would be --prompts
    )


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def memory(text: str) -> float:
    """A size such as "8GB", "8 GB", "8" or "500MB", in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|MB|G|M|)", text.strip(), re.IGNORECASE)
    size = float(match[1]) * (1e6 if match[2].upper().startswith("M") else 1e9) if match else 0.0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 8GB")
    return size


def nonempty(text: str) -> str:
    """The name of a file, a folder or a model. As a path, an empty text would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def adapter_and_weight(text: str) -> tuple[str, float]:
    """FOLDER[:WEIGHT]; what follows the last colon belongs to the folder unless it is a number."""
    source, colon, number_behind = text.rpartition(":")
    if colon:
        with suppress(ValueError):
            return nonempty(source), _weight(float(number_behind))
    return nonempty(text), 1.0


def _weight(weight: float) -> float:
    if not abs(weight) <= LARGEST_WEIGHT:  # nor NaN
        bounds = f"from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        raise argparse.ArgumentTypeError(f"the weight is {weight:g}; it has to be a number {bounds}")
    return weight


def values_of(given: argparse.Namespace, options: Iterable[Field]) -> dict[str, Any]:
    """The values of option fields; a flag that two options share sets both, and two flags may set a pair."""
    found = {}
    for option in options:
        value, second = getattr(given, option.name), option.metadata["second"]
        if option.metadata["first"]:
            before = getattr(given, first_of(option))
            value = value if before is None else (before, 0.0 if value is None else value)
        if second is not None and value is not None:
            value, found[second] = value
        found[option.name] = value
    return found


def add_options(group: Any, options: Iterable[Field]) -> None:
    """Add the flag of each option field; its `dest` is the name of the field."""
    for option in options:
        about = option.metadata
        common: dict[str, Any] = dict(dest=option.name, default=option.default, help=_help(option))
        if bool in _types(option):
            action = argparse.BooleanOptionalAction if option.default else "store_true"
            group.add_argument(about["flag"], action=action, **common)
            continue
        metavar = about["metavar"]
        if about["values"]:
            common |= {"nargs": about["values"], "metavar": tuple(metavar.split())}
        else:
            common |= {"metavar": metavar}
        group.add_argument(about["flag"], type=_text_parser(option), **common)
        if about["first"]:
            flag, text = about["first"]
            common |= {"dest": first_of(option), "help": f"{text} (default: none)"}
            group.add_argument(flag, type=_text_parser(option), **common)


def first_of(option: Field) -> str:
    """The `dest` of the flag that sets the first of a pair: what messages call that entry."""
    return f"{option.name}[0]"


def _types(option: Field) -> tuple[Any, ...]:
    """The members of a union, or the only type."""
    return get_args(option.type) or (option.type,)


def _text_parser(option: Field) -> Callable[[str], Any]:
    """Text to the option's type. Text that is not of this type stays text: the option's rule refuses it."""
    types = _types(option)
    parse = option.metadata["parse"] or (float if float in types else int if int in types else str)

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            return text

    return read


def _help(option: Field) -> str:
    """The option's help with its default, which "%" in it does not disturb."""
    text = option.metadata["help"].replace("%", "%%")
    if bool in _types(option) or option.default is MISSING or "default" in text:
        return text
    shown = option.default
    if shown is None:
        shown = "none"
    elif isinstance(shown, float):
        shown = f"{shown:g}"
    return f"{text} (default: {shown})"
