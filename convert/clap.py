"""`ClapModel` of transformers -> `ClapText` and `ClapAudio` of audioldm2.models.

The source keeps both branches in one file. Each network reads it with its own rows, which drop the other's.
"""

import torch
from torch import Tensor

from audioldm2.errors import WeightsError
from audioldm2.models.clap_audio import ClapAudioConfig, offset_index
from audioldm2.models.clap_text import ClapTextConfig

from .configs import field, require_value
from .keymap import Row, nest

OTHER_BRANCH = "belongs to the other branch"
TEXT_BLOCK = [
    Row("attention.self.query", "attn.query"),
    Row("attention.self.key", "attn.key"),
    Row("attention.self.value", "attn.value"),
    Row("attention.output.dense", "attn.out"),
    Row("attention.output.LayerNorm", "attn_norm"),
    Row("intermediate.dense", "ff_in"),
    Row("output.dense", "ff_out"),
    Row("output.LayerNorm", "ff_norm"),
]

AUDIO_BLOCK = [
    Row("layernorm_before", "attn_norm"),
    Row("attention.self.query", "attn.query"),
    Row("attention.self.key", "attn.key"),
    Row("attention.self.value", "attn.value"),
    Row("attention.output.dense", "attn.out"),
    Row("attention.self.relative_position_bias_table", "attn.offset_bias"),
    Row("attention.self.relative_position_index", None, note="follows from the window's side", optional=True),
    Row("layernorm_after", "ff_norm"),
    Row("intermediate.dense", "ff_in"),
    Row("output.dense", "ff_out"),
]
AUDIO_ENCODER = [
    Row("batch_norm", "band_norm"),
    Row("batch_norm.num_batches_tracked", None, note="a step counter that nothing reads", optional=True),
    Row("patch_embed.proj", "patch_embed"),
    Row("patch_embed.norm", "patch_norm"),
    *nest("layers.*.blocks.*", "stages.*.blocks.*", AUDIO_BLOCK),
    Row("layers.*.downsample.norm", "stages.*.merge.norm", optional=True),  # a single stage has none
    Row("layers.*.downsample.reduction", "stages.*.merge.reduce", optional=True),
    Row("norm", "norm_out"),
]


def text_rows(config: ClapTextConfig) -> list[Row]:
    """Return the rows of the text branch in the diffusers layout."""
    return [
        Row("text_model.embeddings.word_embeddings", "word_embedding"),
        Row("text_model.embeddings.position_embeddings", "position_embedding"),
        Row("text_model.embeddings.token_type_embeddings", "token_type_embedding"),
        Row("text_model.embeddings.LayerNorm", "norm_in"),
        Row("text_model.embeddings.position_ids", None, note="0, 1, 2, ...", optional=True),
        Row("text_model.embeddings.token_type_ids", None, note="zeros", optional=True),
        *nest("text_model.encoder.layer.*", "blocks.*", TEXT_BLOCK),
        Row("text_model.pooler.dense", "pooler"),
        Row("text_projection.linear1", "proj_in"),
        Row("text_projection.linear2", "proj_out"),
        Row("logit_scale_t", "logit_scale"),
        Row("audio_model", None, note=OTHER_BRANCH),
        Row("audio_projection", None, note=OTHER_BRANCH),
        Row("logit_scale_a", None, note=OTHER_BRANCH),
    ]


def text_config_from(source: dict) -> ClapTextConfig:
    """Return our config. The published one omits what equals transformers' defaults, which are ours too."""
    require_value(source, "model_type", "clap")
    require_value(source, "projection_hidden_act", "relu")
    text = field(source, "text_config", dict | None, None) or {}
    require_value(text, "hidden_act", "gelu")
    default = ClapTextConfig()
    return ClapTextConfig(
        vocabulary=field(text, "vocab_size", int, default.vocabulary),
        dim=field(text, "hidden_size", int, default.dim),
        depth=field(text, "num_hidden_layers", int, default.depth),
        heads=field(text, "num_attention_heads", int, default.heads),
        ff_dim=field(text, "intermediate_size", int, default.ff_dim),
        max_positions=field(text, "max_position_embeddings", int, default.max_positions),
        padding_id=field(text, "pad_token_id", int, default.padding_id),
        token_types=field(text, "type_vocab_size", int, default.token_types),
        projection_dim=field(source, "projection_dim", int, default.projection_dim),
        eps=field(text, "layer_norm_eps", float, default.eps),
    )


def audio_rows(config: ClapAudioConfig) -> list[Row]:
    """Return the rows of the audio branch in the diffusers layout."""
    return [
        *nest("audio_model.audio_encoder", "", AUDIO_ENCODER),
        Row("audio_projection.linear1", "proj_in"),
        Row("audio_projection.linear2", "proj_out"),
        Row("logit_scale_a", "logit_scale"),
        Row("text_model", None, note=OTHER_BRANCH),
        Row("text_projection", None, note=OTHER_BRANCH),
        Row("logit_scale_t", None, note=OTHER_BRANCH),
    ]


