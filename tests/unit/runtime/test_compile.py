"""Compiled networks: the same sounds, whole graphs, and nothing in the loop that waits for the device."""

import copy
import pickle
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import audioldm2
from audioldm2.models import build_on_meta
from audioldm2.runtime import compile, placement
from audioldm2.runtime.compile import Compiled
from audioldm2.sampling.guidance import guided
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def by_tracing(monkeypatch):
    """Traced in full as for a graph, but run by PyTorch's own operators: that takes no C++ compiler.

    Counts how often something was traced. What cannot be is an error here.
    """
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(placement, "compiled", partial(compile.compiled, backend=counter))
    everywhere = {name: replace(part, on_cpu=True) for name, part in compile.PARTS.items()}
    monkeypatch.setattr(compile, "PARTS", everywhere)
    torch._dynamo.reset()  # what other tests have compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield counter


def test_sounds_are_those_as_written_and_each_kind_of_request_is_compiled_once(by_tracing, tiny_folder):
    """Neither another prompt, nor a third length or batch, is compiled anew."""
    plain = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32", compile=True)

    def compilations(prompt, seconds: float = 0.64, **named) -> int:
        before = by_tracing.frame_count
        request = dict(audio_length_in_s=seconds, num_inference_steps=2, seed=3) | named
        ours, theirs = (each.generate(prompt, **request) for each in (model, plain))
        assert (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 1e-4
        assert (ours.audio - theirs.audio).norm() / theirs.audio.norm() < 1e-3
        return by_tracing.frame_count - before

    # From 0.84 s on, PyTorch takes other convolutions for maps as small as the tiny model's.
    assert compilations("a dog barks") >= len(compile.PARTS)
    for name, part in compile.PARTS.items():
        with model.networks.running(name) as network:
            assert getattr(network.get_submodule(part.module), part.method).has_run, name
    assert compilations("a dog barks") == 0
    assert compilations("heavy rain on a tin roof, and then a church bell", seed=4) == 0
    assert compilations("rain", seconds=0.96) > 0
    assert compilations("rain", seconds=0.88) == compilations("rain") == 0
    assert compilations(["rain", "wind"]) > 0
    assert compilations(["rain", "wind", "a dog"], seconds=0.96) == 0
    assert compilations("rain", guidance_scale=1.0) > 0
    assert compilations("wind", seconds=0.96, guidance_scale=1.0) == 0
    assert compilations("wind", guidance_interval=(0.5, 3.0)) == 0  # with the prompt alone and with both


def layer(backend, name: str = "hifigan") -> Compiled:
    """A linear layer, compiled as the network of a name would be."""
    return Compiled(torch.nn.Linear(4, 3), compile.PARTS[name], name, CPU, backend)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_weights(copied):
    original = torch.nn.Sequential(torch.nn.Linear(4, 3))
    x = torch.ones(2, 4)
    original[0].forward = Compiled(original[0], compile.PARTS["hifigan"], "hifigan", CPU, "eager")
    expected = original(x)
    other = copied(original)
    assert torch.equal(other(x), expected)
    other[0].bias.zero_()
    assert torch.equal(other(x), F.linear(x, original[0].weight)) and torch.equal(original(x), expected)


@torch.no_grad()
def test_what_cannot_be_compiled_runs_as_written_and_says_so_once():
    tried = []

    def without_a_compiler(*_):
        tried.append(1)
        raise OSError("no C++ compiler")

    double, x = layer(without_a_compiler), torch.ones(2, 4)
    with pytest.warns(
        RuntimeWarning, match=r"'hifigan' could not be compile.*runs as written.*no C\+\+"
    ) as told:
        made = [double(x) for _ in range(3)]
    assert len(told) == len(tried) == 1
    assert all(torch.equal(each, double.as_written(x)) for each in made)


@torch.no_grad()
@torch._dynamo.config.patch(recompile_limit=1)
def test_too_many_kinds_of_input_run_as_written_and_the_first_stay_compiled():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    double = layer(counter)
    first, second = torch.ones(2, 4), torch.ones(2, 2, 4)
    double(first)
    with pytest.warns(RuntimeWarning, match="could not be compiled") as told:
        made = [double(x) for x in (second, first, second)]
    assert len(told) == 1 and counter.frame_count == 1 and double.run is not double.as_written
    assert all(
        torch.equal(each, double.as_written(x)) for each, x in zip(made, (second, first, second), strict=True)
    )


@torch.no_grad()
def test_wrong_inputs_raise_what_they_raise_as_written():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            layer("eager")(torch.ones(2, 5))


@pytest.mark.parametrize(("tokens", "filled"), [(1, 32), (32, 32), (33, 64), (128, 128)])
def test_prompts_are_filled_up_to_few_lengths_that_are_not_seen(tokens: int, filled: int):
    seen = {}
    unet = layer("eager", "unet")
    unet.run = lambda x, **named: seen.update(named) or x
    context, mask = torch.randn(2, tokens, 3), torch.ones(2, tokens, dtype=torch.bool)
    unet(torch.zeros(1), gpt2_context=context, text_context=context, t5_mask=mask)
    assert seen["gpt2_context"] is context
    assert seen["text_context"].shape == (2, filled, 3) and seen["t5_mask"].shape == (2, filled)
    assert torch.equal(seen["text_context"][seen["t5_mask"]], context.flatten(0, 1))


def test_what_a_graph_made_is_not_overwritten_by_its_next_run(by_tracing, tiny_folder):
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32", compile=True)
    mel = torch.randn(2, 1, 64, 64)
    first = model.vocode(mel[0])
    kept = first.clone()
    model.vocode(mel[1])
    assert torch.equal(first, kept)


@pytest.mark.parametrize("elsewhere", ["offload", "low_memory"])
def test_networks_that_move_are_not_compiled(elsewhere: str, tiny_folder):
    with pytest.raises(ValueError, match="compile is True; it has to be False with offload or low_memory"):
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


@pytest.mark.parametrize(("device", "parts"), [("cpu", {"unet"}), ("cuda", set(compile.PARTS))])
def test_what_is_compiled_where(device: str, parts: set[str], tiny_model):
    found = set()
    for name, config in tiny_model.networks.configs.items():
        network = compile.compiled(build_on_meta(name, config), name, torch.device(device))
        if any(
            isinstance(value, Compiled) for module in network.modules() for value in vars(module).values()
        ):
            found.add(name)
    assert found == parts
