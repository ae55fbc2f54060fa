"""Both readings of an empty negative prompt: the reference's, and the one that upstream trained with."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.errors import ArgumentError, WeightsError
from tests.support import checkpoints

PROMPTS = ["a dog", "a dog barks at the door of a house"]
REQUEST = dict(audio_length_in_s=0.32, num_inference_steps=2)


def test_trained_reading_is_zeros_for_gpt2_and_the_unpadded_empty_text_for_t5(tiny_model):
    found = tiny_model.encode_prompt(PROMPTS, unconditional="trained")
    own_length = tiny_model.encode_prompt("", guided=False)  # not padded to any prompt
    assert found.negative is not None
    assert not found.negative.gpt2_context.any()
    assert found.negative.t5_mask.sum(dim=1).tolist() == [own_length.t5_mask.shape[1]] * 2
    for row in found.negative:
        torch.testing.assert_close(row.text_context[row.t5_mask], own_length.text_context[0], rtol=0, atol=0)
    prompts = tiny_model.encode_prompt(PROMPTS, guided=False)
    assert torch.equal(found.gpt2_context, prompts.gpt2_context)


def test_reference_reading_is_the_default_and_runs_gpt2(tiny_model):
    default, reference = (tiny_model.encode_prompt(PROMPTS, unconditional=how) for how in (None, "reference"))
    assert tiny_model.unconditional == "reference"
    assert reference.negative.gpt2_context.any()
    assert torch.equal(default.negative.gpt2_context, reference.negative.gpt2_context)


def test_negative_prompt_with_words_is_encoded_alike(tiny_model):
    against = ["noise", ""]
    one, other = (
        tiny_model.encode_prompt(PROMPTS, against, unconditional=how) for how in ("trained", "reference")
    )
    assert torch.equal(one.negative.gpt2_context[0], other.negative.gpt2_context[0])
    assert not one.negative.gpt2_context[1].any()


def test_generate_obeys_and_the_record_says_which(tiny_model):
    trained, reference = (
        tiny_model.generate(PROMPTS[1], unconditional=how, **REQUEST) for how in ("trained", None)
    )
    assert not torch.equal(trained.audio, reference.audio)
    assert trained.record()["unconditional"] == "trained"
    assert reference.record()["unconditional"] == "reference"
    again = tiny_model.generate(PROMPTS, unconditional="trained", **REQUEST)
    torch.testing.assert_close(again.audio[1], trained.audio[0], rtol=0, atol=1e-5)  # alone as in a batch


def test_model_that_was_trained_so_samples_so(tiny_model, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "trained"))
    checkpoints.change_json(folder / "config.json", unconditional="trained")
    model = audioldm2.load(folder, device="cpu")
    expected = tiny_model.generate(PROMPTS[1], unconditional="trained", **REQUEST)
    assert torch.equal(model.generate(PROMPTS[1], **REQUEST).audio, expected.audio)
    checkpoints.change_json(folder / "config.json", unconditional="zeros")
    with pytest.raises(
        WeightsError, match=r"'unconditional' .* is 'zeros'; it has to be one of reference, trained"
    ):
        audioldm2.load(folder)
    assert json.loads((tiny_folder / "config.json").read_text())["unconditional"] == "reference"


@pytest.mark.parametrize("call", ["generate", "encode_prompt"])
def test_rejects_other_readings(tiny_model, call: str):
    with pytest.raises(
        ArgumentError, match="unconditional is 'zeros'; it has to be one of reference, trained"
    ):
        getattr(tiny_model, call)("a dog", unconditional="zeros")
