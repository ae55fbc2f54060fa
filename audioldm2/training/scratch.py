"""A whole model to train from nothing: sizes, vocabularies trained on the captions, untrained networks."""

import io
from collections.abc import Mapping, Sequence
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
from audioldm2.models import NETWORKS
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.training.initialise import initialise

# A whole model in 12 MB of float16 that a CPU can train. 16 kHz and 64 bands as published, but latents eight
# times smaller than the spectrogram, and with more channels for it.
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
    # The first upsampling is by 1: layers at the frame rate, where a step costs little, wide enough for the
    # lines of `training.additive`. Then three in place of four, so that 21 channels are left at the end, and
    # not 10: it takes some to make a high tone.
    "hifigan": HiFiGANConfig(
        channels=336, upsample_rates=(1, 5, 4, 8), upsample_kernels=(1, 9, 8, 16), branch_kernels=(1,),
        branch_dilations=((1, 1),), slope=0.01, normalize_before=True,
    ),
    "clap_audio": ClapAudioConfig(
        spec_size=128, patch_size=8, patch_stride=8, dim=64, depths=(2, 2), heads=(2, 4), projection_dim=96
    ),
    "clap_mel": MelSettings(SAMPLE_RATE, n_fft=1024, hop=640, mels=64, f_min=50.0, f_max=8000.0),
    # The first 800 of the published times. In the last 200 a latent is noise to 99.9 %: there the error of a
    # small network is many times the signal, and sampling would begin by going astray.
    "schedule": NoiseSchedule(beta_end=0.014266, steps=800),
}  # fmt: skip
PUBLISHED = {name: config() for name, (_, config) in NETWORKS.items() if name != "phonemes"} | {
    "clap_mel": CLAP_MEL,
    "schedule": NoiseSchedule(),
}
BESIDE = ("clap_mel", "schedule")  # what stands among the sizes and is no network
SIZES = {"small": SMALL, "published": PUBLISHED}

CLAP_PIECES, T5_PIECES = 1000, 500  # the most that a vocabulary trained here has


def configs_from(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of each network (and of BESIDE), from a JSON object {network: {field: value}}.

    A field that is not given is as in "small", and so is a whole network.
    Raises ValueError for a network that is not known, WeightsError for a field or value that cannot be.
    """
    unknown = [name for name in values if name not in SMALL]
    if unknown:
        raise ValueError(f"{where} has {some(unknown)}; the networks are {', '.join(SMALL)}.")
    return {
        name: validate.build(type(config), values.get(name, {}), f"'{name}' in {where}", default=config)
        for name, config in SMALL.items()
    }


def from_scratch(
    configs: Mapping[str, Any], captions: Sequence[str], folder: Path, *, seed: int = 0
) -> storage.Checkpoint:
    """A checkpoint of untrained networks, with vocabularies trained on captions.

    configs: of each network, and of BESIDE: how CLAP's audio branch hears, and the noise schedule. The sizes
             of the vocabularies in them give way to what is trained.
    folder:  for the tokenizers' files; it must exist.
    Raises ValueError when there are too few captions to make a vocabulary of, WeightsError for configs that
    cannot be built, or do not fit each other.
    """
    train_vocabularies(captions, folder)
    hearing, schedule = (configs[name] for name in BESIDE)
    sizes = {
        name: kind.from_folder(folder / name).splitter.get_vocab_size()
        for name, kind in storage.TOKENIZERS.items()
    }
    configs = {name: config for name, config in configs.items() if name not in BESIDE} | {
        storage.TEXT_ENCODERS[name]: replace(configs[storage.TEXT_ENCODERS[name]], vocabulary=size)
        for name, size in sizes.items()
    }
    checkpoint = storage.Checkpoint(
        configs=configs,
        states={name: partial(_untrained, name, config, seed) for name, config in configs.items()},
        schedule=asdict(schedule),
        clap_mel=asdict(hearing),
        tokenizers={name: folder / name for name in sizes},
        source="trained from scratch",
    )
    storage.check(checkpoint, "the sizes asked for")
    return checkpoint


def _untrained(name: str, config: Any, seed: int) -> dict[str, Tensor]:
    return initialise(name, config, seed).state_dict()


def train_vocabularies(captions: Sequence[str], folder: Path) -> None:
    """Byte-level BPE for CLAP and SentencePiece for T5, in the files of the published ones."""
    if not any(caption.strip() for caption in captions):
        raise ValueError(
            "there are no captions to train vocabularies on; add captions to the data, or begin with --model."
        )
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(captions, vocab_size=CLAP_PIECES, show_progress=False, special_tokens=specials)
    (folder / "clap_tokenizer").mkdir()
    bpe.save_model(str(folder / "clap_tokenizer"))

    pieces = io.BytesIO()
    # T5's rule folds letters that look alike, by a table of 240 kB that plain letters never meet.
    rule = "identity" if all(caption.isascii() for caption in captions) else "nmt_nfkc"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_writer=pieces, vocab_size=T5_PIECES,
            normalization_rule_name=rule, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"{len(captions)} captions make no vocabulary for T5: {error}") from error
    (folder / "t5_tokenizer").mkdir()
    (folder / "t5_tokenizer" / "spiece.model").write_bytes(pieces.getvalue())
