"""`ClapModel` of transformers -> `ClapText` and `ClapAudio` of audioldm2.models.

The source keeps both branches in one file. Each network reads it with its own rows, which drop the other's.
"""

from audioldm2.errors import WeightsError
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.clap_text import ClapTextConfig

from .configs import demand, field
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
    """The published config leaves out what equals transformers' defaults, and these are ours."""
    demand(source, "model_type", "clap")
    demand(source, "projection_hidden_act", "relu")
    text = field(source, "text_config", dict | None, None) or {}
    demand(text, "hidden_act", "gelu")
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
    """What the published config leaves out equals the defaults of transformers' `ClapAudioConfig`; they are
    not all those of the published model, so they stand here."""
    demand(source, "model_type", "clap")
    demand(source, "projection_hidden_act", "relu")
    audio = field(source, "audio_config", dict | None, None) or {}
    demand(audio, "hidden_act", "gelu")
    demand(audio, "enable_fusion", False)
    demand(audio, "flatten_patch_embeds", True)
    demand(audio, "enable_patch_layer_norm", True)
    demand(audio, "qkv_bias", True)
    depths = field(audio, "depths", tuple[int, ...], (2, 2, 6, 2))
    dim = field(audio, "patch_embeds_hidden_size", int, 96)
    demand(audio, "hidden_size", dim << max(len(depths) - 1, 0))
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
