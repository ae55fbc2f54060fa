"""A sound depends on its prompt, its settings and its seed, and on nothing else: neither batch nor device."""

import json
import random
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audioldm2 import AudioLDM2, Result
from audioldm2.options import LARGEST_SEED, GenerationOptions
from audioldm2.request import Request

DETERMINISTIC = {"sampler": "dpmpp_2m"}
STOCHASTIC = [
    {"sampler": "dpmpp_2m_sde"},
    {"sampler": "ddim", "eta": 1.0},
    {"sampler": "euler_ancestral"},
]
SAMPLINGS = pytest.mark.parametrize("sampling", [DETERMINISTIC, *STOCHASTIC], ids=lambda s: s["sampler"])
PROMPTS = ["a dog", "A hammer hitting a wooden surface", "", "low hum", "Birds sing & people cheer!"]
SECONDS, FRAMES = 0.25, 7  # frames of the latent
CLOSE = 1e-4  # relative: batches of other sizes are added up in another order


def generate(model: AudioLDM2, prompt: str | list[str], **arguments) -> Result:
    return model.generate(prompt, **(dict(audio_length_in_s=SECONDS, num_inference_steps=3) | arguments))


@cache
def alone(model: AudioLDM2, prompt: str, seed: int, sampler: str, eta: float = 0.0) -> Tensor:
    """One sound (1, samples)."""
    return generate(model, prompt, seed=seed, sampler=sampler, eta=eta).audio[0]


def assert_same_sound(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


def by_seed(result: Result, prompt: int = 0) -> dict[int, Tensor]:
    return dict(zip(result.seeds[prompt], result.audio[prompt], strict=True))


@SAMPLINGS
def test_seeds_generate_different_sounds(tiny_model, sampling):
    sounds = [generate(tiny_model, PROMPTS[0], seed=seed, **sampling).audio for seed in (0, 1)]
    assert (sounds[0] - sounds[1]).norm() > 0.1 * sounds[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", STOCHASTIC, ids=lambda s: s["sampler"])
def test_seeds_decide_the_noise_of_the_steps_too(tiny_model, sampling):
    latents = torch.randn(tiny_model.sound.latents(1, FRAMES))
    sounds = [
        generate(tiny_model, PROMPTS[0], seed=seed, latents=latents, **sampling).audio for seed in (0, 0, 1)
    ]
    assert torch.equal(sounds[0], sounds[1])
    assert (sounds[0] - sounds[2]).norm() > 0.01 * sounds[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "size"),
    [(DETERMINISTIC, 4), (STOCHASTIC[0], 2), (STOCHASTIC[1], 3)],
)
def test_sound_is_independent_of_its_batch(tiny_model, sampling, size):
    """Of any size, in any order, with one seed a prompt or one for all."""
    places = random.Random(size).sample(range(5), size)
    prompts, seeds = [PROMPTS[place] for place in places], [10 * place for place in places]
    each = generate(tiny_model, prompts, seed=seeds, **sampling)
    for_all = generate(tiny_model, prompts, seed=7, **sampling)
    assert each.seeds == [[seed] for seed in seeds]
    assert for_all.seeds == [[7]] * size
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert_same_sound(each.audio[row], alone(tiny_model, prompt, seed, **sampling))
        assert_same_sound(for_all.audio[row], alone(tiny_model, prompt, 7, **sampling))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [DETERMINISTIC, STOCHASTIC[1]], ids=lambda s: s["sampler"])
def test_candidate_i_is_the_sound_of_seed_plus_i(tiny_model, sampling):
    prompts = PROMPTS[:2]
    found = generate(tiny_model, prompts, seed=[3, 40], num_waveforms_per_prompt=3, **sampling)
    assert [sorted(row) for row in found.seeds] == [[3, 4, 5], [40, 41, 42]]
    for prompt in range(2):
        for seed, sound in by_seed(found, prompt).items():
            assert_same_sound(sound[None], alone(tiny_model, prompts[prompt], seed, **sampling))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [DETERMINISTIC, STOCHASTIC[0]], ids=lambda s: s["sampler"])
