"""AudioMAE's front end: Kaldi's log-mel filter bank, normalised by the statistics of AudioSet.

Waves are float tensors (batch, samples), full scale at ±1; spectrograms are (batch, frames, mels).

Source: `extract_kaldi_fbank_feature` in audioldm_train/dataset_plugin.py (lines 345 to 385) of
haoheliu/AudioLDM-training-finetuning, which calls `torchaudio.compliance.kaldi.fbank` with htk_compat, a
Hann window, 128 mel bins, no dither and no energy. transformers' `ASTFeatureExtractor` computes the same.

Traps
- Kaldi's mel scale and triangles differ from Slaney's in `mel`: here a band is a triangle over mels, not over
  Hz, of height 1.
- A frame loses its own mean before pre-emphasis, and pre-emphasis reads the first sample twice.
- The window is symmetric, and 400 samples long in a transform of 512.
- Zeros are added behind the frames before they are normalised, so padding becomes 0.467 and is louder than
  silence, which becomes -1.278.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio.mel import SAMPLE_RATE
from audioldm2.errors import ArgumentError

FRAME = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
N_FFT = 512
PRE_EMPHASIS = 0.97
F_MIN, F_MAX = 20.0, SAMPLE_RATE / 2  # Hz, edges of the lowest and highest band
FLOOR = 2.0**-23  # smallest power: float32's epsilon
MEAN, STD = -4.2677393, 4.5689974  # of AudioSet's spectrograms


def audiomae_fbank(wave: Tensor, frames: int = 1024, mels: int = 128) -> Tensor:
    """Compute the spectrogram that AudioMAE reads: normalised log-mel power of `frames` frames.

    The arithmetic is float64, on the CPU: within 1.2e-7 of transformers' `ASTFeatureExtractor`.

    Args:
        wave: (batch, samples) at 16 kHz, at least 400; frames beyond `frames` are cut off.
        frames: of the result, 10 ms each.
        mels: bands.

    Returns:
        float32 (batch, frames, mels), on the CPU.

    Raises:
        ArgumentError: the wave has another shape or is too short.
    """
    if wave.dim() != 2:
        raise ArgumentError("wave", wave, "be (batch, samples)", given=f"has shape {tuple(wave.shape)}")
    if wave.shape[1] < FRAME:
        given = f"has {wave.shape[1]} samples"
        raise ArgumentError("wave", wave, f"have at least {FRAME}, a frame", given=given)
    wave = wave.detach().to("cpu", torch.float64)
    wave = wave - wave.mean(dim=1, keepdim=True)
    wave = wave[:, : (frames - 1) * HOP + FRAME]
    x = wave.unfold(1, FRAME, HOP)  # (batch, whole frames, FRAME)
    x = x - x.mean(dim=-1, keepdim=True)
    before = torch.cat([x[..., :1], x[..., :-1]], dim=-1)  # each sample's predecessor
    window = torch.hann_window(FRAME, periodic=False, dtype=torch.float64, device="cpu")
    x = (x - PRE_EMPHASIS * before) * window
    power = torch.fft.rfft(x, N_FFT).abs().square()  # (batch, whole frames, N_FFT/2 + 1)
    log_mel = (power @ kaldi_filters(mels)).clamp(min=FLOOR).log()  # (batch, whole frames, mels)
    log_mel = F.pad(log_mel, (0, 0, 0, frames - log_mel.shape[1]))  # (batch, frames, mels)
    return ((log_mel - MEAN) / (2 * STD)).float()


def kaldi_filters(mels: int) -> Tensor:
    """Compute the weight of every frequency bin in every band: float64 (N_FFT/2 + 1, mels), on the CPU.

    Source: `get_mel_banks` of torchaudio.compliance.kaldi, after Kaldi's mel-computations.cc. With 128 bands
    one of the narrow low ones lies between two bins and is empty.
    """
    hz = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64, device="cpu")
    low, high = _mel(torch.tensor([F_MIN, F_MAX], dtype=torch.float64, device="cpu"))
    step = (high - low) / (mels + 1)
    corner = low + step * torch.arange(mels, dtype=torch.float64, device="cpu")  # (mels), the left ones
    place = (_mel(hz)[:, None] - corner) / step  # (bins, mels): 0, 1 and 2 at a band's corners
    return torch.minimum(place, 2 - place).clamp(min=0)


def _mel(hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hz / 700)
