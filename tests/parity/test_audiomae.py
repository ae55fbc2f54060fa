"""AudioMAE against transformers' ViTModel, every parameter random, and its pooling against the definition."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from audioldm2.convert import audiomae, keymap
from audioldm2.models.audiomae import AudioMAE, AudioMAEConfig, pooled

TINY = AudioMAEConfig(dim=24, depth=4, heads=3, patch=4, frames=64, mels=16, averaged=3, pool=(4, 2))
CASES = {
    "tiny": TINY,
    "one block averaged": AudioMAEConfig(
        dim=12, depth=2, heads=1, patch=8, frames=32, mels=24, averaged=1, pool=(1, 3), eps=1e-3
    ),
    "every block averaged": AudioMAEConfig(
        dim=16, depth=3, heads=4, patch=2, frames=6, mels=8, averaged=3, pool=(1, 1)
    ),
}


def reference(config: AudioMAEConfig, seed: int = 0) -> transformers.ViTModel:
    """The reference with every parameter random and activations of ordinary size."""
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.dim,
            image_size=(config.frames, config.mels),
            patch_size=config.patch,
            num_channels=1,
            layer_norm_eps=config.eps,
        ),
        add_pooling_layer=False,
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layernorm" in key and key.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif key.endswith("weight"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # biases, the class token and positions
                parameter.copy_(0.5 * noise)
    return model


def as_in_the_original(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The reference's tensors, or their gradients, under the keys of the original files."""
    found = {}
    found["cls_token"] = state["embeddings.cls_token"]
    found["pos_embed"] = state["embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for number in range(depth):
            theirs, ours = f"layers.{number}", f"blocks.{number}"
            found[f"{ours}.attn.qkv.{kind}"] = torch.cat(
                [state[f"{theirs}.attention.{part}_proj.{kind}"] for part in "qkv"]
            )
            words = {
                "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
                "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
            }  # fmt: skip
            found |= {f"{ours}.{a}.{kind}": state[f"{theirs}.{b}.{kind}"] for a, b in words.items()}
    return found


def randomised_pair(config: AudioMAEConfig) -> tuple[AudioMAE, transformers.ViTModel]:
    theirs = reference(config)
    with torch.device("meta"):
        ours = AudioMAE(config)
    state = converted(as_in_the_original(theirs.state_dict(), config.depth))
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval(), theirs


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's tensors under our keys, by our rows."""
    return keymap.convert(tensors, keymap.plan(tensors, audiomae.ORIGINAL_ROWS))


def fbank_like(config: AudioMAEConfig, batch: int = 2) -> Tensor:
    return torch.randn(batch, config.frames, config.mels, generator=torch.Generator().manual_seed(1))


def patches(model: transformers.ViTModel, config: AudioMAEConfig, fbank: Tensor) -> Tensor:
    """The reference's vectors of patches: upstream's `forward_encoder_no_mask`, without the class vector."""
    hidden = model(fbank.unsqueeze(1), output_hidden_states=True).hidden_states
    return torch.stack([model.layernorm(x) for x in hidden[-config.averaged :]]).mean(dim=0)[:, 1:]


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_patches(name: str):
    config = CASES[name]
    ours, theirs = randomised_pair(config)
    fbank = fbank_like(config)
    torch.testing.assert_close(ours.encode(fbank), patches(theirs, config, fbank), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_loa(name: str):
    """Upstream's order: a map (dim, time, frequency) of the vectors, pooled, flattened time first."""
    config = CASES[name]
    ours, theirs = randomised_pair(config)
    fbank = fbank_like(config)
    image = patches(theirs, config, fbank).transpose(1, 2).reshape(2, config.dim, *config.grid)
    expected = (F.avg_pool2d(image, config.pool) + F.max_pool2d(image, config.pool)) / 2
    torch.testing.assert_close(ours(fbank), expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_gradients():
    ours, theirs = randomised_pair(TINY)
    fbank, probe = fbank_like(TINY), torch.randn(2, TINY.tokens, TINY.dim)
    (ours(fbank) * probe).sum().backward()
    (pooled(patches(theirs, TINY, fbank), TINY) * probe).sum().backward()
    gradients = {key: each.grad for key, each in theirs.named_parameters() if each.grad is not None}
    expected = converted(as_in_the_original(gradients, TINY.depth))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("pool", "tokens"), [((8, 8), 8), ((1, 1), 512)])
def test_pooling_is_exact(pool: tuple[int, int], tokens: int):
    """Computed by hand on the 64 x 8 patches of the published network: 8 vectors, or all 512."""
    config = AudioMAEConfig(dim=12, pool=pool)
    x = torch.randint(-100, 100, (2, 512, 12)).float()  # whole numbers, whose sums are exact
    found = pooled(x, config)
    assert found.shape == (2, tokens, 12) and config.tokens == tokens
    rows, columns = pool
    for token in range(tokens):
        row, column = divmod(token, 8 // columns)
        group = [
            8 * (row * rows + down) + column * columns + across
            for down in range(rows)
            for across in range(columns)
        ]
        expected = (x[:, group].mean(dim=1) + x[:, group].amax(dim=1)) / 2
        assert torch.equal(found[:, token], expected)