def test_sound_is_independent_of_slices(tiny_model, sampling, monkeypatch):
    """More sounds than fit into memory are denoised a few at a time."""
    arguments = dict(seed=[3, 40], num_waveforms_per_prompt=2, **sampling)
    expected = generate(tiny_model, PROMPTS[:2], **arguments)
    monkeypatch.setattr("audioldm2.runtime.memory.sounds_at_once", lambda *_: 3)
    found = generate(tiny_model, PROMPTS[:2], **arguments)
    for prompt in range(2):
        for seed, sound in by_seed(found, prompt).items():
            assert_same_sound(sound, by_seed(expected, prompt)[seed])


@pytest.mark.slow
def test_random_seed_is_recorded(tiny_model):
    drawn = [generate(tiny_model, PROMPTS[0], seed=None, num_waveforms_per_prompt=2) for _ in range(2)]
    assert set(drawn[0].seeds[0]).isdisjoint(drawn[1].seeds[0])
    for result in drawn:
        record = json.loads(json.dumps(result.record()))
        told = [record["seed"], *(other["seed"] for other in record["other_candidates"])]
        assert told == result.seeds[0]
        for seed, sound in by_seed(result).items():
            assert_same_sound(sound[None], generate(tiny_model, PROMPTS[0], seed=seed).audio[0])


@pytest.mark.slow
def test_seed_after_the_largest_is_recorded_as_drawn(tiny_model):
    result = generate(tiny_model, PROMPTS[0], seed=LARGEST_SEED, num_waveforms_per_prompt=2)
    for seed, sound in by_seed(result).items():
        assert_same_sound(sound[None], generate(tiny_model, PROMPTS[0], seed=seed).audio[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "seed"),
    list(zip([DETERMINISTIC, *STOCHASTIC], [0, None, 0, None], strict=True)),
)
def test_global_random_state_is_neither_read_nor_changed(tiny_model, sampling, seed):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    first = generate(tiny_model, PROMPTS[0], seed=seed, num_waveforms_per_prompt=2, **sampling)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    again = generate(tiny_model, PROMPTS[0], seed=seed, num_waveforms_per_prompt=2, **sampling)
    assert torch.equal(first.audio, again.audio) == (seed is not None)


@given(
    seeds=st.lists(st.integers(0, LARGEST_SEED), min_size=1, max_size=4),
    candidates=st.integers(1, 3),
)
@settings(deadline=None, max_examples=30)
def test_noise_has_one_cpu_generator_per_sound(tiny_model, seeds, candidates):
    """So that a seed means the same on every device."""
    options = GenerationOptions(audio_length_in_s=SECONDS, num_waveforms_per_prompt=candidates, seed=seeds)
    request = Request.resolve(["a dog"] * len(seeds), options, tiny_model.sound, tiny_model.schedule)
    generators = request.generators()
    assert len(generators) == len(seeds) * candidates
    for row, generator in enumerate(generators):
        expected = (seeds[row // candidates] + row % candidates) % (LARGEST_SEED + 1)
        assert generator.device.type == "cpu"
        assert generator.initial_seed() == expected


@pytest.mark.slow
def test_starting_noise_is_what_the_seed_draws_first(tiny_model, monkeypatch):
    """The same noise as `latents=torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`."""
    shape = tiny_model.sound.latents(1, FRAMES)
    noise = torch.cat(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(s)) for s in (5, 6, 70, 71)]
    )
    arguments = dict(seed=[5, 70], num_waveforms_per_prompt=2)
    given = generate(tiny_model, PROMPTS[:2], latents=noise, **arguments)
    assert torch.equal(generate(tiny_model, PROMPTS[:2], **arguments).audio, given.audio)
