"""`audioldm2 convert` and `audioldm2 info` on original files, as their users meet them.

What is written and what is said; every mistake is one sentence and exit code 2, and leaves nothing behind.
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.cli.main import main
from tests.support import checkpoints, originals

CODE, OUT, ERR = 0, 1, 2
BASE, MADE = "base.pth", originals.make("base")
QUICK = ("--duration", "0.25", "--steps", "2", "--quiet")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A file of each kind, and tokenizers in a folder of their own."""
    folder = tmp_path_factory.mktemp("files")
    for kind in originals.CONFIGS:
        originals.save(folder / f"{kind}.pth", originals.make(kind).table)
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (folder / "tokenizers" / name).mkdir(parents=True)
    checkpoints.write_tokenizers(*(folder / "tokenizers" / f"{name}_tokenizer" for name in ("clap", "t5")))
    return folder


@pytest.fixture(autouse=True)
def folder(files, tmp_path, monkeypatch) -> Path:
    """The folder that each test runs in: the files, tokenizers beside them, no network, an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    for kind in originals.CONFIGS:
        (here / f"{kind}.pth").symlink_to(files / f"{kind}.pth")
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (here / name).symlink_to(files / "tokenizers" / name)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def run(capsys) -> Run:
    """Run a command as typed; returns its exit code, what it printed and what it said."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:  # --help
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def ready(files, tmp_path_factory) -> dict[str, Path]:
    """The base model converted, and exported, to be read only."""
    made = tmp_path_factory.mktemp("ready")
    tokenizers = {name: files / "tokenizers" / name for name in storage.TOKENIZERS}
    storage.write(convert.read_original(files / BASE, tokenizers=tokenizers), made / "converted")
    convert.write_diffusers(storage.read(made / "converted"), made / "diffusers")
    return {name: made / name for name in ("converted", "diffusers")}


def here() -> list[str]:
    """Everything in this folder that a test made, hidden drafts too."""
    given = {*(f"{kind}.pth" for kind in originals.CONFIGS), "clap_tokenizer", "t5_tokenizer"}
    return sorted({path.name for path in Path().iterdir()} - given)


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """One sentence on stderr that has these words, nothing on stdout, exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("audioldm2: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "usage:" not in err
    for word in words:
        assert word in err, err


def assert_given_up(result: tuple[int, str, str], *words: str) -> None:
    """As above, after a report of what was begun."""
    code, out, err = result
    *report, last = err.splitlines(keepends=True)
    assert not any("error" in line or "Traceback" in line for line in report)
    assert_refused((code, out, last), *words)


def without_report(err: str) -> str:
    """What a command said, less the lines that tell what is read, dropped and written."""
    return "".join(line for line in err.splitlines(keepends=True) if line.startswith("audioldm2: "))


def states_of(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    return {name: open_state() for name, open_state in storage.read(Path(folder)).states.items()}


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert found[name].keys() == state.keys()
        assert all(torch.equal(found[name][key], tensor) for key, tensor in state.items()), name


def table(kind: str, **changes: object) -> dict[str, object]:
    """The table of a kind's file, less the average, with some keys changed."""
    whole = originals.make(kind).table
    return {key: each for key, each in whole.items() if not key.startswith("model_ema.")} | changes


# Converting -----------------------------------------------------------------------------------------------


def test_an_original_becomes_a_folder_that_makes_sounds(run):
    code, out, err = run("convert", "48k.pth", "out")
    assert (code, out, without_report(err)) == (0, "out\n", "")
    assert_same(states_of("out"), originals.make("48k").states)
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK) == (0, "dog.wav\n", "")
    assert run("a dog", "--model", "48k.pth", "-o", "again.wav", *QUICK)[OUT] == "again.wav\n"
    one, other = (soundfile.read(name) for name in ("dog.wav", "again.wav"))
    assert one[1] == other[1] == 48000 and one[0].shape == other[0].shape == (12000,)
    assert abs(one[0] - other[0]).max() < 1e-3


def test_the_record_of_a_sound_tells_the_original(run):
    run("convert", "t5.pth", "out")
    run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)
    record = json.loads(Path("dog.wav.json").read_text())
    assert (record["model"], record["converted_from"], record["heads"]) == ("out", "t5.pth", [1, 2])


