"""Texts of any length in one voice: cut into clips that a speech model can speak, and joined with pauses.

A model speaks at most `max_length - 1` phonemes (309 in the published ones), in a clip of fixed length. Which
of the two is less decides what fits. All clips have one prompt and one seed, which is what keeps the voice.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import write_wav
from audioldm2.audio.speech_ends import trimmed
from audioldm2.errors import ArgumentError, require_number
from audioldm2.options import GenerationOptions, from_keywords
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.sentences import pause_after, split
from audioldm2.result import Result

# Symbols, of which a third are stress, length and spaces: 15 are the ten sounds a second of a calm reader.
PHONEMES_PER_SECOND = 15.0
PAUSE = 0.3  # seconds after a sentence
PAUSES = {"paragraph": 2.0, "sentence": 1.0, "clause": 0.5, "word": 0.0}  # times the pause after a sentence


@dataclass(frozen=True, repr=False)
class Speech:
    """A text that a model spoke, in one sound."""

    audio: Tensor  # float32 (1, 1, samples) on the CPU
    sample_rate: int  # Hz
    mel: Tensor  # (1, time, mels), log-mel spectrogram, cut and joined as the sound is
    texts: list[str]  # of the clips; joined, they are the text
    clips: list[Result]  # one per text, each as `generate` returns it
    starts: list[float]  # of each text in the sound, seconds
    seed: int  # of all clips
    settings: dict[str, Any]  # of `speak`

    @property
    def request(self) -> Any:
        """That of the first clip."""
        return self.clips[0].request

    def __repr__(self) -> str:
        seconds = self.audio.shape[-1] / self.sample_rate
        return f"<Speech: {len(self.clips)} clips, {seconds:g} s at {self.sample_rate} Hz>"

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Write the sound, completely or not at all; see `Result.save`."""
        write_wav(Path(path), self.audio[0, 0], self.sample_rate)
        return [Path(path)]

    def record(self) -> dict[str, Any]:
        """Every setting, as plain values for a JSON file: those of `Result.record`, and the clips."""
        records = [clip.record() for clip in self.clips]
        if len(records) == 1:
            return records[0] | self.settings
        seconds = self.audio.shape[-1] / self.sample_rate
        whole = {"transcription": "".join(self.texts), "seconds": round(seconds, 3), **self.settings}
        own = ("transcription", "phonemes", "pronounced_by")  # of each clip
        clips = [
            {"start_seconds": round(start, 3), **{name: record[name] for name in own}}
            for start, record in zip(self.starts, records, strict=True)
        ]
        shared = {
            name: records[0][name] for name in records[0] if name not in (*own, "score", "other_candidates")
        }
        return shared | {"seed": self.seed} | whole | {"clips": clips}


def clips_of(
    model: AudioLDM2,
    text: str,
    seconds: float | None = None,
    phonemes_per_second: float = PHONEMES_PER_SECOND,
) -> list[str]:
    """The parts of a text that the model speaks in a clip each; joined, they are the text.

    Args:
        model: a speech model.
        text: any; one that fits is a single part.
        seconds: length of a clip; by default the model's.
        phonemes_per_second: how fast the voice may have to speak.

    Raises:
        ArgumentError: the text cannot be read, or a word does not fit into a clip.
        EspeakError: espeak is needed and not found.
    """
    from audioldm2.prompt.pronunciation import pronounce  # here, since few programs speak

    if model.phoneme_tokenizer is None:
        raise ArgumentError("transcription", text, "be left out: this model is not a speech model")
    seconds = model.sound.default_seconds if seconds is None else seconds
    rate = require_number("phonemes_per_second", phonemes_per_second, 1, 100)
    most = int(min(model.phoneme_tokenizer.max_length - 1, seconds * rate))
    pronounce(text, model.pronunciations)  # raises where it cannot be read, which is then known of all parts

    def count(part: str) -> int:
        try:
            return len(pronounce(part, model.pronunciations))
        except ArgumentError:  # nothing to say, such as a picture between two sentences
            return 0

    return split(text, count, most)


