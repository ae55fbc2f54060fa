"""The denoiser's training loss against the reference libraries, on the same latents, times and noise.

The other side is built from diffusers' pipeline: its VAE, text networks, UNet and `DDPMScheduler`, the mean
squared error, and what upstream does to a waveform, to a batch's captions and to CLAP's vectors
(haoheliu/AudioLDM-training-finetuning), each written down here again.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AudioLDM2Pipeline, DDPMScheduler
from torch import Tensor

from audioldm2 import convert
from audioldm2.audio import vae_log_mel
from audioldm2.training import STAGES
from audioldm2.training.data import at_trained_level
from audioldm2.training.ldm import LENGTH_STEP, Draws, LDMStage
from audioldm2.training.randomness import generator
from tests.support.training import sound, stage_of

CAPTIONS = ["a dog barks while the rain falls", "the rain falls while a dog barks"]  # equally many tokens
NONE = [False, False]


@pytest.fixture(scope="module")
def pipe(reference_folder: Path) -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained(reference_folder)


@pytest.fixture(scope="module")
def stages(reference_folder: Path) -> dict[str, LDMStage]:
    """By the reading of dropped captions, with the rest as the published recipe has it."""
    checkpoint = convert.read_diffusers(reference_folder)
    published = STAGES["ldm"].recipes["published"]
    shared = {name: getattr(published, name) for name in ("normalize", "min_snr", "train_t5")}
    return {how: stage_of("ldm", checkpoint, unconditional=how, **shared) for how in ("trained", "reference")}


def waves() -> Tensor:
    return torch.stack([3 * sound(0) + 0.2, 0.01 * sound(5)])  # loud and shifted; quiet


def at_upstream_level(wave: Tensor) -> Tensor:
    """Upstream's `normalize_wav`."""
    array = wave.numpy()
    array = array - np.mean(array)
    return torch.from_numpy(0.5 * array / (np.max(np.abs(array)) + 1e-8))


@torch.no_grad()
def their_latents(pipe: AudioLDM2Pipeline, stage: LDMStage, wave: Tensor) -> Tensor:
    """Means and standard deviations, (batch, 2, channels, time, mel)."""
    mel = vae_log_mel(wave, stage.front_end)
    posterior = pipe.vae.encode(mel[:, : mel.shape[1] // 4 * 4].unsqueeze(1)).latent_dist
    return pipe.vae.config.scaling_factor * torch.stack([posterior.mean, posterior.std], dim=1)


@torch.no_grad()
def their_conditioning(
    pipe: AudioLDM2Pipeline, captions: list[str], dropped: list[bool], clap_dropped: list[bool], how: str
) -> dict[str, Tensor]:
    """The arguments of diffusers' UNet."""
    device, rows = torch.device("cpu"), []
    for caption, drop, without_clap in zip(captions, dropped, clap_dropped, strict=True):
        if drop and how == "trained":
            t5, mask, _ = pipe.encode_prompt("", device, 1, False)
            _, _, gpt2 = pipe.encode_prompt(caption, device, 1, False)
            rows.append((t5, mask, torch.zeros_like(gpt2)))
        elif drop:
            both = pipe.encode_prompt(caption, device, 1, True, negative_prompt="")
            rows.append(tuple(part[:1] for part in both))
        elif without_clap:
            t5, mask, _ = pipe.encode_prompt(caption, device, 1, False)
            ids = pipe.tokenizer("", return_tensors="pt")
            clap = pipe.text_encoder.get_text_features(**ids)
            clap = getattr(clap, "pooler_output", clap)[:, None]
            sequence = pipe.projection_model(clap, t5, torch.ones(1, 1, dtype=torch.long), mask)
            vectors = pipe.generate_language_model(
                sequence.hidden_states, attention_mask=sequence.attention_mask, max_new_tokens=None
            )
            rows.append((t5, mask, vectors))
        else:
            rows.append(pipe.encode_prompt(caption, device, 1, False))
    longest = max(t5.shape[1] for t5, _, _ in rows)
    t5s, masks, gpt2s = zip(*rows, strict=True)
    return {
        "encoder_hidden_states": torch.cat(gpt2s),
        "encoder_hidden_states_1": torch.cat([F.pad(t5, (0, 0, 0, longest - t5.shape[1])) for t5 in t5s]),
        "encoder_attention_mask_1": torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks]),
    }


@torch.no_grad()
def their_loss(pipe: AudioLDM2Pipeline, draws: Draws, cond: dict[str, Tensor]) -> float:
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    noisy = scheduler.add_noise(draws.x0, draws.eps, draws.t)
    return float(F.mse_loss(pipe.unet(noisy, draws.t, **cond).sample, draws.eps))


@torch.no_grad()
def our_loss(stage: LDMStage, draws: Draws) -> float:
    return float(stage.loss(CAPTIONS, draws))


def draws_for(stage: LDMStage, dropped: list[bool], clap_dropped: list[bool]) -> Draws:
    """Latents of the test's sounds; the captions get no padding."""
    clips = stage.prepare(torch.stack([at_trained_level(wave) for wave in waves()]))
    lengths = {stage.encoders.length(caption) for caption in CAPTIONS}
    assert len(lengths) == 1
    drawn = stage.draw(clips, generator("noise", 7))
    return drawn._replace(
        t=torch.tensor([30, 700]), offset=lengths.pop() % LENGTH_STEP,
        dropped=torch.tensor(dropped), clap_dropped=torch.tensor(clap_dropped),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["trained", "reference"])
@pytest.mark.parametrize(
    "dropped, clap_dropped",
    [(NONE, NONE), ([True, True], NONE), ([True, False], NONE), (NONE, [False, True])],
    ids=["captions", "all dropped", "one dropped", "CLAP dropped"],
)
def test_loss(how: str, dropped: list[bool], clap_dropped: list[bool], pipe, stages):
    draws = draws_for(stages[how], dropped, clap_dropped)
    cond = their_conditioning(pipe, CAPTIONS, dropped, clap_dropped, how)
    found, expected = our_loss(stages[how], draws), their_loss(pipe, draws, cond)
    assert found == pytest.approx(expected, rel=1e-6)
    if any(dropped) or any(clap_dropped):  # it depends on what is dropped, and how
        others = [their_conditioning(pipe, CAPTIONS, NONE, NONE, how)]
        if any(dropped):
            other_way = "reference" if how == "trained" else "trained"
            others.append(their_conditioning(pipe, CAPTIONS, dropped, clap_dropped, other_way))
        assert all(found != pytest.approx(their_loss(pipe, draws, each), rel=1e-5) for each in others)


def test_latents_at_the_published_level(pipe, stages):
    stage = stages["trained"]
    found = stage.prepare(torch.stack([at_trained_level(wave) for wave in waves()]))
    expected = their_latents(pipe, stage, torch.stack([at_upstream_level(wave) for wave in waves()]))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    as_they_are = their_latents(pipe, stage, waves())
    assert (found - as_they_are).norm() > 0.01 * expected.norm()
