"""The flags of the command line, their help, and what the library's arguments are called among them."""

import argparse
import difflib
from functools import partial
from pathlib import Path
from typing import NoReturn

from audioldm2.checkpoints.hub import DEMO
from audioldm2.result import package_version

USAGE = """\
audioldm2 PROMPT [-o FILE] [options]
       audioldm2 --prompts FILE [-o FOLDER] [options]
       audioldm2 convert SOURCE OUT [options]           (see audioldm2 convert --help)
       audioldm2 info SOURCE"""

EPILOG = """\
examples:
  audioldm2 "Techno music with a strong beat" --model cvssp/audioldm2 -o techno.wav
  audioldm2 "rain on a tin roof" --model ./base --negative-prompt "music" --candidates 3 -o rain.flac
  audioldm2 --prompts prompts.txt -o sounds/        one prompt a line, one sound file each
  audioldm2 convert cvssp/audioldm2 ./audioldm2-base

A JSON file with every setting lies beside each sound, unless --no-json is given. Files of the same name are
replaced. The published weights are licensed for non-commercial use only (CC BY-NC-SA 4.0).
"""

FLAG_OF = {  # argument of the library -> flag
    "audio_length_in_s": "--duration",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "num_waveforms_per_prompt": "--candidates",
    "guidance_interval": "--guidance-interval",
    "guidance_rescale": "--guidance-rescale",
    **{name: f"--{name}" for name in ("steps", "sampler", "eta", "karras", "seed")},
    **{name: f"--{name}" for name in ("device", "dtype", "heads")},
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one sentence in a ValueError, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            flag = message.split()[2].split("=")[0].replace("_", "-")
            meant = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            is_prompt = not meant or meant == ["--prompts"]
            hint = "a prompt stands without a flag, in quotes" if is_prompt else f"did you mean {meant[0]}?"
            message += f"; {hint}"
        elif "expected one argument" in message or "ignored explicit argument" in message:
            message += (
                "; a text that begins with '-' is given as --negative-prompt='-...', or after -- at the end"
            )
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help.")


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def seed(text: str) -> int | None:
    return None if text == "random" else whole_number(text)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def generate_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="audioldm2",
        usage=USAGE,
        description="Make sound effects and music from text with AudioLDM 2.",
        epilog=EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
        allow_abbrev=False,  # --prompt would be --prompts
    )
    # fmt: off
    add = parser.add_argument_group("what to hear").add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="a description of one sound, in quotes")
    add("--prompts", type=Path, metavar="FILE",
        help="a text file with one prompt a line, in place of PROMPT; -o is then a folder")
    add("--negative-prompt", metavar="TEXT", help="what not to hear")
    add("--duration", type=number, metavar="S",
        help="how long it lasts, in seconds (default: as the model was trained; 10 for those published)")
    add("--seed", type=seed, default=0, metavar="N",
        help="the same seed gives the same sound; 'random' draws one (default: %(default)s)")
    add("--candidates", type=whole_number, default=1, metavar="N",
        help="make so many, and write the one that CLAP hears fit the prompt best (default: %(default)s)")

    add = parser.add_argument_group("where it goes").add_argument
    add("-o", "--output", type=Path, metavar="PATH",
        help="a sound file (.wav, .flac, .ogg) or a folder (default: here, named by the prompt)")
    add("--plot", action="store_true", help="save a spectrogram (PNG) beside the sound; needs matplotlib")
    add("--no-json", dest="json", action="store_false", help="do not save the settings beside the sound")
    add("--quiet", action="store_true", help="no progress, only notes and errors")

    add = parser.add_argument_group("how it is made").add_argument
    add("--steps", type=whole_number, default=25, metavar="N", help="denoising steps (default: %(default)s)")
    add("--guidance", type=number, default=3.5, metavar="X",
        help="how strongly to follow the prompt; up to 1 is off (default: %(default)s)")
    add("--sampler", default="dpmpp_2m", metavar="NAME",
        help="'list' explains them all (default: %(default)s)")
    add("--eta", type=number, default=0.0, metavar="X",
        help="noise that the ddim sampler adds, 0 to 1 (default: %(default)g)")
    add("--karras", action="store_true", help="space the noise levels as Karras et al. 2022 do")
    add("--guidance-rescale", type=number, default=0.0, metavar="X",
        help="0 to 1: against too loud and harsh a sound at high guidance (default: %(default)g)")
    add("--guidance-interval", type=number, nargs=2, metavar=("LO", "HI"),
        help="guide only where LO < sigma <= HI; sigma is noise over signal, and HI may be inf")

    group = parser.add_argument_group("the model")
    add = group.add_argument
    add("--model", metavar="NAME",
        help=f"folder, .pth file or hub id (default: {DEMO}, the small one in the package)")
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    add("--heads", choices=["config", "trained"],
        help="attention heads of a model in the diffusers layout: as its config says, or 32 wide as the "
        "published weights were trained (default: %(default)s)")
    add("--device", default="auto", metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--dtype", default="auto", metavar="NAME",
        help="float32, float16, bfloat16 (default: %(default)s: float16 on CUDA; on a CPU that multiplies in "
        "bfloat16, that where it is not heard; else float32)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--offload", action="store_true", help="keep only the network that is running on the GPU")
    add("--low-memory", action="store_true", help="read each network from disk for its stage only")
    add("--compile", action="store_true",
        help="compile the networks first, which takes minutes once: for many sounds, best on a GPU")

    parser.add_argument("--version", action="version", version=f"audioldm2 {package_version()}")
    # fmt: on
    return parser
