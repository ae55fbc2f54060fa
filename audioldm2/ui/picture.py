"""A picture of a sound for the page: its waveform above its log-mel spectrogram.

Drawn with Pillow, which Gradio brings: the plots of `audio.plot` need matplotlib, and take ten times as long.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from audioldm2.audio import MelSettings, mel_edges

WIDTH, TOP, WAVE, MEL, LEFT, RIGHT, GAP, BOTTOM = 1000, 30, 120, 300, 66, 16, 14, 34  # pixels
PAPER, INK, FAINT, BLUE = (20, 20, 31), (200, 202, 214), (60, 62, 80), (110, 168, 254)
# Colours of the spectrogram from quiet to loud, evenly spaced: dark violet, red, pale yellow.
RAMP = (
    *((0, 0, 4), (44, 17, 95), (114, 31, 129), (183, 55, 121)),
    *((241, 96, 93), (254, 175, 119), (252, 253, 191)),
)
HZ = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds between labels
MOST_LABELS, LABEL_HEIGHT = 10, 22


def draw(wave: Tensor, mel: Tensor, seconds: float, front_end: MelSettings | None) -> Image.Image:
    """Draw a sound.

    Args:
        wave: floats (samples,), full scale at ±1.
        mel: (time, mels), log magnitudes.
        seconds: what both last.
        front_end: of `mel`, for the labels in Hz; None for no labels.
    """
    picture = Image.new("RGB", (WIDTH, TOP + WAVE + GAP + MEL + BOTTOM), PAPER)
    pen, inner = ImageDraw.Draw(picture), WIDTH - LEFT - RIGHT
    _wave(pen, wave.float().numpy(), inner)
    top = TOP + WAVE + GAP
    picture.paste(_spectrogram(mel.float().cpu().numpy(), inner), (LEFT, top))
    font = ImageFont.load_default(size=17)
    if front_end is not None:
        edges = mel_edges(front_end).numpy()
        below = top + MEL + LABEL_HEIGHT
        for hz in (each for each in HZ if edges[1] <= each <= front_end.f_max):
            y = top + MEL - np.interp(hz, edges[1:-1], np.arange(front_end.mels) + 0.5) / front_end.mels * MEL
            if below - y >= LABEL_HEIGHT:
                text = f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz"
                pen.text((LEFT - 8, y), text, INK, font, anchor="rm")
                below = y
    step = next((each for each in STEPS if seconds / each <= MOST_LABELS), STEPS[-1])
    for place in range(int(seconds / step) + 1):
        x = LEFT + place * step / seconds * inner
        pen.line((x, top + MEL, x, top + MEL + 5), INK)
        text = f"{place * step:g}" + (" s" if place == 0 else "")
        pen.text((x, top + MEL + 8), text, INK, font, anchor="lt" if place == 0 else "mt")
    return picture


def _wave(pen: ImageDraw.ImageDraw, wave: np.ndarray, width: int) -> None:
    """The range of the samples in each column."""
    columns = min(width, len(wave))
    starts = np.linspace(0, len(wave), columns, endpoint=False).astype(int)
    low, high = np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
    middle, scale = TOP + WAVE / 2, WAVE / 2
    pen.line((LEFT, middle, LEFT + width - 1, middle), FAINT)
    for column in range(columns):
        x = LEFT + column * width // columns
        pen.line((x, middle - high[column] * scale, x, middle - low[column] * scale), BLUE)


def _spectrogram(mel: np.ndarray, width: int) -> Image.Image:
    low, high = mel.min(), max(mel.max(), mel.min() + 1e-6)
    places = (mel.T[::-1] - low) / (high - low) * (len(RAMP) - 1)  # (mels, time), low frequencies below
    ramp = np.array(RAMP, dtype=np.float32).T
    colours = np.stack([np.interp(places, np.arange(len(RAMP)), channel) for channel in ramp], axis=-1)
    return Image.fromarray(colours.astype(np.uint8)).resize((width, MEL), Image.Resampling.BILINEAR)
