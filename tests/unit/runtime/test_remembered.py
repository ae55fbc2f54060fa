"""What does not see the sound is computed once a request, and nothing is kept after it."""

import copy
import gc
import io
import itertools
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import audioldm2
from audioldm2 import pipeline
from audioldm2.models import unet as unet_file
from audioldm2.models.unet import Attention
from audioldm2.ops import onednn
from audioldm2.runtime import remembered
from audioldm2.runtime.remembered import Folded, Remembered, remembering

REQUEST = dict(audio_length_in_s=0.64, num_inference_steps=5)


@pytest.fixture
def counted(tiny_folder, monkeypatch) -> tuple[audioldm2.AudioLDM2, Callable[[], dict[str, int]]]:
    """A model, and how often each of its denoiser's key and value layers has run."""
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    with model.networks.running("unet") as unet:
        names = {each: name for name, each in unet.named_modules() if name.endswith((".key", ".value"))}
    runs, usual = dict.fromkeys(names.values(), 0), onednn.Linear.forward

    def forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if layer in names:
            runs[names[layer]] += 1
        return usual(layer, x)

    monkeypatch.setattr(onednn.Linear, "forward", forward)
    return model, lambda: dict(runs)


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


@pytest.mark.parametrize("longest, decibels", [(1000, 100), (0, math.inf)], ids=["folded", "not folded"])
def test_sounds_are_the_same(longest: int, decibels: float, tiny_model, monkeypatch):
    """To float32's rounding where prompts are folded; to the bit where keys and values are only kept."""
    monkeypatch.setattr(remembered, "LONGEST", longest)
    ours = tiny_model.generate("a dog barks", **REQUEST)
    monkeypatch.setattr(pipeline, "remembering", lambda unet: torch.no_grad())
    theirs = tiny_model.generate("a dog barks", **REQUEST)
    error = (ours.latents - theirs.latents).double().square().mean()
    assert bool(error) == bool(longest)  # rounding tells that prompts were folded
    assert error == 0 or 10 * math.log10(theirs.latents.double().square().mean() / error) > decibels


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
def test_folded_attention_is_attention(dtype: torch.dtype, error: float, masked: bool):
    """Of prompts of 1 token to as many as are folded, and beyond; in bfloat16 no worse than the usual way."""
    torch.manual_seed(0)
    layer = Attention(160, 24, heads=4)
    for tokens in (1, 7, 39, 40):
        x, context = torch.randn(3, 50, 160), torch.randn(3, tokens, 24)
        mask = torch.rand(3, 1, 1, tokens) < 0.6 if masked else None
        if masked:
            mask[..., 0] = True
        with torch.no_grad():
            expected = layer.double()(x.double(), context.double(), mask)
            narrow = layer.to(dtype)
            folded = Folded(narrow)
            found, usual = (run(x.to(dtype), context.to(dtype), mask).double() for run in (folded, narrow))
        assert bool(folded.fold.made) == (tokens < 40)
        wrong = ((found - expected).norm() / expected.norm()).item()
        assert wrong < max(error, 1.2 * ((usual - expected).norm() / expected.norm()).item())
        layer = Attention(160, 24, heads=4)


def test_gradients_take_the_usual_way():
    layer = Attention(64, 24, heads=4)
    folded, x = Folded(layer), torch.randn(2, 5, 64)
    folded(x, torch.randn(2, 3, 24)).sum().backward()
    assert layer.query.weight.grad is not None and not folded.fold.made


def test_nothing_stays(tiny_model):
    with tiny_model.networks.running("unet") as unet:
        with pytest.raises(KeyError), remembering(unet), remembering(unet):  # as two threads may
            raise KeyError
        assert not any({"forward", "packed"} & vars(module).keys() for module in unet.modules())


def test_what_was_made_goes_with_the_request_not_with_the_garbage_collector(tiny_model, monkeypatch):
    monkeypatch.setattr(remembered, "LONGEST", 1000)
    made, fold = [], remembered.fold

    def seen(*given):
        results = fold(*given)
        made.extend(weakref.ref(result) for result in results)
        return results

    monkeypatch.setattr(remembered, "fold", seen)
    gc.disable()
    try:
        tiny_model.generate("a dog barks", **REQUEST)
        assert made and not any(each() is not None for each in made)
    finally:
        gc.enable()


