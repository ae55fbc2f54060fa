"""Make captioned speech from installed programs: flite speaks, espeak-ng spells the words in phonemes.

    python scripts/speech_demo/make_speech_data.py sounds/ --strings 3000 --seed 0

writes sounds/*.wav and sounds/captions.csv with the columns file, caption, transcription, phonemes, voice
and speed: the ten digits and 100 words in three voices at three speeds, and strings of three digits in one
voice at one speed each. Each word begins at four different times. The same seed gives the same folder; an
interrupted run continues where it stopped. No sound of it is committed.

Needs flite (with the voices slt, rms and kal16) and espeak-ng: `apt-get install flite espeak-ng`.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.audio import PEAK, SAMPLE_RATE, read, resample, write_wav
from audioldm2.files import atomic_write
from scripts.speech_demo.vocabulary import DIGITS, SPEEDS, VOICES, WORDS, caption, digit_strings

SECONDS = 1.92  # of a clip: the longest string of three digits, spoken slowly
ONSETS = (0.05, 0.06, 0.07, 0.08)  # seconds of silence before a word, one a clip
FADE = 0.01  # of the peak: what is quieter at both ends is cut off
COLUMNS = ("file", "caption", "transcription", "phonemes", "voice", "speed")


class Utterance(NamedTuple):
    """What a clip holds."""

    text: str
    voice: str  # a key of VOICES
    speed: str  # a key of SPEEDS
    onset: float  # seconds of silence at the beginning


def utterances(strings: int, seed: int) -> Iterator[Utterance]:
    """Lists the clips: every word in every voice, speed and onset, then random strings of three digits."""
    for text in (*DIGITS, *WORDS):
        for voice in VOICES:
            for speed in SPEEDS:
                for onset in ONSETS:
                    yield Utterance(text, voice, speed, onset)
    rng, train = np.random.default_rng(seed), digit_strings()["train"]
    for _ in range(strings):
        voice, speed = str(rng.choice(list(VOICES))), str(rng.choice(list(SPEEDS)))
        yield Utterance(str(rng.choice(train)), voice, speed, float(rng.choice(ONSETS)))


@lru_cache(maxsize=4)
def speak(text: str, voice: str, speed: str) -> np.ndarray:
    """Speaks a text with flite: float32 (samples,) at 16 kHz, without the silence around it, peak 0.5."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        stretch = f"duration_stretch={SPEEDS[speed]}"
        command = ["flite", "-voice", VOICES[voice], "--setf", stretch, "-t", text, "-o", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        wave, rate = read(file)
    samples = resample(wave, rate, SAMPLE_RATE).numpy()
    samples = samples - samples.mean()
    loud = np.flatnonzero(np.abs(samples) > FADE * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return (samples * (PEAK / np.abs(samples).max())).astype(np.float32)


def render(utterance: Utterance, seconds: float = SECONDS) -> np.ndarray:
    """Renders a clip, float32 (samples,): silence, the words, silence."""
    spoken = speak(*utterance[:3])
    clip = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    first = round(utterance.onset * SAMPLE_RATE)
    spoken = spoken[: len(clip) - first]
    clip[first : first + len(spoken)] = spoken
    return clip


@cache
def phonemes(text: str) -> str:
    """Spells a text in espeak-ng's American English phonemes, each word as it is spoken alone."""
    if " " in text:
        return " ".join(map(phonemes, text.split()))
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", text]
    spelled = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return " ".join(spelled.split())


def write(out: Path, strings: int, seed: int) -> int:
    """Writes the corpus, the table last; returns the number of clips."""
    out.mkdir(parents=True, exist_ok=True)
    rows, rng = [], np.random.default_rng(seed + 1)
    for index, utterance in enumerate(utterances(strings, seed)):
        words = caption(rng, utterance.voice, utterance.speed)
        file = out / f"{index:05d}.wav"
        if not file.exists():
            write_wav(file, render(utterance), SAMPLE_RATE)
        rows.append((file.name, words, utterance.text, phonemes(utterance.text), *utterance[1:3]))
    with (
        atomic_write(out / "captions.csv") as draft,
        open(draft, "w", newline="", encoding="utf-8") as table,
    ):
        csv.writer(table).writerows([COLUMNS, *rows])
    return len(rows)


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="output folder")
    add("--strings", type=int, default=3000, help="strings of three digits (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the strings and captions (default: %(default)s)")
    options = parser.parse_args()
    print(f"{write(options.out, options.strings, options.seed)} clips in {options.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
