"""`AudioLDM2UNet2DConditionModel` of diffusers -> `audioldm2.models.unet.UNet`."""

from audioldm2.errors import ArgumentError, WeightsError, some
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig

from .configs import field, require_value
from .keymap import Row, nest, pointwise

TRAINED_HEAD = 32  # width of a head in every model that upstream trained

ATTENTION = [Row("to_q", "query"), Row("to_k", "key"), Row("to_v", "value"), Row("to_out.0", "out")]
BLOCK = [
    Row("norm1", "self_norm"),
    *nest("attn1", "self_attn", ATTENTION),
    Row("norm2", "context_norm"),
    *nest("attn2", "context_attn", ATTENTION),
    Row("norm3", "ff_norm"),
    Row("ff.net.0.proj", "ff.value_and_gate"),
    Row("ff.net.2", "ff.out"),
]
TRANSFORMER = [
    Row("norm", "norm"),
    Row("proj_in", "proj_in", pointwise),
    *nest("transformer_blocks.*", "blocks.*", BLOCK),
    Row("proj_out", "proj_out", pointwise),
]
RESIDUAL_BLOCK = [
    Row("norm1", "norm_in"),
    Row("conv1", "conv_in"),
    Row("time_emb_proj", "time_proj"),
    Row("norm2", "norm_out"),
    Row("conv2", "conv_out"),
    Row("conv_shortcut", "shortcut", optional=True),
]
ENDS = [
    Row("time_embedding.linear_1", "time_in"),
    Row("time_embedding.linear_2", "time_out"),
    Row("conv_in", "conv_in"),
    Row("conv_norm_out", "norm_out"),
    Row("conv_out", "conv_out"),
]


def rows(config: UNetConfig) -> list[Row]:
    """Return the rows. The source numbers a level's transformers in one list; ours are named by role."""
    deepest = len(config.channels) - 1
    found = [*ENDS]
    if config.film_dim:
        found.append(Row("class_embedding", "film"))
    for level, roles in enumerate(config.transformers):
        for layer in range(config.layers):
            found += _layer(f"down_blocks.{level}", f"down.{level}.layers.{layer}", layer, roles)
        for layer in range(config.layers + 1):
            up = deepest - level
            found += _layer(f"up_blocks.{up}", f"up.{up}.layers.{layer}", layer, roles)
    for level in range(deepest):
        found.append(Row(f"down_blocks.{level}.downsamplers.0.conv", f"down.{level}.downsample"))
        found.append(Row(f"up_blocks.{level}.upsamplers.0.conv", f"up.{level}.upsample"))
    found += _layer("mid_block", "middle.layer", 0, config.transformers[-1])
    found += nest("mid_block.resnets.1", "middle.resnet", RESIDUAL_BLOCK)
    return found


def _layer(source: str, target: str, layer: int, roles: tuple[str, ...]) -> list[Row]:
    found = nest(f"{source}.resnets.{layer}", f"{target}.resnet", RESIDUAL_BLOCK)
    for place, role in enumerate(roles):
        found += nest(f"{source}.attentions.{layer * len(roles) + place}", f"{target}.{role}", TRANSFORMER)
    return found


def config_from(source: dict, heads: str = "config") -> UNetConfig:
    """Return our config for the source's.

    heads: "config" (as its config says and the reference reads) or "trained" (32 wide, as upstream trained
    the published weights).
    """
    require_value(source, "_class_name", "AudioLDM2UNet2DConditionModel")
    channels = field(source, "block_out_channels", tuple[int, ...])
    levels = len(channels)
    require_value(source, "act_fn", "silu")
    require_value(source, "num_class_embeds", None)
    require_value(source, "class_embed_type", None, "simple_projection")
    film_dim = 0
    if source.get("class_embed_type"):
        require_value({"class_embeddings_concat": False, **source}, "class_embeddings_concat", True)
        film_dim = field(source, "projection_class_embeddings_input_dim", int)
    require_value(source, "resnet_time_scale_shift", "default")
    require_value(source, "time_embedding_type", "positional")
    require_value(source, "time_embedding_dim", None, *(width * 4 for width in channels[:1]))
    require_value(source, "time_embedding_act_fn", None)
    require_value(source, "timestep_post_act", None)
    require_value(source, "time_cond_proj_dim", None)
    require_value(source, "only_cross_attention", False)
    require_value(source, "conv_in_kernel", 3)
    require_value(source, "conv_out_kernel", 3)
    require_value(source, "downsample_padding", 1)
    require_value(source, "mid_block_scale_factor", 1)
    require_value(source, "flip_sin_to_cos", True)
    require_value(source, "freq_shift", 0)
    require_value(source, "mid_block_type", "UNetMidBlock2DCrossAttn")
    require_value(source, "out_channels", field(source, "in_channels", int))

    per_level = tuple[int | tuple[int | None, ...] | None, ...]
    contexts = field(source, "cross_attention_dim", int | per_level | None, None)
    if not isinstance(contexts, tuple):
        contexts = [contexts] * levels
    if len(contexts) != levels:
        raise WeightsError(
            f"the UNet config's 'cross_attention_dim' has {len(contexts)} entries for {levels} levels."
        )
    contexts = [level if isinstance(level, tuple) else (level,) for level in contexts]
    crossed = _crossed_levels(source, levels)
    transformers = tuple(_roles(level) if crossed[i] else () for i, level in enumerate(contexts))
    used = [dim for i, level in enumerate(contexts) if crossed[i] for dim in enumerate(level)]
    return UNetConfig(
        latent_channels=field(source, "in_channels", int),
        channels=channels,
        heads=_heads(source, channels, heads),
        transformers=transformers,
        depth=_one(source, "transformer_layers_per_block", 1),
        layers=_one(source, "layers_per_block", 2),
        gpt2_dim=_only_width([dim for place, dim in used if dim and place <= 1], UNetConfig.gpt2_dim),
        t5_dim=_only_width([dim for place, dim in used if dim and place > 1], UNetConfig.t5_dim),
        film_dim=film_dim,
        norm_groups=field(source, "norm_num_groups", int),
        eps=field(source, "norm_eps", float, 1e-5),
    )


