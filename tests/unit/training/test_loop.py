"""The training loop: what it writes, exact resuming, stopping, errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.training import STAGES, Stage, judging, loop, run_folder
from audioldm2.training.recipe import override
from tests.support.crashes import Noise, Toy
from tests.support.training import READ_SOUNDS, Clips, hearing

QUICK = {
    "vae": {"seconds": 0.32, "adversary_start": 1, "adversary_width": 8, "ema": 0.9},
    "vocoder": {
        "partials_until": 0,
        "seconds": 0.256, "additive_until": 1, "adversary_start": 1, "adversary_width": 4, "through_vae": 0.5
    },
    "clap": {"seconds": 0.8},
    "audiomae": {"seconds": 1.28},
    "loa": {"seconds": 0.32, "clap_dropout": 0.5, "pool": 0},
    "ldm": {"seconds": 0.32, "prompt_dropout": 0.5},
}  # fmt: skip


def stage_of(name: str, checkpoint: storage.Checkpoint, **values) -> Stage:
    checkpoint = hearing(checkpoint) if name in READ_SOUNDS else checkpoint
    changes = QUICK[name] | {"batch": 2, "warmup": 0} | values
    recipe = override(STAGES[name].recipes["small"], changes, "the test's recipe")
    return STAGES[name](checkpoint, recipe, torch.device("cpu"), seed=5)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = storage.read(folder / "model")
    return {f"{name}.{key}": x for name, state in checkpoint.states.items() for key, x in state().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in STAGES.items() if not kind.adapts])
def test_resumed_run_equals_an_uninterrupted_one(name: str, initial: storage.Checkpoint, tmp_path: Path):
    data, intervals = Clips(QUICK[name]["seconds"]), loop.Intervals(save=2, sample=0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert loop.train(stage_of(name, initial, steps=3), data, whole, intervals)

    answers = iter([False, True])
    stage = stage_of(name, initial, steps=3)
    assert not loop.train(stage, data, parts, intervals, should_stop=lambda: next(answers))
    assert stage.done == 2 and len(log_of(parts)) == 2
    torch.rand(3)  # the global generators must not matter
    # After a crash, steps that were logged but not saved are repeated.
    with open(parts / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "loss": 0}\n')
    stage = stage_of(name, storage.read(parts / "model"), steps=3)
    run_folder.resume(stage, parts)
    assert loop.train(stage, data, parts, intervals)

    assert log_of(parts) == log_of(whole) and len(log_of(whole)) == 3
    ours, theirs = tensors(parts), tensors(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert storage.read(parts / "model").configs == storage.read(whole / "model").configs


@pytest.mark.slow
def test_samples_and_the_saved_model(initial: storage.Checkpoint, tmp_path: Path):
    reports: list[str] = []
    stage = stage_of("ldm", initial, steps=2)
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=2), report=reports.append)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "model", "samples", "state.pt"}
    files = sorted(path.name for path in (tmp_path / "samples" / "step-0000002").iterdir())
    assert files[:2] == ["0-a_low_tone.png", "0-a_low_tone.wav"] and len(files) == 2 * judging.SAMPLE_CLIPS
    assert reports[0].startswith("step 1/2  loss ") and reports[1].startswith("step 2/2  loss ")
    assert reports[1].endswith(" 0 s left")
    result = audioldm2.load(tmp_path / "model", device="cpu").generate("a bell", audio_length_in_s=0.32)
    assert result.audio.shape == (1, 1, 5120) and result.audio.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kinds", [("vae", {"true", "reconstructed"}), ("vocoder", {"true", "vocoded"})]
)
def test_sample_files(name: str, kinds: set[str], initial: storage.Checkpoint, tmp_path: Path):
    stage = stage_of(name, initial, steps=1)
    loop.train(stage, Clips(0.32), tmp_path, loop.Intervals(sample=1))
    found = [path.stem.split("-")[1] for path in (tmp_path / "samples").rglob("*.wav")]
    assert set(found) == kinds and len(found) == 2 * judging.SAMPLE_CLIPS


def test_nan_loss_stops_without_saving(initial: storage.Checkpoint, tmp_path: Path):
    stage = stage_of("vae", initial, steps=5)
    loop.train(stage_of("vae", initial, steps=1), Clips(0.32), tmp_path, loop.Intervals())
    before = (tmp_path / "state.pt").read_bytes()
    stage.trained["vae"].decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="is nan at step 1; try a lower learning_rate"):
        loop.train(stage, Clips(0.32), tmp_path, loop.Intervals())
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("error", [ValueError("b.wav is gone"), MemoryError(), torch.cuda.OutOfMemoryError()])
def test_error_in_a_step_saves_the_steps_before_it(
    error: Exception, initial: storage.Checkpoint, tmp_path: Path
):
    stage, reports = toy(initial), []

    class Broken(Noise):
        def batch(self, step: int, size: int):
            if step == 3:
                raise error
            return super().batch(step if size else 0, size)

    measured = stage.measure
    stage.measure = lambda waves: measured([])  # which reads the first batches again
    with pytest.raises(type(error)):
        loop.train(stage, Broken(), tmp_path, loop.Intervals(), report=reports.append)
    assert reports[-1] == "saved at step 3, before the error"
    resumed = toy(initial)
    run_folder.resume(resumed, tmp_path)
    assert resumed.done == 3 and len(log_of(tmp_path)) == 3


def test_nan_in_a_batch_saves_the_weights_before_it(initial: storage.Checkpoint, tmp_path: Path):
    class Poisoned(Noise):
        def batch(self, step: int, size: int):
            wave, captions = super().batch(step, size)
            return wave * (float("nan") if step == 3 else 1.0), captions

    with pytest.raises(FloatingPointError, match="the loss is nan at step 4; try a lower learning_rate"):
        loop.train(toy(initial), Poisoned(), tmp_path, loop.Intervals())
    whole = tmp_path / "whole"
    whole.mkdir()
    answers = iter([False, False, True])
    loop.train(toy(initial), Noise(), whole, loop.Intervals(), should_stop=lambda: next(answers))
    ours, theirs = tensors(tmp_path), tensors(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_step_that_failed_half_way_is_not_saved(initial: storage.Checkpoint, tmp_path: Path):
    stage, reports = toy(initial), []
    loop.train(stage, Noise(), tmp_path, loop.Intervals(), should_stop=lambda: stage.done == 2)
    before = (tmp_path / "state.pt").read_bytes()
    update = stage.ema["projection"].update

    def fail(n: int) -> None:
        if n == 4:
            raise MemoryError
        update(n)

    stage.ema["projection"].update = fail
    with pytest.raises(MemoryError):
        loop.train(stage, Noise(), tmp_path, loop.Intervals(), report=reports.append)
    assert reports[-1].startswith("step 4 failed half-way") and reports[-1].endswith("holds step 2")
    assert (tmp_path / "state.pt").read_bytes() == before


def test_edited_recipe_is_refused_and_other_data_are_reported(initial: storage.Checkpoint, tmp_path: Path):
    loop.train(toy(initial), Named("ten sounds"), tmp_path, loop.Intervals())
    edited = toy(initial, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"run\.json was edited: learning_rate is 0\.5 and was 0\.0001"):
        run_folder.resume(edited, tmp_path)
    assert run_folder.resume(toy(initial, steps=9), tmp_path, Named("ten sounds")) == []
    notes = run_folder.resume(toy(initial), tmp_path, Named("nine sounds"))
    assert notes == ["the data differ: nine sounds, and before ten sounds"]


def test_second_process_in_a_run_is_refused(tmp_path: Path):
    other = run_folder.opened(tmp_path)
    with run_folder.opened(tmp_path), pytest.raises(ValueError, match="another process trains in"):
        other.__enter__()
    with run_folder.opened(tmp_path) as repaired:
        assert repaired == []


def test_drafts_of_a_killed_process_are_removed_and_reported(tmp_path: Path):
    (tmp_path / ".audioldm2-1-0123abcd.pt").write_bytes(b"x" * 2_000_000)
    with run_folder.opened(tmp_path) as repaired:
        assert repaired == [f"removed 2.0 MB of drafts that a killed process left in {tmp_path}"]
    assert list(tmp_path.iterdir()) == []


class Named(Noise):
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def toy(checkpoint: storage.Checkpoint, **values) -> Toy:
    return Toy(checkpoint, replace(Toy.recipes["small"], **values), torch.device("cpu"))


def test_errors_of_the_dataset_are_raised(initial: storage.Checkpoint, tmp_path: Path):
    class Broken(Clips):
        def batch(self, step: int, size: int):
            raise ValueError("b.wav is gone")

    with pytest.raises(ValueError, match=r"b\.wav is gone"):
        loop.train(stage_of("vae", initial), Broken(), tmp_path, loop.Intervals())


def test_rejects_the_state_of_another_run(initial: storage.Checkpoint, tmp_path: Path):
    loop.train(stage_of("vae", initial, steps=1), Clips(0.32), tmp_path, loop.Intervals())
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        run_folder.resume(stage_of("clap", initial), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        run_folder.resume(stage_of("vae", initial), tmp_path)


def test_run_without_a_save_restarts(initial: storage.Checkpoint, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0}\n')
    stage = stage_of("vae", initial)
    run_folder.resume(stage, tmp_path)
    assert stage.done == 0 and log_of(tmp_path) == []


def test_rejects_intervals_below_one():
    with pytest.raises(ValueError, match="save is 0; it has to be a whole number of at least 1"):
        loop.Intervals(save=0)
    assert replace(loop.Intervals(), sample=0).sample == 0
