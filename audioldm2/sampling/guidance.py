"""Classifier-free guidance: the network and its conditioning as the denoiser that a sampler walks with."""

import torch
from torch import Tensor

from audioldm2.prompt.conditioning import Conditioning
from audioldm2.sampling.samplers import Denoiser
from audioldm2.sampling.schedule import NoiseSchedule


def guided(
    unet: torch.nn.Module,
    conditioning: Conditioning,
    schedule: NoiseSchedule,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """A denoiser that follows the prompt and leads away from the negative one.

    eps = eps_negative + scale * (eps_prompt - eps_negative)      (Ho and Salimans 2022, "Classifier-free
    guidance")

    Both are one call of the network, negative rows first, which computes what they share once. A scale up to
    1 leaves the prompt's prediction as it is, and so does a sigma outside of `interval`: lo < sigma <= hi is
    guided (Kynkaanniemi et al. 2024). `rescale` moves the spread of eps towards that of eps_prompt (Lin et
    al. 2023, eq. 15 and 16; 0 = not at all). The sampler's x stays float32; the network runs in the dtype of
    the conditioning.
    """
    if scale > 1 and conditioning.negative is None:
        raise ValueError(
            f"guidance_scale is {scale:g}, but the conditioning has no negative part; "
            "make it with encode_prompt(..., guided=True), or use a scale of 1."
        )
    dtype = conditioning.dtype
    both = Conditioning.cat([conditioning.negative, conditioning]) if scale > 1 else None
    lo, hi = interval or (0.0, float("inf"))

    def predict(x: Tensor, t: float, seen: Conditioning) -> Tensor:
        # Without waiting for the device, as a copy would.
        time = torch.full((), t, dtype=torch.float32, device=x.device)
        return unet(x.to(dtype), time, **seen.tensors).float()

    def denoiser(x: Tensor, t: float) -> Tensor:
        if both is None or not lo < schedule.sigma_of(t) <= hi:
            return predict(x, t, conditioning)
        eps_negative, eps_prompt = predict(x, t, both).chunk(2)
        eps = eps_negative + scale * (eps_prompt - eps_negative)
        if rescale:
            spread = eps_prompt.std(dim=(1, 2, 3), keepdim=True) / eps.std(dim=(1, 2, 3), keepdim=True)
            eps = eps * (rescale * spread + (1 - rescale))
        return eps

    return denoiser
