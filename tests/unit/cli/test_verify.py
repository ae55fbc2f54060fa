"""`audioldm2 verify`: its report, its exit codes, and the facts that it writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from audioldm2.verification import sounds
from tests.support import verification
from tests.support.checkpoints import change_state
from tests.support.command_line import CODE, ERR, OUT, assert_refused, names

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def verify(run):
    return lambda *arguments: run("verify", *arguments, "--device", "cpu")


@pytest.fixture
def model(tiny_folder: Path) -> Path:
    """A copy of the tiny model, in the folder that the test runs in."""
    return Path(shutil.copytree(tiny_folder, "model"))


def statuses(file: str = "report.json") -> dict[str, str]:
    content = json.loads(Path(file).read_text())
    assert content["complete"]
    return {finding["check"]: finding["status"] for finding in content["findings"]}


@pytest.mark.slow
def test_facts_of_a_right_copy_pass_it_and_name_what_is_wrong_in_another(verify, model):
    code, out, err = verify(model, "--write-facts", "facts.json", "--quick")
    assert (code, out) == (0, "facts.json\n"), err
    code, out, err = verify(model, "--facts", "facts.json", "--quick", "--json", "report.json")
    assert code == 0, out
    assert out.splitlines()[-1].startswith("PASSED: ") and "All" in out
    assert list(statuses()) == verification.NAMES
    assert statuses() == dict.fromkeys(verification.NAMES[:7], "passed") | dict.fromkeys(
        verification.NAMES[7:], "skipped"
    )

    change_state(model / "vae.safetensors", lambda state: state | {"encoder.conv_in.bias": torch.ones(8)})
    code, out, _ = verify(model, "--facts", "facts.json", "--quick", "--json", "report.json")
    assert code == 1
    assert "'vae' differs in 'encoder.conv_in.bias'" in out and "Do: " in out
    assert statuses()["tensors"] == "failed" and out.splitlines()[-1].startswith("FAILED: ")
    assert not [name for name in names(Path()) if ".audioldm2-" in name]


def test_truncated_network_fails_with_the_name_of_its_file(verify, model):
    file = model / "unet.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    code, out, _ = verify(model, "--json", "report.json")
    assert code == 1
    assert "unet.safetensors is truncated or damaged" in " ".join(out.split())
    assert statuses()["files"] == "failed" and statuses()["half"] == "not applicable"


def test_original_file_that_cannot_be_opened_is_a_report_too(verify):
    Path("audioldm2-full.pth").write_bytes(b"\x80\x02not a table")
    code, out, _ = verify("audioldm2-full.pth", "--json", "report.json")
    assert code == 1
    assert statuses() == {"files": "failed"}
    assert "the original file cannot be opened" in " ".join(out.split()) and "audioldm2-full.pth" in out


def test_what_is_no_model_is_one_sentence(verify, model):
    Path("notes.txt").write_text("not a model")
    Path("empty").mkdir()
    assert_refused(verify("notes.txt"), "'notes.txt' is a file")
    assert_refused(verify("empty"), "empty is not a checkpoint")
    assert_refused(verify("./nowhere"), "there is no folder './nowhere'")
    assert_refused(verify(model, "--facts", "notes.txt"), "notes.txt", "JSON")


def test_flags_that_make_no_sense_are_one_sentence(verify, model):
    assert_refused(verify(), "MODEL")
    assert_refused(verify(model, "--skip", "everything"), "--skip", "everything")
    assert_refused(verify(model, "--as", "cvssp/audioldm3"), "--as")
    assert_refused(verify(model, "--prompts", "21"), "--prompts", "from 1 to 20")
    assert_refused(verify(model, "--seeds", "0"), "--seeds")
    assert_refused(verify(model, "--json", "nowhere/report.json"), "nowhere")
    assert_refused(verify(model, "--write-facts", "a.json", "--skip", "half"), "--write-facts")


@pytest.mark.slow
def test_unknown_model_passes_and_another_name_for_it_fails(verify, model):
    code, out, _ = verify(model, "--quick")
    assert code == 0 and "No published checkpoint has this architecture" in out
    code, out, _ = verify(model, "--quick", "--as", "cvssp/audioldm2-large")
    assert code == 1 and "This is not cvssp/audioldm2-large" in out


def test_skipped_checks_are_listed_and_long_ones_announced(verify, model):
    code, out, err = verify(model, "--skip", "heads", "--skip", "half", "--json", "report.json")
    assert code == 0, out
    assert statuses()["heads"] == statuses()["half"] == "skipped"
    assert statuses()["round_trip"] == "measured"
    assert "audioldm2: round_trip: a chirp" in err


def test_interrupt_keeps_the_report_so_far(verify, model, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sounds, "explained", interrupted)
    outcome = verify(model, "--skip", "half", "--json", "report.json")
    assert outcome[CODE] == 130 and "interrupted" in outcome[ERR] and "settings" in outcome[OUT]
    content = json.loads(Path("report.json").read_text())
    assert not content["complete"] and content["verdict"] == "incomplete"
    assert [each["check"] for each in content["findings"]] == verification.NAMES[:8]


def test_facts_of_a_wrong_model_are_not_written(verify, model):
    change_state(
        model / "vae.safetensors", lambda state: state | {"encoder.conv_in.bias": torch.full((8,), torch.nan)}
    )
    assert_refused(verify(model, "--write-facts", "facts.json"), "not right", "'vae' holds NaN")
    assert not Path("facts.json").exists()
