"""A whole untrained model: network sizes, vocabularies trained on the captions, initial weights."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

from audioldm2.audio import CLAP_MEL, SAMPLE_RATE, MelSettings
from audioldm2.checkpoints import storage, validate
from audioldm2.errors import some
from audioldm2.models import NETWORKS, OPTIONAL
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.training.speech import phoneme_symbols
from audioldm2.training.weight_init import initialize

# A model of 12 MB in float16 that a CPU can train. 16 kHz and 64 mel bands as published; latents are
# downsampled by 8 instead of 4 and have more channels to make up for it.
SMALL: dict[str, Any] = {
    "clap_text": ClapTextConfig(dim=96, depth=2, heads=4, ff_dim=192, projection_dim=96),
    "t5": T5Config(dim=96, depth=2, heads=3, head_dim=32, ff_dim=192),
    "projection": ProjectionConfig(clap_dim=96, t5_dim=96, gpt2_dim=96),
    "gpt2": GPT2Config(dim=96, depth=2, heads=3, max_positions=160),
    "unet": UNetConfig(
        latent_channels=16, channels=(48, 64, 72), heads=(2, 2, 2), layers=1, norm_groups=8,
        transformers=((), (GPT2,), (SELF, GPT2, T5)), gpt2_dim=96, t5_dim=96,
    ),
    "vae": VAEConfig(
        latent_channels=16, channels=(16, 32, 48, 64), layers=1, norm_groups=8, scaling_factor=1.0
    ),
    # The first stage upsamples by 1: frame-rate layers, where compute is cheap, wide enough for all partials
    # of additive_synthesis.py. Three upsampling stages follow instead of four, which leaves 21 channels at
    # the sample rate instead of 10; high tones need them.
    "hifigan": HiFiGANConfig(
        channels=336, upsample_rates=(1, 5, 4, 8), upsample_kernels=(1, 9, 8, 16), branch_kernels=(1,),
        branch_dilations=((1, 1),), slope=0.01, normalize_before=True,
    ),
    "clap_audio": ClapAudioConfig(
        spec_size=128, patch_size=8, patch_stride=8, dim=64, depths=(2, 2), heads=(2, 4), projection_dim=96
    ),
    "clap_mel": MelSettings(SAMPLE_RATE, n_fft=1024, hop=640, mels=64, f_min=50.0, f_max=8000.0),
    # The first 800 of the published timesteps. In the last 200 a latent is 99.9 % noise; there the error of a
    # small network is many times the signal, and sampling would start in a wrong direction.
    "schedule": NoiseSchedule(beta_end=0.014266, steps=800),
}  # fmt: skip
# The same for a model that speaks 1.92 s: a phoneme encoder in T5's place, and a vector of GPT-2 for each
# latent frame of 80 ms, so that attention need only learn which frame a vector belongs to.
SMALL_SPEECH: dict[str, Any] = {name: config for name, config in SMALL.items() if name != "t5"} | {
    "phonemes": PhonemesConfig(dim=96, depth=3, heads=2, ff_dim=256),
    "projection": ProjectionConfig(clap_dim=96, t5_dim=96, gpt2_dim=128, positions=48),
    "gpt2": GPT2Config(dim=128, depth=3, heads=4, max_positions=80, new_vectors=24),
    "unet": UNetConfig(
        latent_channels=16, channels=(48, 64, 72), heads=(2, 2, 2), layers=1, norm_groups=8,
        transformers=((GPT2,), (GPT2,), (SELF, GPT2)), gpt2_dim=128,
    ),
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    name: config() for name, (_, config) in NETWORKS.items() if name not in OPTIONAL
} | {
    "clap_mel": CLAP_MEL,
    "schedule": NoiseSchedule(),
}
# Upstream's speech model: 512 vectors of GPT-2, which alone condition the denoiser.
PUBLISHED_SPEECH: dict[str, Any] = {name: config for name, config in PUBLISHED.items() if name != "t5"} | {
    "phonemes": PhonemesConfig(),
    "projection": ProjectionConfig(t5_dim=192, positions=310),
    "gpt2": GPT2Config(new_vectors=512),
    "unet": UNetConfig(transformers=((), (SELF, GPT2), (SELF, GPT2), (SELF, GPT2))),
}
NOT_NETWORKS = ("clap_mel", "schedule")  # entries of the sizes that configure no network
SIZES = {
    "small": SMALL,
    "published": PUBLISHED,
    "small-speech": SMALL_SPEECH,
    "published-speech": PUBLISHED_SPEECH,
}

MAX_CLAP_VOCABULARY, MAX_T5_VOCABULARY = 1000, 500  # of vocabularies trained here


def configs_from(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Reads network sizes from a JSON object; networks and fields that are not given are as in SMALL, or as
    in SMALL_SPEECH where the object has the network "phonemes".

    Args:
        values: {network: {field: value}}.
        where: the object's name in messages.

    Returns:
        The config of every network and of NOT_NETWORKS.

    Raises:
        ValueError: a network is unknown.
        WeightsError: a field is unknown or its value not allowed.
    """
    base = SMALL_SPEECH if "phonemes" in values else SMALL
    unknown = [name for name in values if name not in base]
    if unknown:
        raise ValueError(f"{where} has {some(unknown)}; the networks are {', '.join(base)}.")
    return {
        name: validate.build(type(config), values.get(name, {}), f"'{name}' in {where}", default=config)
        for name, config in base.items()
    }


