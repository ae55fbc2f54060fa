"""What all stages share: what is trained and what is frozen, averages, checkpoints."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training import STAGES
from tests.support.training import QUICK, clips, parameter_copies, stage_of


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, count, seconds, steps, rate, metric, factor",
    [
        ("vae", 2, 0.32, 30, 1e-2, "l1", 0.2),
        ("vocoder", 2, 0.256, 30, 2e-3, "mel", 0.5),
        ("clap", 4, 0.4, 30, 3e-3, "loss", 0.5),
        ("audiomae", 4, 1.28, 30, 1e-2, "loss", 0.8),
        ("loa", 4, 0.32, 30, 1e-2, "loss", 0.5),
        ("ldm", 4, 0.32, 50, 6e-3, "loss", 0.65),
    ],
)
def test_stage_overfits_a_few_clips(
    name: str, count: int, seconds: float, steps: int, rate: float, metric: str, factor: float,
    initial: Checkpoint,
):  # fmt: skip
    no_adversary = {"adversary_start": None} if "adversary_start" in QUICK[name] else {}
    stage = stage_of(name, initial, steps=steps, learning_rate=rate, schedule="constant", **no_adversary)
    waves, captions = clips(count, seconds)
    prepared = stage.prepare(waves)
    values = [stage.step_prepared(prepared, captions)[metric] for _ in range(steps)]
    last = sum(values[-10:]) / 10
    assert last < factor * values[0], f"{metric} went from {values[0]:.3f} to {last:.3f}"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name, values, trained, frozen",
    [
        ("vae", {}, {"vae"}, set()),
        ("vocoder", {"through_vae": 0.0}, {"hifigan"}, set()),
        ("vocoder", {"through_vae": 0.5}, {"hifigan"}, {"vae"}),
        ("clap", {}, {"clap_text", "clap_audio"}, set()),
        ("clap", {"train_text": False, "noise": 0.5}, {"clap_audio"}, {"clap_text"}),
        ("audiomae", {}, {"audiomae"}, set()),
        ("loa", {"train_t5": False}, {"projection", "gpt2"}, {"audiomae", "clap_text", "t5", "unet"}),
        ("loa", {"train_t5": True}, {"projection", "gpt2", "t5"}, {"audiomae", "clap_text", "unet"}),
        ("ldm", {"train_t5": False}, {"unet", "projection", "gpt2"}, {"vae", "clap_text", "t5"}),
        ("ldm", {"train_t5": True}, {"unet", "projection", "gpt2", "t5"}, {"vae", "clap_text"}),
    ],
)
def test_step_changes_trained_parameters_only(
    name: str, values: dict, trained: set[str], frozen: set[str], random_weights: Checkpoint
):
    stage = stage_of(name, random_weights, **values)
    networks = {each: stage.network(each) for each in trained | frozen}
    assert set(stage.trained) == trained and set(stage.frozen()) == frozen
    before = parameter_copies(networks)
    stage.step(*clips(4, 0.8))
    for each, network in networks.items():
        for key, parameter in network.named_parameters():
            same = torch.equal(parameter, before[each][key])
            assert same == (each in frozen), f"{each}.{key} {'stayed' if same else 'changed'}"
            assert parameter.requires_grad == (each in trained)
    stored = {each: stage.initial.states[each]() for each in trained}
    assert all(torch.equal(stored[each][key], before[each][key]) for each in trained for key in before[each])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vocoder"])
def test_discriminator_starts_at_its_step_and_learns(name: str, initial: Checkpoint):
    stage = stage_of(name, initial)
    before = parameter_copies({"adversary": stage.adversary})["adversary"]
    batch = clips(2, 0.256)
    assert not any({"discriminator", "adversarial"} & stage.step(*batch).keys() for _ in range(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in stage.adversary.named_parameters())
    losses = [stage.step(*batch)["discriminator"] for _ in range(6)]
    assert not any(torch.equal(tensor, before[key]) for key, tensor in stage.adversary.named_parameters())
    assert losses[-1] < losses[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(STAGES))
def test_bfloat16_trains_like_float32(name: str, random_weights: Checkpoint):
    losses = []
    for bf16 in (False, True):
        stage = stage_of(name, random_weights, bf16=bf16)
        losses.append([stage.step(*clips(2, 0.256))["loss"] for _ in range(2)][-1])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_checkpoint_holds_averaged_weights(random_weights: Checkpoint):
    stage = stage_of("ldm", random_weights)
    for _ in range(2):
        stage.step(*clips(2))
    saved = stage.checkpoint().states["unet"]()
    assert torch.equal(saved["conv_out.weight"], stage.ema["unet"].state["conv_out.weight"])
    assert not torch.equal(saved["conv_out.weight"], stage.trained["unet"].conv_out.weight)
    assert stage.checkpoint().states["vae"] is random_weights.states["vae"]


@pytest.mark.slow
def test_state_of_version_0_1_loads(random_weights: Checkpoint):
    stage, resumed = (stage_of("ldm", random_weights) for _ in range(2))
    stage.step(*clips(2))
    state = deepcopy(stage.state_dict())  # PyTorch's optimizers share tensors with the state that they load
    old_keys = {"ema": "averages", "optimizer": "descent", "adversary_optimizer": "adversary_descent"}
    resumed.load_state_dict({old_keys.get(key, key): value for key, value in state.items()})
    assert resumed.done == 1
    assert stage.step(*clips(2)) == resumed.step(*clips(2))
    assert torch.equal(
        stage.ema["unet"].state["conv_out.weight"], resumed.ema["unet"].state["conv_out.weight"]
    )


def test_missing_network_is_reported(random_weights: Checkpoint):
    configs = {name: config for name, config in random_weights.configs.items() if name != "clap_audio"}
    with pytest.raises(ValueError, match="has no 'clap_audio', which the stage 'clap' needs"):
        stage_of("clap", replace(random_weights, configs=configs))
