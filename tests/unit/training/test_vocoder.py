"""The vocoder stage: its phases, its random windows."""

from dataclasses import replace

import pytest
import torch

from audioldm2.audio import VAE_MEL
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.training import losses
from audioldm2.training.additive_synthesis import partial_amplitudes
from audioldm2.training.vocoder import PARTIAL_GAIN, frame_features
from audioldm2.training.weight_init import initialize
from tests.support.training import clips, parameter_copies, stage_of


@pytest.fixture(scope="module")
def wide_vocoder(initial: Checkpoint) -> Checkpoint:
    """A checkpoint whose vocoder has frame-rate layers."""
    config = HiFiGANConfig(
        channels=316, upsample_rates=(1, 10, 16), upsample_kernels=(1, 20, 32), branch_kernels=(1,),
        branch_dilations=((1,),), normalize_before=True,
    )  # fmt: skip
    return replace(
        initial,
        configs=initial.configs | {"hifigan": config},
        states=initial.states | {"hifigan": initialize("hifigan", config).state_dict},
    )


@pytest.mark.slow
def test_additive_phase_learns_waveforms(initial: Checkpoint):
    stage = stage_of("vocoder", initial, additive_until=15, learning_rate=2e-3, schedule="constant")
    metrics = [stage.step(*clips(2, 0.256)) for _ in range(16)]
    assert not any({"mel", "stft"} & each.keys() for each in metrics[:15])
    assert "mel" in metrics[15] and "stft" in metrics[15]
    first, last = metrics[0]["loss"], metrics[14]["loss"]  # relative to the wave's RMS
    assert last < 0.8 * first and last < 0.9, f"the error went from {first:.3f} to {last:.3f}"


@pytest.mark.slow
def test_partials_phase_trains_only_the_frame_rate_layers(wide_vocoder: Checkpoint):
    stage = stage_of(
        "vocoder", wide_vocoder, partials_until=30, optimizer="muon", steps=32, window=0.32, through_vae=0.0
    )
    before = parameter_copies(stage.trained)["hifigan"]
    wave, captions = clips(2, 0.4)
    errors = [stage.step(wave, captions)["loss"] for _ in range(30)]
    assert errors[-1] < 0.6 < 0.9 < errors[0]
    for key, parameter in stage.trained["hifigan"].named_parameters():
        at_frame_rate = key.startswith(("conv_in", "stages.0"))
        assert torch.equal(parameter, before[key]) != at_frame_rate, key
    target = partial_amplitudes(stage.mel(wave), VAE_MEL)
    with torch.no_grad():
        features = frame_features(stage.trained["hifigan"], stage.mel(wave)) / PARTIAL_GAIN
    positive, negative = features[..., :79], features[..., 79:158]
    assert losses.relative_error((positive - negative).flatten(1), target.flatten(1)) < 0.7
    stage.step(wave, captions)
    assert not torch.equal(stage.trained["hifigan"].conv_out.weight, before["conv_out.weight"])


def test_rejects_partials_for_a_vocoder_without_frame_rate_layers(initial: Checkpoint):
    message = (
        "partials_until is 5; it has to be 0 for a vocoder with 64 channels whose first upsampling rate is 8"
        ": learning partials needs 316 channels and rate 1"
    )
    with pytest.raises(ValueError, match=message):
        stage_of("vocoder", initial, partials_until=5)


def test_loss_weights_additive_and_mel_terms(initial: Checkpoint):
    metrics = stage_of(
        "vocoder", initial, additive_weight=5.0, mel_weight=2.0, stft_weights=[0, 0, 0], adversary_start=None
    ).step(*clips(2, 0.256))
    assert metrics["loss"] == pytest.approx(2 * metrics["mel"] + 5 * metrics["additive"])
    assert metrics["additive"] > 0.5


def test_steps_train_on_random_windows(initial: Checkpoint):
    stage = stage_of("vocoder", initial, window=0.16)
    prepared = stage.prepare(clips(3, 0.8)[0])
    generator = torch.Generator().manual_seed(0)
    one, other = stage.crop(prepared, generator), stage.crop(prepared, generator)
    assert one.shape == (3, 16, prepared.shape[2]) and not torch.equal(one, other)
    frames = prepared.unfold(1, 16, 1).movedim(3, 2)  # (clips, starts, frames of a window, values)
    for clip, window in zip(frames, one, strict=True):
        assert (clip == window).all(dim=2).all(dim=1).any()
    whole = stage_of("vocoder", initial, window=3.0).crop(prepared, generator)  # longer than the clips
    assert torch.equal(whole, prepared)


def test_rejects_negative_window(initial: Checkpoint):
    with pytest.raises(WeightsError, match=r"window of the test\'s recipe is -1\.0; it has to be at least 0"):
        stage_of("vocoder", initial, window=-1.0)
