"""The training loop: what it writes, exact resuming, stopping, errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.training import STAGES, Stage, loop
from audioldm2.training.recipe import override
from tests.support.training import Clips

QUICK = {
    "vae": {"seconds": 0.32, "adversary_start": 2, "adversary_width": 8, "ema": 0.9},
    "vocoder": {
        "partials_until": 0,
        "seconds": 0.256, "additive_until": 1, "adversary_start": 2, "adversary_width": 4, "through_vae": 0.5
    },
    "clap": {"seconds": 0.8},
    "ldm": {"seconds": 0.32, "prompt_dropout": 0.5},
}  # fmt: skip


def stage_of(name: str, checkpoint: storage.Checkpoint, **values) -> Stage:
    changes = QUICK[name] | {"batch": 2, "warmup": 0} | values
    recipe = override(STAGES[name].recipes["small"], changes, "the test's recipe")
    return STAGES[name](checkpoint, recipe, torch.device("cpu"), seed=5)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = storage.read(folder / "model")
    return {f"{name}.{key}": x for name, state in checkpoint.states.items() for key, x in state().items()}


@pytest.mark.parametrize("name", [name for name, kind in STAGES.items() if not kind.adapts])
def test_resumed_run_equals_an_uninterrupted_one(name: str, initial: storage.Checkpoint, tmp_path: Path):
    data, intervals = Clips(QUICK[name]["seconds"]), loop.Intervals(save=2, sample=0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert loop.train(stage_of(name, initial, steps=6), data, whole, intervals)

    answers = iter([False, False, False, True])
    stage = stage_of(name, initial, steps=6)
    assert not loop.train(stage, data, parts, intervals, should_stop=lambda: next(answers))
    assert stage.done == 4 and len(log_of(parts)) == 4
    torch.rand(3)  # the global generators must not matter
    # After a crash, steps that were logged but not saved are repeated.
    with open(parts / "metrics.jsonl", "a") as log:
        log.write('{"step": 5, "loss": 0}\n')
    stage = stage_of(name, storage.read(parts / "model"), steps=6)
    loop.resume(stage, parts)
    assert loop.train(stage, data, parts, intervals)

    assert log_of(parts) == log_of(whole) and len(log_of(whole)) == 6
    ours, theirs = tensors(parts), tensors(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert storage.read(parts / "model").configs == storage.read(whole / "model").configs


def test_samples_and_the_saved_model(initial: storage.Checkpoint, tmp_path: Path):
    reports: list[str] = []
    stage = stage_of("ldm", initial, steps=2)
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=2), report=reports.append)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "model", "samples", "state.pt"}
    files = sorted(path.name for path in (tmp_path / "samples" / "step-0000002").iterdir())
    assert files[:2] == ["0-a_low_tone.png", "0-a_low_tone.wav"] and len(files) == 2 * loop.SAMPLE_CLIPS
    assert reports[0].startswith("step 1/2  loss ") and reports[1].startswith("step 2/2  loss ")
    assert reports[1].endswith(" 0 s left")
    result = audioldm2.load(tmp_path / "model", device="cpu").generate("a bell", audio_length_in_s=0.32)
    assert result.audio.shape == (1, 1, 5120) and result.audio.isfinite().all()


@pytest.mark.parametrize(
    "name, kinds", [("vae", {"true", "reconstructed"}), ("vocoder", {"true", "vocoded"})]
)
def test_sample_files(name: str, kinds: set[str], initial: storage.Checkpoint, tmp_path: Path):
    stage = stage_of(name, initial, steps=1)
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=1))
    found = [path.stem.split("-")[1] for path in (tmp_path / "samples").rglob("*.wav")]
    assert set(found) == kinds and len(found) == 2 * loop.SAMPLE_CLIPS


def test_nan_loss_stops_without_saving(initial: storage.Checkpoint, tmp_path: Path):
    stage = stage_of("vae", initial, steps=5)
    loop.train(stage_of("vae", initial, steps=1), Clips(0.32), tmp_path, loop.Intervals())
    before = (tmp_path / "state.pt").read_bytes()
    stage.trained["vae"].decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="is nan at step 1; try a lower learning_rate"):
        loop.train(stage, Clips(0.32), tmp_path, loop.Intervals())
    assert (tmp_path / "state.pt").read_bytes() == before


def test_errors_of_the_dataset_are_raised(initial: storage.Checkpoint, tmp_path: Path):
    class Broken(Clips):
        def batch(self, step: int, size: int):
            raise ValueError("b.wav is gone")

    with pytest.raises(ValueError, match=r"b\.wav is gone"):
        loop.train(stage_of("vae", initial), Broken(), tmp_path, loop.Intervals())


def test_rejects_the_state_of_another_run(initial: storage.Checkpoint, tmp_path: Path):
    loop.train(stage_of("vae", initial, steps=1), Clips(0.32), tmp_path, loop.Intervals())
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        loop.resume(stage_of("clap", initial), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        loop.resume(stage_of("vae", initial), tmp_path)


def test_run_without_a_save_restarts(initial: storage.Checkpoint, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0}\n')
    stage = stage_of("vae", initial)
    loop.resume(stage, tmp_path)
    assert stage.done == 0 and log_of(tmp_path) == []


def test_rejects_intervals_below_one():
    with pytest.raises(ValueError, match="save is 0; it has to be a whole number of at least 1"):
        loop.Intervals(save=0)
    assert replace(loop.Intervals(), sample=0).sample == 0
