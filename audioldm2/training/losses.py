"""What training makes small, as pure functions: each returns a scalar, a mean over the batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import MelSettings, vae_log_mel

# Spectrograms and latents -----------------------------------------------------------------------------------


def kl(mean: Tensor, std: Tensor) -> Tensor:
    """Divergence of N(mean, std²) from N(0, 1), in nats, the mean over all elements.

    Source: Kingma & Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()


# Waves ------------------------------------------------------------------------------------------------------

# (n_fft, hop, window) in samples, as in the paper
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
SILENCE = 1e-2  # magnitude in the mean: noise 65 dB below full scale


def stft_loss(
    made: Tensor, true: Tensor, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3), floor: float = 0.0
) -> Tensor:
    """Spectral convergence plus the L1 distance of log magnitudes, summed over RESOLUTIONS.

    made, true: (batch, samples), more than half of the largest n_fft.
    weights:    one a resolution; the default gives the mean.
    floor:      added to the magnitudes under the logarithm; see `mel_loss`.
    Source: Yamamoto et al. 2020, "Parallel WaveGAN" (arXiv 1910.11480), eq. 4 to 6. Convergence is that of
    each clip alone, so that a quiet one counts like a loud one; but silence has no size to compare with.
    """
    total = made.new_zeros(())
    for weight, resolution in zip(weights, RESOLUTIONS, strict=True):
        if not weight:
            continue
        ours, theirs = (_magnitude(wave, *resolution) for wave in (made, true))
        error, size = (each.square().mean(dim=(1, 2)).sqrt() for each in (theirs - ours, theirs))
        convergence = (error / size.clamp(min=SILENCE)).mean()
        total = total + weight * (convergence + F.l1_loss((ours + floor).log(), (theirs + floor).log()))
    return total


def _magnitude(wave: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """(batch, bins, frames), at least 3e-4: the root has no gradient at 0, nor the logarithm a value."""
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, n_fft, hop, window, window=shape, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-7).sqrt()


def relative_error(made: Tensor, true: Tensor) -> Tensor:
    """Root mean square of the error of waves (batch, samples) over that of the true ones, 0.001 at least."""
    error, size = (each.square().mean(dim=1) for each in (made - true, true))
    return ((error + 1e-12).sqrt() / size.sqrt().clamp(min=1e-3)).mean()


def mel_loss(made: Tensor, true: Tensor, settings: MelSettings, floor: float = 0.0) -> Tensor:
    """L1 distance of the log-mel spectrograms of two waves (batch, samples).

    floor: added to the magnitudes, so that what is far below it hardly counts. Of a tone, the logarithm is
           otherwise about the silence around it, and silence is easiest to make of all.
    Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), eq. 3; there its weight is 45, without a floor.
    """
    ours, theirs = (vae_log_mel(wave, settings) for wave in (made, true))
    if floor:
        lowest = ours.new_tensor(floor).log()
        ours, theirs = torch.logaddexp(ours, lowest), torch.logaddexp(theirs, lowest)
    return F.l1_loss(ours, theirs)


# Adversaries ------------------------------------------------------------------------------------------------


def least_squares_discriminator(true: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Scores of true sounds towards 1, of made ones towards 0; the sum over discriminators.

    Source: Mao et al. 2017 (arXiv 1611.04076), as in HiFi-GAN, eq. 1.
    """
    return sum((1 - a).square().mean() + b.square().mean() for a, b in zip(true, made, strict=True))


def least_squares_generator(made: Sequence[Tensor]) -> Tensor:
    """Scores of made sounds towards 1; the sum over discriminators. Source: HiFi-GAN, eq. 2."""
    return sum((1 - score).square().mean() for score in made)


def feature_matching(true: Sequence[Sequence[Tensor]], made: Sequence[Sequence[Tensor]]) -> Tensor:
    """L1 distance of what the layers of each discriminator see; the sum over layers and discriminators.

    Source: HiFi-GAN, eq. 4; there its weight is 2.
    """
    return sum(
        F.l1_loss(ours, theirs)
        for of_made, of_true in zip(made, true, strict=True)
        for ours, theirs in zip(of_made, of_true, strict=True)
    )


def hinge_discriminator(true: Tensor, made: Tensor) -> Tensor:
    """Scores of true spectrograms above 1, of made ones below -1.

    Source: Lim & Ye 2017 (arXiv 1705.02894), with the half of Rombach et al. 2022.
    """
    return 0.5 * (F.relu(1 - true).mean() + F.relu(1 + made).mean())


def hinge_generator(made: Tensor) -> Tensor:
    """Scores of made spectrograms up."""
    return -made.mean()


def balance(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """The weight that lets both losses pull equally hard at the last layer; at most 10,000, without gradient.

    Source: Esser et al. 2021, "Taming transformers" (arXiv 2012.09841), eq. 7.
    """
    pulls = [
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    ]
    ours, theirs = (torch.linalg.vector_norm(pull) for pull in pulls)
    return (ours / (theirs + 1e-4)).clamp(max=1e4)


# Texts and sounds -------------------------------------------------------------------------------------------


def contrastive(
    sounds: Tensor, texts: Tensor, sound_scale: Tensor, text_scale: Tensor, same: Tensor
) -> Tensor:
    """Every sound finds its text among those of the batch, and every text its sound.

    sounds, texts: (batch, dim) of norm 1. *_scale: () logarithms of the factors on cosines.
    same:  (batch, batch) bool: which texts are equal. They are equally right, not each other's wrong answers
           (Yang et al. 2022, "UniCL", arXiv 2204.03610); the identity gives the loss of the paper.
    Source: Radford et al. 2021, "CLIP" (arXiv 2103.00020), figure 3; Wu et al. 2023 (arXiv 2211.06687).
    """
    cosine = sounds @ texts.T  # (sounds, texts)
    right = same / same.sum(dim=1, keepdim=True)
    of_sounds = F.cross_entropy(sound_scale.exp() * cosine, right)
    of_texts = F.cross_entropy(text_scale.exp() * cosine.T, right)
    return (of_sounds + of_texts) / 2


# Diffusion --------------------------------------------------------------------------------------------------


def noise_loss(predicted: Tensor, eps: Tensor, alpha_bar: Tensor, gamma: float | None = None) -> Tensor:
    """Mean squared error of the predicted noise.

    predicted, eps: (batch, ...). alpha_bar: (batch,), of the time of each row.
    gamma:  of min-SNR weighting: rows of a signal-to-noise ratio above it count by gamma / SNR; None: all
            rows count alike, as in Ho et al. 2020 (arXiv 2006.11239), eq. 14.
    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4, for networks that predict the noise.
    """
    error = (predicted - eps).square().flatten(1).mean(dim=1)  # (batch,)
    if gamma is not None:
        error = error * (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1).to(error)
    return error.mean()
