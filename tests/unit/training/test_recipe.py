"""Recipes: learning rates, overrides, rules."""

from dataclasses import replace

import pytest

from audioldm2.errors import WeightsError
from audioldm2.training import STAGES
from audioldm2.training.recipe import Recipe, override
from audioldm2.training.vocoder import VocoderRecipe


def test_learning_rate_warms_up_and_decays():
    recipe = Recipe(learning_rate=1.0, warmup=4, steps=104)
    assert [recipe.learning_rate_at(step) for step in (0, 1, 3, 4, 103)] == [0.25, 0.5, 1, 1, 1]
    cosine = replace(recipe, schedule="cosine")
    assert [cosine.learning_rate_at(step) for step in (3, 4, 54)] == pytest.approx([1, 1, 0.5])
    assert cosine.learning_rate_at(103) < 1e-3


def test_linear_schedule_falls_to_zero():
    recipe = Recipe(learning_rate=1.0, warmup=4, steps=104, schedule="linear")
    assert [recipe.learning_rate_at(step) for step in (3, 4, 54, 104)] == pytest.approx([1, 1, 0.5, 0])


def test_cosine_field_of_earlier_versions_is_read():
    for old, new in ((True, "cosine"), (False, "constant")):
        assert override(Recipe(), {"cosine": old}, "run.json").schedule == new
    with pytest.raises(ValueError, match="has 'cosine'"):
        override(Recipe(), {"cosine": "fast"}, "run.json")


def test_warmup_takes_at_most_a_tenth_of_the_steps():
    assert Recipe(learning_rate=1.0, warmup=4, steps=20).learning_rate_at(1) == 1


def test_vocoder_schedule_restarts_after_the_additive_phase():
    recipe = VocoderRecipe(
        learning_rate=1.0, mel_learning_rate=0.5, warmup=4, steps=204, additive_until=104, schedule="cosine"
    )
    rates = [recipe.learning_rate_at(step) for step in (3, 54, 107, 156)]
    assert rates == pytest.approx([1, 0.5, 0.5, 0.25])
    assert recipe.learning_rate_at(103) < 1e-3 and recipe.learning_rate_at(104) == 0.5 / 4


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batch": 0}, "batch of the recipe is 0; it has to be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate of the recipe is -1.0; it has to be above 0"),
        ({"pad": "mirror"}, "pad of the recipe is 'mirror'; it has to be one of silence, repeat"),
        ({"betas": [0.9]}, "betas of the recipe is"),
        ({"optimizer": "sgd"}, "optimizer of the recipe is 'sgd'; it has to be one of adamw, muon"),
        ({"steps": "many"}, "steps of the recipe is 'many'; it has to be a whole number"),
        ({"adversary": 3}, "has 'adversary'; the fields of this recipe are batch, "),
        ({"prompt_dropout": 2}, "prompt_dropout of the recipe is 2; it has to be from 0 to 1"),
        ({"clap_dropout": -1}, "clap_dropout of the recipe is -1; it has to be from 0 to 1"),
        (
            {"unconditional": "both"},
            "unconditional of the recipe is 'both'; it has to be one of reference, tr",
        ),
    ],
)
def test_rejects_values_that_are_not_allowed(values: dict, message: str):
    with pytest.raises((ValueError, WeightsError), match=message.replace("(", r"\(")):
        override(STAGES["ldm"].recipes["small"], values, "the recipe")


def test_rejects_clips_longer_than_clap_input():
    with pytest.raises(WeightsError, match=r"seconds of the recipe is 12\.0; it has to be at most 10"):
        override(STAGES["clap"].recipes["small"], {"seconds": 12.0}, "the recipe")


def test_field_names_of_version_0_1_are_accepted():
    old = {"optimiser": "adamw", "clip": 3.0, "adversary_from": 7, "lines_until": 5}
    recipe = override(STAGES["vocoder"].recipes["small"], old, "run.json")
    assert (recipe.optimizer, recipe.max_grad_norm) == ("adamw", 3.0)
    assert (recipe.adversary_start, recipe.partials_until) == (7, 5)
