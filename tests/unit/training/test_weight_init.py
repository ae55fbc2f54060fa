"""Initial weights: reproducible, and at a useful scale."""

import pytest
import torch
from torch import Tensor

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.training.new_model import NOT_NETWORKS, SMALL
from audioldm2.training.weight_init import initialize


@pytest.mark.parametrize("name", [name for name in SMALL if name not in NOT_NETWORKS])
def test_seed_determines_the_weights(name: str, initial: Checkpoint):
    config = initial.configs[name]
    before = torch.get_rng_state()
    one, same, other = (initialize(name, config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(tensor.isfinite().all() for tensor in one.values())


def test_denoiser_starts_by_predicting_zero(initial: Checkpoint):
    unet = initialize("unet", initial.configs["unet"])
    contexts = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    assert unet(torch.randn(1, 16, 16, 16), torch.tensor(500.0), *contexts).abs().max() == 0


@pytest.mark.parametrize("channels", [64, 512])
def test_vocoder_starts_audible(channels: int):
    config = HiFiGANConfig(
        channels=channels, upsample_rates=(8, 5, 4), upsample_kernels=(16, 11, 8), normalize_before=True
    )
    vocoder = initialize("hifigan", config)
    assert 0.03 < vocoder(3 * torch.randn(1, 20, 64) - 5).std() < 0.3


def test_vocoder_with_frame_rate_layers_starts_linear_after_them():
    config = SMALL["hifigan"]
    vocoder = initialize("hifigan", config).double()
    features = 20 * torch.rand(2, 3, config.channels // 2, 40, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        for stage in vocoder.stages[1:]:
            x = stage(x)
        return vocoder.conv_out(torch.nn.functional.leaky_relu(x))[:, 0, 800:-800]  # without the edges

    with torch.no_grad():
        one, other = run(0.01 * features[0]), run(0.01 * features[1])
        silent = run(0 * features[0])
        both = run(0.01 * features.sum(dim=0))
    assert silent.abs().max() < 0.1 * one.std()
    assert (one + other - silent - both).std() < 0.1 * both.std()
