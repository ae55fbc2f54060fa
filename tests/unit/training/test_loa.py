"""Training with the language of audio: teacher forcing, LOA in place of GPT-2's vectors, joint training."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioldm2 import AudioLDM2
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import load
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.prompt.encode import Row
from audioldm2.training.ldm import Draws, LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.loa import pack, predict_loa, unpack
from audioldm2.training.randomness import generator
from tests.support.training import clips, hearing, stage_of

CAPTIONS = ["rain", "a dog barks while the rain falls on the roof", "a bell"]
NONE = torch.tensor([False] * 3)


@pytest.fixture(scope="module")
def checkpoint(random_weights: Checkpoint) -> Checkpoint:
    return hearing(random_weights)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> AudioLDM2:
    folder = tmp_path_factory.mktemp("hearing") / "model"
    storage.write(checkpoint, folder)
    return load(folder, device="cpu", dtype="float32")


def drawn(stage: LDMStage, batch: int = 3, step: int = 0) -> Draws:
    wave, _ = clips(batch, 0.32)
    return stage.draw(stage.prepare(wave), generator("noise", 0, step))


def test_teacher_forcing_on_its_own_vectors_is_generation(checkpoint: Checkpoint, model: AudioLDM2):
    stage = stage_of("loa", checkpoint)
    generated = model.encode_prompt(CAPTIONS, guided=False).gpt2_context
    predicted = predict_loa(stage.networks, stage.encoders, stage.rows(CAPTIONS), generated)
    torch.testing.assert_close(predicted, generated, atol=1e-5, rtol=1e-5)


def test_each_vector_is_predicted_from_the_true_ones_before_it(checkpoint: Checkpoint):
    stage = stage_of("loa", checkpoint)
    longest = max(map(stage.encoders.length, CAPTIONS))
    rows = [Row(text, text, longest + 2) for text in CAPTIONS]  # padding stands between captions and vectors
    loa = torch.randn(3, 4, checkpoint.configs["gpt2"].dim, generator=torch.Generator().manual_seed(0))
    whole = predict_loa(stage.networks, stage.encoders, rows, loa)
    vectors, mask = stage.network("projection")(*stage.encoders.read(rows))
    for place in range(4):
        sequence = torch.cat([vectors, loa[:, :place]], dim=1)
        real = torch.nn.functional.pad(mask, (0, place), value=True)
        alone = stage.network("gpt2").generate(sequence, real, 1)[:, 0]
        torch.testing.assert_close(whole[:, place], alone, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_l1_error_of_loa(checkpoint: Checkpoint, model: AudioLDM2):
    stage = stage_of("loa", checkpoint)
    wave, captions = clips(3, 1.28)
    loa = stage.prepare(wave)
    torch.testing.assert_close(loa, model.hear(wave, 16_000), atol=1e-5, rtol=1e-5)
    predicted = predict_loa(stage.networks, stage.encoders, stage.rows(captions), loa)
    validated = stage.validation_step(loa, captions, generator("validation", 0, 0))
    torch.testing.assert_close(validated["teacher_forced"], (predicted - loa).abs().mean())
    generated = model.encode_prompt(captions, guided=False).gpt2_context
    torch.testing.assert_close(validated["loss"], (generated - loa).abs().mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(validated["mean"], (loa - loa.mean(dim=0)).abs().mean())


def test_rows_keep_latents_and_loa():
    latents, loa = torch.randn(3, 2, 8, 5, 16), torch.randn(3, 4, 32)
    found = unpack(pack(latents, loa), (2, 8, -1, 16), (4, 32))
    assert torch.equal(found[0], latents) and torch.equal(found[1], loa)


def test_heard_clips_are_conditioned_as_generation_conditions_a_sound(
    checkpoint: Checkpoint, model: AudioLDM2
):
    stage = stage_of("ldm", checkpoint, gt_loa=0.5, unconditional="trained")
    loa = drawn(stage).loa
    found = stage.encode(CAPTIONS, NONE, loa=loa, heard=torch.tensor([True, False, True]))
    heard = model.encode_prompt(CAPTIONS, guided=False, loa=loa)
    plain = model.encode_prompt(CAPTIONS, guided=False)
    for row, expected in enumerate((heard, plain, heard)):
        torch.testing.assert_close(found.gpt2_context[row], expected.gpt2_context[row], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.text_context, heard.text_context, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.gpt2_context[0], loa[0])


def test_without_captions_t5_reads_an_empty_text(checkpoint: Checkpoint, model: AudioLDM2):
    stage = stage_of("ldm", checkpoint, gt_loa=1.0, unconditional="trained")
    assert not LDMStage.reads_captions(stage.recipe) and stage.trainable() == ("unet",)
    draws = drawn(stage)
    assert draws.heard.all()
    expected = model.encode_prompt([""] * 3, guided=False, loa=draws.loa)
    found = stage.encode(CAPTIONS, NONE, draws.offset, draws.clap_dropped, loa=draws.loa, heard=draws.heard)
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-5, rtol=1e-5)
    dropped = stage.encode(CAPTIONS, ~NONE, draws.offset, loa=draws.loa, heard=draws.heard)
    assert not dropped.gpt2_context.any()


@pytest.mark.slow
def test_captions_do_not_matter_to_training_on_loa_alone(checkpoint: Checkpoint):
    losses = []
    for captions in (CAPTIONS, ["", "", ""]):
        stage = stage_of("ldm", checkpoint, gt_loa=1.0, unconditional="trained", batch=3)
        losses.append(stage.step(clips(3, 0.32)[0], captions)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share, fewest, most", [(0.0, 0, 0), (0.25, 12, 36), (1.0, 96, 96)])
def test_share_of_clips_that_are_heard(checkpoint: Checkpoint, share: float, fewest: int, most: int):
    stage = stage_of("ldm", checkpoint, gt_loa=share, loa_weight=float(share < 1), unconditional="trained")
    masks = [drawn(stage, 8, step).heard for step in range(12)]
    assert fewest <= int(torch.cat(masks).sum()) <= most


def test_reading_loa_changes_no_other_draw(checkpoint: Checkpoint):
    plain = drawn(stage_of("ldm", checkpoint, unconditional="trained"))
    heard = drawn(stage_of("ldm", checkpoint, unconditional="trained", gt_loa=0.5))
    assert all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other
        for one, other in zip(plain[:7], heard[:7], strict=True)
    )


def test_joint_training_adds_the_error_of_gpt2(checkpoint: Checkpoint):
    stage = stage_of("ldm", checkpoint, gt_loa=0.25, loa_weight=2.0, unconditional="trained", min_snr=None)
    draws = drawn(stage)._replace(dropped=torch.tensor([False, True, False]))
    errors = stage.errors(CAPTIONS, draws)
    assert {name: weight for name, (weight, _) in errors.items()} == {"loa": 2.0, "noise": 1.0}
    predicted = predict_loa(
        stage.networks, stage.encoders, stage.rows(CAPTIONS, NONE, draws.offset), draws.loa
    )
    per_clip = (predicted - draws.loa).abs().mean(dim=(1, 2))
    torch.testing.assert_close(errors["loa"][1], per_clip[[0, 2]].sum() / 3)
    total = sum(weight * error for weight, error in errors.values())
    torch.testing.assert_close(stage.loss(CAPTIONS, draws), total)


def gradient_of_gpt2(checkpoint: Checkpoint, **values: object) -> float:
    """The size of the gradient that the denoiser's loss alone sends into GPT-2."""
    stage = stage_of("ldm", checkpoint, unconditional="trained", loa_weight=1.0, **values)
    draws = drawn(stage)
    stage.errors(CAPTIONS, draws._replace(dropped=NONE, heard=NONE))["noise"][1].backward()
    return sum(float(p.grad.abs().sum()) for p in stage.trained["gpt2"].parameters() if p.grad is not None)