@pytest.mark.parametrize("kind", ["base", "speech"])
def test_every_network_is_told_and_all_that_is_left_with_its_reason(run, kind):
    made = originals.make(kind)
    err = run("convert", f"{kind}.pth", "out", "--dry-run")[ERR]
    read = dict(re.findall(r"^(\w+) +(\d+) tensors", err, flags=re.M))
    dropped = re.findall(r"^dropped +(\d+) tensors +([\d.]+) MB +(.+)$", err, flags=re.M)
    assert read.keys() - {"dropped"} == made.configs.keys()
    for name, state in made.states.items():
        added = {"mean", "scale"} if name == "hifigan" else set()  # which the original has not
        assert int(read[name]) == len(state.keys() - added)
    assert sum(int(count) for count, _, _ in dropped) == len(made.unused)
    assert all(len(reason.split()) > 2 for _, _, reason in dropped)
    average = sum(each.nbytes for key, each in made.table.items() if key.startswith("model_ema."))
    (megabytes,) = [size for _, size, reason in dropped if "--ema takes it" in reason]
    assert float(megabytes) == pytest.approx(average / 1e6, abs=0.06)


def test_a_dry_run_writes_nothing(run, folder):
    before = sorted(folder.rglob("*"))
    code, out, err = run("convert", BASE, "out", "--dry-run")
    assert (code, out, without_report(err)) == (0, "", "")
    assert sorted(folder.rglob("*")) == before
    assert run("convert", BASE, "out")[ERR].startswith(err)  # the same report, before it is done


def test_a_dry_run_says_nothing_of_a_folder_that_exists(run, folder):
    (folder / "out").mkdir()
    assert run("convert", "t5.pth", "out", "--dry-run")[CODE] == 0


def test_copies_that_differ_are_noted(run):
    key = "cond_stage_models.0.cond_stage_models.0.model.text_projection.0.bias"
    originals.save(Path("a.pth"), table("base", **{key: torch.ones(10)}))
    code, _, err = run("convert", "a.pth", "out")
    assert code == 0
    assert without_report(err).startswith("audioldm2: note: the file holds two copies of CLAP that differ")
    assert without_report(err).count("\n") == 1
    assert_same(states_of("out"), MADE.states)


def test_the_average_is_taken_with_ema_alone(run):
    run("convert", BASE, "plain")
    run("convert", BASE, "averaged", "--ema")
    assert_same(states_of("plain"), MADE.states)
    assert_same(states_of("averaged"), MADE.states | {"unet": MADE.average})


def test_a_config_is_followed(run):
    Path("heads.json").write_text('{"unet": {"heads": [2, 4]}, "schedule": {"beta_end": 0.02}}')
    assert run("convert", "t5.pth", "out", "--config", "heads.json")[CODE] == 0
    found = storage.read(Path("out"))
    assert found.configs["unet"].heads == (2, 4)
    assert found.schedule["beta_end"] == 0.02


@pytest.mark.parametrize(("heads", "expected"), [("trained", (1, 2)), ("config", (8, 8))])
def test_heads_may_be_chosen(run, heads, expected):
    run("convert", "t5.pth", "out", "--heads", heads)
    assert storage.read(Path("out")).configs["unet"].heads == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_may_be_cast(run, dtype):
    run("convert", "base.pth", "out", "--dtype", dtype)
    for name, state in states_of("out").items():
        wide = {key for key, tensor in state.items() if str(tensor.dtype) != f"torch.{dtype}"}
        kept = {key for key in state if ".ff.out." in key} if (name, dtype) == ("t5", "float16") else set()
        assert wide == kept
        assert all(
            torch.equal(tensor, MADE.states[name][key].to(tensor.dtype)) for key, tensor in state.items()
        )


def test_a_value_beyond_float16_is_told_and_nothing_is_left(run):
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table("t5", **{key: torch.tensor([1.0, 7e4, 1.0])}))
    refused = run("convert", "a.pth", "out", "--dtype", "float16")
    assert_given_up(refused, "'conv_out.bias' of 'unet' in a.pth has values beyond torch.float16", "--dtype")
    assert here() == ["a.pth"]
    assert run("convert", "a.pth", "out", "--dtype", "bfloat16")[CODE] == 0


