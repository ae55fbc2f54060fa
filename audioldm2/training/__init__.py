"""Training for every stage of AudioLDM 2. See README.md in this folder.

    vae      log-mel spectrograms to latents and back         (vae.py)
    vocoder  log-mel spectrograms to waveforms                (vocoder.py)
    clap     captions and sounds to one embedding space       (clap.py)
    audiomae sounds to the language of audio, no captions     (audiomae.py)
    loa      captions to the language of audio, by GPT-2      (loa.py)
    ldm      noise to latents, conditioned on the caption     (ldm.py)
    lora     the same, but only an adapter of the denoiser    (lora.py)
    word     the same, but only the vectors of a new word     (word.py)

Train them in this order: the vocoder and the denoiser use the trained VAE, and the denoiser is conditioned on
CLAP. The stages audiomae and loa are for models that take a sound as a prompt; others do without them. Each
stage is one file with its recipes, losses and training step.
"""

from audioldm2.training.audiomae import AudioMAEStage
from audioldm2.training.clap import ClapStage
from audioldm2.training.ldm import LDMStage
from audioldm2.training.loa import LOAStage
from audioldm2.training.lora import LoRAStage
from audioldm2.training.stage import Stage
from audioldm2.training.vae import VAEStage
from audioldm2.training.vocoder import VocoderStage
from audioldm2.training.word import WordStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        VAEStage, VocoderStage, ClapStage, AudioMAEStage, LOAStage, LDMStage, LoRAStage, WordStage,
    )
}  # fmt: skip
