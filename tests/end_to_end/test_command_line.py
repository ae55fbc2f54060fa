"""`audioldm2 generate` as its users meet it: which files it writes, what it prints, how its flags act.

All tests call `main` in this process; `test_streams.py` and `test_interruptions.py` start others.
"""

import io
import json
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

import audioldm2
from audioldm2.cli.main import main
from audioldm2.editing.edit import EDITING_OPTIONS
from audioldm2.files import safe_name
from audioldm2.options import SOUND_PROMPT_OPTIONS, SPEECH_OPTIONS, GenerationOptions
from tests.support.command_line import (
    CODE,
    ERR,
    OUT,
    QUICK,
    STAGE_LINES,
    assert_refused,
    assert_same_sound,
    names,
    without_stages,
)

pytestmark = pytest.mark.usefixtures("folder")


# What is written --------------------------------------------------------------------------------------------


def test_writes_sound_and_record_and_prints_only_the_path(folder, run, tiny_folder):
    code, out, err = run("rain on a tin roof", "--model", tiny_folder, "--duration", "1.5", "--steps", "2")
    assert (code, out, without_stages(err)) == (0, "rain_on_a_tin_roof.wav\n", "")
    assert names(folder) == ["rain_on_a_tin_roof.wav", "rain_on_a_tin_roof.wav.json"]
    info = soundfile.info("rain_on_a_tin_roof.wav")
    assert (info.samplerate, info.frames, info.channels) == (16000, 24000, 1)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    assert np.abs(soundfile.read("rain_on_a_tin_roof.wav")[0]).max() > 0.01


@pytest.mark.parametrize(("seconds", "samples"), [("0.04", 640), ("0.13", 2080), ("1.0001", 16001)])
def test_sound_has_the_samples_of_its_duration(sound, seconds, samples):
    assert sound("dog", "-o", "a.wav", "--duration", seconds)[CODE] == 0
    assert soundfile.info("a.wav").frames == samples


def test_duration_between_mel_frames_is_rounded_down_as_in_the_reference(sound):
    assert sound("dog", "-o", "a.wav", "--duration", "0.123")[CODE] == 0
    assert soundfile.info("a.wav").frames == 12 * 160 + 32  # 12 whole frames, and the vocoder's 32 samples


@pytest.mark.parametrize("first_word", [(), ("generate",)])
def test_generate_is_the_default_command(sound, run, tiny_folder, first_word):
    assert run(*first_word, "dog", "--model", tiny_folder, *QUICK)[OUT] == "dog.wav\n"


@pytest.mark.parametrize("ending", [(), ("--candidates", "3", "--karras", "--negative-prompt", "hiss")])
def test_record_reproduces_its_sound(sound, tiny_model, ending):
    sound("dog", "-o", "a.wav", "--seed", "7", "--guidance", "2.5", "--guidance-rescale", "0.3", *ending)
    record = json.loads(Path("a.wav.json").read_text())
    assert record["audioldm2"] == version("audioldm2")
    assert (record["file"], record["seed"] in (7, 8, 9), record["num_inference_steps"]) == ("a.wav", True, 2)
    given = {each.name: record[each.name] for each in fields(GenerationOptions) if each.name in record}
    again = tiny_model.generate(record["prompt"], **given | {"num_waveforms_per_prompt": 1})
    again.save("b.wav")
    assert_same_sound("a.wav", "b.wav")


def test_record_has_every_option(sound):
    sound("dog", "-o", "a.wav")
    record = json.loads(Path("a.wav.json").read_text())
    absent = {"latents", *EDITING_OPTIONS, *SOUND_PROMPT_OPTIONS, *SPEECH_OPTIONS}
    assert {each.name for each in fields(GenerationOptions)} - absent <= set(record)
    assert record["starting_latents_given"] is False


def test_writes_the_best_candidate_and_records_the_others(sound):
    sound("dog", "-o", "a.wav", "--candidates", "3", "--seed", "5")
    record = json.loads(Path("a.wav.json").read_text())
    others = record["other_candidates"]
    assert sorted([record["seed"], *(other["seed"] for other in others)]) == [5, 6, 7]
    assert record["score"] >= others[0]["score"] >= others[1]["score"]


def test_no_json_writes_only_the_sound(sound, folder):
    sound("dog", "--no-json")
    assert names(folder) == ["dog.wav"]


