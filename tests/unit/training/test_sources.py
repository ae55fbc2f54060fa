"""Opening data sets: checks before training, sounds for validation, options."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.audio import SAMPLE_RATE
from audioldm2.training.sources import ClipSettings, DataOptions, open_data, open_validation
from tests.support.training import write_sounds

CLIPS = ClipSettings(0.4, SAMPLE_RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sounds(tmp_path / "sounds")


def names(data) -> set[str]:
    return set() if data is None else {item.file.name for item in data.items}


def opened(source: Path, validation: str | None = None, seed: int = 0) -> tuple[set[str], set[str]]:
    options, clips = DataOptions(validation), ClipSettings(0.4, SAMPLE_RATE, seed=seed)
    return names(open_data(source, clips, options)), names(open_validation(source, clips, options))


ALL = {f"{index}.wav" for index in range(10)}


def test_without_a_split_everything_is_trained_on(folder):
    assert opened(folder) == (ALL, set())
    assert open_validation(folder, CLIPS) is None


def test_fraction_is_drawn_from_the_seed(folder):
    training, validation = opened(folder, "0.3")
    assert len(validation) == 3 and not training & validation and training | validation == ALL
    assert opened(folder, "0.3") == (training, validation)
    assert opened(folder, "0.3", seed=1) != (training, validation)
    assert len(opened(folder, "0.001")[1]) == 1 and len(opened(folder, "0.999")[0]) == 1


def test_column_split(folder):
    rows = "".join(f"{i}.wav,a sound,{'val' if i < 2 else 'test' if i < 4 else 'train'}\n" for i in range(10))
    (folder / "captions.csv").write_text(f"file,caption,split\n{rows}")
    assert opened(folder) == ({f"{i}.wav" for i in range(4, 10)}, {"0.wav", "1.wav"})


def test_folder_or_table_for_validation(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "x.wav", np.full(100, 0.1), SAMPLE_RATE)
    (other / "captions.jsonl").write_text('{"file": "x.wav", "caption": "a click"}')
    assert opened(folder, str(other)) == (ALL, {"x.wav"})
    assert opened(folder, str(other / "captions.jsonl")) == (ALL, {"x.wav"})
    data = open_validation(folder, CLIPS, DataOptions(str(other)))
    assert data is not None and data.batch(0, 2)[1] == ["a click"] * 2
    assert repr(data) == f"<for validation {other}: 1 captioned sounds, 0.0 minutes>"


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("0", "validation is '0'; it has to be a table, a folder, or a fraction above 0 and below 1"),
        ("1.5", "validation is '1.5'"),
        ("nan", "validation is 'nan'"),
        ("nowhere", "nowhere is not a folder"),
        ("", "has '0.wav', '1.wav', '2.wav' and 7 more for training and for validation"),
    ],
)
def test_unusable_validation_is_a_sentence(folder, validation, message):
    with pytest.raises(ValueError, match=message):
        open_data(folder, CLIPS, DataOptions(validation or str(folder)))


def test_bad_files_stop_the_start_or_are_left_out(folder):
    (folder / "3.wav").unlink()
    (folder / "5.wav").write_bytes(b"hello")
    message = r"2 of 10 sounds of .*: 3\.wav cannot be found; 5\.wav is not a sound file .*--skip-bad"
    with pytest.raises(ValueError, match=message):
        open_data(folder, CLIPS)
    lines: list[str] = []
    data = open_data(folder, CLIPS, DataOptions(skip_bad=True), lines.append)
    assert names(data) == ALL - {"3.wav", "5.wav"} and len(lines) == 3
    data.batch(0, 16)


def test_silent_files_are_bad_only_where_levels_are_normalized(folder):
    soundfile.write(folder / "4.wav", np.full(8000, 0.2), SAMPLE_RATE)  # a constant, which has no level
    assert names(open_data(folder, CLIPS)) == ALL
    clips = ClipSettings(0.4, SAMPLE_RATE, normalize=True)
    with pytest.raises(ValueError, match=r"4\.wav is silent: its peak is below -80 dB"):
        open_data(folder, clips)
    assert "4.wav" not in names(open_data(folder, clips, DataOptions(skip_bad=True)))


def test_columns_are_passed_on(folder):
    (folder / "captions.csv").write_text("sound,title\n0.wav,a tone\n")
    data = open_data(folder, CLIPS, DataOptions(audio_column="sound", caption_column="title"))
    assert data.captions() == ["a tone"]


def test_mp3_is_trained_on(tmp_path):
    wave = 0.3 * np.sin(np.arange(16_000) / 9)
    soundfile.write(tmp_path / "a.mp3", wave, 16_000, format="MP3", subtype="MPEG_LAYER_III")
    (tmp_path / "a.txt").write_text("a tone")
    clips, captions = open_data(tmp_path, CLIPS).batch(0, 2)
    assert captions == ["a tone"] * 2 and clips.abs().max() > 0.2