def test_values_that_are_no_numbers_are_told_and_nothing_is_left(run):
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table("t5", **{key: torch.tensor([1.0, float("nan"), 1.0])}))
    assert_given_up(run("convert", "a.pth", "out"), "'conv_out.bias' of 'unet' in a.pth", "no numbers")
    assert here() == ["a.pth"]


def test_speech_is_kept_and_not_run(run):
    assert run("convert", "speech.pth", "out")[:2] == (0, "out\n")
    assert_same(states_of("out"), originals.make("speech").states)
    assert_refused(run("hello", "--model", "out", *QUICK), "out is a speech model", "cannot be run yet")
    assert_refused(run("hello", "--model", "speech.pth", *QUICK), "is a speech model")


# Tokenizers -----------------------------------------------------------------------------------------------


@pytest.fixture
def alone(folder) -> None:
    """No tokenizers beside the files."""
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (folder / name).unlink()


def test_tokenizers_are_taken_from_a_folder(run, files, alone):
    assert run("convert", "t5.pth", "out", "--tokenizers", files / "tokenizers")[CODE] == 0
    for name in ("clap_tokenizer", "t5_tokenizer"):
        found = {path.name: path.read_bytes() for path in Path("out", name).iterdir()}
        assert found == {path.name: path.read_bytes() for path in (files / "tokenizers" / name).iterdir()}
    assert audioldm2.load("out", device="cpu").encode_prompt("a dog").text_context is not None


@pytest.mark.parametrize("layout", ["converted", "diffusers"])
def test_tokenizers_are_taken_from_another_model(run, ready, alone, layout):
    assert run("convert", "t5.pth", "out", "--tokenizers", ready[layout])[CODE] == 0
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)[CODE] == 0


def test_without_tokenizers_it_is_converted_with_a_note(run, files, alone):
    code, out, err = run("convert", "t5.pth", "out")
    assert (code, out) == (0, "out\n")
    assert without_report(err).startswith("audioldm2: note: no tokenizers were found")
    assert "--tokenizers" in err
    assert_same(states_of("out"), originals.make("t5").states)
    refused = run("a dog", "--model", "out", *QUICK)
    assert_refused(refused, "out", "clap_tokenizer")
    for name in ("clap_tokenizer", "t5_tokenizer"):  # as the note says
        shutil.copytree(files / "tokenizers" / name, Path("out", name))
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)[CODE] == 0


@pytest.mark.parametrize("content", ["nothing", "one of two", "broken"])
def test_a_folder_without_both_tokenizers_is_refused(run, files, alone, content):
    Path("mine").mkdir()
    if content != "nothing":
        shutil.copytree(files / "tokenizers" / "clap_tokenizer", "mine/clap_tokenizer")
    if content == "broken":
        Path("mine/t5_tokenizer").mkdir()
    result = run("convert", "base.pth", "out", "--tokenizers", "mine")
    assert_given_up(result, "mine")
    assert here() == ["mine"]


# Back to the diffusers layout -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["the original", "its converted folder"])
def test_it_goes_on_to_the_diffusers_layout(run, ready, source):
    given = BASE if source == "the original" else ready["converted"]
    code, out, err = run("convert", given, "out", "--to", "diffusers")
    assert (code, out, without_report(err)) == (0, "out\n", "")
    back = convert.read_diffusers(Path("out"))
    assert back.configs == MADE.configs
    assert_same({name: open_state() for name, open_state in back.states.items()}, MADE.states)
    assert (Path("out", "model_index.json")).is_file()


@pytest.mark.parametrize("kind", ["48k", "t5", "speech"])
def test_what_has_no_place_there_is_refused_before_anything_is_written(run, kind):
    refused = run("convert", f"{kind}.pth", "out", "--to", "diffusers")
    assert_refused(refused, f"{kind}.pth has the networks", "Keep it in the converted format")
    assert here() == []


def test_without_tokenizers_there_is_no_diffusers_layout(run, alone):
    """A pipeline without them cannot be loaded."""
    assert_given_up(run("convert", BASE, "out", "--to", "diffusers"), "tokenizer")
    assert here() == []


