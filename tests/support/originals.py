"""Tiny original `.pth` files, as training left them, made by our own classes alone.

Every parameter is random and lies under its name there, among all else that such a file holds: the average
of the UNet's weights, the noise schedule, second copies of CLAP and T5, tables, masks, an audio encoder. The
names are spelt out here once more, from ours to the original's, so that a wrong row of the converter is seen.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig
from audioldm2.models.gpt2 import GPT2Config
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.projection import ProjectionConfig
from audioldm2.models.t5 import T5Config
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig
from tests.support.checkpoints import random_state

State = dict[str, Tensor]

# Sizes ------------------------------------------------------------------------------------------------------

SCALING_FACTOR = float(torch.tensor(0.4342))  # the file has it in float32
CLAP = {
    "clap_text": ClapTextConfig(vocabulary=300, dim=128, depth=2, heads=2, ff_dim=20, projection_dim=10),
    "clap_audio": ClapAudioConfig(
        patch_size=16,
        patch_stride=16,
        dim=8,
        depths=(1, 2),
        heads=(2, 4),
        window=4,
        ff_ratio=2.0,
        projection_dim=10,
    ),
}
T5_ENCODER = {"t5": T5Config(vocabulary=200, dim=14, depth=2, heads=3, head_dim=4, ff_dim=18)}
GPT = {"gpt2": GPT2Config(dim=128, depth=1, heads=2, max_positions=150)}
UNET = UNetConfig(
    latent_channels=3, channels=(32, 64), heads=(1, 2), transformers=((), (SELF, GPT2, T5)), layers=1,
    gpt2_dim=128, t5_dim=14,
)  # fmt: skip
AT_16_KHZ = {
    "vae": VAEConfig(latent_channels=3, channels=(32, 32, 64), layers=1, scaling_factor=SCALING_FACTOR),
    "hifigan": HiFiGANConfig(mels=16, channels=32, branch_kernels=(3, 5), branch_dilations=((1, 3), (1, 3))),
}
AUDIOLDM_2 = CLAP | T5_ENCODER | GPT | AT_16_KHZ | {"projection": ProjectionConfig(10, 14, 128)}
CONFIGS: dict[str, dict[str, Any]] = {
    "base": AUDIOLDM_2 | {"unet": UNET},
    "large": AUDIOLDM_2 | {
        "unet": replace(
            UNET, channels=(32, 32), heads=(1, 1), transformers=((), (SELF, GPT2, T5, LAST_SELF)), depth=2,
            layers=2,
        )
    },
    "48k": CLAP | {
        "unet": UNetConfig(
            latent_channels=3, channels=(32, 32, 64), heads=(1, 1, 2), layers=1, film_dim=10,
            transformers=((), (SELF, LAST_SELF), (SELF, LAST_SELF)),
        ),
        "vae": VAEConfig(latent_channels=3, channels=(32,) * 4, layers=1, scaling_factor=SCALING_FACTOR),
        "hifigan": HiFiGANConfig(
            mels=64, sample_rate=48000, channels=32, upsample_rates=(6, 5, 4, 2, 2),
            upsample_kernels=(12, 10, 8, 4, 4), branch_kernels=(3, 5), branch_dilations=((1, 3), (1,)),
        ),
    },
    "t5": CLAP | T5_ENCODER | AT_16_KHZ | {
        "unet": replace(UNET, transformers=((), (SELF, T5)), gpt2_dim=UNetConfig.gpt2_dim)
    },
    "speech": CLAP | AT_16_KHZ | {
        "phonemes": PhonemesConfig(dim=12, depth=2, ff_dim=10),
        "projection": ProjectionConfig(10, 12, 128, positions=30),
        "gpt2": GPT2Config(dim=128, depth=1, heads=2, max_positions=600, new_vectors=512),
        "unet": replace(UNET, transformers=((), (SELF, GPT2)), t5_dim=UNetConfig.t5_dim),
    },
}  # fmt: skip

# Names: ours -> the original's ------------------------------------------------------------------------------

SECOND_ENCODER = "cond_stage_models.0.cond_stage_models.1"
OF_ALL = {"clap": "clap.model", "unet": "model.diffusion_model", "vae": "first_stage_model",
          "hifigan": "first_stage_model.vocoder"}  # fmt: skip
OF_GPT2 = {"projection": "cond_stage_models.0", "gpt2": "cond_stage_models.0.model"}
PLACES = {  # kind -> network -> the module that holds it
    "base": OF_ALL | OF_GPT2 | {"t5": "cond_stage_models.1.model"},
    "large": OF_ALL | OF_GPT2 | {"t5": "cond_stage_models.1.model"},
    "48k": OF_ALL,
    "t5": OF_ALL | {"t5": "cond_stage_models.0.model"},
    "speech": OF_ALL | OF_GPT2 | {"phonemes": f"{SECOND_ENCODER}.text_encoder"},
}
CONDITIONING_CLAP = "cond_stage_models.0.cond_stage_models.0.model"
COPIES = {  # kind -> the module of a second copy -> of which it is one
    "base": {CONDITIONING_CLAP: "clap.model", f"{SECOND_ENCODER}.model": "cond_stage_models.1.model"},
    "large": {CONDITIONING_CLAP: "clap.model", f"{SECOND_ENCODER}.model": "cond_stage_models.1.model"},
    "48k": {"cond_stage_models.0.model": "clap.model"},
    "t5": {},
    "speech": {CONDITIONING_CLAP: "clap.model"},
}
POSITIONS = f"{SECOND_ENCODER}.learnable_positional_embedding"

WORDS: dict[str, dict[str, str]] = {  # part of our key -> part of the original's
    "clap_text": {
        "logit_scale": "logit_scale_t",
        "word_embedding": "text_branch.embeddings.word_embeddings",
        "position_embedding": "text_branch.embeddings.position_embeddings",
        "token_type_embedding": "text_branch.embeddings.token_type_embeddings",
        "norm_in": "text_branch.embeddings.LayerNorm",
        "blocks": "text_branch.encoder.layer",
        "attn.query": "attention.self.query",
        "attn.key": "attention.self.key",
        "attn.value": "attention.self.value",
        "attn.out": "attention.output.dense",
        "attn_norm": "attention.output.LayerNorm",
        "ff_in": "intermediate.dense",
        "ff_out": "output.dense",
        "ff_norm": "output.LayerNorm",
        "pooler": "text_branch.pooler.dense",
        "proj_in": "text_projection.0",
        "proj_out": "text_projection.2",
    },
    "clap_audio": {
        "logit_scale": "logit_scale_a",
        "band_norm": "audio_branch.bn0",
        "patch_embed": "audio_branch.patch_embed.proj",
        "patch_norm": "audio_branch.patch_embed.norm",
        "stages": "audio_branch.layers",
        "attn_norm": "norm1",
        "attn.query": "attn.qkv",
        "attn.key": "attn.qkv",
        "attn.value": "attn.qkv",
        "attn.out": "attn.proj",
        "attn.offset_bias": "attn.relative_position_bias_table",
        "ff_norm": "norm2",
        "ff_in": "mlp.fc1",
        "ff_out": "mlp.fc2",
        "merge.norm": "downsample.norm",
        "merge.reduce": "downsample.reduction",
        "norm_out": "audio_branch.norm",
        "proj_in": "audio_projection.0",
        "proj_out": "audio_projection.2",
    },
    "t5": {
        "embedding": "shared",
        "distance_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "blocks": "encoder.block",
        "attn_norm": "layer.0.layer_norm",
        "attn.query": "layer.0.SelfAttention.q",
        "attn.key": "layer.0.SelfAttention.k",
        "attn.value": "layer.0.SelfAttention.v",
        "attn.out": "layer.0.SelfAttention.o",
        "ff_norm": "layer.1.layer_norm",
        "ff.gate": "layer.1.DenseReluDense.wi_0",
        "ff.value": "layer.1.DenseReluDense.wi_1",
        "ff.out": "layer.1.DenseReluDense.wo",
        "norm_out": "encoder.final_layer_norm",
    },
    "gpt2": {
        "position_embedding": "wpe",
        "blocks": "h",
        "attn_norm": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.out": "attn.c_proj",
        "ff_norm": "ln_2",
        "ff_in": "mlp.c_fc",
        "ff_out": "mlp.c_proj",
        "norm_out": "ln_f",
    },
    "projection": {
        "clap_linear": "input_sequence_embed_linear.0",
        "t5_linear": "input_sequence_embed_linear.1",
        "clap_sos": "start_of_sequence_tokens.weight",
        "t5_sos": "start_of_sequence_tokens.weight",
        "clap_eos": "end_of_sequence_tokens.weight",
        "t5_eos": "end_of_sequence_tokens.weight",
    },
    "vae": {
        "levels": "down",  # of the encoder; the decoder's are counted from the other end
        "resnets": "block",
        "resample": "downsample.conv",
        "middle": "mid",
        "resnet_in": "block_1",
        "attn": "attn_1",
        "resnet_out": "block_2",
        "query": "q",
        "key": "k",
        "value": "v",
        "attn.out": "attn_1.proj_out",
        "encoder.moments": "quant_conv",
        "decoder.latent_in": "post_quant_conv",
    },
    "hifigan": {"conv_in": "conv_pre", "conv_out": "conv_post", "dilated": "convs1", "plain": "convs2"},
}
RESIDUAL = {  # in the autoencoder; the ends of the encoder and the decoder have the same names as ours
    "norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2",
    "shortcut": "nin_shortcut",
}  # fmt: skip
UNET_ENDS = {
    "time_in": "time_embed.0", "time_out": "time_embed.2", "film": "film_emb", "conv_in": "input_blocks.0.0",
    "norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
UNET_RESIDUAL = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "shortcut": "skip_connection",
}
UNET_TRANSFORMER = {
    "blocks": "transformer_blocks",
    "self_norm": "norm1",
    "self_attn": "attn1",
    "context_norm": "norm2",
    "context_attn": "attn2",
    "ff_norm": "norm3",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "ff.value_and_gate": "ff.net.0.proj",
    "ff.out": "ff.net.2",
}
PHONEMES = {  # blocks.N. -> what follows "encoder." there, with N in place of the brace
    "attn.query": "attn_layers.{}.conv_q",
    "attn.key": "attn_layers.{}.conv_k",
    "attn.value": "attn_layers.{}.conv_v",
    "attn.out": "attn_layers.{}.conv_o",
    "attn.distance_key": "attn_layers.{}.emb_rel_k",
    "attn.distance_value": "attn_layers.{}.emb_rel_v",
    "attn_norm.weight": "norm_layers_1.{}.gamma",
    "attn_norm.bias": "norm_layers_1.{}.beta",
    "ff.conv_in": "ffn_layers.{}.conv_1",
    "ff.conv_out": "ffn_layers.{}.conv_2",
    "ff_norm.weight": "norm_layers_2.{}.gamma",
    "ff_norm.bias": "norm_layers_2.{}.beta",
}


def spelt(key: str, words: Mapping[str, str]) -> str:
    """The key with each of the words, whole ones alone, in its other spelling."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.sub(rf"(?<![^.])({pattern})(?![^.])", lambda found: words[found[1]], key)


