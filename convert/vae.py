"""`AutoencoderKL` of diffusers -> `audioldm2.models.vae.VAE`."""

from audioldm2.models.vae import VAEConfig

from .configs import demand, field
from .keymap import Row, nest, pointwise

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
            Row(new, ours, pointwise, optional=True),
            Row(old, ours, pointwise, note="the name before diffusers 0.18", optional=True),
        )
    ),
]
MIDDLE = [
    *nest("resnets.0", "resnet_in", RESIDUAL_BLOCK),
    *nest("attentions.0", "attn", ATTENTION),
    *nest("resnets.1", "resnet_out", RESIDUAL_BLOCK),
]


def rows(config: VAEConfig) -> list[Row]:
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
    demand(source, "_class_name", "AutoencoderKL")
    demand(source, "act_fn", "silu")
    demand(source, "mid_block_add_attention", True)
    demand(source, "use_quant_conv", True)
    demand(source, "use_post_quant_conv", True)
    demand(source, "shift_factor", None)
    demand(source, "latents_mean", None)
    demand(source, "latents_std", None)
    demand(source, "out_channels", field(source, "in_channels", int))
    channels = field(source, "block_out_channels", tuple[int, ...])
    demand(source, "down_block_types", ["DownEncoderBlock2D"] * len(channels))
    demand(source, "up_block_types", ["UpDecoderBlock2D"] * len(channels))
    return VAEConfig(
        mel_channels=field(source, "in_channels", int),
        latent_channels=field(source, "latent_channels", int),
        channels=channels,
        layers=field(source, "layers_per_block", int),
        norm_groups=field(source, "norm_num_groups", int),
        scaling_factor=field(source, "scaling_factor", float),
    )
