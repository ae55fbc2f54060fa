"""A picture of a spectrogram (optional: needs matplotlib)."""

import warnings
from pathlib import Path

from torch import Tensor

from audioldm2.files import atomic_write


def save_spectrogram(mel: Tensor, title: str, path: Path, seconds_per_frame: float) -> None:
    """Write a log-mel spectrogram (time, mels) as a PNG, whole or not at all."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        mel.float().cpu().T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, mel.shape[0] * seconds_per_frame, 0, mel.shape[1]),
        cmap="magma",
    )
    axes.set(xlabel="seconds", ylabel="mel band")
    axes.set_title(title if len(title) <= 100 else f"{title[:99]}…", parse_math=False)  # "$" is a dollar
    figure.colorbar(image, label="log magnitude")
    with atomic_write(path) as draft, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for such a letter
        figure.savefig(draft, format="png", dpi=120)
