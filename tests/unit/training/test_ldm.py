"""The denoiser stage: conditioning as in generation, prompt dropout, denoisers with fewer contexts."""

from dataclasses import replace

import pytest
import torch

from audioldm2 import AudioLDM2
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.unet import SELF, T5
from audioldm2.prompt.encode import UNCONDITIONAL, Row
from audioldm2.training import STAGES
from audioldm2.training.ldm import Draws, LDMStage
from audioldm2.training.randomness import generator
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


@pytest.mark.parametrize("unconditional", UNCONDITIONAL)
def test_dropped_captions_are_encoded_as_generation_encodes_an_empty_negative_prompt(
    unconditional: str, random_weights: Checkpoint, tiny_model: AudioLDM2
):
    stage = stage_of("ldm", random_weights, unconditional=unconditional)
    captions = ["rain", "a dog barks while the rain falls on the roof"]
    expected = tiny_model.encode_prompt(captions, unconditional=unconditional).negative
    found = stage.encode(captions, torch.tensor([True, True]))
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor.detach(), expected.tensors[name], atol=1e-5, rtol=1e-5)


def test_conditioning_without_clap_alone(random_weights: Checkpoint, tiny_model: AudioLDM2):
    """CLAP reads the empty text, T5 the caption."""
    stage = stage_of("ldm", random_weights)
    caption, none = "a dog barks", torch.tensor([False])
    found = stage.encode([caption], none, clap_dropped=torch.tensor([True]))
    whole = stage.encode([caption], none)
    assert torch.equal(found.text_context, whole.text_context)
    read = stage.encoders.read([Row(caption, "", whole.t5_mask.shape[1])])
    vectors, mask = stage.network("projection")(*read)
    torch.testing.assert_close(found.gpt2_context, stage.network("gpt2").generate(vectors, mask))
    assert not torch.allclose(found.gpt2_context, whole.gpt2_context, atol=1e-2)


def drawn(stage: LDMStage, steps: int, batch: int) -> list[Draws]:
    """What chance gives the first steps."""
    clips = torch.zeros(batch, 2, 8, 4, 16)
    return [stage.draw(clips, generator("noise", 0, step)) for step in range(steps)]


@pytest.mark.parametrize("rate, fewest, most", [(0.0, 0, 0), (1.0, 96, 96), (0.25, 12, 36)])
def test_prompt_dropout_rate(rate: float, fewest: int, most: int, random_weights: Checkpoint):
    stage = stage_of("ldm", random_weights, prompt_dropout=rate)
    masks = [draws.dropped for draws in drawn(stage, 4, 24)]
    assert fewest <= int(torch.cat(masks).sum()) <= most


def test_captions_are_dropped_by_the_batch_as_upstream_does(random_weights: Checkpoint):
    stage = stage_of("ldm", random_weights, unconditional="trained", prompt_dropout=0.25)
    masks = [draws.dropped for draws in drawn(stage, 400, 4)]
    assert all(mask.all() or not mask.any() for mask in masks)
    assert 70 <= sum(bool(mask.any()) for mask in masks) <= 130


def test_clap_is_dropped_by_the_clip(random_weights: Checkpoint):
    stage = stage_of("ldm", random_weights, clap_dropout=0.25)
    masks = [draws.clap_dropped for draws in drawn(stage, 100, 4)]
    assert 70 <= sum(int(mask.sum()) for mask in masks) <= 130
    assert any(mask.any() and not mask.all() for mask in masks)


@pytest.mark.parametrize("name", ["ldm", "lora"])
def test_recipes_drop_captions_as_the_model_has_learnt(name: str, random_weights: Checkpoint):
    kind = STAGES[name]
    dropping = {key: (each.unconditional, each.clap_dropout) for key, each in kind.recipes.items()}
    as_upstream, as_reference = ("trained", 0.1), ("reference", 0.0)
    assert dropping == {"published": as_upstream, "finetune": as_upstream, "small": as_reference}
    converted = replace(random_weights, normalized=True, unconditional="reference")
    small = replace(random_weights, normalized=False, unconditional="reference")
    for model, expected in ((converted, as_upstream), (small, as_reference)):
        recipe = kind.recipe_for(model)
        assert (recipe.unconditional, recipe.clap_dropout) == expected
    own = replace(small, unconditional="trained")
    assert kind.recipe_for(own).unconditional == "trained"


@pytest.mark.parametrize("unconditional", UNCONDITIONAL)
def test_saved_model_says_how_captions_were_dropped(unconditional: str, random_weights: Checkpoint):
    stage = stage_of("ldm", random_weights, unconditional=unconditional)
    assert stage.checkpoint().unconditional == unconditional


@pytest.mark.parametrize(
    "unet, trained",
    [
        ({"transformers": ((SELF, T5),)}, {"unet"}),
        ({"transformers": ((SELF,),), "film_dim": 32}, {"unet"}),
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
