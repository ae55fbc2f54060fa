"""Reads a source's config.json strictly: a field that our networks cannot follow is an error.

Original files have no config; for them, `count` and `need` read the sizes off the tensors' names and shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Size

from audioldm2.checkpoints.validate import typed
from audioldm2.errors import WeightsError, shown

REQUIRED = object()


def field(source: dict, name: str, kind: Any, default: Any = REQUIRED) -> Any:
    """Return a field of the type `kind` (see `validate.typed`), lists as tuples.

    Args:
        source: the config.
        name: the field.
        kind: its type.
        default: the value where the field is absent. Without one the field is required.

    Raises:
        WeightsError: the field is absent, or of another type.
    """
    if name not in source and default is REQUIRED:
        raise WeightsError(
            f"the {_class_of(source)} config has no '{name}'; is it the config.json of this network?"
        )
    return typed(f"{name} of the {_class_of(source)} config", source.get(name, default), kind)


def require_value(source: dict, name: str, *supported: Any) -> None:
    """Check that a field, where present, has one of the values that our network implements."""
    if name in source and source[name] not in supported:
        values = " or ".join(repr(value) for value in supported)
        raise WeightsError(
            f"the {_class_of(source)} config says {name} = {shown(source[name])}; only {values} is "
            "supported. This is another architecture than AudioLDM 2's."
        )


def _class_of(source: dict) -> str:
    architectures = source.get("architectures")
    named = source.get("_class_name") or (architectures[:1] if isinstance(architectures, list) else None)
    return str(named[0] if isinstance(named, list) and named else named or "network's")


def count(shapes: Mapping[str, Size], pattern: str) -> int:
    """Return how many modules match: one more than the largest number in place of the pattern's `*`."""
    expression = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)") + r"\.")
    numbers = [int(found[1]) for found in map(expression.match, shapes) if found]
    return max(numbers, default=-1) + 1


def need(shapes: Mapping[str, Size], key: str, dimensions: int) -> Size:
    """Return a tensor's shape; WeightsError, which names the key, if it is absent or has other dimensions."""
    if key not in shapes:
        raise WeightsError(f"'{key}' is missing, and the architecture is read from it.")
    if len(shapes[key]) != dimensions or 0 in shapes[key]:
        raise WeightsError(
            f"'{key}' has the shape {tuple(shapes[key])}; it has to have {dimensions} dimensions, none empty."
        )
    return shapes[key]
