"""On a GPU every tensor is moved where it is needed, and no step of the denoiser waits for the device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import audioldm2
from tests.support.pretended_gpu import OnGPU, pretended_gpu

AudioLDM2 = audioldm2.AudioLDM2
WAVE = 0.1 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
SOUND = {"audio": WAVE, "audio_sample_rate": 16_000}
SHORT = {"audio_length_in_s": 0.4}
PROMPTS = ["a dog", "rain on a roof"]


def generated(prompt: object, steps: int = 2, **options: object) -> Callable[[AudioLDM2], Tensor]:
    """A request, whose result is its sounds."""
    return lambda model: model.generate(prompt, num_inference_steps=steps, seed=1, **options).audio


def edited(model: AudioLDM2) -> Tensor:
    options = {"source_prompt": "noise", "audio_sample_rate": 16_000, "window_seconds": 0.32}
    return model.edit(WAVE, PROMPTS, num_inference_steps=3, seed=1, **options).audio


def mixed(model: AudioLDM2) -> Tensor:
    cat, rain = (model.encode_prompt(text, negative_prompt="noise") for text in ("a cat", "rain"))
    noise = torch.randn(model.sound.latents(1, 10), generator=torch.Generator().manual_seed(3))
    z = model.denoise(audioldm2.Conditioning.mix(cat, rain, 0.3), noise, num_inference_steps=1)
    return model.vocode(model.decode(z))


REQUESTS = {
    "candidates": generated(PROMPTS, **SHORT, num_waveforms_per_prompt=2, negative_prompt="noise"),
    "loop in windows": generated(
        "a dog", **SHORT, loop=True, window_seconds=0.32, guidance_interval=(0.1, 2.0)
    ),
    "timeline": generated([("a dog", 0, 0.3), ("rain", 0.2, 0.5)], num_waveforms_per_prompt=2),
    "inpainting": generated(PROMPTS, **SOUND, mask_start_seconds=0.1, mask_end_seconds=0.3, resample_times=2),
    "frequencies": generated("a dog", **SOUND, mask_start_hz=500.0, mask_end_hz=2000.0, strength=0.5),
    "sound prompt": generated("a dog", **SHORT, audio_prompt=WAVE, audio_prompt_sample_rate=16_000, heard=3),
    "like a sound": generated(None, **SHORT, audio_prompt=WAVE, num_waveforms_per_prompt=2),
    "edit by text": edited,
    "mixture": mixed,
    "latents of a sound": lambda model: model.encode_audio(WAVE, 16_000),
    "score": lambda model: model.score("a dog", WAVE, 16_000),
}


def on_cpu(x: Tensor) -> Tensor:
    return x.on_cpu if isinstance(x, OnGPU) else x


@pytest.fixture(scope="module")
def expected(hearing_folder: Path) -> dict[str, Tensor]:
    """The results of the requests on the CPU."""
    model = audioldm2.load(hearing_folder, device="cpu", dtype="float32", ops="reference")
    return {name: request(model) for name, request in REQUESTS.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "requests", "tolerance"),
    [
        ({"dtype": "float32"}, list(REQUESTS), 1e-4),
        ({"dtype": "float32", "offload": True}, ["candidates", "sound prompt"], 1e-4),
        ({"dtype": "float32", "low_memory": True}, ["candidates"], 1e-4),
        ({}, ["candidates", "timeline"], 0.03),  # float16
    ],
    ids=["float32", "offload", "low memory", "auto"],
)
def test_results_are_those_of_the_cpu(
    how: dict, requests: list[str], tolerance: float, hearing_folder: Path, expected, monkeypatch
):
    with pretended_gpu(monkeypatch):
        model = audioldm2.load(hearing_folder, device="cuda", **how)
        assert model.device.type == "cuda"
        assert how or model.networks.dtypes["unet"] == torch.float16
        for name in requests:
            found, wanted = on_cpu(REQUESTS[name](model)).float(), expected[name]
            error = (found - wanted).norm() / wanted.norm()
            assert error < tolerance, f"{name}: {error}"


@pytest.mark.slow
def test_steps_do_not_wait_for_the_gpu(tiny_folder: Path, monkeypatch):
    """Whatever a request waits for, more steps wait for no more."""
    requests = {
        "windows": SHORT | {"window_seconds": 0.32},
        "noise of each step": SHORT | {"sampler": "dpmpp_2m_sde", "guidance_rescale": 0.5},
        "inpainting": SOUND | {"mask_start_seconds": 0.1, "mask_end_seconds": 0.3},
    }
    with pretended_gpu(monkeypatch) as gpu:
        model = audioldm2.load(tiny_folder, device="cuda", dtype="float32")
        for name, options in requests.items():
            waits = []
            for steps in (1, 2):
                gpu.waits.clear()
                generated("a dog", steps, **options)(model)
                waits.append(sorted(gpu.waits))
            assert waits[0] == waits[1], name
        gpu.waits.clear()
        generated("a dog", 1, **SHORT)(model)
        assert len(gpu.waits) <= 2, gpu.waits  # GPT-2's padding, and the sound


def test_tensors_of_two_devices_do_not_mix(monkeypatch):
    with pretended_gpu(monkeypatch) as gpu:
        here, there = torch.ones(2, 3), torch.ones(2, 3).to("cuda")
        assert there.device.type == "cuda" and (there + 1).is_cuda and torch.zeros(2, device="cuda").is_cuda
        with pytest.raises(RuntimeError, match=r"on cuda:0, but aten\.add"):
            there + here
        assert torch.equal((there @ there.T).cpu(), here @ here.T) and gpu.waits == ["copy to the CPU"]
        assert float(there.sum()) == 6 and gpu.waits[1:] == ["__float__"]
