"""Mistakes on the command line: each ends in one sentence, before a model is loaded, and writes nothing."""

import errno
import os
import tempfile
import warnings
from pathlib import Path

import pytest

import audioldm2
from tests.support.command_line import assert_refused, names

pytestmark = pytest.mark.usefixtures("folder")

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
    "duration in words": (("dog", "--duration", "long"), "--duration is 'long'; it has to be a"),
    "no steps": (("dog", "--steps", "0"), "--steps is 0; it has to be a whole number"),
    "steps above 1000": (("dog", "--steps", "1001"), "--steps is 1001; it has to be", "1 to 1000"),
    "steps in words": (("dog", "--steps", "x"), "--steps is 'x'; it has to be a whole number"),
    "half a step": (("dog", "--steps", "2.5"), "--steps is '2.5'; it has to be a whole number"),
    "steps below the sampler's": (("dog", "--steps", "3", "--sampler", "pndm"), "--steps is 3", "from 4"),
    "steps above the sampler's": (("dog", "--steps", "1000"), "--steps is 1000", "from 1 to 998"),
    "unknown sampler": (("dog", "--sampler", "x"), "--sampler is 'x'", *audioldm2.SAMPLERS),
    "unknown device": (("dog", "--device", "tpu"), "device", "'tpu'", "cpu"),
    "unknown dtype": (("dog", "--dtype", "int8"), "--dtype is 'int8'", "float32, float16, bfloat16"),
    "unknown heads": (("dog", "--heads", "8"), "--heads", "config", "trained"),
    "no candidates": (("dog", "--candidates", "0"), "--candidates is 0; it has to be"),
    "seed below 0": (("dog", "--seed", "-1"), "--seed is -1; it has to be"),
    "seed in words": (("dog", "--seed", "x"), "--seed is 'x'; it has to be a whole number from 0"),
    "unknown kernels": (("dog", "--ops", "fast"), "--ops", "auto", "reference"),
    "guidance nan": (("dog", "--guidance", "nan"), "--guidance is nan; it has to be a finite number"),
    "eta above 1": (("dog", "--sampler", "ddim", "--eta", "2"), "--eta is 2.0"),
    "eta of another sampler": (("dog", "--eta", "0.5", "--sampler", "dpmpp_2m"), "--eta is 0.5", "ddim"),
    "karras of another sampler": (("dog", "--karras", "--sampler", "ddim"), "--karras is True", "dpmpp_2m"),
    "rescale above 1": (("dog", "--guidance-rescale", "2"), "--guidance-rescale is 2.0; it has to be"),
    "interval the wrong way": (("dog", "--guidance-interval", "5", "1"), "--guidance-interval is [5.0, 1.0]"),
    "interval in words": (("dog", "--guidance-interval", "0", "x"), "--guidance-interval[1] is 'x'"),
    "half an interval": (("dog", "--guidance-interval", "5"), "--guidance-interval: expected 2 arguments"),
    "two ways to save memory": (("dog", "--offload", "--low-memory"), "--low-memory: not allowed with"),
    "compiled on disk": (("dog", "--compile", "--low-memory"), "--low-memory: not allowed with"),
    "a prompt too early": (("dog", "--at", "0.01", "cat"), "--at is 0.01; it has to leave each prompt at"),
    "a prompt too late": (("dog", "--duration", "1", "--at", "0.99", "cat"), "--at is 0.99; it has to leave"),
    "an empty later prompt": (("dog", "--at", "1", " "), "--at 1 has an empty prompt; it has to end with"),
    "later prompts with a sound": (("dog", "--at", "1", "cat", "--audio", "x.wav"), "left out with --audio"),
    "seconds in front of nothing": (("dog", "--extend-before", "1"), "--extend-before is 1.0", "--audio"),
    "seconds in front of an edit": (
        ("dog", "--audio", "x.wav", "--source", "cat", "--extend-before", "1"),
        "--extend-before is 1.0; it has to be left out of an edit",
    ),
    "overlap of nothing": (("dog", "--overlap", "0.3"), "--overlap is 0.3", "a loop, or denoised in windows"),
    "an adapter twice": (("dog", "--lora", "empty", "--lora", "empty"), "--lora names empty twice"),
    "weight nan": (("dog", "--lora", "empty:nan"), "--lora: the weight is nan; it has to be a number from"),
    "weight of a conversion": (("convert", "demo", "out", "--lora", "empty:1e9"), "the weight is 1e+09"),
    "no such recipe": (
        ("train", "--stage", "ldm", "--data", "empty", "--out", "out", "--config", "nowhere"),
        "--config is 'nowhere'; it has to be one of published, small, finetune, or a JSON file",
    ),
    "no seconds of clips": (
        ("train", "--stage", "ldm", "--data", "empty", "--out", "out", "--seconds", "nan"),
        "--seconds is nan; it has to be",
    ),
    "no rank": (
        ("train", "--lora", "0", "--data", "empty", "--out", "out", "--model", "demo"),
        "--lora is 0; it has to be a whole number from 1 to 1024",
    ),
    "seeds of sounds that exist": (
        ("evaluate", "--sounds", "empty", "--judge", "demo", "--seeds", "3"),
        "--seeds is 3; it has to be left out with --sounds",
    ),
    "no file of facts": (("verify", "demo", "--facts", "nowhere.json"), "nowhere.json cannot be found"),
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


