"""Keys and values of the prompts are computed once a request, and nothing is kept after it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import audioldm2
from audioldm2 import pipeline
from audioldm2.remembered import Remembered, remembering

REQUEST = dict(audio_length_in_s=0.64, num_inference_steps=5)


class Counting(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return super().forward(x)


@pytest.fixture
def counted(tiny_folder) -> tuple[audioldm2.AudioLDM2, Callable[[], dict[str, int]]]:
    """A model, and how often each of its denoiser's key and value layers has run."""
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    with model.networks.running("unet") as unet:
        layers = {name: each for name, each in unet.named_modules() if name.endswith((".key", ".value"))}
    for layer in layers.values():
        layer.__class__, layer.runs = Counting, 0
    return model, lambda: {name: layer.runs for name, layer in layers.items()}


def hears_the_prompt(name: str) -> bool:
    return ".context_attn." in name and ("gpt2_attn" in name or "t5_attn" in name)


def test_those_of_prompts_run_once_and_those_of_the_sound_at_every_step(counted):
    model, runs = counted
    model.generate("a dog barks", **REQUEST)
    assert {count for name, count in runs().items() if hears_the_prompt(name)} == {1}
    assert {count for name, count in runs().items() if not hears_the_prompt(name)} == {5}
    model.generate("rain", **REQUEST)  # another request, another context
    assert {count for name, count in runs().items() if hears_the_prompt(name)} == {2}


def test_with_guidance_for_some_of_the_steps_there_are_two_contexts(counted):
    model, runs = counted
    model.generate("a dog barks", guidance_interval=(0.5, 5.0), **REQUEST)
    assert {count for name, count in runs().items() if hears_the_prompt(name)} == {2}


def test_sounds_are_the_same_to_the_bit(tiny_model, monkeypatch):
    ours = tiny_model.generate("a dog barks", **REQUEST)
    monkeypatch.setattr(pipeline, "remembering", lambda unet: torch.no_grad())
    theirs = tiny_model.generate("a dog barks", **REQUEST)
    assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.audio, theirs.audio)


def test_nothing_stays(tiny_model):
    with tiny_model.networks.running("unet") as unet:
        with pytest.raises(KeyError), remembering(unet), remembering(unet):  # as two threads may
            raise KeyError
        assert not any("forward" in module.__dict__ for module in unet.modules())


def test_a_tensor_that_was_written_to_is_another():
    run = Remembered(lambda x: 2 * x)
    x = torch.ones(3)
    with torch.no_grad():
        assert run(x) is run(x)
        x.add_(1)
        assert torch.equal(run(x), torch.full((3,), 4.0))
        assert torch.equal(run(torch.ones(3)), torch.full((3,), 2.0))
        assert len(run.made) == 2


def test_gradients_flow_anew_each_time():
    run, x = Remembered(lambda x: 2 * x), torch.ones(3, requires_grad=True)
    assert run(x) is not run(x) and not run.made