def name_of(network: str, config: Any, key: str) -> str:
    """What the original calls one of our tensors, below the module that holds the network."""
    if network == "unet":
        return unet_name(config, key)
    if network == "vae":
        return vae_name(config, key)
    if network == "phonemes":
        if key.startswith("embedding"):
            return spelt(key, {"embedding": "emb"})
        _, number, rest = key.split(".", 2)
        return "encoder." + spelt(rest, PHONEMES).format(number)
    if network == "hifigan" and key.startswith("stages"):
        _, stage, rest = key.split(".", 2)
        if rest.startswith("upsample"):
            return spelt(rest, {"upsample": f"ups.{stage}"})
        _, branch, rest = rest.split(".", 2)
        number = int(stage) * len(config.branch_kernels) + int(branch)
        return f"resblocks.{number}.{spelt(rest, WORDS[network])}"
    return spelt(key, WORDS[network])


def unet_name(config: UNetConfig, key: str) -> str:
    """Blocks are counted through all levels: one for the first convolution, the layers, one to go down."""
    way, _, rest = key.partition(".")
    if way in UNET_ENDS:
        return spelt(key, UNET_ENDS)
    if way == "middle":
        block, roles = "middle_block", config.transformers[-1]
        if rest.startswith("resnet"):
            return f"{block}.{1 + len(roles)}.{spelt(rest.removeprefix('resnet.'), UNET_RESIDUAL)}"
        rest = rest.removeprefix("layer.")
    else:
        level, rest = int(rest.split(".")[0]), rest.split(".", 1)[1]
        roles = config.transformers[level if way == "down" else len(config.channels) - 1 - level]
        first = 1 + level * (config.layers + 1) if way == "down" else level * (config.layers + 1)
        last = first + config.layers
        if rest.startswith("downsample"):
            return f"input_blocks.{last}.0.op.{rest.removeprefix('downsample.')}"
        if rest.startswith("upsample"):
            return f"output_blocks.{last}.{1 + len(roles)}.conv.{rest.removeprefix('upsample.')}"
        _, layer, rest = rest.split(".", 2)
        block = f"{'input' if way == 'down' else 'output'}_blocks.{first + int(layer)}"
    what, rest = rest.split(".", 1)
    if what == "resnet":
        return f"{block}.0.{spelt(rest, UNET_RESIDUAL)}"
    return f"{block}.{1 + roles.index(what)}.{spelt(rest, UNET_TRANSFORMER)}"


