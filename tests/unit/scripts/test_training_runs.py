"""Runs that build on each other: their order, their arguments, failures, and what a second start does."""

import json
from pathlib import Path

import pytest

from scripts import training_runs

NEEDED = {"a": (), "b": ("a",), "c": (), "d": ("b", "c")}
STAND_IN = """
import json, os, sys
from pathlib import Path
own = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = Path(own["--out"])
if own.get("--fails") and not (run / "run.json").exists():
    run.mkdir()
    (run / "run.json").write_text('{"recipe": {"steps": 3}}')
    sys.exit("out of luck")
(run / "model").mkdir(parents=True)
(run / "run.json").write_text('{"recipe": {"steps": 3}}')
(run / "model" / "training.json").write_text('{"step": 3}')
with open(run.parent / "order.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch) -> Path:
    """A folder for runs of a program that only writes down what it was given."""
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(training_runs, "TRAIN", tmp_path / "train.py")
    return tmp_path


def order(out: Path) -> list[str]:
    return [json.loads(line)[1].rsplit("/", 1)[-1] for line in (out / "order.jsonl").read_text().splitlines()]


def test_each_run_begins_when_those_before_it_are_finished_and_once(out: Path):
    training_runs.train_all(out, NEEDED, lambda name: ["--stage", name])
    found = order(out)
    assert sorted(found) == sorted(NEEDED)
    assert all(found.index(before) < found.index(name) for name in NEEDED for before in NEEDED[name])
    assert json.loads((out / "order.jsonl").read_text().splitlines()[0])[2:] == ["--stage", found[0]]
    training_runs.train_all(out, NEEDED, lambda name: pytest.fail(f"{name} is finished"))
    assert order(out) == found


def test_run_that_fails_is_named_and_resumed(out: Path):
    def arguments(name: str) -> list[object]:
        return ["--fails", "yes"] if name == "b" else ["--stage", name]

    with pytest.raises(ValueError, match=r"^b stopped; see .*b\.log\. The same command resumes\.$"):
        training_runs.train_all(out, NEEDED, arguments)
    assert "out of luck" in (out / "b.log").read_text()
    assert "d" not in order(out)
    training_runs.train_all(out, NEEDED, arguments)
    assert order(out)[-1] == "d" and not any("--fails" in line for line in (out / "order.jsonl").open())


def test_error_ends_a_script_in_one_sentence(capsys):
    def main() -> int:
        raise ValueError("nothing is here.")

    with pytest.raises(SystemExit) as ended:
        training_runs.run_to_the_end(main)
    assert str(ended.value).endswith(": error: nothing is here.")