# Flags and arguments that name a file, a folder or a model.
NAMES = {
    "-o": ("dog",), "--model": ("dog",), "--lora": ("dog",), "--prompts": (), "--audio": ("dog",),
    "OUT": ("convert", "demo"), "SOURCE": ("info",), "MODEL": ("verify",), "--json": ("verify", "demo"),
    "--facts": ("verify", "demo"), "SOUND": ("score", "--prompt", "dog", "--model", "demo"),
    "--judge": ("evaluate",), "--sounds": ("evaluate",), "--reference": ("evaluate",), "--out": ("evaluate",),
    "--data": ("train",), "--mix": ("train",), "--validation": ("train",), "--config": ("train",),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_empty_name_is_not_the_current_folder(run, folder, name):
    """As from a variable of the shell that is not set."""
    (folder / "dog.wav").write_bytes(b"kept")
    flag = [name] if name.startswith("-") else []
    assert_refused(run(*NAMES[name], *flag, ""), name, "empty" if name != "--audio" else "is ''")
    assert names(folder) == ["dog.wav"]


def test_resuming_allows_what_its_sentence_says(run, folder):
    outcome = run("train", "--resume", "--out", "runs", "--seed", "1")
    assert_refused(outcome, "only --steps, --device, --workers and --shard")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence_and_writes_nothing(run, folder, mistake):
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
def test_rejects_file_without_prompts(run, folder, content, words):
    (folder / "prompts.txt").write_bytes(content)
    assert_refused(run("--prompts", "prompts.txt", "-o", "sounds"), "prompts.txt", words)
    assert names(folder) == ["prompts.txt"]


def test_mistakes_are_found_before_the_model_is_looked_for(run):
    for mistake in (("--steps", "0"), ("--duration", "-1"), ("--sampler", "x"), ("-o", "a.mp3")):
        _, _, err = run("dog", "--model", "./nowhere", *mistake)
        assert "nowhere" not in err


def test_hub_id_without_network(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(run("dog", "--model", "nobody/has-this"), "nobody/has-this", "hf download")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody may write")
@pytest.mark.parametrize("command", [("dog", "-o", "/proc/a.wav"), ("convert", "empty", "/proc/out")])
def test_rejects_folder_that_root_cannot_write_to(run, command):
    assert_refused(run(*command), "/proc cannot be written to")


def test_read_only_disk_is_found_before_the_model_is_loaded(sound, monkeypatch):
    def read_only(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert_refused(sound("dog", "--model", "./nowhere"), "cannot be written to", "Read-only file system")


def test_warnings_of_the_caller_are_restored(run):
    before = warnings.showwarning
    run("--sampler", "list")
    assert warnings.showwarning is before


def test_note_on_a_long_prompt_shows_only_the_start_of_what_is_cut(sound):
    code, _, err = sound("rain " * 3000, "-o", "rain.wav")
    [note] = [line for line in err.splitlines() if "longer than" in line]
    assert code == 0 and "this part is ignored: '" in note and len(note) < 250
