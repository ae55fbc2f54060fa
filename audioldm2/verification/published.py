"""What is known of the published checkpoints, as compact facts.

Counts and hashes of key lists were taken from the published files; the slices are those of the reference's
nightly tests (diffusers, `test_audioldm2.py`); the token ids are what transformers computes with the
published vocabularies. Hashes of the weights themselves are not known here: only a slice proves a published
checkpoint right.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from audioldm2.verification.facts import PROMPT, Facts, Slice

CONSTANT = (  # last parts of keys that only some versions of the libraries save; `keys_hash` leaves them out
    *("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked"),
)
TIED = "encoder.embed_tokens.weight"  # T5's embedding under its second name; the same
TOKEN_TABLE = 50_257 * 768  # parameters of GPT-2's token embedding, published but never read

# Architectures ----------------------------------------------------------------------------------------------

SOUND: dict[str, Any] = {
    "clap_text": ClapTextConfig(),
    "t5": T5Config(),
    "projection": ProjectionConfig(),
    "gpt2": GPT2Config(),
    "unet": UNetConfig(),
    "vae": VAEConfig(),
    "hifigan": HiFiGANConfig(),
    "clap_audio": ClapAudioConfig(),
}
ALL_ROLES = (SELF, GPT2, T5, LAST_SELF)
LARGE = SOUND | {"unet": UNetConfig(transformers=((), ALL_ROLES, ALL_ROLES, ALL_ROLES), depth=2)}
SPEECH = {name: config for name, config in SOUND.items() if name != "t5"} | {
    "phonemes": PhonemesConfig(),
    "projection": ProjectionConfig(t5_dim=192, positions=310),
    "gpt2": GPT2Config(new_vectors=512),
    "unet": UNetConfig(transformers=((), (SELF, GPT2), (SELF, GPT2), (SELF, GPT2))),
}
T5_ALONE = {name: config for name, config in SOUND.items() if name not in ("projection", "gpt2")} | {
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

# Counts and key lists ---------------------------------------------------------------------------------------

PARAMETERS = {
    "clap_text": 125_302_017,
    "t5": 341_231_104,
    "projection": 1_184_256,
    "gpt2": 85_842_432,  # and TOKEN_TABLE
    "unet": 346_943_496,
    "vae": 55_376_873,
    "hifigan": 55_264_897,
    "clap_audio": 68_611_865,
}
FOLDERS = {  # of the diffusers layout: tensors, `keys_hash`
    "text_encoder": (534, "f67212a1bd9fbb3b"),
    "text_encoder_2": (219, "4cb4966b1fab1aa8"),
    "projection_model": (8, "0b1bf7c6ea647228"),
    "language_model": (148, "ca22472b79d5a476"),
    "unet": (1520, "b0cbdf81dacea7a1"),
    "vae": (204, "baaa58beb7ad8ebb"),
    "vocoder": (196, "731719903950ae36"),
}
BASE_FILE = (5276, 8_498_706_956, "6ea2543a3e9d3082")  # tensors, bytes of their storage, `keys_hash`
LARGE_FILE = (8668, 11_467_257_356, "f3571f6f69921b7d")
SPEECH_FILE = (4116, 5_111_715_596, "5c09d60d351639c2")

# What networks compute --------------------------------------------------------------------------------------

TEXTS = (PROMPT, "Rain, wind & 3 dogs: café №5!", "")
CLAP_IDS = (
    (0, 250, 13547, 3022, 10, 11678, 4084, 2),
    (0, 23074, 6, 2508, 359, 155, 3678, 35, 26059, 14333, 11936, 25448, 245, 328, 2),
    (0, 2),
)
T5_IDS = (
    (71, 3, 1483, 935, 10849, 3, 9, 5726, 1774, 1),
    (12574, 6, 2943, 3, 184, 220, 3887, 10, 11949, 465, 755, 55, 1),
    (1,),
)
TOKENS = {
    "clap_tokenizer": dict(zip(TEXTS, CLAP_IDS, strict=True)),
    "t5_tokenizer": dict(zip(TEXTS, T5_IDS, strict=True)),
}
BASE_SLICES = (
    Slice("ddim", 25, 17275,
          (0.0791, 0.0666, 0.1158, 0.1227, 0.1171, -0.2880, -0.1940, -0.0283, -0.0126, 0.1127)),
    Slice("lms", 3, 31390,
          (-0.1318, -0.0577, 0.0446, -0.0573, 0.0659, 0.1074, -0.2600, 0.0080, -0.2190, -0.4301)),
)  # fmt: skip
LARGE_SLICES = (
    Slice("ddim", 3, 8825,
          (-0.1829, -0.1461, 0.0759, -0.1493, -0.1396, 0.5783, 0.3001, -0.3038, -0.0639, -0.2244)),
)  # fmt: skip

# The registry -----------------------------------------------------------------------------------------------

BASE = Facts(
    name="cvssp/audioldm2",
    configs=SOUND,
    aliases=("audioldm2", "audioldm2-base", "audioldm2-full"),
    parameters=PARAMETERS,
    folders=FOLDERS,
    original=BASE_FILE,
    slices=BASE_SLICES,
    tokens=TOKENS,
)
MUSIC = replace(
    BASE, name="cvssp/audioldm2-music", aliases=("audioldm2-music", "audioldm2-music-665k"), slices=()
)
LARGE_FACTS = replace(
    BASE,
    name="cvssp/audioldm2-large",
    configs=LARGE,
    aliases=("audioldm2-large", "audioldm2-full-large-1150k"),
    parameters=PARAMETERS | {"unet": 718_012_296},
    folders=FOLDERS | {"unet": (3216, "0f6f0d1702fa8497")},
    original=LARGE_FILE,
    slices=LARGE_SLICES,
)
PUBLISHED = (
    BASE,
    MUSIC,
    LARGE_FACTS,
    Facts(
        name="audioldm2-speech",
        configs=SPEECH,
        aliases=("audioldm2-speech-gigaspeech", "audioldm2-speech-ljspeech", "audioldm2_gigaspeech"),
        parameters={"unet": 261_926_536, "projection": 604_800},
        folders=FOLDERS | {
            "text_encoder_2": (762, "b337054c7e841f27"),
            "projection_model": (9, "b7f7970adb4432f4"),
            "unet": (1104, "03b4e2333344f6e8"),
        },
        original=SPEECH_FILE,
    ),
    Facts(
        name="audioldm_16k_crossattn_t5",
        configs=T5_ALONE,
        aliases=("audioldm_16k_crossattn_t5",),
        original=(3329, 4_732_483_984, "2f86a870d0db292e"),
    ),
    Facts(
        name="audioldm_48k",
        configs=AT_48_KHZ,
        aliases=("audioldm_48k",),
        original=(3708, 5_358_299_756, "00404f50d08b075d"),
    ),
)  # fmt: skip


def keys_hash(shapes: Iterable[tuple[str, Iterable[int]]]) -> tuple[int, str]:
    """How many keys a file has, and a hash of the sorted keys and shapes, constant buffers left out."""
    rows = sorted(
        f"{key} {'x'.join(map(str, shape))}"
        for key, shape in shapes
        if key.split(".")[-1] not in CONSTANT and key != TIED
    )
    return len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
