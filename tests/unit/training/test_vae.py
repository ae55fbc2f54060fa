"""The VAE stage."""

from dataclasses import replace

import pytest
import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training.vae import VAEStage
from tests.support.training import clips, parameter_copies, stage_of


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


def test_scale_of_latents_stays_where_a_denoiser_knows_it(initial: Checkpoint, random_weights: Checkpoint):
    for checkpoint, keeps in ((initial, False), (random_weights, True)):
        stage = stage_of("vae", checkpoint, seconds=0.32)
        stage.step(*clips(2, 0.32))
        stage.measure([clips(2, 0.32)[0]])
        scale = stage.checkpoint().configs["vae"].scaling_factor
        assert (scale == checkpoint.configs["vae"].scaling_factor) is keeps
        assert bool(stage.warnings()) is keeps


def test_finetuning_keeps_the_encoder_and_so_the_latents(random_weights: Checkpoint):
    recipe = replace(VAEStage.recipe_for(random_weights), batch=2, seconds=0.32, learning_rate=1e-2)
    stage = VAEStage(random_weights, recipe, torch.device("cpu"))
    before = parameter_copies({"vae": stage.trained["vae"]})["vae"]
    stage.step(*clips(2, 0.32))
    for key, parameter in stage.trained["vae"].named_parameters():
        assert torch.equal(parameter, before[key]) is key.startswith("encoder."), key
    assert stage.warnings() == []
