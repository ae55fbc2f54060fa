"""Compiled networks: the same sounds, whole graphs, and nothing in the loop that waits for the device."""

from functools import partial

import pytest
import torch

import audioldm2
from audioldm2 import compiled, residence
from audioldm2.guidance import guided
from audioldm2.models import build_on_meta
from audioldm2.samplers import SAMPLERS, NoiseSchedule

META = torch.device("meta")


@pytest.fixture
def by_tracing(monkeypatch):
    """Traced in full as for a graph, but run by PyTorch's own operators: that takes no C++ compiler."""
    monkeypatch.setattr(residence, "compiled", partial(compiled.compiled, backend="aot_eager"))
    monkeypatch.setattr(compiled, "ONLY_ON_CUDA", set())


def test_sounds_are_those_of_the_networks_as_written(by_tracing, tiny_folder):
    plain = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32", compile=True)
    for prompt, seconds, scale in (("a dog barks", 0.64, 3.5), ("rain", 0.96, 3.5), ("rain", 0.64, 1.0)):
        request = dict(audio_length_in_s=seconds, guidance_scale=scale, num_inference_steps=2, seed=3)
        ours, theirs = (each.generate(prompt, **request) for each in (model, plain))
        assert (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 1e-4
        assert (ours.audio - theirs.audio).norm() / theirs.audio.norm() < 1e-3


def test_what_a_graph_made_is_not_overwritten_by_its_next_run(by_tracing, tiny_folder):
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32", compile=True)
    mel = torch.randn(2, 1, 64, 64)
    first = model.vocode(mel[0])
    kept = first.clone()
    model.vocode(mel[1])
    assert torch.equal(first, kept)


@pytest.mark.parametrize("elsewhere", ["offload", "low_memory"])
def test_networks_that_move_are_not_compiled(elsewhere: str, tiny_folder):
    with pytest.raises(ValueError, match="leave out offload and low_memory"):
        audioldm2.load(tiny_folder, device="cpu", compile=True, **{elsewhere: True})


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_no_step_reads_a_value_back(sampler: str, rescale: float, tiny_model):
    """On a device without values, reading one fails; on CUDA it would wait for the device."""
    config = tiny_model.networks.configs["unet"]
    unet = build_on_meta("unet", config)
    told = tiny_model.encode_prompt("a dog barks").to(META, torch.float32)
    denoiser = guided(unet, told, NoiseSchedule(), 3.5, (0.1, 10.0), rescale)
    noise = torch.empty(1, config.latent_channels, 16, 8, device=META)
    made = SAMPLERS[sampler](denoiser, noise, NoiseSchedule(), 4)
    assert made.device == META and made.shape == noise.shape