def speak(
    model: AudioLDM2,
    prompt: str,
    text: str,
    *,
    pause_seconds: float = PAUSE,
    phonemes_per_second: float = PHONEMES_PER_SECOND,
    on_part: Callable[[int, Sequence[str]], object] | None = None,
    on_step: Any = None,
    on_stage: Callable[[str], object] | None = None,
    options: GenerationOptions | None = None,
    **keywords: Any,
) -> Speech:
    """Speak a text of any length in one voice.

    A text that fits into one clip gives the sound that `generate` gives. Of several clips, silence at the
    ends is cut off, and pauses stand between them. With several candidates the seed whose clips fit the
    prompt best, on average, speaks all of the text.

    Args:
        model: a speech model.
        prompt: describes the voice.
        text: what it says.
        pause_seconds: between two sentences; twice that between paragraphs, half at a comma, none elsewhere.
        phonemes_per_second: how fast the voice may have to speak, which decides how much fits into a clip.
        on_part: called as on_part(place, texts) before each clip.
        on_step: as in `generate`, for each clip.
        on_stage: as in `generate`, for each clip.
        options: those of `generate` in one object; keywords replace some of them.
        keywords: options of `generate`, such as `seed`.

    Raises:
        ArgumentError: an argument is not allowed; raised before any network runs.
        EspeakError: espeak is needed and not found.
    """
    chosen = from_keywords(GenerationOptions, options, keywords)
    if not isinstance(prompt, str):
        raise ArgumentError("prompt", prompt, "be one text, which describes the voice")
    pause_seconds = require_number("pause_seconds", pause_seconds, 0, 60)
    for name in ("phonemes", "transcription"):
        if getattr(chosen, name) is not None:
            raise ArgumentError(name, getattr(chosen, name), "be left out: `text` is what is spoken")
    texts = clips_of(model, text, chosen.audio_length_in_s, phonemes_per_second)
    if len(texts) > 1:
        if chosen.loop:
            raise ArgumentError("loop", True, "be left out with a text of several clips")
        if isinstance(chosen.seed, list):
            raise ArgumentError("seed", chosen.seed, "be one number, that of the voice")
        chosen = seeded(chosen)
    clips = []
    for place, part in enumerate(texts):
        if on_part is not None:
            on_part(place, texts)
        spoken = replace(chosen, transcription=part if len(texts) == 1 else part.strip())
        clips.append(model.generate(prompt, options=spoken, on_step=on_step, on_stage=on_stage))
    settings = {"pause_seconds": pause_seconds, "phonemes_per_second": phonemes_per_second}
    if len(clips) == 1:
        only = clips[0]
        return Speech(only.audio, only.sample_rate, only.mel, texts, clips, [0.0], only.seeds[0][0], settings)
    return _joined(clips, texts, pause_seconds, model.sound.hop, settings)


def seeded(options: GenerationOptions) -> GenerationOptions:
    """Options with a number in place of a seed that is drawn for each sound: all clips have one voice."""
    return options if options.seed is not None else replace(options, seed=secrets.randbelow(2**31))


def _joined(
    clips: list[Result], texts: list[str], pause_seconds: float, hop: int, settings: dict[str, Any]
) -> Speech:
    """One sound of several clips."""
    rate, seed = clips[0].sample_rate, _best_seed(clips)
    sounds, mels, starts, samples = [], [], [], 0
    for clip, text in zip(clips, texts, strict=True):
        place = clip.seeds[0].index(seed)
        sound, (first, last) = trimmed(clip.audio[0, place], rate)
        mel = clip.mel[place, first // hop : last // hop].cpu()
        pause = 0.0 if text is texts[-1] else pause_seconds * PAUSES[pause_after(text)]
        silent = int(pause * rate)
        starts.append(samples / rate)
        sounds += [sound, sound.new_zeros(silent)]
        mels += [mel, clip.mel.min().cpu().expand(silent // hop, mel.shape[-1])]
        samples += len(sound) + silent
    audio, mel = torch.cat(sounds)[None, None], torch.cat(mels)[None]
    return Speech(audio, rate, mel, texts, clips, starts, seed, settings)


def _best_seed(clips: list[Result]) -> int:
    """The seed whose sounds score best on average over the clips."""
    seeds = clips[0].seeds[0]
    if len(seeds) == 1:
        return seeds[0]

    def score(seed: int) -> float:
        found = [clip.scores[0, clip.seeds[0].index(seed)] for clip in clips if clip.scores is not None]
        return torch.stack(found).nan_to_num(-1.0).mean().item()

    return max(seeds, key=score)
