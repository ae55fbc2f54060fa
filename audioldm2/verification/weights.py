"""Checks that read files and run no network: what is there, what it is, and whether the values can be right."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2.checkpoints import hub
from audioldm2.models import build_on_meta
from audioldm2.verification.facts import Facts
from audioldm2.verification.finding import (
    FAILED,
    MEASURED,
    PASSED,
    SEND,
    Finding,
    Inapplicable,
    Progress,
)
from audioldm2.verification.fingerprints import Comparison, Fingerprint, compare, fingerprint
from audioldm2.verification.published import PUBLISHED, TOKEN_TABLE, keys_hash
from audioldm2.verification.subject import CONVERTED, DIFFUSERS, ORIGINAL, Subject, differing_shapes

AGAIN = "Download or copy the checkpoint again, or convert its source again with 'audioldm2 convert --force'."
MOST_NAMED = 8  # keys that a sentence lists


# files ------------------------------------------------------------------------------------------------------


def files(subject: Subject) -> Finding:
    """Open every network: whole files, the right keys and shapes, floating dtypes."""
    sizes = {
        str(path.relative_to(subject.path.parent)): path.stat().st_size for path in weight_files(subject)
    }
    count, total = len(subject.checkpoint.states), sum(sizes.values())
    figures = {"layout": subject.layout, "bytes": sizes, "all bytes": total}
    if not subject.broken:
        summary = f"All {count} networks open ({subject.layout}, {total / 1e9:.3f} GB of weights)."
        return Finding("files", PASSED, summary, figures)
    return Finding(
        "files",
        FAILED,
        f"{len(subject.broken)} of {count} networks cannot be opened: {', '.join(subject.broken)}.",
        figures,
        tuple(f"'{name}': {message}" for name, message in subject.broken.items()),
        "A file is truncated, damaged, of another model or not a file of weights; each line says which.",
        f"{AGAIN} If it happens again with a fresh copy: {SEND}",
    )


def weight_files(subject: Subject) -> list[Path]:
    """The files that the weights are read from."""
    if subject.layout == ORIGINAL:
        return [subject.path]
    if subject.layout == CONVERTED:
        return [
            path
            for path in sorted(subject.path.glob("*.safetensors"))
            if path.stem in subject.checkpoint.configs
        ]
    folders = [subject.path / name for name in hub.FOLDERS if (subject.path / name).is_dir()]
    chosen = [
        (folder, name)
        for folder in folders
        for name in hub.choose_weights(path.name for path in folder.iterdir())
    ]
    return [folder / name for folder, name in chosen]


# identity ---------------------------------------------------------------------------------------------------


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
            advice="If it should be a published one, name it with --as. If you have facts, give --facts FILE.",
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
    from audioldm2.convert.sources import read_state  # type: ignore[import-not-found]

    found = {}
    for folder, expected in facts.folders.items():
        if not {name for name in subject.broken if _folder_of(name) == folder}:
            state = read_state(subject.path / folder)
            found[folder] = keys_hash((key, tensor.shape) for key, tensor in state.items()) == expected
    return found


def _folder_of(network: str) -> str:
    from audioldm2.convert import PARTS  # type: ignore[import-not-found]

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


# contents ---------------------------------------------------------------------------------------------------


def contents(subject: Subject) -> Finding:
    """Count tensors, parameters and bytes by network, and look for NaN, infinity and matrices of one value."""
    figures, problems, all_parameters = {}, [], 0
    facts = subject.facts
    for name, open_state in subject.states.items():
        state = open_state()
        parameters = {
            key for key, _ in build_on_meta(name, subject.checkpoint.configs[name]).named_parameters()
        }
        count = sum(tensor.numel() for key, tensor in state.items() if key in parameters)
        figures[name] = {
            "tensors": len(state),
            "parameters": count,
            "bytes": sum(tensor.nbytes for tensor in state.values()),
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
        }
        all_parameters += count
        expected = facts.parameters.get(name) if facts else None
        if expected is not None and count != expected:
            problems.append(f"'{name}' has {count:,} parameters; the right one has {expected:,}.")
        broken = [key for key, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            problems.append(f"'{name}' holds NaN or infinity in {listed(broken)}.")
        flat = [
            key for key, tensor in state.items() if tensor.ndim > 1 and key not in broken and _is_flat(tensor)
        ]
        if flat:
            problems.append(f"'{name}' has matrices of one value in {listed(flat)}: they were never filled.")
    dtypes = sorted({dtype for each in figures.values() for dtype in each["dtypes"]})
    words = f"{all_parameters:,} parameters in {', '.join(dtypes)}"
    if facts and "gpt2" in facts.parameters:
        words += f" ({all_parameters + TOKEN_TABLE:,} with GPT-2's token table, which is not read)"
    if not problems:
        return Finding("contents", PASSED, f"{words}; every value is finite.", figures)
    return Finding(
        "contents",
        FAILED,
        f"{words}; something is wrong in {len(problems)} places.",
        figures,
        tuple(problems),
        "A value that is not finite spreads to every sound; other counts mean another network.",
        f"{AGAIN} If a fresh copy has the same: {SEND}",
    )


def _is_flat(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def listed(keys: list[str]) -> str:
    """Keys for a sentence: the first few, and how many more."""
    shown = ", ".join(f"'{key}'" for key in keys[:MOST_NAMED])
    return shown if len(keys) <= MOST_NAMED else f"{shown} and {len(keys) - MOST_NAMED} more"


# norms ------------------------------------------------------------------------------------------------------

NORMS = (nn.LayerNorm, nn.GroupNorm)


def norms(subject: Subject) -> Finding:
    """Look at every norm: trained weights lie around 1, or at least further from 0 than the biases.

    Evidence, not proof: two norms of one shape whose places are swapped look right here.
    """
    odd, untouched, count = [], [], 0
    for name, open_state in subject.states.items():
        state = open_state()
        network = build_on_meta(name, subject.checkpoint.configs[name])
        for path, module in network.named_modules():
            if not isinstance(module, NORMS):
                continue
            weight, bias = (state[f"{path}.{part}"].float() for part in ("weight", "bias"))
            count += 1
            if bias.abs().median() > 0.5 and weight.abs().median() < 0.2:
                odd.append(f"{name}.{path}")
            elif (weight == 1).all() and (bias == 0).all():
                untouched.append(f"{name}.{path}")
    if not count:
        raise Inapplicable("no network with norms can be opened.")
    problems = [f"Weight and bias look swapped in {listed(odd)}."] if odd else []
    if untouched:
        problems.append(f"Weight 1 and bias 0, as before any training, in {listed(untouched)}.")
    figures = {"norms": count, "swapped": odd, "untouched": untouched}
    if not odd:
        words = "No norm has a weight that looks like a bias (evidence, not proof)"
        return Finding("norms", PASSED, f"{words}; {count} were read.", figures, tuple(problems))
    return Finding(
        "norms",
        FAILED,
        f"{len(odd)} of {count} norms have weights near 0 and biases far from it.",
        figures,
        tuple(problems),
        "Weights and biases were probably exchanged when the file was written or converted.",
        f"{AGAIN} If the source has them so: {SEND}",
    )


# tensors ----------------------------------------------------------------------------------------------------


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


def unopened(message: str) -> list[Finding]:
    """The findings for a checkpoint that cannot be opened at all."""
    advice = f"{AGAIN} If it happens again with a fresh copy: {SEND}"
    meaning = "A file of the checkpoint is missing, damaged or of another kind."
    return [Finding("files", FAILED, message, {}, (), meaning, advice)]
