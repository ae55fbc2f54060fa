"""Write a random checkpoint in the converted format: it sounds like nothing, but every command works with it.

    python scripts/make_random_checkpoint.py ./tiny
    audioldm2 "rain on a tin roof" --model ./tiny -o rain.wav

Every parameter is random, norms and biases too, and every activation of ordinary size, so that whatever is
wrong is heard at the end. "tiny" has the published geometry (64 mel bands, hop 160 at 16 kHz, latents of
8 x time x 16); the other sizes are the published ones, for measuring speed and memory.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn

from audioldm2.checkpoints import hub, storage
from audioldm2.errors import WeightsError
from audioldm2.models import NETWORKS, OPTIONAL, build_on_meta
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from audioldm2.sampling.schedule import NoiseSchedule

BASE = {name: config() for name, (_, config) in NETWORKS.items() if name not in OPTIONAL}  # as published
ATTENDING = (SELF, GPT2, T5, LAST_SELF)
LARGE_UNET = UNetConfig(transformers=((), ATTENDING, ATTENDING, ATTENDING), depth=2)
TINY = {
    "clap_text": ClapTextConfig(dim=24, depth=2, heads=3, ff_dim=48, projection_dim=16),
    "t5": T5Config(dim=20, depth=2, heads=2, head_dim=8, ff_dim=40),
    "projection": ProjectionConfig(clap_dim=16, t5_dim=20, gpt2_dim=24),
    "gpt2": GPT2Config(dim=24, depth=2, heads=3, max_positions=256),
    "unet": UNetConfig(
        channels=(16, 24, 32), heads=(2, 3, 4), transformers=((), (), (SELF, GPT2, T5)), layers=1,
        gpt2_dim=24, t5_dim=20, norm_groups=4,
    ),
    "vae": VAEConfig(channels=(8, 12, 16), layers=1, norm_groups=4),
    "hifigan": HiFiGANConfig(channels=64, branch_kernels=(3, 7), branch_dilations=((1, 3), (1, 3))),
    "clap_audio": ClapAudioConfig(dim=16, depths=(2, 2), heads=(2, 4), ff_ratio=2.0, projection_dim=16),
}  # fmt: skip
T5_ALONE = {name: config for name, config in BASE.items() if name not in ("projection", "gpt2")} | {
    "unet": UNetConfig(transformers=((), (SELF, T5), (SELF, T5), (SELF, T5)))
}
AT_48_KHZ = {name: config for name, config in T5_ALONE.items() if name != "t5"} | {
    "unet": UNetConfig(latent_channels=16, transformers=((), *[(SELF, LAST_SELF)] * 3), film_dim=512),
    "vae": VAEConfig(latent_channels=16, channels=(128, 256, 512, 1024)),
    "hifigan": HiFiGANConfig(
        mels=256, sample_rate=48000, channels=1536, upsample_rates=(6, 5, 4, 2, 2),
        upsample_kernels=(12, 10, 8, 4, 4), branch_kernels=(3, 7, 11, 15), branch_dilations=((1, 3, 5),) * 4,
    ),
}  # fmt: skip
SIZES = {
    "tiny": TINY,
    "base": BASE,
    "large": BASE | {"unet": LARGE_UNET},
    "music": BASE,
    "48k": AT_48_KHZ,
    "16k-t5": T5_ALONE,
}

CAPTIONS = [  # what small vocabularies are trained on
    "Techno music with a strong, upbeat tempo and high melodic riffs.",
    "A hammer hitting a wooden surface, again and again",
    "A dog barks while the rain falls on the roof of a car.",
    "Birds sing (live) & 12 people cheer! Don't stop.",
    "Low quality, average quality; noise, hiss and hum.",
    "The sound of a steam engine, a church bell and a violin",
]


def make(
    out: str | Path,
    size: str = "tiny",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tokenizers: str | Path | None = None,
    on_network: Callable[[str, int, int], object] = lambda name, tensors, size: None,
) -> None:
    """Write a random checkpoint to the folder `out`, whole or not at all, holding one network at a time.

    tokenizers: a folder with the sub-folders clap_tokenizer and t5_tokenizer (or roberta and t5) to copy;
                without it, vocabularies of a few hundred pieces are trained.
    on_network: called with each network's name, number of tensors and bytes.
    Raises FileExistsError when `out` exists, WeightsError when the tokenizers cannot be read.
    """
    with TemporaryDirectory() as trained:
        if tokenizers is None:
            train_tokenizers(Path(trained))
        folders = find_tokenizers(Path(tokenizers or trained))
        configs = SIZES[size]
        if size == "tiny":  # the published networks have more rows than any of the vocabularies
            sizes = {
                name: kind.from_folder(folders[name]).splitter.get_vocab_size()
                for name, kind in storage.TOKENIZERS.items()
            }
            configs = configs | {
                "clap_text": replace(configs["clap_text"], vocabulary=sizes["clap_tokenizer"]),
                "t5": replace(configs["t5"], vocabulary=sizes["t5_tokenizer"]),
            }
        checkpoint = storage.Checkpoint(
            configs=configs,
            states={
                name: partial(random_state, name, config, seed + place, dtype)
                for place, (name, config) in enumerate(configs.items())
            },
            schedule=asdict(NoiseSchedule()),
            clap_mel={},
            tokenizers={name: folders[name] for name in storage.tokenizers_of(configs)},
            source=f"random {size} checkpoint, seed {seed}",
        )
        storage.write(checkpoint, Path(out), on_network=on_network)


# Weights ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def random_state(name: str, config: Any, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights of one network, in `dtype` but for those that need float32."""
    network = build_on_meta(name, config).to_empty(device="cpu")
    randomise(network, torch.Generator().manual_seed(seed))
    if name == "t5":  # its attention scores are not divided by sqrt(head_dim)
        for block in network.blocks:
            block.attn.query.weight /= math.sqrt(config.head_dim)
    elif name == "vae":  # the latents of a random denoiser are not of unit variance, but 60 times as loud
        network.decoder.latent_in.weight *= config.scaling_factor / 60
    elif name == "hifigan":
        set_loudness(network)
    state = network.state_dict()
    return {key: storage.cast(name, key, state.pop(key), dtype) for key in list(state)}


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and running statistic a random value that keeps activations of ordinary size."""
    transposed = {
        f"{name}.weight": m for name, m in network.named_modules() if isinstance(m, nn.ConvTranspose1d)
    }
    for key, tensor in network.state_dict().items():
        mean, std = 0.0, 0.2  # biases
        if key in transposed:  # (in, out, kernel): each output sees kernel / stride taps
            std = math.sqrt(transposed[key].stride[0] / (tensor.shape[0] * tensor.shape[2]))
        elif key.endswith(("embedding.weight", "distance_bias.weight", "offset_bias", "_sos", "_eos")):
            std = 1.0
        elif key.endswith("mean"):
            std = 0.3
        elif key.endswith(("running_var", "scale")) and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
            continue
        elif tensor.ndim >= 2:
            std = 1 / math.sqrt(tensor[0].numel())  # by the number of inputs of an output
        elif not key.endswith("bias"):  # norms, and the logarithm of CLAP's temperature
            mean = 1.0
        tensor.normal_(mean, std, generator=generator)


@torch.no_grad()
def set_loudness(vocoder: nn.Module, rms: float = 0.15) -> None:
    """Scale the last convolution to an ordinary level, where the last tanh is almost linear."""
    mel = torch.randn(1, 100, vocoder.config.mels, generator=torch.Generator().manual_seed(0)) / 2
    vocoder.conv_out.weight *= rms / vocoder(mel).std()
    vocoder.conv_out.bias *= 0.1


# Tokenizers -------------------------------------------------------------------------------------------------


def find_tokenizers(folder: Path) -> dict[str, Path]:
    """Where each tokenizer's files lie in a folder."""
    found = hub.tokenizers_in(folder)
    missing = [name for name in hub.TOKENIZERS if name not in found]
    if missing:
        raise WeightsError(f"{folder} has no folder {' or '.join(hub.TOKENIZERS[missing[0]])}.")
    return found