def test_a_tensor_that_was_written_to_is_another():
    run = Remembered(lambda x: 2 * x)
    x = torch.ones(3)
    with torch.no_grad():
        assert run(x) is run(x)
        x.add_(1)
        assert torch.equal(run(x), torch.full((3,), 4.0))
        assert torch.equal(run(torch.ones(3)), torch.full((3,), 2.0))
        assert len(run.made) == 2


def test_in_inference_mode_sounds_are_the_same(tiny_model):
    with torch.inference_mode():
        found = tiny_model.generate("a dog barks", **REQUEST)
    assert torch.equal(found.audio, tiny_model.generate("a dog barks", **REQUEST).audio)


class Tuned(nn.Linear):
    """As low-rank adaptation does it: a linear layer that adds to its weights' product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.3 * x.roll(1, -1)[..., : self.out_features].mean(-1, keepdim=True)


def louder_from_step_to_step() -> Callable[..., torch.Tensor]:
    factors = itertools.cycle((1.1, 1.2, 1.3, 1.4, 1.5))  # of a request's five steps
    return lambda module, given, made: next(factors) * made


@pytest.mark.parametrize("longest", [1000, 0], ids=["folded", "not folded"])
@pytest.mark.parametrize("changed", ["query", "key", "value", "out", "value_and_gate"])
@pytest.mark.parametrize("how", ["subclass", "hook", "forward"])
def test_a_changed_layer_is_heard(how: str, changed: str, longest: int, tiny_folder, monkeypatch):
    """What is made of weights alone is not, where a layer is more than they; and it stays changed."""
    monkeypatch.setattr(remembered, "LONGEST", longest)
    ours, theirs = (audioldm2.load(tiny_folder, device="cpu", dtype="float32") for _ in range(2))
    untouched = ours.generate("a dog barks", **REQUEST)
    for model in (ours, theirs):
        with model.networks.running("unet") as unet:
            for name, layer in unet.named_modules():
                if name.endswith(f"gpt2_attn.blocks.0.context_attn.{changed}") or name.endswith(
                    f"gpt2_attn.blocks.0.ff.{changed}"
                ):
                    if how == "subclass":
                        layer.__class__ = Tuned
                    elif how == "hook":
                        layer.register_forward_hook(louder_from_step_to_step())
                    else:
                        layer.forward = lambda x, usual=layer.forward: 1.5 * usual(x)
    found = [ours.generate("a dog barks", **REQUEST).latents for _ in range(2)]
    monkeypatch.setattr(pipeline, "remembering", lambda unet: torch.no_grad())
    expected = theirs.generate("a dog barks", **REQUEST).latents
    assert torch.equal(*found)
    assert (found[0] - expected).norm() < 1e-4 * expected.norm() < (expected - untouched.latents).norm()


def test_an_attention_with_a_forward_of_its_own_keeps_it(tiny_folder):
    """As those do who look at what a prompt's attention attends to."""
    model, seen = audioldm2.load(tiny_folder, device="cpu", dtype="float32"), []
    with model.networks.running("unet") as unet:
        name = next(
            name for name, _ in unet.named_modules() if name.endswith("gpt2_attn.blocks.0.context_attn")
        )
        attention = unet.get_submodule(name)
        usual = attention.forward
        attention.forward = lambda *given: seen.append(given) or usual(*given)
    for requests in (1, 2):
        model.generate("a dog barks", **REQUEST)
        assert len(seen) == 5 * requests


def of_their_own(self, x: torch.Tensor, *_) -> torch.Tensor:
    return 0 * x


