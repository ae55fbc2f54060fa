"""Whole requests: ways to place weights, compiled networks, batches that fill the card, and 300 s x 3."""

import gc
from collections.abc import Iterator
from typing import Any

import torch

from audioldm2 import AudioLDM2, Result
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.request import Request
from audioldm2.runtime import memory
from scripts.benchmark.sides import prompts
from scripts.gpu_checks.context import Context, Row, against

SAME = 60.0  # dB: the same kernels on weights that waited elsewhere
COMPILED = 20.0  # dB: fused kernels round otherwise, over the steps of a request
STEPS = 4  # of requests that are compared, or that take long
LONG_SECONDS, CANDIDATES = 300.0, 3
MOST_AT_ONCE = 64


def placements(context: Context) -> Iterator[Row]:
    """Offload, low memory and compile: the sound of the model that stays on the device."""
    expected, row = request_row(context, "resident", {})
    yield row
    for words, options, least in (
        ("offload", {"offload": True}, SAME),
        ("low_memory", {"low_memory": True}, SAME),
        ("compile", {"compile": True}, COMPILED),
    ):
        found, row = request_row(context, words, options)
        if row.ok and found is not None and expected is not None:
            row.ok, figures, row.sentence = against(expected.latents, found.latents, least)
            row.figures = figures | row.figures
        yield row


def request_row(context: Context, words: str, options: dict[str, Any]) -> tuple[Result | None, Row]:
    """Two requests of a model that is loaded in some way; the second one's time is without preparations."""
    row = Row("request", words, False)
    gc.collect()  # the weights of the model before, which the peak would count
    try:
        figures = row.figures
        with context.measured(figures, "load "):
            model = context.load(**options)
        with context.measured(figures, "first "):
            generate(context, model)
        with context.measured(figures):
            result = generate(context, model)
        row.ok = bool(result.audio.isfinite().all())
        row.sentence = "" if row.ok else "a sample is not finite."
        return result, row
    except Exception as error:
        row.sentence = f"{type(error).__name__}: {error}"
        return None, row


def generate(context: Context, model: AudioLDM2, sounds: int = 1, **options: Any) -> Result:
    steps = min(STEPS, context.steps)
    given = {"audio_length_in_s": context.seconds, "num_inference_steps": steps, "seed": 0}
    return model.generate(prompts(sounds), **(given | options))


def batches(context: Context) -> Iterator[Row]:
    """Sounds per second of batches up to what fits, and whether the estimate of memory holds."""
    model = context.load()
    frames = model.sound.latent_frames(context.seconds)
    needed = memory.bytes_for_one_sound(
        model.networks.configs["unet"],
        frames,
        model.sound.mels // model.sound.downsampling,
        True,
        model.networks.dtypes["unet"],
    )
    fit = memory.sounds_at_once(needed, context.device, context.seconds)
    generate(context, model)  # kernels are chosen
    sizes = [2**power for power in range(7) if 2**power <= min(fit, 2 if context.quick else MOST_AT_ONCE)]
    for size in sizes:
        row = Row("batch", f"{size} of {context.seconds:g} s", False, {"fit": fit})
        try:
            before = context.held()
            with context.measured(row.figures):
                generate(context, model, size, num_inference_steps=context.steps)
            row.figures["sounds/s"] = size / row.figures["s"]
            row.figures["MB a sound"] = (row.figures["peak MB"] - before) / size
            row.figures["MB a sound, estimate"] = needed / 1e6
            # What the estimate leaves free has to cover what it misses. A process on the CPU holds more than
            # its tensors.
            fits = row.figures["MB a sound"] * memory.USABLE <= needed / 1e6
            row.ok = fits or size < min(8, sizes[-1]) or not context.is_cuda
            row.sentence = "" if row.ok else "a sound takes more memory than memory.py estimates."
        except Exception as error:
            row.sentence = f"{type(error).__name__}: {error}"
        yield row


def long_sounds(context: Context) -> Iterator[Row]:
    """Three candidates of 300 s: whole, and in windows."""
    seconds = 0.64 if context.quick else LONG_SECONDS
    model = context.load()
    for words, options in (("whole", {}), ("in windows", {"window_seconds": context.seconds})):
        row = Row("long", f"{seconds:g} s x {CANDIDATES}, {words}", False)
        try:
            asked = GenerationOptions(
                audio_length_in_s=seconds, num_waveforms_per_prompt=CANDIDATES, **options
            )
            Request.resolve("rain", asked, model.sound, model.schedule)
            with context.measured(row.figures):
                result = generate(
                    context, model, audio_length_in_s=seconds, num_waveforms_per_prompt=CANDIDATES, **options
                )
            wanted = (1, CANDIDATES, model.sound.samples(seconds))
            row.ok = tuple(result.audio.shape) == wanted and bool(torch.isfinite(result.audio).all())
            row.sentence = "" if row.ok else "the sounds have another shape, or are not finite."
        except ArgumentError as error:  # this device's memory does not hold them
            row.ok, row.sentence = None, str(error)
        except Exception as error:
            row.sentence = f"{type(error).__name__}: {error}"
        yield row
