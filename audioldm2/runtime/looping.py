"""Loops: the decoder and the vocoder around a ring of frames, so that the end runs into the start.

Both see as much of the other end, on either side, as a frame or a sample depends on, and what they compute
for it is cut off. So both sides of the seam are computed from the same frames, at the same scale, as anywhere
inside the sound.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audioldm2.models.hifigan import HiFiGAN
from audioldm2.models.vae import VAE
from audioldm2.runtime import tiling

MIDDLE = 5  # latent frames to either side that convolutions before `Decoder.upsample` see


def decode_loop(vae: VAE, z: Tensor, anchors: Sequence[int]) -> Tensor:
    """Log-mel spectrograms of latents whose last frame is followed by the first; see `tiling.decode`.

    The decoder's norms and attention also see the frames that it is given twice. Which ones, depends on where
    the ring is opened, and anchors that belong to the latents keep that from depending on where they begin:
    rolling a loop rolls its spectrogram.

    Args:
        vae: the network.
        z: (batch, channels, time, mel).
        anchors: the frame at which each row is opened.

    Returns:
        (batch, 1, time, mel), both `config.downsampling` times larger.
    """
    context, larger = tiling.decoder_context(vae.config) + MIDDLE, vae.config.downsampling
    rows = []
    for row, anchor in zip(z.split(1), anchors, strict=True):
        mel = tiling.decode(vae, _around(row, 2, anchor - context, anchor + row.shape[2] + context))
        mel = mel[:, :, context * larger : -context * larger]
        rows.append(mel.roll(anchor * larger, dims=2))
    return torch.cat(rows)


def vocode_loop(vocoder: HiFiGAN, mel: Tensor) -> Tensor:
    """Waveforms of log-mel spectrograms (batch, time, mels) whose last frame is followed by the first.

    Returns:
        (batch, time * hop): no more, so that the last sample is followed by the first.
    """
    (before, after), hop = tiling.vocoder_context(vocoder.config), vocoder.config.hop
    wave = tiling.vocode(vocoder, _around(mel, 1, -before, mel.shape[1] + after))
    return wave[:, before * hop : (before + mel.shape[1]) * hop]


def _around(x: Tensor, dim: int, start: int, end: int) -> Tensor:
    """The frames from `start` to `end` of a ring; it may be gone around several times."""
    return x.index_select(dim, torch.arange(start, end, device=x.device) % x.shape[dim])
