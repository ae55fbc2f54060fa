"""The losses of all stages as pure functions: each returns a scalar, a mean over the batch."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import MelSettings, vae_log_mel

# Spectrograms and latents -----------------------------------------------------------------------------------


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Computes the divergence of N(mean, std²) from N(0, 1) in nats, averaged over all elements.

    Source: Kingma & Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()


# Waveforms --------------------------------------------------------------------------------------------------

# (n_fft, hop, window) in samples, as in the paper
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
SILENCE = 1e-2  # mean magnitude of noise at -65 dB full scale


def stft_loss(
    predicted: Tensor, target: Tensor, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3), floor: float = 0.0
) -> Tensor:
    """Computes spectral convergence plus the L1 distance of log magnitudes, summed over RESOLUTIONS.

    Convergence is normalized per clip, so that a quiet clip counts as much as a loud one, but not below
    SILENCE, because silence has no magnitude to normalize by.

    Args:
        predicted: (batch, samples), longer than half of the largest n_fft.
        target: of the same shape.
        weights: one per resolution; the default averages them.
        floor: added to the magnitudes before the logarithm; see `mel_loss`.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN" (arXiv 1910.11480), eq. 4 to 6.
    """
    total = predicted.new_zeros(())
    for weight, resolution in zip(weights, RESOLUTIONS, strict=True):
        if not weight:
            continue
        ours, theirs = (_magnitude(wave, *resolution) for wave in (predicted, target))
        error, size = (each.square().mean(dim=(1, 2)).sqrt() for each in (theirs - ours, theirs))
        convergence = (error / size.clamp(min=SILENCE)).mean()
        total = total + weight * (convergence + F.l1_loss((ours + floor).log(), (theirs + floor).log()))
    return total


def _magnitude(wave: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """Returns magnitudes (batch, bins, frames) of at least 3e-4: at 0, sqrt and log have no gradient."""
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, n_fft, hop, window, window=shape, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-7).sqrt()


def relative_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Computes the RMS error of signals (batch, samples) relative to the target's RMS, clamped to 0.001."""
    error, size = (each.square().mean(dim=1) for each in (predicted - target, target))
    return ((error + 1e-12).sqrt() / size.sqrt().clamp(min=1e-3)).mean()


def mel_loss(predicted: Tensor, target: Tensor, settings: MelSettings, floor: float = 0.0) -> Tensor:
    """Computes the L1 distance between the log-mel spectrograms of two waveforms.

    Args:
        predicted: (batch, samples).
        target: of the same shape.
        settings: the mel front end.
        floor: added to the magnitudes, so that bins far below it hardly count. Without it, most of the loss
            on a tone comes from the silence around the tone, and silence is the easiest output of all.

    Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), eq. 3, where its weight is 45 and there is no
    floor.
    """
    ours, theirs = (vae_log_mel(wave, settings) for wave in (predicted, target))
    if floor:
        lowest = ours.new_tensor(floor).log()
        ours, theirs = torch.logaddexp(ours, lowest), torch.logaddexp(theirs, lowest)
    return F.l1_loss(ours, theirs)


# Adversarial ------------------------------------------------------------------------------------------------


def least_squares_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Pushes scores of real sounds to 1 and of fake ones to 0; summed over discriminators.

    Source: Mao et al. 2017 (arXiv 1611.04076), as in HiFi-GAN, eq. 1.
    """
    return reduce(add, ((1 - a).square().mean() + b.square().mean() for a, b in zip(real, fake, strict=True)))


def least_squares_generator(fake: Sequence[Tensor]) -> Tensor:
    """Pushes scores of fake sounds to 1; summed over discriminators. Source: HiFi-GAN, eq. 2."""
    return reduce(add, ((1 - score).square().mean() for score in fake))


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Computes the L1 distance of the discriminators' features, summed over layers and discriminators.

    Source: HiFi-GAN, eq. 4, where its weight is 2.
    """
    terms = (
        F.l1_loss(ours, theirs)
        for of_fake, of_real in zip(fake, real, strict=True)
        for ours, theirs in zip(of_fake, of_real, strict=True)
    )
    return reduce(add, terms)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Pushes scores of real spectrograms above 1 and of fake ones below -1.

    Source: Lim & Ye 2017 (arXiv 1705.02894), halved as in Rombach et al. 2022.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """Raises the scores of fake spectrograms."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:  # fmt: skip
    """Computes the weight that equalizes the gradients of both losses at the last layer.

    Args:
        reconstruction: a scalar loss.
        adversarial: a scalar loss.
        last_weight: the weight of the generator's last layer.
        average: averages a gradient over the processes that share the batch.

    Returns:
        A scalar without gradient, at most 10,000.

    Source: Esser et al. 2021, "Taming transformers" (arXiv 2012.09841), eq. 7.
    """
    gradients = [
        average(torch.autograd.grad(loss, last_weight, retain_graph=True)[0])
        for loss in (reconstruction, adversarial)
    ]
    ours, theirs = (torch.linalg.vector_norm(gradient) for gradient in gradients)
    return (ours / (theirs + 1e-4)).clamp(max=1e4)


# Contrastive ------------------------------------------------------------------------------------------------


def contrastive_loss(
    sounds: Tensor, texts: Tensor, sound_scale: Tensor, text_scale: Tensor, same: Tensor
) -> Tensor:
    """Makes every sound find its text among those of the batch, and every text its sound.

    Args:
        sounds: unit vectors (batch, dim).
        texts: unit vectors (batch, dim).
        sound_scale: (), the logarithm of the factor on cosines when sounds choose texts.
        text_scale: (), the same when texts choose sounds.
        same: (batch, batch) bool, which texts are equal. Equal texts are equally correct rather than
            negatives of each other (Yang et al. 2022, "UniCL", arXiv 2204.03610); the identity gives the
            paper's loss.

    Source: Radford et al. 2021, "CLIP" (arXiv 2103.00020), figure 3; Wu et al. 2023 (arXiv 2211.06687).
    """
    cosine = sounds @ texts.T  # (sounds, texts)
    labels = same / same.sum(dim=1, keepdim=True)
    of_sounds = F.cross_entropy(sound_scale.exp() * cosine, labels)
    of_texts = F.cross_entropy(text_scale.exp() * cosine.T, labels)
    return (of_sounds + of_texts) / 2


# Diffusion --------------------------------------------------------------------------------------------------


def noise_loss(
    predicted: Tensor, eps: Tensor, alpha_bar: Tensor, gamma: float | None = None,
    counted: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Computes the mean squared error of the predicted noise.

    Args:
        predicted: (batch, ...).
        eps: the true noise, of the same shape.
        alpha_bar: (batch,), at each row's timestep.
        gamma: of min-SNR weighting: rows with a signal-to-noise ratio above it are weighted by gamma / SNR.
            None: all rows count alike, as in Ho et al. 2020 (arXiv 2006.11239), eq. 14.
        counted: (batch,) bool; the error of other rows is 0. None: all rows count.

    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4, for networks that predict the noise.
    """
    error = (predicted - eps).square().flatten(1).mean(dim=1)  # (batch,)
    if gamma is not None:
        error = error * (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1).to(error)
    if counted is not None:
        error = error * counted
    return error.mean()
