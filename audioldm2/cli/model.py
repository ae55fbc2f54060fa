"""The model that a command generates with: its adapters and words, and its shape before it is loaded."""

import argparse
from pathlib import Path

import audioldm2
from audioldm2.adapters.reading import find as find_adapter
from audioldm2.adapters.words import find as find_word
from audioldm2.audio import VAE_MEL, VAE_MEL_48K, MelSettings, vae_front_end
from audioldm2.checkpoints import hub
from audioldm2.cli.streams import report
from audioldm2.options import GenerationOptions
from audioldm2.sound_shape import SoundShape

OUT_OF_MEMORY = (
    "Ask for a shorter sound (--duration) or fewer --candidates, or try --low-memory, --offload or "
    "--dtype float16."
)

# The published models' shape, to find mistakes before gigabytes are fetched and read.
PUBLISHED = SoundShape(VAE_MEL.sample_rate, VAE_MEL.hop, downsampling=4, latent_channels=8, mels=VAE_MEL.mels)
PUBLISHED_48K = SoundShape(
    VAE_MEL_48K.sample_rate, VAE_MEL_48K.hop, downsampling=8, latent_channels=16, mels=VAE_MEL_48K.mels
)


def load(given: argparse.Namespace) -> audioldm2.AudioLDM2:
    sources = [source for source, _ in given.lora]
    for source in sources:
        if sources.count(source) > 1:
            raise ValueError(f"--lora names {source} twice; give it once, with the sum of the weights.")
        find_adapter(source)  # before gigabytes of the model are read
    for source in given.word:
        find_word(source)
    model = audioldm2.load(
        given.model or hub.DEMO,
        device=given.device,
        dtype=given.dtype,
        heads=given.heads,
        revision=given.revision,
        offload=given.offload,
        low_memory=given.low_memory,
        compile=given.compile,
        ops=given.ops,
    )
    last = [Path(source).name for source, _ in given.lora]
    for source, weight in given.lora:
        # Adapters that would have the same name are called by their whole path.
        model.load_lora(source, weight, source if last.count(Path(source).name) > 1 else None)
    for source in given.word:
        model.load_word(source)
    return model


def name_demo(given: argparse.Namespace) -> None:
    """Report which model it is where the user names none."""
    if given.model is None and not given.quiet:
        report(
            f"this is the small demo model, of simple sounds; the published one is --model {hub.PUBLISHED} "
            "(4.5 GB, fetched once)"
        )


def likely_shape(options: GenerationOptions) -> SoundShape:
    """The published models' shape; that of the 48 kHz one where the options name frequencies above 8 kHz."""
    highest = max([*(options.mask_start_hz or ()), *(options.mask_end_hz or ())], default=0.0)
    return PUBLISHED if highest <= VAE_MEL.f_max else PUBLISHED_48K


def front_end_of(model: audioldm2.AudioLDM2) -> MelSettings:
    """The settings of the model's spectrograms, for the frequencies of a picture."""
    vocoder = model.networks.configs["hifigan"]
    try:
        return vae_front_end(vocoder.sample_rate, vocoder.hop, vocoder.mels)
    except ValueError as error:
        raise ValueError(f"--plot does not know the frequencies of {model.source}; leave it out.") from error
