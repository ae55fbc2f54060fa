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
    assert losses.kl(mean, std) == pytest.approx(
        float(torch.distributions.kl_divergence(normal, unit).mean())
    )
    assert losses.kl(torch.zeros(2), torch.ones(2)) == 0


def test_half_as_loud_is_half_the_magnitude_and_log_two_in_logarithms():
    wave = torch.randn(2, 8192)
    # Spectral convergence |S - S/2| / |S| = 1/2, and |log S - log S/2| = log 2, at every resolution.
    assert losses.stft_loss(wave / 2, wave) == pytest.approx(0.5 + math.log(2), abs=1e-4)
    assert losses.mel_loss(wave / 2, wave, VAE_MEL) == pytest.approx(math.log(2), abs=1e-5)
    assert losses.stft_loss(wave, wave) == losses.mel_loss(wave, wave, VAE_MEL) == 0


def test_a_quiet_clip_counts_like_a_loud_one():
    wave = torch.randn(2, 8192) * torch.tensor([[1.0], [0.01]])
    made = wave * torch.tensor([[1.0], [0.5]])  # only the quiet one is wrong: half of it is missing
    assert losses.stft_loss(made, wave) == pytest.approx((0.5 + math.log(2)) / 2, rel=0.01)
    assert losses.stft_loss(torch.full((1, 8192), 1e-6), torch.zeros(1, 8192)) < 0.1  # silence, nearly


def test_what_is_below_the_floor_hardly_counts():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(8192) / 16000)[None]
    hissing = tone + 1e-4 * torch.randn(1, 8192)
    silent = torch.zeros(1, 8192)
    for loss in (
        lambda made, floor: losses.mel_loss(made, tone, VAE_MEL, floor),
        lambda made, floor: losses.stft_loss(made, tone, floor=floor),
    ):
        assert loss(hissing, 0.1) < 0.01 * loss(silent, 0.1)  # and without a floor, a good part of it:
        assert loss(hissing, 0.0) > 0.2 * loss(silent, 0.0)


def test_silence_has_gradients_that_are_numbers():
    made = torch.zeros(1, 8192, requires_grad=True)
    true = torch.randn(1, 8192)
    (losses.stft_loss(made, true) + losses.mel_loss(made, true, VAE_MEL)).backward()
    assert made.grad.isfinite().all()
    loud = torch.randn(1, 8192, requires_grad=True)
    losses.stft_loss(loud, torch.zeros(1, 8192)).backward()
    assert loud.grad.isfinite().all()


def test_least_squares():
    true, made = (
        [torch.tensor([1.0, 0.5]), torch.tensor([1.0])],
        [torch.tensor([0.5, 0.5]), torch.tensor([0.0])],
    )
    # (0 + 0.25) / 2 + (0.25 + 0.25) / 2, then 0 + 0.
    assert losses.least_squares_discriminator(true, made) == pytest.approx(0.125 + 0.25)
    assert losses.least_squares_generator(made) == pytest.approx(0.25 + 1.0)


def test_hinge():
    true, made = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert losses.hinge_discriminator(true, made) == pytest.approx(0.5 * (0.25 + 0.75))
    assert losses.hinge_generator(made) == pytest.approx(0.75)


def test_feature_matching_adds_up_layers_and_discriminators():
    true = [[torch.zeros(2), torch.ones(3)], [torch.zeros(1)]]
    made = [[torch.ones(2), torch.ones(3) * 1.5], [torch.full((1,), -2.0)]]
    assert losses.feature_matching(true, made) == pytest.approx(1 + 0.5 + 2)


def test_the_adversary_is_balanced_at_the_last_layer():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (2 * weight).sum(), 0.5 * weight.sum()
    found = losses.balance(reconstruction, adversarial, weight)
    assert found == pytest.approx(4, rel=1e-3) and not found.requires_grad
    assert losses.balance(reconstruction, 1e-9 * weight.sum(), weight) == 1e4


def test_contrastive_is_clips_loss_where_all_texts_differ():
    sounds, texts = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(1.5)
    logits = scale.exp() * sounds @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    found = losses.contrastive(sounds, texts, scale, scale, torch.eye(5, dtype=torch.bool))
    assert found == pytest.approx(float(expected))


def test_equal_texts_are_equally_right():
    sounds = F.normalize(torch.randn(3, 4), dim=-1)
    texts = sounds[[0, 0, 2]]  # the first two texts are equal
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    scale = torch.tensor(0.0)
    rows = (sounds @ texts.T).log_softmax(dim=1)
    columns = (sounds @ texts.T).T.log_softmax(dim=1)
    of_rows, of_columns = (-(x[0, :2].mean() + x[1, :2].mean() + x[2, 2]) / 3 for x in (rows, columns))
    found = losses.contrastive(sounds, texts, scale, scale, same)
    assert found == pytest.approx(float(of_rows + of_columns) / 2)


def test_noise_loss_and_its_min_snr_weights():
    predicted, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    alpha_bar = torch.tensor([0.99, 0.5, 0.01])  # SNR 99, 1, 0.0101
    assert losses.noise_loss(predicted, eps, alpha_bar) == pytest.approx(float(F.mse_loss(predicted, eps)))
    rows = (predicted - eps).square().mean(dim=(1, 2, 3))
    expected = (rows * torch.tensor([5 / 99, 1.0, 1.0])).mean()
    assert losses.noise_loss(predicted, eps, alpha_bar, 5.0) == pytest.approx(float(expected), rel=1e-4)


# Discriminators ---------------------------------------------------------------------------------------------


def size(module: nn.Module) -> int:
    """Of the plain weights and biases, without what the norms add."""
    convs = [each for each in module.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)]
    return sum(conv.weight.numel() + (conv.bias is not None and conv.bias.numel()) for conv in convs)


def test_discriminators_have_the_published_sizes():
    full = WaveDiscriminators()
    assert (size(full.periods), size(full.scales)) == (41_092_165, 29_610_627)
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_763_585


@pytest.mark.parametrize("samples", [4000, 4001])
def test_discriminators_judge_any_length(samples: int):
    judgements = WaveDiscriminators(width=4)(torch.randn(2, samples))
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert all(score.shape[0] == 2 for score, _ in judgements)
    assert PatchDiscriminator(width=8)(torch.randn(2, 1, 64, 64)).shape == (2, 1, 6, 6)
