"""One loaded model serves several threads: each gets the sound that it gets alone, bit for bit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import Tensor

import audioldm2
from tests.support.sizes import full_or

REQUESTS = [
    dict(prompt="a dog barks", seed=1),
    dict(prompt=["rain", "wind and thunder over the sea"], seed=[2, 3], num_inference_steps=3),
    dict(prompt="a bell", seed=4, audio_length_in_s=0.5, sampler="euler_ancestral"),
    dict(prompt="a whistle", seed=5, num_waveforms_per_prompt=2, guidance_scale=1.0, sampler="ddim", eta=0.5),
]

DEVICE, OFFLOAD, DISK = {}, {"offload": True}, {"low_memory": True}


def sound(model: audioldm2.AudioLDM2, request: dict, **named) -> Tensor:
    settings = dict(audio_length_in_s=0.25, num_inference_steps=2) | request | named
    return model.generate(settings.pop("prompt"), **settings).audio


@pytest.fixture(scope="module")
def alone(tiny_folder) -> Callable[[str], list[Tensor]]:
    """Returns what each request gives by itself in a dtype, each computed once."""

    @cache
    def sounds(dtype: str) -> list[Tensor]:
        model = audioldm2.load(tiny_folder, device="cpu", dtype=dtype)
        return [sound(model, request) for request in REQUESTS]

    return sounds


@pytest.mark.parametrize(
    ("dtype", "placement"),
    [
        pytest.param("float32", DEVICE, id="device"),
        pytest.param("bfloat16", OFFLOAD, id="offload", marks=pytest.mark.slow),
        pytest.param("float32", DISK, id="disk", marks=pytest.mark.slow),
    ],
)
def test_four_threads_get_the_sounds_that_they_get_alone(tiny_folder, alone, dtype: str, placement: dict):
    model = audioldm2.load(tiny_folder, device="cpu", dtype=dtype, **placement)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(full_or(10, 2)):
            together = list(pool.map(lambda request: sound(model, request), REQUESTS))
            assert all(torch.equal(*pair) for pair in zip(together, alone(dtype), strict=True))


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "placement"),
    [
        pytest.param(Broken, DEVICE, id="device-Broken"),
        pytest.param(KeyboardInterrupt, OFFLOAD, id="offload-KeyboardInterrupt", marks=pytest.mark.slow),
        pytest.param(Broken, DISK, id="disk-Broken", marks=pytest.mark.slow),
    ],
)
def test_request_that_fails_leaves_the_others_alone(
    tiny_folder, alone, error: type[BaseException], placement: dict
):
    model = audioldm2.load(tiny_folder, device="cpu", dtype="float32", **placement)

    def fail(step: int, t: float, x0: Tensor) -> None:
        raise error

    def failing(request: dict) -> None:
        with pytest.raises(error):
            sound(model, request, on_step=fail)

    with ThreadPoolExecutor(4) as pool:
        futures = []
        for request in REQUESTS:
            futures += [pool.submit(failing, request), pool.submit(sound, model, request)]
        found = [future.result() for future in futures]
    assert all(torch.equal(*pair) for pair in zip(found[1::2], alone("float32"), strict=True))
    assert torch.equal(sound(model, REQUESTS[0]), alone("float32")[0])


@pytest.mark.parametrize("placement", [{"offload": True}, {"low_memory": True}], ids=["offload", "disk"])
def test_weights_leave_with_the_last_user(tiny_folder, placement: dict):
    model = audioldm2.load(tiny_folder, device="cpu", **placement)
    networks = model.networks
    with networks.running("unet") as first:
        with networks.running("unet") as second:
            assert first is second
        assert not next(first.parameters()).is_meta
    assert not networks._users["unet"]
    if placement == {"low_memory": True}:
        assert next(first.parameters()).is_meta and "unet" not in networks._loaded
    else:
        assert not networks._home
