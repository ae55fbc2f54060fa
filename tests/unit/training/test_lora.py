"""The stage that trains an adapter: what learns, what is saved, exact resuming."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audioldm2.adapters import lora, reading
from audioldm2.adapters.writing import hash_of, license_of
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training import judging, loop, run_folder
from audioldm2.training.lora import LoRARecipe, LoRAStage
from audioldm2.training.mixing import as_old
from audioldm2.training.randomness import generator
from tests.support.training import Clips, clips, parameter_copies, stage_of

SHORT = {"batch": 2, "seconds": 0.32}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "layers, adapted",
    zip(lora.LAYER_SETS, [("unet",), ("gpt2", "projection"), ("unet", "gpt2", "projection")], strict=True),
)
def test_only_the_adapters_learn(layers: str, adapted: tuple[str, ...], random_weights: Checkpoint):
    stage = stage_of("lora", random_weights, layers=layers, adapted=adapted)
    assert set(stage.trained) == set(adapted)
    assert set(stage.frozen()) == {"unet", "gpt2", "projection", "t5", "clap_text", "vae"} - set(adapted)
    before = parameter_copies({name: stage.network(name) for name in (*adapted, *stage.frozen())})
    for _ in range(2):  # B = 0 keeps A where it is in the first
        stage.step(*clips(2, 0.32))
    for name in before:
        network = stage.network(name)
        learnt = {id(each) for each in stage.trained[name].parameters()} if name in adapted else set()
        for key, parameter in network.named_parameters():
            assert parameter.requires_grad == (id(parameter) in learnt)
            assert torch.equal(parameter, before[name][key]) == (id(parameter) not in learnt), f"{name}.{key}"


@pytest.mark.slow
def test_adapter_learns(random_weights: Checkpoint):
    stage = stage_of("lora", random_weights, rank=4, layers="all", learning_rate=1e-2)
    losses = [stage.step(*clips(4, 0.32))["loss"] for _ in range(12)]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.slow
def test_run_saves_the_adapter_and_not_the_model(tiny_folder: Path, random_weights, tmp_path: Path):
    stage = stage_of("lora", random_weights, steps=2, ema=0.5, half=False, alpha=8.0, **SHORT)
    stage.base, stage.base_hash = str(tiny_folder), "abc"
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=2))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "adapter", "samples", "state.pt"}
    assert len(list((tmp_path / "samples").rglob("*.wav"))) == judging.SAMPLE_CLIPS
    found = reading.read(tmp_path / "adapter", random_weights.configs)
    assert found.metadata["base_model"] == str(tiny_folder) and found.metadata["base_sha256"] == "abc"
    assert found.metadata["license"] == "that of the base model" and found.metadata["steps"] == "2"
    average = stage.trained["unet"].low_ranks(stage.ema["unet"].state)
    for path, low in found.layers["unet"].items():
        assert (
            torch.equal(low.A, average[path].A) and torch.equal(low.B, average[path].B) and low.scale == 4.0
        )
        assert low.B.abs().max() > 0


def test_checkpoint_has_the_adapter_in_its_weights(random_weights: Checkpoint):
    stage = stage_of("lora", random_weights)
    stage.step(*clips(2, 0.32))
    path, low = next(iter(stage.adapter().layers["unet"].items()))
    state, base = stage.checkpoint().states["unet"](), random_weights.states["unet"]()
    torch.testing.assert_close(state[f"{path}.weight"], base[f"{path}.weight"] + low.product)
    assert torch.equal(state["conv_in.weight"], base["conv_in.weight"])


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(random_weights: Checkpoint, tmp_path: Path):
    def stage() -> LoRAStage:
        return stage_of("lora", random_weights, steps=3, prompt_dropout=0.5, **SHORT)

    whole, parts, intervals = tmp_path / "whole", tmp_path / "parts", loop.Intervals(sample=0)
    for folder in (whole, parts):
        folder.mkdir()
    assert loop.train(stage(), Clips(0.32), whole, intervals)
    answers = iter([False, True])
    assert not loop.train(stage(), Clips(0.32), parts, intervals, should_stop=lambda: next(answers))
    torch.rand(3)  # the global generators must not matter
    resumed = stage()
    run_folder.resume(resumed, parts)
    assert loop.train(resumed, Clips(0.32), parts, intervals)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (parts, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_same_seed_gives_the_same_adapter(random_weights: Checkpoint):
    first, second = (stage_of("lora", random_weights).adapter().layers["unet"] for _ in range(2))
    assert all(torch.equal(low.A, second[path].A) for path, low in first.items())


# The prior: the base's own predictions on old clips ---------------------------------------------------------


def half_old(count: int) -> tuple[torch.Tensor, list[str]]:
    waves, captions = clips(count, 0.32)
    return waves, [as_old(each) if place % 2 else each for place, each in enumerate(captions)]


def all_old(count: int) -> tuple[torch.Tensor, list[str]]:
    waves, captions = clips(count, 0.32)
    return waves, list(map(as_old, captions))


def with_random_matrices(stage: LoRAStage) -> LoRAStage:
    for name, trained in stage.trained.items():
        for key, parameter in trained.named_parameters():
            torch.nn.init.normal_(parameter, 0, 0.1, generator=generator(f"{name} {key}"))
    return stage


def gradients(stage: LoRAStage) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": parameter.grad.clone()
        for name, trained in stage.trained.items()
        for key, parameter in trained.named_parameters()
        if parameter.grad is not None  # those of GPT-2 have none where all captions are dropped
    }


@pytest.mark.slow
def test_without_a_prior_old_clips_are_learnt_like_new_ones(random_weights: Checkpoint):
    marked, plain = (stage_of("lora", random_weights, prompt_dropout=0.3) for _ in range(2))
    for _ in range(2):
        assert marked.step(*half_old(4)) == plain.step(*clips(4, 0.32))
    theirs = plain.trained["unet"].state_dict()
    for key, matrix in marked.trained["unet"].state_dict().items():
        assert torch.equal(matrix, theirs[key])


@pytest.mark.parametrize("adapted", [("unet",), ("gpt2", "unet")])
@pytest.mark.parametrize("unconditional", ["trained", "reference"])
def test_untrained_adapter_is_at_the_prior(
    adapted: tuple[str, ...], unconditional: str, random_weights: Checkpoint
):
    values = {"adapted": adapted, "unconditional": unconditional, "prompt_dropout": 0.3, "prior_weight": 2.0}
    stage = stage_of("lora", random_weights, **values)
    metrics = stage.step(*all_old(3))
    assert metrics["loss"] == metrics["prior"] == metrics["noise"] == metrics["grad_norm"] == 0
    assert not any(gradient.any() for gradient in gradients(stage).values())
    assert with_random_matrices(stage).step(*all_old(3))["prior"] > 0


def test_dropped_captions_are_at_the_prior(random_weights: Checkpoint):
    stage = stage_of("lora", random_weights, prompt_dropout=1.0, prior_weight=1.0)
    assert stage.step(*clips(2, 0.32))["loss"] == 0


@pytest.mark.parametrize("adapted", [("unet",), ("gpt2", "unet")])
def test_prior_is_the_error_against_the_base(adapted: tuple[str, ...], random_weights: Checkpoint):
    """The parts of the loss, computed with a model that has no adapter."""
    made = stage_of("lora", random_weights, prior_weight=3.0, min_snr=5.0, adapted=adapted)
    stage, without = with_random_matrices(made), stage_of("lora", random_weights)
    waves, captions = half_old(4)
    draws = stage.draw(stage.prepare(waves), generator("draws"))
    draws = draws._replace(dropped=torch.zeros(4, dtype=torch.bool))
    errors = stage.errors(captions, draws)
    noisy, alpha_bar = stage.noisy(draws)
    with torch.no_grad():
        ours, base = (
            each.predict(noisy, draws.t, each.encode(captions, draws.dropped, draws.offset))
            for each in (stage, without)
        )
    weight = (5 * (1 - alpha_bar) / alpha_bar).clamp(max=1)
    of_noise, of_prior = (
        weight * (ours - target).square().mean(dim=(1, 2, 3)) for target in (draws.eps, base)
    )
    expected = {"noise": (1.0, of_noise[[0, 2]].sum() / 4), "prior": (3.0, of_prior[[1, 3]].sum() / 4)}
    assert errors.keys() == expected.keys()
    for name, (factor, error) in expected.items():
        assert errors[name][0] == factor
        torch.testing.assert_close(errors[name][1].detach(), error, rtol=1e-4, atol=1e-7)


def test_prior_leaves_the_base_and_the_scales_alone(random_weights: Checkpoint):
    stage = with_random_matrices(stage_of("lora", random_weights, prior_weight=1.0, alpha=4.0))
    before = parameter_copies({"unet": stage.network("unet")})["unet"]
    learnt = {id(each) for each in stage.trained["unet"].parameters()}
    stage.step(*half_old(2))
    for key, parameter in stage.network("unet").named_parameters():
        assert torch.equal(parameter, before[key]) == (id(parameter) not in learnt), key
    layers = [each for each in stage.network("unet").modules() if isinstance(each, lora.LoRALinear)]
    assert {each.scale for each in layers} == {2.0}


def test_error_in_the_base_restores_the_adapter(random_weights: Checkpoint):
    stage = stage_of("lora", random_weights)
    with pytest.raises(ZeroDivisionError), lora.switched_off([stage.network("unet")]):
        raise ZeroDivisionError
    layers = [each for each in stage.network("unet").modules() if isinstance(each, lora.LoRALinear)]
    assert {each.scale for each in layers} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"accumulate": 3}, {"recompute": True}])
def test_prior_in_less_memory(more: dict, random_weights: Checkpoint):
    values = {"prior_weight": 2.0, "prompt_dropout": 0.3, "learning_rate": 1e-5, "adapted": ("unet", "gpt2")}
    whole, other = (
        with_random_matrices(stage_of("lora", random_weights, **values | each)) for each in ({}, more)
    )
    expected, found = (stage.step(*half_old(5)) for stage in (whole, other))
    assert found == pytest.approx(expected, rel=1e-4) and expected["prior"] > 0 < expected["noise"]
    theirs = gradients(whole)
    for key, gradient in gradients(other).items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-3, atol=1e-6)


def test_prior_needs_old_clips(random_weights: Checkpoint):
    stage = stage_of("lora", random_weights, prior_weight=1.0)
    stage.require_captions(half_old(2)[1])
    with pytest.raises(
        ArgumentError, match=r"prior_weight is 1\.0; it has to be 0 without old clips, .*--mix"
    ):
        stage.require_captions(clips(2, 0.32)[1])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"prior_weight": -1.0}, "prior_weight is -1.0; it has to be at least 0"),
        ({"rank": 0}, "rank is 0; it has to be from 1 to 1024"),
        ({"layers": "norms"}, "layers is 'norms'; it has to be one of attention, attention"),
        ({"adapted": ("vae",)}, r"adapted is \('vae',\); it has to name some of unet, gpt2, projection"),
        ({"adapted": ()}, "adapted is"),
        ({"alpha": -1.0}, "alpha is -1.0; it has to be above 0"),
        ({"train_t5": True}, "train_t5 is True; it has to be false"),
    ],
)
def test_recipe_rejects(values: dict, words: str):
    with pytest.raises(ValueError, match=words):
        LoRARecipe(**values)


def test_hash_is_of_the_weights_and_not_of_the_file(random_weights: Checkpoint, tmp_path: Path):
    expected = hash_of(random_weights.states, ["unet", "gpt2"])
    storage.write(random_weights, tmp_path / "copy")
    copy = storage.read(tmp_path / "copy")
    assert hash_of(copy.states, ["gpt2", "unet"]) == expected
    state = dict(copy.states["unet"]())
    state["conv_in.bias"] = state["conv_in.bias"] + 1e-6
    assert hash_of(copy.states | {"unet": lambda: state}, ["unet", "gpt2"]) != expected


def test_license_follows_from_the_origin():
    assert license_of("cvssp/audioldm2-music") == "cc-by-nc-sa-4.0"
    assert license_of("./base") == "that of the base model"
