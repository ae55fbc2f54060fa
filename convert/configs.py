"""Reading the source's config.json strictly: a field that we do not know how to honour is an error, not a shrug."""

from typing import Any

from audioldm2.errors import WeightsError


def field(source: dict, name: str) -> Any:
    """A field that has to be there."""
    if name not in source:
        raise WeightsError(
            f"the {_kind(source)} config has no '{name}'; is it the config.json of this network?"
        )
    return source[name]


def demand(source: dict, name: str, *allowed: Any) -> None:
    """A field that, where present, has to be one of these values: the only ones that our network computes."""
    if name in source and source[name] not in allowed:
        wanted = " or ".join(repr(value) for value in allowed)
        raise WeightsError(
            f"the {_kind(source)} config says {name} = {source[name]!r}; only {wanted} is supported. "
            "This is another architecture than AudioLDM 2's."
        )


def _kind(source: dict) -> str:
    return source.get("_class_name") or next(iter(source.get("architectures") or []), "network's")
