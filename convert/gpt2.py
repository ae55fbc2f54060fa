"""`GPT2Model` of transformers (or `GPT2LMHeadModel`, with its prefix) -> `audioldm2.models.gpt2.GPT2`."""

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from audioldm2.errors import WeightsError, some
from audioldm2.models.gpt2 import GPT2Config

from .configs import count, field, need, require_value
from .keymap import Row, nest, transpose

CONV1D = "the source's Conv1D stores (in, out)"
BLOCK = [
    Row("ln_1", "attn_norm"),
    Row("attn.c_attn", "attn.qkv", transpose, note=CONV1D),
    Row("attn.c_proj", "attn.out", transpose, note=CONV1D),
    Row("attn.bias", None, note="a causal mask, stored by old versions", optional=True),
    Row("attn.masked_bias", None, note="a constant, stored by old versions", optional=True),
    Row("ln_2", "ff_norm"),
    Row("mlp.c_fc", "ff_in", transpose, note=CONV1D),
    Row("mlp.c_proj", "ff_out", transpose, note=CONV1D),
]


def rows(config: GPT2Config) -> list[Row]:
    """Return the rows of the diffusers layout."""
    return [
        Row("wte", None, note="AudioLDM 2 feeds vectors, never tokens", optional=True),
        Row("wpe", "position_embedding"),
        *nest("h.*", "blocks.*", BLOCK),
        Row("ln_f", "norm_out"),
        Row("lm_head", None, note="AudioLDM 2 reads hidden states, never logits", optional=True),
    ]


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors without the `transformer.` that a model with a language head adds to its keys.

    Raises:
        WeightsError: two keys become one.
    """
    plain = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
    if len(plain) < len(state):
        twice = [key for key in plain if key in state and f"transformer.{key}" in state]
        raise WeightsError(f"{some(twice)} are stored both with and without the prefix 'transformer.'.")
    return plain


def config_from(source: dict) -> GPT2Config:
    """Return our config for the source\'s."""
    require_value(source, "model_type", "gpt2")
    require_value(source, "activation_function", "gelu_new")
    require_value(source, "scale_attn_weights", True)
    require_value(source, "scale_attn_by_inverse_layer_idx", False)
    dim = field(source, "n_embd", int)
    require_value(source, "n_inner", None, 4 * dim)
    return GPT2Config(
        dim=dim,
        depth=field(source, "n_layer", int),
        heads=field(source, "n_head", int),
        max_positions=field(source, "n_positions", int),
        new_vectors=field(source, "max_new_tokens", int | None, None) or GPT2Config.new_vectors,
        eps=field(source, "layer_norm_epsilon", float, 1e-5),
    )


def config_to(config: GPT2Config) -> dict:
    """Return the source\'s config for ours."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": config.dim,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "n_inner": None,
        "max_new_tokens": config.new_vectors,
        "layer_norm_epsilon": config.eps,
        "vocab_size": 1,  # see `with_language_head`
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def with_language_head(state: dict[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Return the tensors of `GPT2LMHeadModel`, the class that the reference's pipeline can run.

    Its table of tokens, shared with its head, has one row: the reference requires it and never reads it.
    """
    table = torch.zeros(1, config.dim, dtype=next(iter(state.values())).dtype)
    return {f"transformer.{key}": tensor for key, tensor in (state | {"wte.weight": table}).items()}


def original_config(shapes: Mapping[str, Size], new_vectors: int) -> GPT2Config:
    """Return the config that the shapes imply. The names are those above; heads are 64 wide there."""
    positions, dim = need(shapes, "wpe.weight", 2)
    return GPT2Config(
        dim=dim,
        depth=count(shapes, "h.*"),
        heads=max(dim // 64, 1),
        max_positions=positions,
        new_vectors=new_vectors,
    )