def audio_config_from(source: dict) -> ClapAudioConfig:
    """Return our config.

    What the published one omits equals the defaults of transformers' `ClapAudioConfig`. Not all of them are
    the published model's, so they stand here.
    """
    require_value(source, "model_type", "clap")
    require_value(source, "projection_hidden_act", "relu")
    audio = field(source, "audio_config", dict | None, None) or {}
    require_value(audio, "hidden_act", "gelu")
    require_value(audio, "enable_fusion", False)
    require_value(audio, "flatten_patch_embeds", True)
    require_value(audio, "enable_patch_layer_norm", True)
    require_value(audio, "qkv_bias", True)
    depths = field(audio, "depths", tuple[int, ...], (2, 2, 6, 2))
    dim = field(audio, "patch_embeds_hidden_size", int, 96)
    require_value(audio, "hidden_size", dim << max(len(depths) - 1, 0))
    return ClapAudioConfig(
        mels=field(audio, "num_mel_bins", int, 64),
        spec_size=field(audio, "spec_size", int, 256),
        in_channels=field(audio, "patch_embed_input_channels", int, 1),
        patch_size=_square(audio, "patch_size"),
        patch_stride=_square(audio, "patch_stride"),
        dim=dim,
        depths=depths,
        heads=field(audio, "num_attention_heads", tuple[int, ...], (4, 8, 16, 32)),
        window=field(audio, "window_size", int, 8),
        ff_ratio=field(audio, "mlp_ratio", float, 4.0),
        dropout=field(audio, "hidden_dropout_prob", float, 0.1),
        eps=field(audio, "layer_norm_eps", float, 1e-5),
        projection_dim=field(source, "projection_dim", int, 512),
    )


def _square(audio: dict, name: str) -> int:
    size = field(audio, name, int | tuple[int, ...], 4)
    sides = set(size) if isinstance(size, tuple) else {size}
    if len(sides) != 1:
        raise WeightsError(f"the CLAP config's {name} is {size}; only equal sides are supported.")
    return sides.pop()


def config_to(text: ClapTextConfig, audio: ClapAudioConfig) -> dict:
    """Return one config for both branches, with every field, so that the library's defaults may change."""
    stages = len(audio.depths)
    return {
        "architectures": ["ClapModel"],
        "model_type": "clap",
        "projection_dim": text.projection_dim,
        "projection_hidden_act": "relu",
        "hidden_size": text.dim,
        "num_hidden_layers": text.depth + stages,
        "text_config": {
            "model_type": "clap_text_model",
            "vocab_size": text.vocabulary,
            "hidden_size": text.dim,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.ff_dim,
            "max_position_embeddings": text.max_positions,
            "pad_token_id": text.padding_id,
            "type_vocab_size": text.token_types,
            "projection_dim": text.projection_dim,
            "hidden_act": "gelu",
            "layer_norm_eps": text.eps,
        },
        "audio_config": {
            "model_type": "clap_audio_model",
            "num_mel_bins": audio.mels,
            "spec_size": audio.spec_size,
            "patch_embed_input_channels": audio.in_channels,
            "patch_size": audio.patch_size,
            "patch_stride": [audio.patch_stride] * 2,
            "patch_embeds_hidden_size": audio.dim,
            "hidden_size": audio.dim << (stages - 1),
            "depths": list(audio.depths),
            "num_hidden_layers": stages,
            "num_attention_heads": list(audio.heads),
            "window_size": audio.window,
            "mlp_ratio": audio.ff_ratio,
            "hidden_dropout_prob": audio.dropout,
            "layer_norm_eps": audio.eps,
            "hidden_act": "gelu",
            "projection_dim": audio.projection_dim,
            "enable_fusion": False,
            "qkv_bias": True,
        },
    }


# Buffers that follow from the configs and that the reference stores all the same


def with_text_buffers(state: dict[str, Tensor], config: ClapTextConfig) -> dict[str, Tensor]:
    """Return the same tensors and the text branch's constant buffers."""
    embeddings = "text_model.embeddings"
    return state | {
        f"{embeddings}.position_ids": torch.arange(config.max_positions)[None],
        f"{embeddings}.token_type_ids": torch.zeros(1, config.max_positions, dtype=torch.int64),
    }


def with_audio_buffers(state: dict[str, Tensor], config: ClapAudioConfig) -> dict[str, Tensor]:
    """Return the same tensors and the audio branch's constant buffers."""
    encoder = "audio_model.audio_encoder"
    index = offset_index(config.window, config.window, torch.device("cpu"))
    return state | {
        f"{encoder}.batch_norm.num_batches_tracked": torch.tensor(0),
        **{
            f"{encoder}.layers.{stage}.blocks.{block}.attention.self.relative_position_index": index.clone()
            for stage, depth in enumerate(config.depths)
            for block in range(depth)
        },
    }
