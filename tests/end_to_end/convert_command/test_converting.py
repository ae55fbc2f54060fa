"""`audioldm2 convert`: what it writes and reports, tokenizers, export, and replacing a folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from tests.support import originals
from tests.support.checkpoints import assert_same_states
from tests.support.commands import (
    BASE,
    CODE,
    ERR,
    MADE,
    OUT,
    QUICK,
    assert_failed,
    assert_failed_later,
    created,
    folder_states,
    without_report,
)
from tests.support.originals import table_of


def test_converted_original_generates(run):
    code, out, err = run("convert", "48k.pth", "out")
    assert (code, out, without_report(err)) == (0, "out\n", "")
    assert_same_states(folder_states("out"), originals.make("48k").states)
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK) == (0, "dog.wav\n", "")
    assert run("a dog", "--model", "48k.pth", "-o", "again.wav", *QUICK)[OUT] == "again.wav\n"
    one, other = (soundfile.read(name) for name in ("dog.wav", "again.wav"))
    assert one[1] == other[1] == 48000 and one[0].shape == other[0].shape == (12000,)
    assert abs(one[0] - other[0]).max() < 1e-3


def test_record_of_a_sound_names_the_original(run):
    run("convert", "t5.pth", "out")
    run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)
    record = json.loads(Path("dog.wav.json").read_text())
    assert (record["model"], record["converted_from"], record["heads"]) == ("out", "t5.pth", [1, 2])


@pytest.mark.parametrize("kind", ["base", "speech"])
def test_report_counts_networks_and_dropped_tensors(run, kind):
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


def test_dry_run_writes_nothing(run, folder):
    before = sorted(folder.rglob("*"))
    code, out, err = run("convert", BASE, "out", "--dry-run")
    assert (code, out, without_report(err)) == (0, "", "")
    assert sorted(folder.rglob("*")) == before
    assert run("convert", BASE, "out")[ERR].startswith(err)  # the same report, before it is done


def test_dry_run_accepts_existing_folder(run, folder):
    (folder / "out").mkdir()
    assert run("convert", "t5.pth", "out", "--dry-run")[CODE] == 0


def test_differing_copies_are_noted(run):
    key = "cond_stage_models.0.cond_stage_models.0.model.text_projection.0.bias"
    originals.save(Path("a.pth"), table_of("base", **{key: torch.ones(10)}))
    code, _, err = run("convert", "a.pth", "out")
    assert code == 0
    assert without_report(err).startswith("audioldm2: note: the file holds two copies of CLAP that differ")
    assert without_report(err).count("\n") == 1
    assert_same_states(folder_states("out"), MADE.states)


def test_ema_takes_the_average(run):
    run("convert", BASE, "plain")
    run("convert", BASE, "averaged", "--ema")
    assert_same_states(folder_states("plain"), MADE.states)
    assert_same_states(folder_states("averaged"), MADE.states | {"unet": MADE.average})


def test_config_overrides_fields(run):
    Path("heads.json").write_text('{"unet": {"heads": [2, 4]}, "schedule": {"beta_end": 0.02}}')
    assert run("convert", "t5.pth", "out", "--config", "heads.json")[CODE] == 0
    found = storage.read(Path("out"))
    assert found.configs["unet"].heads == (2, 4)
    assert found.schedule["beta_end"] == 0.02


@pytest.mark.parametrize(("heads", "expected"), [("trained", (1, 2)), ("config", (8, 8))])
def test_heads_can_be_chosen(run, heads, expected):
    run("convert", "t5.pth", "out", "--heads", heads)
    assert storage.read(Path("out")).configs["unet"].heads == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_casts_weights(run, dtype):
    run("convert", "base.pth", "out", "--dtype", dtype)
    for name, state in folder_states("out").items():
        wide = {key for key, tensor in state.items() if str(tensor.dtype) != f"torch.{dtype}"}
        kept = {key for key in state if ".ff.out." in key} if (name, dtype) == ("t5", "float16") else set()
        assert wide == kept
        assert all(
            torch.equal(tensor, MADE.states[name][key].to(tensor.dtype)) for key, tensor in state.items()
        )


def test_rejects_value_beyond_float16(run):
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table_of("t5", **{key: torch.tensor([1.0, 7e4, 1.0])}))
    refused = run("convert", "a.pth", "out", "--dtype", "float16")
    assert_failed_later(
        refused, "'conv_out.bias' of 'unet' in a.pth has values beyond torch.float16", "--dtype"
    )
    assert created() == ["a.pth"]
    assert run("convert", "a.pth", "out", "--dtype", "bfloat16")[CODE] == 0


def test_rejects_nan(run):
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table_of("t5", **{key: torch.tensor([1.0, float("nan"), 1.0])}))
    assert_failed_later(
        run("convert", "a.pth", "out"), "'conv_out.bias' of 'unet' in a.pth", "NaN or infinity"
    )
    assert created() == ["a.pth"]


def test_speech_converts_and_speaks(run):
    assert run("convert", "speech.pth", "out")[:2] == (0, "out\n")
    assert_same_states(folder_states("out"), originals.make("speech").states)
    assert_failed(
        run("a man", "--model", "out", *QUICK), "--transcription is missing", "out is a speech model"
    )
    for model in ("out", "speech.pth"):
        assert run("a man", "--model", model, "--phonemes", "ab", *QUICK)[0] == 0
    Path("words.txt").write_text("Hello,\nworld.", encoding="utf-8")
    twice = "--transcription-file", "words.txt", "--phonemes", "ab"
    assert_failed(run("a man", "--model", "out", *twice, *QUICK), "--transcription-file is 'words.txt'")


@pytest.fixture
def alone(folder) -> None:
    """Removes the tokenizers beside the files."""
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (folder / name).unlink()


def test_tokenizers_come_from_a_folder(run, files, alone):
    assert run("convert", "t5.pth", "out", "--tokenizers", files / "tokenizers")[CODE] == 0
    for name in ("clap_tokenizer", "t5_tokenizer"):
        found = {path.name: path.read_bytes() for path in Path("out", name).iterdir()}
        assert found == {path.name: path.read_bytes() for path in (files / "tokenizers" / name).iterdir()}
    assert audioldm2.load("out", device="cpu").encode_prompt("a dog").text_context is not None


@pytest.mark.parametrize("layout", ["converted", "diffusers"])
def test_tokenizers_come_from_another_model(run, ready, alone, layout):
    assert run("convert", "t5.pth", "out", "--tokenizers", ready[layout])[CODE] == 0
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)[CODE] == 0


def test_missing_tokenizers_are_noted(run, files, alone):
    code, out, err = run("convert", "t5.pth", "out")
    assert (code, out) == (0, "out\n")
    assert without_report(err).startswith("audioldm2: note: no tokenizers were found")
    assert "--tokenizers" in err
    assert_same_states(folder_states("out"), originals.make("t5").states)
    refused = run("a dog", "--model", "out", *QUICK)
    assert_failed(refused, "out", "clap_tokenizer")
    for name in ("clap_tokenizer", "t5_tokenizer"):  # as the note says
        shutil.copytree(files / "tokenizers" / name, Path("out", name))
    assert run("a dog", "--model", "out", "-o", "dog.wav", *QUICK)[CODE] == 0


@pytest.mark.parametrize("content", ["nothing", "one of two", "broken"])
def test_rejects_folder_without_both_tokenizers(run, files, alone, content):
    Path("mine").mkdir()
    if content != "nothing":
        shutil.copytree(files / "tokenizers" / "clap_tokenizer", "mine/clap_tokenizer")
    if content == "broken":
        Path("mine/t5_tokenizer").mkdir()
    result = run("convert", "base.pth", "out", "--tokenizers", "mine")
    assert_failed_later(result, "mine")
    assert created() == ["mine"]


@pytest.mark.parametrize("source", ["the original", "its converted folder"])
def test_exports_to_the_diffusers_layout(run, ready, source):
    given = BASE if source == "the original" else ready["converted"]
    code, out, err = run("convert", given, "out", "--to", "diffusers")
    assert (code, out, without_report(err)) == (0, "out\n", "")
    back = convert.read_diffusers(Path("out"))
    assert back.configs == MADE.configs
    assert_same_states({name: open_state() for name, open_state in back.states.items()}, MADE.states)
    assert (Path("out", "model_index.json")).is_file()


@pytest.mark.parametrize("kind", ["48k", "t5"])
def test_rejects_export_of_other_kinds(run, kind):
    refused = run("convert", f"{kind}.pth", "out", "--to", "diffusers")
    assert_failed(refused, f"{kind}.pth has the networks", "Keep it in the converted format")
    assert created() == []


def test_rejects_export_without_tokenizers(run, alone):
    """The reference cannot load a pipeline without them."""
    assert_failed_later(run("convert", BASE, "out", "--to", "diffusers"), "tokenizer")
    assert created() == []


@pytest.mark.parametrize("to", ["converted", "diffusers"])
def test_folder_is_replaced_only_with_force(run, to):
    run("convert", BASE, "out", "--to", to)
    before = sorted(Path("out").rglob("*"))
    assert_failed(run("convert", BASE, "out", "--to", to), "out exists already", "--force")
    assert run("convert", BASE, "out", "--to", to, "--force", "--ema")[CODE] == 0
    assert sorted(Path("out").rglob("*")) == before
    found = storage.read(Path("out")) if to == "converted" else convert.read_diffusers(Path("out"))
    assert torch.equal(found.states["unet"]()["conv_out.bias"], MADE.average["conv_out.bias"])
    assert created() == ["out"]


def test_force_replaces_only_checkpoints(run):
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years of work")
    refused = run("convert", BASE, "precious", "--force")
    assert_failed(refused, "precious is not a converted folder, and --force replaces no other")
    assert Path("precious/thesis.txt").read_text() == "years of work"


def test_failed_replacement_keeps_the_old_folder(run):
    run("convert", "t5.pth", "out")
    key = "model.diffusion_model.out.2.bias"
    originals.save(Path("a.pth"), table_of("t5", **{key: torch.full((3,), float("inf"))}))
    assert_failed_later(run("convert", "a.pth", "out", "--force"), "NaN or infinity")
    assert_same_states(folder_states("out"), originals.make("t5").states)
    assert created() == ["a.pth", "out"]
