"""`audioldm2.load`: from the name of a checkpoint to a model that is ready to generate."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from audioldm2.checkpoints import hub, storage
from audioldm2.checkpoints.converter import require_converter
from audioldm2.errors import ArgumentError, WeightsError, require_choice, some
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

    A source that is not converted yet is converted in memory; `audioldm2 convert` makes that permanent.

    Args:
        source: a converted folder, a folder in the diffusers layout, an original .pth file, a hub id such as
            "cvssp/audioldm2", or "demo" or "demo-speech" for a small model in the package.
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or a device of PyTorch.
        dtype: "float32", "float16", "bfloat16" or "auto": float16 on CUDA; on a CPU bfloat16 where a short
            measurement finds it faster, except in networks whose rounding stays in the sound
            (`runtime.dtypes`); else float32.
        heads: of the UNet: "config" (as the diffusers layout's config says and the reference reads) or
            "trained" (32 wide). Default: "config" for that layout, "trained" for an original file.
        revision: branch, tag or commit of a hub repository.
        offload: keep only the running network on the device, the others in main memory.
        low_memory: read each network from disk for its stage, and free it afterwards.
        compile: compile the UNet at its first call; on a GPU also GPT-2, the VAE's decoder and the vocoder,
            on CUDA. Worth it for many sounds, as the first takes longer.
        ops: "reference" runs plain PyTorch kernels everywhere, "auto" the fastest on this processor (see
            `ops`). Default: the environment variable AUDIOLDM2_OPS, else "auto".

    Returns:
        The model.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
        WeightsError: the checkpoint cannot be found or loaded.
    """
    if offload and low_memory:
        raise ArgumentError("offload", True, "be False with low_memory, which needs the least memory")
    if compile and (offload or low_memory):
        raise ArgumentError("compile", True, "be False with offload or low_memory: networks have to stay put")
    residence = "disk" if low_memory else "offload" if offload else "device"
    device = resolve_device(device)
    dtype = dtypes.require_dtype(dtype)
    half = dtype == "float16" or (dtype == "auto" and device.type == "cuda")
    checkpoint = open_checkpoint(source, heads=heads, revision=revision, prefer_half=half)
    return assemble(
        checkpoint, source, device=device, dtype=dtype, residence=residence, compile=compile, ops=ops
    )


def assemble(
    checkpoint: storage.Checkpoint,
    source: str | os.PathLike,
    *,
    device: torch.device,
    dtype: str = "float32",
    residence: str = "device",
    compile: bool = False,
    ops: str | None = None,
) -> AudioLDM2:
    """Build the model of an open checkpoint; its tensors stay mapped where they can.

    Args:
        checkpoint: what `open_checkpoint` returned, perhaps with other configs.
        source: what the user calls it.
        device: where networks run.
        dtype: "auto" or a name from `DTYPES`.
        residence: see `runtime.placement.Networks`.
        compile: see `load`.
        ops: see `load`.

    Raises:
        WeightsError: a tensor, a tokenizer or a network is missing or does not fit.
    """
    _require_tokenizers(checkpoint)
    tokenizers = {
        name: storage.TOKENIZERS[name].from_folder(folder) for name, folder in checkpoint.tokenizers.items()
    }
    clap_tokenizer, t5_tokenizer = (tokenizers.get(name) for name in storage.TOKENIZERS)
    _require_vocabularies(checkpoint, clap_tokenizer, t5_tokenizer)
    of_networks, comparison = dtypes.choose(dtype, device, checkpoint.configs)
    return AudioLDM2(
        networks=Networks(checkpoint, device, of_networks, residence, compile, ops),
        clap_tokenizer=clap_tokenizer,
        t5_tokenizer=t5_tokenizer,
        schedule=storage.schedule_of(checkpoint, checkpoint.source),
        clap_mel=storage.clap_mel_of(checkpoint, checkpoint.source),
        source=str(source),
        origin=checkpoint.source,
        revision=checkpoint.revision,
        default_seconds=checkpoint.seconds,
        unconditional=checkpoint.unconditional,
        dtype_comparison=comparison,
        phoneme_tokenizer=storage.phoneme_tokenizer_of(checkpoint),
        pronunciations=checkpoint.pronunciations,
    )


