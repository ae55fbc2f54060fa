"""Fields of a form: all options with a flag, and what their values become."""

from dataclasses import fields

import pytest

from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.ui import forms
from audioldm2.ui.plans import GENERATE, REMAKE


def test_every_option_with_a_flag_is_on_a_form():
    options = {each.name: each for each in (*fields(GenerationOptions), *fields(EditOptions))}
    flagged = {name for name, each in options.items() if each.metadata["flag"]}
    shown = {each.option for each in (*GENERATE.entries, *REMAKE.entries)}
    assert flagged - shown <= {"audio", "audio_prompt", *forms.SPEECH}


def test_a_field_has_the_help_and_the_choices_of_its_option():
    entries = {each.name: each for each in GENERATE.entries}
    options = {each.name: each for each in fields(GenerationOptions)}
    assert entries["guidance_scale"].help == options["guidance_scale"].metadata["help"]
    assert "dpmpp_2m" in entries["sampler"].choices
    assert entries["audio_length_in_s"].label == "Duration"


def test_only_what_differs_from_a_default_is_given():
    values = {"num_inference_steps": 25.0, "guidance_scale": "4", "negative_prompt": "", "seed": "random"}
    assert forms.given(GENERATE.entries, values) == {"guidance_scale": 4, "seed": None}


def test_a_pair_has_two_fields():
    assert forms.given(REMAKE.entries, {"extend_seconds": "0.5"}) == {"extend_seconds": (0.0, 0.5)}
    both = {"extend_before": 1, "extend_seconds": 2}
    assert forms.given(REMAKE.entries, both) == {"extend_seconds": (1, 2)}
    assert forms.given(GENERATE.entries, {"guidance_interval": "0.5, 5"}) == {"guidance_interval": (0.5, 5.0)}


def test_a_seed_keeps_all_its_digits():
    assert forms.given(GENERATE.entries, {"seed": "9223372036854775807"}) == {"seed": 2**63 - 1}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("num_inference_steps", "num_inference_steps"),
        ("seed[1]", "seed"),
        ("extend_seconds[0]", "extend_before"),
        ("extend_seconds[1]", "extend_seconds"),
        ("extend_seconds", "extend_seconds"),
        ("mask_end_hz[0]", "mask_end_hz"),
        ("prompt[0]", "prompt"),
        ("latents", None),
    ],
)
def test_an_error_is_shown_beside_its_field(name: str, field: str | None):
    assert REMAKE.field_of(ArgumentError(name, 1, "be 2")) == field


def test_a_sentence_names_the_label_of_the_field():
    assert (
        REMAKE.sentence(ArgumentError("mask_start_hz[0]", -1, "be more"))
        == "Mask Hz low is -1; it has to be more."
    )
