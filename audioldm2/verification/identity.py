"""The check that says which known checkpoint this is, by its architecture and its key lists."""

from dataclasses import asdict
from typing import Any

from audioldm2.verification.facts import Facts
from audioldm2.verification.finding import AGAIN, FAILED, MEASURED, PASSED, Finding
from audioldm2.verification.published import PUBLISHED, keys_hash
from audioldm2.verification.subject import DIFFUSERS, ORIGINAL, Subject, differing_shapes


def identity(subject: Subject) -> Finding:
    """Say which known checkpoint has this architecture, and whether the key lists are those of its files."""
    configs, given = subject.checkpoint.configs, subject.given
    wanted = [given] if given else [facts for facts in PUBLISHED if facts.name == subject.named]
    for facts in wanted:
        different = differing_shapes(configs, facts.configs)
        if different:
            return Finding(
                "identity",
                FAILED,
                f"This is not {facts.name}: the architecture differs in {', '.join(different)}.",
                {
                    "differing": {
                        name: _sizes(configs.get(name), facts.configs.get(name)) for name in different
                    }
                },
                tuple(
                    f"'{name}': {_difference(configs.get(name), facts.configs.get(name))}"
                    for name in different
                ),
                "It is another model, or one of its networks is.",
                AGAIN,
            )
    if not subject.candidates:
        nearest = min(PUBLISHED, key=lambda facts: len(differing_shapes(configs, facts.configs)))
        different = differing_shapes(configs, nearest.configs)
        return Finding(
            "identity",
            MEASURED,
            f"No published checkpoint has this architecture; {nearest.name} is nearest and differs in "
            f"{', '.join(different)}. What needs no facts is checked.",
            {"nearest": nearest.name, "differing": different},
            advice="If it should be a published one, name it with --as. Facts of a right copy go to --facts.",
        )
    names = [facts.name for facts in subject.candidates]
    figures: dict[str, Any] = {
        "candidates": names,
        "source": subject.checkpoint.source,
        "revision": subject.checkpoint.revision,
        "key lists": _key_lists(subject, subject.candidates[0]),
    }
    words = names[0] if len(names) == 1 else f"one of {' and '.join(names)}, which share it"
    other = [name for name, equal in figures["key lists"].items() if not equal]
    problems = tuple(
        f"The key list of {name} is not that of the published file; all tensors that are read are there."
        for name in other
    )
    return Finding("identity", PASSED, f"The architecture is that of {words}.", figures, problems)


def _key_lists(subject: Subject, facts: Facts) -> dict[str, bool]:
    """Folder, or file -> whether its keys and shapes are those of the published one, where that is known."""
    if subject.layout == ORIGINAL and facts.original is not None:
        table = getattr(subject.checkpoint, "tensors", {})
        count, digest = keys_hash((key, tensor.shape) for key, tensor in table.items())
        return {subject.path.name: (count, digest) == (facts.original[0], facts.original[2])}
    if subject.layout != DIFFUSERS or not facts.folders:
        return {}
    from audioldm2.convert.sources import read_state

    found = {}
    for folder, expected in facts.folders.items():
        if not {name for name in subject.broken if _folder_of(name) == folder}:
            state = read_state(subject.path / folder)
            found[folder] = keys_hash((key, tensor.shape) for key, tensor in state.items()) == expected
    return found


def _folder_of(network: str) -> str:
    from audioldm2.convert import PARTS

    return PARTS[network].folder


def _sizes(found: Any, expected: Any) -> dict[str, Any]:
    ours, theirs = (asdict(config) if config is not None else {} for config in (found, expected))
    return {
        name: [ours.get(name), theirs.get(name)]
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }


def _difference(found: Any, expected: Any) -> str:
    if found is None or expected is None:
        return f"it is {'missing' if found is None else 'not expected'}."
    sizes = _sizes(found, expected).items()
    return f"{', '.join(f'{name} is {a}, expected {b}' for name, (a, b) in sizes)}."
