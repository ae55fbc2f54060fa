"""The denoiser stage: conditioning as in generation, prompt dropout, denoisers with fewer contexts."""

from dataclasses import replace

import pytest
import torch

from audioldm2 import AudioLDM2
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.unet import SELF, T5
from audioldm2.training.weight_init import initialize
from tests.support.training import clips, stage_of


def test_conditioning_equals_that_of_generation(random_weights: Checkpoint, tiny_model: AudioLDM2):
    stage = stage_of("ldm", random_weights)
    captions = ["rain", "a dog barks while the rain falls on the roof", "a bell"]
    expected = tiny_model.encode_prompt(captions)
    for dropped in ([False] * 3, [True] * 3, [True, False, True]):
        cond = stage.encode(captions, torch.tensor(dropped))
        for name, tensor in cond.tensors.items():
            rows = zip(dropped, expected.negative.tensors[name], expected.tensors[name], strict=True)
            wanted = torch.stack([negative if drop else positive for drop, negative, positive in rows])
            torch.testing.assert_close(tensor.detach(), wanted, atol=1e-5, rtol=1e-5)
        assert cond.gpt2_context.requires_grad


@pytest.mark.parametrize("rate, fewest, most", [(0.0, 0, 0), (1.0, 96, 96), (0.25, 12, 36)])
def test_prompt_dropout_rate(rate, fewest, most, random_weights: Checkpoint, monkeypatch):
    stage = stage_of("ldm", random_weights, prompt_dropout=rate)
    encode, masks = stage.encode, []
    monkeypatch.setattr(
        stage,
        "encode",
        lambda captions, dropped, offset: masks.append(dropped) or encode(captions, dropped, offset),
    )
    for _ in range(4):
        stage.step(torch.zeros(24, 1600), ["rain"] * 24)
    assert fewest <= int(torch.cat(masks).sum()) <= most


@pytest.mark.parametrize(
    "unet, trained",
    [
        ({"transformers": ((), (SELF, T5))}, {"unet"}),
        ({"transformers": ((), (SELF,)), "film_dim": 32}, {"unet"}),
    ],
)
def test_denoisers_with_one_context_train(unet: dict, trained: set[str], initial: Checkpoint):
    config = replace(initial.configs["unet"], **unet)
    state = initialize("unet", config).state_dict()
    checkpoint = replace(
        initial,
        configs=initial.configs | {"unet": config},
        states=initial.states | {"unet": lambda: state},
    )
    stage = stage_of("ldm", checkpoint, train_t5=False)
    assert set(stage.trained) == trained
    losses = [stage.step(*clips(2, 0.32))["loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    assert state["conv_out.weight"].abs().max() == 0, "the checkpoint's tensors must not change"
