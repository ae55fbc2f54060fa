"""Lines of JSON that survive a full disk and a kill; TensorBoard."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from audioldm2.training import metrics
from audioldm2.training.metrics import JsonLines, TensorBoard


def test_line_is_in_the_file_at_once(tmp_path: Path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"step": 1})

    class Full:
        def __init__(self, file) -> None:
            self.file = file
            self.tell, self.truncate = file.tell, file.truncate

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, line: bytes) -> int:
            if len(line) < 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(line[:5])

    opened = open
    monkeypatch.setattr(metrics, "open", lambda *a, **k: Full(opened(*a, **k)), raising=False)
    with pytest.raises(OSError, match="No space"):
        log.append({"step": 2, "loss": 1.0})
    monkeypatch.undo()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'


def test_lines_after_a_step_and_half_lines_are_dropped(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLines(path).keep_until(2)
    assert path.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2}\n'


def test_tensorboard_gets_curves_and_hides_those_of_lost_steps(tmp_path: Path, monkeypatch):
    points = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            points.append((folder, purge_step))

        def add_scalar(self, *point) -> None:
            points.append(point)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr(metrics, "find_spec", lambda name: name)
    TensorBoard(tmp_path, 4).add("training", 5, {"loss": 0.5})
    assert points == [(str(tmp_path / "tensorboard"), 5), ("training/loss", 0.5, 5)]


def test_missing_tensorboard_is_a_sentence(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        TensorBoard(tmp_path, 0)
