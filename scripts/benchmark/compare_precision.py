"""Measure the error and the speed of lower precision, network by network, against float32.

    python scripts/benchmark/compare_precision.py            a random model of the published base size
    python scripts/benchmark/compare_precision.py --model ./base --dtype float16 --device cuda

Every network gets the same input in both dtypes: the output of the float32 networks before it for a prompt
and noise. The table shows the signal-to-error ratio of its output in dB and the times. A rounding error 40 dB
below a sound is masked by it; `audioldm2.runtime.dtypes` is based on this. Times are medians; the first call
is not timed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from audioldm2.audio import clap_log_mel, resample
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint, resolve_device
from audioldm2.errors import WeightsError
from audioldm2.prompt.tokenizers import pad
from audioldm2.runtime.dtypes import require_dtype
from audioldm2.runtime.placement import materialise

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from scripts import make_random_checkpoint

PROMPT = "Techno music with a strong, upbeat tempo and high melodic riffs"
Run = Callable[[nn.Module, torch.dtype], Tensor]


def compare(
    checkpoint: storage.Checkpoint, dtype: torch.dtype, device: torch.device, seconds: float, runs: int
) -> Iterator[tuple[str, float, float, float]]:
    """Runs every network in float32 and in `dtype`.

    Args:
        checkpoint: with all networks.
        dtype: to compare with float32.
        device: where to run.
        seconds: of sound.
        runs: timed runs per network and dtype.

    Yields:
        The network's name, its signal-to-error ratio in dB, seconds in float32, seconds in `dtype`.
    """
    inputs = Inputs(checkpoint, device, seconds)
    for name, run in inputs.runs():
        outputs, times = [], []
        for each in (torch.float32, dtype):
            network = materialise(checkpoint, name, device=device, dtype=each)
            with torch.no_grad():
                outputs.append(run(network, each).float())
                times.append(statistics.median(_seconds(run, network, each, device) for _ in range(runs)))
            del network
        exact, rounded = outputs
        inputs.outputs[name] = exact
        yield name, decibels(exact, rounded), *times


def decibels(exact: Tensor, other: Tensor) -> float:
    """Returns the signal-to-error ratio in dB."""
    return float(10 * (exact.square().sum() / (other - exact).square().sum().clamp(min=1e-30)).log10())


class Inputs:
    """The input of each network: the float32 outputs of those before it."""

    def __init__(self, checkpoint: storage.Checkpoint, device: torch.device, seconds: float) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.outputs: dict[str, Tensor] = {}
        vae, vocoder = (checkpoint.configs[name] for name in ("vae", "hifigan"))
        generator = torch.Generator().manual_seed(0)
        frames = round(seconds * vocoder.sample_rate / vocoder.hop / vae.downsampling)
        shape = (vae.latent_channels, frames, vocoder.mels // vae.downsampling)
        self.noise = torch.randn(1, *shape, generator=generator).to(device)
        self.tokens = {}
        for name, kind in storage.TOKENIZERS.items():
            tokenizer = kind.from_folder(checkpoint.tokenizers[name])
            tokens = pad([tokenizer.encode(PROMPT)], tokenizer.pad_id)
            self.tokens[name] = (tokens.ids.to(device), tokens.mask.to(device))

    def runs(self) -> Iterator[tuple[str, Run]]:
        """Yields networks and how to run them, in pipeline order; the caller sets `outputs` after each."""
        outputs = self.outputs
        mask = self.tokens["t5_tokenizer"][1]
        yield "clap_text", lambda net, dtype: net(*self.tokens["clap_tokenizer"])
        yield "t5", lambda net, dtype: net(*self.tokens["t5_tokenizer"])
        yield (
            "projection",
            lambda net, dtype: net(outputs["clap_text"].to(dtype), outputs["t5"].to(dtype), mask)[0],
        )
        whole = torch.ones(outputs["projection"].shape[:2], dtype=torch.bool, device=self.device)
        yield "gpt2", lambda net, dtype: net.generate(outputs["projection"].to(dtype), whole)
        time_, z = torch.tensor(500, device=self.device), self.noise
        contexts = outputs["gpt2"], outputs["t5"]
        yield (
            "unet",
            lambda net, dtype: net(z.to(dtype), time_, *(each.to(dtype) for each in contexts), mask),
        )
        yield "vae", lambda net, dtype: net.decode(z.to(dtype)).squeeze(1)
        yield "hifigan", lambda net, dtype: net(outputs["vae"].to(dtype))
        rate = self.checkpoint.configs["hifigan"].sample_rate
        clap_mel = storage.clap_mel_of(self.checkpoint, self.checkpoint.source)
        wave = resample(outputs["hifigan"], rate, clap_mel.sample_rate)[:, : 10 * clap_mel.sample_rate]
        yield "clap_audio", lambda net, dtype: net(clap_log_mel(wave, clap_mel).to(dtype))


def _seconds(run: Run, network: nn.Module, dtype: torch.dtype, device: torch.device) -> float:
    start = time.perf_counter()
    run(network, dtype).sum().item()  # .item() waits for the device
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        help="a model with both contexts: folder, hub id or original file (default: random weights)",
    )
    add("--dtype", default="bfloat16", help="default: %(default)s")
    add("--device", default="auto", help="default: %(default)s")
    add("--seconds", type=float, default=10.24, help="default: %(default)s")
    add("--runs", type=int, default=3, help="timed runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        name, device = require_dtype(options.dtype), resolve_device(options.device)
        if name == "auto":
            raise ValueError("--dtype is auto; it has to be the dtype to compare with float32.")
        if not 0.1 <= options.seconds <= 30 or options.runs < 1:
            raise ValueError("--seconds has to be from 0.1 to 30, and --runs at least 1.")
        with TemporaryDirectory() as scratch:
            model = options.model
            if model is None:
                model = Path(scratch) / "base"
                make_random_checkpoint.make(model, size="base")
            checkpoint = open_checkpoint(model)
            print(f"{'':12}{'signal / error':>16}{'float32':>12}{name:>12}{'ratio':>8}")
            rows = compare(checkpoint, storage.DTYPES[name], device, options.seconds, options.runs)
            for network, error, exact, other in rows:
                times = f"{exact:10.3f} s{other:10.3f} s{other / exact:8.2f}"
                print(f"{network:12}{error:13.1f} dB{times}", flush=True)
    except (ValueError, OSError, WeightsError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
