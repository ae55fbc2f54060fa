"""How well a sound fits a text, by CLAP; and each prompt's candidates in the order of that.

The score is the cosine of two unit vectors, CLAP's of the text and CLAP's of the sound (Wu et al. 2023, arXiv
2211.06687).

CLAP hears 10 s. A longer sound is heard in evenly spaced windows of 10 s that together cover all of it, and
its vector is the mean of theirs: no second of a sound goes unheard, and the same sound always has the same
score. (The reference crops at random.)
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import MelSettings, clap_crops, clap_log_mel, resample
from audioldm2.errors import WeightsError
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.prompt.tokenizers import ClapTokenizer, pad
from audioldm2.runtime.placement import Networks


@torch.no_grad()
def embed_texts(networks: Networks, tokenizer: ClapTokenizer, texts: Sequence[str]) -> Tensor:
    """CLAP's vectors of texts: float32 (texts, clap_dim), norm 1, on the CPU."""
    tokens = pad([tokenizer.encode(text) for text in texts], tokenizer.pad_id)
    with networks.running("clap_text") as clap_text:
        return clap_text(tokens.ids.to(networks.device), tokens.mask.to(networks.device)).float().cpu()


@torch.no_grad()
def embed_sounds(networks: Networks, hearing: MelSettings, audio: Tensor, sample_rate: int) -> Tensor:
    """CLAP's vectors of sounds: float32 (sounds, clap_dim), norm 1, on the CPU.

    hearing: the log-mel front end that the network was trained with.
    audio:   (sounds, samples) at `sample_rate` Hz.
    """
    vectors = []
    with networks.running("clap_audio") as clap_audio:
        for sound in audio.split(1):  # one by one: a long sound at CLAP's rate is large
            wave = resample(sound.float().to(networks.device), sample_rate, hearing.sample_rate)
            windows = clap_crops(wave, 10 * hearing.sample_rate)
            heard = [
                clap_audio(clap_log_mel(window, hearing).to(networks.dtypes["clap_audio"])).float()
                for window in windows
            ]
            vectors.append(torch.stack(heard).mean(dim=0))  # (1, clap_dim)
    return F.normalize(torch.cat(vectors), dim=-1).cpu()


def score(
    networks: Networks,
    tokenizer: ClapTokenizer,
    hearing: MelSettings,
    texts: Sequence[str],
    audio: Tensor,
    sample_rate: int,
) -> Tensor:
    """Cosine of each sound and its own text, -1 to 1: float32 (sounds,).

    texts: one a sound. audio: (sounds, samples) at `sample_rate` Hz.
    """
    distinct = list(dict.fromkeys(texts))
    vectors = embed_texts(networks, tokenizer, distinct)
    of_each = vectors[[distinct.index(text) for text in texts]]  # (sounds, clap_dim)
    return (of_each * embed_sounds(networks, hearing, audio, sample_rate)).sum(dim=-1)


def require_front_end(config: ClapAudioConfig, front_end: MelSettings, where: str) -> None:
    """Raise WeightsError unless CLAP's audio branch can read what its front end computes from 10 s.

    Checked before a ranking, not at loading: the checkpoint can generate sounds all the same.
    """
    frames = 10 * front_end.sample_rate // front_end.hop + 1
    room = config.spec_size * (config.spec_size // config.mels)
    if front_end.mels != config.mels or frames > room:
        raise WeightsError(
            f"sounds cannot be scored with {where}: CLAP's front end computes {frames} frames of "
            f"{front_end.mels} mel bands, and its audio branch reads at most {room} frames of {config.mels}. "
            "Ask for one waveform a prompt, or give the checkpoint the feature extractor it was trained with."
        )


def best_first(scores: Tensor) -> Tensor:
    """The order of each prompt's own sounds, best first, equals in order of generation.

    scores: (prompts, waveforms); those that are no number count least. Returns indices of the same shape.
    """
    return scores.masked_fill(scores.isnan(), -math.inf).argsort(dim=1, descending=True, stable=True)
