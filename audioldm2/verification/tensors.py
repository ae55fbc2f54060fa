"""The check that compares every tensor with the fingerprints of a right copy, and names what is wrong."""

from collections.abc import Mapping

from audioldm2.verification.finding import (
    AGAIN,
    FAILED,
    PASSED,
    SEND,
    Finding,
    Inapplicable,
    Progress,
    listed,
)
from audioldm2.verification.fingerprints import Comparison, Fingerprint, compare, fingerprint
from audioldm2.verification.subject import Subject


def tensors(subject: Subject) -> Finding:
    """Compare the fingerprint of every tensor with the facts."""
    facts = subject.facts
    if facts is None or not facts.tensors:
        raise Inapplicable(
            "no fingerprints of a right copy are known; --write-facts of a copy that is right makes them."
        )
    comparisons, dtypes = {}, {}
    for name, prints in fingerprints(subject).items():
        if name in facts.tensors:
            state = subject.states[name]()
            dtypes[name] = {key: tensor.dtype for key, tensor in state.items()}
            comparisons[name] = compare(name, prints, facts.tensors, dtypes[name])
    problems = sentences(comparisons, facts.name)
    figures = {
        name: {
            "tensors": each.tensors,
            "rounded": each.rounded,
            "swapped": each.swapped,
            "differing": each.differing,
        }
        for name, each in comparisons.items()
    }
    count, rounded = (
        sum(getattr(each, part) for each in comparisons.values()) for part in ("tensors", "rounded")
    )
    if not problems:
        words = f"All {count} tensors have the values of {facts.name}"
        words += f", {rounded} of them rounded" if rounded else ""
        return Finding("tensors", PASSED, f"{words}.", figures)
    wrong = [name for name, each in comparisons.items() if each.swapped or each.differing]
    return Finding(
        "tensors",
        FAILED,
        f"{', '.join(wrong)} {'does' if len(wrong) == 1 else 'do'} not hold what {facts.name} holds.",
        figures,
        tuple(problems),
        "Swapped tensors mean a wrong conversion; a whole network that differs is of another model.",
        f"{AGAIN} If a converter of this project swapped them: {SEND}",
    )


def fingerprints(subject: Subject) -> dict[str, dict[str, Fingerprint]]:
    """The fingerprint of every tensor that can be read: network -> key -> fingerprint."""
    found: dict[str, dict[str, Fingerprint]] = {}
    progress = Progress("hashing networks", len(subject.states), subject.report)
    for name, open_state in subject.states.items():
        found[name] = {key: fingerprint(tensor) for key, tensor in open_state().items()}
        progress.add()
    return found


def sentences(comparisons: Mapping[str, Comparison], right: str) -> list[str]:
    """What is wrong, in words: a revision, a network, tensors that are swapped, single tensors."""
    whole = [name for name, each in comparisons.items() if each.is_other]
    if len(whole) > 1 and len(whole) > len(comparisons) / 2:
        share = f"{len(whole)} of {len(comparisons)} networks differ in most tensors"
        return [f"This is another revision of {right}, or another model of its architecture: {share}."]
    found = [
        f"'{name}' is of another model or another revision: {len(comparisons[name].differing)} of its "
        f"{comparisons[name].tensors} tensors differ."
        for name in whole
    ]
    for name, each in comparisons.items():
        found += [f"'{name}.{key}' holds what '{owner}' has to hold." for key, owner in each.swapped.items()]
        if each.differing and name not in whole:
            found.append(f"'{name}' differs in {listed(each.differing)}.")
    return found
