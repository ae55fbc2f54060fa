"""Judge a small speech model: how many of its words are understood, and whether the voice is the asked one.

    pip install pocketsphinx
    python scripts/speech_demo/judge_speech.py --model demo-speech --seed 1000

speaks digits, 100 words and strings of three digits that training has not seen, in all voices and at all
speeds, and compares with the ceiling: true clips of make_speech_data.py through the model's VAE and vocoder.
Judges: a recognizer (pocketsphinx, with a grammar of the list), the nearest true clip of the list in the same
voice at the same speed, and for voices the nearest centroid of true spectra. Needs flite and espeak-ng.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2 import AudioLDM2
from audioldm2.audio import SAMPLE_RATE
from scripts.speech_demo.judges import NearestClip, NearestVoice, Recognizer, word_errors
from scripts.speech_demo.make_speech_data import Utterance, phonemes, render
from scripts.speech_demo.vocabulary import DIGITS, SPEEDS, VOICES, WORDS, caption, digit_strings

BATCH = 16
COLUMNS = ("recognized", "nearest clip", "voice")


def utterances(kind: str, count: int, seed: int) -> list[Utterance]:
    """Draws what is spoken: every digit or word about equally often, voices and speeds in turn."""
    texts = {"digits": DIGITS, "words": WORDS, "strings": digit_strings()["test"]}[kind]
    rng = np.random.default_rng(seed)
    ways = [(voice, speed) for voice in VOICES for speed in SPEEDS]
    order = [texts[i] for _ in range(-(-count // len(texts))) for i in rng.permutation(len(texts))]
    first = int(rng.integers(len(ways)))
    chosen = [ways[(first + 4 * i) % len(ways)] for i in range(count)]  # 4: voices and speeds take turns
    return [Utterance(text, *way, 0.065) for text, way in zip(order, chosen, strict=False)]


def generated(model: AudioLDM2, said: Sequence[Utterance], seed: int, options: dict) -> Iterator[np.ndarray]:
    """Yields a sound for each utterance, each batch with a seed of its own."""
    rng = np.random.default_rng(seed)
    for start in range(0, len(said), BATCH):
        part = said[start : start + BATCH]
        result = model.generate(
            [caption(rng, each.voice, each.speed) for each in part],
            phonemes=[phonemes(each.text) for each in part],
            seed=seed + start,
            **options,
        )
        yield from result.audio[:, 0].numpy()


def through_vae(model: AudioLDM2, waves: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields true sounds after the model's VAE and vocoder."""
    for start in range(0, len(waves), BATCH):
        part = torch.as_tensor(np.stack(waves[start : start + BATCH]))
        yield from model.vocode(model.decode(model.encode_audio(part, SAMPLE_RATE))).numpy()


def nearest_judges(kind: str) -> dict[tuple[str, str], NearestClip]:
    """Makes a judge of the list for each voice and speed."""
    texts = {"digits": DIGITS, "words": WORDS}[kind]
    return {
        (voice, speed): NearestClip.of({text: render(Utterance(text, voice, speed, 0.05)) for text in texts})
        for voice in VOICES
        for speed in SPEEDS
    }


def voice_judge() -> NearestVoice:
    """Makes a judge of voices from the true digits at all speeds."""
    return NearestVoice(
        {voice: [render(Utterance(t, voice, s, 0.05)) for t in DIGITS for s in SPEEDS] for voice in VOICES}
    )


def rates(
    kind: str,
    said: Sequence[Utterance],
    waves: Sequence[np.ndarray],
    recognizer: Recognizer,
    nearest: dict[tuple[str, str], NearestClip] | None,
    voices: NearestVoice,
) -> dict[str, float]:
    """Returns the fractions that each judge finds right; word errors for strings."""
    errors = [
        word_errors(each.text.split(), recognizer(wave)) for each, wave in zip(said, waves, strict=True)
    ]
    words = sum(len(each.text.split()) for each in said)
    found = {"recognized": 1 - sum(errors) / words}
    if nearest:
        named = [nearest[each[1:3]](wave) == each.text for each, wave in zip(said, waves, strict=True)]
        found["nearest clip"] = sum(named) / len(said)
    spoken = [voices(wave) == each.voice for each, wave in zip(said, waves, strict=True)]
    return found | {"voice": sum(spoken) / len(said)}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo-speech", help="default: %(default)s")
    add("--count", type=int, default=90, help="sounds of each kind (default: %(default)s)")
    add("--kinds", nargs="+", default=["digits", "words", "strings"], help="default: all")
    add("--seed", type=int, default=1000, help="of the draws and the noise (default: %(default)s)")
    add("--steps", type=int, default=25, help="of the sampler (default: %(default)s)")
    add("--guidance", type=float, default=3.5, help="scale (default: %(default)g)")
    options = parser.parse_args()
    model = audioldm2.load(options.model, dtype="float32")
    voices, began = voice_judge(), time.monotonic()
    settings = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    print(f"{'':24}" + "".join(f"{name:>14}" for name in COLUMNS))
    for kind in options.kinds:
        said = utterances(kind, options.count, options.seed)
        recognizer = Recognizer(WORDS if kind == "words" else DIGITS, 3 if kind == "strings" else 1)
        nearest = None if kind == "strings" else nearest_judges(kind)
        true = [render(each) for each in said]
        sources = {
            "true": true,
            "ceiling": list(through_vae(model, true)),
            "generated": list(generated(model, said, options.seed, settings)),
        }
        for name, waves in sources.items():
            found = rates(kind, said, waves, recognizer, nearest, voices)
            cells = [f"{found[each]:.0%}" if each in found else "" for each in COLUMNS]
            print(f"{kind + ', ' + name:24}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
