"""The check of half precision: every network computes finite values, and how far they lie from float32."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import clap_log_mel, resample
from audioldm2.checkpoints import storage
from audioldm2.models.unet import GPT2, T5
from audioldm2.prompt.tokenizers import pad
from audioldm2.runtime.dtypes import DTYPES
from audioldm2.runtime.placement import materialise
from audioldm2.verification.facts import PROMPT
from audioldm2.verification.finding import FAILED, PASSED, SEND, Finding, Progress
from audioldm2.verification.prompts import PHONEMES
from audioldm2.verification.subject import Subject

HALVES = ("float16", "bfloat16")
FRAMES = 64  # of the latent: 2.56 s in the published models
LOW_DB = 20.0  # of signal over error; less than this is worth a sentence

Run = Callable[[Any, torch.dtype], Tensor]  # a network and its dtype -> its output for fixed inputs


def half(subject: Subject) -> Finding:
    """Run every network in float16 and bfloat16 on the inputs that the float32 networks give it."""
    subject.require_runnable()
    figures: dict[str, dict[str, Any]] = {}
    overflowing, far = [], []
    progress = Progress("half precision, networks", len(subject.checkpoint.configs), subject.report)
    for name, run, exact in _runs(subject):
        figures[name] = {"float32": "finite" if exact.isfinite().all() else "not finite"}
        if figures[name]["float32"] != "finite":
            overflowing.append(f"'{name}' is not finite in float32 either.")
            continue
        for dtype in HALVES:
            found = _output(subject, name, run, DTYPES[dtype])
            if not found.isfinite().all():
                figures[name][dtype] = "not finite"
                share = 1 - found.isfinite().double().mean().item()
                overflowing.append(f"'{name}' overflows in {dtype}: {share:.1%} of its output is not finite.")
                continue
            figures[name][dtype] = ratio = signal_to_error(exact, found)
            if ratio < LOW_DB:
                far.append(f"'{name}' in {dtype} is only {ratio:.0f} dB above its error.")
        progress.add()
    if not overflowing:
        worst = {dtype: min((each[dtype], name) for name, each in figures.items()) for dtype in HALVES}
        words = ", ".join(
            f"{dtype} at least {ratio:.0f} dB ({name})" for dtype, (ratio, name) in worst.items()
        )
        summary = f"Every network is finite in half precision; signal over error: {words}."
        return Finding("half", PASSED, summary, figures, tuple(far))
    return Finding(
        "half",
        FAILED,
        "A network is not finite in half precision.",
        figures,
        (*overflowing, *far),
        "Sounds in that dtype are silent, noise or NaN; on CUDA, dtype 'auto' is float16.",
        f"Use --dtype float32, or bfloat16 where that is finite. If the weights are right: {SEND}",
    )


def signal_to_error(exact: Tensor, found: Tensor) -> float:
    """The ratio of a signal to the error of an approximation, in dB; 200 where there is none."""
    error = (found.double() - exact.double()).square().mean().item()
    signal = exact.double().square().mean().item()
    return 200.0 if error == 0 else 10 * math.log10(max(signal, 1e-300) / error)


@torch.no_grad()
def _output(subject: Subject, name: str, run: Run, dtype: torch.dtype) -> Tensor:
    network = materialise(subject.checkpoint, name, device=subject.device, dtype=dtype)
    with torch.autocast(subject.device.type, enabled=False):
        return run(network, dtype).float()


def _encode(tokens: tuple[Tensor, Tensor], network: Any, dtype: torch.dtype) -> Tensor:
    return network(*tokens)


def _runs(subject: Subject) -> Iterator[tuple[str, Run, Tensor]]:
    """Networks in the order in which a prompt meets them, how to run each, and its output in float32.

    An input is the float32 output of the networks before it, for PROMPT and noise of seed 0.
    """
    checkpoint, device = subject.checkpoint, subject.device
    configs, unet = checkpoint.configs, checkpoint.configs["unet"]
    outputs: dict[str, Tensor] = {}

    def exact(name: str, run: Run) -> tuple[str, Run, Tensor]:
        outputs[name] = _output(subject, name, run, torch.float32)
        return name, run, outputs[name]

    tokens = {}
    for name, folder in checkpoint.tokenizers.items():
        tokenizer = storage.TOKENIZERS[name].from_folder(folder)
        found = pad([tokenizer.encode(PROMPT)], tokenizer.pad_id)
        tokens[name] = found.ids.to(device), found.mask.to(device)
    mask = tokens["t5_tokenizer"][1] if "t5_tokenizer" in tokens else None
    for name, tokenizer in (("clap_text", "clap_tokenizer"), ("t5", "t5_tokenizer")):
        if tokenizer in tokens:
            yield exact(name, partial(_encode, tokens[tokenizer]))
    second, speaker = "t5", storage.phoneme_tokenizer_of(checkpoint)
    if speaker is not None:
        second, found = "phonemes", pad([speaker.encode(PHONEMES)], 0, speaker.max_length)
        tokens["phonemes"] = found.ids.to(device), found.mask.to(device)
        mask = tokens["phonemes"][1]
        yield exact("phonemes", partial(_encode, tokens["phonemes"]))
    if GPT2 in unet.roles:
        yield exact(
            "projection",
            lambda net, dtype: net(outputs["clap_text"].to(dtype), outputs[second].to(dtype), mask)[0],
        )
        joined = torch.ones(outputs["projection"].shape[:2], dtype=torch.bool, device=device)
        if speaker is not None:
            joined[:, 4:-1] = mask
        yield exact("gpt2", lambda net, dtype: net.generate(outputs["projection"].to(dtype), joined))

    vae, vocoder = configs["vae"], configs["hifigan"]
    shape = (1, vae.latent_channels, FRAMES, vocoder.mels // vae.downsampling)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    time = torch.tensor(500, device=device)
    contexts = {"gpt2_context": "gpt2", "text_context": "t5", "clap_vector": "clap_text"}
    used = {
        "gpt2_context": GPT2 in unet.roles,
        "text_context": T5 in unet.roles,
        "clap_vector": unet.film_dim,
    }

    def denoise(net: Any, dtype: torch.dtype) -> Tensor:
        given = {name: outputs[giver].to(dtype) for name, giver in contexts.items() if used[name]}
        return net(noise.to(dtype), time, **given, t5_mask=mask if T5 in unet.roles else None)

    yield exact("unet", denoise)
    yield exact("vae", lambda net, dtype: net.decode(noise.to(dtype)).squeeze(1))
    yield exact("hifigan", lambda net, dtype: net(outputs["vae"].to(dtype)))
    if "clap_audio" in configs:
        front_end = storage.clap_mel_of(checkpoint, subject.source)
        wave = resample(outputs["hifigan"], vocoder.sample_rate, front_end.sample_rate)
        log_mel = clap_log_mel(wave[:, : 10 * front_end.sample_rate], front_end)
        yield exact("clap_audio", lambda net, dtype: net(log_mel.to(dtype)))