def train_tokenizers(folder: Path) -> None:
    """Vocabularies of a few hundred pieces, in the files of the published ones."""
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(CAPTIONS, vocab_size=400, show_progress=False, special_tokens=specials)
    (folder / "clap_tokenizer").mkdir()
    bpe.save_model(str(folder / "clap_tokenizer"))

    pieces = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=pieces, vocab_size=200, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "t5_tokenizer").mkdir()
    (folder / "t5_tokenizer" / "spiece.model").write_bytes(pieces.getvalue())


# Command line -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write; it must not exist yet")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny",
        help="tiny: a second and 3 MB; the others: a minute and 4 to 6 GB (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=storage.DTYPES, default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every weight (default: %(default)s)")
    parser.add_argument(
        "--tokenizers", type=Path, metavar="FOLDER",
        help="real vocabularies: FOLDER/clap_tokenizer and FOLDER/t5_tokenizer (or roberta and t5), as in a "
        "converted folder; without it, small ones are trained on a few captions",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        make(
            options.out,
            options.size,
            dtype=storage.DTYPES[options.dtype],
            seed=options.seed,
            tokenizers=options.tokenizers,
            on_network=lambda name, tensors, size: print(
                f"{name:<11} {size / 1e6:>9.1f} MB", file=sys.stderr
            ),
        )
    except (WeightsError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
