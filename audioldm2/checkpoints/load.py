"""`audioldm2.load`: from the name of a checkpoint to a model that is ready to generate."""

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from audioldm2.checkpoints import hub, storage
from audioldm2.errors import WeightsError, some
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.runtime import dtypes
from audioldm2.runtime.placement import Networks


def load(
    source: str | os.PathLike,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    heads: str | None = None,
    revision: str | None = None,
    offload: bool = False,
    low_memory: bool = False,
    compile: bool = False,
    ops: str | None = None,
) -> AudioLDM2:
    """Load a model, ready to generate.

    source:   a converted folder, one in the diffusers layout, an original .pth file, a hub id such as
              "cvssp/audioldm2", or "demo" for the small model in the package. What is not converted
              yet is converted in memory; `audioldm2 convert` makes that permanent.
    device:   "auto" (CUDA, else Apple's MPS, else the CPU), or a device of PyTorch.
    dtype:    "float32", "float16", "bfloat16", or "auto": float16 on CUDA; on a CPU bfloat16 where a short
              measurement finds it faster, for all but the networks whose rounding stays in the sound.
    heads:    of the UNet: "config" (as the diffusers layout's config says and the reference reads) or
              "trained" (32 wide). Default: "config" for that layout, "trained" for an original file.
    revision: of a hub repository: branch, tag or commit.
    offload:  keep on the device only the network that is running; the others wait in the computer's memory.
    low_memory: read each network from disk for its stage and let it go after.
    compile:  compile the UNet at its first call; on a GPU, GPT-2, the VAE's decoder and the vocoder too, on
              CUDA. For many sounds: the first takes longer.
    ops:      "reference" for plain PyTorch kernels everywhere, "auto" to choose the fastest on this processor
              (see `ops`). Default: the environment variable AUDIOLDM2_OPS, else "auto".

    Raises ValueError for a wrong argument, WeightsError for a checkpoint that cannot be found or loaded.
    """
    if offload and low_memory:
        raise ValueError("offload and low_memory exclude each other; low_memory needs the least.")
    if compile and (offload or low_memory):
        raise ValueError("compile needs networks that stay where they are; leave out offload and low_memory.")
    residence = "disk" if low_memory else "offload" if offload else "device"
    device = resolve_device(device)
    dtype = dtypes.require_dtype(dtype)
    half = dtype == "float16" or (dtype == "auto" and device.type == "cuda")
    checkpoint = open_checkpoint(source, heads=heads, revision=revision, prefer_half=half)
    if "phonemes" in checkpoint.configs:
        raise WeightsError(
            f"{source} is a speech model: 'audioldm2 convert' keeps all of it, but it cannot be run yet. "
            "Load a model of sounds or music, such as 'cvssp/audioldm2'."
        )
    _demand_tokenizers(checkpoint)
    tokenizers = {
        name: storage.TOKENIZERS[name].from_folder(folder) for name, folder in checkpoint.tokenizers.items()
    }
    clap_tokenizer, t5_tokenizer = (tokenizers.get(name) for name in storage.TOKENIZERS)
    _demand_room(checkpoint, clap_tokenizer, t5_tokenizer)
    of_networks, comparison = dtypes.choose(dtype, device, checkpoint.configs)
    return AudioLDM2(
        networks=Networks(checkpoint, device, of_networks, residence, compile, ops),
        clap_tokenizer=clap_tokenizer,
        t5_tokenizer=t5_tokenizer,
        schedule=storage.schedule_of(checkpoint, checkpoint.source),
        clap_mel=storage.hearing_of(checkpoint, checkpoint.source),
        source=str(source),
        origin=checkpoint.source,
        revision=checkpoint.revision,
        default_seconds=checkpoint.seconds,
        dtype_comparison=comparison,
    )


def _demand_tokenizers(checkpoint: storage.Checkpoint) -> None:
    """An original file has none, and perhaps none were found for it."""
    absent = [name for name in storage.tokenizers_of(checkpoint.configs) if name not in checkpoint.tokenizers]
    if absent:
        raise WeightsError(
            f"{checkpoint.source} has no {some(absent)}, so its text encoders cannot be told a prompt. "
            "Convert it with --tokenizers FOLDER, a folder that holds those of 'cvssp/audioldm2' (its "
            "'tokenizer' and 'tokenizer_2')."
        )


