"""PyTorch's global state around a call changes no sound and breaks no call."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

import audioldm2


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager]] = {
    "default device meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic algorithms": deterministic,
    "inference mode": torch.inference_mode,
    "gradients on": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def sound(model: audioldm2.AudioLDM2) -> tuple[Tensor, Tensor]:
    """By a sampler that draws noise at each step, and ranked."""
    result = model.generate(
        "a dog",
        audio_length_in_s=0.32,
        num_inference_steps=2,
        num_waveforms_per_prompt=2,
        sampler="dpmpp_2m_sde",
    )
    return result.audio, result.scores


@pytest.fixture(scope="module")
def expected(tiny_model) -> tuple[Tensor, Tensor]:
    """The sounds in the ordinary state."""
    return sound(tiny_model)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("state", STATES)
def test_sound_is_the_same_within_any_global_state(tiny_folder, tiny_model, expected, state: str):
    with STATES[state]():
        found = sound(tiny_model)
        loaded = sound(audioldm2.load(tiny_folder, device="cpu"))
    for audio, scores in (found, loaded):
        assert audio.dtype == scores.dtype == torch.float32 and audio.device.type == "cpu"
        assert torch.equal(audio, expected[0]) and torch.equal(scores, expected[1])


@pytest.fixture(scope="module")
def score_of_noise(tiny_model) -> Tensor:
    return tiny_model.score("a dog", tiny_model.vocode(tiny_model.decode(_noise(tiny_model))))


@pytest.mark.parametrize("state", STATES)
def test_stages_alone_and_saved_conditioning_work_within_any_global_state(
    tiny_model, score_of_noise, state: str, tmp_path
):
    with STATES[state]():
        cond = tiny_model.encode_prompt("a dog", "rain")
        cond.mix(tiny_model.encode_prompt("a long wind", ""), 0.5).weighted(1.5).save(
            tmp_path / "c.safetensors"
        )
        cond = audioldm2.Conditioning.load(tmp_path / "c.safetensors")
        z = tiny_model.denoise(cond, _noise(tiny_model), num_inference_steps=2, sampler="dpmpp_2m_sde")
        assert z.isfinite().all() and z.dtype == torch.float32
        score = tiny_model.score("a dog", tiny_model.vocode(tiny_model.decode(_noise(tiny_model))))
        assert torch.equal(score, score_of_noise)


def _noise(model: audioldm2.AudioLDM2) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(model.sound.latents(1, 9), generator=generator, device="cpu", dtype=torch.float32)