def vae_name(config: VAEConfig, key: str) -> str:
    words = WORDS["vae"]
    if "resnet" in key:
        words = words | RESIDUAL
    found = re.match(r"decoder\.levels\.(\d+)", key)
    if found:
        deepest = len(config.channels) - 1
        words = words | {found[0]: f"decoder.up.{deepest - int(found[1])}", "resample": "upsample.conv"}
    return spelt(key, words)


def layout_of(network: str, key: str) -> str:
    """How the original lays out one of our tensors; "" for as we do."""
    part, _, last = key.rpartition(".")
    if network == "unet" and part.endswith(("proj_in", "proj_out")) and last == "weight":
        return "image 1x1"
    if network == "vae" and ".attn." in key and last == "weight" and not part.endswith("norm"):
        return "image 1x1"
    if network == "phonemes" and part.endswith(("query", "key", "value", "out")) and ".attn" in part:
        return "sequence 1" if last == "weight" else ""
    if network == "phonemes" and last.startswith("distance"):
        return "one of one"
    if network == "clap_audio" and part.endswith(("attn.query", "attn.key", "attn.value")):
        return f"third {['query', 'key', 'value'].index(part.rpartition('.')[2])}"
    if network == "gpt2" and part.endswith(("attn.qkv", "attn.out", "ff_in", "ff_out")):
        return "transposed" if last == "weight" else ""
    if network == "projection" and last.endswith(("sos", "eos")):
        return f"row {['clap', 't5'].index(last.partition('_')[0])}"
    if last == "t5_positions":
        return "transposed one of one"
    return ""


