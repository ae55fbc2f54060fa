"""The VAE stage."""

import pytest
import torch

from audioldm2.checkpoints.storage import Checkpoint
from tests.support.training import clips, stage_of


def test_scaling_factor_gives_latents_unit_variance(initial: Checkpoint):
    stage = stage_of("vae", initial)
    for _ in range(3):
        stage.step(*clips(4))
    batches = [clips(4)[0], clips(8)[0][4:]]
    stage.measure(batches)
    vae = stage.trained["vae"]
    vae.config = stage.checkpoint().configs["vae"]
    with torch.no_grad():
        mean, std = vae.encode(stage.mel(torch.cat(batches)).unsqueeze(1))
    z = mean + std * torch.randn(mean.shape)
    assert float(z.std()) == pytest.approx(1, abs=0.02)
