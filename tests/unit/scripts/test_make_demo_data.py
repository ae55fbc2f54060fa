"""Items of the demo world, and the command that writes them."""

import csv
import json
import re

import numpy as np
import pytest

from audioldm2.audio import SAMPLE_RATE, read
from scripts.demo_world import sound_measures as measure
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import main, render, sample
from scripts.demo_world.registry import ATTRIBUTES
from scripts.demo_world.synthesis import PEAK, place_events
from tests.support.demo_world import make
from tests.support.sizes import full_or

# Items ------------------------------------------------------------------------------------------------------


def test_seed_index_and_split_determine_an_item():
    first, again = sample(0, 7), sample(0, 7)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert first.caption == again.caption and first.attributes == again.attributes
    others = [sample(0, 8), sample(1, 7), sample(0, 7, split="test"), sample(7, 0)]
    assert not any(np.array_equal(first.audio, other.audio) for other in others)


def test_items_are_well_formed_and_cover_all_families():
    families, relations = set(), set()
    for index in range(full_or(200, 80)):
        sound = sample(0, index, seconds=1.5)
        assert sound.audio.dtype == np.float32 and sound.audio.shape == (24_000,)
        assert np.isfinite(sound.audio).all() and np.abs(sound.audio).max() <= PEAK + 1e-6
        assert measure.loudness(sound.audio, SAMPLE_RATE) > -41 and abs(sound.audio.mean()) < 1e-5
        assert len(sound.family) == (2 if sound.relation else 1)
        families.update(sound.family)
        relations.add(sound.relation)
    assert families == set(FAMILIES) and relations == {"", "and", "then"}


def test_event_after_the_end_is_dropped():
    """About one item in ten thousand has one; item 43,952 of seed 0 once stopped a training run."""
    assert np.array_equal(place_events(8, [6, 8, 11], [np.ones(3)]), [0, 0, 0, 0, 0, 0, 1, 1])
    assert np.isfinite(sample(0, 43_952).audio).all()


def test_short_clips_hold_no_sequence():
    assert {sample(0, index, seconds=0.64).relation for index in range(40)} == {"", "and"}


def test_pairs_overlap_or_follow_each_other():
    parts = {"noise": {"length": "long"}, "tone": {"pitch": "low", "length": "long"}}
    for seed in range(5):
        wave = render(np.random.default_rng(seed), parts, "then")
        first, second = (
            measure.spectral_flatness(half, SAMPLE_RATE) for half in (wave[:18000], wave[-18000:])
        )
        assert first > 100 * second
        wave = render(np.random.default_rng(seed), parts, "and")
        for half in (wave[:18000], wave[-18000:]):
            assert measure.dominant_frequency(half, SAMPLE_RATE) < 297
            assert measure.spectral_flatness(half, SAMPLE_RATE) > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(0, split="valid"), r"split is 'valid'; it has to be one of train, test"),
        (lambda: sample(-1), r"seed is -1; it has to be a whole number of at least 0"),
        (lambda: sample(0, seconds=0.1), r"seconds is 0\.1; it has to be a number from 0\.64 to 60"),
        (lambda: sample(0, seconds=float("nan")), r"seconds is nan; it has to be"),
        (
            lambda: make("rain", 0, {"pitch": "low"}),
            r"'pitch' is 'low'; it has to be one that this family has: level \(quiet/loud\)",
        ),
        (
            lambda: make("tone", 0, {"pitch": "lower"}),
            r"'lower'; it has to be one that this family has: pitch \(low/middle/high\)",
        ),
    ],
)
def test_rejects_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Command line -----------------------------------------------------------------------------------------------


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "captions.csv", newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_command_writes_sounds_and_resumes(tmp_path, capsys):
    out = tmp_path / "sounds"
    arguments = [str(out), "--seed", "3", "--seconds", "1.5"]
    assert main([*arguments, "--count", "4"]) == 0
    assert "4 sounds, 4 of them new" in capsys.readouterr().out
    before = {row["file"]: (out / row["file"]).stat().st_mtime_ns for row in rows(out)}
    (out / "000002.wav").unlink()  # as after an interrupted run
    assert main([*arguments, "--count", "6"]) == 0
    assert "6 sounds, 3 of them new" in capsys.readouterr().out
    assert [row["file"] for row in rows(out)] == [f"00000{i}.wav" for i in range(6)]
    for index, row in enumerate(rows(out)):
        sound = sample(3, index, seconds=1.5)
        wave, rate = read(out / row["file"])
        assert rate == SAMPLE_RATE
        np.testing.assert_allclose(wave.numpy(), sound.audio, atol=1e-4)
        assert row["caption"] == sound.caption
        assert json.loads(row["attributes"]) == sound.attributes
        assert row["relation"] == sound.relation and sound.family[0] in row["family"]
    assert all((out / file).stat().st_mtime_ns == before[file] for file in ("000000.wav", "000003.wav"))


def test_command_rejects_folders_with_other_content(tmp_path, capsys):
    assert main([str(tmp_path / "a"), "--count", "1", "--seconds", "0.64"]) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.wav").touch()
    for folder, content in [("a", '"seconds": 0.64'), ("b", "something else")]:
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path / folder), "--count", "1"])
        message = capsys.readouterr().err
        assert stop.value.code == 2 and content in message and "choose another folder" in message
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine.wav"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "an output folder is required"),
        (["out", "--count", "0"], "count is 0; it has to be at least 1"),
        (["out", "--seconds", "0.1"], "seconds is 0.1; it has to be a number from 0.64 to 60"),
        (["out", "--seed", "-1"], "seed is -1; it has to be a whole number of at least 0"),
    ],
)
def test_command_reports_mistakes_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_command_lists_families_and_attributes(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {name}\b", listed, re.MULTILINE) for name in (*FAMILIES, *ATTRIBUTES))
