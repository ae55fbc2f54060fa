"""`audioldm2 info`: what a checkpoint is, in every form."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.commands import (
    BASE,
    MADE,
    OUT,
    folder_states,
)


def numbers(text: str) -> list[int]:
    return [int(each.replace(",", "")) for each in re.findall(r"[\d,]+(?= values)", text)]


@pytest.mark.parametrize("form", ["original", "converted", "diffusers"])
def test_info_describes_a_model_in_each_form(run, ready, form):
    code, out, err = run("info", BASE if form == "original" else ready[form])
    assert (code, err) == (0, "")
    assert "AudioLDM 2, base size: conditioned on GPT-2 and T5" in out
    assert "16000 Hz, 16 mel bands, hop 160" in out
    assert re.search(r"^heads +1, 2$", out, flags=re.M)
    counts = [
        sum(each.numel() for each in state.values())
        for name, state in MADE.states.items()
        if (name, form) != ("audiomae", "diffusers")  # which that layout cannot hold
    ]
    assert sorted(numbers(out)) == sorted([*counts, sum(counts)])
    assert "float32" in out and "licence" in out
    source = out.splitlines()[0].split(maxsplit=1)
    assert source[0] == "source" and source[1].endswith("diffusers" if form == "diffusers" else BASE)


KINDS = {
    "large": "AudioLDM 2, large: conditioned on GPT-2 and T5",
    "48k": "AudioLDM, conditioned on CLAP beside the diffusion time",
    "t5": "AudioLDM, conditioned on T5",
    "speech": "AudioLDM 2 speech: speaks phonemes, conditioned on GPT-2 over CLAP and phonemes",
}


@pytest.mark.parametrize("kind", KINDS)
def test_info_names_the_kind(run, kind):
    code, out, err = run("info", f"{kind}.pth")
    assert (code, err) == (0, "")
    assert KINDS[kind] in out
    assert ("48000 Hz, 64 mel bands, hop 480" in out) == (kind == "48k")


def test_info_lists_dtypes_and_bytes(run):
    run("convert", BASE, "half", "--dtype", "float16")
    out = run("info", "half")[OUT]
    size = sum(each.nbytes for state in folder_states("half").values() for each in state.values())
    assert re.search(rf"^all .* {size / 1e6:.1f} MB$", out, flags=re.M)
    assert re.search(r"^t5 .*float16, float32$", out, flags=re.M)
    assert re.search(r"^unet .* float16$", out, flags=re.M)


def test_info_of_hub_id_fetches_no_weights(run, ready, monkeypatch, tmp_path):
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
    assert "float32" not in out and "MB" not in out  # unknown without the weights


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
def test_info_names_the_licence(run, name, licence):
    Path("t5.pth").rename(name)
    assert re.search(rf"^licence +{licence}", run("info", name)[OUT], flags=re.M)


@pytest.mark.parametrize("name", ["demo", "demo-speech"])
def test_info_names_the_licence_of_models_in_the_package(run, name):
    assert re.search(r"^licence +MIT, as this package", run("info", name)[OUT], flags=re.M)
