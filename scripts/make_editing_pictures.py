"""Draw the pictures of audioldm2/editing/README.md: spectrograms before and after each edit.

    python scripts/make_editing_pictures.py
    python scripts/make_editing_pictures.py --only continuation --out pictures/

The model in the box edits true sounds of the demo world (scripts/demo_world). Needs matplotlib, and Pillow,
which comes with it. A new edit is a function here and its name in PICTURES.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2 import AudioLDM2
from audioldm2.audio import resample
from audioldm2.files import atomic_write
from scripts.demo_world.families import FAMILIES

FOLDER = Path(__file__).resolve().parents[1] / "audioldm2" / "editing" / "pictures"
RATE = 16_000
SECONDS = 2.56
RANGE_DB = 70  # from the loudest bin of a picture down
COLOURS = 16  # of the palette


class Panel(NamedTuple):
    """One spectrogram, and what of it was remade, marked by lines."""

    title: str
    wave: np.ndarray  # (samples,)
    seconds: tuple[float, ...] = ()  # starts and ends, from the start of the picture
    hz: tuple[float, ...] = ()


def true_sound(family: str, seed: int = 0, **attributes: str) -> np.ndarray:
    return FAMILIES[family](np.random.default_rng(seed), SECONDS, attributes)


def edited(model: AudioLDM2, prompt: str, audio: np.ndarray | torch.Tensor, **options: object) -> Panel:
    result = model.generate(prompt, audio=audio, **options)
    record = result.record()
    spans = [second for span in record.get("remade_seconds", ()) for second in span]
    marked = tuple(second - min(0.0, *spans) for second in spans) if spans else ()
    hz = tuple(hz for span in record.get("remade_hz", ()) for hz in span)
    audio = result.audio[0, 0].numpy()
    if hz == (0.0, RATE / 2):
        return Panel(f'"{prompt}"', audio, seconds=marked)
    return Panel(f'"{prompt}"', audio, hz=hz)


def audio_to_audio(model: AudioLDM2) -> list[Panel]:
    siren = true_sound("siren", length="long")
    panels = [Panel("a siren", siren)]
    for strength in (0.3, 0.6, 0.9):
        panel = edited(model, "rain falls", siren, strength=strength)
        panels.append(panel._replace(title=f"{panel.title}, strength {strength:g}"))
    return panels


def inpainting_in_time(model: AudioLDM2) -> list[Panel]:
    rain = true_sound("rain")
    time = np.arange(len(rain)) / RATE
    fade = np.clip(np.minimum(time - 1.0, 1.5 - time) / 0.01, 0, 1)
    disturbed = rain + 1.4 * rain.std() * fade * np.sin(2000 * np.pi * time)
    return [
        Panel("rain, and a tone of half a second", disturbed),
        edited(model, "rain falls", disturbed, mask_start_seconds=0.97, mask_end_seconds=1.53),
    ]


def inpainting_in_frequency(model: AudioLDM2) -> list[Panel]:
    siren = true_sound("siren", length="long")
    return [Panel("a siren", siren), edited(model, "rain falls", siren, mask_start_hz=3000)]


def continuation(model: AudioLDM2) -> list[Panel]:
    birds = true_sound("birds", seed=3)[: RATE * 5 // 4]
    return [
        Panel("birds, 1.25 s", birds),
        edited(model, "birds sing", birds, extend_seconds=(0.65, 0.65)),
    ]


def bandwidth_extension(model: AudioLDM2) -> list[Panel]:
    fire = true_sound("fire", seed=2)
    narrow = resample(torch.from_numpy(fire), RATE, RATE // 2)
    extended = edited(model, "a fire crackles", narrow, audio_sample_rate=RATE // 2, mask_start_hz=4000)
    return [
        Panel("a fire, sampled at 8 kHz", resample(narrow, RATE // 2, RATE).numpy()),
        extended,
        Panel("the fire before it was resampled", fire),
    ]


def editing_by_text(model: AudioLDM2) -> list[Panel]:
    bell = true_sound("bell", seed=1, pitch="high")
    found = [Panel("a high bell", bell)]
    for skip in (0.0, 0.2):
        result = model.edit(bell, "a low bell", source_prompt="a high bell", skip=skip)
        title = '"a high bell" to "a low bell"' + (f", skip {skip:g}" if skip else "")
        found.append(Panel(title, result.audio[0, 0].numpy()))
    return found


def loops(model: AudioLDM2) -> list[Panel]:
    """Each sound twice in a row, so that its seam is in the middle."""
    found = []
    for title, loop in (("two clips", False), ("a loop, twice", True)):
        wave = model.generate("a siren", audio_length_in_s=SECONDS, loop=loop).audio[0, 0].numpy()
        found.append(Panel(f'"a siren": {title}', np.tile(wave, 2), seconds=(len(wave) / RATE,)))
    return found


def timelines(model: AudioLDM2) -> list[Panel]:
    result = model.generate([("birds sing", 0, 2.56), ("rain falls", 2.56, 5.12)], window_seconds=2.56)
    return [Panel('"birds sing", then "rain falls"', result.audio[0, 0].numpy(), seconds=(2.56,))]


PICTURES: dict[str, Callable[[AudioLDM2], list[Panel]]] = {
    "audio_to_audio": audio_to_audio,
    "inpainting_in_time": inpainting_in_time,
    "inpainting_in_frequency": inpainting_in_frequency,
    "continuation": continuation,
    "bandwidth_extension": bandwidth_extension,
    "editing_by_text": editing_by_text,
    "loops": loops,
    "timelines": timelines,
}


def decibels(wave: np.ndarray) -> np.ndarray:
    """Power spectra of 32 ms every 8 ms: (bins, frames), 0 to 8 kHz."""
    spectra = torch.stft(
        torch.from_numpy(np.asarray(wave, dtype=np.float32)), 512, 128, window=torch.hann_window(512),
        pad_mode="constant", return_complex=True,
    )  # fmt: skip
    return (20 * torch.log10(spectra.abs() + 1e-6)).numpy()


def draw(panels: list[Panel]) -> bytes:
    """A PNG with a palette: the panels side by side, all on one scale of loudness and of time."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    lengths = [len(panel.wave) / RATE for panel in panels]
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=lengths)[0]
    spectra = [decibels(panel.wave) for panel in panels]
    loudest = max(each.max() for each in spectra)
    for axes, panel, image, seconds in zip(columns, panels, spectra, lengths, strict=True):
        axes.imshow(
            image, origin="lower", aspect="auto", extent=(0, seconds, 0, RATE / 2000), cmap="magma",
            vmin=loudest - RANGE_DB, vmax=loudest, interpolation="nearest",
        )  # fmt: skip
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("seconds", fontsize=8)
        for second in panel.seconds:
            axes.axvline(second, color="white", linewidth=0.8, linestyle="--")
        for hz in panel.hz:
            axes.axhline(hz / 1000, color="white", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, seconds), ylim=(0, RATE / 2000))
    columns[0].set_ylabel("kHz", fontsize=8)
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(packed, format="PNG", optimize=True)
    return packed.getvalue()


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PICTURES, metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    options = parser.parse_args()
    model = audioldm2.load("demo", device="cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or PICTURES:
        path = options.out / f"{name}.png"
        with atomic_write(path) as draft:
            draft.write_bytes(draw(PICTURES[name](model)))
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
