"""Each network against the reference's, through our converter: float32, every parameter random, atol 1e-5."""

import pytest
import torch
from torch import Tensor, nn

from audioldm2.checkpoints import storage
from audioldm2.convert import PARTS, convert_state, sources
from audioldm2.runtime import placement
from tests.support import reference

ATOL = 1e-5


def ours(name: str, model: nn.Module, tmp_path, **config_arguments) -> nn.Module:
    """Our network, from the files that the reference saves."""
    folder = reference.save(tmp_path, PARTS[name].folder, model)
    config = PARTS[name].config_from(sources.read_config(folder, name), **config_arguments)
    state = convert_state(name, config, sources.read_state(folder), str(folder))
    checkpoint = storage.Checkpoint({name: config}, {name: lambda: state}, {}, {}, {}, str(folder))
    return placement.materialise(checkpoint, name, device=torch.device("cpu"), dtype=torch.float32)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-2, "the reference's output is too small to judge"
    error = (found - expected).abs().max().item()
    assert error <= ATOL, f"max abs error {error:.2e}"


def mask_of(lengths: list[int], total: int | None = None) -> Tensor:
    return torch.arange(total or max(lengths)) < torch.tensor(lengths)[:, None]


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1, 1), (9, 4), (40, 9), (128, 40), (170, 1)])
def test_t5(tmp_path, lengths):
    model = reference.t5()
    network = ours("t5", model, tmp_path)
    mask = mask_of(list(lengths))
    ids = torch.randint(2, 320, mask.shape).masked_fill(~mask, 0)
    expected = model(ids, attention_mask=mask.long())[0]
    assert_same(network(ids, mask), expected)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(3, 3), (9, 40), (2, 200)])
def test_clap_text(tmp_path, lengths):
    model = reference.clap()
    network = ours("clap_text", model, tmp_path)
    mask = mask_of(list(lengths), 256)
    ids = torch.randint(2, 400, mask.shape).masked_fill(~mask, 1)
    expected = model.get_text_features(ids, attention_mask=mask.long()).pooler_output
    assert_same(network(ids, mask), expected)
    longest = max(lengths)  # padding that the mask hides need not be computed
    assert_same(network(ids[:, :longest], mask[:, :longest]), expected)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1, 1), (9, 4), (40, 128)])
def test_projection(tmp_path, lengths):
    model = reference.projection()
    network = ours("projection", model, tmp_path)
    mask = mask_of(list(lengths))
    clap, t5 = torch.randn(2, 10), torch.randn(*mask.shape, 24)
    expected = model(clap[:, None], t5, torch.ones(2, 1).long(), mask.long())
    vectors, joined = network(clap, t5, mask)
    assert_same(vectors, expected.hidden_states)
    assert torch.equal(joined.long(), expected.attention_mask)


@torch.no_grad()
@pytest.mark.parametrize("language_head", [True, False])
@pytest.mark.parametrize("lengths", [(6, 6), (14, 9), (45, 133)])
def test_gpt2(tmp_path, lengths, language_head):
    """The reference without a cache: the whole sequence again for each new vector."""
    model = reference.gpt2(language_head=language_head)
    network = ours("gpt2", model, tmp_path)
    real = [length - 1 for length in lengths]
    mask = mask_of(real, max(lengths))
    mask[:, -1] = True  # the last vector stands after the padding
    x = torch.randn(*mask.shape, 12)
    sequence, attended = x, mask
    for _ in range(8):
        hidden = model(inputs_embeds=sequence, attention_mask=attended.long(), output_hidden_states=True)
        sequence = torch.cat([sequence, hidden.hidden_states[-1][:, -1:]], dim=1)
        attended = torch.cat([attended, attended.new_ones(2, 1)], dim=1)
    assert_same(network.generate(x, mask), sequence[:, -8:])


UNETS = {
    "base": {},
    "large": dict(cross_attention_dim=((None, 12, 20, None),) * 3, transformer_layers_per_block=2),
    "speech": dict(cross_attention_dim=((None, 12),) * 3),
    "heads per level": dict(attention_head_dim=(2, 4, 6), layers_per_block=1),
    "linear projections": dict(use_linear_projection=True),
    "one context, every level": dict(
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, time, mel",
    [
        *(("base", *size) for size in ((16, 8), (13, 4), (61, 8), (25, 16))),
        *((kind, 61, 8) for kind in UNETS if kind != "base"),
    ],
)
def test_unet(tmp_path, kind, time, mel):
    model = reference.unet(**UNETS[kind])
    network = ours("unet", model, tmp_path)
    x, mask = torch.randn(2, 3, time, mel), mask_of([9, 4])
    gpt2, t5, t = torch.randn(2, 8, 12), torch.randn(2, 9, 20), torch.tensor(637)
    has_t5 = "base" in kind or "large" in kind or "heads" in kind or "linear" in kind
    second = dict(encoder_hidden_states_1=t5, encoder_attention_mask_1=mask.long()) if has_t5 else {}
    expected = model(x, t, encoder_hidden_states=gpt2, **second).sample
    assert_same(network(x, t, gpt2, t5, mask), expected)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, dict(block_out_channels=(8, 12), layers_per_block=1,
                                             down_block_types=("DownEncoderBlock2D",) * 2,
                                             up_block_types=("UpDecoderBlock2D",) * 2)])  # fmt: skip
@pytest.mark.parametrize("time, mel", [(16, 4), (61, 16), (5, 1)])
def test_vae(tmp_path, changes, time, mel):
    model = reference.vae(**changes)
    network = ours("vae", model, tmp_path)
    z = torch.randn(2, 3, time, mel)
    assert_same(network.decode(z), model.decode(z / 0.37).sample)
    spectrogram = torch.randn(2, 1, 4 * time, 4 * mel)
    posterior = model.encode(spectrogram).latent_dist
    mean, std = network.encode(spectrogram)
    assert_same(mean, posterior.mean * 0.37)
    assert_same(std, posterior.std * 0.37)


OTHER_HIFIGAN = dict(
    normalize_before=True, leaky_relu_slope=0.2, upsample_rates=[3, 2, 2], upsample_kernel_sizes=[7, 4, 4]
)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, OTHER_HIFIGAN])
@pytest.mark.parametrize("time", [1, 24, 61])
def test_hifigan(tmp_path, changes, time):
    model = reference.hifigan(**changes)
    network = ours("hifigan", model, tmp_path)
    mel = torch.randn(2, time, 16)
    assert_same(network(mel), model(mel))
