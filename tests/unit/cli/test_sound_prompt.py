"""`--audio-prompt` and `--heard`: one sound, lists, and the sentence for each mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

import audioldm2
from audioldm2.audio import write_wav
from audioldm2.cli.prompt_lists import read_lines
from tests.support.command_line import CODE, ERR, OUT, QUICK, Outcome, assert_refused, names

RATE = 16_000


def write_noise(path: str | Path, seed: int = 0, samples: int = 8_000) -> None:
    write_wav(path, 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed)), RATE)


def record(path: str) -> dict:
    return json.loads(Path(path).read_text())


@pytest.fixture
def make(run, hearing_folder, folder) -> Callable[..., Outcome]:
    """Runs a command with the tiny model that hears, in a folder with a sound."""
    write_noise("dog.wav")
    return lambda *arguments: run("--model", hearing_folder, "--device", "cpu", *QUICK, *arguments)


def test_sound_prompt_beside_a_text(make, hearing):
    assert make("a cat", "--audio-prompt", "dog.wav", "--heard", 3)[CODE] == 0
    found = record("a_cat.wav.json")
    assert (found["prompt"], found["audio_prompt"]["file"], found["heard"]) == ("a cat", "dog.wav", 3)
    expected = hearing.generate(
        "a cat", audio_prompt="dog.wav", heard=3, audio_length_in_s=0.2, num_inference_steps=2
    )
    samples, _ = soundfile.read("a_cat.wav", dtype="float32")
    assert torch.allclose(torch.from_numpy(samples), expected.audio[0, 0].clamp(-1, 1), atol=1e-4)


def test_sound_prompt_without_a_text_names_the_result_after_it(make, folder):
    before = Path("dog.wav").read_bytes()
    outcome = make("--audio-prompt", "dog.wav", "--candidates", "2")
    assert (outcome[CODE], outcome[OUT]) == (0, "like_dog.wav\n")
    assert "audioldm2: hearing the sound\n" in outcome[ERR]
    found = record("like_dog.wav.json")
    assert (found["prompt"], found["heard"]) == ("", 8) and -1 <= found["score"] <= 1
    assert Path("dog.wav").read_bytes() == before
    assert names(folder) == ["dog.wav", "like_dog.wav", "like_dog.wav.json"]


MISTAKES: dict[str, tuple[tuple, str]] = {
    "missing file": (("--audio-prompt", "none.wav"), "none.wav: No such file or directory"),
    "silent file": (("--audio-prompt", "silent.wav"), "silent.wav is silent; it has to be louder"),
    "folder": (("--audio-prompt", "."), "is a folder; it has to be a sound file"),
    "no sound": (("--audio-prompt", "list.txt"), "list.txt is not a sound file"),
    "empty name": (("--audio-prompt", ""), "--audio-prompt is ''; it has to be a sound file"),
    "heard out of range": (("--audio-prompt", "dog.wav", "--heard", "9"), "--heard is 9; it has to be"),
    "heard in words": (("--audio-prompt", "dog.wav", "--heard", "all"), "--heard is 'all'; it has to be"),
    "heard without a sound": (("rain", "--heard", "3"), "--heard is 3; it has to be left out without"),
    "in a list": (("--prompts", "list.txt", "--heard", "3"), "--heard is 3; it has to be left out without"),
    "an edit": (
        ("rain", "--audio", "dog.wav", "--source", "a dog", "--audio-prompt", "dog.wav"),
        "--audio-prompt is set; it has to be left out of an edit, which is from a text to a text",
    ),
    "the sound itself": (("--audio-prompt", "dog.wav", "-o", "dog.wav"), "dog.wav, the file to write, is"),
    "named as the sound": (("dog", "--audio", "./dog.wav"), "dog.wav, the file to write, is a sound that is"),
    "a list with a missing file": (("--prompts", "missing.csv", "-o", "out"), "none.wav: No such file"),
    "a list of edits": (
        ("--prompts", "sounds.csv", "--audio", "dog.wav", "--source", "a dog", "-o", "out"),
        "sounds.csv, line 2: audio_prompt is 'dog.wav'; it has to be left out with --source",
    ),
    "a list without a text": (("--prompts", "nothing.csv"), "nothing.csv, line 2: prompt is ''; it has"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence_and_writes_nothing(run, hearing_folder, folder, mistake: str):
    write_noise("dog.wav")
    write_wav("silent.wav", torch.zeros(900), RATE)
    Path("list.txt").write_text("rain\n")
    Path("missing.csv").write_text("prompt,audio_prompt\nrain,none.wav\n")
    Path("sounds.csv").write_text("prompt,audio_prompt\nrain,dog.wav\n")
    Path("nothing.csv").write_text("prompt,audio_prompt,seed\n,,3\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments, words = MISTAKES[mistake]
    assert_refused(run("--model", hearing_folder, "--device", "cpu", *arguments), words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("asked", [("rain",), ("--prompts", "list.csv", "-o", "out")])
def test_model_without_audiomae_is_one_sentence(run, tiny_folder, folder, asked: tuple):
    write_noise("dog.wav")
    Path("list.csv").write_text("prompt\nrain\n")
    outcome = run(*asked, "--model", tiny_folder, "--device", "cpu", *QUICK, "--audio-prompt", "dog.wav")
    assert_refused(outcome, "has no AudioMAE, which reads a sound as a prompt", "audiomae")
    assert names(folder) == ["dog.wav", "list.csv"]


# Lists ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(folder) -> Path:
    """A table in a folder of its own, with a sound beside it and one in the current folder."""
    Path("lists").mkdir()
    write_noise("lists/cat.wav", seed=1)
    write_noise("dog.wav")
    rows = 'prompt,audio_prompt,seed\nrain,cat.wav,\n,cat.wav,4\nrain,dog.wav,\n"rain, wind",,\n'
    Path("lists/list.csv").write_text(rows)
    return Path("lists/list.csv")


def test_table_names_a_sound_beside_it_or_in_the_current_folder(table: Path):
    lines = read_lines(table)
    files = [Path("lists/cat.wav"), Path("lists/cat.wav"), Path("dog.wav"), None]
    assert [line.audio_prompt for line in lines] == files
    assert [(line.prompt, line.text) for line in lines] == [
        ("rain", "rain"), ("", "like cat"), ("rain", "rain"), ("rain, wind", "rain, wind"),
    ]  # fmt: skip
    Path("null.jsonl").write_text('{"prompt": null, "audio_prompt": "dog.wav"}\n{"audio_prompt": "a.wav"}\n')
    assert [line.prompt for line in read_lines(Path("null.jsonl"))] == ["", ""]
    Path("odd.jsonl").write_text('{"prompt": "rain", "audio_prompt": 3}\n')
    with pytest.raises(ValueError, match=r"odd\.jsonl, line 1: audio_prompt is 3; it has to be a text"):
        read_lines(Path("odd.jsonl"))


@pytest.mark.slow
def test_lines_of_a_list_have_their_own_sounds(make, table: Path, hearing, monkeypatch):
    asked = ("--prompts", table, "-o", "out", "--heard", "3", "--at-once", "4")
    generate, batches = audioldm2.AudioLDM2.generate, []
    monkeypatch.setattr(
        audioldm2.AudioLDM2, "generate",
        lambda self, prompts, **options: batches.append(prompts) or generate(self, prompts, **options),
    )  # fmt: skip
    code, _, err = make(*asked)
    assert code == 0 and "4 made, 0 skipped, 0 failed" in err
    assert batches == [["rain", "", "rain"], ["rain, wind"]]
    found = {path.name: record(str(path)) for path in Path("out").glob("*.json")}
    sounds = {name.removesuffix(".wav.json"): each.get("audio_prompt") for name, each in found.items()}
    assert {name: each and each["file"] for name, each in sounds.items()} == {
        "rain": "cat.wav", "like_cat": "cat.wav", "rain-2": "dog.wav", "rain,_wind": None,
    }  # fmt: skip
    assert found["rain.wav.json"]["heard"] == 3 and "heard" not in found["rain,_wind.wav.json"]
    expected = hearing.generate(
        "rain", audio_prompt="dog.wav", heard=3, audio_length_in_s=0.2, num_inference_steps=2
    )
    samples, _ = soundfile.read("out/rain-2.wav", dtype="float32")
    assert torch.allclose(torch.from_numpy(samples), expected.audio[0, 0].clamp(-1, 1), atol=1e-3)


@pytest.mark.slow
def test_list_is_kept_until_its_sound_changes(make, table: Path):
    asked = ("--prompts", table, "-o", "out")
    assert make(*asked)[CODE] == 0
    assert "4 of 4 sounds are there already" in make(*asked)[ERR]
    write_noise("lists/cat.wav", seed=2)
    refused = make(*asked)
    assert refused[CODE] == 2 and "was made with another audio_prompt (and 1 more)" in refused[ERR]
    assert "was made with another audio_prompt and heard (and 2 more)" in make(*asked, "--heard", "2")[ERR]


@pytest.mark.slow
def test_sound_of_the_command_serves_all_lines(make):
    Path("list.txt").write_text("rain\nwind\n")
    assert make("--prompts", "list.txt", "-o", "out", "--audio-prompt", "dog.wav")[CODE] == 0
    for name in ("rain", "wind"):
        found = record(f"out/{name}.wav.json")
        assert (found["audio_prompt"]["file"], found["heard"]) == ("dog.wav", 8)
