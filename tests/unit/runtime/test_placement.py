"""Where networks live between their stages: three residences, one sound."""

import pytest
import torch
from torch import nn

import audioldm2
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.runtime import placement

REQUEST = dict(audio_length_in_s=0.5, num_inference_steps=2, num_waveforms_per_prompt=2)


@pytest.mark.slow
@pytest.mark.parametrize("where", [dict(offload=True), dict(low_memory=True)])
def test_every_residence_makes_the_same_sound(tiny_folder, tiny_model, where):
    model = audioldm2.load(tiny_folder, device="cpu", **where)
    expected = tiny_model.generate("rain", **REQUEST)
    for _ in range(2):  # the second time everything has moved back
        found = model.generate("rain", **REQUEST)
        assert torch.equal(found.audio, expected.audio)
        assert torch.equal(found.scores, expected.scores)


def test_low_memory_lets_a_network_go_even_while_a_variable_holds_it(tiny_folder):
    model = audioldm2.load(tiny_folder, device="cpu", low_memory=True)
    with model.networks.running("unet") as unet:
        assert not any(weight.is_meta for weight in unet.parameters())
    assert all(weight.is_meta for weight in unet.parameters())


def test_offload_keeps_the_same_tensors_at_home(tiny_folder):
    model = audioldm2.load(tiny_folder, device="cpu", offload=True)
    with model.networks.running("t5") as t5:
        pass
    home = {name: weight.data_ptr() for name, weight in t5.named_parameters()}
    with model.networks.running("t5") as t5:
        pass
    assert home == {name: weight.data_ptr() for name, weight in t5.named_parameters()}


@pytest.mark.parametrize("dtype, times", [(torch.bfloat16, 10), (torch.float32, 1)])
def test_file_is_reopened_while_tensors_are_cast(dtype, times: int, tiny_folder, monkeypatch):
    """So that a network's file is never resident whole beside what is made of it."""
    checkpoint, opened = open_checkpoint(tiny_folder), []
    expected = checkpoint.states["unet"]()
    monkeypatch.setattr(placement, "REOPEN_BYTES", sum(tensor.nbytes for tensor in expected.values()) // 9)
    open_unet = checkpoint.states["unet"]
    checkpoint.states["unet"] = lambda: opened.append(open_unet()) or opened[-1]
    unet = placement.materialise(checkpoint, "unet", device=torch.device("cpu"), dtype=dtype)
    assert 1 <= len(opened) <= times and (len(opened) > 4) == (times > 1)
    assert all(state.keys() == expected.keys() for state in opened)  # nobody's dictionary was emptied
    found = unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor.to(dtype)) for key, tensor in expected.items())


def test_offload_and_low_memory_exclude_each_other(tiny_folder):
    with pytest.raises(ValueError, match="offload is True; it has to be False with low_memory"):
        audioldm2.load(tiny_folder, device="cpu", offload=True, low_memory=True)


def test_bfloat16_convolutions_read_channels_last(tiny_folder):
    """One map in another layout is copied, and its norm is slow: a twentieth of a step, at full size."""
    model, seen = audioldm2.load(tiny_folder, device="cpu", dtype="bfloat16"), {}
    with model.networks.running("unet") as unet:
        for name, layer in unet.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(
                    lambda _, given, name=name: seen.update(
                        {name: given[0].is_contiguous(memory_format=torch.channels_last)}
                    )
                )
    model.generate("a dog barks", audio_length_in_s=0.64, num_inference_steps=1)
    assert len(seen) > 10 and [name for name, innermost in seen.items() if not innermost] == ["conv_in"]
