"""The network and the prompts as the function of x and t that samplers call."""

from typing import Any

import torch
from torch import Tensor

from audioldm2.models.unet import UNet
from audioldm2.options import SamplingOptions
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.sampling.guidance import guided
from audioldm2.sampling.samplers import Denoiser
from audioldm2.sampling.schedule import NoiseSchedule


def make_denoiser(
    unet: UNet, conditioning: Conditioning, schedule: NoiseSchedule, options: SamplingOptions
) -> Denoiser:
    """The noise that the network predicts for these prompts, guided where the options say so.

    With guidance, one call of the network predicts by the negative prompt and by the prompt; what both share
    is computed once. The sampler's x stays float32; the network runs in the dtype of the conditioning.
    """
    if not options.guided:
        return _predictor(unet, conditioning)
    assert conditioning.negative is not None, "guidance needs the negative part"
    both = _predictor(unet, Conditioning.cat([conditioning.negative, conditioning]))

    def predict_both(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        eps_negative, eps_prompt = both(x, t).chunk(2)
        return eps_negative, eps_prompt

    return guided(
        _predictor(unet, conditioning) if options.guidance_interval else None,
        predict_both,
        schedule,
        options.guidance_scale,
        options.guidance_interval,
        options.guidance_rescale,
    )


def _predictor(unet: UNet, conditioning: Conditioning) -> Denoiser:
    """x and t -> noise, float32. The keys and values of the contexts are computed here, once."""
    tensors: dict[str, Any] = dict(conditioning.tensors)
    tensors["keys_values"] = unet.context_keys_values(
        tensors.pop("gpt2_context", None), tensors.pop("text_context", None)
    )

    def predict(x: Tensor, t: float) -> Tensor:
        # `full` does not wait for the device, as a copy would.
        time = torch.full((), t, dtype=torch.float32, device=x.device)
        return unet(x.to(conditioning.dtype), time, **tensors).float()

    return predict
