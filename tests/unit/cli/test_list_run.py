"""Lists of sounds: what is kept, what is refused, what fails alone; one process, and several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.cli import list_plan, list_run
from audioldm2.cli.prompt_lists import Line
from audioldm2.options import GenerationOptions
from tests.support.command_line import CODE, assert_refused, names, posix, without_stages
from tests.support.list_ranks import LINES

pytestmark = pytest.mark.usefixtures("folder")

MANIFEST = Path("out", "list.manifest.jsonl")


@pytest.fixture
def make(run, tiny_folder):
    """Makes the sounds of a list, with more flags; returns what the command left and said."""
    Path("list.txt").write_text("rain\ndog\nwind\n")

    def make(*flags: object, prompts: str = "list.txt") -> tuple[int, str, str]:
        quick = ("--duration", "0.1", "--steps", "1", "--device", "cpu")
        return run("--prompts", prompts, "-o", "out", "--model", tiny_folder, *quick, *flags)

    return make


def rows() -> list[dict]:
    return [json.loads(line) for line in MANIFEST.read_text().splitlines()]


def sounds() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").glob("*.wav")}


@pytest.mark.slow
def test_manifest_lists_every_sound(make):
    Path("list.csv").write_text("prompt,seed,duration\nrain,5,\ndog,,0.2\n")
    code, _, err = make("--candidates", "2", prompts="list.csv")
    assert code == 0 and err.endswith("2 made, 0 skipped, 0 failed; out/list.manifest.jsonl lists them\n")
    first, second = rows()
    assert list(first) == ["file", "prompt", "seed", "seconds", "score", "status", "reason"]
    assert (first["file"], first["prompt"], first["seconds"], first["status"]) == (
        "rain.wav",
        "rain",
        0.1,
        "made",
    )
    assert first["seed"] in (5, 6) and second["seed"] in (0, 1) and -1 <= first["score"] <= 1
    assert second["seconds"] == 0.2
    record = json.loads(Path("out", "rain.wav.json").read_text())
    assert (record["seed"], record["score"]) == (first["seed"], first["score"])


@pytest.mark.slow
def test_what_is_there_and_whole_is_kept(make):
    make()
    before = sounds()
    Path("out", "dog.wav").write_bytes(before["dog.wav"][:500])
    Path("out", "wind.wav").unlink()
    Path("out", ".audioldm2-999999999-0123abcd.wav").write_bytes(b"half")  # of a process that was killed
    Path("out", ".audioldm2-999999999-0123abcd-old").mkdir()  # perhaps all that is left of a folder
    stamp = Path("out", "rain.wav").stat().st_mtime_ns
    code, out, err = make()
    assert code == 0 and "1 of 3 sounds are there already" in err
    assert out.split() == [str(Path("out", "dog.wav")), str(Path("out", "wind.wav"))]
    assert sounds() == before and Path("out", "rain.wav").stat().st_mtime_ns == stamp
    assert [row["status"] for row in rows()] == ["skipped", "made", "made"]
    assert [path.name for path in Path("out").glob(".*")] == [".audioldm2-999999999-0123abcd-old"]


@pytest.mark.slow
def test_sound_killed_before_it_was_written_is_made(make, monkeypatch):
    """The record comes first, so that no sound is without one."""
    with monkeypatch.context() as patch:
        patch.setattr(audioldm2.Result, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert make()[CODE] == 130
    assert names(Path("out")) == ["rain.wav.json"]
    assert make()[CODE] == 0 and [row["status"] for row in rows()] == ["made"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (("--seed", "1"), "seed"),
        (("--negative-prompt", "x"), "negative_prompt"),
    ],
)
def test_sound_of_other_settings_is_neither_kept_nor_replaced(make, flags, setting):
    make()
    before = sounds()
    refused = make(*flags)
    assert_refused(
        (refused[0], refused[1], without_stages(refused[2])), setting, "(and 2 more)", "--overwrite"
    )
    assert sounds() == before
    assert make(*flags, "--overwrite")[CODE] == 0
    assert not set(sounds().values()) & set(before.values())


def test_sound_without_a_record_is_refused(make):
    Path("out").mkdir()
    Path("out", "rain.wav").write_bytes(b"of the user")
    assert_refused(make(), "rain.wav has no record that says how it was made")
    assert names(Path("out")) == ["rain.wav"]


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_other_settings(make, monkeypatch):
    make()
    monkeypatch.setattr(list_plan, "weights_digest", lambda model: "0123")
    assert_refused(make(), "rain.wav was made with another weights")


def test_digest_changes_with_any_tensor(tiny_model, monkeypatch):
    before = list_plan.weights_digest(tiny_model)
    states = tiny_model.networks.checkpoint.states
    changed = {name: tensor.clone() for name, tensor in states["vae"]().items()}
    list(changed.values())[-1].add_(0.1)
    monkeypatch.setitem(states, "vae", lambda: changed)
    assert list_plan.weights_digest(tiny_model) != before


@pytest.mark.slow
def test_device_dtype_and_version_do_not_make_a_sound_another(make):
    make()
    path = Path("out", "rain.wav.json")
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(record | {"device": "cuda:3", "dtype": "float16", "audioldm2": "9", "model": "x"})
    )
    assert make()[CODE] == 0 and rows()[0]["status"] == "skipped"


@pytest.mark.slow
def test_line_that_fails_drops_no_other(make, monkeypatch):
    whole = audioldm2.AudioLDM2.generate

    def failing(self, prompts, **options):
        if "dog" in prompts:
            raise RuntimeError("out of memory")
        return whole(self, prompts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(audioldm2.AudioLDM2, "generate", failing)
        code, _, err = make("--at-once", "3")
    assert code == 2 and "audioldm2: error: list.txt, line 2: not enough memory. Ask for a shorter" in err
    assert err.endswith("2 made, 0 skipped, 1 failed; out/list.manifest.jsonl lists them\n")
    assert [row["status"] for row in rows()] == ["made", "failed", "made"]
    assert rows()[1]["reason"].startswith("not enough memory")
    assert make("--at-once", "3")[CODE] == 0 and [row["status"] for row in rows()] == [
        "skipped",
        "made",
        "skipped",
    ]


def test_bug_shows_its_traceback_and_drops_no_other(make, monkeypatch):
    monkeypatch.setattr(list_run, "write", lambda *_, **__: {}["gone"])
    code, out, err = make()
    assert (code, out) == (2, "") and err.count("Traceback") == 3
    assert "error: list.txt, line 3: KeyError: 'gone'" in err
    assert [row["status"] for row in rows()] == ["failed"] * 3


def test_file_of_the_user_is_no_manifest(make):
    Path("out").mkdir()
    MANIFEST.write_text("notes\n")
    assert_refused(make(), "list.manifest.jsonl exists and is not a manifest")


def test_random_seeds_differ_by_line_and_any_is_kept(make):
    Path("list.txt").write_text("rain\nrain\n")
    assert make("--seed", "random")[CODE] == 0
    assert len({row["seed"] for row in rows()}) == 2
    assert make("--seed", "random")[CODE] == 0 and [row["status"] for row in rows()] == ["skipped"] * 2


def test_batches_have_one_length_and_do_not_depend_on_what_is_there(tiny_model):
    lines = [Line("", str(i), "", duration=0.2 if i % 2 else None) for i in range(7)]
    listed = list_plan.SoundList.__new__(list_plan.SoundList)
    listed.model, listed.lines, listed.options = (
        tiny_model,
        lines,
        GenerationOptions(num_waveforms_per_prompt=2),
    )
    for there in (set(), {0, 3, 5}):
        listed.is_there = there.__contains__
        found = listed.plan(at_once=4)
        assert [batch.places for batch in found] == [
            p for p in ([0, 2], [1, 3], [4, 6], [5]) if not set(p) <= there
        ]
        assert [place for batch in found for place in batch.missing if place in there] == []
    assert [batch.places for batch in listed.plan()] == [[1], [2], [4], [6]]  # a CPU gains little by more


@pytest.mark.parametrize("flags", [("--at-once", "2"), ("--overwrite",)])
def test_flags_of_lists_are_refused_for_one_prompt(run, flags):
    assert_refused(run("rain", *flags), flags[0], "be left out without --prompts")


def test_several_processes_need_a_list(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert_refused(run("rain"), "several processes share a list of --prompts")


# Several processes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tiny_folder, tmp_path_factory) -> Path:
    """What `tests.support.list_ranks` left: a list on one process; on two, one of them killed; on three."""
    home = tmp_path_factory.mktemp("lists")
    command = [sys.executable, "-m", "tests.support.list_ranks", str(tiny_folder), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    return home


@posix
@pytest.mark.slow
def test_list_survives_a_killed_process(killed):
    assert json.loads((killed / "outcome.json").read_text()) == {
        "one": [0], "killed": [2, -9], "again": [0, 0, 0], "nothing left": [0, 0],
    }  # fmt: skip
    one, many = (
        {path.name: path.read_bytes() for path in (killed / each).glob("*.wav")} for each in ("one", "many")
    )
    assert len(one) == LINES and len(set(one.values())) == LINES
    assert many == one  # bit for bit
    assert not list(killed.rglob(".audioldm2-*"))


@posix
@pytest.mark.slow
def test_each_line_is_made_once(killed):
    left, again = json.loads((killed / "left.json").read_text()), []
    made = [line for rank in (0, 1) for line in (killed / f"killed-{rank}.out").read_text().splitlines()]
    again = [line for rank in (0, 1, 2) for line in (killed / f"again-{rank}.out").read_text().splitlines()]
    assert len(made) == len(set(made)) and {Path(each).name for each in made} <= set(left)
    assert len(again) == len(set(again)) == LINES - len(left) + 3  # three were cut off
    assert (killed / "killed-1.out").read_text() and (killed / "killed-0.out").read_text()  # they shared


@posix
@pytest.mark.slow
def test_first_process_says_what_is_missing(killed):
    said = (killed / "killed-0.err").read_text()
    assert "Traceback" not in said and "another process of this run has ended" in said
    assert "start the same command again for the" in said.splitlines()[-1]
    assert (killed / "again-1.err").read_text() == "" and "failed" in (killed / "again-0.err").read_text()
    assert f"0 made, {LINES} skipped, 0 failed" in (killed / "nothing-0.err").read_text()
    assert [json.loads(line)["status"] for line in (killed / "many" / "list.manifest.jsonl").open()] == [
        "skipped"
    ] * LINES


def test_ranks_alone_take_every_number():
    from audioldm2.training.distributed import Ranks

    assert list(Ranks().shared(3)) == [0, 1, 2]
    store = torch.distributed.HashStore()
    first, second = Ranks(0, 2, store), Ranks(1, 2, store)
    ones, others = first.shared(5), second.shared(5)
    taken = [next(ones), next(others), next(others), *ones, *others]
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert list(first.shared(2)) == [0, 1]  # another list starts anew
