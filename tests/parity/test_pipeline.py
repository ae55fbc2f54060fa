"""A whole checkpoint, as the reference saves it, through our pipeline and the reference's: the same waveform.

Where we differ on purpose, a test shows both behaviours. The errors measured are 123 dB below the sound and
more; without T5's mask, or with another negative prompt, they are 15 to 35 dB below.
"""

import shutil
from collections.abc import Callable
from functools import cache

import librosa
import pytest
import torch
import torch.nn.functional as F
from diffusers import AudioLDM2Pipeline, DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

import audioldm2
from audioldm2 import AudioLDM2, clap_score
from scripts.make_reference_checkpoint import TINY
from tests.support.checkpoints import change_json
from tests.support.reference import gpt2, save

LEAST = 100  # dB of signal over error: the same sound in float32
OTHER = 60  # dB; with less, something was computed otherwise
# With their steps: below 15 the reference's second one ends with a step of first order.
SCHEDULERS = {"ddim": (DDIMScheduler, 5), "dpmpp_2m": (DPMSolverMultistepScheduler, 15)}
PROMPT = "a dog barks while the rain falls"
NEGATIVES = (None, "noise", "the rain falls while a dog barks")  # none, a shorter one, one as long


@pytest.fixture(scope="module")
def pipe(reference_folder) -> AudioLDM2Pipeline:
    pipe = AudioLDM2Pipeline.from_pretrained(reference_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(reference_folder) -> AudioLDM2:
    return audioldm2.load(reference_folder, device="cpu")


def reference(
    pipe: AudioLDM2Pipeline, prompt: str | list[str] | None, sampler: str = "ddim", **arguments
) -> Tensor:
    """What the reference makes of a prompt, (prompts * waveforms, samples)."""
    kind, steps = SCHEDULERS[sampler]
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    defaults = dict(audio_length_in_s=1.0, num_inference_steps=steps, output_type="pt")
    return pipe(prompt, **(defaults | arguments)).audios


def ours(model: AudioLDM2, prompt: str | list[str], sampler: str = "ddim", **arguments) -> Tensor:
    """What we make of it, (prompts * waveforms, samples)."""
    defaults = dict(audio_length_in_s=1.0, num_inference_steps=SCHEDULERS[sampler][1], sampler=sampler)
    return model.generate(prompt, **(defaults | arguments)).audio.flatten(0, 1)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def signal_to_error(found: Tensor, expected: Tensor) -> float:
    """dB."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01, "the reference's sound is too quiet to judge"
    error = (found - expected).double().norm().clamp(min=1e-20)
    return 20 * torch.log10(expected.double().norm() / error).item()


@pytest.fixture(scope="module")
def guided(pipe) -> Callable[[str, float, str | None], Tensor]:
    """The reference's sounds, each computed once: without guidance it ignores the negative prompt."""

    @cache
    def sound(sampler: str, guidance_scale: float, negative_prompt: str | None) -> Tensor:
        request = dict(negative_prompt=negative_prompt, guidance_scale=guidance_scale)
        return reference(pipe, PROMPT, sampler, generator=seeded(5)[0], **request)

    def guided(sampler: str, guidance_scale: float, negative_prompt: str | None) -> Tensor:
        return sound(sampler, guidance_scale, negative_prompt if guidance_scale > 1 else None)

    assert torch.equal(sound("ddim", 0.5, None), sound("ddim", 0.5, "noise"))
    return guided


# The same sound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "guidance_scale", "negative_prompt"),
    [  # each negative prompt with guidance, and without it, where the reference ignores one
        *(("ddim", 3.5, NEGATIVES[0]), ("ddim", 3.5, NEGATIVES[1]), ("dpmpp_2m", 3.5, NEGATIVES[2])),
        *(("ddim", 1.0, NEGATIVES[1]), ("ddim", 0.5, NEGATIVES[0])),
    ],
)
def test_guidance_and_negative_prompt(guided, model, sampler, guidance_scale, negative_prompt):
    if negative_prompt and " " in negative_prompt:
        assert len(model.t5_tokenizer.encode(negative_prompt)) == len(model.t5_tokenizer.encode(PROMPT))
    request = dict(negative_prompt=negative_prompt, guidance_scale=guidance_scale)
    expected = guided(sampler, guidance_scale, negative_prompt)
    assert signal_to_error(ours(model, PROMPT, sampler, seed=5, **request), expected) >= LEAST


