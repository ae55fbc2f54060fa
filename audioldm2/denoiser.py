"""The network and the prompts as the function of x and t that samplers call, whole or in windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from audioldm2.models.unet import KeyValue, UNet
from audioldm2.options import SamplingOptions
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.sampling.guidance import guided
from audioldm2.sampling.samplers import Denoiser, Noise
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.windows import Predict, Windows, anchors, in_windows, noise_from


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


@dataclass(frozen=True, eq=False)
class InWindows:
    """How sounds are denoised in windows, each by one prompt or by several that share its frames."""

    windows: Windows
    shares: Sequence[Tensor]  # per sound: how much each prompt counts at each frame, (prompts, frames)
    at_once: int  # windows that one call of the network predicts

    @staticmethod
    def by_one_prompt(windows: Windows, sounds: int, at_once: int) -> "InWindows":
        """Each sound by a prompt of its own, from its start to its end."""
        whole = torch.ones(1, windows.frames, dtype=torch.float32, device="cpu")
        return InWindows(windows, [whole] * sounds, at_once)


def make_windowed_denoiser(
    unet: UNet,
    conditioning: Conditioning,
    schedule: NoiseSchedule,
    options: SamplingOptions,
    how: InWindows,
    latents: Tensor,
    noise: Noise | None,
) -> tuple[Denoiser, Noise | None]:
    """As `make_denoiser`, in windows; where prompts share a frame,

        eps_prompt = sum over prompts k of share_k(frame) * eps_k

    and guidance leads to it from the negative part of the first prompt. The windows of one sound are
    predicted together, never those of two: a sound is the same in any batch.

    Args:
        unet: the network.
        conditioning: the prompts of the first sound, those of the second, and so on.
        schedule: gives the sigma of a time.
        options: guidance; whether the sounds are loops.
        how: the windows, and which frames are whose.
        latents: the noise to start from: as many rows of each sound, one after the other. A loop is anchored
            to it.
        noise: that of the steps.

    Returns:
        The denoiser, and the noise of the steps, which for loops starts at the anchor too.
    """
    first = anchors(latents) if how.windows.loop else [0] * len(latents)
    candidates, prompts_before = len(first) // len(how.shares), 0
    most_rows = how.at_once * (2 if options.guided else 1)
    alone, both = [], []  # per row: its mixed prediction by prompts; that by the negative prompt before it
    for place, shares in enumerate(how.shares):
        shares = shares.to(latents.device)
        prompts = conditioning[prompts_before : prompts_before + len(shares)]
        prompts_before += len(shares)
        if options.guided:
            assert prompts.negative is not None, "guidance needs the negative part"
            prompts = Conditioning.cat([prompts.negative[0], replace(prompts, negative=None)])
        predict: Predict = _predictor(unet, _without_padding(prompts))
        mixed = shares.new_zeros(2, len(prompts), how.windows.frames)
        mixed[0, 0] = 1
        mixed[1, -len(shares) :] = shares
        for anchor in first[place * candidates : (place + 1) * candidates]:
            alone.append(in_windows(predict, how.windows, mixed[1:], most_rows, anchor))
            if options.guided:
                both.append(in_windows(predict, how.windows, mixed, most_rows, anchor))

    def predict_alone(x: Tensor, t: float) -> Tensor:
        return torch.cat([each(row, t) for each, row in zip(alone, x.split(1), strict=True)])

    def predict_both(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        found = torch.stack([each(row, t) for each, row in zip(both, x.split(1), strict=True)])
        return found[:, 0], found[:, 1]

    denoiser: Denoiser = predict_alone
    if options.guided:
        denoiser = guided(
            predict_alone,
            predict_both,
            schedule,
            options.guidance_scale,
            options.guidance_interval,
            options.guidance_rescale,
        )
    return denoiser, noise_from(noise, first) if how.windows.loop and noise is not None else noise


def _without_padding(conditioning: Conditioning) -> Conditioning:
    """Without the text positions that no row uses, which are those of longer prompts in the batch."""
    if conditioning.text_context is None or conditioning.t5_mask is None:
        return conditioning
    used = int(conditioning.t5_mask.any(dim=0).nonzero().max()) + 1
    return replace(
        conditioning,
        text_context=conditioning.text_context[:, :used].contiguous(),
        t5_mask=conditioning.t5_mask[:, :used].contiguous(),
    )


def _predictor(unet: UNet, conditioning: Conditioning) -> Callable[..., Tensor]:
    """x, t and the rows of the conditioning, by default all -> noise, float32.

    The keys and values of the contexts are computed here, once.
    """
    tensors: dict[str, Any] = dict(conditioning.tensors)
    tensors["keys_values"] = unet.context_keys_values(
        tensors.pop("gpt2_context", None), tensors.pop("text_context", None)
    )
    every = tuple(range(len(conditioning)))
    places: dict[tuple[int, ...], Tensor] = {}  # rows as indices on the device; each copy would wait for it

    def predict(x: Tensor, t: float, rows: tuple[int, ...] = every) -> Tensor:
        # `full` does not wait for the device, as a copy would.
        time = torch.full((), t, dtype=torch.float32, device=x.device)
        chosen = tensors
        if rows != every:
            if rows not in places:
                places[rows] = torch.tensor(rows, device=x.device)
            chosen = _rows_of(tensors, places[rows])
        return unet(x.to(conditioning.dtype), time, **chosen).float()

    return predict


def _rows_of(tensors: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The rows of the tensors that the network takes beside x and the time."""

    def of_pair(pair: KeyValue) -> KeyValue:
        return pair[0][rows], pair[1][rows]

    chosen = {name: tensor[rows] for name, tensor in tensors.items() if name != "keys_values"}
    chosen["keys_values"] = [
        {role: [of_pair(pair) for pair in pairs] for role, pairs in layer.items()}
        for layer in tensors["keys_values"]
    ]
    return chosen
