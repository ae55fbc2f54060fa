"""Names of sounds, records and pictures, and what they may replace."""

import json
from pathlib import Path

import pytest

from audioldm2.cli.output_files import is_picture, is_record, plan_jobs
from tests.support.command_line import CODE, ERR, OUT, assert_refused, names

pytestmark = pytest.mark.usefixtures("folder")

NOT_RECORDS = {
    "list": "[1, 2]",
    "of the user": '{"file": "a.wav", "loudness": -23}',
    "of another sound": '{"audioldm2": "0.1.0", "file": "b.wav"}',
    "not JSON": "{",
    "empty": "",
    "not UTF-8": b'{"audioldm2": "\xff", "file": "a.wav"}',
    "deep": "[" * 100_000,
}


def test_sounds_of_one_stem_have_a_record_each(sound, folder):
    sound("rain", "-o", "x.flac")
    sound("dog", "-o", "x.wav")
    assert names(folder) == ["x.flac", "x.flac.json", "x.wav", "x.wav.json"]
    for name, prompt in (("x.flac", "rain"), ("x.wav", "dog")):
        record = json.loads(Path(f"{name}.json").read_text())
        assert (record["file"], record["prompt"]) == (name, prompt)


@pytest.mark.slow
def test_own_record_and_picture_are_replaced(sound):
    for seed in ("1", "2"):
        assert sound("dog", "-o", "a.wav", "--plot", "--seed", seed)[CODE] == 0
        assert json.loads(Path("a.wav.json").read_text())["seed"] == int(seed)
        assert is_picture(Path("a.wav.png")) and is_record(Path("a.wav.json"), "a.wav")


@pytest.mark.parametrize("kind", NOT_RECORDS)
def test_json_of_the_user_is_not_replaced(run, folder, kind):
    content = NOT_RECORDS[kind]
    content = content if isinstance(content, bytes) else content.encode()
    Path("a.wav.json").write_bytes(content)
    assert_refused(
        run("dog", "-o", "a.wav", "--model", "./nowhere"), "a.wav.json exists and is not a record of a.wav"
    )
    assert Path("a.wav.json").read_bytes() == content and names(folder) == ["a.wav.json"]


def test_json_of_the_user_stays_without_records(sound):
    Path("a.wav.json").write_text("[]")
    assert sound("dog", "-o", "a.wav", "--no-json")[CODE] == 0
    assert Path("a.wav.json").read_text() == "[]"


def test_picture_of_the_user_is_not_replaced(run, sound):
    from matplotlib.figure import Figure

    Figure().savefig("a.wav.png")
    before = Path("a.wav.png").read_bytes()
    assert_refused(
        run("dog", "-o", "a.wav", "--plot", "--model", "./nowhere"), "a.wav.png exists and is not a picture"
    )
    assert sound("dog", "-o", "a.wav")[CODE] == 0
    assert Path("a.wav.png").read_bytes() == before


@pytest.mark.parametrize("existing", ["a.wav", "a.wav.json", "a.wav.png"])
def test_no_clobber_refuses_before_the_model_is_loaded(run, folder, existing):
    Path(existing).write_text("mine")
    refused = run("dog", "-o", "a.wav", "--plot", "--no-clobber", "--model", "./nowhere")
    assert_refused(refused, f"{existing} exists already", "--no-clobber")
    assert Path(existing).read_text() == "mine"


def test_no_clobber_refuses_any_file_of_several_prompts(run, folder):
    Path("prompts.txt").write_text("rain\ndog\n")
    Path("dog.wav").touch()
    assert_refused(
        run("--prompts", "prompts.txt", "--no-clobber", "--model", "./nowhere"), "dog.wav exists already"
    )


def test_no_clobber_writes_new_files(sound):
    assert sound("dog", "-o", "a.wav", "--no-clobber")[OUT] == "a.wav\n"


@pytest.mark.parametrize("name", ["a.wav", "a.wav.json", "a.wav.png"])
def test_folder_in_the_place_of_a_file(run, name):
    Path(name).mkdir()
    output = ["-o", "a.wav"] if name != "a.wav" else ["-o", "with"]
    if name == "a.wav":
        Path("with", "dog.wav").mkdir(parents=True)
    assert_refused(run("dog", *output, "--plot", "--model", "./nowhere"), "is a folder")


def test_name_too_long_for_its_record(run):
    assert_refused(
        run("dog", "-o", "a" * 248 + ".wav", "--model", "./nowhere"), "too long for the name of a file"
    )


def test_cut_names_of_several_prompts_are_distinct(folder):
    start = "a very long description of rain on a roof " * 3
    prompts = [start + end for end in ("one", "two", "ONE", "three")] + [start.upper() + "one"]
    Path("prompts.txt").write_text("\n".join(prompts))
    jobs = plan_jobs(None, Path("prompts.txt"), None)
    assert [job.prompt for job in jobs] == prompts
    files = [path.name.casefold() for job in jobs for path in (job.sound, job.record, job.picture)]
    assert len(set(files)) == len(files) == 3 * len(prompts)


def test_record_beside_a_name_that_is_not_utf8(sound, folder):
    name = b"caf\xe9.wav".decode(errors="surrogateescape")
    code, _, err = sound("dog", "-o", name, "--quiet")
    assert (code, err) == (0, "")
    assert json.loads((folder / f"{name}.json").read_text())["file"] == name
    assert sound("dog", "-o", name, "--quiet")[ERR] == ""  # and is known as one
