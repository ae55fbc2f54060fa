"""`T5EncoderModel` of transformers -> `audioldm2.models.t5.T5Encoder`."""

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from audioldm2.errors import WeightsError
from audioldm2.models.t5 import T5Config

from .configs import count, field, need, require_value
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
    """Return the rows of the diffusers layout."""
    return [
        Row("shared", "embedding"),
        Row("encoder.embed_tokens", None, note="the same tensor as shared", optional=True),
        Row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "distance_bias"),
        *nest("encoder.block.*", "blocks.*", BLOCK),
        Row("encoder.final_layer_norm", "norm_out"),
        Row("decoder", None, note="AudioLDM 2 only encodes", optional=True),
        Row("lm_head", None, note="AudioLDM 2 only encodes", optional=True),
    ]


def with_one_embedding(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors; WeightsError if the encoder's embedding differs from the shared one."""
    shared, own = state.get("shared.weight"), state.get("encoder.embed_tokens.weight")
    if (
        shared is None or own is None or shared.is_meta
    ):  # on meta, in tests of names, there is no value to compare
        return state
    if shared.dtype != own.dtype or not torch.equal(shared, own):
        raise WeightsError(
            "'shared.weight' and 'encoder.embed_tokens.weight' differ, and T5 has one embedding; "
            "leave out the one that it was not trained with."
        )
    return state


def config_from(source: dict) -> T5Config:
    """Return our config for the source\'s."""
    require_value(source, "model_type", "t5")
    require_value(source, "feed_forward_proj", "gated-gelu")
    require_value(source, "dense_act_fn", "gelu_new")
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


def config_to(config: T5Config) -> dict:
    """Return the source\'s config for ours."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": config.vocabulary,
        "d_model": config.dim,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "d_kv": config.head_dim,
        "d_ff": config.ff_dim,
        "dense_act_fn": "gelu_new",
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.eps,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }


def original_config(shapes: Mapping[str, Size]) -> T5Config:
    """Return the config that the shapes of the original's tensors imply; the names are those above."""
    vocabulary, dim = need(shapes, "shared.weight", 2)
    block = "encoder.block.0.layer"
    buckets, heads = need(shapes, f"{block}.0.SelfAttention.relative_attention_bias.weight", 2)
    return T5Config(
        vocabulary=vocabulary,
        dim=dim,
        depth=count(shapes, "encoder.block.*"),
        heads=heads,
        head_dim=need(shapes, f"{block}.0.SelfAttention.q.weight", 2)[0] // heads,
        ff_dim=need(shapes, f"{block}.1.DenseReluDense.wi_0.weight", 2)[0],
        buckets=buckets,
    )
