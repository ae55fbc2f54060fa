"""Classifier-free guidance: two predictions of the noise, combined into the denoiser that a sampler calls."""

from collections.abc import Callable

from torch import Tensor

from audioldm2.sampling.samplers import Denoiser
from audioldm2.sampling.schedule import NoiseSchedule

Pair = Callable[
    [Tensor, float], tuple[Tensor, Tensor]
]  # x and t -> noise by the negative prompt, by the prompt


def guided(
    predict: Denoiser | None,
    predict_both: Pair,
    schedule: NoiseSchedule,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """A denoiser that follows the prompt and leads away from the negative one.

    eps = eps_negative + scale * (eps_prompt - eps_negative)      (Ho and Salimans 2022)

    Args:
        predict: the noise by the prompt alone, for times outside of `interval`; None without an interval.
        predict_both: the noise by the negative prompt and by the prompt.
        schedule: gives the sigma of a time.
        scale: above 1.
        interval: guide only where lo < sigma <= hi (Kynkaanniemi et al. 2024).
        rescale: how far the spread of eps moves towards that of eps_prompt, 0 to 1 (Lin et al. 2023, eq. 15,
            16).
    """
    lo, hi = interval or (0.0, float("inf"))

    def denoiser(x: Tensor, t: float) -> Tensor:
        if predict is not None and not lo < schedule.sigma_of(t) <= hi:
            return predict(x, t)
        eps_negative, eps_prompt = predict_both(x, t)
        eps = eps_negative + scale * (eps_prompt - eps_negative)
        if rescale:
            spread = eps_prompt.std(dim=(1, 2, 3), keepdim=True) / eps.std(dim=(1, 2, 3), keepdim=True)
            eps = eps * (rescale * spread + (1 - rescale))
        return eps

    return denoiser
