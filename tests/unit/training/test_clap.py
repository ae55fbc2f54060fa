"""The CLAP stage: dropout, band statistics, noise under the clips."""

import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training.clap import MAX_LOGIT_SCALE, NOISE_LEVEL, NOISE_SLOPE, add_noise
from tests.support.training import clips, stage_of


def test_training_uses_dropout_band_statistics_and_a_clamped_scale(random_weights: Checkpoint):
    stage = stage_of("clap", random_weights)
    audio = stage.trained["clap_audio"]
    before = audio.band_norm.running_mean.clone()
    block = audio.stages[0].blocks[0]
    assert block.training and block.dropout > 0
    with torch.no_grad():
        audio.logit_scale.fill_(MAX_LOGIT_SCALE + 1)
    stage.step(*clips(4))
    assert not torch.equal(audio.band_norm.running_mean, before)
    assert audio.logit_scale <= MAX_LOGIT_SCALE


def test_noise_level_is_within_its_range():
    silence, tone = -100.0, -10.0
    mels = torch.full((64, 300, 64), silence)
    mels[:, 100:200, 20] = tone  # for a third of the time, in one band
    noisy = add_noise(mels, torch.Generator().manual_seed(0))
    assert (noisy >= mels).all() and noisy.amax() < tone + 1  # powers add up
    beside, before = noisy[:, 100:200, 40].mean(dim=1), noisy[:, :100, 40].mean(dim=1)
    least, most = NOISE_LEVEL
    assert (beside < tone - least + NOISE_SLOPE).all() and beside.max() > tone - least - 10
    assert beside.min() < tone - most + 15  # the whole range is drawn
    # Some noise follows the level of the tone, some is constant.
    assert (before < silence + 1).any() and (before > silence + 20).any()


def test_noise_is_added_to_a_fraction_of_the_clips(random_weights: Checkpoint):
    stage = stage_of("clap", random_weights, seconds=3.0, noise=0.5)
    inputs: list[torch.Tensor] = []
    stage.trained["clap_audio"].register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    wave, captions = clips(4, 3.0)
    prepared = stage.prepare(wave)
    before = prepared.clone()
    stage.step_prepared(prepared, captions)
    assert torch.equal(prepared, before), "clips of a pool must not change"
    frames = round(9.0 * stage.clap_mel.sample_rate / stage.clap_mel.hop)  # 3 s three times, then silence
    assert (inputs[0][:2, :frames] != prepared[:2, :frames]).all(dim=2).any(dim=1).all()
    assert torch.equal(inputs[0][:2, frames:], prepared[:2, frames:])
    assert torch.equal(inputs[0][2:], prepared[2:])
