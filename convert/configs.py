"""Reading the source's config.json strictly: a field that we cannot honour is an error, not a shrug.

The original files have no config; there, `count` and `need` read the sizes off the tensors' names and shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Size

from audioldm2.checkpoints.validate import typed
from audioldm2.errors import WeightsError

NEEDED = object()


def field(source: dict, name: str, kind: Any, default: Any = NEEDED) -> Any:
    """A field of a kind (see `checks.typed`), lists as tuples; without a default it has to be there."""
    if name not in source and default is NEEDED:
        raise WeightsError(
            f"the {_kind(source)} config has no '{name}'; is it the config.json of this network?"
        )
    return typed(f"{name} of the {_kind(source)} config", source.get(name, default), kind)


def demand(source: dict, name: str, *allowed: Any) -> None:
    """A field that, where present, has to be one of these values: the only ones that our network computes."""
    if name in source and source[name] not in allowed:
        wanted = " or ".join(repr(value) for value in allowed)
        raise WeightsError(
            f"the {_kind(source)} config says {name} = {source[name]!r:.80}; only {wanted} is supported. "
            "This is another architecture than AudioLDM 2's."
        )


def _kind(source: dict) -> str:
    architectures = source.get("architectures")
    named = source.get("_class_name") or (architectures[:1] if isinstance(architectures, list) else None)
    return str(named[0] if isinstance(named, list) and named else named or "network's")


def count(shapes: Mapping[str, Size], pattern: str) -> int:
    """How many modules there are: one more than the largest number in place of the pattern's `*`."""
    expression = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)") + r"\.")
    numbers = [int(found[1]) for found in map(expression.match, shapes) if found]
    return max(numbers, default=-1) + 1


def need(shapes: Mapping[str, Size], key: str, dimensions: int) -> Size:
    """A tensor's shape; WeightsError, which names the key, where it is not there or of other dimensions."""
    if key not in shapes:
        raise WeightsError(f"'{key}' is missing, from which the architecture is read.")
    if len(shapes[key]) != dimensions or 0 in shapes[key]:
        raise WeightsError(
            f"'{key}' is of shape {tuple(shapes[key])}; it has to have {dimensions} dimensions."
        )
    return shapes[key]
