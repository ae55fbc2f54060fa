"""The loop: what it writes, that it goes on to the bit, and that it stops when it must."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.training import STAGES, Stage, loop
from audioldm2.training.recipe import changed
from tests.support.training import Clips, untrained

QUICK = {
    "vae": {"seconds": 0.32, "adversary_from": 2, "adversary_width": 8, "ema": 0.9},
    "vocoder": {
        "lines_until": 0,
        "seconds": 0.256, "additive_until": 1, "adversary_from": 2, "adversary_width": 4, "through_vae": 0.5
    },
    "clap": {"seconds": 0.8},
    "ldm": {"seconds": 0.32, "prompt_dropout": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> storage.Checkpoint:
    return untrained(tmp_path_factory.mktemp("vocabularies"))


def stage_of(name: str, checkpoint: storage.Checkpoint, **values) -> Stage:
    recipe = changed(STAGES[name].recipes["small"], QUICK[name] | {"batch": 2, "warmup": 0} | values, "it")
    return STAGES[name](checkpoint, recipe, torch.device("cpu"), seed=5)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = storage.read(folder / "model")
    return {f"{name}.{key}": x for name, state in checkpoint.states.items() for key, x in state().items()}


@pytest.mark.parametrize("name", list(STAGES))
def test_a_run_goes_on_as_if_it_had_not_been_stopped(name: str, start: storage.Checkpoint, tmp_path: Path):
    data, often = Clips(QUICK[name]["seconds"]), loop.Cadence(save=2, sample=0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert loop.train(stage_of(name, start, steps=6), data, whole, often)

    asked = iter([False, False, False, True])
    stage = stage_of(name, start, steps=6)
    assert not loop.train(stage, data, parts, often, stopped=lambda: next(asked))
    assert stage.done == 4 and len(lines(parts)) == 4
    torch.rand(3)  # the global generators do not matter
    # Steps that were logged but not saved, as after a crash, are done again.
    with open(parts / "metrics.jsonl", "a") as log:
        log.write('{"step": 5, "loss": 0}\n')
    stage = stage_of(name, storage.read(parts / "model"), steps=6)
    loop.resume(stage, parts)
    assert loop.train(stage, data, parts, often)

    assert lines(parts) == lines(whole) and len(lines(whole)) == 6
    ours, theirs = tensors(parts), tensors(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert storage.read(parts / "model").configs == storage.read(whole / "model").configs


def test_what_was_written_generates_and_is_heard_while_training(start: storage.Checkpoint, tmp_path: Path):
    said: list[str] = []
    stage = stage_of("ldm", start, steps=2)
    loop.train(stage, Clips(0.32), tmp_path, loop.Cadence(sample=2), say=said.append)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "model", "samples", "state.pt"}
    heard = sorted(path.name for path in (tmp_path / "samples" / "step-0000002").iterdir())
    assert heard[:2] == ["0-a_low_tone.png", "0-a_low_tone.wav"] and len(heard) == 2 * loop.CLIPS
    assert said[0].startswith("step 1/2  loss ") and said[1].startswith("step 2/2  loss ")
    assert said[1].endswith(" 0 s left")
    result = audioldm2.load(tmp_path / "model", device="cpu").generate("a bell", audio_length_in_s=0.32)
    assert result.audio.shape == (1, 1, 5120) and result.audio.isfinite().all()


@pytest.mark.parametrize(
    "name, kinds", [("vae", {"true", "reconstructed"}), ("vocoder", {"true", "vocoded"})]
)
def test_what_a_stage_lets_one_hear(name, kinds, start: storage.Checkpoint, tmp_path: Path):
    stage = stage_of(name, start, steps=1)
    loop.train(stage, Clips(0.32), tmp_path, loop.Cadence(sample=1))
    heard = [path.stem.split("-")[1] for path in (tmp_path / "samples").rglob("*.wav")]
    assert set(heard) == kinds and len(heard) == 2 * loop.CLIPS


def test_a_loss_that_is_no_number_stops_and_saves_nothing(start: storage.Checkpoint, tmp_path: Path):
    stage = stage_of("vae", start, steps=5)
    loop.train(stage_of("vae", start, steps=1), Clips(0.32), tmp_path, loop.Cadence())
    before = (tmp_path / "state.pt").read_bytes()
    stage.trained["vae"].decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="is nan at step 1; try a lower learning_rate"):
        loop.train(stage, Clips(0.32), tmp_path, loop.Cadence())
    assert (tmp_path / "state.pt").read_bytes() == before


def test_what_goes_wrong_with_the_data_comes_through(start: storage.Checkpoint, tmp_path: Path):
    class Broken(Clips):
        def batch(self, step, size):
            raise ValueError("b.wav is gone")

    with pytest.raises(ValueError, match=r"b\.wav is gone"):
        loop.train(stage_of("vae", start), Broken(), tmp_path, loop.Cadence())


def test_a_state_of_another_run_is_refused(start: storage.Checkpoint, tmp_path: Path):
    loop.train(stage_of("vae", start, steps=1), Clips(0.32), tmp_path, loop.Cadence())
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        loop.resume(stage_of("clap", start), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"state\.pt does not hold the state of this run"):
        loop.resume(stage_of("vae", start), tmp_path)


def test_a_run_that_was_stopped_before_it_saved_begins_anew(start: storage.Checkpoint, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0}\n')
    stage = stage_of("vae", start)
    loop.resume(stage, tmp_path)
    assert stage.done == 0 and lines(tmp_path) == []


def test_cadences_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="save of at least 1"):
        loop.Cadence(save=0)
    assert replace(loop.Cadence(), sample=0).sample == 0