@pytest.mark.parametrize("name", ["Attention", "FeedForward"])
@pytest.mark.parametrize("how", ["the class", "a subclass", "another in its place"])
def test_a_changed_class_is_heard(name: str, how: str, tiny_folder, monkeypatch):
    """Also where a twin stands in for it; here all of a kind make nothing."""
    monkeypatch.setattr(remembered, "LONGEST", 1000)
    model, kind = audioldm2.load(tiny_folder, device="cpu", dtype="float32"), getattr(unet_file, name)
    with model.networks.running("unet") as unet:
        places = [
            (each, attribute)
            for each in unet.modules()
            for attribute, child in each.named_children()
            if isinstance(child, kind)
        ]
    if how == "the class":
        monkeypatch.setattr(kind, "forward", of_their_own)
    for place, attribute in places:
        layer = getattr(place, attribute)
        if how == "a subclass":
            layer.__class__ = type("Changed", (type(layer),), {"forward": of_their_own})
        elif how == "another in its place":
            setattr(place, attribute, type("Another", (nn.Module,), {"forward": of_their_own})())
    found = model.generate("a dog barks", **REQUEST).latents
    silent = audioldm2.load(tiny_folder, device="cpu", dtype="float32")
    with silent.networks.running("unet") as unet:
        for module in unet.modules():
            if isinstance(module, kind):
                module.out.weight.zero_(), module.out.bias.zero_()
    monkeypatch.undo()
    expected = silent.generate("a dog barks", **REQUEST).latents
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_another_attention_function_sees_every_call(tiny_folder, monkeypatch):
    """As those do who record attention maps; here none is folded past it."""
    monkeypatch.setattr(remembered, "LONGEST", 1000)
    model, usual, calls = audioldm2.load(tiny_folder, device="cpu", dtype="float32"), unet_file.attention, []
    with model.networks.running("unet") as unet:
        attentions = sum(isinstance(module, Attention) for module in unet.modules())
    monkeypatch.setattr(unet_file, "attention", lambda *given, **how: calls.append(1) or usual(*given, **how))
    model.generate("a dog barks", **REQUEST)
    assert len(calls) == 5 * attentions


def sound_with(watch, tiny_folder, monkeypatch, dtype: str, on_step: Callable) -> torch.Tensor:
    """Latents; on_step is called with the denoiser, after each step."""
    model = audioldm2.load(tiny_folder, device="cpu", dtype=dtype)
    monkeypatch.setattr(pipeline, "remembering", watch)
    with model.networks.running("unet") as unet:
        return model.generate("a dog barks", on_step=lambda *_: on_step(unet) and None, **REQUEST).latents


@pytest.mark.parametrize("dtype, longest, near", [("float32", 1000, 1e-4), ("bfloat16", 0, 0)])
@pytest.mark.parametrize("which", ["hears the prompt", "all"])
def test_weights_written_to_between_steps_are_heard(
    which: str, dtype: str, longest: int, near: float, tiny_folder, monkeypatch
):
    """Folded prompts, to rounding; kept keys and packed weights, to the bit."""
    monkeypatch.setattr(remembered, "LONGEST", longest)
    monkeypatch.setattr(onednn, "PACKED", 1)

    def louder(unet: nn.Module) -> None:
        for name, weight in unet.named_parameters():
            if weight.ndim > 1 and (which == "all" or hears_the_prompt(name)):
                weight.mul_(1.1)

    given = tiny_folder, monkeypatch, dtype
    found, expected = (
        sound_with(watch, *given, louder) for watch in (remembering, lambda unet: torch.no_grad())
    )
    untouched = sound_with(remembering, *given, lambda unet: None)
    assert (found - expected).norm() <= near * expected.norm() < (expected - untouched).norm()


# Packed weights ---------------------------------------------------------------------------------------------

packs = pytest.mark.skipif(
    not onednn.packs(torch.bfloat16), reason="this processor or PyTorch cannot pack in bfloat16"
)


@packs
def test_weights_are_packed_once_a_request_and_sounds_are_the_same_to_the_bit(tiny_folder, monkeypatch):
    monkeypatch.setattr(onednn, "PACKED", 1)
    model, packed, pack = audioldm2.load(tiny_folder, device="cpu", dtype="bfloat16"), [], onednn._packed
    monkeypatch.setattr(onednn, "_packed", lambda weight: packed.append(weight) or pack(weight))
    first = model.generate("a dog barks", **REQUEST).latents
    count = len(packed)
    assert count > 20 and len({(each.data_ptr(), each.shape) for each in packed}) == count
    model.generate("a dog barks", **REQUEST)
    assert len(packed) == 2 * count
    monkeypatch.setattr(remembered, "_packing", lambda unet: [])
    assert torch.equal(model.generate("a dog barks", **REQUEST).latents, first)
    assert len(packed) == 2 * count


