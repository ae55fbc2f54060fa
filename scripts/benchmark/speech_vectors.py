"""Compare GPT-2's 512 vectors of a speech prompt with the reference's, in value and in time, at full size.

    python scripts/benchmark/speech_vectors.py --rounds 3

CLAP's text encoder, the phoneme encoder, the projection and GPT-2 have the published sizes and random
weights. Times are the processor's, on one thread, and the sides take turns, as other programs may slow the
machine. The reference always encodes a prompt with its negative prompt through GPT-2; so does our reading
"reference". "trained" replaces the negative prompt's vectors by zeros. Needs diffusers and transformers:
pip install -e ".[test]".
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests/ is in the clone, not in the package
import audioldm2
from audioldm2.convert.phonemes import SYMBOLS
from scripts.make_reference_checkpoint import GPT2, SPEECH, TINY, VITS, make

PROMPT = "A female reporter is speaking full of emotion"
CLAP = dict(projection_dim=512, text_config={}, audio_config=TINY["clap"]["audio_config"])
UNET = TINY["unet"] | dict(cross_attention_dim=((None, 768),) * 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--phonemes", type=int, default=60, help="in the text, up to 309 (default: 60)")
    parser.add_argument(
        "--vocabulary", type=int, default=GPT2["vocab_size"],
        help="rows of the reference's language head, whose output nothing reads (default: as published)",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    sizes = SPEECH | dict(
        clap=CLAP, vits=VITS, unet=UNET, vae=TINY["vae"], hifigan=TINY["hifigan"], t5=TINY["t5"],
        gpt2=SPEECH["gpt2"] | dict(vocab_size=given.vocabulary, bos_token_id=0, eos_token_id=0),
    )  # fmt: skip
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, torch.no_grad():
        make(Path(folder), sizes)
        compare(Path(folder), given.phonemes, given.rounds)


def compare(folder: Path, length: int, rounds: int) -> None:
    """Encode a prompt by each side in turn, and print differences and times."""
    from diffusers import AudioLDM2Pipeline

    pipe = AudioLDM2Pipeline.from_pretrained(folder)
    model = audioldm2.load(folder, device="cpu", dtype="float32")
    phonemes = "".join(SYMBOLS[1 + place % 180] for place in range(7, 7 + 11 * length, 11))

    def reference() -> list[Tensor]:
        found = pipe.encode_prompt(PROMPT, "cpu", 1, True, transcription=phonemes)[2]
        return [found[1:], found[:1]]

    def ours(unconditional: str) -> list[Tensor]:
        found = model.encode_prompt(PROMPT, phonemes=phonemes, unconditional=unconditional)
        return [found.gpt2_context, found.negative.gpt2_context]

    sides: dict[str, Callable[[], list[Tensor]]] = {
        "reference": reference,
        "ours, reference": lambda: ours("reference"),
        "ours, trained": lambda: ours("trained"),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.process_time()
            found[name] = run()
            times[name].append(time.process_time() - start)
            print(f"{name:<16} {times[name][-1]:7.2f} s", flush=True)
    for words, ours_, theirs in zip(
        ("prompt", "negative"), found["ours, reference"], found["reference"], strict=True
    ):
        error = (ours_ - theirs).norm() / theirs.norm()
        print(f"{words}: {tuple(theirs.shape)}, rms {theirs.square().mean().sqrt():.2f}, error {error:.1e}")
    for name, each in times.items():
        print(f"{name:<16} median {median(each):7.2f} s, {median(each) / median(times['reference']):.3f}")


if __name__ == "__main__":
    main()