@pytest.mark.parametrize(("name", "kind"), [("a.flac", "FLAC"), ("a.ogg", "OGG"), ("A.WAV", "WAV")])
def test_suffix_picks_the_format(sound, name, kind):
    assert sound("dog", "-o", name)[OUT] == f"{name}\n"
    info = soundfile.info(name)
    assert (info.format, info.samplerate, info.frames) == (kind, 16000, 3200)


def test_output_may_be_a_folder(sound, folder):
    (folder / "sounds").mkdir()
    printed = sound("A dog / barks: loud?", "-o", "sounds/")[OUT]
    assert printed == f"{Path('sounds', 'A_dog_barks_loud.wav')}\n"


def test_replaces_a_sound_of_that_name(sound, folder):
    (folder / "a.wav").write_text("old")
    sound("dog", "-o", "a.wav")
    assert soundfile.info("a.wav").frames == 3200


def test_plot_writes_a_picture_beside_the_sound(sound, folder):
    code, out, err = sound("dog costs $5 or $6 雨", "-o", "a.wav", "--plot")
    assert (code, out, without_stages(err)) == (0, "a.wav\n", "")
    assert names(folder) == ["a.wav", "a.wav.json", "a.wav.png"]
    assert matplotlib.image.imread("a.wav.png").ndim == 3


def test_plot_without_matplotlib_is_refused_before_generating(sound, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(sound("dog", "--plot"), "--plot needs matplotlib", "pip install matplotlib")
    assert names(folder) == []


# Prompts ----------------------------------------------------------------------------------------------------


def test_prompt_in_any_script(sound, folder):
    prompt = "雨 ☔ на крыше, größer"
    code, out, err = sound(prompt)
    assert (code, without_stages(err)) == (0, "")
    assert out == f"{safe_name(prompt)}.wav\n"
    assert json.loads((folder / f"{safe_name(prompt)}.wav.json").read_text("utf-8"))["prompt"] == prompt


def test_prompt_may_start_with_a_dash_after_two_dashes(sound):
    assert sound("--", "-5dB")[OUT] == "5dB.wav\n"


@pytest.mark.parametrize("word", ["convert", "generate", "help"])
def test_command_name_can_be_a_prompt(run, tiny_folder, word):
    assert run("generate", word, "--model", tiny_folder, *QUICK)[OUT] == f"{word}.wav\n"


def test_long_prompt_is_truncated_with_one_note(sound):
    prompt = " ".join(f"bell{i}" for i in range(400))
    code, out, err = sound(prompt, "-o", "a.wav")
    assert (code, out) == (0, "a.wav\n")
    err = without_stages(err)
    assert err.startswith("audioldm2: note: ") and err.count("\n") == 1
    assert "this part is ignored: '" in err and "bell0 " not in err
    assert len(err) < 250, "it shows the beginning of the part"


def test_path_that_the_output_cannot_encode_is_escaped(tiny_folder, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["雨", "--model", str(tiny_folder), *QUICK, "--quiet"]) == 0
    assert printed.getvalue() == b"\\u96e8.wav\n"


def test_file_of_prompts_gives_one_sound_a_line(sound, folder):
    text = "\ufeffrain\r\n\r\n   \r\n  a dog barks  \r\nRain\r\nrain-2\r\nrain?\r\nrain.\r\n"
    (folder / "prompts.txt").write_bytes(text.encode())
    code, out, err = sound("--prompts", "prompts.txt", "-o", "new/sounds", "--seed", "3")
    stems = ["rain", "a_dog_barks", "Rain-2", "rain-2-2", "rain-3", "rain-4"]
    assert code == 0
    assert out.splitlines() == [str(Path("new/sounds", f"{stem}.wav")) for stem in stems]
    assert without_stages(err).splitlines()[1] == "audioldm2: 2 of 6: a dog barks"
    records = [json.loads(Path("new/sounds", f"{stem}.wav.json").read_text()) for stem in stems]
    prompts = [record["prompt"] for record in records]
    assert prompts == ["rain", "a dog barks", "Rain", "rain-2", "rain?", "rain."]


def test_prompt_sounds_the_same_from_a_file_and_alone(sound, folder):
    (folder / "prompts.txt").write_text("a much longer prompt than the other one\ndog\n")
    sound("--prompts", "prompts.txt")
    sound("dog", "-o", "alone.wav")
    assert_same_sound("dog.wav", "alone.wav")


def test_quiet_reports_nothing(sound, folder):
    (folder / "prompts.txt").write_text("rain\ndog\n")
    assert sound("--prompts", "prompts.txt", "--quiet") == (0, "rain.wav\ndog.wav\n", "")


# Settings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tiny_folder, tmp_path_factory) -> bytes:
    """The bytes of the file that a command without further flags writes."""
    file = tmp_path_factory.mktemp("plain") / "dog.wav"
    assert main(["dog", "-o", str(file), "--model", str(tiny_folder), *QUICK, "--quiet"]) == 0
    return file.read_bytes()


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        (("--seed", "9"), "seed", 9),
        (("--negative-prompt", "hiss"), "negative_prompt", "hiss"),
        (("--duration", "0.5"), "audio_length_in_s", 0.5),
        (("--steps", "3"), "num_inference_steps", 3),
        (("--guidance", "1"), "guidance_scale", 1.0),
        (("--sampler", "euler"), "sampler", "euler"),
        (("--sampler", "ddim", "--eta", "0.5"), "eta", 0.5),
        (("--karras",), "karras", True),
        (("--guidance-rescale", "0.7"), "guidance_rescale", 0.7),
        (("--guidance-interval", "0.1", "5"), "guidance_interval", [0.1, 5.0]),
        (("--device", "cpu"), "device", "cpu"),
        (("--dtype", "bfloat16"), "dtype", "bfloat16"),
    ],
)
def test_flag_changes_sound_and_record(sound, folder, plain, flags, setting, value):
    assert sound("dog", "-o", "a.wav", *flags)[CODE] == 0
    assert json.loads(Path("a.wav.json").read_text())[setting] == value
    if flags != ("--device", "cpu"):
        assert (folder / "a.wav").read_bytes() != plain


