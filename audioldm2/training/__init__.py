"""Training every stage of AudioLDM 2, in this order; each needs what the one before it wrote.

    vae      log-mel spectrograms to latents and back              (vae.py)
    vocoder  log-mel spectrograms to waves                         (vocoder.py)
    clap     captions and sounds to one space                      (clap.py)
    ldm      noise to latents, told by CLAP, T5 and GPT-2          (ldm.py)

Each stage is one file, its recipe on top, its losses below. What they share: stage.py, recipe.py, descent.py
and muon.py (optimisers and average), losses.py, discriminators.py, chance.py. Around them: data.py (captioned
sounds), scratch.py and initialise.py (a model to train from nothing), loop.py (steps, log, saving, resuming).
`scripts/train.py` runs them.
"""

from audioldm2.training.clap import ClapStage
from audioldm2.training.ldm import LDMStage
from audioldm2.training.stage import Stage
from audioldm2.training.vae import VAEStage
from audioldm2.training.vocoder import VocoderStage

STAGES: dict[str, type[Stage]] = {each.name: each for each in (VAEStage, VocoderStage, ClapStage, LDMStage)}
