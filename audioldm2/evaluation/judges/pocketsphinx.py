"""CMU's recognizer of US English, from the package `pocketsphinx`."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from audioldm2.audio import resample
from audioldm2.evaluation.judges.package import import_judge

RATE = 16_000  # Hz
PEAK, NOISE = 0.5, 1e-3  # of what is recognized; digital silence confuses the recognizer
QUOTED = re.compile(r'["“«]([^"”»]+)["”»]')


class WordErrors:
    """The word error rate against what the caption quotes: 'a woman says "good morning"'.

    The rate is the edits over the words of the quotation, and may exceed 1. Of a caption without a quotation
    it has nothing to say.
    """

    figure = "word error rate"

    def __init__(self) -> None:
        package = import_judge("pocketsphinx", "pocketsphinx", "pocketsphinx")
        self.decoder = package.Decoder(samprate=RATE, loglevel="FATAL")

    def judge(self, wave: Tensor, rate: int, captions: Sequence[str]) -> float | None:
        said = [words for caption in captions if (words := quoted_words(caption))]
        if not said:
            return None
        found = self.recognize(wave, rate)
        return min(edits(words, found) / len(words) for words in said)

    def recognize(self, wave: Tensor, rate: int) -> list[str]:
        """The words of a sound (samples,)."""
        sound = resample(wave.float(), rate, RATE)
        noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(0))
        sound = sound * (PEAK / sound.abs().max().clamp(min=1e-6)) + NOISE * noise
        samples = (sound.clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        self.decoder.start_utt()
        self.decoder.process_raw(samples, full_utt=True)
        self.decoder.end_utt()
        best = self.decoder.hyp()
        return words_of(best.hypstr) if best is not None else []


def quoted_words(caption: str) -> list[str]:
    """The words between quotation marks."""
    return [word for part in QUOTED.findall(caption) for word in words_of(part)]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def edits(wanted: Sequence[str], found: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions between two lists of words (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(found, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
