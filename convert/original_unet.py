"""The original `UNetModel` -> `audioldm2.models.unet.UNet`: its rows, and its config from shapes."""

from collections.abc import Mapping

from torch import Size

from audioldm2.errors import WeightsError
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig

from .configs import count, need
from .keymap import Row, nest
from .unet import TRAINED_HEAD, TRANSFORMER

RESIDUAL_BLOCK = [
    Row("in_layers.0", "norm_in"),
    Row("in_layers.2", "conv_in"),
    Row("emb_layers.1", "time_proj"),
    Row("out_layers.0", "norm_out"),
    Row("out_layers.3", "conv_out"),
    Row("skip_connection", "shortcut", optional=True),
]


def rows(config: UNetConfig) -> list[Row]:
    """Return the rows. The original numbers all blocks of each way, down and up, in one list."""
    deepest = len(config.channels) - 1
    found = [
        Row("time_embed.0", "time_in"),
        Row("time_embed.2", "time_out"),
        Row("input_blocks.0.0", "conv_in"),
        Row("out.0", "norm_out"),
        Row("out.2", "conv_out"),
    ]
    if config.film_dim:
        found.append(Row("film_emb", "film"))
    place = 1
    for level, roles in enumerate(config.transformers):
        for layer in range(config.layers):
            found += _layer(f"input_blocks.{place}", f"down.{level}.layers.{layer}", roles)
            place += 1
        if level < deepest:
            found.append(Row(f"input_blocks.{place}.0.op", f"down.{level}.downsample"))
            place += 1
    roles = config.transformers[-1]
    found += _layer("middle_block", "middle.layer", roles)
    found += nest(f"middle_block.{len(roles) + 1}", "middle.resnet", RESIDUAL_BLOCK)
    place = 0
    for up, roles in enumerate(config.transformers[::-1]):
        for layer in range(config.layers + 1):
            found += _layer(f"output_blocks.{place}", f"up.{up}.layers.{layer}", roles)
            if up < deepest and layer == config.layers:
                found.append(Row(f"output_blocks.{place}.{len(roles) + 1}.conv", f"up.{up}.upsample"))
            place += 1
    return found


def _layer(source: str, target: str, roles: tuple[str, ...]) -> list[Row]:
    found = nest(f"{source}.0", f"{target}.resnet", RESIDUAL_BLOCK)
    for place, role in enumerate(roles, start=1):
        found += nest(f"{source}.{place}", f"{target}.{role}", TRANSFORMER)
    return found


def config_from_shapes(shapes: Mapping[str, Size], gpt2_dim: int | None, t5_dim: int | None) -> UNetConfig:
    """Return the config that the shapes of the original's tensors imply; heads are 32 wide, as trained.

    gpt2_dim, t5_dim: widths of the contexts from the file's text networks; None where there is none.
    """
    channels: list[int] = []
    transformers: list[tuple[str, ...]] = []
    layers = [0]
    latent_channels = need(shapes, "input_blocks.0.0.weight", 4)[1]
    for place in range(1, count(shapes, "input_blocks.*")):
        block = f"input_blocks.{place}"
        if f"{block}.0.op.weight" in shapes:
            layers.append(0)
            continue
        width = need(shapes, f"{block}.0.out_layers.3.weight", 4)[0]
        roles = _roles(shapes, block, width, gpt2_dim, t5_dim)
        if not layers[-1]:
            channels.append(width)
            transformers.append(roles)
        layers[-1] += 1
        if (width, roles) != (channels[-1], transformers[-1]):
            raise WeightsError(f"'{block}' differs from the layer before it at the same resolution.")
    if len(set(layers)) != 1:
        raise WeightsError(f"its levels have {layers} layers; an AudioLDM 2 UNet has as many in each.")
    film_dim = need(shapes, "film_emb.weight", 2)[1] if "film_emb.weight" in shapes else 0
    return UNetConfig(
        latent_channels=latent_channels,
        channels=tuple(channels),
        heads=tuple(max(width // TRAINED_HEAD, 1) for width in channels),
        transformers=tuple(transformers),
        depth=max(count(shapes, "middle_block.1.transformer_blocks.*"), 1),
        layers=layers[0],
        gpt2_dim=gpt2_dim or UNetConfig.gpt2_dim,
        t5_dim=t5_dim or UNetConfig.t5_dim,
        film_dim=film_dim,
    )


def _roles(
    shapes: Mapping[str, Size], block: str, width: int, gpt2_dim: int | None, t5_dim: int | None
) -> tuple[str, ...]:
    """Return the role of each transformer of a layer, by the width of its context; the first has none."""
    known = {GPT2: gpt2_dim, T5: t5_dim}
    roles: list[str] = []
    for place in range(1, count(shapes, f"{block}.*")):
        key = f"{block}.{place}.transformer_blocks.0.attn2.to_k.weight"
        if key not in shapes:
            continue
        dim = need(shapes, key, 2)[1]
        context = [role for role, each in known.items() if each == dim and role not in roles and roles]
        without_context = LAST_SELF if SELF in roles else SELF
        if not context and dim != width:
            raise WeightsError(
                f"'{key}' attends to vectors {dim} wide, and no text network of the file has that width."
            )
        roles.append(context[0] if context else without_context)
    if len(set(roles)) < len(roles):
        raise WeightsError(f"'{block}' has transformers {roles}, which is not an AudioLDM 2 layer.")
    return tuple(roles)
