"""The command line as its users meet it: what is written, what is said, and what happens when it goes wrong.

Most tests call `main` in this process; what only a process of its own can show (signals, pipes, limits) runs
in one.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import audioldm2
from audioldm2.checkpoints import storage
from audioldm2.cli.arguments import generate_parser
from audioldm2.cli.main import main
from audioldm2.files import safe_name
from audioldm2.models import NETWORKS
from audioldm2.runtime import placement
from tests.support.checkpoints import write_diffusers

QUICK = ("--duration", "0.2", "--steps", "2")
CODE, OUT, ERR = 0, 1, 2
posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals and limits of POSIX")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that each test runs in, empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command as typed; returns its exit code, what it printed and what it said."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:  # --help and --version
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def sound(run, tiny_folder):
    """Run a command that makes short sounds with the tiny model."""
    return lambda *arguments: run("--model", tiny_folder, *QUICK, *arguments)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden drafts too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


STAGE_LINES = ("encoding the prompt", "denoising", "decoding", "vocoding", "ranking")


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """One sentence on stderr that has these words, nothing on stdout, exit code 2."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("audioldm2: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "usage:" not in err
    for word in words:
        assert word in err, err


def without_stages(err: str) -> str:
    """What a command said, less the line that each stage has in a log."""
    stages = {f"audioldm2: {stage}\n" for stage in STAGE_LINES}
    return "".join(each for each in err.splitlines(keepends=True) if each not in stages)


def assert_same_sound(one: str, other: str) -> None:
    """Equal samples, but for the last bit or two, in which the memory layout of a matrix may show."""
    first, second = (soundfile.read(file, dtype="int16")[0].astype(int) for file in (one, other))
    assert np.abs(first - second).max() <= 2


