"""Batches: crops, levels, captions, threads, files that go bad; random generators, pools."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2.audio import SAMPLE_RATE
from audioldm2.training import data as data_module
from audioldm2.training import randomness
from audioldm2.training.data import AtTrainedLevel, Pool, Sounds, crop_or_pad
from audioldm2.training.sources import ClipSettings, open_data
from tests.support.training import CAPTIONS, write_sounds


def write_tone(path: Path, seconds: float = 0.5, rate: int = SAMPLE_RATE, channels: int = 1, hz: float = 440):
    t = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.stack([np.sin(2 * np.pi * hz * t)] * channels, axis=1) / 2, rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sounds(tmp_path / "sounds")


def sounds_of(folder: Path, seconds: float = 0.4, sample_rate: int = SAMPLE_RATE, **named) -> Sounds:
    return open_data(folder, ClipSettings(seconds, sample_rate, **named))


def test_batch_is_a_function_of_seed_step_and_size(folder: Path):
    one, other = (sounds_of(folder, seed=3) for _ in range(2))
    other.batch(5, 4)  # earlier calls must not matter
    wave, captions = one.batch(2, 4)
    again, captions_again = other.batch(2, 4)
    assert wave.shape == (4, 6400) and wave.dtype == torch.float32
    assert torch.equal(wave, again) and captions == captions_again
    assert not torch.equal(wave, sounds_of(folder, seed=4).batch(2, 4)[0])


def test_every_epoch_contains_every_sound_once(folder: Path):
    data = sounds_of(folder)
    orders = [data.batch(step, 10)[1] for step in range(3)]
    assert all(sorted(order) == sorted(CAPTIONS) for order in orders)
    assert orders[0] != orders[1]


def test_long_sounds_are_cropped_at_random_and_short_ones_padded():
    wave = torch.arange(10.0)
    starts = {int(crop_or_pad(wave, 4, randomness.rng("test", i))[0]) for i in range(200)}
    assert starts == set(range(7))
    assert crop_or_pad(wave, 13, randomness.rng("test")).tolist() == [*range(10), 0, 0, 0]
    assert crop_or_pad(wave, 13, randomness.rng("test"), "repeat").tolist() == [*range(10), 0, 1, 2]


def test_sounds_are_mixed_to_mono_and_resampled(tmp_path: Path):
    write_tone(tmp_path / "a.wav", 1.0, rate=44_100, channels=2)
    (tmp_path / "list.jsonl").write_text('{"file": "a.wav", "caption": "a tone", "more": 1}\n\n')
    wave, captions = sounds_of(tmp_path, 1.0).batch(0, 1)
    assert captions == ["a tone"] and wave.shape == (1, 16_000)
    t = torch.arange(16_000) / SAMPLE_RATE
    error = wave[0] - torch.sin(2 * math.pi * 440 * t) / 2
    assert error[1000:-1000].abs().max() < 1e-3


def test_folder_without_captions_needs_no_table(tmp_path: Path):
    (tmp_path / "deeper").mkdir()
    write_tone(tmp_path / "deeper" / "a.flac")
    (tmp_path / "notes.txt").write_text("not a sound")
    data = sounds_of(tmp_path, 0.5, captioned=False)
    assert data.batch(0, 2)[1] == ["", ""] and data.captions() == []


def test_sounds_beyond_the_cache_are_read_again(folder: Path, monkeypatch):
    cached = sounds_of(folder).batch(1, 10)[0]
    monkeypatch.setattr("audioldm2.training.data.CACHE_BYTES", 50_000)
    data = sounds_of(folder)
    data.batch(0, 10)
    assert 0 < len(data._decoded) < 10
    assert torch.equal(data.batch(1, 10)[0], cached)


# Levels -----------------------------------------------------------------------------------------------------


def write_wave(folder: Path, wave: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    soundfile.write(folder / "a.wav", wave, rate, subtype="FLOAT")
    (folder / "captions.csv").write_text("file,caption\na.wav,a sound\n")
    return folder


def test_normalized_clips_have_no_mean_and_a_peak_of_half(tmp_path: Path):
    wave = 0.01 * np.sin(np.arange(32_000) / 9) * np.linspace(0, 1, 32_000) + 0.2
    write_wave(tmp_path, wave)
    clips, _ = sounds_of(tmp_path, 0.5, normalize=True).batch(0, 8)
    torch.testing.assert_close(clips.abs().amax(dim=1), torch.full((8,), 0.5))
    assert clips.mean(dim=1).abs().max() < 1e-6
    plain, _ = sounds_of(tmp_path, 0.5).batch(0, 8)
    assert plain.min() > 0.18 and plain.max() < 0.22


def test_short_sound_is_normalized_before_it_is_padded(tmp_path: Path):
    """As upstream does it: padding is silence, and does not move the mean."""
    write_wave(tmp_path, np.linspace(0.1, 0.2, 1000))
    clips, _ = sounds_of(tmp_path, 0.125, normalize=True).batch(0, 1)
    assert clips[0, 1000:].abs().max() == 0
    torch.testing.assert_close(clips[0, :1000], torch.linspace(-0.5, 0.5, 1000), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [4.0, 80.0])
def test_silent_crops_are_drawn_again(tmp_path: Path, seconds: float):
    """In the end the clip is taken around the loudest sample: here most draws miss the only sound."""
    wave = np.zeros(round(seconds * 8000))
    wave[3000:3400] = 0.3 * np.sin(np.arange(400) / 3)
    write_wave(tmp_path, wave, 8000)
    clips, _ = sounds_of(tmp_path, 0.25, 8000, normalize=True).batch(0, 12)
    torch.testing.assert_close(clips.abs().amax(dim=1), torch.full((12,), 0.5))
    plain, _ = sounds_of(tmp_path, 0.25, 8000).batch(0, 12)
    assert (plain.abs().amax(dim=1) == 0).any()


def test_sources_without_a_level_are_brought_to_it():
    class Quiet:
        def batch(self, step: int, size: int):
            return torch.stack([0.01 * torch.sin(torch.arange(800) / 5) + 0.1, torch.zeros(800)]), ["a", "b"]

        def captions(self) -> list[str]:
            return ["a", "b"]

    clips, captions = AtTrainedLevel(Quiet()).batch(0, 2)
    assert captions == ["a", "b"]
    assert clips[0].abs().max() == pytest.approx(0.5) and clips[1].abs().max() == 0


# Captions, long files, threads, files that go bad -----------------------------------------------------------


def test_one_caption_of_several_is_drawn_in_each_epoch(tmp_path: Path):
    write_tone(tmp_path / "a.wav")
    write_tone(tmp_path / "b.wav")
    names = "caption_1,caption_2,caption_3,caption_4,caption_5"
    (tmp_path / "clotho.csv").write_text(f"file_name,{names}\na.wav,1,2,3,4,5\nb.wav,6,7,8,9,10\n")
    data = sounds_of(tmp_path)
    assert len(data) == 2 and len(data.captions()) == 10
    epochs = [data.batch(step, 2)[1] for step in range(60)]
    assert all(sum(int(each) <= 5 for each in captions) == 1 for captions in epochs)
    assert {each for captions in epochs for each in captions} == {str(each) for each in range(1, 11)}
    assert epochs == [sounds_of(tmp_path).batch(step, 2)[1] for step in range(60)]


def test_long_file_is_read_in_parts_that_equal_the_crops_of_the_whole(tmp_path: Path, monkeypatch):
    wave = 0.1 * np.random.default_rng(0).standard_normal(65 * 22_050)
    write_wave(tmp_path, wave, 22_050)
    read: list[Path] = []
    monkeypatch.setattr(data_module, "read", lambda file: read.append(file))
    parts = sounds_of(tmp_path).batch(0, 6)[0]
    assert read == []
    monkeypatch.undo()
    monkeypatch.setattr(data_module, "WHOLE_SECONDS", 100)
    torch.testing.assert_close(parts, sounds_of(tmp_path).batch(0, 6)[0], atol=1e-6, rtol=0)


def test_batches_do_not_depend_on_the_number_of_threads(folder: Path, monkeypatch):
    monkeypatch.setattr(data_module, "WHOLE_SECONDS", 0.9)  # some are read whole, some in parts
    expected = [sounds_of(folder, normalize=True).batch(step, 7) for step in range(4)]
    for workers in (2, 5):
        data = sounds_of(folder, normalize=True, workers=workers)
        for step in (2, 0, 3, 1):
            wave, captions = data.batch(step, 7)
            assert torch.equal(wave, expected[step][0]) and captions == expected[step][1]


@pytest.mark.parametrize("whole_seconds", [0.1, 60.0])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("change, words", [("delete", "is gone"), ("replace", "changed")])
def test_file_that_goes_bad_later_is_named(tmp_path, change, words, workers, whole_seconds, monkeypatch):
    monkeypatch.setattr(data_module, "WHOLE_SECONDS", whole_seconds)
    write_wave(tmp_path, np.full(16_000, 0.1))
    data = sounds_of(tmp_path, workers=workers)
    (tmp_path / "a.wav").unlink()
    if change == "replace":
        write_tone(tmp_path / "a.wav", 0.2)
    with pytest.raises(ValueError, match=rf"a\.wav {words} since it was checked; .*--resume"):
        data.batch(0, 2)


def test_digest_knows_the_sounds_and_their_captions(folder: Path):
    before = sounds_of(folder).digest()
    assert before == sounds_of(folder, seed=9).digest()
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace("a low tone", "a lower tone"))
    assert sounds_of(folder).digest() != before


# Random generators ------------------------------------------------------------------------------------------


def test_generators_depend_on_purpose_and_numbers_alone():
    before = torch.get_rng_state()
    with randomness.forked_rng(torch.device("cpu"), "test", 1, 2):
        drawn = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with randomness.forked_rng(torch.device("cpu"), "test", 1, 2):
        assert torch.equal(torch.rand(3), drawn)
    draws = [
        torch.rand(3, generator=randomness.generator(*which))
        for which in (("test", 1, 2), ("test", 2, 1), ("test", 1), ("other", 1, 2))
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


# Pools ----------------------------------------------------------------------------------------------------


class Counting:
    """A dataset whose clips are their own index; it records the batches that are read."""

    def __init__(self):
        self.steps: list[int] = []

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, list[str]]:
        self.steps.append(step)
        numbers = range(step * size, (step + 1) * size)
        return torch.tensor([[float(number)] for number in numbers]), [str(number) for number in numbers]


def test_pool_prepares_each_clip_once_and_shuffles_every_epoch():
    data, prepared = Counting(), []

    def prepare(wave: torch.Tensor) -> torch.Tensor:
        prepared.append(len(wave))
        return wave * 2

    pool = Pool(data, prepare, clips=10, size=4, seed=0)
    batches = [pool.batch(step) for step in range(10)]  # 40 clips: four epochs of ten
    assert data.steps == [0, 1, 2] and prepared == [4, 4, 4]
    order = [int(caption) for _, captions in batches for caption in captions]
    epochs = [order[first : first + 10] for first in range(0, 40, 10)]
    assert epochs[0] == list(range(10)) and all(sorted(each) == list(range(10)) for each in epochs)
    assert epochs[1] != epochs[0] and epochs[1] != epochs[2]
    for clips, captions in batches:
        assert clips.flatten().tolist() == [2.0 * int(caption) for caption in captions]


def test_pool_that_starts_midway_returns_the_same_clips():
    whole, later = (Pool(Counting(), lambda wave: wave, clips=6, size=4, seed=3) for _ in range(2))
    expected = [whole.batch(step)[1] for step in range(8)]
    assert [later.batch(step)[1] for step in range(5, 8)] == expected[5:]
