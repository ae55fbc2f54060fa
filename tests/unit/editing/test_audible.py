"""What edits sound like: true sounds of the demo world, edited by the model in the box with several seeds."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2, Result
from audioldm2.audio import SAMPLE_RATE as RATE
from audioldm2.audio import resample, vae_log_mel
from scripts.demo_world.sound_measures import power_spectra
from tests.support.demo_world import make
from tests.support.seams import in_true_sounds, spectral_flux, wave_jump
from tests.support.sizes import full_or

pytestmark = pytest.mark.slow
SEEDS = list(range(full_or(10, 4)))
NEARLY_ALL = math.ceil(0.9 * len(SEEDS))
CHANGED = ["tone", "bell", "siren", "melody", "dog"]


@pytest.fixture(scope="module")
def demo() -> AudioLDM2:
    return audioldm2.load("demo", device="cpu")


def sounds_of(result: Result) -> np.ndarray:
    """(sounds, samples)."""
    return result.audio[:, 0].numpy()


def change(model: AudioLDM2, prompt: str, audio: np.ndarray | Tensor, **options) -> Result:
    """The same edit with each of the seeds."""
    return model.generate([prompt] * len(SEEDS), audio=audio, seed=SEEDS, num_inference_steps=10, **options)


# Audio-to-audio.


def test_distance_to_the_source_falls_with_strength(demo):
    """In at least 4 of 5 seeds, each with another family; distances of log-mels and of latents."""
    audible, latent = 0, 0
    for seed, family in enumerate(CHANGED):
        source = torch.from_numpy(make(family, seed))
        mel, z = vae_log_mel(source[None]).clamp(min=-9), demo.encode_audio(source)
        results = [
            demo.generate("rain falls", audio=source, strength=strength, num_inference_steps=5, seed=seed)
            for strength in (0.3, 0.6, 0.9)
        ]
        in_mels = [(vae_log_mel(each.audio[0]).clamp(min=-9) - mel).norm().item() for each in results]
        in_latents = [(each.latents - z).norm().item() for each in results]
        audible += in_mels == sorted(in_mels)
        latent += in_latents == sorted(in_latents)
    assert audible >= 4 and latent >= 4, (audible, latent)


# Inpainting in time.


def tone_decibels(wave: np.ndarray) -> float:
    """Power between 980 and 1020 Hz from 1.05 to 1.45 s."""
    power, hz = power_spectra(wave, RATE, window=0.064)
    return 10 * np.log10(power[105:145, (hz >= 980) & (hz <= 1020)].mean())


def test_tone_replaced_by_inpainting_is_gone(demo):
    """A tone in rain, 23 dB above it, falls to the level of the rain; the rest is the file's."""
    rain = make("rain", 0)
    time = np.arange(len(rain)) / RATE
    fade = np.clip(np.minimum(time - 1.0, 1.5 - time) / 0.01, 0, 1)
    source = (rain + 1.4 * rain.std() * fade * np.sin(2000 * np.pi * time)).astype(np.float32)
    assert np.abs(source).max() < 1 and tone_decibels(source) > tone_decibels(rain) + 15
    result = change(demo, "rain falls", source, mask_start_seconds=0.97, mask_end_seconds=1.53)
    [[start, end]] = result.record()["remade_seconds"]
    found = sounds_of(result)
    assert sum(tone_decibels(each) < tone_decibels(rain) + 6 for each in found) >= NEARLY_ALL
    for kept in (slice(0, round(start * RATE)), slice(round(end * RATE), None)):
        assert (found[:, kept] == source[kept]).all()


# Seams of inpainting and of continuation.


@pytest.fixture(scope="module")
def edits(demo) -> list[tuple[Result, list[int]]]:
    """Inpainted and continued sounds, half of a tone and half of a bell, and the places of their seams."""
    found, half = [], len(SEEDS) // 2
    for family, prompt, seeds in (
        ("tone", "a tone sounds", SEEDS[:half]),
        ("bell", "a bell rings", SEEDS[half:]),
    ):
        wave = make(family, 3, {"length": "long"} if family == "tone" else None)
        common = dict(seed=seeds, num_inference_steps=10)
        for result in (
            demo.generate(
                [prompt] * half, audio=wave, mask_start_seconds=0.65, mask_end_seconds=1.1, **common
            ),
            demo.generate([prompt] * half, audio=wave[:19_200], extend_seconds=0.8, **common),
        ):
            [[start, end]] = result.record()["remade_seconds"]
            places = [round(start * RATE) + 160, round(end * RATE) - 160]  # the middles of the fades
            found.append((result, places if places[1] < result.audio.shape[-1] - RATE // 10 else places[:1]))
    return found


def passing(sounds: np.ndarray, places: list[int], jump: float, flux: float) -> int:
    """How many sounds have no seam beyond the limits."""
    return sum(
        all(wave_jump(each, place) <= jump and spectral_flux(each, place) <= flux for place in places)
        for each in sounds
    )


def test_seams_are_within_what_true_sounds_do(edits):
    limits = in_true_sounds()
    inpainted = sum(passing(sounds_of(result), places, *limits) for result, places in edits[::2])
    continued = sum(passing(sounds_of(result), places, *limits) for result, places in edits[1::2])
    assert min(inpainted, continued) >= NEARLY_ALL, (inpainted, continued)


def test_hard_cut_is_not(edits, demo, monkeypatch):
    """The same sounds without the fade fail, so the measures would notice a seam."""
    monkeypatch.setattr("audioldm2.editing.edit.fade_samples", lambda shape: 1)
    limits, passed = in_true_sounds(), 0
    for result, places in edits:
        cut = result.request.edit.finish(demo.vocode(result.mel).float().cpu()).numpy()
        places = [place + shift for place, shift in zip(places, (-160, 160), strict=False)]
        passed += passing(cut, places, *limits)
    assert passed <= 0.4 * len(SEEDS), passed


# Bandwidth extension.


def test_noise_of_a_narrow_band_file_is_extended(demo):
    """White noise at 8 kHz, extended to 16 kHz: the upper band is within 6 dB of the noise's own."""
    noise = make("noise", 0, {"length": "long"})
    narrow = resample(torch.from_numpy(noise), RATE, RATE // 2)
    result = change(demo, "white noise plays", narrow, audio_sample_rate=RATE // 2, mask_start_hz=4000)
    assert result.record()["remade_hz"] == [[3633.1, 8000.0]]
    wide = resample(narrow, RATE // 2, RATE).numpy()

    def decibels(wave: np.ndarray, low: float, high: float) -> float:
        power, hz = power_spectra(wave, RATE, window=0.064)
        return 10 * np.log10(power[20:150, (hz >= low) & (hz <= high)].mean() + 1e-12)

    true = decibels(noise, 4500, 7800)
    assert decibels(wide, 4500, 7800) < true - 60
    found = sounds_of(result)
    assert sum(abs(decibels(each, 4500, 7800) - true) < 6 for each in found) >= NEARLY_ALL
    errors = [decibels(each - wide, 50, 3600) - decibels(wide, 50, 3600) for each in found]
    assert max(errors) < -60, errors
