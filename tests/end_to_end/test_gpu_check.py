"""The check of a GPU, on the CPU with tiny sizes: every check has rows, a fault is one row, time ends it."""

import json
import math

import pytest
import torch

from audioldm2.runtime import placement
from scripts import gpu_check
from scripts.benchmark import benchmark
from scripts.gpu_checks import context, networks, requests

QUICK = ["--device", "cpu", "--quick", "--no-peer"]
STAGES = {stage: {"median": 0.5} for stage in ("step", "request")}
SIDE = {"stages": STAGES, "peak resident memory, MB": {"median": 300.0}}


@pytest.fixture
def asked(monkeypatch) -> list:
    """The options of benchmarks, which do not run; compiling, which would take minutes, does nothing."""
    found: list = []

    def measured(options, scratch, report):
        found.append(options)
        return {"cases": [{"seconds": options.duration, "sounds": n, "ours": SIDE} for n in (1, 2)]}

    monkeypatch.setattr(benchmark, "benchmark", measured)
    monkeypatch.setattr(placement, "compile_network", lambda *_: None)
    return found


def test_every_check_passes_on_the_cpu(asked, tiny_folder, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert gpu_check.main([*QUICK, "--model", str(tiny_folder), "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(file.read_text())
    by_check = {name: [row for row in found["checks"] if row["check"] == name] for name in gpu_check.CHECKS}
    assert len(by_check["parity"]) == 8 * 3 and len(by_check["capture"]) == len(networks.CAPTURED)
    assert [row["what"] for row in by_check["request"]] == ["resident", "offload", "low_memory", "compile"]
    assert [row["what"].split()[0] for row in by_check["batch"]] == ["1", "2"]
    assert len(by_check["long"]) == 2 and len(by_check["benchmark"]) == 4
    for row in found["checks"]:
        assert row["ok"] is (None if row["check"] == "capture" else True), row
        assert row["figures"]["s"] > 0
    assert all(row["figures"]["dB"] > 25 for row in by_check["parity"])
    assert found["machine"]["torch"] == torch.__version__ and "cudnn.allow_tf32" in found["machine"]
    assert [options.compile for options in asked] == [None, "ours"] and asked[0].no_peer
    assert len([line for line in out.splitlines() if line.startswith("| ")]) == len(found["checks"]) + 2
    assert out.endswith(f"{len(found['checks'])} rows, 0 failed, 3 left out\n")
    assert "parity: unet, bfloat16: ok" in err


def test_check_that_fails_is_a_row_and_the_others_go_on(asked, tiny_folder, capsys, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: an illegal access")

    monkeypatch.setattr(requests, "generate", fails)
    assert gpu_check.main([*QUICK, "--model", str(tiny_folder), "--only", "batch,long,benchmark"]) == 1
    out = capsys.readouterr().out
    assert (
        out.count("RuntimeError: CUDA error: an illegal access") == 3
    )  # the batches end before their first row
    assert "benchmark | eager, 1 x 0.32 s" in out and out.endswith("7 rows, 3 failed, 0 left out\n")


def test_error_above_the_limit_fails(tiny_folder, capsys, monkeypatch):
    limits = {"bfloat16": (torch.bfloat16, False, 200.0)}
    monkeypatch.setattr(networks, "PRECISIONS", limits)
    assert gpu_check.main([*QUICK, "--model", str(tiny_folder), "--only", "parity"]) == 1
    assert capsys.readouterr().out.count("dB below; at least 200 dB are required") == 8


def test_no_check_begins_after_the_time(asked, tiny_folder, capsys):
    assert gpu_check.main([*QUICK, "--model", str(tiny_folder), "--minutes", "0.001"]) == 0
    assert "7 rows, 0 failed, 7 left out" in capsys.readouterr().out and not asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "--only is 'everything'; it has to be some of parity"),
        (["--model", "./nowhere"], "nowhere"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--json", "no/found.json"], "the folder no does not exist"),
    ],
)
def test_mistake_is_one_sentence(arguments, message, capsys):
    assert gpu_check.main([*QUICK, *arguments]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("gpu_check.py: error: ") and message in err and err.count("\n") == 1


def test_errors_are_measured_in_decibels():
    exact = torch.ones(100)
    assert context.decibels(exact, exact * 1.1) == pytest.approx(20, abs=0.01)
    assert context.decibels(exact, exact) == pytest.approx(300)
    assert context.decibels(exact, exact * math.nan) == -math.inf
    assert context.against(exact, exact[:9], 20)[0] is False


def test_tf32_is_as_before_afterwards():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with pytest.raises(ValueError), networks.allowing_tf32(not before[0]):
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is not before[0]
        raise ValueError
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
