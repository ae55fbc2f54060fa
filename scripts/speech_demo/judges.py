"""Judges of speech: a recognizer with a grammar, the nearest true clip, the nearest voice."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import SAMPLE_RATE, vae_front_end, vae_log_mel

NOISE = 1e-3  # added to what the recognizer hears: digital silence confuses it
LOUD = 40.0  # dB below the loudest frame, where a clip begins and ends
FRONT_END = vae_front_end(SAMPLE_RATE, 160, 64)


class Recognizer:
    """Pocketsphinx with a grammar: a number of words of a list.

    Args:
        words: the list.
        count: how many words are spoken.
    """

    def __init__(self, words: Sequence[str], count: int = 1) -> None:
        from pocketsphinx import Decoder

        self.decoder = Decoder(samprate=SAMPLE_RATE, cmn="batch", loglevel="FATAL", lm=None)
        choice = "(" + " | ".join(words) + ")"
        grammar = f"#JSGF V1.0; grammar words; public <said> = {' '.join([choice] * count)};"
        self.decoder.add_jsgf_string("words", grammar)
        self.decoder.activate_search("words")

    def __call__(self, wave: np.ndarray) -> list[str]:
        """Returns the words of a wave (samples,); an empty list where it recognizes nothing."""
        noise = np.random.default_rng(0).standard_normal(len(wave)) * NOISE
        scaled = wave / max(1e-6, np.abs(wave).max()) * 0.5 + noise
        self.decoder.start_utt()
        data = (np.clip(scaled, -1, 1) * 32767).astype(np.int16).tobytes()
        self.decoder.process_raw(data, no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr.split() if found else []


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Counts substitutions, insertions and deletions (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        row, above = [i], row
        for j, other in enumerate(heard, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def log_mel(wave: np.ndarray) -> Tensor:
    """Returns the log-mels (frames, 64) of the part of a wave that is spoken, its level removed."""
    mel = vae_log_mel(torch.as_tensor(wave, dtype=torch.float32)[None], FRONT_END)[0]
    level = mel.logsumexp(dim=1)
    spoken = (level > level.max() - LOUD / 20 * np.log(10)).nonzero().squeeze(1)
    mel = mel[spoken[0] : spoken[-1] + 1]
    return mel.clamp(min=float(mel.max()) - 8.0) - mel.max()


class NearestClip:
    """Names the true clip that a wave is nearest to: log-mels, brought to the same length.

    Args:
        table: features of each clip by its name.
        shape: frames and bands of these features.
    """

    def __init__(self, table: Mapping[str, Tensor], shape: tuple[int, int] = (40, 64)) -> None:
        self.shape, self.names, self.table = shape, list(table), torch.stack(list(table.values()))

    @classmethod
    def of(cls, clips: Mapping[str, np.ndarray]) -> "NearestClip":
        """Makes a judge from true waves by name."""
        return cls({name: features(wave) for name, wave in clips.items()})

    def __call__(self, wave: np.ndarray) -> str:
        """Returns the name of the nearest."""
        distance = (self.table - features(wave, self.shape)).square().mean(dim=(1, 2))
        return self.names[int(distance.argmin())]


def features(wave: np.ndarray, shape: tuple[int, int] = (40, 64)) -> Tensor:
    """Returns the log-mels of what a wave says, resized to `shape`: (frames, bands)."""
    return F.interpolate(log_mel(wave)[None, None], shape, mode="bilinear", antialias=True)[0, 0]


class NearestVoice:
    """Names the voice whose mean spectrum is nearest, by the distance in which clips of a voice lie close.

    Args:
        clips: true waves by voice.
    """

    def __init__(self, clips: Mapping[str, Sequence[np.ndarray]]) -> None:
        self.names = list(clips)
        voices = [torch.stack([voice_features(wave) for wave in waves]) for waves in clips.values()]
        self.centroids = torch.stack([each.mean(dim=0) for each in voices])
        spread = torch.cat([each - each.mean(dim=0) for each in voices])
        within = spread.T @ spread / len(spread)
        self.inverse = torch.linalg.inv(within + 0.1 * within.diagonal().mean() * torch.eye(len(within)))

    def __call__(self, wave: np.ndarray) -> str:
        """Returns the name of the nearest voice."""
        away = self.centroids - voice_features(wave)
        return self.names[int(((away @ self.inverse) * away).sum(dim=1).argmin())]


def voice_features(wave: np.ndarray) -> Tensor:
    """Returns the mean and the spread of 32 bands over the spoken frames, (64,), without the level."""
    bands = log_mel(wave).unflatten(1, (32, 2)).mean(dim=2)  # (frames, 32)
    mean = bands.mean(dim=0)
    return torch.cat([mean - mean.mean(), bands.std(dim=0)])
