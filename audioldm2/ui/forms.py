"""The option fields of the library as the fields of a form: name, label, help, kind and default of each.

`options` and `edit_options` say what there is. A new option with a flag and a plain type shows up on the page
and in the API without a line here.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from audioldm2.edit_options import EditOptions
from audioldm2.editing.edit import EDITING_OPTIONS
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions

SPEECH = ("transcription", "phonemes")
LENGTH = ("audio_length_in_s", "loop")  # which a given sound decides

TEXT, NUMBER, SWITCH, CHOICE, NUMBERS = "text", "number", "switch", "choice", "numbers"


@dataclass(frozen=True)
class Entry:
    """A field of a form."""

    name: str  # in the API: that of the option, but for the first of a pair
    label: str
    help: str
    kind: str  # TEXT, NUMBER, SWITCH, CHOICE or NUMBERS: several in one text
    default: Any
    common: bool
    choices: tuple[str, ...] = ()
    option: str = ""  # that it sets
    place: int | None = None  # in the pair that the option is; None: it is the option
    parse: Callable[[str], Any] | None = None  # of a text that stands for a number

    def value(self, shown: Any) -> Any:
        """What the option is given, for what the form shows; an empty field has the default.

        Values of a wrong type stay as they are: the option's rule refuses them.
        """
        if shown is None or (shown == "" and self.kind != SWITCH):
            return self.default
        if self.kind == NUMBER:
            return _number(shown, self.parse)
        if self.kind == NUMBERS and isinstance(shown, str):
            return _numbers(shown)
        return shown


def _number(shown: Any, parse: Callable[[str], Any] | None) -> Any:
    """Forms write whole numbers as 25.0, and numbers that may be absent as text."""
    with suppress(ValueError):
        shown = (parse or float)(shown.strip()) if isinstance(shown, str) else shown
    return int(shown) if isinstance(shown, float) and shown.is_integer() else shown


def _numbers(text: str) -> tuple[float, ...] | str:
    try:
        return tuple(float(each) for each in text.replace(",", " ").split())
    except ValueError:
        return text


def sound_entries() -> list[Entry]:
    """Of a sound from a prompt."""
    return _entries(
        each for each in fields(GenerationOptions) if each.name not in (*EDITING_OPTIONS, *SPEECH)
    )


def own_sound_entries() -> list[Entry]:
    """Of a sound that begins with another one: the options of `generate`, then those of `edit` alone."""
    shared = [each for each in fields(GenerationOptions) if each.name not in (*LENGTH, *SPEECH)]
    names = {each.name for each in fields(GenerationOptions)}
    return _entries([*shared, *(each for each in fields(EditOptions) if each.name not in names)])


def _entries(options: Iterable[Field]) -> list[Entry]:
    return [entry for option in options if option.metadata["flag"] for entry in _of(option)]


def _of(option: Field) -> list[Entry]:
    """One field, or two where the option is a pair or its flag sets a second option; none for a file."""
    about, types = option.metadata, set(get_args(option.type) or (option.type,)) - {NoneType}
    words, common = _words(about["flag"]), about["common"]
    choices = tuple(getattr(about["rule"], "keywords", {}).get("choices", ()))
    if Path in types:
        return []
    if about["second"]:
        ends = zip((option.name, about["second"]), about["metavar"].lower().split(), strict=True)
        return [
            Entry(name, f"{words} {end}", about["help"], NUMBER, None, common, option=name)
            for name, end in ends
        ]
    if about["first"]:
        flag, text = about["first"]
        front = Entry(
            _identifier(flag), _words(flag), text, NUMBER, None, common, option=option.name, place=0
        )
        back = Entry(option.name, words, about["help"], NUMBER, None, common, option=option.name, place=1)
        return [front, back]
    if about["values"]:
        kind = NUMBERS
    elif bool in types:
        kind = SWITCH
    elif choices:
        kind = CHOICE
    elif types & {int, float}:
        kind = NUMBER
    elif str in types:
        kind = TEXT
    else:
        return []
    help = f"{about['help']}: {about['metavar']}" if kind == NUMBERS else about["help"]
    parse = about["parse"] if kind == NUMBER else None
    return [
        Entry(
            option.name, words, help, kind, option.default, common, choices, option=option.name, parse=parse
        )
    ]


def _identifier(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _words(flag: str) -> str:
    return flag.removeprefix("--").replace("-", " ").capitalize().replace(" hz", " Hz")


def given(entries: Iterable[Entry], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of `generate`.

    The others are left out, so that `edit` has its own defaults.

    Args:
        entries: the fields of the form.
        values: what it shows, by name; what is absent has its default.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        value = entry.value(values.get(entry.name))
        if entry.place is None:
            if value != entry.default:
                found[entry.option] = value
        elif value is not None:
            pair = list(found.get(entry.option, (0.0, 0.0)))
            pair[entry.place] = value
            found[entry.option] = tuple(pair)
    return found


def field_of(error: ArgumentError, entries: Iterable[Entry], others: Iterable[str]) -> str | None:
    """The name of the field that an error is about; None where it is about none.

    Args:
        error: its name is that of an option, perhaps with an entry in brackets.
        entries: the fields of the form.
        others: its other fields, which are no options.
    """
    base, _, place = error.name.partition("[")
    for entry in entries:
        if entry.option == base and entry.place in (None, int(place.rstrip("]") or 1) if place else 1):
            return entry.name
    return base if base in others else None
