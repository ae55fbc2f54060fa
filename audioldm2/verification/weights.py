"""Checks that read weight files and run no network: whether they are whole, and their values can be right."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from audioldm2.checkpoints import hub
from audioldm2.models import build_on_meta
from audioldm2.verification.finding import AGAIN, FAILED, PASSED, SEND, Finding, Inapplicable, listed
from audioldm2.verification.published import TOKEN_TABLE
from audioldm2.verification.subject import CONVERTED, ORIGINAL, Subject

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


def unopened(message: str) -> list[Finding]:
    """The findings for a checkpoint that cannot be opened at all."""
    advice = f"{AGAIN} If it happens again with a fresh copy: {SEND}"
    meaning = "A file of the checkpoint is missing, damaged or of another kind."
    return [Finding("files", FAILED, message, {}, (), meaning, advice)]


# contents ---------------------------------------------------------------------------------------------------


def contents(subject: Subject) -> Finding:
    """Count tensors, parameters and bytes by network; look for NaN, infinity and matrices of one value."""
    figures: dict[str, dict[str, Any]] = {}
    problems, all_parameters = [], 0
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
