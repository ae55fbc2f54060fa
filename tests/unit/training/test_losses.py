"""Each loss against a value computed by hand, or by PyTorch's own formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioldm2.audio import VAE_MEL
from audioldm2.training import losses
from audioldm2.training.discriminators import PatchDiscriminator, WaveDiscriminators


def test_kl_is_the_divergence_from_the_standard_normal():
    mean, std = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    normal, unit = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    assert losses.kl_divergence(mean, std) == pytest.approx(
        float(torch.distributions.kl_divergence(normal, unit).mean())
    )
    assert losses.kl_divergence(torch.zeros(2), torch.ones(2)) == 0


def test_spectral_losses_of_a_wave_at_half_amplitude():
    wave = torch.randn(2, 8192)
    # Spectral convergence |S - S/2| / |S| = 1/2, and |log S - log S/2| = log 2, at every resolution.
    assert losses.stft_loss(wave / 2, wave) == pytest.approx(0.5 + math.log(2), abs=1e-4)
    assert losses.mel_loss(wave / 2, wave, VAE_MEL) == pytest.approx(math.log(2), abs=1e-5)
    assert losses.stft_loss(wave, wave) == losses.mel_loss(wave, wave, VAE_MEL) == 0


def test_stft_loss_weights_quiet_and_loud_clips_equally():
    wave = torch.randn(2, 8192) * torch.tensor([[1.0], [0.01]])
    predicted = wave * torch.tensor([[1.0], [0.5]])  # only the quiet one has an error: half of its amplitude
    assert losses.stft_loss(predicted, wave) == pytest.approx((0.5 + math.log(2)) / 2, rel=0.01)
    assert losses.stft_loss(torch.full((1, 8192), 1e-6), torch.zeros(1, 8192)) < 0.1  # almost silence


def test_floor_suppresses_errors_below_it():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(8192) / 16000)[None]
    hissing = tone + 1e-4 * torch.randn(1, 8192)
    silent = torch.zeros(1, 8192)
    for loss in (
        lambda predicted, floor: losses.mel_loss(predicted, tone, VAE_MEL, floor),
        lambda predicted, floor: losses.stft_loss(predicted, tone, floor=floor),
    ):
        assert loss(hissing, 0.1) < 0.01 * loss(silent, 0.1)  # and without a floor, a large part of it:
        assert loss(hissing, 0.0) > 0.2 * loss(silent, 0.0)


def test_gradients_of_silence_are_finite():
    predicted = torch.zeros(1, 8192, requires_grad=True)
    target = torch.randn(1, 8192)
    (losses.stft_loss(predicted, target) + losses.mel_loss(predicted, target, VAE_MEL)).backward()
    assert predicted.grad.isfinite().all()
    loud = torch.randn(1, 8192, requires_grad=True)
    losses.stft_loss(loud, torch.zeros(1, 8192)).backward()
    assert loud.grad.isfinite().all()


def test_least_squares_losses():
    real, fake = (
        [torch.tensor([1.0, 0.5]), torch.tensor([1.0])],
        [torch.tensor([0.5, 0.5]), torch.tensor([0.0])],
    )
    # (0 + 0.25) / 2 + (0.25 + 0.25) / 2, then 0 + 0.
    assert losses.least_squares_discriminator(real, fake) == pytest.approx(0.125 + 0.25)
    assert losses.least_squares_generator(fake) == pytest.approx(0.25 + 1.0)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert losses.hinge_discriminator(real, fake) == pytest.approx(0.5 * (0.25 + 0.75))
    assert losses.hinge_generator(fake) == pytest.approx(0.75)


def test_feature_matching_sums_over_layers_and_discriminators():
    real = [[torch.zeros(2), torch.ones(3)], [torch.zeros(1)]]
    fake = [[torch.ones(2), torch.ones(3) * 1.5], [torch.full((1,), -2.0)]]
    assert losses.feature_matching(real, fake) == pytest.approx(1 + 0.5 + 2)


def test_adaptive_weight_is_the_ratio_of_gradients():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (2 * weight).sum(), 0.5 * weight.sum()
    found = losses.adaptive_weight(reconstruction, adversarial, weight)
    assert found == pytest.approx(4, rel=1e-3) and not found.requires_grad
    assert losses.adaptive_weight(reconstruction, 1e-9 * weight.sum(), weight) == 1e4


def test_contrastive_loss_equals_that_of_clip_if_all_texts_differ():
    sounds, texts = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(1.5)
    logits = scale.exp() * sounds @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    found = losses.contrastive_loss(sounds, texts, scale, scale, torch.eye(5, dtype=torch.bool))
    assert found == pytest.approx(float(expected))


def test_contrastive_loss_treats_equal_texts_as_equally_correct():
    sounds = F.normalize(torch.randn(3, 4), dim=-1)
    texts = sounds[[0, 0, 2]]  # the first two texts are equal
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    scale = torch.tensor(0.0)
    rows = (sounds @ texts.T).log_softmax(dim=1)
    columns = (sounds @ texts.T).T.log_softmax(dim=1)
    of_rows, of_columns = (-(x[0, :2].mean() + x[1, :2].mean() + x[2, 2]) / 3 for x in (rows, columns))
    found = losses.contrastive_loss(sounds, texts, scale, scale, same)
    assert found == pytest.approx(float(of_rows + of_columns) / 2)


def test_noise_loss_with_min_snr_weights():
    predicted, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    alpha_bar = torch.tensor([0.99, 0.5, 0.01])  # SNR 99, 1, 0.0101
    assert losses.noise_loss(predicted, eps, alpha_bar) == pytest.approx(float(F.mse_loss(predicted, eps)))
    rows = (predicted - eps).square().mean(dim=(1, 2, 3))
    expected = (rows * torch.tensor([5 / 99, 1.0, 1.0])).mean()
    assert losses.noise_loss(predicted, eps, alpha_bar, 5.0) == pytest.approx(float(expected), rel=1e-4)


# Discriminators ---------------------------------------------------------------------------------------------


def size(module: nn.Module) -> int:
    """Number of plain weights and biases, without the parameters of weight norm."""
    convs = [each for each in module.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)]
    return sum(conv.weight.numel() + (conv.bias is not None and conv.bias.numel()) for conv in convs)


@pytest.mark.slow
def test_discriminators_have_the_published_sizes():
    full = WaveDiscriminators()
    assert (size(full.periods), size(full.scales)) == (41_092_165, 29_610_627)
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_763_585


@pytest.mark.parametrize("samples", [4000, 4001])
def test_discriminators_accept_any_length(samples: int):
    judgements = WaveDiscriminators(width=4)(torch.randn(2, samples))
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert all(score.shape[0] == 2 for score, _ in judgements)
    assert PatchDiscriminator(width=8)(torch.randn(2, 1, 64, 64)).shape == (2, 1, 6, 6)