def _require_tokenizers(checkpoint: storage.Checkpoint) -> None:
    """Raise WeightsError if a tokenizer is missing; for an original file perhaps none was found."""
    absent = [name for name in storage.tokenizers_of(checkpoint.configs) if name not in checkpoint.tokenizers]
    if absent:
        raise WeightsError(
            f"{checkpoint.source} has no {some(absent)}, so its text encoders cannot read a prompt. "
            "Convert it with --tokenizers FOLDER, a folder that holds those of 'cvssp/audioldm2' (its "
            "'tokenizer' and 'tokenizer_2')."
        )


def _require_vocabularies(
    checkpoint: storage.Checkpoint, clap: ClapTokenizer | None, t5: T5Tokenizer | None
) -> None:
    """Raise WeightsError if a text encoder lacks vectors for tokens, or CLAP's for positions."""
    needs = []  # (size of the network, size that the tokenizer needs, name of the size)
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
    for size, needed, what in needs:
        if size < needed:
            folder = next(iter(checkpoint.tokenizers.values())).parent
            raise WeightsError(
                f"{what} in {folder} is {size}, and the tokenizers beside it need {needed}. "
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
    ema: bool = False,
    config: dict[str, Any] | None = None,
) -> storage.Checkpoint:
    """Open a checkpoint of any kind, memory-mapped: a converted folder directly, all others by the converter.

    Args:
        source: see `load`.
        heads: see `load`.
        revision: see `load`.
        prefer_half: prefer the fp16 variant of the diffusers layout.
        with_weights: False fetches only the configs from the hub, to describe the architecture.
        tokenizers: for an original file, the folder with both (default: beside it, else the hub's).
        ema: for an original file, see `convert.read_original`.
        config: for an original file, see `convert.read_original`.

    Raises:
        ArgumentError: an argument has a value that is not allowed for this source.
        WeightsError: the checkpoint cannot be found or read.
    """
    if heads is not None:
        require_choice("heads", heads, ("config", "trained"))
    path = hub.find(source, revision=revision, prefer_half=prefer_half, with_weights=with_weights)
    if path.is_file():
        require_converter()
        from audioldm2 import convert

        original = convert.read_original(
            path,
            source=str(source),
            heads=heads or "trained",
            tokenizers=hub.tokenizers_in(tokenizers or path.parent),
            ema=ema,
            config=config,
        )
        _add_tokenizers(original, tokenizers)
        return original
    for name, value in (("ema", ema or None), ("config", config), ("tokenizers", tokenizers)):
        if value is not None:
            given = f"is given for {source}, which is not an original file"
            allowed = "be left out: --ema, --config and --tokenizers are for those"
            raise ArgumentError(name, value, allowed, given=given)
    if storage.is_converted(path):
        checkpoint = storage.read(path)
        unet = checkpoint.configs["unet"]
        if heads == "trained" and unet.heads != tuple(width // 32 for width in unet.channels):
            allowed = f"be left out: {source} is converted already, with {unet.heads} heads"
            raise ArgumentError("heads", heads, f"{allowed}. Convert its source again with --heads trained")
        return checkpoint
    require_converter()
    from audioldm2 import convert

    is_local = Path(source).expanduser().is_dir()
    return convert.read_diffusers(
        path,
        source=str(source),
        revision=None if is_local else path.name,  # the cache names the folder by the commit
        heads=heads or "config",
        prefer_half=prefer_half,
    )


def _add_tokenizers(original: storage.Checkpoint, folder: Path | None) -> None:
    """Take the tokenizers that an original file needs from the hub, if they were found neither beside it nor
    in the folder that was given, which has to hold them.
    """
    needed = storage.tokenizers_of(original.configs)
    if set(needed) <= set(original.tokenizers):
        return
    if folder is not None:
        both = "a 'tokenizer' (CLAP's) and a 'tokenizer_2' (T5's)"
        wanted = both if "t5_tokenizer" in needed else "a 'tokenizer' (CLAP's)"
        given = f"{folder} holds {some(sorted(original.tokenizers)) or 'no tokenizer'}"
        raise ArgumentError("--tokenizers", folder, f"hold {wanted}, as 'cvssp/audioldm2' does", given=given)
    with suppress(WeightsError):
        published = hub.published_tokenizers()
        original.tokenizers = {name: published[name] for name in needed if name in published}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device that this machine has; ArgumentError, which lists them, for any other."""
    present = ["cpu"]
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    if device == "auto":
        return torch.device("cuda" if "cuda" in present else present[-1])
    if str(device) not in present:
        given = f"is {str(device)!r}, which is not on this machine"
        raise ArgumentError("device", device, f"be 'auto' or one of {', '.join(present)}", given=given)
    return torch.device(device)
