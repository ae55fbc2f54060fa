"""Measure each stage of a long request: seconds by the clock and of the CPU, and the peak of memory.

    python scripts/long_sound.py --model FOLDER
    python scripts/long_sound.py --model FOLDER --seconds 60 --unet-seconds 10 --steps 4

First the stages after the denoiser run at full length, from random latents: three candidates of 300 s. Then a
whole request of --unet-seconds runs, because the denoiser takes most of the time. Shapes and values are
checked. Without --model, the script writes a random checkpoint of the published size to a temporary folder,
4.3 GB.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from make_random_checkpoint import make
from torch import Tensor

import audioldm2

T = TypeVar("T")
PROMPT = "samba, a carnival parade with drums, whistles and brass"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id; default: a random one")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the stages after the denoiser")
    parser.add_argument("--unet-seconds", type=float, default=30.0, help="of the whole request; 0 skips it")
    parser.add_argument("--steps", type=int, default=20, help="of the whole request (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--low-memory", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        if not options.model:
            options.model = str(Path(folder) / "random")
            make(options.model, "base")
        model = audioldm2.load(options.model, low_memory=options.low_memory)
        after_the_denoiser(model, options.prompt, options.seconds, options.candidates)
        if options.unet_seconds:
            whole_request(model, options.prompt, options.unet_seconds, options.candidates, options.steps)
    return 0


def after_the_denoiser(model: audioldm2.AudioLDM2, prompt: str, seconds: float, candidates: int) -> None:
    print(f"{candidates} sounds of {seconds:g} s, from random latents")
    frames, samples = model.sound.latent_frames(seconds), model.sound.samples(seconds)
    z = torch.randn(model.sound.latents(candidates, frames), generator=torch.Generator().manual_seed(0))
    mel = measure("decode", lambda: model.decode(z))
    audio = measure("vocode", lambda: model.vocode(mel))[:, :samples].float().cpu()
    check("audio", audio, (candidates, samples))
    check("scores", measure("score", lambda: model.score(prompt, audio)), (candidates,))


def whole_request(
    model: audioldm2.AudioLDM2, prompt: str, seconds: float, candidates: int, steps: int
) -> None:
    print(f"a whole request: {candidates} sounds of {seconds:g} s, {steps} steps")
    result = measure(
        "generate",
        lambda: model.generate(
            prompt, audio_length_in_s=seconds, num_waveforms_per_prompt=candidates, num_inference_steps=steps
        ),
    )
    check("audio", result.audio, (1, candidates, model.sound.samples(seconds)))


def measure(stage: str, run: Callable[[], T]) -> T:
    """Call `run`, print its time and peak of memory, return its result."""
    begin_peak()
    start, worked = time.perf_counter(), time.process_time()
    result = run()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    print(f"  {stage:10}{seconds:9.1f} s   {worked:8.1f} s of CPU   peak {peak():6.0f} MB", flush=True)
    return result


def check(name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(found.shape) != shape or not found.isfinite().all():
        raise ValueError(f"{name}: shape {tuple(found.shape)}, expected {shape}, all finite.")
    print(f"  {name} {shape}, all finite")


def begin_peak() -> None:
    """Let Linux count the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Peak of resident memory in MB, mapped weights included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) / 1e3


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, audioldm2.WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
