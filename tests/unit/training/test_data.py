"""Datasets: folders of captioned sounds, messages about unusable ones, random generators, pools."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2.audio import SAMPLE_RATE
from audioldm2.training import randomness
from audioldm2.training.data import Folder, Pool, crop_or_pad
from tests.support.training import CAPTIONS, write_sounds


def write_tone(path: Path, seconds: float = 0.5, rate: int = SAMPLE_RATE, channels: int = 1, hz: float = 440):
    t = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.stack([np.sin(2 * np.pi * hz * t)] * channels, axis=1) / 2, rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sounds(tmp_path / "sounds")


def test_batch_is_a_function_of_seed_step_and_size(folder: Path):
    one, other = (Folder(folder, 0.4, SAMPLE_RATE, seed=3) for _ in range(2))
    other.batch(5, 4)  # earlier calls must not matter
    wave, captions = one.batch(2, 4)
    again, captions_again = other.batch(2, 4)
    assert wave.shape == (4, 6400) and wave.dtype == torch.float32
    assert torch.equal(wave, again) and captions == captions_again
    assert not torch.equal(wave, Folder(folder, 0.4, SAMPLE_RATE, seed=4).batch(2, 4)[0])


def test_every_epoch_contains_every_sound_once(folder: Path):
    data = Folder(folder, 0.4, SAMPLE_RATE)
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
    wave, captions = Folder(tmp_path, 1.0, SAMPLE_RATE).batch(0, 1)
    assert captions == ["a tone"] and wave.shape == (1, 16_000)
    t = torch.arange(16_000) / SAMPLE_RATE
    error = wave[0] - torch.sin(2 * math.pi * 440 * t) / 2
    assert error[1000:-1000].abs().max() < 1e-3


def test_folder_without_captions_needs_no_table(tmp_path: Path):
    (tmp_path / "deeper").mkdir()
    write_tone(tmp_path / "deeper" / "a.flac")
    (tmp_path / "notes.txt").write_text("not a sound")
    data = Folder(tmp_path, 0.5, SAMPLE_RATE, captioned=False)
    assert data.batch(0, 2)[1] == ["", ""] and data.captions() == []


def test_sounds_beyond_the_cache_are_read_again(folder: Path, monkeypatch):
    cached = Folder(folder, 0.4, SAMPLE_RATE).batch(1, 10)[0]
    monkeypatch.setattr("audioldm2.training.data.CACHE_BYTES", 50_000)
    data = Folder(folder, 0.4, SAMPLE_RATE)
    data.batch(0, 10)
    assert 0 < len(data._decoded) < 10
    assert torch.equal(data.batch(1, 10)[0], cached)


def with_table(text: str, name: str = "captions.csv"):
    def make(folder: Path) -> None:
        write_tone(folder / "a.wav")
        (folder / name).write_bytes(text.encode("latin-1"))

    return make


def two_tables(folder: Path) -> None:
    with_table("file,caption\na.wav,a tone\n")(folder)
    (folder / "more.jsonl").write_text("")


def no_sound(folder: Path) -> None:
    (folder / "a.wav").write_text("hello")
    (folder / "captions.csv").write_text("file,caption\na.wav,a tone\n")


def no_samples(folder: Path) -> None:
    soundfile.write(folder / "a.wav", np.zeros(0), SAMPLE_RATE)
    (folder / "captions.csv").write_text("file,caption\na.wav,a tone\n")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder.rmdir(), "is not a folder"),
        (lambda folder: None, "has no captions: it needs a .csv"),
        (with_table("file,caption\n"), "lists no sounds"),
        (with_table("file,caption\nb.wav,a bell\n"), "names 'b.wav', which cannot be found"),
        (with_table("file,text\na.wav,a bell\n"), "has no column 'caption'"),
        (with_table(""), "has no column 'file', 'caption'"),
        (with_table("file,caption\na.wav,\n"), "line 2: 'file' and 'caption' have to be"),
        (with_table("file,caption\na.wav\n"), "line 2: 'file' and 'caption' have to be"),
        (with_table("file,caption\na.wav,caf\xe9\n"), "cannot be read as a table in UTF-8"),
        (
            with_table('{"file": "a.wav"}\n', "a.jsonl"),
            "line 1: 'file' and 'caption' have to be",
        ),
        (
            with_table('["a.wav", "a tone"]\n', "a.jsonl"),
            "line 1: 'file' and 'caption' have to be",
        ),
        (with_table("{file}\n", "a.jsonl"), "cannot be read as a table in UTF-8"),
        (two_tables, "keep only one table"),
        (no_sound, "a.wav is not a readable sound file"),
        (no_samples, "a.wav is empty"),
    ],
)
def test_unusable_folder_raises_one_sentence(tmp_path: Path, make, message: str):
    folder = tmp_path / "sounds"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=message) as error:
        Folder(folder, 0.5, SAMPLE_RATE)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_rejects_nan_samples(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan] * 100), SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "captions.csv").write_text("file,caption\na.wav,a tone\n")
    with pytest.raises(ValueError, match=r"a\.wav .*NaN or infinite"):
        Folder(tmp_path, 0.01, SAMPLE_RATE).batch(0, 1)


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