@pytest.mark.parametrize(
    "sampler, seconds, frames",
    [("dpmpp_2m", 0.97, 25), ("ddim", 2.5, 63)],  # 97 frames are not a multiple of 4
)
def test_durations(pipe, model, sampler, seconds, frames):
    assert model.sound.latent_frames(seconds) == frames
    expected = reference(pipe, PROMPT, sampler, generator=seeded(6)[0], audio_length_in_s=seconds)
    found = ours(model, PROMPT, sampler, seed=6, audio_length_in_s=seconds)
    assert found.shape == (1, int(seconds * 16000))
    assert signal_to_error(found, expected) >= LEAST


def test_noise_of_ddim(pipe, model):
    """One generator gives the starting noise, and then the noise of every step."""
    expected = reference(pipe, PROMPT, generator=seeded(7)[0], eta=0.3)
    assert signal_to_error(ours(model, PROMPT, seed=7, eta=0.3), expected) >= LEAST


@pytest.mark.parametrize(
    "prompt", ["", "<mask> ünïcödé 日本", "a church bell and a violin " * 60], ids=["empty", "odd", "cut"]
)
@pytest.mark.filterwarnings("ignore::audioldm2.TruncationWarning")
def test_prompts(pipe, model, prompt):
    expected = reference(pipe, prompt, generator=seeded(8)[0])
    assert signal_to_error(ours(model, prompt, seed=8), expected) >= LEAST


def test_given_latents(pipe, model):
    latents = torch.randn(2, 3, 25, 4)
    prompts = [PROMPT, "the rain falls while a dog barks"]  # of equal length; others are below
    expected = reference(pipe, prompts, latents=latents)
    assert signal_to_error(ours(model, prompts, latents=latents), expected) >= LEAST


def test_several_waveforms_in_the_same_order(pipe, model):
    """The reference takes a generator for each waveform, and puts the best first."""
    expected = reference(pipe, PROMPT, generator=seeded(3, 4, 5, 6), num_waveforms_per_prompt=4)
    result = model.generate(
        PROMPT,
        seed=3,
        num_waveforms_per_prompt=4,
        audio_length_in_s=1.0,
        num_inference_steps=SCHEDULERS["ddim"][1],
        sampler="ddim",
    )
    assert result.seeds[0] != [3, 4, 5, 6], "the ranking has nothing to do"
    assert signal_to_error(result.audio[0], expected) >= LEAST


# The same score ---------------------------------------------------------------------------------------------

TEXTS = [PROMPT, "noise", "<mask> ünïcödé 日本"]


def reference_scores(pipe: AudioLDM2Pipeline, features: Tensor) -> Tensor:
    """Cosines (texts, sounds)."""
    tokens = pipe.tokenizer(TEXTS, return_tensors="pt", padding=True)
    output = pipe.text_encoder(**tokens, input_features=features)
    return output.text_embeds @ output.audio_embeds.T


def reference_features(pipe: AudioLDM2Pipeline, audio: Tensor) -> Tensor:
    """The log-mel spectrograms that the reference scores by, of sounds at 16 kHz."""
    resampled = librosa.resample(audio.numpy(), orig_sr=16000, target_sr=48000)
    return pipe.feature_extractor(list(resampled), return_tensors="pt", sampling_rate=48000).input_features


def sounds(model: AudioLDM2, seconds: float) -> Tensor:
    """Noise, a chord, and what the model makes: (3, samples)."""
    samples = int(16000 * seconds)
    time = torch.arange(samples) / 16000
    chord = sum(torch.sin(2 * torch.pi * f * time) for f in (220, 277, 3001)) / 6
    made = ours(model, PROMPT, audio_length_in_s=seconds, num_inference_steps=4)
    return torch.cat([torch.stack([0.2 * torch.randn(samples), chord]), made])


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.97, 10.0])
def test_score(pipe, model, seconds):
    """Measured: 3e-5 apart, all of it from the two resamplers."""
    audio = sounds(model, seconds)
    expected = reference_scores(pipe, reference_features(pipe, audio))
    assert expected.std() > 0.01, "the scores are too much alike to judge"
    for text, row in zip(TEXTS, expected, strict=True):
        found = model.score(text, audio)
        assert (found - row).abs().max() <= 1e-3


