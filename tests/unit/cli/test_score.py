"""`audioldm2 score`: ranks what can be scored, names the rest."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audioldm2
from audioldm2.audio import write_wav
from tests.support.command_line import CODE, OUT, assert_refused

pytestmark = pytest.mark.usefixtures("folder")
TEXT = ("--prompt", "rain")


@pytest.fixture
def score(run, tiny_folder):
    return lambda *arguments: run("score", *arguments, *TEXT, "--model", tiny_folder, "--device", "cpu")


def write_noise(path: str, rate: int = 16_000, seconds: float = 1.0) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    write_wav(path, 0.1 * torch.randn(round(rate * seconds)), rate)


def write_broken() -> None:
    """A file with NaN, one without sound, one without samples."""
    soundfile.write("nan.wav", np.full(1600, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    Path("text.wav").write_text("not a sound")
    soundfile.write("empty.wav", np.zeros(0, dtype=np.float32), 16_000)


@pytest.mark.slow
def test_ranks_sounds_of_any_rate_best_first(score, tiny_model):
    sounds = {}
    for name, rate, seconds in (("a.wav", 16_000, 1), ("b.flac", 44_100, 2), ("c.ogg", 48_000, 11)):
        wave = 0.2 * torch.randn(rate * seconds) * torch.rand(seconds).repeat_interleave(rate)
        write_wav(name, wave, rate)
        sounds[name] = tiny_model.score("rain", wave, rate).item()
    code, out, err = score(*sounds)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert {file for _, file in lines} == set(sounds)
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    for found, file in lines:
        assert float(found) == pytest.approx(sounds[file], abs=0.02)  # 16 bits; Vorbis loses more


def test_bad_files_are_named_and_the_others_ranked(score):
    write_noise("a.wav")
    write_noise("b.wav")
    write_broken()
    code, out, err = score("nan.wav", "a.wav", "text.wav", "nowhere.wav", "empty.wav", "b.wav")
    assert code == 0
    assert {line.split()[1] for line in out.splitlines()} == {"a.wav", "b.wav"} and "nan" not in out
    lines = err.splitlines()
    assert [line.split()[4].rstrip(":") for line in lines] == [
        "nan.wav",
        "text.wav",
        "nowhere.wav",
        "empty.wav",
    ]
    assert all(line.startswith("audioldm2: note: left out: ") for line in lines)
    assert "NaN" in lines[0] and "No such file" in lines[2]


def test_nothing_to_rank_is_an_error(score):
    write_broken()
    code, out, err = score("nan.wav", "text.wav")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "audioldm2: error: none of the 2 sounds could be scored."


def test_score_that_is_nan_is_left_out(score, monkeypatch):
    write_noise("a.wav")
    write_noise("b.wav")
    scores = iter([torch.tensor([float("nan")]), torch.tensor([0.25])])
    monkeypatch.setattr(audioldm2.AudioLDM2, "score", lambda *_: next(scores))
    code, out, err = score("a.wav", "b.wav")
    assert (code, out) == (0, "+0.2500  b.wav\n")
    assert "left out: a.wav has the score nan" in err


def test_file_that_does_not_fit_into_memory_is_left_out(score, monkeypatch):
    write_noise("a.wav")
    write_noise("b.wav")

    def starved(model, text, wave, rate):
        if not calls:
            calls.append(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return torch.tensor([0.25])

    calls: list[int] = []
    monkeypatch.setattr(audioldm2.AudioLDM2, "score", starved)
    code, out, err = score("a.wav", "b.wav")
    assert (code, out) == (0, "+0.2500  b.wav\n")
    assert "left out: a.wav does not fit into memory" in err


def test_folder_gives_its_sounds_and_reports_the_other_files(score):
    for name in ("sounds/a.wav", "sounds/b.FLAC", "sounds/deeper.wav"):
        write_noise(name)
    Path("sounds/within").mkdir()
    Path("sounds/deeper.wav").rename("sounds/within/c.wav")
    for name in ("notes.txt", "table.csv", "._a.wav", ".hidden.wav"):
        Path("sounds", name).write_text("x")
    code, out, err = score("sounds", "sounds/a.wav")
    assert code == 0
    files = {line.split()[1] for line in out.splitlines()}
    assert files == {str(Path("sounds", name)) for name in ("a.wav", "b.FLAC", "within/c.wav")}
    assert len(out.splitlines()) == 3  # a file that is named twice has one line
    assert err == "audioldm2: note: sounds: passed over 2 files (.csv, .txt)\n"


def test_mistakes_are_one_sentence(run, score, tiny_folder):
    Path("empty").mkdir()
    assert_refused(score("empty"), "empty holds no sound files")
    assert_refused(run("score", "a.wav", "--model", tiny_folder), "--prompt", "audioldm2 score --help")
    assert_refused(run("score", *TEXT, "--model", tiny_folder), "SOUND")
    write_noise("a.wav")
    assert_refused(run("score", "a.wav", *TEXT, "--model", "./nowhere"), "no folder './nowhere'")
    assert_refused(run("score", "a.wav", *TEXT, "--model", tiny_folder, "--device", "tpu"), "device", "'tpu'")


def test_low_memory_gives_the_same_scores(score):
    write_noise("a.wav")
    plain, low = score("a.wav"), score("a.wav", "--low-memory")
    assert low[CODE] == 0 and low[OUT] == plain[OUT]
