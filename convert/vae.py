"""`AutoencoderKL` of diffusers, or the original one -> `audioldm2.models.vae.VAE`."""

from collections.abc import Mapping

from torch import Size

from audioldm2.models.vae import VAEConfig

from .configs import count, field, need, require_value
from .keymap import Row, nest, once_pointwise

RESIDUAL_BLOCK = [
    Row("norm1", "norm_in"),
    Row("conv1", "conv_in"),
    Row("norm2", "norm_out"),
    Row("conv2", "conv_out"),
    Row("conv_shortcut", "shortcut", optional=True),
]
ATTENTION = [
    Row("group_norm", "norm"),
    *(
        row
        for new, old, ours in (
            ("to_q", "query", "query"),
            ("to_k", "key", "key"),
            ("to_v", "value", "value"),
            ("to_out.0", "proj_attn", "out"),
        )
        for row in (
            Row(new, ours, once_pointwise, optional=True),
            Row(old, ours, once_pointwise, note="the name before diffusers 0.18", optional=True),
        )
    ),
]
MIDDLE = [
    *nest("resnets.0", "resnet_in", RESIDUAL_BLOCK),
    *nest("attentions.0", "attn", ATTENTION),
    *nest("resnets.1", "resnet_out", RESIDUAL_BLOCK),
]


def rows(config: VAEConfig) -> list[Row]:
    """Return the rows of the diffusers layout."""
    single_level = len(config.channels) == 1
    return [
        Row("encoder.conv_in", "encoder.conv_in"),
        *nest("encoder.down_blocks.*.resnets.*", "encoder.levels.*.resnets.*", RESIDUAL_BLOCK),
        Row("encoder.down_blocks.*.downsamplers.0.conv", "encoder.levels.*.resample", optional=single_level),
        *nest("encoder.mid_block", "encoder.middle", MIDDLE),
        Row("encoder.conv_norm_out", "encoder.norm_out"),
        Row("encoder.conv_out", "encoder.conv_out"),
        Row("quant_conv", "encoder.moments"),
        Row("post_quant_conv", "decoder.latent_in"),
        Row("decoder.conv_in", "decoder.conv_in"),
        *nest("decoder.mid_block", "decoder.middle", MIDDLE),
        *nest("decoder.up_blocks.*.resnets.*", "decoder.levels.*.resnets.*", RESIDUAL_BLOCK),
        Row("decoder.up_blocks.*.upsamplers.0.conv", "decoder.levels.*.resample", optional=single_level),
        Row("decoder.conv_norm_out", "decoder.norm_out"),
        Row("decoder.conv_out", "decoder.conv_out"),
    ]


def config_from(source: dict) -> VAEConfig:
    """Return our config for the source\'s."""
    require_value(source, "_class_name", "AutoencoderKL")
    require_value(source, "act_fn", "silu")
    require_value(source, "mid_block_add_attention", True)
    require_value(source, "use_quant_conv", True)
    require_value(source, "use_post_quant_conv", True)
    require_value(source, "shift_factor", None)
    require_value(source, "latents_mean", None)
    require_value(source, "latents_std", None)
    require_value(source, "out_channels", field(source, "in_channels", int))
    channels = field(source, "block_out_channels", tuple[int, ...])
    require_value(source, "down_block_types", ["DownEncoderBlock2D"] * len(channels))
    require_value(source, "up_block_types", ["UpDecoderBlock2D"] * len(channels))
    return VAEConfig(
        mel_channels=field(source, "in_channels", int),
        latent_channels=field(source, "latent_channels", int),
        channels=channels,
        layers=field(source, "layers_per_block", int),
        norm_groups=field(source, "norm_num_groups", int),
        scaling_factor=field(source, "scaling_factor", float),
    )


def config_to(config: VAEConfig) -> dict:
    """Return the source\'s config for ours."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": config.mel_channels,
        "out_channels": config.mel_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.norm_groups,
        "sample_size": 1024,
        "scaling_factor": config.scaling_factor,
    }


# The original files -----------------------------------------------------------------------------------------

ORIGINAL_RESIDUAL_BLOCK = [
    Row("norm1", "norm_in"),
    Row("conv1", "conv_in"),
    Row("norm2", "norm_out"),
    Row("conv2", "conv_out"),
    Row("nin_shortcut", "shortcut", optional=True),
]
ORIGINAL_MIDDLE = [
    *nest("block_1", "resnet_in", ORIGINAL_RESIDUAL_BLOCK),
    Row("attn_1.norm", "attn.norm"),
    Row("attn_1.q", "attn.query", once_pointwise),
    Row("attn_1.k", "attn.key", once_pointwise),
    Row("attn_1.v", "attn.value", once_pointwise),
    Row("attn_1.proj_out", "attn.out", once_pointwise),
    *nest("block_2", "resnet_out", ORIGINAL_RESIDUAL_BLOCK),
]


def original_rows(config: VAEConfig) -> list[Row]:
    """Return the rows. The original counts the decoder's levels from fine to coarse, ours in order of use."""
    deepest = len(config.channels) - 1
    found = [
        Row("encoder.conv_in", "encoder.conv_in"),
        *nest("encoder.down.*.block.*", "encoder.levels.*.resnets.*", ORIGINAL_RESIDUAL_BLOCK),
        Row("encoder.down.*.downsample.conv", "encoder.levels.*.resample", optional=deepest == 0),
        *nest("encoder.mid", "encoder.middle", ORIGINAL_MIDDLE),
        Row("encoder.norm_out", "encoder.norm_out"),
        Row("encoder.conv_out", "encoder.conv_out"),
        Row("quant_conv", "encoder.moments"),
        Row("post_quant_conv", "decoder.latent_in"),
        Row("decoder.conv_in", "decoder.conv_in"),
        *nest("decoder.mid", "decoder.middle", ORIGINAL_MIDDLE),
        Row("decoder.norm_out", "decoder.norm_out"),
        Row("decoder.conv_out", "decoder.conv_out"),
    ]
    for level in range(deepest + 1):
        theirs, ours = f"decoder.up.{deepest - level}", f"decoder.levels.{level}"
        found += nest(f"{theirs}.block.*", f"{ours}.resnets.*", ORIGINAL_RESIDUAL_BLOCK)
        if level < deepest:
            found.append(Row(f"{theirs}.upsample.conv", f"{ours}.resample"))
    return found


def original_config(shapes: Mapping[str, Size], scaling_factor: float) -> VAEConfig:
    """Return the config that the shapes of the original\'s tensors imply."""
    levels = count(shapes, "encoder.down.*")
    return VAEConfig(
        mel_channels=need(shapes, "encoder.conv_in.weight", 4)[1],
        latent_channels=need(shapes, "post_quant_conv.weight", 4)[0],
        channels=tuple(
            need(shapes, f"encoder.down.{level}.block.0.conv2.weight", 4)[0] for level in range(levels)
        ),
        layers=count(shapes, "encoder.down.0.block.*"),
        scaling_factor=scaling_factor,
    )
