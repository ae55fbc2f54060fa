"""The tensors of an original file under plain names, whatever training wrapped round them.

Training stores the table with its counters, optimizers and callbacks beside it, wrappers of modules add to
its keys, and a vocoder that was trained further has its weights as lengths and directions. All of that is
undone here, so that `original` sees one kind of table.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from audioldm2.errors import WeightsError, some

from . import hifigan
from .pickles import is_table, read_torch_file
from .sources import unwrapped

SIGNATURES = {  # the key that identifies a network, below wherever it lies
    "clap": "text_branch.embeddings.word_embeddings.weight",
    "t5": "shared.weight",
    "phonemes": "text_encoder.emb.weight",
    "projection": "start_of_sequence_tokens.weight",
    "gpt2": "wpe.weight",
    "audiomae": "cls_token",
    "unet": "input_blocks.0.0.weight",
    "vae": "post_quant_conv.weight",
    "hifigan": "conv_pre.weight",
}
EMA = "model_ema"  # the module with the running average of the UNet's weights


class OriginalTable(Mapping[str, Tensor]):
    """Every tensor of an original file by its plain name, memory-mapped.

    The file is opened at the first use. A copy, or what is unpickled in another process, holds the path alone
    and opens the file again, so a model that came from it can be sent without all of the file.
    """

    def __init__(self, path: Path, ema: bool = False):
        """ema: take the running average of the UNet's weights in place of the weights."""
        self.path, self.ema = path, ema
        self._tensors: dict[str, Tensor] | None = None

    def __reduce__(self) -> tuple:
        return OriginalTable, (self.path, self.ema)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them; WeightsError, which names the file, if it cannot be read."""
        if self._tensors is None:
            self._tensors = _read(self.path, self.ema)
        return self._tensors

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def places(tensors: Mapping[str, Tensor], signature: str) -> list[str]:
    """Return the modules that hold a network with this signature, the one nearest to the top first."""
    found = [key.removesuffix(f".{signature}") for key in tensors if key.endswith(f".{signature}")]
    return sorted(found, key=lambda place: place.count("."))


def below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Return the tensors below a module, by their keys below it."""
    prefix = f"{place}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _read(path: Path, ema: bool) -> dict[str, Tensor]:
    content = read_torch_file(path)
    table = content.get("state_dict", content)
    if not is_table(table):
        raise WeightsError(
            f"{path} does not hold a table of tensors under 'state_dict'; it is another kind of file. "
            "Give an original AudioLDM 2 checkpoint, such as 'audioldm2-full.pth'."
        )
    tensors = unwrapped({key: tensor.detach() for key, tensor in table.items()}, str(path))
    # The average's names have lost their dots, and with them the wrappers' bounds.
    tensors = {
        key.replace("_orig_mod", "") if key.startswith(f"{EMA}.") else key: tensor
        for key, tensor in tensors.items()
    }
    for _, direction in hifigan.WEIGHT_NORM_NAMES:
        for place in places(tensors, f"conv_pre.{direction}"):
            tensors = _folded(tensors, place, path)
    return _with_average(tensors, path) if ema else tensors


def _folded(tensors: dict[str, Tensor], place: str, path: Path) -> dict[str, Tensor]:
    """Replace the weight norm of the vocoder at `place` by its weights."""
    vocoder = below(tensors, place)
    try:
        folded = hifigan.fold_weight_norm(vocoder)
    except WeightsError as error:
        raise WeightsError(f"{path}, below '{place}': {error}") from error
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{place}.")}
    return others | {f"{place}.{key}": tensor for key, tensor in folded.items()}


def _with_average(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Replace the UNet's weights by their running average, whose names lack every dot."""
    names: dict[str, str] = {}
    for place in places(tensors, SIGNATURES["unet"])[:1]:
        above = f"{place.partition('.')[0]}."  # "model.", which the average's names leave out
        for key in tensors:
            if key.startswith(f"{place}."):
                names[key] = f"{EMA}.{key.removeprefix(above).replace('.', '')}"
    missing = [name for name in names.values() if name not in tensors]
    if missing or len(set(names.values())) < len(names):
        raise WeightsError(
            f"{path} has no running average of its UNet ({some(missing or list(names))} missing); "
            "convert it without --ema."
        )
    others = {key: tensor for key, tensor in tensors.items() if key not in names.values()}
    return others | {key: tensors[name] for key, name in names.items()}
