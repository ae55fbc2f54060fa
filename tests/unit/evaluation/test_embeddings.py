"""Vectors of files: from CLAP once, from the disk afterwards."""

import pytest
import torch

from audioldm2.audio import write_wav
from audioldm2.evaluation.embeddings import embed_file


class Counting:
    """A judge that embeds a sound as its length and rate, and counts how often it is asked."""

    digest = "0123456789abcdef"

    def __init__(self) -> None:
        self.asked = 0

    def of_sounds(self, sounds, rate: int) -> torch.Tensor:
        self.asked += 1
        return torch.tensor([[float(len(sounds[0])), float(rate)]])


@pytest.fixture
def sound(tmp_path):
    write_wav(tmp_path / "a.wav", 0.1 * torch.randn(1000), 16_000)
    return tmp_path / "a.wav"


def test_vector_is_computed_once(sound, tmp_path):
    judge, cache = Counting(), tmp_path / "cache"
    first = embed_file(judge, sound, cache=cache)
    renamed = sound.rename(tmp_path / "b.wav")
    assert torch.equal(embed_file(judge, renamed, cache=cache), first) and judge.asked == 1
    assert not [path for path in cache.rglob(".*")]  # no draft is left


def test_other_content_rate_or_clap_is_computed_anew(sound, tmp_path):
    judge, cache = Counting(), tmp_path / "cache"
    embed_file(judge, sound, cache=cache)
    assert embed_file(judge, sound, (8000,), cache).tolist() == [500, 8000]
    write_wav(sound, 0.1 * torch.randn(1000), 16_000)
    embed_file(judge, sound, cache=cache)
    judge.digest = "another"
    embed_file(judge, sound, cache=cache)
    assert judge.asked == 4


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_vector_is_computed_anew(sound, tmp_path, damage):
    judge, cache = Counting(), tmp_path / "cache"
    first = embed_file(judge, sound, cache=cache)
    (kept,) = cache.rglob("*.npy")
    kept.write_bytes(damage)
    assert torch.equal(embed_file(judge, sound, cache=cache), first) and judge.asked == 2
    assert torch.equal(embed_file(judge, sound, cache=cache), first) and judge.asked == 2


def test_sound_whose_vector_is_nan_is_refused(sound, tmp_path):
    judge = Counting()
    judge.of_sounds = lambda sounds, rate: torch.full((1, 2), torch.nan)
    with pytest.raises(ValueError, match=r"a\.wav has no vector: CLAP computes NaN"):
        embed_file(judge, sound, cache=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
