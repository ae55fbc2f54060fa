"""What an original `.pth` file calls our tensors, and how it lays them out.

The names are written out here once more, from ours to the original's and without the converter's rows, so
that a wrong row shows.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from audioldm2.models.unet import UNetConfig
from audioldm2.models.vae import VAEConfig

State = dict[str, Tensor]

SECOND_ENCODER = "cond_stage_models.0.cond_stage_models.1"
OF_ALL = {"clap": "clap.model", "unet": "model.diffusion_model", "vae": "first_stage_model",
          "hifigan": "first_stage_model.vocoder"}  # fmt: skip
OF_GPT2 = {"projection": "cond_stage_models.0", "gpt2": "cond_stage_models.0.model",
           "audiomae": "cond_stage_models.0.cond_stage_models.2.audiomae.model"}  # fmt: skip
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
    "audiomae": {
        "class_embedding": "cls_token",
        "position_embedding": "pos_embed",
        "patch_embed": "patch_embed.proj",
        "attn_norm": "norm1",
        "attn.out": "attn.proj",
        "ff_norm": "norm2",
        "ff_in": "mlp.fc1",
        "ff_out": "mlp.fc2",
        "norm_out": "norm",
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
    """Return the key with each of the words replaced, whole path components only."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.sub(rf"(?<![^.])({pattern})(?![^.])", lambda found: words[found[1]], key)


def name_of(network: str, config: Any, key: str) -> str:
    """Return the original's name of one of our tensors, below the module that holds the network."""
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
    """Return the name in the UNet, which counts blocks through all levels: input, layers, downsampling."""
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
    """Return how the original lays out one of our tensors; "" if as ours."""
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
    """Put one of our tensors where the original has it."""
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
    """Return one network's tensors as the original has them, under their full names."""
    table: State = {}
    place = places["clap" if network.startswith("clap") else network]
    for key, tensor in state.items():
        if network == "hifigan" and key in ("mean", "scale"):  # which only the reference's class has
            continue
        whole = POSITIONS if key == "t5_positions" else f"{place}.{name_of(network, config, key)}"
        put(table, whole, tensor, layout_of(network, key))
    return table