@pytest.mark.slow
def test_rollout_gradients_are_optional(checkpoint: Checkpoint):
    assert gradient_of_gpt2(checkpoint) > 0
    assert gradient_of_gpt2(checkpoint, rollout_gradients=False) == 0


@pytest.mark.slow
def test_validation_reads_loa_where_training_reads_nothing_else(checkpoint: Checkpoint):
    wave, _ = clips(3, 0.32)
    losses = {}
    for share in (0.0, 0.5, 1.0):
        stage = stage_of("ldm", checkpoint, gt_loa=share, unconditional="trained")
        clips_of = stage.prepare(wave)
        losses[share] = stage.validation_step(clips_of, CAPTIONS, generator("validation", 0, 0))["loss"]
    assert losses[0.0] == losses[0.5] != losses[1.0]


@pytest.mark.slow
def test_loa_is_cached(checkpoint: Checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wave, _ = clips(3, 0.32)
    values = {"gt_loa": 0.5, "unconditional": "trained", "train_t5": False}
    expected = stage_of("ldm", checkpoint, **values).prepare(wave)
    first = stage_of("ldm", checkpoint, **values, cache_gb=1.0)
    torch.testing.assert_close(first.prepare(wave), expected)
    again = stage_of("ldm", checkpoint, **values, cache_gb=1.0)
    again.networks.release("audiomae")
    again.networks.release("vae")
    monkeypatch.setattr(again, "_loa", None)
    monkeypatch.setattr(again, "encode_clips", None)
    assert torch.equal(again.prepare(wave), first.prepare(wave))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gt_loa": 1.5}, "gt_loa is 1.5; it has to be from 0 to 1"),
        ({"gt_loa": 1.0, "unconditional": "reference"}, "1 with unconditional 'trained' alone"),
        ({"gt_loa": 1.0, "loa_weight": 2.0}, "loa_weight is 2.0; it has to be at least 0, and 0 where GPT-2"),
        ({"loa_weight": 2.0, "train_gpt2": False}, "0 where GPT-2 does not learn"),
        ({"rollout_gradients": False}, "be true without loa_weight, since nothing else teaches GPT-2"),
    ],
)
def test_recipe_rules(values: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        LDMRecipe(**values)


def test_a_model_without_audiomae_is_refused(random_weights: Checkpoint):
    with pytest.raises(ValueError, match=r"which the stage 'ldm' needs. The stage 'audiomae' adds it."):
        stage_of("ldm", random_weights, gt_loa=0.5, unconditional="trained")


def test_a_denoiser_without_gpt2_is_refused(checkpoint: Checkpoint):
    unet = checkpoint.configs["unet"]
    heads = tuple(tuple(role for role in block if "gpt2" not in role) for block in unet.transformers)
    configs = checkpoint.configs | {"unet": replace(unet, transformers=heads)}
    other = replace(checkpoint, configs=configs)
    with pytest.raises(ArgumentError, match="gt_loa is above 0; it has to be 0 for"):
        stage_of("ldm", other, gt_loa=0.5, unconditional="trained")
    with pytest.raises(ValueError, match="has no GPT-2 that its denoiser reads"):
        stage_of("loa", other)
