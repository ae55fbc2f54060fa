"""Guidance: which calls of the network are doubled, what becomes of the two answers, and where it stops."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from audioldm2 import SAMPLERS, AudioLDM2, Conditioning
from audioldm2.denoiser import make_denoiser
from audioldm2.options import SamplingOptions

PROMPTS = ["a dog", "A hammer hitting a wooden surface"]
ROWS = len(PROMPTS)


@pytest.fixture(scope="module")
def conditioning(tiny_model) -> Conditioning:
    return tiny_model.encode_prompt(PROMPTS, negative_prompt=["hiss", ""])


@pytest.fixture
def noise(tiny_model) -> Tensor:
    return torch.randn(tiny_model.sound.latents(ROWS, 8))


@contextmanager
def watched(model: AudioLDM2, answers: bool = True) -> Iterator[list[tuple[int, float]]]:
    """The rows that every call of the denoising network answers with, and its time.

    Without `answers` the network computes nothing and predicts zeros for every row of its contexts.
    """
    calls: list[tuple[int, float]] = []
    with model.networks.running("unet") as unet, pytest.MonkeyPatch.context() as patch:
        if not answers:
            zeros = lambda x, t, *, t5_mask, **_: x.new_zeros(len(t5_mask), *x.shape[1:])  # noqa: E731
            patch.setattr(unet, "forward", zeros)
        hook = unet.register_forward_hook(lambda _, given, made: calls.append((len(made), given[1].item())))
        try:
            yield calls
        finally:
            hook.remove()


def denoiser(model: AudioLDM2, conditioning: Conditioning, **arguments) -> Callable[[Tensor, float], Tensor]:
    names = {"scale": "guidance_scale", "interval": "guidance_interval", "rescale": "guidance_rescale"}
    options = SamplingOptions(**{names[name]: value for name, value in arguments.items()})
    with model.networks.running("unet") as unet, torch.no_grad():
        return torch.no_grad()(make_denoiser(unet, conditioning, model.schedule, options))


def predictions(model: AudioLDM2, conditioning: Conditioning, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """What the network answers to the prompt, and to the negative one."""
    return tuple(denoiser(model, each, scale=1.0)(x, t) for each in (conditioning, conditioning.negative))


# The formula ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.001, 2.0, 7.5])
def test_guidance_extrapolates_from_negative_to_prompt(tiny_model, conditioning, noise, scale):
    eps, eps_negative = predictions(tiny_model, conditioning, noise, 700.0)
    assert (eps - eps_negative).norm() > 1e-2 * eps.norm(), "the answers are too much alike to judge"
    found = denoiser(tiny_model, conditioning, scale=scale)(noise, 700.0)
    torch.testing.assert_close(found, eps_negative + scale * (eps - eps_negative), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0])
def test_guidance_is_off_at_scales_up_to_1(tiny_model, conditioning, noise, scale):
    with watched(tiny_model) as calls:
        found = tiny_model.denoise(conditioning, noise, num_inference_steps=4, guidance_scale=scale)
    assert [rows for rows, _ in calls] == [ROWS] * 4
    without = Conditioning(conditioning.gpt2_context, conditioning.text_context, conditioning.t5_mask)
    expected = tiny_model.denoise(without, noise, num_inference_steps=4, guidance_scale=1.0)
    assert torch.equal(found, expected)


def test_guidance_needs_a_negative_part(tiny_model, noise):
    alone = tiny_model.encode_prompt(PROMPTS, guided=False)
    with (
        watched(tiny_model) as calls,
        pytest.raises(ValueError, match="conditioning has no negative part; it has to have one"),
    ):
        tiny_model.denoise(alone, noise, guidance_scale=1.5)
    assert calls == []


# The interval -----------------------------------------------------------------------------------------------


WALKS = [
    (sampler, karras)
    for sampler, run in SAMPLERS.items()
    for karras in (False, True)
    if not karras or "karras" in run.takes
]


@pytest.mark.parametrize("sampler, karras", WALKS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.5, 5.0), (5.0, math.inf), (1e6, 1e7)])
def test_only_calls_inside_the_interval_are_doubled(
    tiny_model, conditioning, noise, sampler, karras, interval
):
    lo, hi = interval
    with watched(tiny_model, answers=False) as calls:
        tiny_model.denoise(
            conditioning,
            noise,
            num_inference_steps=8,
            sampler=sampler,
            karras=karras,
            guidance_interval=interval,
        )
    inside = [lo < tiny_model.schedule.sigma_of(t) <= hi for _, t in calls]
    assert [rows for rows, _ in calls] == [2 * ROWS if each else ROWS for each in inside]
    assert len(calls) == SAMPLERS[sampler].network_calls(8)
    assert (True in inside) == (interval != (1e6, 1e7))
    assert False in inside


def test_interval_excludes_its_lower_and_includes_its_upper_end(tiny_model, conditioning, noise):
    """lo is outside, hi inside."""
    sigma = tiny_model.schedule.sigma_of(500.0)
    for interval, rows in (((0.0, sigma), 2 * ROWS), ((sigma, math.inf), ROWS)):
        with watched(tiny_model) as calls:
            denoiser(tiny_model, conditioning, scale=3.5, interval=interval)(noise, 500.0)
        assert calls == [(rows, 500.0)]


def test_interval_without_ends_guides_everywhere(tiny_model, conditioning, noise):
    found, expected = (
        tiny_model.denoise(conditioning, noise, num_inference_steps=4, guidance_interval=interval)
        for interval in ((0, math.inf), None)
    )
    assert torch.equal(found, expected)


def test_outside_of_the_interval_the_prompt_is_followed_as_with_scale_1(tiny_model, conditioning, noise):
    eps, _ = predictions(tiny_model, conditioning, noise, 100.0)
    found = denoiser(tiny_model, conditioning, scale=3.5, interval=(1.0, 9.0))(noise, 100.0)
    assert torch.equal(found, eps)


# The rescaling ----------------------------------------------------------------------------------------------


def test_rescale_zero_changes_nothing(tiny_model, conditioning, noise):
    plain, found = (
        denoiser(tiny_model, conditioning, scale=3.5, **more)(noise, 700.0) for more in ({}, {"rescale": 0.0})
    )
    assert torch.equal(found, plain)


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescaling_is_that_of_lin_et_al(tiny_model, conditioning, noise, phi):
    """Equations 15 and 16, sound by sound."""
    noise = noise * torch.tensor([0.5, 2.0])[:, None, None, None]
    eps, eps_negative = predictions(tiny_model, conditioning, noise, 700.0)
    found = denoiser(tiny_model, conditioning, scale=7.5, rescale=phi)(noise, 700.0)
    for row in range(ROWS):
        x_pos, x_cfg = eps[row], eps_negative[row] + 7.5 * (eps[row] - eps_negative[row])
        x_rescaled = x_cfg * x_pos.std() / x_cfg.std()  # eq. 15
        x_final = phi * x_rescaled + (1 - phi) * x_cfg  # eq. 16
        torch.testing.assert_close(found[row], x_final, rtol=0, atol=1e-4)
        assert x_cfg.std() > 1.05 * x_pos.std(), "there is nothing to rescale"
        if phi == 1.0:
            torch.testing.assert_close(found[row].std(), x_pos.std(), rtol=1e-5, atol=0)


# Stopping early ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stopping_early_keeps_the_estimate_of_the_clean_latent(tiny_model, conditioning, noise, sampler):
    seen: list[tuple[int, float, Tensor]] = []

    def on_step(step: int, t: float, x0: Tensor) -> bool:
        seen.append((step, t, x0.clone()))
        return step < 3

    kept = tiny_model.denoise(conditioning, noise, num_inference_steps=6, sampler=sampler, on_step=on_step)
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert torch.equal(kept, seen[-1][2])


def test_stopped_request_decodes_the_current_estimate(tiny_model):
    estimates: list[Tensor] = []

    def on_step(step: int, t: float, x0: Tensor) -> bool:
        estimates.append(x0.clone())
        return step < 2

    result = tiny_model.generate(PROMPTS, audio_length_in_s=0.3, num_inference_steps=6, on_step=on_step)
    assert len(estimates) == 2
    assert torch.equal(result.latents, estimates[-1])
    assert torch.equal(result.mel, tiny_model.decode(estimates[-1]))


def test_only_false_stops(tiny_model, conditioning, noise):
    for answer in (None, 0, True, ""):
        steps = []

        def on_step(step: int, t: float, x0: Tensor, answer=answer, steps=steps) -> object:
            steps.append(step)
            return answer

        tiny_model.denoise(conditioning, noise, num_inference_steps=3, on_step=on_step)
        assert steps == [1, 2, 3]


# What prompts share -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("t", [torch.tensor(700.0), torch.tensor([700.0, 20.0])])
def test_latent_shared_by_prompts_is_predicted_once_per_prompt(tiny_model, conditioning, noise, t):
    both = Conditioning.cat([conditioning.negative, conditioning]).tensors
    with tiny_model.networks.running("unet") as unet:
        shared = unet(noise, t, **both)
        repeated = unet(torch.cat([noise, noise]), t if t.ndim == 0 else torch.cat([t, t]), **both)
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-5)