@torch.no_grad()
def test_score_of_the_same_spectrograms(pipe, model):
    features = reference_features(pipe, sounds(model, 3.3))
    with model.networks.running("clap_audio") as clap_audio:
        heard = clap_audio(features.squeeze(1))
    found = clap_score.embed_texts(model.networks, model.clap_tokenizer, TEXTS) @ heard.T
    assert (found - reference_scores(pipe, features)).abs().max() <= 1e-5


# Differences on purpose -------------------------------------------------------------------------------------


def test_published_language_model(reference_folder, model, tmp_path):
    """The published checkpoints say GPT2Model. The reference then dies; we make the same sound."""
    shutil.copytree(reference_folder, tmp_path, dirs_exist_ok=True)
    save(tmp_path, "language_model", gpt2(3, language_head=False, **TINY["gpt2"]))
    change_json(tmp_path / "model_index.json", language_model=["transformers", "GPT2Model"])
    published = AudioLDM2Pipeline.from_pretrained(tmp_path)
    published.set_progress_bar_config(disable=True)
    with pytest.raises(AttributeError, match="GPT2Model"):
        reference(published, PROMPT)
    found = ours(audioldm2.load(tmp_path, device="cpu"), PROMPT)
    assert signal_to_error(found, ours(model, PROMPT)) >= LEAST


def test_long_negative_prompt_is_not_cut(pipe, model):
    """The reference cuts a negative prompt to the prompt's T5 length.

    We do what it does when given its own embeddings of the whole negative prompt, and the prompt's padded.
    """
    prompt, negative = "a dog", "noise, hiss and hum; low quality"
    length = len(model.t5_tokenizer.encode(negative))
    missing = length - len(model.t5_tokenizer.encode(prompt))
    assert missing > 0

    cut, _, _ = pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
    assert cut.shape[1] == length - missing
    t5, mask, gpt2 = pipe.encode_prompt(prompt, "cpu", 1, False)
    negative_t5, negative_mask, negative_gpt2 = pipe.encode_prompt(negative, "cpu", 1, False)
    expected = reference(
        pipe, None, generator=seeded(9)[0],
        prompt_embeds=F.pad(t5, (0, 0, 0, missing)), attention_mask=F.pad(mask, (0, missing)),
        generated_prompt_embeds=gpt2,
        negative_prompt_embeds=negative_t5, negative_attention_mask=negative_mask,
        negative_generated_prompt_embeds=negative_gpt2,
    )  # fmt: skip
    assert signal_to_error(ours(model, prompt, seed=9, negative_prompt=negative), expected) >= LEAST
    with_cut = reference(pipe, prompt, generator=seeded(9)[0], negative_prompt=negative)
    assert signal_to_error(with_cut, expected) < OTHER


def test_sound_is_independent_of_its_batch(pipe, model):
    """In the reference, padding to the longest prompt of a batch changes the sounds of the others."""
    prompts = ["a dog", PROMPT]
    latents = torch.randn(2, 3, 25, 4)
    together = ours(model, prompts, latents=latents)
    theirs_together = reference(pipe, prompts, latents=latents)
    worst_of_theirs = float("inf")
    for row, prompt in enumerate(prompts):
        alone = ours(model, prompt, latents=latents[row : row + 1])
        theirs_alone = reference(pipe, prompt, latents=latents[row : row + 1])
        assert signal_to_error(together[row : row + 1], alone) >= LEAST
        assert signal_to_error(alone, theirs_alone) >= LEAST
        worst_of_theirs = min(worst_of_theirs, signal_to_error(theirs_together[row : row + 1], theirs_alone))
    assert worst_of_theirs < OTHER


def test_ranking_is_inside_each_prompt(pipe, model):
    """The reference ranks over the whole batch: prompts get each other's sounds, and one comes twice."""
    prompts = [PROMPT, "the rain falls while a dog barks"]
    latents = torch.randn(4, 3, 25, 4)
    made = [ours(model, prompts[row // 2], latents=latents[row : row + 1]) for row in range(4)]

    def whose(sound: Tensor) -> int:
        return max(range(4), key=lambda row: signal_to_error(sound[None], made[row]))

    theirs = [whose(sound) for sound in reference(pipe, prompts, latents=latents, num_waveforms_per_prompt=2)]
    found = [whose(sound) for sound in ours(model, prompts, latents=latents, num_waveforms_per_prompt=2)]
    assert sorted(theirs) != list(range(4))
    assert sorted(found[:2]) == [0, 1]
    assert sorted(found[2:]) == [2, 3]
