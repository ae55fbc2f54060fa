"""LAION's original `CLAP` -> `ClapText` and `ClapAudio`: its rows, and its configs from shapes."""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Size

from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig

from .clap import OTHER_BRANCH
from .clap import text_rows as diffusers_text_rows
from .configs import count, need
from .keymap import Row, nest, share

FRONT_END = "the spectrogram's own tables, which follow from its settings"
UNUSED = "AudioLDM 2 does not use it"
AUDIO_BLOCK = [
    Row("norm1", "attn_norm"),
    *(
        Row("attn.qkv", f"attn.{ours}", share(place, 3), note="one layer computes all three there")
        for place, ours in enumerate(("query", "key", "value"))
    ),
    Row("attn.proj", "attn.out"),
    Row("attn.relative_position_bias_table", "attn.offset_bias"),
    Row("attn.relative_position_index", None, note="follows from the window's side", optional=True),
    Row("attn_mask", None, note="follows from the window's side", optional=True),
    Row("norm2", "ff_norm"),
    Row("mlp.fc1", "ff_in"),
    Row("mlp.fc2", "ff_out"),
]
UNUSED_ROWS = [
    Row("audio_branch.spectrogram_extractor", None, note=FRONT_END, optional=True),
    Row("audio_branch.logmel_extractor", None, note=FRONT_END, optional=True),
    Row("audio_branch.tscam_conv", None, note=UNUSED, optional=True),
    Row("audio_branch.head", None, note=UNUSED, optional=True),
    Row("text_transform", None, note=UNUSED, optional=True),
    Row("audio_transform", None, note=UNUSED, optional=True),
]


def text_rows(config: ClapTextConfig) -> list[Row]:
    """Return the rows of the text branch: as above, with other names for the modules round the encoder."""
    named = {
        "text_model": "text_branch",
        "text_projection.linear1": "text_projection.0",
        "text_projection.linear2": "text_projection.2",
    }
    return [_renamed(row, named) for row in diffusers_text_rows(config) if row.note != OTHER_BRANCH]


def audio_rows(config: ClapAudioConfig) -> list[Row]:
    """Return the rows of the audio branch in an original file."""
    return [
        Row("audio_branch.bn0", "band_norm"),
        Row(
            "audio_branch.bn0.num_batches_tracked",
            None,
            note="a step counter that nothing reads",
            optional=True,
        ),
        Row("audio_branch.patch_embed.proj", "patch_embed"),
        Row("audio_branch.patch_embed.norm", "patch_norm"),
        *nest("audio_branch.layers.*.blocks.*", "stages.*.blocks.*", AUDIO_BLOCK),
        Row("audio_branch.layers.*.downsample.norm", "stages.*.merge.norm", optional=True),
        Row("audio_branch.layers.*.downsample.reduction", "stages.*.merge.reduce", optional=True),
        Row("audio_branch.norm", "norm_out"),
        Row("audio_projection.0", "proj_in"),
        Row("audio_projection.2", "proj_out"),
        Row("logit_scale_a", "logit_scale"),
    ]


def text_config_from_shapes(shapes: Mapping[str, Size]) -> ClapTextConfig:
    """Return the config that the shapes of the original's tensors imply; heads are 64 wide there."""
    table = "text_branch.embeddings"
    vocabulary, dim = need(shapes, f"{table}.word_embeddings.weight", 2)
    return ClapTextConfig(
        vocabulary=vocabulary,
        dim=dim,
        depth=count(shapes, "text_branch.encoder.layer.*"),
        heads=max(dim // 64, 1),
        ff_dim=need(shapes, "text_branch.encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_positions=need(shapes, f"{table}.position_embeddings.weight", 2)[0],
        token_types=need(shapes, f"{table}.token_type_embeddings.weight", 2)[0],
        projection_dim=need(shapes, "text_projection.2.weight", 2)[0],
    )


def audio_config_from_shapes(shapes: Mapping[str, Size]) -> ClapAudioConfig:
    """Return the config that the shapes imply.

    No tensor shows the side of the image; it is the published one.
    """
    dim, in_channels, patch_size, _ = need(shapes, "audio_branch.patch_embed.proj.weight", 4)
    tables = [
        need(shapes, f"audio_branch.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2)
        for stage in range(count(shapes, "audio_branch.layers.*"))
    ]
    return ClapAudioConfig(
        mels=need(shapes, "audio_branch.bn0.weight", 1)[0],
        in_channels=in_channels,
        patch_size=patch_size,
        patch_stride=patch_size,
        dim=dim,
        depths=tuple(count(shapes, f"audio_branch.layers.{stage}.blocks.*") for stage in range(len(tables))),
        heads=tuple(heads for _, heads in tables),
        window=(math.isqrt(tables[0][0]) + 1) // 2 if tables else 1,
        ff_ratio=need(shapes, "audio_branch.layers.0.blocks.0.mlp.fc1.weight", 2)[0] / dim,
        projection_dim=need(shapes, "audio_projection.2.weight", 2)[0],
    )


def _renamed(row: Row, named: Mapping[str, str]) -> Row:
    for theirs, original in named.items():
        if f"{row.source}.".startswith(f"{theirs}."):
            return replace(row, source=original + row.source.removeprefix(theirs))
    return row
