"""Sounds edited by text: what an edit keeps, seeds and batches, the record, mistakes."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile
import torch

from audioldm2 import AudioLDM2, Result
from audioldm2.edit_options import EditOptions
from audioldm2.editing.input_sound import InputSound
from audioldm2.editing.text_edit import first_step_left
from audioldm2.errors import ArgumentError
from audioldm2.sampling.repainting import Walk
from tests.support.editing import CELL, CLOSE, FRAMES, RATE, SCHEDULE, STEPS, tone
from tests.support.sizes import full_or

WAYS = [{"method": "direct"}, *({"method": "ddpm", "sampler": name} for name in ("dpmpp_2m_sde", "ddim"))]
EACH_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.get("sampler", "direct"))


def edit(model: AudioLDM2, prompt: str | list[str] = "a cat", **arguments) -> Result:
    defaults = dict(audio=tone(), source_prompt="a dog", num_inference_steps=STEPS)
    arguments = defaults | arguments
    return model.edit(arguments.pop("audio"), prompt, **arguments)


# What an edit keeps.


@pytest.mark.exhaustive
@pytest.mark.parametrize(("skip", "guidance"), [(0.0, 3.5), (0.8, 1.0)])
@EACH_WAY
def test_the_same_prompt_and_scale_keep_the_latent(tiny_model, way: dict, skip: float, guidance: float):
    scales = dict(guidance_scale=guidance, source_guidance_scale=guidance)
    found = edit(tiny_model, "a dog", skip=skip, **scales, **way).latents
    z = tiny_model.encode_audio(tone())
    if way["method"] == "direct":
        assert torch.equal(found, z)
    else:
        assert (found - z).norm() <= 1e-5 * z.norm()  # 100 dB


@pytest.mark.slow
def test_direct_edit_keeps_the_latent_for_each_equal_prompt_of_a_batch(tiny_model):
    scales = dict(guidance_scale=3.0, source_guidance_scale=3.0, guidance_rescale=0.3)
    prompts = ["a much longer text", "a dog", "a dog"]
    found = edit(tiny_model, prompts, method="direct", num_waveforms_per_prompt=2, **scales)
    z = tiny_model.encode_audio(tone())[0]
    assert not torch.equal(found.latents[0], z)
    assert all(torch.equal(row, z) for row in found.latents[2:])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[:2], ids=["direct", "ddpm"])
def test_prompts_scales_and_skipped_steps_matter(tiny_model, way: dict):
    way = way | {"num_inference_steps": 3}
    base = edit(tiny_model, **way).latents
    changes = [
        dict(source_prompt="rain"), dict(prompt="rain"), dict(negative_prompt="hiss"), dict(skip=0.4),
        dict(guidance_scale=2.0), dict(source_guidance_scale=3.0),
    ]  # fmt: skip
    assert (base - tiny_model.encode_audio(tone())).norm() > 1e-4 * base.norm()
    for change in changes:
        assert (edit(tiny_model, **way | change).latents - base).norm() > 1e-6 * base.norm(), change


@pytest.mark.slow
def test_length_and_level_are_the_sounds(tiny_model):
    for samples in (CELL - 1, 4163):
        assert edit(tiny_model, audio=tone(samples)).audio.shape == (1, 1, samples)
    result = edit(tiny_model)
    own_level = InputSound.prepare(tone(), RATE, RATE, "audio").at_own_level(tiny_model.vocode(result.mel))
    assert torch.equal(result.audio[0], own_level[:, : FRAMES * CELL])


# The stages alone.


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("skip", "scale"), [(0.0, 3.0), (0.5, 1.0), (0.9, 3.0)])
def test_inversion_leads_denoise_back_to_the_latent(tiny_model, skip: float, scale: float):
    z, source = tiny_model.encode_audio(tone()), tiny_model.encode_prompt("a dog")
    settings = dict(num_inference_steps=10, guidance_scale=scale)
    inversion = tiny_model.invert(
        z, source, skip=skip, generator=torch.Generator().manual_seed(1), **settings
    )
    walk = dict(sampler="ddim", eta=1, t_start=inversion.t_start, noise=inversion.noise)
    found = tiny_model.denoise(source, inversion.x, **walk, **settings)
    assert (found - z).norm() <= 1e-5 * z.norm()
    other = tiny_model.denoise(tiny_model.encode_prompt("rain"), inversion.x, **walk, **settings)
    assert (other - z).norm() > 1e-4 * z.norm()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_edit_is_its_stages(tiny_model, sampler: str):
    result = edit(tiny_model, method="ddpm", sampler=sampler, seed=3, skip=0.2)
    z, generator = tiny_model.encode_audio(tone()), torch.Generator().manual_seed(3)
    torch.randn(z.shape, generator=generator)  # what `generate` would start from
    settings = dict(num_inference_steps=STEPS, sampler=sampler)
    inversion = tiny_model.invert(
        z, tiny_model.encode_prompt("a dog"), skip=0.2, guidance_scale=2, generator=[generator], **settings
    )
    walk = dict(t_start=inversion.t_start, noise=inversion.noise, eta=1.0 if sampler == "ddim" else 0.0)
    expected = tiny_model.denoise(tiny_model.encode_prompt("a cat"), inversion.x, **walk, **settings)
    expected += inversion.residual
    assert (result.latents - expected).norm() <= CLOSE * expected.norm()


# Seeds, batches, threads, callbacks.


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[:2], ids=["direct", "ddpm"])
def test_edited_sound_is_independent_of_its_batch(tiny_model, way: dict, monkeypatch):
    way = way | {"num_inference_steps": 3}
    prompts, seeds = ["a cat", "low hum", ""], [5, 60, 700]
    alone = [
        edit(tiny_model, prompt, seed=seed, **way).audio[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    together = edit(tiny_model, prompts, seed=seeds, **way)
    monkeypatch.setattr("audioldm2.runtime.memory.sounds_at_once", lambda *_: 2)
    sliced = edit(tiny_model, prompts, seed=seeds, **way)
    for row, expected in enumerate(alone):
        for found in (together, sliced):
            assert (found.audio[row] - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS[:2], ids=["direct", "ddpm"])
def test_seeds_decide_the_edit(tiny_model, way: dict):
    first, again, other = (edit(tiny_model, seed=seed, **way) for seed in (1, 1, 2))
    assert torch.equal(first.audio, again.audio)
    assert not torch.equal(first.audio, other.audio)


@pytest.mark.slow
def test_candidates_are_ranked_and_have_the_next_seeds(tiny_model):
    result = edit(tiny_model, seed=5, num_waveforms_per_prompt=2)
    assert sorted(result.seeds[0]) == [5, 6]
    assert result.scores[0].tolist() == sorted(result.scores[0].tolist(), reverse=True)
    for place, seed in enumerate(result.seeds[0]):
        expected = edit(tiny_model, seed=seed).audio[0, 0]
        assert (result.audio[0, place] - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.slow
def test_two_threads_get_the_edits_that_they_get_alone(tiny_model):
    ways = [WAYS[0] | {"seed": 1}, WAYS[1] | {"seed": 2, "prompt": "rain"}]
    alone = [edit(tiny_model, **way).audio for way in ways]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda way: edit(tiny_model, **way).audio, 2 * ways))
    assert all(torch.equal(*pair) for pair in zip(2 * alone, together, strict=True))


@EACH_WAY
def test_on_step_counts_the_steps_left_and_stops(tiny_model, way: dict):
    steps, stages, estimates = [], [], []

    def on_step(step: int, t: float, x0: torch.Tensor) -> bool:
        steps.append(step)
        estimates.append(x0)
        return step < 8

    result = edit(
        tiny_model, num_inference_steps=10, skip=0.5, on_step=on_step, on_stage=stages.append, **way
    )
    assert steps == [6, 7, 8]
    assert torch.equal(result.latents, estimates[-1])
    assert stages == ["encoding the sound", "encoding the prompt", "denoising", "decoding", "vocoding"]


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=["direct", "ddpm"])
def test_record_reproduces_the_edit(tiny_model, tmp_path, way: dict):
    path = tmp_path / "dog.wav"
    soundfile.write(path, tone().numpy(), RATE, subtype="FLOAT")
    result = edit(tiny_model, audio=path, seed=4, skip=0.2, guidance_scale=5, **way)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["audio"]["file"] == "dog.wav"
    assert record["audio"]["sha256"] == InputSound.prepare(tone(), RATE, RATE, "audio").sha256
    expected = dict(
        prompt="a cat", source_prompt="a dog", method=way["method"], sampler=way.get("sampler", "euler"),
        skip=0.2, guidance_scale=5.0, source_guidance_scale=2.0, steps_taken=4, seed=4,
    )  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    options = {name: record[name] for name in EditOptions.__dataclass_fields__ if name in record}
    again = tiny_model.edit(path, record["prompt"], **options)
    assert torch.equal(again.audio, result.audio)


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(skip=1), "skip is 1; it has to be below 1, so that a step is left."),
        (dict(skip=-0.1), "skip is -0.1; it has to be a finite number of at least 0."),
        (dict(skip=0.95, num_inference_steps=10),
         "skip is 0.95; it has to be at most 0.9, so that one of 10 steps is left."),
        (dict(method="ddim"), "method is 'ddim'; it has to be one of ddpm, direct."),
        (dict(sampler="ddim", method="direct"),
         "sampler is 'ddim'; it has to be auto or euler for the method direct."),
        (dict(sampler="euler", method="ddpm"),
         "sampler is 'euler'; it has to be auto or dpmpp_2m_sde, ddim, euler_ancestral for the method ddpm."),
        (dict(sampler="heun"),
         "sampler is 'heun'; it has to be one of auto, dpmpp_2m_sde, ddim, euler_ancestral, euler."),
        (dict(eta=0.5, method="direct"), "eta is 0.5; it has to be left out for euler, which takes none."),
        (dict(eta=0, sampler="ddim"),
         "eta is 0.0; it has to be above 0: an inversion recovers the noise of the steps."),
        (dict(karras=True, sampler="ddim"),
         "karras is True; it has to be False for ddim (samplers that take karras: euler, euler_ancestral, "
         "heun, lms, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc)."),
        (dict(source_prompt=["a", "b"]),
         "source_prompt is ['a', 'b']; it has to be one text, which describes the sound."),
        (dict(strength=0.5),
         "strength is 0.5; it has to be left out of an edit, which edits the whole sound."),
        (dict(mask_start_seconds=0.1),
         "mask_start_seconds is 0.1; it has to be left out of an edit, which edits the whole sound."),
        (dict(extend_seconds=1),
         "extend_seconds is 1; it has to be left out of an edit, which edits the whole sound."),
        (dict(latents=torch.zeros(1)),
         "latents is set; it has to be left out of an edit, which edits the whole sound."),
        (dict(audio=None), "audio is None; it has to be a sound file or floats (samples,)."),
        (dict(audio=torch.zeros(900)), "audio is silent; it has to be louder than -120 dB."),
        (dict(audio=torch.zeros(0)), "audio has no samples; it has to have at least one."),
        (dict(audio=torch.tensor([0.1, math.nan])),
         "audio has 1 samples of 2 that are NaN or infinite; it has to be finite."),
        (dict(seed=[1, 2]),
         "seed has 2 entries for 1 prompts; it has to have one for each prompt, or be one for all."),
    ],
)  # fmt: skip
def test_mistakes_come_before_any_network(tiny_model, monkeypatch, arguments: dict, sentence: str):
    monkeypatch.setattr(type(tiny_model.networks), "running", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(ArgumentError) as caught:
        edit(tiny_model, **arguments)
    assert str(caught.value) == sentence


def test_files_that_are_no_sound(tiny_model, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("hello")
    soundfile.write(tmp_path / "a.wav", tone().numpy(), RATE)
    with pytest.raises(ArgumentError, match="is not a sound file that can be read"):
        edit(tiny_model, audio=text)
    with pytest.raises(ArgumentError, match="audio_sample_rate is 8000; it has to be left out for a file"):
        edit(tiny_model, audio=tmp_path / "a.wav", audio_sample_rate=8000)
    with pytest.raises(FileNotFoundError):
        edit(tiny_model, audio=tmp_path / "none.wav")
    with pytest.raises(TypeError, match="unknown option 'skips'; did you mean 'skip'"):
        edit(tiny_model, skips=0.5)


def test_sound_longer_than_memory(tiny_model, monkeypatch):
    monkeypatch.setattr("audioldm2.runtime.memory.available_bytes", lambda *_: 10_000)
    with pytest.raises(ArgumentError, match=r"audio lasts 0\.32 seconds; it has to last at most about"):
        edit(tiny_model)


def test_inversion_refuses_what_does_not_fit(tiny_model):
    z, source = tiny_model.encode_audio(tone()), tiny_model.encode_prompt("a dog", guided=False)
    for arguments, words in (
        (dict(guidance_scale=3), "conditioning has no negative part"),
        (
            dict(sampler="euler"),
            "sampler is 'euler'; it has to be one of ddim, euler_ancestral, dpmpp_2m_sde",
        ),
        (dict(eta=0), "eta is 0.0; it has to be above 0"),
        (dict(skip=0.99), "skip is 0.99; it has to be at most 0.96, so that one of 25 steps is left"),
    ):
        with pytest.raises(ArgumentError) as caught:
            tiny_model.invert(z, source, **dict(guidance_scale=1) | arguments)
        assert words in str(caught.value)


def test_skip_counts_steps_without_rounding_errors():
    for steps in range(1, full_or(101, 51)):
        for skipped in range(steps):
            assert first_step_left(Walk("euler", SCHEDULE, steps), skipped / steps) == skipped