LAYOUTS = {
    "": lambda w: w,
    "image 1x1": lambda w: w[:, :, None, None],
    "sequence 1": lambda w: w[:, :, None],
    "one of one": lambda w: w[None],
    "transposed": lambda w: w.t(),
    "transposed one of one": lambda w: w.t()[None],
}


def put(table: State, key: str, tensor: Tensor, layout: str) -> None:
    """Lay one of our tensors where the original has it."""
    if layout in LAYOUTS:
        table[key] = LAYOUTS[layout](tensor).contiguous()
        return
    what, number = layout.split()
    if what == "third":
        whole = table.setdefault(key, torch.zeros(3 * len(tensor), *tensor.shape[1:]))
        whole[int(number) * len(tensor) :][: len(tensor)] = tensor
    else:
        table.setdefault(key, torch.randn(32, len(tensor)))[int(number)] = tensor


def spread(network: str, config: Any, state: State, places: Mapping[str, str]) -> State:
    """One network's tensors as the original has them, under the whole names."""
    table: State = {}
    place = places["clap" if network.startswith("clap") else network]
    for key, tensor in state.items():
        if network == "hifigan" and key in ("mean", "scale"):  # of the reference's class alone
            continue
        whole = POSITIONS if key == "t5_positions" else f"{place}.{name_of(network, config, key)}"
        put(table, whole, tensor, layout_of(network, key))
    return table


# Whole files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """What is in a file, and what has to come out of it."""

    configs: dict[str, Any]
    states: dict[str, State]  # our tensors of each network
    average: State  # our tensors of the UNet, averaged over its training
    table: State  # every tensor of the file, under the original's name
    unused: set[str]  # names in the table that none of our networks has


@cache
def make(kind: str) -> Original:
    """A random original of a kind. It is made once: copy the table to change it."""
    with torch.random.fork_rng():
        torch.manual_seed(list(CONFIGS).index(kind))
        configs, places = CONFIGS[kind], PLACES[kind]
        states = {network: random_state(network, config) for network, config in configs.items()}
        for key, tensor in states["clap_text"].items():  # else all texts have almost one vector
            tensor *= 0.1 if key.endswith("bias") else 1
        states["hifigan"] |= {
            key: torch.full((configs["hifigan"].mels,), float(key == "scale")) for key in ("mean", "scale")
        }
        average = {key: tensor + 0.1 * torch.randn(tensor.shape) for key, tensor in states["unet"].items()}
        used: State = {}
        for network, config in configs.items():
            used |= spread(network, config, states[network], places)
        table = schedule_buffers() | {"scale_factor": torch.tensor(SCALING_FACTOR)} | used
        table |= average_of_unet(spread("unet", configs["unet"], average, places))
        table |= unused_of_clap(configs["clap_audio"])
        for network, place in places.items():
            table |= UNUSED.get(network, lambda place, table: {})(place, table)
        for copy, place in COPIES[kind].items():
            table |= copied(table, place, copy)
    return Original(configs, states, average, table, set(table) - set(used))