def process(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "audioldm2", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# What is written --------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_sound_with_its_record_and_the_path_is_all_that_is_printed(folder, tiny_folder):
    with process("rain on a tin roof", "--model", tiny_folder, "--duration", "1.5", "--steps", "2") as made:
        out, err = made.communicate()
    assert (made.returncode, out, without_stages(err)) == (0, "rain_on_a_tin_roof.wav\n", "")
    assert names(folder) == ["rain_on_a_tin_roof.json", "rain_on_a_tin_roof.wav"]
    info = soundfile.info("rain_on_a_tin_roof.wav")
    assert (info.samplerate, info.frames, info.channels) == (16000, 24000, 1)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    assert np.abs(soundfile.read("rain_on_a_tin_roof.wav")[0]).max() > 0.01


@pytest.mark.parametrize(("seconds", "samples"), [("0.04", 640), ("0.13", 2080), ("1.0001", 16001)])
def test_a_sound_has_exactly_the_samples_of_its_duration(sound, seconds, samples):
    assert sound("dog", "-o", "a.wav", "--duration", seconds)[CODE] == 0
    assert soundfile.info("a.wav").frames == samples


def test_a_duration_between_mel_frames_may_come_out_short_as_in_the_reference(sound):
    assert sound("dog", "-o", "a.wav", "--duration", "0.123")[CODE] == 0
    assert (
        soundfile.info("a.wav").frames == 12 * 160 + 32
    )  # 12 whole frames in 0.123 s, and the vocoder's rest


@pytest.mark.parametrize("first_word", [(), ("generate",)])
def test_the_word_generate_may_be_left_out(sound, run, tiny_folder, first_word):
    assert run(*first_word, "dog", "--model", tiny_folder, *QUICK)[OUT] == "dog.wav\n"


@pytest.mark.parametrize("ending", [(), ("--candidates", "3", "--karras", "--negative-prompt", "hiss")])
def test_the_record_makes_the_same_sound_again(sound, tiny_model, ending):
    sound("dog", "-o", "a.wav", "--seed", "7", "--guidance", "2.5", "--guidance-rescale", "0.3", *ending)
    record = json.loads(Path("a.json").read_text())
    assert record["audioldm2"] == version("audioldm2")
    assert (record["file"], record["seed"] in (7, 8, 9), record["num_inference_steps"]) == ("a.wav", True, 2)
    arguments = set(audioldm2.AudioLDM2.generate.__kwdefaults__) & set(record)
    again = tiny_model.generate(record["prompt"], **{name: record[name] for name in arguments})
    again.save("b.wav")
    assert_same_sound("a.wav", "b.wav")


def test_the_record_has_every_setting_of_generate(sound):
    sound("dog", "-o", "a.wav")
    unsaved = {"num_waveforms_per_prompt", "latents", "on_step", "on_stage"}
    settings = set(audioldm2.AudioLDM2.generate.__kwdefaults__) - unsaved
    assert settings <= set(json.loads(Path("a.json").read_text()))


def test_of_several_candidates_the_best_is_written_and_the_others_are_told(sound):
    sound("dog", "-o", "a.wav", "--candidates", "3", "--seed", "5")
    record = json.loads(Path("a.json").read_text())
    others = record["other_candidates"]
    assert sorted([record["seed"], *(other["seed"] for other in others)]) == [5, 6, 7]
    assert record["score"] >= others[0]["score"] >= others[1]["score"]


def test_no_json_leaves_the_sound_alone(sound, folder):
    sound("dog", "--no-json")
    assert names(folder) == ["dog.wav"]


@pytest.mark.parametrize(("name", "kind"), [("a.flac", "FLAC"), ("a.ogg", "OGG"), ("A.WAV", "WAV")])
def test_the_suffix_picks_the_format(sound, name, kind):
    assert sound("dog", "-o", name)[OUT] == f"{name}\n"
    info = soundfile.info(name)
    assert (info.format, info.samplerate, info.frames) == (kind, 16000, 3200)


def test_output_may_be_a_folder_that_exists(sound, folder):
    (folder / "sounds").mkdir()
    assert (
        sound("A dog / barks: loud?", "-o", "sounds/")[OUT] == f"{Path('sounds', 'A_dog_barks_loud.wav')}\n"
    )


def test_a_file_of_that_name_is_replaced(sound, folder):
    (folder / "a.wav").write_text("old")
    sound("dog", "-o", "a.wav")
    assert soundfile.info("a.wav").frames == 3200


def test_a_picture_lies_beside_the_sound(sound, folder):
    code, out, err = sound("dog costs $5 or $6 雨", "-o", "a.wav", "--plot")
    assert (code, out, without_stages(err)) == (0, "a.wav\n", "")
    assert names(folder) == ["a.json", "a.png", "a.wav"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_picture_is_refused_before_anything_is_made(sound, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(sound("dog", "--plot"), "--plot needs matplotlib", "pip install matplotlib")
    assert names(folder) == []


# Prompts ----------------------------------------------------------------------------------------------------


def test_a_prompt_in_any_script_works(sound, folder):
    prompt = "雨 ☔ на крыше, größer"
    code, out, err = sound(prompt)
    assert (code, without_stages(err)) == (0, "")
    assert out == f"{safe_name(prompt)}.wav\n"
    assert json.loads((folder / f"{safe_name(prompt)}.json").read_text("utf-8"))["prompt"] == prompt


def test_a_prompt_may_start_with_a_dash_after_two_dashes(sound):
    assert sound("--", "-5dB")[OUT] == "5dB.wav\n"


@pytest.mark.parametrize("word", ["convert", "generate", "help"])
def test_a_command_word_can_be_a_prompt(run, tiny_folder, word):
    assert run("generate", word, "--model", tiny_folder, *QUICK)[OUT] == f"{word}.wav\n"


def test_a_long_prompt_is_cut_with_one_note_that_tells_what_is_not_heard(sound):
    prompt = " ".join(f"bell{i}" for i in range(400))
    code, out, err = sound(prompt, "-o", "a.wav")
    assert (code, out) == (0, "a.wav\n")
    err = without_stages(err)
    assert err.startswith("audioldm2: note: ") and err.count("\n") == 1
    assert "bell399" in err and "bell0 " not in err


def test_a_name_that_the_output_cannot_show_is_no_error(sound, tiny_folder, monkeypatch):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with process("雨", "--model", tiny_folder, *QUICK, env=environment) as made:
        out, _ = made.communicate()
    assert (made.returncode, out) == (0, "\\u96e8.wav\n")


def test_a_file_of_prompts_becomes_one_sound_a_line(sound, folder):
    text = "\ufeffrain\r\n\r\n   \r\n  a dog barks  \r\nRain\r\nrain-2\r\nrain?\r\nrain\r\n"
    (folder / "prompts.txt").write_bytes(text.encode())
    code, out, err = sound("--prompts", "prompts.txt", "-o", "new/sounds", "--seed", "3")
    stems = ["rain", "a_dog_barks", "Rain-2", "rain-2-2", "rain-3", "rain-4"]
    assert code == 0
    assert out.splitlines() == [str(Path("new/sounds", f"{stem}.wav")) for stem in stems]
    assert without_stages(err).splitlines()[1] == "audioldm2: 2 of 6: a dog barks"
    records = [json.loads(Path("new/sounds", f"{stem}.json").read_text()) for stem in stems]
    assert [record["prompt"] for record in records] == [
        "rain",
        "a dog barks",
        "Rain",
        "rain-2",
        "rain?",
        "rain",
    ]


def test_a_prompt_sounds_the_same_from_a_file_and_alone(sound, folder):
    (folder / "prompts.txt").write_text("a much longer prompt than the other one\ndog\n")
    sound("--prompts", "prompts.txt")
    sound("dog", "-o", "alone.wav")
    assert_same_sound("dog.wav", "alone.wav")


def test_quiet_says_nothing(sound, folder):
    (folder / "prompts.txt").write_text("rain\ndog\n")
    assert sound("--prompts", "prompts.txt", "--quiet") == (0, "rain.wav\ndog.wav\n", "")


# Settings ---------------------------------------------------------------------------------------------------


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
def test_each_setting_reaches_the_sound_and_its_record(sound, folder, flags, setting, value):
    sound("dog", "-o", "plain.wav")
    assert sound("dog", "-o", "a.wav", *flags)[CODE] == 0
    assert json.loads(Path("a.json").read_text())[setting] == value
    if flags != ("--device", "cpu"):
        assert (folder / "a.wav").read_bytes() != (folder / "plain.wav").read_bytes()


@pytest.mark.parametrize("flag", ["--offload", "--low-memory"])
def test_saving_memory_changes_no_sound(sound, flag):
    sound("dog", "-o", "plain.wav", "--candidates", "2")
    sound("dog", "-o", "a.wav", "--candidates", "2", flag)
    assert_same_sound("a.wav", "plain.wav")


@pytest.mark.parametrize("flag", ["offload", "low_memory", "compile"])
def test_each_flag_of_the_model_reaches_load(run, tiny_model, monkeypatch, flag):
    seen = {}
    monkeypatch.setattr(
        audioldm2, "load", lambda source, **how: seen.update(how, source=source) or tiny_model
    )
    flags = "--model some/where --device cpu --dtype float16 --heads trained --revision v1"
    assert run("dog", *flags.split(), "--" + flag.replace("_", "-"), *QUICK)[CODE] == 0
    assert seen == dict(
        source="some/where", device="cpu", dtype="float16", heads="trained", revision="v1", offload=False,
        low_memory=False, compile=False,
    ) | {flag: True}  # fmt: skip


def test_the_list_of_samplers_has_a_line_for_each(run):
    code, out, err = run("--sampler", "list")
    assert (code, err) == (0, "")
    assert [text.split()[0] for text in out.splitlines()] == list(audioldm2.SAMPLERS)
    assert all(len(text.split()) > 4 for text in out.splitlines())


def test_version(run):
    assert run("--version") == (0, f"audioldm2 {version('audioldm2')}\n", "")


@pytest.mark.parametrize("command", [(), ("generate",)])
def test_help_names_every_flag_and_fits_the_screen(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    for action in generate_parser()._actions:
        assert action.help and all(flag in out for flag in action.option_strings)
    assert max(map(len, out.splitlines())) <= 110


# Progress ---------------------------------------------------------------------------------------------------


def test_a_bar_moves_on_a_terminal_and_a_note_stands_on_its_own_line(sound, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = sound("dog " * 400, "-o", "a.wav", "--candidates", "2")
    for stage in STAGE_LINES:
        assert stage in err
    assert "2/2" in err
    assert "\raudioldm2: note: " in err
    quiet = sound("dog", "-o", "a.wav", "--quiet")[ERR]
    assert quiet == ""


def test_in_a_log_each_stage_is_a_line(sound):
    _, _, err = sound("dog", "-o", "a.wav", "--candidates", "2")
    assert err.splitlines() == [f"audioldm2: {stage}" for stage in STAGE_LINES]
    assert sound("dog", "-o", "a.wav", "--quiet")[ERR] == ""


# Mistakes ---------------------------------------------------------------------------------------------------

MISTAKES = {
    "no prompt": ((), "give either one prompt", "--prompts"),
    "prompt twice": (("dog", "--prompts", "prompts.txt"), "give either one prompt"),
    "empty prompt": ((" ",), "the prompt is empty"),
    "words without quotes": (("rain", "on", "a", "roof"), "on a roof", "in quotes", "audioldm2 --help"),
    "unknown flag": (("dog", "--loud"), "--loud", "audioldm2 --help"),
    "flag of the prompt": (("--prompt", "dog"), "--prompt", "without a flag, in quotes"),
    "flag mistyped": (("dog", "--step", "5"), "--step 5; did you mean --steps?"),
    "flag with an underscore": (("dog", "--negative_prompt=x"), "did you mean --negative-prompt?"),
    "text that begins with a dash": (("dog", "--negative-prompt", "-vocals"), "--negative-prompt='-...'"),
    "flag without value": (("dog", "--steps"), "--steps: expected one argument"),
    "no file of prompts": (("--prompts", "nowhere.txt"), "nowhere.txt", "No such file"),
    "folder of prompts": (("--prompts", "."), "Is a directory"),
    "no duration": (("dog", "--duration", "0"), "--duration is 0.0; it has to be"),
    "duration below 0": (("dog", "--duration", "-1"), "--duration is -1.0; it has to be"),
    "duration nan": (("dog", "--duration", "nan"), "--duration is nan; it has to be"),
    "duration inf": (("dog", "--duration", "inf"), "--duration is inf; it has to be"),
    "endless duration": (("dog", "--duration", "1e9"), "--duration is 1000000000.0; it has to be"),
    "duration in words": (("dog", "--duration", "long"), "--duration: 'long' is not a number"),
    "no steps": (("dog", "--steps", "0"), "--steps is 0; it has to be a whole number from 1 to 1000"),
    "steps above 1000": (("dog", "--steps", "1001"), "--steps is 1001; it has to be a whole number from 1"),
    "steps in words": (("dog", "--steps", "x"), "--steps: 'x' is not a whole number"),
    "half a step": (("dog", "--steps", "2.5"), "--steps: '2.5' is not a whole number"),
    "steps below the sampler's": (("dog", "--steps", "3", "--sampler", "pndm"), "--steps is 3", "from 4"),
    "steps above the sampler's": (("dog", "--steps", "1000"), "--steps is 1000", "from 1 to 998"),
    "unknown sampler": (("dog", "--sampler", "x"), "--sampler is 'x'", *audioldm2.SAMPLERS),
    "unknown device": (("dog", "--device", "tpu"), "--device='tpu'", "cpu"),
    "unknown dtype": (("dog", "--dtype", "int8"), "--dtype='int8'", "float32, float16, bfloat16"),
    "unknown heads": (("dog", "--heads", "8"), "--heads", "config", "trained"),
    "no candidates": (("dog", "--candidates", "0"), "--candidates is 0; it has to be"),
    "seed below 0": (("dog", "--seed", "-1"), "--seed is -1; it has to be"),
    "guidance nan": (("dog", "--guidance", "nan"), "--guidance is nan; it has to be a finite number"),
    "eta above 1": (("dog", "--sampler", "ddim", "--eta", "2"), "--eta is 2.0"),
    "eta of another sampler": (("dog", "--eta", "0.5", "--sampler", "dpmpp_2m"), "--eta is 0.5", "ddim"),
    "karras of another sampler": (("dog", "--karras", "--sampler", "ddim"), "--karras is True", "dpmpp_2m"),
    "rescale above 1": (("dog", "--guidance-rescale", "2"), "--guidance-rescale is 2.0; it has to be"),
    "interval the wrong way": (("dog", "--guidance-interval", "5", "1"), "--guidance-interval is [5.0, 1.0]"),
    "half an interval": (("dog", "--guidance-interval", "5"), "--guidance-interval: expected 2 arguments"),
    "two ways to save memory": (("dog", "--offload", "--low-memory"), "--low-memory: not allowed with"),
    "no such model": (("dog", "--model", "./nowhere"), "no folder './nowhere'"),
    "empty folder": (("dog", "--model", "empty"), "empty", "is not a checkpoint"),
    "model is a file": (("dog", "--model", "file.txt"), "'file.txt' is a file"),
    "output of another kind": (("dog", "-o", "a.mp3"), "-o a.mp3", ".wav, .flac, .ogg"),
    "output without suffix": (("dog", "-o", "sounds"), "-o sounds", "neither a folder", ".wav"),
    "output in no folder": (("dog", "-o", "nowhere/a.wav"), "folder nowhere does not exist"),
    "output of prompts is a file": (("--prompts", "file.txt", "-o", "file.txt"), "-o file.txt", "folder"),
    "output of prompts is a sound": (("--prompts", "file.txt", "-o", "a.wav"), "-o a.wav", "folder"),
    "name is a folder": (("dog", "-o", "with_folder"), "dog.wav", "is a folder"),
    "convert nothing": (("convert",), "SOURCE, OUT", "audioldm2 convert --help"),
    "convert from nowhere": (("convert", "./nowhere", "out"), "no folder './nowhere'"),
    "convert an empty folder": (("convert", "empty", "out"), "is not a checkpoint"),
    "convert to a folder in no folder": (("convert", "empty", "nowhere/out"), "nowhere does not exist"),
    "convert to an unknown dtype": (("convert", "empty", "out", "--dtype", "int8"), "--dtype", "bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(run, folder, mistake):
    (folder / "empty").mkdir()
    (folder / "with_folder" / "dog.wav").mkdir(parents=True)
    (folder / "file.txt").write_text("dog")
    arguments, *words = MISTAKES[mistake]
    assert_refused(run(*arguments), *words)
    assert names(folder) == ["file.txt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no prompt"), (b"\n  \r\n", "no prompt"), ("größer".encode("latin-1"), "not UTF-8 text"),
     ("dog".encode("utf-16"), "not UTF-8 text")],
)  # fmt: skip
def test_a_file_that_holds_no_prompts_is_refused(run, folder, content, words):
    (folder / "prompts.txt").write_bytes(content)
    assert_refused(run("--prompts", "prompts.txt", "-o", "sounds"), "prompts.txt", words)
    assert names(folder) == ["prompts.txt"]


def test_mistakes_are_told_before_the_model_is_looked_for(run):
    for mistake in (("--steps", "0"), ("--duration", "-1"), ("--sampler", "x"), ("-o", "a.mp3")):
        _, _, err = run("dog", "--model", "./nowhere", *mistake)
        assert "nowhere" not in err


def test_a_hub_id_without_a_network_is_told(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(run("dog", "--model", "nobody/has-this"), "nobody/has-this", "hf download")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody may write")
@pytest.mark.parametrize("command", [("dog", "-o", "/proc/a.wav"), ("convert", "empty", "/proc/out")])
def test_a_folder_that_cannot_be_written_to_is_told_to_root_too(run, command):
    assert_refused(run(*command), "/proc cannot be written to")


def test_a_read_only_disk_is_told_before_the_model_is_loaded(sound, monkeypatch):
    def read_only(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert_refused(sound("dog", "--model", "./nowhere"), "cannot be written to", "Read-only file system")


def test_too_little_memory_is_told(sound, monkeypatch):
    def starved(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(audioldm2.AudioLDM2, "denoise", starved)
    code, out, err = sound("dog")
    assert_refused((code, out, without_stages(err)), "not enough memory", "--low-memory")


def test_a_fault_of_the_program_is_not_hidden(sound, monkeypatch):
    def faulty(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(audioldm2.AudioLDM2, "denoise", faulty)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sound("dog")


def test_the_caller_s_warnings_are_left_as_they_were(run):
    before = warnings.showwarning
    run("--sampler", "list")
    assert warnings.showwarning is before


# Interruptions and full disks -------------------------------------------------------------------------------


@pytest.fixture
def two_prompts(folder, sound):
    """Make two sounds with two candidates each, into a folder; returns what ran and what it left there."""
    (folder / "prompts.txt").write_text("rain\ndog\n")

    def two_prompts() -> tuple[tuple[int, str, str], list[str]]:
        result = sound("--prompts", "prompts.txt", "-o", "out", "--candidates", "2", "--quiet")
        return result, names(folder / "out") if (folder / "out").exists() else []

    return two_prompts


def fail_at(monkeypatch, owner: object, name: str, call: int, error: BaseException) -> None:
    """Let a function raise in one of its calls, after it has done its work; the others are as ever."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        result = original(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


FIRST = ["rain.json", "rain.wav"]
STAGES = {  # stage: whose function, which, in which call it is interrupted, what is left
    "loading": (placement, "build_on_meta", 3, []),
    "encoding": (audioldm2.AudioLDM2, "encode_prompt", 2, FIRST),
    "denoising": (audioldm2.AudioLDM2, "denoise", 2, FIRST),
    "decoding": (audioldm2.AudioLDM2, "decode", 2, FIRST),
    "vocoding": (audioldm2.AudioLDM2, "vocode", 2, FIRST),
    "ranking": (audioldm2.AudioLDM2, "score", 2, FIRST),
    "writing the sound": (Path, "write_bytes", 2, FIRST),
    "writing its record": (Path, "write_text", 2, ["dog.wav", *FIRST]),
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_keeps_what_is_finished_and_leaves_no_draft(two_prompts, monkeypatch, stage):
    owner, name, call, left = STAGES[stage]
    fail_at(monkeypatch, owner, name, call, KeyboardInterrupt())
    (code, out, err), found = two_prompts()
    assert code == 130
    assert out == (f"{Path('out', 'rain.wav')}\n" if left else "")
    assert err.startswith("audioldm2: interrupted") and err.count("\n") == 1
    assert found == left


@posix
def test_a_real_interrupt_while_the_second_sound_is_made(folder, tiny_folder):
    (folder / "prompts.txt").write_text("rain\ndog\n")
    # Many steps: on a busy machine this process may read the line a second late.
    # What a shell starts in the background ignores the signal, and so would what these tests start.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    given = "--prompts", "prompts.txt", "--model", tiny_folder, "--steps", "150", "--quiet"
    with process(*given, **heard) as made:
        assert made.stdout.readline() == "rain.wav\n"
        made.send_signal(signal.SIGINT)
        out, err = made.communicate()
    assert (made.returncode, out) == (130, "")
    assert err.startswith("audioldm2: interrupted") and err.count("\n") == 1
    assert names(folder) == ["prompts.txt", *FIRST]


@pytest.mark.parametrize(
    ("method", "call", "file", "left"),
    [("write_bytes", 2, "dog.wav", FIRST), ("write_text", 2, "dog.json", ["dog.wav", *FIRST])],
)
def test_a_full_disk_keeps_what_is_finished_and_leaves_no_draft(
    two_prompts, monkeypatch, method, call, file, left
):
    fail_at(monkeypatch, Path, method, call, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    (code, out, err), found = two_prompts()
    assert (code, out) == (2, f"{Path('out', 'rain.wav')}\n")
    assert err == f"audioldm2: error: {Path('out', file)}: No space left on device\n"
    assert found == left


@posix
def test_a_real_limit_on_the_size_of_files(folder, tiny_folder):
    limited = (
        "import resource, sys; from audioldm2.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # Python ignores SIGXFSZ\n"
        f"print(main(['dog', '--model', {str(tiny_folder)!r}, '-o', 'a.wav', *{QUICK}]))\n"
        f"print(main(['convert', {str(tiny_folder)!r}, 'copy']))\n"
    )
    made = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert made.stdout == "2\n2\n"
    errors = [text for text in made.stderr.splitlines() if text.startswith("audioldm2: error: ")]
    assert errors[0] == "audioldm2: error: a.wav: File too large"
    assert "copy" in errors[1] and len(errors) == 2
    assert "Traceback" not in made.stderr
    assert names(folder) == [] and list(folder.iterdir()) == []


@posix
@pytest.mark.parametrize("command", [("--help",), ("--sampler", "list")])
def test_an_output_that_nobody_reads_ends_it_silently(command):
    reader, writer = os.pipe()
    os.close(reader)
    made = subprocess.run(
        [sys.executable, "-m", "audioldm2", *command], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert made.stderr == ""
    assert made.returncode in (0, 141)  # argparse itself swallows the error where Python does not buffer


# Converting -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory) -> Path:
    """A tiny checkpoint in the diffusers layout."""
    folder = tmp_path_factory.mktemp("diffusers") / "tiny"
    write_diffusers(folder)
    return folder


def test_convert_writes_a_folder_that_makes_the_same_sound(run, diffusers_folder):
    code, out, err = run("convert", diffusers_folder, "converted")
    assert (code, out) == (0, "converted\n")
    networks = [name for name in NETWORKS if name != "phonemes"]
    read, written = (
        [line.split()[place] for line in err.splitlines() if line.startswith("writing") == bool(place)]
        for place in (0, 1)
    )
    assert read[: len(networks)] == written == networks  # a line each; what was dropped stands between
    run("dog", "-o", "a.wav", "--model", diffusers_folder, *QUICK)
    assert run("dog", "-o", "b.wav", "--model", "converted", *QUICK)[CODE] == 0
    assert_same_sound("a.wav", "b.wav")


def test_convert_casts(run, diffusers_folder):
    run("convert", diffusers_folder, "half", "--dtype", "float16")
    state = load_file("half/unet.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_convert_replaces_only_with_force_and_only_a_converted_folder(run, folder, diffusers_folder):
    run("convert", diffusers_folder, "out")
    (folder / "out" / "config.json").touch()
    assert_refused(run("convert", diffusers_folder, "out"), "out exists already", "--force")
    assert run("convert", diffusers_folder, "out", "--force")[CODE] == 0

    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    refused = run("convert", diffusers_folder, "precious", "--force")
    assert_refused(refused, "precious is not a converted folder")
    assert (folder / "precious" / "thesis.txt").exists()


def test_a_broken_source_leaves_nothing(run, folder, diffusers_folder):
    shutil.copytree(diffusers_folder, folder / "broken")
    (folder / "broken" / "unet" / "config.json").write_text("{")
    assert_refused(run("convert", "broken", "out"), "config.json", "JSON")
    assert not (folder / "out").exists()


def test_an_interrupted_conversion_leaves_nothing(run, folder, diffusers_folder, monkeypatch):
    fail_at(monkeypatch, storage, "save_file", 3, KeyboardInterrupt())
    code, out, _ = run("convert", diffusers_folder, "out")
    assert (code, out) == (130, "")
    assert list(folder.iterdir()) == []


def test_python_m_convert_is_the_same_program(folder):
    root = Path(__file__).resolve().parents[2]
    made = subprocess.run(
        [sys.executable, "-m", "convert", "./nowhere", folder / "out"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert_refused((made.returncode, made.stdout, made.stderr), "no folder './nowhere'")
