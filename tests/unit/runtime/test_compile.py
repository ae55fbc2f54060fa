"""Compiled networks: the same sounds, and a warning where PyTorch cannot compile."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.models.unet import GPT2, T5
from audioldm2.runtime import compile
from scripts.make_random_checkpoint import random_state

CPU = torch.device("cpu")
SHALLOW = {  # one of each kind of layer: tracing takes as long as there are layers
    "unet": dict(channels=(16, 24), heads=(2, 3), transformers=((GPT2, T5), ())),
    "gpt2": dict(depth=1, new_vectors=2),
    "vae": dict(channels=(8, 8), layers=1),
    "hifigan": dict(
        channels=32,
        upsample_rates=(10, 16),
        upsample_kernels=(20, 32),
        branch_kernels=(3,),
        branch_dilations=((1,),),
    ),
}


@pytest.fixture(scope="module")
def shallow_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like `tiny_folder` with fewer layers in what is compiled."""
    tiny = storage.read(tiny_folder)
    configs = {name: replace(config, **SHALLOW.get(name, {})) for name, config in tiny.configs.items()}
    states = {
        name: partial(random_state, name, configs[name], seed, torch.float32)
        for seed, name in enumerate(SHALLOW)
    }
    folder = tmp_path_factory.mktemp("shallow") / "model"
    storage.write(replace(tiny, configs=configs, states={**tiny.states, **states}), folder)
    return folder


@pytest.fixture
def traced(monkeypatch) -> Iterator[Callable[..., CompileCounterWithBackend]]:
    """Returns what has networks traced and run by PyTorch's own operators, which takes no C++ compiler.

    backend: "eager" runs the graph that was traced, "aot_eager" what inductor would compile.
    more: arguments of `nn.Module.compile`, in place of those that are given.
    """

    def trace(backend: str, **more: object) -> CompileCounterWithBackend:
        counter, original = CompileCounterWithBackend(backend), nn.Module.compile
        monkeypatch.setattr(
            nn.Module, "compile", lambda self, **named: original(self, backend=counter, **named | more)
        )
        return counter

    monkeypatch.setattr(compile, "PARTS_ON_CPU", compile.PARTS)
    monkeypatch.setattr(compile, "_why_not", lambda device: None)
    torch._dynamo.reset()
    yield trace
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain(shallow_folder) -> audioldm2.AudioLDM2:
    return audioldm2.load(shallow_folder, device="cpu", dtype="float32")


def compare(model: audioldm2.AudioLDM2, plain: audioldm2.AudioLDM2, prompt: str, **request: Any) -> None:
    """The sound of a compiled model is that of the plain one."""
    ours, theirs = (each.generate(prompt, **request) for each in (model, plain))
    assert (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 1e-4
    assert (ours.audio - theirs.audio).norm() / theirs.audio.norm() < 1e-3


@pytest.mark.slow
def test_sound_is_that_as_written(traced, shallow_folder, plain):
    """Each graph for one length: for any, PyTorch takes several times as long."""
    graphs = traced("aot_eager", dynamic=False)
    model = audioldm2.load(shallow_folder, device="cpu", dtype="float32", compile=True)
    compare(model, plain, "a dog barks", audio_length_in_s=0.64, num_inference_steps=1)
    assert graphs.frame_count >= len(compile.PARTS)


@pytest.mark.slow
def test_lengths_share_a_graph(traced, shallow_folder, plain):
    counter = traced("eager")
    model = audioldm2.load(shallow_folder, device="cpu", dtype="float32", compile=True)

    def graphs(prompt: str, seconds: float = 0.64, seed: int = 3) -> int:
        before = counter.frame_count
        compare(model, plain, prompt, audio_length_in_s=seconds, num_inference_steps=2, seed=seed)
        return counter.frame_count - before

    assert graphs("a dog barks") >= len(compile.PARTS)
    assert graphs("a dog barks", seed=4) == 0
    graphs("heavy rain on a tin roof, and then a church bell", seconds=0.96)
    graphs("rain", seconds=0.88)
    assert graphs("wind", seconds=0.92) == 0


@pytest.mark.slow
def test_hooks_and_edits_of_a_compiled_network_act(traced, shallow_folder, monkeypatch):
    traced("eager")
    monkeypatch.setattr(compile, "PARTS_ON_CPU", {"unet": ""})
    model = audioldm2.load(shallow_folder, device="cpu", dtype="float32", compile=True)
    cond, z = model.encode_prompt("a dog"), torch.randn(model.sound.latents(1, 9))
    before = model.denoise(cond, z, num_inference_steps=1)
    with model.networks.running("unet") as unet:
        unet.register_forward_hook(lambda module, given, result: 1.5 * result)
    assert (model.denoise(cond, z, num_inference_steps=1) - before).norm() > 0.01 * before.norm()


def test_only_the_denoiser_is_compiled_on_a_cpu(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **named: compiled.append(self))
    monkeypatch.setattr(compile, "_why_not", lambda device: None)
    layers = {name: nn.Linear(1, 1) for name in ("unet", "hifigan", "t5")}
    for name, layer in layers.items():
        compile.compile_network(layer, name, CPU)
    assert compiled == [layers["unet"]]


def test_network_runs_uncompiled_with_a_warning_where_pytorch_cannot(monkeypatch):
    def without_a_compiler(*_, **__):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    layer = nn.Linear(4, 3)
    with pytest.warns(RuntimeWarning, match=r"'unet' runs uncompiled, with the same result: no C"):
        compile.compile_network(layer, "unet", CPU)
    assert layer._compiled_call_impl is None
