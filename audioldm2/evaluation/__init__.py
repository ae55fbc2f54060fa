"""Judging sounds: distances from a reference, scores, retrieval, with intervals. README.md explains them.

`audioldm2 evaluate` is built from these parts.
"""

from audioldm2.evaluation.bootstrap import (
    Floor,
    floors,
    frechet_interval,
    kernel_interval,
    mean_interval,
)
from audioldm2.evaluation.clap import Judge, Prompt
from audioldm2.evaluation.distances import frechet_distance, kernel_distance, median_distance
from audioldm2.evaluation.figures import Figures, Measured, SoundSet, evaluate
from audioldm2.evaluation.report import Report
from audioldm2.evaluation.retrieval import text_to_audio

__all__ = [
    "Figures",
    "Floor",
    "Judge",
    "Measured",
    "Prompt",
    "Report",
    "SoundSet",
    "evaluate",
    "floors",
    "frechet_distance",
    "frechet_interval",
    "kernel_distance",
    "kernel_interval",
    "mean_interval",
    "median_distance",
    "text_to_audio",
]
