"""`audioldm2.load`: from the name of a checkpoint to a model that is ready to generate."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from audioldm2 import hub, weights
from audioldm2.errors import WeightsError
from audioldm2.pipeline import AudioLDM2
from audioldm2.text import ClapTokenizer, T5Tokenizer


def load(
    source: str | os.PathLike,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    heads: str = "config",
    revision: str | None = None,
    offload: bool = False,
    low_memory: bool = False,
) -> AudioLDM2:
    """Load a model, ready to generate.

    source:   a folder (converted, or in the diffusers layout) or a hub id such as "cvssp/audioldm2". The
              diffusers layout is converted in memory; `audioldm2 convert` makes that permanent.
    device:   "auto" (CUDA, else Apple's MPS, else the CPU), or a device of PyTorch.
    dtype:    "auto" (float16 on CUDA, float32 elsewhere), "float32", "float16" or "bfloat16".
    heads:    for the diffusers layout: "config" (as its config says and the reference reads) or "trained"
              (32 wide).
    revision: of a hub repository: branch, tag or commit.
    offload:  keep on the device only the network that is running; the others wait in the computer's memory.
    low_memory: read each network from disk for its stage and let it go after.

    Raises ValueError for a wrong argument, WeightsError for a checkpoint that cannot be found or loaded.
    """
    if offload and low_memory:
        raise ValueError("offload and low_memory exclude each other; low_memory needs the least.")
    residence = "disk" if low_memory else "offload" if offload else "device"
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    checkpoint = open_checkpoint(source, heads=heads, revision=revision, prefer_half=dtype == torch.float16)
    clap_tokenizer = ClapTokenizer.from_folder(checkpoint.tokenizers["clap_tokenizer"])
    t5_tokenizer = T5Tokenizer.from_folder(checkpoint.tokenizers["t5_tokenizer"])
    _demand_room(checkpoint, clap_tokenizer, t5_tokenizer)
    return AudioLDM2(
        networks=weights.Networks(checkpoint, device, dtype, residence),
        clap_tokenizer=clap_tokenizer,
        t5_tokenizer=t5_tokenizer,
        schedule=weights.schedule_of(checkpoint, checkpoint.source),
        hearing=weights.hearing_of(checkpoint, checkpoint.source),
        source=str(source),
        origin=checkpoint.source,
        revision=checkpoint.revision,
    )


def _demand_room(checkpoint: weights.Checkpoint, clap: ClapTokenizer, t5: T5Tokenizer) -> None:
    """Raise WeightsError unless the text encoders have vectors for all tokens, and CLAP for all positions."""
    text, encoder = checkpoint.configs["clap_text"], checkpoint.configs["t5"]
    folder = checkpoint.tokenizers["clap_tokenizer"].parent
    for given, needed, what in (
        (text.vocabulary, clap.splitter.get_vocab_size(), "vocabulary of 'clap_text'"),
        (encoder.vocabulary, t5.splitter.get_vocab_size(), "vocabulary of 't5'"),
        (text.max_positions, clap.max_length + text.padding_id + 1, "max_positions of 'clap_text'"),
    ):
        if given < needed:
            raise WeightsError(
                f"{what} in {folder} is {given}, and the tokenizers beside it need {needed}. "
                "Do the tokenizers' files belong to this checkpoint?"
            )


def open_checkpoint(
    source: str | os.PathLike,
    *,
    heads: str = "config",
    revision: str | None = None,
    prefer_half: bool = False,
) -> weights.Checkpoint:
    """A converted folder as it is, the diffusers layout through the converter; the arguments are `load`'s."""
    if heads not in ("config", "trained"):
        raise ValueError(f"heads is {heads!r}; it has to be 'config' or 'trained'.")
    folder = hub.find(source, revision=revision, prefer_half=prefer_half)
    if weights.is_converted(folder):
        checkpoint = weights.read(folder)
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
        folder,
        source=str(source),
        revision=None if is_local else folder.name,  # the cache's folder is named by the commit
        heads=heads,
        prefer_half=prefer_half,
    )


def demand_converter() -> None:
    """Raise WeightsError where `audioldm2.convert` is missing.

    It is the clone's folder `convert`, and a module of the package only once the package is installed.
    """
    if find_spec("audioldm2.convert") is None:
        raise WeightsError(
            f"the converter is not installed here: Python found the folder {Path(__file__).parent}, "
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


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that networks compute in."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if not isinstance(dtype, str) or dtype not in weights.DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is not supported; choose 'auto' or one of {', '.join(weights.DTYPES)}."
        )
    return weights.DTYPES[dtype]