def test_in_float32_nothing_is_packed(tiny_model, monkeypatch):
    monkeypatch.setattr(onednn, "_packed", lambda weight: pytest.fail("a weight was packed"))
    tiny_model.generate("a dog barks", **REQUEST)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_of_a_denoiser_belongs_to_no_request(dtype: str, tiny_folder, monkeypatch):
    """Taken while one lasts: it can be made and written, and hears whatever is done to its weights later."""
    copies = []

    def copied(unet: nn.Module) -> None:
        copies.append(copy.deepcopy(unet))
        torch.save(unet, io.BytesIO())

    sound_with(remembering, tiny_folder, monkeypatch, dtype, copied)
    unet = copies[0]
    assert not any(vars(module).get("packed") for module in unet.modules())
    assert not any(isinstance(vars(m).get("forward"), Remembered | Folded) for m in unet.modules())
    given = [torch.randn(1, 8, 16, 16), torch.tensor(7)]
    given += [torch.randn(1, 8, width) for width in (unet.config.gpt2_dim, unet.config.t5_dim)]
    given = [each.to(unet.conv_in.weight.dtype) for each in given]
    with torch.no_grad():
        before, expected = (each(*given) for each in copies[:2])
        assert torch.equal(before, expected)
        for weight in unet.parameters():
            weight.data.mul_(1.1)
        assert (unet(*given) - before).norm() > 0.05 * before.norm()


def test_when_a_request_cannot_begin_nothing_stays(tiny_folder):
    model = audioldm2.load(tiny_folder, device="cpu", dtype="bfloat16")
    with model.networks.running("unet") as unet:
        unet.middle.layer.t5_attn = nn.Identity()  # which has no blocks
        with pytest.raises(AttributeError), remembering(unet):
            pass
        assert not any({"forward", "packed"} & vars(module).keys() for module in unet.modules())


def test_what_was_written_to_is_not_kept():
    run, x = Remembered(lambda x: 2 * x), torch.ones(3)
    with torch.no_grad():
        for _ in range(3):
            run(x)
            x.add_(1)
    assert len(run.made) == 1


def test_weights_whose_changes_pytorch_does_not_count_are_not_packed(tiny_folder):
    with torch.inference_mode():
        model = audioldm2.load(tiny_folder, device="cpu", dtype="bfloat16")
        with model.networks.running("unet") as unet:
            assert unet.conv_in.weight.is_inference() and remembered._packing(unet) == []


def test_a_changed_twin_is_heard_where_prompts_are_folded(monkeypatch):
    attention = onednn.through_onednn(Attention(64, 64, heads=2))
    folded, x, context = Folded(attention), torch.randn(1, 4, 64), torch.randn(1, 3, 64)
    with torch.no_grad():
        assert folded(x, context).any() and folded.fold.made
        monkeypatch.setattr(type(attention), "forward", of_their_own)
        assert not folded(x, context).any()


def test_prompts_are_not_folded_where_that_would_leave_something_out():
    x, context = torch.randn(3, 4, 64), torch.randn(3, 2, 64)
    for change in (
        lambda layer: setattr(layer.query, "bias", nn.Parameter(torch.ones(64))),
        lambda layer: setattr(layer.out, "bias", None),
    ):
        layer = Attention(64, 64, heads=2)
        change(layer)
        with torch.no_grad():
            assert torch.equal(Folded(layer)(x, context), layer(x, context))
    with torch.no_grad():
        assert torch.equal(Folded(layer)(x, context[:1]), layer(x, context[:1]))  # repeated for each row


def test_gradients_flow_anew_each_time():
    run, x = Remembered(lambda x: 2 * x), torch.ones(3, requires_grad=True)
    assert run(x) is not run(x) and not run.made