# Checking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--ema",), ("--heads", "config")])
def test_a_check_finds_all_as_it_should_be(run, options):
    run("convert", "t5.pth", "out", *options)
    count = sum(len(state) for state in originals.make("t5").states.values())
    assert run("convert", "t5.pth", "out", "--check", *options) == (
        0,
        f"out: all {count} tensors are those of t5.pth\n",
        "",
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_check_knows_a_cast(run, dtype):
    run("convert", "t5.pth", "out", "--dtype", dtype)
    assert run("convert", "t5.pth", "out", "--check")[CODE] == 0


def change(file: str, key: str, edit: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor of a safetensors file."""
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    os.unlink(file)  # a file that is mapped must not change
    save_file(state | {key: edit(state[key])}, file)


def one_bit(tensor: Tensor) -> Tensor:
    """The first value's last bit flipped."""
    tensor.view(torch.int32).view(-1)[0] ^= 1
    return tensor


@pytest.mark.parametrize(
    ("network", "key", "edit"),
    [
        ("unet", "conv_out.weight", one_bit),
        ("clap_audio", "band_norm.running_mean", one_bit),
        ("hifigan", "mean", lambda tensor: tensor + 1),
        ("t5", "embedding.weight", lambda tensor: tensor * float("nan")),
    ],
)
def test_a_check_finds_one_changed_value(run, network, key, edit):
    run("convert", "t5.pth", "out")
    change(f"out/{network}.safetensors", key, edit)
    refused = run("convert", "t5.pth", "out", "--check")
    assert_refused(refused, f"'{network}' in out is not what t5.pth holds: ", f"'{key}'")


@pytest.mark.parametrize(
    ("field", "value"),
    [("schedule", {"beta_end": 0.02}), ("clap_mel", {"f_max": 12000}), ("symbols", ["x"] * 183)],
)
def test_a_check_finds_a_changed_setting(run, field, value):
    run("convert", "speech.pth", "out")
    checkpoints.change_json(Path("out/config.json"), **{field: value})
    assert_refused(run("convert", "speech.pth", "out", "--check"), "differ")


def test_a_check_against_another_model_tells_where_they_differ(run):
    run("convert", "t5.pth", "out")
    assert_refused(
        run("convert", BASE, "out", "--check"), "out and base.pth differ in the configs of", "unet"
    )
    refused = run("convert", "t5.pth", "out", "--check", "--heads", "config")
    assert_refused(refused, "differ in the configs of 'unet'", "--heads")
    assert_refused(
        run("convert", "t5.pth", "out", "--check", "--ema"), "'unet' in out is not what t5.pth holds"
    )


def test_a_check_writes_nothing(run, folder):
    run("convert", "t5.pth", "out")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run("convert", "t5.pth", "out", "--check")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# Where it goes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["converted", "diffusers"])
def test_a_folder_is_replaced_with_force_alone(run, to):
    run("convert", BASE, "out", "--to", to)
    before = sorted(Path("out").rglob("*"))
    assert_refused(run("convert", BASE, "out", "--to", to), "out exists already", "--force")
    assert run("convert", BASE, "out", "--to", to, "--force", "--ema")[CODE] == 0
    assert sorted(Path("out").rglob("*")) == before
    found = storage.read(Path("out")) if to == "converted" else convert.read_diffusers(Path("out"))
    assert torch.equal(found.states["unet"]()["conv_out.bias"], MADE.average["conv_out.bias"])
    assert here() == ["out"]


def test_force_replaces_no_other_folder(run):
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years of work")
    refused = run("convert", BASE, "precious", "--force")
    assert_refused(refused, "precious is not a converted folder, and --force replaces no other")
    assert Path("precious/thesis.txt").read_text() == "years of work"


def test_a_failed_replacement_leaves_the_old_folder(run):
    run("convert", "t5.pth", "out")
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table("t5", **{key: torch.full((3,), float("inf"))}))
    assert_given_up(run("convert", "a.pth", "out", "--force"), "no numbers")
    assert_same(states_of("out"), originals.make("t5").states)
    assert here() == ["a.pth", "out"]


# What it is -----------------------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    return [int(each.replace(",", "")) for each in re.findall(r"[\d,]+(?= values)", text)]


@pytest.mark.parametrize("form", ["original", "converted", "diffusers"])
def test_info_tells_what_a_model_is_in_each_form(run, ready, form):
    code, out, err = run("info", BASE if form == "original" else ready[form])
    assert (code, err) == (0, "")
    assert "AudioLDM 2, base size: hears GPT-2 and T5" in out
    assert "16000 Hz, 16 mel bands, hop 160" in out
    assert re.search(r"^heads +1, 2$", out, flags=re.M)
    counts = [sum(each.numel() for each in state.values()) for state in MADE.states.values()]
    assert sorted(numbers(out)) == sorted([*counts, sum(counts)])
    assert "float32" in out and "licence" in out
    source = out.splitlines()[0].split(maxsplit=1)
    assert source[0] == "source" and source[1].endswith("diffusers" if form == "diffusers" else BASE)


KINDS = {
    "large": "AudioLDM 2, large: hears GPT-2 and T5",
    "48k": "AudioLDM, hears CLAP beside the diffusion time",
    "t5": "AudioLDM, hears T5",
    "speech": "AudioLDM 2 speech: GPT-2 over CLAP and phonemes (converted and kept; it cannot be run yet)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_info_tells_the_kinds_apart(run, kind):
    code, out, err = run("info", f"{kind}.pth")
    assert (code, err) == (0, "")
    assert KINDS[kind] in out
    assert ("48000 Hz, 64 mel bands, hop 480" in out) == (kind == "48k")


def test_info_tells_dtypes_and_bytes_of_what_is_there(run):
    run("convert", BASE, "half", "--dtype", "float16")
    out = run("info", "half")[OUT]
    size = sum(each.nbytes for state in states_of("half").values() for each in state.values())
    assert re.search(rf"^all .* {size / 1e6:.1f} MB$", out, flags=re.M)
    assert re.search(r"^t5 .*float16, float32$", out, flags=re.M)
    assert re.search(r"^unet .* float16$", out, flags=re.M)


def test_info_of_a_hub_id_fetches_no_weights(run, ready, monkeypatch, tmp_path):
    """A cached snapshot with the small files alone is enough."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--audioldm2-full"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(ready["converted"] / "config.json", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code, out, err = run("info", "someone/audioldm2-full")
    assert (code, err) == (0, "")
    assert sum(numbers(out)) == 2 * sum(
        each.numel() for state in MADE.states.values() for each in state.values()
    )
    assert "float32" not in out and "MB" not in out  # which nobody can know without them


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("audioldm2-full.pth", "CC BY-NC-ND 4.0"),
        ("audioldm2-full-large-1150k.pth", "CC BY-NC-ND 4.0"),
        ("audioldm_48k.pth", "CC BY-NC 4.0"),
        ("audioldm_16k_crossattn_t5.pth", "CC BY-NC 4.0"),
        ("audioldm2-speech-gigaspeech.pth", "OpenRAIL"),
        ("mine.pth", "not known for this source"),
    ],
)
def test_info_tells_the_licence_by_the_published_name(run, name, licence):
    Path("t5.pth").rename(name)
    assert re.search(rf"^licence +{licence}", run("info", name)[OUT], flags=re.M)


# Mistakes -------------------------------------------------------------------------------------------------


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("marker"), "code was run"))


def cut(file: Path, share: float) -> None:
    file.write_bytes(Path("t5.pth").read_bytes()[: int(share * Path("t5.pth").stat().st_size)])


WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "truncated or damaged"),
    "a page": (lambda file: file.write_text("<html>404</html>"), "not a plain file of tensors"),
    "cut": (lambda file: cut(file, 0.5), "truncated or damaged"),
    "cut at its end": (lambda file: cut(file, 0.9999), "truncated or damaged"),
    "running code": (lambda file: torch.save({"state_dict": {"a": Trap()}}, file), "would run code"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({"a": Trap()})), "would run code"),
    "a list": (lambda file: torch.save([torch.ones(1)], file), "table of tensors"),
    "numbers": (lambda file: torch.save({"state_dict": {"a": 1}}, file), "table of tensors"),
    "a resnet": (
        lambda file: torch.save({"conv1.weight": torch.ones(3)}, file),
        "not an original AudioLDM 2",
    ),
    "a key too many": (
        lambda file: originals.save(file, table("t5", **{"fc.weight": torch.ones(2)})),
        "'fc.weight' not part of this architecture",
    ),
    "a wrong shape": (
        lambda file: originals.save(file, table("t5", **{"model.diffusion_model.out.2.bias": torch.ones(4)})),
        "is (4,) and should be (3,)",
    ),
}


@pytest.mark.parametrize("command", [("convert", "out"), ("convert", "out", "--dry-run"), ("info",)])
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_wrong_file_is_told_in_one_sentence_and_nothing_is_written(run, wrong, command):
    write, words = WRONG_FILES[wrong]
    write(Path("file.pth"))
    deed, *rest = command
    assert_given_up(run(deed, "file.pth", *rest), "file.pth", words)
    assert here() == ["file.pth"]
    assert not Path("marker").exists()


MISTAKES = {
    "from nowhere": (("convert", "nowhere.pth", "out"), "no folder 'nowhere.pth'"),
    "a file of another sort": (("convert", "notes.txt", "out"), "'notes.txt' is a file"),
    "several originals": (("convert", ".", "out"), "several original checkpoints", "base.pth"),
    "no folder to write in": (("convert", BASE, "nowhere/out"), "nowhere does not exist"),
    "onto a file": (("convert", BASE, "notes.txt", "--force"), "notes.txt is not a converted folder"),
    "two deeds": (("convert", BASE, "out", "--dry-run", "--check"), "--dry-run and --check exclude"),
    "a check of an export": (("convert", BASE, "out", "--check", "--to", "diffusers"), "is not checked"),
    "a check of nothing": (("convert", BASE, "nowhere", "--check"), "nowhere"),
    "the average of a folder": (("convert", "folder", "out", "--ema"), "--ema", "original file"),
    "a config for a folder": (("convert", "folder", "out", "--config", "ok.json"), "--ema and --config"),
    "no config": (("convert", BASE, "out", "--config", "no.json"), "--config no.json", "no such file"),
    "a config that is no JSON": (("convert", BASE, "out", "--config", "notes.txt"), "notes.txt", "JSON"),
    "a config of a list": (("convert", BASE, "out", "--config", "list.json"), "list.json holds a list"),
    "a config of a number": (("convert", BASE, "out", "--config", "number.json"), "in number.json is 3"),
    "an unknown network": (("convert", BASE, "out", "--config", "unit.json"), "'unit'", "unet"),
    "an unknown field": (("convert", BASE, "out", "--config", "head.json"), "differ in head"),
    "no tokenizers there": (("convert", BASE, "out", "--tokenizers", "nowhere"), "--tokenizers nowhere"),
    "heads by number": (("convert", BASE, "out", "--heads", "8"), "--heads", "config", "trained"),
    "an unknown dtype": (("convert", BASE, "out", "--dtype", "int8"), "--dtype", "bfloat16"),
    "an unknown layout": (("convert", BASE, "out", "--to", "pth"), "--to", "diffusers"),
    "an unknown flag": (("convert", BASE, "out", "--check-it"), "did you mean --check"),
    "nothing to convert": (("convert",), "SOURCE, OUT", "audioldm2 convert --help"),
    "nothing to tell of": (("info",), "SOURCE", "audioldm2 info --help"),
    "info of nothing": (("info", "nowhere"), "no folder 'nowhere'"),
    "info of an empty folder": (("info", "empty"), "empty is not a checkpoint"),
    "info of a folder of text": (("info", "notes.txt"), "'notes.txt' is a file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(run, ready, mistake):
    Path("folder").symlink_to(ready["converted"])
    Path("empty").mkdir()
    Path("notes.txt").write_text("a dog")
    contents = {
        "ok": {"unet": {"eps": 1e-5}},
        "list": [1],
        "number": {"unet": 3},
        "unit": {"unit": {}},
        "head": {"unet": {"head": 1}},
    }
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    before = here()
    arguments, *words = MISTAKES[mistake]
    assert_refused(run(*arguments), *words)
    assert here() == before


@pytest.mark.parametrize("command", ["convert", "info"])
def test_help_names_every_flag_and_fits_the_screen(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    flags = [
        "--to",
        "--dtype",
        "--heads",
        "--ema",
        "--config",
        "--tokenizers",
        "--force",
        "--dry-run",
        "--check",
    ]
    assert all(flag in out for flag in ["--revision", *(flags if command == "convert" else [])])
    assert max(map(len, out.splitlines())) <= 110
