"""Measure the peak memory and the time of each stage over the length of a sound, on the CPU.

    python scripts/benchmark/memory_curve.py
    python scripts/benchmark/memory_curve.py --stages denoise --seconds 10 30 60
    python scripts/benchmark/memory_curve.py --stages decode --ways pieces --seconds 10 30 --threads 1
    python scripts/benchmark/memory_curve.py --error --seconds 60 100

The networks have the published sizes and random weights; neither memory nor time depends on their values.
Every measurement has its own process. The columns:

    weights   MB resident before the run: Python, torch and the weights of the one network
    peak      peak MB resident during the run
    run       peak minus weights: the memory of the run itself
    wall      wall-clock seconds of one run, the first
    CPU       seconds of all threads, less sensitive to other load on the machine

Stages: `denoise` is one call of the UNet with guidance, that is with two rows per sound; `encode` and
`decode` are the VAE's encoder and decoder; `vocode` is HiFi-GAN; `rank` is CLAP's embedding of the sound.
Ways: `whole` is one call of the network; `pieces` is what a request does by default. Encoding and denoising
have no pieces, and ranking has nothing else.
The outputs of decoding and vocoding are small: 0.03 MB of spectrogram and 0.06 MB of samples per second.

--error compares the decoder's output in pieces with the exact one, whose memory grows by 7 MB per second of
sound. The error depends on the weights and on the sound; here the weights are random, and so are three kinds
of sound: "steady", "music" and "sections", see `sounds`.

On Linux the peak includes holes in glibc's heap, which vary between runs by up to 100 MB.
MALLOC_MMAP_THRESHOLD_=1000000 in the environment avoids them and takes a fifth to a third more time.
"""

import argparse
import json
import math
import resource  # not on Windows
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2 import clap_score
from audioldm2.audio import CLAP_MEL
from audioldm2.models.clap_audio import ClapAudio, ClapAudioConfig
from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.unet import UNet, UNetConfig
from audioldm2.models.vae import VAE, VAEConfig
from audioldm2.runtime import tiling

WAYS = {
    "encode": ("whole",),
    "denoise": ("whole",),
    "decode": ("whole", "pieces"),
    "vocode": ("whole", "pieces"),
    "rank": ("pieces",),
}
DEFAULT_STAGES = ("decode", "vocode", "rank")
UNITS_PER_MB = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss: bytes on macOS, kB on Linux
VOCODER, VAE_CONFIG = HiFiGANConfig(), VAEConfig()


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[10, 30, 100, 300], help="lengths of sound"
    )
    parser.add_argument("--stages", nargs="+", choices=WAYS, default=DEFAULT_STAGES)
    parser.add_argument("--ways", nargs="+", choices=("whole", "pieces"), default=("whole", "pieces"))
    parser.add_argument(
        "--whole-up-to",
        type=float,
        default=100,
        metavar="S",
        help="longest sound that is run whole (default: 100)",
    )
    parser.add_argument("--batch", type=int, default=1, help="sounds at once (default: 1)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: PyTorch's choice"
    )
    parser.add_argument("--error", action="store_true", help="print the error of decoding in pieces instead")
    parser.add_argument("--one", action="store_true", help="measure one case in this process and print JSON")
    options = parser.parse_args()
    if options.error:
        torch.set_num_threads(options.threads)
        return print_errors(options.seconds)
    if options.one:
        torch.set_num_threads(options.threads)
        case = (options.stages[0], options.ways[0], options.seconds[0], options.batch)
        print(json.dumps(measure(*case)))
        return 0
    columns = ("sound, s", "weights", "peak", "run, MB", "wall, s", "CPU, s")
    print(f"{'stage':8}{'way':8}" + "".join(f"{column:>9}" for column in columns))
    for stage in options.stages:
        for way in WAYS[stage]:
            for seconds in options.seconds:
                if way in options.ways and (way == "pieces" or seconds <= options.whole_up_to):
                    print(f"{stage:8}{way:8}{seconds:9g}", end="", flush=True)
                    print(measure_in_process(stage, way, seconds, options), flush=True)
    return 0


def measure_in_process(stage: str, way: str, seconds: float, options: argparse.Namespace) -> str:
    """Measures one case in a new process; returns its row of the table."""
    case = ["--stages", stage, "--ways", way, "--seconds", str(seconds)]
    case += ["--batch", str(options.batch), "--threads", str(options.threads)]
    found = subprocess.run([sys.executable, __file__, "--one", *case], capture_output=True, text=True)
    if found.returncode:
        lines = found.stderr.strip().splitlines()
        return f"  failed: {lines[-1] if lines else f'exit code {found.returncode}'}"
    before, peak, wall, cpu = json.loads(found.stdout)
    return f"{before:9.0f}{peak:9.0f}{peak - before:9.0f}{wall:9.1f}{cpu:9.1f}"


@torch.no_grad()
def measure(stage: str, way: str, seconds: float, batch: int) -> tuple[float, float, float, float]:
    """Measures one case: MB before the run, peak MB, wall-clock seconds, seconds of all threads."""
    run = PREPARE[stage](way, seconds, batch)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    output = run()
    result = (before, peak(), time.perf_counter() - start, time.process_time() - cpu)
    if not output.isfinite().all():
        raise ValueError(f"{stage} {way}: the output is not finite.")
    return result


