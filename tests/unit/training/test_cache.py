"""The cache of latents and text vectors: same losses, what is computed when, killed writers, full disks."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioldm2.audio import SAMPLE_RATE
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training import cache as cache_file
from audioldm2.training import loop
from audioldm2.training.cache import TensorCache, key_of
from audioldm2.training.data import distinct
from audioldm2.training.distributed import Ranks
from audioldm2.training.ldm import LDMStage
from audioldm2.training.mixing import Mixed
from audioldm2.training.sources import ClipSettings, open_data
from tests.support.training import CAPTIONS, Clips, hearing, stage_of, write_sounds

SHORT = {"batch": 3, "seconds": 0.32, "pool": 0, "learning_rate": 1e-5, "prompt_dropout": 0.4,
         "clap_dropout": 0.4, "train_t5": False}  # fmt: skip


class Repeating(Clips):
    """The same few clips again and again."""

    def distinct(self) -> int:
        return 3


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the caches of a test lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "audioldm2" / "training"


def never() -> bool:
    return False


def losses(stage: LDMStage) -> list[float]:
    """Of a few steps, after what `loop.train` does before the first."""
    data = Repeating(0.32)
    stage.compute_ahead(data, None, lambda line: None, never)
    return [stage.step(*data.batch(step, 3))["loss"] for step in range(4)]


def loaded(stage: LDMStage) -> set[str]:
    return set(stage.networks._loaded)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "unconditional"), [("ldm", "trained"), ("lora", "reference")])
def test_losses_are_those_without_a_cache(
    name: str, unconditional: str, random_weights: Checkpoint, tmp_path: Path, place: Path
):
    values = SHORT | {"unconditional": unconditional}
    plain = losses(stage_of(name, random_weights, **values))
    for _ in ("an empty cache", "a filled one"):
        stage = stage_of(name, random_weights, **values, cache_gb=1.0)
        assert losses(stage) == pytest.approx(plain, rel=1e-6)
        assert not {"vae", "clap_text", "t5"} & loaded(stage), "what the cache holds is freed"
    assert len(list(place.glob("*.safetensors"))) == 3 + 2 * (len(CAPTIONS) + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"cache_gb": 1.0, "accumulate": 2}, {"accumulate": 3}], ids=["cache", "parts"]
)
@pytest.mark.parametrize(
    "loa", [{"gt_loa": 0.25, "loa_weight": 2.0}, {"gt_loa": 1.0}], ids=["joint", "alone"]
)
def test_losses_with_loa_are_those_without_a_cache_and_in_one_part(
    loa: dict, more: dict, random_weights: Checkpoint, place: Path
):
    checkpoint, values = hearing(random_weights), SHORT | loa | {"unconditional": "trained"}
    plain = losses(stage_of("ldm", checkpoint, **values))
    for _ in ("an empty cache", "a filled one"):
        assert losses(stage_of("ldm", checkpoint, **values, **more)) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_second_run_computes_nothing(random_weights: Checkpoint, tmp_path: Path, place: Path, monkeypatch):
    losses(stage_of("ldm", random_weights, **SHORT, cache_gb=1.0))
    stage = stage_of("ldm", random_weights, **SHORT, cache_gb=1.0)
    for name in ("vae", "clap_text", "t5"):
        stage.networks.release(name)
    monkeypatch.setattr("audioldm2.runtime.placement.materialise", None)
    losses(stage)


@pytest.mark.slow
def test_trained_t5_is_not_kept(random_weights: Checkpoint, tmp_path: Path, place: Path):
    values = SHORT | {"train_t5": True}
    plain = losses(stage_of("ldm", random_weights, **values))
    stage = stage_of("ldm", random_weights, **values, cache_gb=1.0)
    assert losses(stage) == pytest.approx(plain, rel=1e-6)
    assert "t5" in loaded(stage) and "clap_text" not in loaded(stage)


@pytest.mark.slow
def test_keys_follow_clip_weights_and_precision(random_weights: Checkpoint, place: Path):
    def entries(stage: LDMStage, wave: Tensor) -> set[str]:
        before = {path.name for path in place.glob("*")}
        stage.prepare(wave)
        return {path.name for path in place.glob("*")} - before

    wave = Clips(0.32).batch(0, 2)[0]
    stage = stage_of("ldm", random_weights, cache_gb=1.0)
    assert len(entries(stage, wave)) == 2 and not entries(stage, wave.flip(0))
    assert len(entries(stage, 0.5 * wave)) == 2, "another level"
    assert len(entries(stage_of("ldm", random_weights, cache_gb=1.0, bf16=True), wave)) == 2
    state = {key: tensor + 1e-3 for key, tensor in random_weights.states["vae"]().items()}
    other = replace(random_weights, states=random_weights.states | {"vae": lambda: state})
    assert len(entries(stage_of("ldm", other, cache_gb=1.0), wave)) == 2


def test_clips_that_never_repeat_are_refused(random_weights: Checkpoint, tmp_path: Path, place: Path):
    stage = stage_of("ldm", random_weights, **SHORT, cache_gb=1.0)
    with pytest.raises(
        ArgumentError, match=r"cache_gb is 1\.0; it has to be 0 where every clip is a new one"
    ):
        loop.train(stage, Clips(0.32), tmp_path, loop.Intervals())
    pooled = stage_of("ldm", random_weights, **SHORT | {"pool": 6}, cache_gb=1.0)
    pooled.compute_ahead(Clips(0.32), None, lambda line: None, never)
    assert "vae" not in loaded(pooled)


def test_fixed_crops_repeat(tmp_path: Path):
    folder = write_sounds(tmp_path / "sounds")  # ten sounds of 0.5 to 1.4 s
    settings = ClipSettings(0.32, SAMPLE_RATE, crops=2)
    data = open_data(folder, settings)
    assert distinct(data) == 20 and distinct(open_data(folder, replace(settings, crops=0))) is None
    assert distinct(open_data(folder, replace(settings, seconds=1.5, crops=0))) == 10

    def clips(first: int, size: int) -> set[str]:
        return {key_of(wave) for wave in data.batch(first, size)[0]}

    assert len(clips(0, 20)) == 20 and clips(1, 20) == clips(0, 20)
    assert clips(0, 10) != clips(1, 10) and clips(0, 10) == clips(2, 10)
    mixed = Mixed(data, data, 0.25)
    waves, _ = mixed.batch(0, distinct(mixed))
    assert {key_of(wave) for wave in waves} == clips(0, 20)


@pytest.mark.slow
def test_full_cache_keeps_what_it_has_and_training_goes_on(
    random_weights: Checkpoint, tmp_path: Path, place: Path
):
    plain = losses(stage_of("ldm", random_weights, **SHORT))
    stage = stage_of("ldm", random_weights, **SHORT, cache_gb=1e-5)
    assert losses(stage) == pytest.approx(plain, rel=1e-6)
    assert {"vae", "clap_text", "t5"} <= loaded(stage)
    assert sum(path.stat().st_size for path in place.glob("*")) < 20_000


@pytest.mark.slow
def test_full_disk_does_not_end_the_run(random_weights: Checkpoint, tmp_path: Path, place: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file, "save_file", refuse)
    stage = stage_of("ldm", random_weights, **SHORT, cache_gb=1.0)
    assert len(losses(stage)) == 4
    assert "vae" in loaded(stage) and not list(place.iterdir())


def test_damaged_entry_is_computed_again_and_drafts_are_removed(tmp_path: Path):
    cache = TensorCache(tmp_path, 1e6)
    kept = cache.get(["a", "b", "a"], lambda missing: [torch.full((2,), float(place)) for place in missing])
    assert [float(each[0]) for each in kept] == [0, 1, 0]
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    (tmp_path / ".audioldm2-99999999-0123abcd.safetensors").write_bytes(b"draft of a killed process")
    cache = TensorCache(tmp_path, 1e6)
    again = cache.get(["a", "b"], lambda missing: [torch.full((2,), 7.0) for _ in missing])
    assert [float(each[0]) for each in again] == [7, 1]
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors"}


def test_entry_that_disappears_during_the_run_is_computed_again(
    random_weights: Checkpoint, tmp_path: Path, place: Path
):
    stage = stage_of("ldm", random_weights, **SHORT, cache_gb=1.0)
    stage.compute_ahead(Repeating(0.32), None, lambda line: None, never)
    wave = Repeating(0.32).batch(0, 3)[0]
    expected = stage.prepare(wave)
    for path in place.iterdir():
        path.unlink()
    torch.testing.assert_close(stage.prepare(wave), expected, rtol=0, atol=1e-6)
    assert "vae" in loaded(stage)


@pytest.mark.slow
def test_ranks_divide_the_filling(random_weights: Checkpoint, place: Path, monkeypatch):
    """Each of two computes its part; a vote says whether the cache is complete on both."""
    computed, votes, answer = [], [], {"any": False}

    def any_rank(ranks: Ranks, value: object) -> bool:
        votes.append(bool(value))
        return bool(value) or answer["any"]

    monkeypatch.setattr(Ranks, "any", any_rank)
    for rank in (0, 1):
        stage = stage_of("ldm", random_weights, **SHORT | {"batch": 2}, cache_gb=1.0)
        stage.ranks = Ranks(rank, 2)
        before = len(list(place.glob("*")))
        stage.compute_ahead(Repeating(0.32), None, lambda line: None, never)
        computed.append(len(list(place.glob("*"))) - before)
        assert "vae" not in loaded(stage)
    assert all(computed) and votes == [False, False]
    whole = sum(computed)
    alone = stage_of("ldm", random_weights, **SHORT | {"batch": 2}, cache_gb=1.0)
    alone.compute_ahead(Repeating(0.32), None, lambda line: None, never)
    assert len(list(place.glob("*"))) == whole  # nothing was left out
    answer["any"] = True  # the other rank's disk is full
    stage = stage_of("ldm", random_weights, **SHORT | {"batch": 2}, cache_gb=1.0)
    stage.ranks = Ranks(0, 2)
    stage.compute_ahead(Repeating(0.32), None, lambda line: None, never)
    assert "vae" in loaded(stage)
