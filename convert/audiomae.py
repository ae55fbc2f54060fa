"""`Vanilla_AudioMAE` of the original files -> `audioldm2.models.audiomae.AudioMAE`.

The diffusers layout has no place for it; `added` takes it from another file.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Size, Tensor

from audioldm2.checkpoints import hub, storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError, WeightsError
from audioldm2.models.audiomae import AudioMAEConfig

from . import keymap
from .configs import count, need
from .keymap import Row, nest
from .original_table import SIGNATURES, OriginalTable, below, places
from .sources import Opened, Reading

OpenState = Callable[[], dict[str, Tensor]]

HEAD_DIM = 64  # in all vision transformers; no tensor shows
DECODER = "the decoder of AudioMAE's training, which AudioLDM 2 never runs"
BLOCK = [
    Row("norm1", "attn_norm"),
    Row("attn.qkv", "attn.qkv"),
    Row("attn.proj", "attn.out"),
    Row("norm2", "ff_norm"),
    Row("mlp.fc1", "ff_in"),
    Row("mlp.fc2", "ff_out"),
]
ORIGINAL_ROWS = [
    Row("cls_token", "class_embedding"),
    Row("pos_embed", "position_embedding"),
    Row("patch_embed.proj", "patch_embed"),
    *nest("blocks.*", "blocks.*", BLOCK),
    Row("norm", "norm_out"),
    *(
        Row(name, None, note=DECODER, optional=True)
        for name in (
            *("mask_token", "decoder_embed", "decoder_pos_embed"),
            *("decoder_blocks", "decoder_norm", "decoder_pred"),
        )
    ),
]


def original_config(shapes: Mapping[str, Size], new_vectors: int) -> AudioMAEConfig:
    """Return the config that the shapes of the original's tensors imply.

    Args:
        shapes: of the tensors.
        new_vectors: how many GPT-2 generates. As many are left of the patches: all of them (512, speech), or
            one for a stretch of time over all frequencies (8, sounds and music).

    Raises:
        WeightsError: a tensor is missing, or no such pooling exists.
    """
    dim, _, patch, _ = need(shapes, "patch_embed.proj.weight", 4)
    patches = need(shapes, "pos_embed", 3)[1] - 1
    columns = max(AudioMAEConfig.mels // patch, 1)
    rows = patches // columns
    if new_vectors == patches:
        pool = (1, 1)
    elif rows % new_vectors == 0 and rows:
        pool = (rows // new_vectors, columns)
    else:
        raise WeightsError(
            f"AudioMAE's {patches} patches cannot be pooled to {new_vectors} vectors, as many as GPT-2 "
            "generates."
        )
    depth = count(shapes, "blocks.*")
    return AudioMAEConfig(
        dim=dim,
        depth=depth,
        heads=max(dim // HEAD_DIM, 1),
        patch=patch,
        frames=rows * patch,
        mels=columns * patch,
        averaged=min(AudioMAEConfig.averaged, depth),
        pool=pool,
    )


# Added to a model that has none -----------------------------------------------------------------------------


def added(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """Return a checkpoint with the AudioMAE of another file, memory-mapped.

    Args:
        checkpoint: a model with GPT-2 and without AudioMAE.
        source: an original file or a converted folder that has AudioMAE, or a hub id of either.

    Raises:
        ArgumentError: the model has AudioMAE already, or no use for it.
        WeightsError: the source cannot be found, has no AudioMAE, or has one that does not fit.
    """
    if "audiomae" in checkpoint.configs:
        allowed = f"be left out: {checkpoint.source} has AudioMAE already"
        raise ArgumentError("--audiomae", source, allowed)
    if "gpt2" not in checkpoint.configs:
        allowed = f"be left out: {checkpoint.source} has no GPT-2, whose vectors AudioMAE's stand for"
        raise ArgumentError("--audiomae", source, allowed)
    path = hub.find(source)
    reading = _from_original if path.is_file() else _from_folder
    config, open_state = reading(path, checkpoint.configs["gpt2"].new_vectors)
    checkpoint = replace(
        checkpoint,
        configs=checkpoint.configs | {"audiomae": config},
        states=checkpoint.states | {"audiomae": open_state},
        audiomae_source=source,
    )
    storage.check(checkpoint, f"{checkpoint.source} with AudioMAE of {source}")
    return checkpoint


def _from_original(path: Path, new_vectors: int) -> tuple[AudioMAEConfig, OpenState]:
    tensors = OriginalTable(path)
    found = places(tensors, SIGNATURES["audiomae"])
    if not found:
        raise _lacking(path)
    shapes = {key: tensor.shape for key, tensor in below(tensors, found[0]).items()}
    try:
        config = original_config(shapes, new_vectors)
    except (WeightsError, ArgumentError) as error:
        raise WeightsError(f"{path}: {error}") from error
    return config, Reading("audiomae", config, str(path), partial(_opened, tensors, found[0]))


def _opened(tensors: OriginalTable, place: str) -> Opened:
    state = below(tensors, place)
    return state, keymap.plan(state, ORIGINAL_ROWS, str(tensors.path))


def _from_folder(path: Path, new_vectors: int) -> tuple[AudioMAEConfig, OpenState]:
    """Read a converted folder, whose AudioMAE is pooled as its own GPT-2 needs it."""
    other = storage.read(path) if storage.is_converted(path) else None
    if other is None or "audiomae" not in other.configs:
        raise _lacking(path)
    return other.configs["audiomae"], other.states["audiomae"]


def _lacking(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} has no AudioMAE. Give an original file that has it, such as 'audioldm2-full.pth', or the "
        "folder that such a file was converted to."
    )