# Each function prepares a stage's network and input, and returns the function to measure.


def encode(way: str, seconds: float, batch: int) -> Callable[[], Tensor]:
    vae, mel = filled(VAE, VAE_CONFIG, "decoder"), torch.randn(batch, 1, mel_frames(seconds), VOCODER.mels)
    return lambda: vae.encode(mel)[0]


def denoise(way: str, seconds: float, batch: int) -> Callable[[], Tensor]:
    config = UNetConfig()
    unet, z = filled(UNet, config), torch.randn(latents(seconds, 2 * batch))
    gpt2_context, text_context = (
        torch.randn(2 * batch, 8, config.gpt2_dim),
        torch.randn(2 * batch, 16, config.t5_dim),
    )
    return lambda: unet(z, torch.tensor(500.0), gpt2_context, text_context)


def decode(way: str, seconds: float, batch: int) -> Callable[[], Tensor]:
    vae, z = filled(VAE, VAE_CONFIG, "encoder"), torch.randn(latents(seconds, batch))
    return lambda: vae.decode(z) if way == "whole" else tiling.decode(vae, z)


def vocode(way: str, seconds: float, batch: int) -> Callable[[], Tensor]:
    vocoder, mel = filled(HiFiGAN, VOCODER), torch.randn(batch, mel_frames(seconds), VOCODER.mels)
    return lambda: vocoder(mel) if way == "whole" else tiling.vocode(vocoder, mel)


def rank(way: str, seconds: float, batch: int) -> Callable[[], Tensor]:
    clap = filled(ClapAudio, ClapAudioConfig())
    wave = 0.1 * torch.randn(batch, round(seconds * VOCODER.sample_rate))
    networks: Any = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, running=lambda name: nullcontext(clap)
    )
    return lambda: clap_score.embed_sounds(networks, CLAP_MEL, wave, VOCODER.sample_rate)


PREPARE = {"encode": encode, "denoise": denoise, "decode": decode, "vocode": vocode, "rank": rank}


def mel_frames(seconds: float) -> int:
    """Returns the number of mel frames."""
    return round(seconds * VOCODER.sample_rate / VOCODER.hop)


def latents(seconds: float, batch: int) -> tuple[int, ...]:
    """Returns the shape of latents."""
    factor = VAE_CONFIG.downsampling
    return (batch, VAE_CONFIG.latent_channels, mel_frames(seconds) // factor, VOCODER.mels // factor)


def filled(kind: type[nn.Module], config: object, unused: str | None = None) -> Any:
    """Builds a network without an unused part, with variance-preserving random weights.

    They are drawn in place, so that no copy adds to the peak.
    """
    with torch.device("meta"):
        network = kind(config)
    if unused is not None:
        delattr(network, unused)
    network.to_empty(device="cpu")
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith(("bias", "mean")):
            tensor.normal_(std=0.2)
        else:
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def peak() -> float:
    """Returns peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNITS_PER_MB


# The error of decoding in pieces --------------------------------------------------------------------------


@torch.no_grad()
def print_errors(lengths: list[float]) -> int:
    """Prints the signal-to-error ratio of decoding in pieces in dB: overall, and in the worst second."""
    torch.manual_seed(0)
    vae = filled(VAE, VAE_CONFIG, "encoder")
    print(f"{'sound':10}{'s':>6}{'dB':>8}{'worst second, dB':>19}")
    for seconds in lengths:
        for name, z in sounds(seconds):
            exact = vae.decode(z)
            squares = (tiling.decode(vae, z) - exact).square().mean(dim=(0, 1, 3))  # (time,)
            worst = max(second.mean() for second in squares.split(mel_frames(1.0)))
            signal = exact.var()
            overall, worst = (10 * math.log10(signal / error) for error in (squares.mean(), worst))
            print(f"{name:10}{seconds:6g}{overall:8.1f}{worst:19.1f}", flush=True)
    return 0


def sounds(seconds: float) -> Iterator[tuple[str, Tensor]]:
    """Yields latents of three sounds: stationary; with beats and swells; four levels, the first silent."""
    shape = latents(seconds, 1)
    noise, time = torch.randn(shape), torch.arange(shape[2]).view(1, 1, -1, 1)
    yield "steady", noise
    t = time * seconds / shape[2]  # seconds
    loudness = 0.6 + 0.4 * torch.sin(2 * math.pi * t / 17) + 0.5 * (t % 4 < 1)
    colours = torch.randn(1, shape[1], 8, shape[3])  # in sequence
    yield "music", 0.7 * colours[:, :, (8 * time // shape[2]).flatten()] + loudness * noise
    loudness = torch.tensor([0.0, 0.3, 2.0, 0.7])[4 * time // shape[2]]
    yield "sections", torch.randn(1, shape[1], 1, shape[3]) + loudness * noise


if __name__ == "__main__":
    sys.exit(main())
