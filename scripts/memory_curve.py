"""Measure the peak memory and the time of the decoder and the vocoder over the length of a sound, on the CPU.

    python scripts/memory_curve.py
    python scripts/memory_curve.py --seconds 10 30 --stages decode --ways pieces --threads 1

The networks have the published sizes and random weights: neither memory nor time depends on their values.
Every measurement is made in a process of its own. The columns:

    weights   MB resident before the run: Python, torch and the weights of the one network
    peak      MB resident at the most during the run
    run       peak less weights: what the run itself needed
    wall      seconds on the clock, one run, its first
    CPU       seconds of all threads: less sensitive to what else the machine does

`whole` is one call of the network, `pieces` is audioldm2.pieces with its defaults. What both return is small:
0.03 MB of spectrogram and 0.06 MB of samples a second of sound.

On Linux the peak counts holes in glibc's heap, which differ from run to run by up to a hundred MB. With
MALLOC_MMAP_THRESHOLD_=1000000 in the environment they go, for a fifth to a third more time.
"""

import argparse
import json
import resource  # not on Windows
import subprocess
import sys
import time

import torch
from torch import nn

from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, VAEConfig
from audioldm2.pieces import decode_in_pieces, vocode_in_pieces

STAGES, WAYS = ("decode", "vocode"), ("whole", "pieces")
UNITS_IN_A_MB = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss: bytes on macOS, kB on Linux


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 100, 300], help="of sound")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument(
        "--whole-up-to",
        type=float,
        default=100,
        metavar="S",
        help="longest sound that is run whole; default 100",
    )
    parser.add_argument("--batch", type=int, default=1, help="sounds at once; default 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--one", action="store_true", help="measure one case in this process; print JSON")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        case = (options.stages[0], options.ways[0], options.seconds[0], options.batch)
        print(json.dumps(measure(*case)))
        return 0
    columns = ("sound, s", "weights", "peak", "run, MB", "wall, s", "CPU, s")
    print(f"{'stage':8}{'way':8}" + "".join(f"{column:>9}" for column in columns))
    for stage in options.stages:
        for way in options.ways:
            for seconds in options.seconds:
                if way == "pieces" or seconds <= options.whole_up_to:
                    case = ["--stages", stage, "--ways", way, "--seconds", str(seconds)]
                    case += ["--batch", str(options.batch), "--threads", str(options.threads)]
                    command = [sys.executable, __file__, "--one", *case]
                    found = subprocess.run(command, capture_output=True, text=True)
                    print(f"{stage:8}{way:8}{seconds:9g}", end="")
                    if found.returncode:
                        lines = found.stderr.strip().splitlines()
                        print(
                            f"  failed: {lines[-1] if lines else f'exit code {found.returncode}'}", flush=True
                        )
                        continue
                    before, peak, wall, cpu = json.loads(found.stdout)
                    print(f"{before:9.0f}{peak:9.0f}{peak - before:9.0f}{wall:9.1f}{cpu:9.1f}", flush=True)
    return 0


@torch.no_grad()
def measure(stage: str, way: str, seconds: float, batch: int) -> tuple[float, float, float, float]:
    """MB resident before the run, MB at its peak, seconds on the clock, seconds of all threads."""
    vocoder = HiFiGANConfig()
    frames = round(seconds * vocoder.sample_rate / vocoder.hop)  # of the spectrogram
    if stage == "decode":
        config = VAEConfig()
        with torch.device("meta"):
            network = VAE(config)
        del network.encoder  # its weights are not used
        shape = (
            batch,
            config.latent_channels,
            frames // config.downsampling,
            vocoder.mels // config.downsampling,
        )
        run = network.decode if way == "whole" else lambda z: decode_in_pieces(network, z)
    else:
        with torch.device("meta"):
            network = HiFiGAN(vocoder)
        shape = (batch, frames, vocoder.mels)
        run = network if way == "whole" else lambda mel: vocode_in_pieces(network, mel)
    fill(network)
    given = torch.randn(shape)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    made = run(given)
    result = (before, peak(), time.perf_counter() - start, time.process_time() - cpu)
    if not made.isfinite().all():
        raise ValueError(f"{stage} {way}: the result is not finite.")
    return result


def fill(network: nn.Module) -> None:
    """Random weights for sums of about unit variance, made in place: no copy counts as peak."""
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        if tensor.ndim == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNITS_IN_A_MB


if __name__ == "__main__":
    sys.exit(main())