def _demand_room(checkpoint: storage.Checkpoint, clap: ClapTokenizer | None, t5: T5Tokenizer | None) -> None:
    """Raise WeightsError unless the text encoders have vectors for all tokens, and CLAP for all positions."""
    needs = []
    if clap is not None:
        text = checkpoint.configs["clap_text"]
        positions = clap.max_length + text.padding_id + 1
        needs += [
            (text.vocabulary, clap.splitter.get_vocab_size(), "vocabulary of 'clap_text'"),
            (text.max_positions, positions, "max_positions of 'clap_text'"),
        ]
    if t5 is not None:
        vocabulary = checkpoint.configs["t5"].vocabulary
        needs += [(vocabulary, t5.splitter.get_vocab_size(), "vocabulary of 't5'")]
    for given, needed, what in needs:
        if given < needed:
            folder = next(iter(checkpoint.tokenizers.values())).parent
            raise WeightsError(
                f"{what} in {folder} is {given}, and the tokenizers beside it need {needed}. "
                "Do the tokenizers' files belong to this checkpoint?"
            )


def open_checkpoint(
    source: str | os.PathLike,
    *,
    heads: str | None = None,
    revision: str | None = None,
    prefer_half: bool = False,
    with_weights: bool = True,
    tokenizers: Path | None = None,
    **of_original: Any,
) -> storage.Checkpoint:
    """A converted folder as it is, anything else through the converter; the arguments are `load`'s.

    with_weights: False where only the architecture is asked for, so that a hub's weights are not fetched.
    tokenizers:   for an original file: the folder with both (default: beside it, else the hub's).
    of_original:  `ema` and `config` of `convert.read_original`.
    """
    if heads not in (None, "config", "trained"):
        raise ValueError(f"heads is {heads!r}; it has to be 'config' or 'trained'.")
    path = hub.find(source, revision=revision, prefer_half=prefer_half, with_weights=with_weights)
    if path.is_file():
        demand_converter()
        from audioldm2 import convert

        found = _tokenizers_for(path, tokenizers)
        return convert.read_original(
            path, source=str(source), heads=heads or "trained", tokenizers=found, **of_original
        )
    if any(value not in (None, False) for value in of_original.values()):
        raise ValueError(f"--ema and --config are for an original file, and {source} is not one.")
    if storage.is_converted(path):
        checkpoint = storage.read(path)
        unet = checkpoint.configs["unet"]
        if heads == "trained" and unet.heads != tuple(width // 32 for width in unet.channels):
            raise ValueError(
                f"heads is 'trained', but {source} is converted already, with {unet.heads} heads. "
                "Convert its source again with --heads trained."
            )
        return checkpoint
    demand_converter()
    from audioldm2 import convert

    is_local = Path(source).expanduser().is_dir()
    return convert.read_diffusers(
        path,
        source=str(source),
        revision=None if is_local else path.name,  # the cache's folder is named by the commit
        heads=heads or "config",
        prefer_half=prefer_half,
    )


def _tokenizers_for(file: Path, folder: Path | None) -> dict[str, Path]:
    """For an original file, which has none: those in the given folder, beside it, or the hub's; or none."""
    found = hub.tokenizers_in(folder or file.parent)
    if folder is not None and len(found) < len(hub.TOKENIZERS):
        raise ValueError(
            f"--tokenizers {folder} has to hold a folder 'tokenizer' (CLAP's) and a folder 'tokenizer_2' "
            "(T5's), as 'cvssp/audioldm2' does."
        )
    if len(found) < len(hub.TOKENIZERS):
        with suppress(WeightsError):
            found = hub.published_tokenizers()
    return found


def demand_converter() -> None:
    """Raise WeightsError where `audioldm2.convert` is missing.

    It is the clone's folder `convert`, and a module of the package only once the package is installed.
    """
    if find_spec("audioldm2.convert") is None:
        raise WeightsError(
            f"the converter is not installed here: Python found the folder {Path(__file__).parents[1]}, "
            "a clone of the repository, before the installed package. "
            "Run 'pip install -e .' in the clone, or run from another folder."
        )


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that is here; ValueError lists them otherwise."""
    present = ["cpu"]
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    if device == "auto":
        return torch.device("cuda" if "cuda" in present else present[-1])
    if str(device) not in present:
        raise ValueError(
            f"device={str(device)!r} is not on this machine; choose 'auto' or one of {', '.join(present)}."
        )
    return torch.device(device)
