"""Validation, kept models, early stopping, samples for the user's prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audioldm2.checkpoints import storage
from audioldm2.training import STAGES, loop
from audioldm2.training.judging import Judging, kept, validate
from audioldm2.training.run_folder import remove_model
from tests.support.crashes import Noise, Toy
from tests.support.training import Clips, clips, parameter_copies, stage_of

SHORT = {
    "audiomae": 1.28,
    "loa": 0.32,
    "vae": 0.32,
    "vocoder": 0.256,
    "clap": 0.8,
    "ldm": 0.32,
    "lora": 0.32,
    "word": 0.32,
}


def toy(checkpoint: storage.Checkpoint, steps: int = 8) -> Toy:
    recipe = Toy.recipes["small"]
    return Toy(checkpoint, type(recipe)(steps=steps, batch=1, ema=0.9), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STAGES))
def test_validation_repeats_and_changes_nothing(name: str, random_weights: storage.Checkpoint):
    stage = stage_of(name, random_weights, seconds=SHORT[name], ema=0.5)
    wave, captions = clips(2, SHORT[name])
    stage.step(wave, captions)
    batches = [(stage.prepare(wave), captions)]
    weights = parameter_copies(stage.trained)
    first = validate(stage, batches)
    torch.rand(1)
    assert validate(stage, batches) == first and first["loss"] > 0
    after = parameter_copies(stage.trained)
    assert all(torch.equal(after[each][key], weights[each][key]) for each in weights for key in weights[each])
    assert all(network.training for network in stage.trained.values())


@pytest.mark.slow
def test_validation_judges_the_averaged_weights(random_weights: storage.Checkpoint):
    stage = stage_of("ldm", random_weights, seconds=0.32, ema=0.999, learning_rate=0.1)
    wave, captions = clips(2, 0.32)
    batches = [(stage.prepare(wave), captions)]
    for _ in range(3):
        stage.step(wave, captions)
    averaged = validate(stage, batches)
    saved = STAGES["ldm"](stage.checkpoint(), stage.recipe, torch.device("cpu"), stage.seed)
    assert validate(saved, batches) == averaged
    stage.ema.clear()
    assert validate(stage, batches) != averaged


def test_ldm_validation_has_a_loss_for_each_part_of_the_schedule(random_weights: storage.Checkpoint):
    stage = stage_of("ldm", random_weights, seconds=0.32)
    wave, captions = clips(2, 0.32)
    metrics = validate(stage, [(stage.prepare(wave), captions)])
    parts = [value for name, value in metrics.items() if name.startswith("loss_t")]
    assert "loss_t0-124" in metrics and "loss_t875-999" in metrics and len(parts) == 8
    assert metrics["loss"] == pytest.approx(sum(parts) / 8)


def losses_in_turn(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    left = iter(losses)
    monkeypatch.setattr("audioldm2.training.judging.validate", lambda *_: {"loss": next(left)})


@pytest.mark.slow
def test_best_and_last_models_are_kept(initial: storage.Checkpoint, tmp_path: Path, monkeypatch):
    losses_in_turn(monkeypatch, [3.0, 1.0, 2.0, 4.0])
    judging, intervals = Judging(keep_best=2, keep_last=3), loop.Intervals(save=2, sample=0, validate=2)
    assert loop.train(toy(initial), Noise(), tmp_path, intervals, validation=Noise(), judging=judging)
    assert sorted(kept(tmp_path / "best")) == [4, 6] and sorted(kept(tmp_path / "last")) == [4, 6, 8]
    states = [
        storage.read(tmp_path / each).states["projection"]()
        for each in ("best/step-0000004", "last/step-0000004", "model")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert json.loads((tmp_path / "best/step-0000004/training.json").read_text())["step"] == 4


def test_run_ends_early_without_improvement(initial: storage.Checkpoint, tmp_path: Path, monkeypatch):
    losses_in_turn(monkeypatch, [2.0, 1.0, 1.0, 1.5])
    reports: list[str] = []
    stage = toy(initial, steps=100)
    intervals = loop.Intervals(save=50, sample=0, validate=2)
    judging = Judging(patience=2)
    options = {"validation": Noise(), "judging": judging, "report": reports.append}
    assert loop.train(stage, Noise(), tmp_path, intervals, **options)
    assert stage.done == 8 and kept(tmp_path / "best") == [4]
    assert "has not improved in 2 validations" in reports[-1]


@pytest.mark.slow
def test_samples_follow_the_prompts_of_the_user(initial: storage.Checkpoint, tmp_path: Path):
    judging = Judging(prompts=("a bell", "an oud"))
    stage = stage_of("ldm", initial, seconds=0.32, batch=2, steps=1, pool=0)
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=1), judging=judging)
    names = {path.name for path in (tmp_path / "samples" / "step-0000001").glob("*.wav")}
    assert names == {"0-a_bell.wav", "1-an_oud.wav"}


def test_removing_a_kept_model_goes_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "step-1" / "tokenizer").mkdir(parents=True)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="busy"):
        broken.setattr("shutil.rmtree", raising(OSError("busy")))
        remove_model(tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists(), "it is out of sight already"
    remove_model(tmp_path / "step-1")
    assert not list(tmp_path.iterdir())


def raising(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **named: object) -> None:
        raise error

    return fail
