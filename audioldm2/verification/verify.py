"""The list of checks, what runs them, and what writes the facts of a checkpoint that is right."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch

from audioldm2.checkpoints import storage
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.verification import identity, precision, settings, sounds, tensors, weights
from audioldm2.verification.facts import Facts, Slice
from audioldm2.verification.finding import FAILED, NOT_APPLICABLE, SEND, SKIPPED, Finding, Inapplicable
from audioldm2.verification.published import TEXTS
from audioldm2.verification.readings import readings_of
from audioldm2.verification.subject import Subject


@dataclass(frozen=True)
class Check:
    """One check: a function of the subject that returns a finding."""

    name: str
    run: Callable[[Subject], Finding]
    what: str  # one line, for --help
    runs_networks: bool = False  # --quick leaves it out


CHECKS = (
    Check("files", weights.files, "every network opens: whole files, the right keys, shapes and dtypes"),
    Check("identity", identity.identity, "which published checkpoint has this architecture; key lists"),
    Check("contents", weights.contents, "counts and dtypes by network; NaN, infinity, matrices of one value"),
    Check("norms", weights.norms, "norms whose weight and bias look swapped, or were never trained"),
    Check("tensors", tensors.tensors, "every tensor against the fingerprints of --facts: what is swapped"),
    Check(
        "settings", settings.settings, "what no tensor shows: heads, epsilons, scaling, the noise schedule"
    ),
    Check("tokenizers", settings.tokenizers, "known texts have the token ids that they should have"),
    Check("half", precision.half, "every network is finite in float16 and bfloat16; its error in dB", True),
    Check("round_trip", sounds.round_trip, "a chirp with clicks through VAE and vocoder and back", True),
    Check("slices", sounds.slices, "recorded sounds come out; which reading of the heads agrees", True),
    Check("heads", sounds.heads, "CLAP scores of both readings of the heads, paired, with an interval", True),
)


def verify(subject: Subject, *, quick: bool = False, skip: Collection[str] = ()) -> Iterator[Finding]:
    """Run every check in turn and yield its finding.

    Args:
        subject: the checkpoint.
        quick: leave out the checks that run networks.
        skip: names of checks to leave out.
    """
    for check in CHECKS:
        if check.name in skip or (quick and check.runs_networks):
            why = "--skip" if check.name in skip else "--quick"
            yield Finding(check.name, SKIPPED, f"Left out by {why}.")
            continue
        if check.runs_networks:
            subject.report(f"{check.name}: {check.what}")
        yield _run(check, subject)


def _run(check: Check, subject: Subject) -> Finding:
    try:
        return check.run(subject)
    except Inapplicable as reason:
        return Finding(check.name, NOT_APPLICABLE, f"Cannot be checked: {reason}")
    except (WeightsError, ArgumentError) as error:  # such as sizes that do not fit, which only running shows
        return Finding(check.name, FAILED, str(error), advice=f"If a fresh copy has the same: {SEND}")


# Facts of a checkpoint that is right ------------------------------------------------------------------------

SAMPLERS = (("ddim", 3), ("lms", 3))  # and the steps of the sounds that are recorded
FRAMES = 128  # of their latents, at most
VALUES = 10  # samples of a slice


def facts_of(subject: Subject, *, quick: bool = False) -> Facts:
    """Everything that `verify` can compare another copy with.

    Args:
        subject: a checkpoint that is right.
        quick: record no sounds.

    Raises:
        WeightsError: it cannot be right: a network cannot be opened, or holds NaN.
    """
    wrong = [
        finding for check in (weights.files, weights.contents) if (finding := check(subject)).status == FAILED
    ]
    if wrong:
        sentence = " ".join((wrong[0].summary, *wrong[0].problems[:1]))
        raise WeightsError(f"{subject.source} is not right, so no facts are written: {sentence}")
    checkpoint = subject.checkpoint
    facts = Facts(
        name=checkpoint.source,
        configs=checkpoint.configs,
        heads=checkpoint.configs["unet"].heads,
        schedule=storage.schedule_of(checkpoint, subject.source),
        clap_mel=storage.clap_mel_of(checkpoint, subject.source),
        unconditional=checkpoint.unconditional,
        tokens=_tokens(subject),
        tensors=tensors.fingerprints(subject),
    )
    if quick:
        return facts
    subject.require_runnable()
    subject.report("recording sounds")
    return replace(facts, slices=tuple(_record(subject)), round_trip=sounds.explained(subject.model())[1])


def _tokens(subject: Subject) -> dict[str, dict[str, tuple[int, ...]]]:
    found = {}
    for name, folder in subject.checkpoint.tokenizers.items():
        tokenizer = storage.TOKENIZERS[name].from_folder(folder)
        found[name] = {text: tuple(tokenizer.encode(text)) for text in TEXTS}
    return found


def _record(subject: Subject) -> Iterator[Slice]:
    """A slice of each of SAMPLERS, around the loudest sample of its sound."""
    model, reading = subject.model(), readings_of(subject.checkpoint.configs["unet"])[0]
    frames = min(FRAMES, model.sound.latent_frames(model.sound.default_seconds))
    for sampler, steps in SAMPLERS:
        blank = Slice(sampler, steps, 0, (), latents=model.sound.latents(1, frames))
        wave = sounds.recorded_sound(model, reading, blank)
        if not torch.isfinite(wave).all():
            raise WeightsError(
                f"{subject.source} is not right, so no facts are written: its sound is not finite."
            )
        first = min(max(int(wave.abs().argmax()) - VALUES // 2, 0), len(wave) - VALUES)
        yield replace(
            blank, first=first, values=tuple(round(x, 6) for x in wave[first : first + VALUES].tolist())
        )