def from_scratch(
    configs: Mapping[str, Any], captions: Sequence[str], folder: Path, *, seed: int = 0
) -> storage.Checkpoint:
    """Makes a checkpoint of untrained networks, with vocabularies trained on captions.

    Args:
        configs: of every network and of NOT_NETWORKS. Vocabulary sizes are replaced by the trained ones, and
            that of phonemes by the number of symbols that the captions contain.
        captions: what the vocabularies are trained on.
        folder: an existing folder for the tokenizers' files.
        seed: of the initial weights.

    Raises:
        ValueError: there are too few captions to train a vocabulary.
        WeightsError: a config cannot be built, or the configs do not fit each other.
    """
    needed = {
        name: kind for name, kind in storage.TOKENIZERS.items() if storage.TEXT_ENCODERS[name] in configs
    }
    train_vocabularies(captions, folder, needed)
    sizes = {name: kind.from_folder(folder / name).splitter.get_vocab_size() for name, kind in needed.items()}
    networks = {name: config for name, config in configs.items() if name not in NOT_NETWORKS} | {
        storage.TEXT_ENCODERS[name]: replace(configs[storage.TEXT_ENCODERS[name]], vocabulary=size)
        for name, size in sizes.items()
    }
    symbols = phoneme_symbols(captions, "the new model") if "phonemes" in configs else None
    if symbols is not None:
        networks["phonemes"] = replace(configs["phonemes"], vocabulary=len(symbols))
    checkpoint = storage.Checkpoint(
        configs=networks,
        states={name: partial(_initial_state, name, config, seed) for name, config in networks.items()},
        schedule=asdict(configs["schedule"]),
        clap_mel=asdict(configs["clap_mel"]),
        tokenizers={name: folder / name for name in sizes},
        source="trained from scratch",
        symbols=symbols,
    )
    storage.check(checkpoint, "the given sizes")
    return checkpoint


def _initial_state(name: str, config: Any, seed: int) -> dict[str, Tensor]:
    return initialize(name, config, seed).state_dict()


def train_vocabularies(
    captions: Sequence[str], folder: Path, needed: Collection[str] = tuple(storage.TOKENIZERS)
) -> None:
    """Trains byte-level BPE for CLAP and SentencePiece for T5 and writes them in the published file formats.

    Args:
        captions: at least one of them not blank.
        folder: receives the subfolders clap_tokenizer and t5_tokenizer.
        needed: which of the two.

    Raises:
        ValueError: there are no captions, or too few for SentencePiece.
    """
    if not any(caption.strip() for caption in captions):
        raise ValueError(
            "there are no captions to train vocabularies on; add captions to the data, or start from --model."
        )
    bpe = ByteLevelBPETokenizer()
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(
        captions, vocab_size=MAX_CLAP_VOCABULARY, show_progress=False, special_tokens=special_tokens
    )
    (folder / "clap_tokenizer").mkdir()
    bpe.save_model(str(folder / "clap_tokenizer"))
    if "t5_tokenizer" not in needed:
        return

    model = io.BytesIO()
    # T5's rule normalizes Unicode with a table of 240 kB, which ASCII never needs.
    rule = "identity" if all(caption.isascii() for caption in captions) else "nmt_nfkc"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_writer=model, vocab_size=MAX_T5_VOCABULARY,
            normalization_rule_name=rule, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"{len(captions)} captions are too few to train T5's vocabulary: {error}") from error
    (folder / "t5_tokenizer").mkdir()
    (folder / "t5_tokenizer" / "spiece.model").write_bytes(model.getvalue())