def schedule_buffers() -> State:
    """Of 1000 steps whose betas' roots are evenly spaced."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    now = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1), now[:-1]])
    variance = betas * (1 - before) / (1 - now)
    buffers = {
        "logvar": torch.zeros(1000),
        "betas": betas,
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": now.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - now).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - now).log(),
        "sqrt_recip_alphas_cumprod": (1 / now).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - now),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - now),
    }
    return {name: tensor.float() for name, tensor in buffers.items()}


def average_of_unet(table: State) -> State:
    """The names of the average have no dots, but for the first."""
    names = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor for key, tensor in table.items()
    }
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(665000, dtype=torch.int32)}
    return {f"model_ema.{name}": tensor for name, tensor in counters.items()} | names


def unused_of_clap(config: ClapAudioConfig) -> State:
    """Of the first CLAP: front end, classifier, masks and counters; far larger in the published files."""
    branch, tokens = "clap.model.audio_branch", config.window**2
    table = {
        f"{branch}.spectrogram_extractor.stft.conv_real.weight": torch.randn(5, 1, 8),
        f"{branch}.spectrogram_extractor.stft.conv_imag.weight": torch.randn(5, 1, 8),
        f"{branch}.logmel_extractor.melW": torch.rand(5, 4),
        f"{branch}.bn0.num_batches_tracked": torch.tensor(1234),
        f"{branch}.tscam_conv.weight": torch.randn(7, 16, 2, 3),
        f"{branch}.tscam_conv.bias": torch.randn(7),
        f"{branch}.head.weight": torch.randn(7, 7),
        f"{branch}.head.bias": torch.randn(7),
        "clap.model.text_branch.embeddings.position_ids": torch.arange(514)[None],
        "clap.mel_transform.spectrogram.window": torch.hann_window(8),
        "clap.mel_transform.mel_scale.fb": torch.rand(5, 4),
    }
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"{branch}.layers.{stage}.blocks.{block}"
            table[f"{name}.attn.relative_position_index"] = torch.randint(49, (tokens, tokens))
            if block % 2:  # every second block shifts its windows
                table[f"{name}.attn_mask"] = torch.randint(2, (4, tokens, tokens)) * -100.0
    for which in ("text", "audio"):
        for layer in (0, 3):
            name = f"clap.model.{which}_transform.sequential.{layer}"
            table |= {f"{name}.weight": torch.randn(10, 10), f"{name}.bias": torch.randn(10)}
    return table


def unused_of_t5(place: str, table: State) -> State:
    """The embedding under its second name: one tensor, two keys."""
    return {f"{place}.encoder.embed_tokens.weight": table[f"{place}.shared.weight"]}


def unused_of_gpt2(place: str, table: State) -> State:
    return {f"{place}.wte.weight": torch.randn(11, table[f"{place}.wpe.weight"].shape[1])}


def unused_of_phonemes(place: str, table: State) -> State:
    return {f"{place}.proj.weight": torch.randn(24, 12, 1), f"{place}.proj.bias": torch.randn(24)}


def unused_of_projection(place: str, table: State) -> State:
    """The audio encoder that GPT-2 learnt from."""
    encoder = f"{place}.cond_stage_models.2.audiomae.model"
    return {
        f"{encoder}.cls_token": torch.randn(1, 1, 6),
        f"{encoder}.patch_embed.proj.weight": torch.randn(6, 1, 2, 2),
        f"{encoder}.blocks.0.attn.qkv.weight": torch.randn(18, 6),
        f"{encoder}.decoder_blocks.0.norm1.weight": torch.randn(6),
    }


UNUSED = {
    "t5": unused_of_t5,
    "gpt2": unused_of_gpt2,
    "phonemes": unused_of_phonemes,
    "projection": unused_of_projection,
}


def copied(table: State, place: str, copy: str) -> State:
    """Equal values in memory of their own, with CLAP's tables beside them."""
    found = {}
    for begin in (place, f"{place.removesuffix('model')}mel_transform"):
        end = begin.replace(place.removesuffix("model"), copy.removesuffix("model"))
        found |= {f"{end}.{key.removeprefix(f'{begin}.')}": tensor.clone()
                  for key, tensor in table.items() if key.startswith(f"{begin}.")}  # fmt: skip
    return found


def save(file: Path, table: Mapping[str, Any]) -> Path:
    """A file as the trainer saves it: the table, and its counters beside it."""
    torch.save({"epoch": 12, "global_step": 665000, "state_dict": dict(table)}, file)
    return file
