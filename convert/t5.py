"""`T5EncoderModel` of transformers -> `audioldm2.models.t5.T5Encoder`."""

from audioldm2.models.t5 import T5Config

from .configs import demand, field
from .keymap import Row, nest

BLOCK = [
    Row("layer.0.layer_norm", "attn_norm"),
    Row("layer.0.SelfAttention.q", "attn.query"),
    Row("layer.0.SelfAttention.k", "attn.key"),
    Row("layer.0.SelfAttention.v", "attn.value"),
    Row("layer.0.SelfAttention.o", "attn.out"),
    Row("layer.1.layer_norm", "ff_norm"),
    Row("layer.1.DenseReluDense.wi_0", "ff.gate"),
    Row("layer.1.DenseReluDense.wi_1", "ff.value"),
    Row("layer.1.DenseReluDense.wo", "ff.out"),
]


def rows(config: T5Config) -> list[Row]:
    return [
        Row("shared", "embedding"),
        Row("encoder.embed_tokens", None, note="the same tensor as shared", optional=True),
        Row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "distance_bias"),
        *nest("encoder.block.*", "blocks.*", BLOCK),
        Row("encoder.final_layer_norm", "norm_out"),
        Row("decoder", None, note="AudioLDM 2 only encodes", optional=True),
        Row("lm_head", None, note="AudioLDM 2 only encodes", optional=True),
    ]


def config_from(source: dict) -> T5Config:
    demand(source, "model_type", "t5")
    demand(source, "feed_forward_proj", "gated-gelu")
    demand(source, "dense_act_fn", "gelu_new")
    return T5Config(
        vocabulary=field(source, "vocab_size", int),
        dim=field(source, "d_model", int),
        depth=field(source, "num_layers", int),
        heads=field(source, "num_heads", int),
        head_dim=field(source, "d_kv", int),
        ff_dim=field(source, "d_ff", int),
        buckets=field(source, "relative_attention_num_buckets", int, 32),
        max_distance=field(source, "relative_attention_max_distance", int, 128),
        eps=field(source, "layer_norm_epsilon", float, 1e-6),
    )