def test_saving_memory_changes_no_sound(sound):
    for flags in ((), ("--offload",), ("--low-memory",)):
        sound("dog", "-o", f"a{''.join(flags)}.wav", "--candidates", "2", *flags)
    assert_same_sound("a--offload.wav", "a.wav")
    assert_same_sound("a--low-memory.wav", "a.wav")


@pytest.mark.parametrize("flag", ["offload", "low_memory", "compile"])
def test_model_flags_reach_load(run, tiny_model, monkeypatch, flag):
    seen = {}
    monkeypatch.setattr(
        audioldm2, "load", lambda source, **how: seen.update(how, source=source) or tiny_model
    )
    flags = "--model some/where --device cpu --dtype float16 --heads trained --revision v1 --ops reference"
    assert run("dog", *flags.split(), "--" + flag.replace("_", "-"), *QUICK)[CODE] == 0
    assert seen == dict(
        source="some/where", device="cpu", dtype="float16", heads="trained", revision="v1", offload=False,
        low_memory=False, compile=False, ops="reference",
    ) | {flag: True}  # fmt: skip


def test_sampler_list_has_a_line_for_each(run):
    code, out, err = run("--sampler", "list")
    assert (code, err) == (0, "")
    assert [text.split()[0] for text in out.splitlines()] == list(audioldm2.SAMPLERS)
    assert all(len(text.split()) > 4 for text in out.splitlines())


def test_version(run):
    assert run("--version") == (0, f"audioldm2 {version('audioldm2')}\n", "")


# Progress ---------------------------------------------------------------------------------------------------


def test_terminal_shows_a_bar_with_notes_on_their_own_lines(sound, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = sound("dog " * 400, "-o", "a.wav", "--candidates", "2")
    for stage in STAGE_LINES:
        assert stage in err
    assert "2/2" in err
    assert "\raudioldm2: note: " in err
    quiet = sound("dog", "-o", "a.wav", "--quiet")[ERR]
    assert quiet == ""


def test_log_has_a_line_for_each_stage(sound):
    _, _, err = sound("dog", "-o", "a.wav", "--candidates", "2")
    assert err.splitlines() == [f"audioldm2: {stage}" for stage in STAGE_LINES]
    assert sound("dog", "-o", "a.wav", "--quiet")[ERR] == ""
