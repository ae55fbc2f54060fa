"""Sounds of an evaluation: each is generated once, by one process, also after a run that was killed."""

from pathlib import Path

import pytest
import soundfile
import torch

from audioldm2.audio import read
from audioldm2.errors import ArgumentError
from audioldm2.evaluation import Prompt
from audioldm2.evaluation.generation import generate, plan, rank_and_world, require_same, settings_of
from audioldm2.options import GenerationOptions

QUICK = GenerationOptions(audio_length_in_s=0.32, num_inference_steps=1)
PROMPTS = [Prompt("rain"), Prompt("a dog"), Prompt("rain?"), Prompt("/")]


@pytest.fixture
def asked(tiny_model, monkeypatch) -> list[tuple[str, int]]:
    """The (prompt, seed) of everything that the model generates."""
    seen: list[tuple[str, int]] = []
    whole = tiny_model.generate

    def recorded(prompts, *, seed, **options):
        seen.extend(zip(prompts, seed, strict=True))
        return whole(prompts, seed=seed, **options)

    monkeypatch.setattr(tiny_model, "generate", recorded)
    return seen


def test_plan_has_a_file_for_each_prompt_and_seed():
    jobs = plan(PROMPTS, range(2), Path("sounds"))
    assert len({job.file for job in jobs}) == 8
    assert [(job.group, job.seed) for job in jobs[3:5]] == [(3, 0), (0, 1)]


def test_processes_share_the_sounds(tiny_model, asked, tmp_path):
    jobs = plan(PROMPTS, range(2), tmp_path)
    missing = generate(tiny_model, jobs, QUICK, list, rank=0, world=3)
    assert missing == [job for place, job in enumerate(jobs) if place % 3]
    generate(tiny_model, jobs, QUICK, list, rank=1, world=3)
    assert generate(tiny_model, jobs, QUICK, list, rank=2, world=3) == []
    assert sorted(asked) == sorted((job.prompt.text, job.seed) for job in jobs)


def test_killed_run_goes_on(tiny_model, asked, tmp_path):
    jobs = plan(PROMPTS, range(1), tmp_path)
    generate(tiny_model, jobs, QUICK, list)
    sounds = [read(job.file)[0] for job in jobs]
    asked.clear()
    jobs[0].file.unlink()
    jobs[1].file.write_bytes(jobs[1].file.read_bytes()[:1000])  # cut by a full disk, copied in part
    jobs[2].file.write_bytes(b"")
    notes: list[str] = []
    generate(tiny_model, jobs, QUICK, notes.append)
    assert asked == [("rain", 0), ("a dog", 0), ("rain?", 0)] and "1 of 4 sounds are there already" in notes
    for job, sound in zip(jobs, sounds, strict=True):
        assert torch.allclose(read(job.file)[0], sound, atol=2 / 32768)


def test_sound_of_another_length_is_made_anew(tiny_model, asked, tmp_path):
    jobs = plan(PROMPTS[:1], range(1), tmp_path)
    generate(tiny_model, jobs, QUICK, list)
    generate(tiny_model, jobs, GenerationOptions(audio_length_in_s=0.4, num_inference_steps=1), list)
    assert len(asked) == 2 and soundfile.info(jobs[0].file).frames == 6400


def test_folder_of_another_run_is_refused(tiny_model, tmp_path):
    file = tmp_path / "out" / "run.json"
    settings = settings_of(tiny_model, PROMPTS, QUICK)
    require_same(file, settings)
    require_same(file, settings)
    other = settings_of(tiny_model, PROMPTS[:1], GenerationOptions(num_inference_steps=3))
    with pytest.raises(ValueError, match="holds the sounds of a run with other options and prompts; choose"):
        require_same(file, other)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("1", "")])
def test_impossible_rank_is_refused(rank, world):
    with pytest.raises(ArgumentError, match=r"RANK is .* with WORLD_SIZE"):
        rank_and_world({"RANK": rank, "WORLD_SIZE": world})


def test_process_alone_has_rank_zero():
    assert rank_and_world({}) == (0, 1) and rank_and_world({"RANK": "1", "WORLD_SIZE": "3"}) == (1, 3)