def _crossed_levels(source: dict, levels: int) -> list[bool]:
    """Return which levels have transformers: mirrored up and down, and always the coarsest."""
    names = {
        "DownBlock2D": False,
        "CrossAttnDownBlock2D": True,
        "UpBlock2D": False,
        "CrossAttnUpBlock2D": True,
    }
    down, up = (field(source, f"{way}_block_types", tuple[str, ...]) for way in ("down", "up"))
    unknown = [name for name in (*down, *up) if name not in names]
    if unknown:
        raise WeightsError(f"the UNet config names a block '{unknown[0]}'; known are {', '.join(names)}.")
    crossed = [names[name] for name in down]
    if len(crossed) != levels or crossed[::-1] != [names[name] for name in up] or not any(crossed[-1:]):
        raise WeightsError(
            f"the UNet config's blocks ({', '.join((*down, *up))}) are not an AudioLDM 2 UNet: "
            "the way up has to mirror the way down, and the coarsest level has to have transformers."
        )
    return crossed


def _roles(dims: tuple[int | None, ...]) -> tuple[str, ...]:
    """Return the role of each transformer of a layer.

    The reference routes by place: a width at the first two places means the first context (GPT-2's), at later
    ones the second (T5's).
    """
    roles = []
    for place, dim in enumerate(dims):
        without_context = LAST_SELF if SELF in roles else SELF
        roles.append(without_context if dim is None else GPT2 if place <= 1 else T5)
    if len(set(roles)) < len(roles):
        raise WeightsError(
            f"the UNet config's 'cross_attention_dim' {list(dims)} is not an AudioLDM 2 layer; "
            "known are [null, 768, 1024] and its like, with a fourth null in the large model."
        )
    return tuple(roles)


def _heads(source: dict, channels: tuple[int, ...], choice: str) -> tuple[int, ...]:
    if choice == "trained":
        return tuple(max(width // TRAINED_HEAD, 1) for width in channels)
    kind = int | tuple[int, ...]
    heads = field(source, "num_attention_heads", kind | None, None)
    heads = heads or field(source, "attention_head_dim", kind, 8)  # the reference's misreading
    return heads if isinstance(heads, tuple) else (heads,) * len(channels)


def require_trained_heads(config: UNetConfig) -> None:
    """Raise ArgumentError unless every level can be cut into heads as wide as upstream trained them."""
    if any(width % TRAINED_HEAD for width in config.channels):
        given = f"is 'trained', {TRAINED_HEAD} wide, but this model's levels are {config.channels} wide"
        raise ArgumentError("heads", "trained", "be 'config'", given=given)


def _one(source: dict, name: str, default: int) -> int:
    """Return a number that the source may give per level and that ours has once."""
    value = field(source, name, int | tuple[int, ...], default)
    values = set(value) if isinstance(value, tuple) else {value}
    if len(values) != 1:
        raise WeightsError(
            f"the UNet config's '{name}' differs between levels ({value}), which is not supported."
        )
    return values.pop()


def _only_width(widths: list[int], default: int) -> int:
    if len(set(widths)) > 1:
        raise WeightsError(f"the UNet config gives one context several widths: {sorted(set(widths))}.")
    return widths[0] if widths else default


def config_to(config: UNetConfig) -> dict:
    """Return the source's config for ours, with one number of heads per level, as the reference reads it."""
    levels = len(config.channels)
    dims = {SELF: None, LAST_SELF: None, GPT2: config.gpt2_dim, T5: config.t5_dim}
    # A level without transformers has an entry too, which nothing reads.
    deepest = config.transformers[-1]
    contexts = [[dims[role] for role in roles or deepest] for roles in config.transformers]
    for roles in config.transformers:
        if GPT2 in roles[2:] or T5 in roles[:2]:
            raise WeightsError(
                f"a layer of the UNet has the transformers {some(list(roles), 4)}; the diffusers layout has "
                "GPT-2's context among the first two and T5's after them, because it tells them apart by "
                "their place. Keep the model in the converted format."
            )
    crossed = [bool(roles) for roles in config.transformers]
    return {
        "_class_name": "AudioLDM2UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": config.heads[0] if len(set(config.heads)) == 1 else list(config.heads),
        "block_out_channels": list(config.channels),
        "class_embed_type": "simple_projection" if config.film_dim else None,
        "class_embeddings_concat": bool(config.film_dim),
        "projection_class_embeddings_input_dim": config.film_dim or None,
        "cross_attention_dim": contexts,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in crossed],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in crossed[::-1]],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "norm_eps": config.eps,
        "norm_num_groups": config.norm_groups,
        "sample_size": 2 ** (levels + 4),
        "transformer_layers_per_block": config.depth,
        "use_linear_projection": False,
    }
