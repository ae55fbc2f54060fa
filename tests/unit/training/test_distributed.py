"""Training by several processes: the same losses and weights as one process, errors that end all of them."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.models.unet import GPT2, T5
from audioldm2.training.data import AtTrainedLevel, Pool, part_of
from audioldm2.training.distributed import VARIABLES, Ranks, joined
from audioldm2.training.mixing import Mixed
from scripts.make_random_checkpoint import random_state
from tests.support.command_line import names, posix
from tests.support.crashes import Noise
from tests.support.ranks import QUICK, SAMPLED, SHARED, Sounds

# The gradient of a key's bias is 0 but for rounding, which Adam scales up: the softmax cancels that bias.
ROUNDING = "key.bias"


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / "state.pt")
    networks = state["networks"] | {f"average of {name}": x for name, x in state["ema"].items()}
    networks |= {"adversary": state["adversary"] or {}}
    return {f"{name}.{key}": x for name, network in networks.items() for key, x in tensors(network)}


def tensors(state: dict) -> list[tuple[str, Tensor]]:
    found = []
    for key, value in state.items():
        below = tensors(value) if isinstance(value, dict) else [("", value)]
        found += [(f"{key}.{name}", x) for name, x in below]
    return found


def assert_equal_runs(folder: Path, expected: Path) -> None:
    """The same metrics, validation losses and weights, to 1e-5."""
    for name in ("metrics.jsonl", "validation.jsonl"):
        ours, theirs = lines(folder / name), lines(expected / name)
        assert [each["step"] for each in ours] == [each["step"] for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            # The gradient of the logarithm of a nearly silent spectrum magnifies rounding.
            norms = [each.pop("grad_norm", 0.0) for each in (one, other)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5), name
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if ROUNDING not in key:
            torch.testing.assert_close(
                ours[key], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.fixture(scope="module")
def home(random_weights: Checkpoint, initial: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/support/ranks.py left. One level of the denoiser is enough."""
    home = tmp_path_factory.mktemp("ranks")
    unet = replace(random_weights.configs["unet"], channels=(16,), heads=(2,), transformers=((GPT2, T5),))
    model = replace(
        random_weights,
        configs=random_weights.configs | {"unet": unet},
        states=random_weights.states | {"unet": partial(random_state, "unet", unet, 0, torch.float32)},
    )
    storage.write(model, home / "random")
    storage.write(initial, home / "untrained")
    command = [sys.executable, "-m", "tests.support.ranks", home, home / "random", home / "untrained"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return home


def require_done(home: Path, mode: str) -> None:
    failed = json.loads((home / "failed.json").read_text())
    assert mode not in failed, failed[mode]


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_two_processes_equal_one_with_the_whole_batch(name: str, home: Path):
    require_done(home, "compare")
    assert len(lines(home / f"{name}-2" / "metrics.jsonl")) == SHARED["steps"]
    assert_equal_runs(home / f"{name}-2", home / f"{name}-1")
    ours, theirs = (home / f"{name}-{count}" for count in (2, 1))
    assert names(ours) == names(theirs)
    assert any(each.startswith("samples/") for each in names(ours)) == (name == SAMPLED)


@posix
@pytest.mark.slow
def test_steps_of_a_run_by_other_processes_and_sharded(home: Path):
    require_done(home, "resume")
    assert len(lines(home / "whole" / "metrics.jsonl")) == 5
    assert_equal_runs(home / "parts", home / "whole")


@posix
@pytest.mark.slow
def test_fault_of_one_process_ends_all_and_saves(home: Path):
    require_done(home, "faults")
    outcome = json.loads((home / "outcome.json").read_text())
    assert outcome["stops"]["codes"] == [0, 0]
    assert [each["step"] for each in lines(home / "stops" / "metrics.jsonl")] == [1]
    said = {name: (home / f"{name}-0.txt").read_text() for name in ("error", "bug", "killed")}
    assert said["error"] == "OtherRankFailed: rank 1: bell.wav is gone"
    assert said["bug"] == "OtherRankFailed: rank 1: ZeroDivisionError"
    assert said["killed"] == "OtherRankFailed: another process of this run has ended, or does not answer"
    for name in said:
        assert 0 not in outcome[name]["codes"] and outcome[name]["seconds"] < 60
        done = torch.load(home / name / "state.pt")["done"]
        assert done == len(lines(home / name / "metrics.jsonl")) >= 1


def test_batch_has_to_be_shared_equally():
    with pytest.raises(ArgumentError, match="batch is 4; it has to be a multiple of 3"):
        Ranks(0, 3).require_shares(4)
    assert [list(Ranks(rank, 2).places(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("step", [0, 3])
def test_parts_make_up_the_batch_of_every_source(step: int):
    sounds = Sounds(0.1)
    for source in (sounds, AtTrainedLevel(sounds), Mixed(sounds, Sounds(0.1, first=3), 0.4)):
        waves, captions = source.batch(step, 4)
        parts = [part_of(source, step, 4, Ranks(rank, 2).places(4)) for rank in (0, 1)]
        assert torch.equal(torch.cat([part for part, _ in parts]), waves)
        assert parts[0][1] + parts[1][1] == captions


def test_pools_of_all_processes_make_up_the_pool_of_one():
    sounds = Sounds(0.1)
    one = Pool(sounds, lambda wave: 2 * wave, 8, 4, 0)
    pools = [Pool(sounds, lambda wave: 2 * wave, 8, 4, 0, Ranks(rank, 2)) for rank in (0, 1)]
    for step in range(6):  # the first epoch, and two that are shuffled
        waves, captions = one.batch(step)
        parts = [pool.batch(step) for pool in pools]
        assert torch.equal(torch.cat([part for part, _ in parts]), waves)
        assert parts[0][1] + parts[1][1] == captions


def test_without_torchrun_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as (ranks, device):
        assert (ranks.rank, ranks.count, device.type) == (0, 1, "cpu")
        assert not torch.distributed.is_initialized()
    assert part_of(Noise(), 1, 2, ranks.places(2))[0].shape == (2, 8)


def test_torchrun_with_another_device_or_without_its_variables(monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="be auto, cpu or cuda"), joined("cuda:1"):
        pass
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="WORLD_SIZE is set but MASTER_PORT is not"), joined("cpu"):
        pass
