"""Kernel choices on disk: what one process chose, the next one uses."""

import json

import pytest
import torch

from audioldm2 import ops
from audioldm2.ops import dispatch, trial_file
from audioldm2.ops.dispatch import Kernel, Operation


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLDM2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def timed(monkeypatch):
    """Sets what the trial's clock shows, and counts the trials."""
    seconds = {"fast": 1.0, "trials": 0}

    def time(runs, args):
        seconds["trials"] += 1
        return {name: seconds.get(name, 1.0) for name in runs}

    monkeypatch.setattr(dispatch, "_time", time)
    return seconds


def doubling(run=lambda x: 2 * x) -> Operation:
    """The operation as a new process sees it: without choices of its own."""
    kernels = [Kernel("fast", run, lambda x: True)]
    return Operation("doubling", lambda x: x + x, kernels, lambda x: x.shape[1:], lambda x: (x,))


def chosen(operation: Operation) -> list[str]:
    return [choice.kernel for _, choice in operation.choices.values()]


@torch.no_grad()
def test_second_process_repeats_the_choice_of_the_first_whatever_its_clock_shows(timed):
    for first, expected in ((0.1, "fast"), (5.0, "reference")):
        x = torch.ones(1, 3 if expected == "fast" else 4)
        timed["fast"], operation = first, doubling()
        operation(x)
        assert chosen(operation) == [expected]
        timed["fast"], trials, operation = 5.0 / first, timed["trials"], doubling()
        operation(x)
        assert chosen(operation) == [expected] and timed["trials"] == trials


@torch.no_grad()
def test_remembered_kernel_that_no_longer_agrees_is_not_used(timed):
    timed["fast"] = 0.1
    doubling()(torch.ones(1, 3))
    operation = doubling(lambda x: 3 * x)
    assert torch.equal(operation(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    assert chosen(operation) == ["reference"]


def found(value: str) -> str:
    return trial_file.finding("a", lambda: value, lambda found: isinstance(found, str))


def test_process_that_finishes_second_takes_the_finding_of_the_first():
    def trial_during_which_another_process_finishes() -> str:
        assert found("fast") == "fast"
        return "reference"

    assert trial_file.finding("a", trial_during_which_another_process_finishes, lambda found: found) == "fast"
    assert found("reference") == "fast"


def test_findings_of_another_machine_or_source_do_not_count(monkeypatch):
    assert found("fast") == "fast"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(trial_file, "_machine", lambda: "another")
        assert found("reference") == "reference"
    assert found("reference") == "fast", "both machines share the file"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": 3}', "\xff"])
@torch.no_grad()
def test_damaged_file_is_written_anew(folder, timed, content: str):
    folder.mkdir()
    (folder / "trials.json").write_text(content, encoding="latin-1")
    timed["fast"], operation = 0.1, doubling()
    operation(torch.ones(1, 3))
    assert chosen(operation) == ["fast"]
    [kernels] = json.loads((folder / "trials.json").read_text()).values()
    assert list(kernels.values()) == ["fast"]


@pytest.mark.parametrize("entry", [None, 3, [], {}, "a kernel of another version"])
@torch.no_grad()
def test_entry_that_names_no_kernel_is_replaced(timed, entry):
    timed["fast"] = 0.1
    doubling()(torch.ones(1, 3))
    [(machine, kernels)] = json.loads(trial_file.path().read_text()).items()
    trial_file.path().write_text(json.dumps({machine: dict.fromkeys(kernels, entry)}))
    operation = doubling()
    operation(torch.ones(1, 3))
    assert chosen(operation) == ["fast"] and json.loads(trial_file.path().read_text()) == {machine: kernels}


@torch.no_grad()
def test_folder_that_cannot_be_written_leaves_each_process_its_own_choice(folder, timed):
    folder.write_text("a file in the place of the folder")
    timed["fast"], operation = 0.1, doubling()
    assert torch.equal(operation(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    assert chosen(operation) == ["fast"]


@torch.no_grad()
def test_measurements_without_a_kernel_are_not_filed(folder, timed):
    with ops.using(None, without={"another"}):
        doubling()(torch.ones(1, 3))
    assert not folder.exists()


@torch.no_grad()
def test_limit_on_instructions_is_another_machine(timed, monkeypatch):
    timed["fast"] = 0.1
    trial_file._machine.cache_clear()
    doubling()(torch.ones(1, 3))
    with monkeypatch.context() as limited:
        limited.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        trial_file._machine.cache_clear()
        timed["fast"], operation = 5.0, doubling()
        operation(torch.ones(1, 3))
    trial_file._machine.cache_clear()
    assert chosen(operation) == ["reference"]
    assert [("AVX2" in machine) for machine in json.loads(trial_file.path().read_text())] == [False, True]
