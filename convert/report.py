"""What a conversion does, in lines, and whether a converted folder holds what its source holds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError, some

from .clap import OTHER_BRANCH
from .keymap import Move
from .original import Original
from .sources import Reading


@dataclass
class Tally:
    """Of one network, or of what belongs to none: how many tensors went which way."""

    read: int = 0  # tensors that they became: one may be cut into several
    size: int = 0  # bytes of them in the source
    sources: set[str] = field(default_factory=set)
    renamed: int = 0
    changed: Counter[str] = field(default_factory=Counter)  # name of the transform -> tensors
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> tensors
    dropped_size: Counter[str] = field(default_factory=Counter)  # reason -> bytes

    def add(self, move: Move, tensor: Tensor) -> None:
        if move.target is None:
            self.dropped[move.row.note] += 1
            self.dropped_size[move.row.note] += tensor.nbytes
            return
        self.read += 1
        self.size += tensor.nbytes if move.source not in self.sources else 0
        self.sources.add(move.source)
        self.renamed += move.source != move.target
        change = move.row.transform
        if change is not None and change.forward(tensor) is not tensor:  # what it is not for passes
            self.changed[change.name] += 1


def tally(checkpoint: Checkpoint) -> dict[str, Tally]:
    """For each network, and under "" for what the source holds besides; no value is read.

    A converted folder is read as it is: nothing is renamed.
    """
    tallies = {}
    for name, reading in checkpoint.states.items():
        tallies[name] = made = Tally()
        if isinstance(reading, Reading):
            tensors, moves = reading.open()
            for move in moves:
                if move.row.note != OTHER_BRANCH:  # it is read, for the other network
                    made.add(move, tensors[move.source])
        else:
            for tensor in reading().values():
                made.read, made.size = made.read + 1, made.size + tensor.nbytes
    if isinstance(checkpoint, Original):
        tallies[""] = made = Tally()
        for move in checkpoint.dropped:
            made.add(move, checkpoint.tensors[move.source])
    return tallies


def lines(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """A table: each network with counts and bytes, then what is dropped and why."""
    for name, made in tallies.items():
        if name:
            done = [f"{made.renamed} renamed", *(f"{count} {what}" for what, count in made.changed.items())]
            yield f"{name:<11} {made.read:>5} tensors {made.size / 1e6:>9.1f} MB   {', '.join(done)}"
    for name, made in tallies.items():
        for reason, count in made.dropped.items():
            whose = f" of {name}" if name else ""
            size = made.dropped_size[reason] / 1e6
            yield f"dropped     {count:>5} tensors {size:>9.1f} MB  {whose} {reason}"


def check_by_value(converted: Checkpoint, source: Checkpoint, folder: Path) -> int:
    """Compare every tensor of a converted folder with its source's, cast as it was; returns their number.

    Raises WeightsError, naming the first that differ.
    """
    ours, theirs = (_settings(each) for each in (converted, source))
    other = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if other:
        raise WeightsError(
            f"{folder} and {source.source} differ in the configs of {some(other)}. "
            "Was it converted from another checkpoint, or with other --heads?"
        )
    count = 0
    for name, open_state in converted.states.items():
        ours, theirs = open_state(), source.states[name]()
        differ = [key for key, tensor in ours.items() if not _same(tensor, theirs[key])]
        if differ:
            raise WeightsError(
                f"'{name}' in {folder} is not what {source.source} holds: of {len(ours)} tensors "
                f"{some(differ)} differ. Convert it again with --force."
            )
        count += len(ours)
    return count


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that a checkpoint says beside its converted."""
    return checkpoint.configs | {
        "schedule": storage.schedule_of(checkpoint, checkpoint.source),
        "clap_mel": storage.hearing_of(checkpoint, checkpoint.source),
        "symbols": checkpoint.symbols,
    }


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((theirs.to(ours.dtype) == ours).all())


def describe(checkpoint: Checkpoint, *, opened: bool = True) -> Iterator[str]:
    """What a checkpoint is, in lines. Sizes follow from the configs; no weight is read.

    opened: look into the weight files, which have to be there, for dtypes and bytes.
    """
    configs = checkpoint.configs
    vocoder, denoiser, vae = configs["hifigan"], configs["unet"], configs["vae"]
    yield f"source        {checkpoint.source}"
    yield f"revision      {checkpoint.revision or 'not known'}"
    yield f"kind          {kind_of(checkpoint)}"
    yield f"sound         {vocoder.sample_rate} Hz, {vocoder.mels} mel bands, hop {vocoder.hop}"
    yield f"latent        {vae.latent_channels} channels, {vae.downsampling} mel frames and bands to one"
    yield f"heads         {', '.join(map(str, denoiser.heads))}"
    yield ""
    all_count = all_size = 0
    for name, config in configs.items():
        shapes = storage.expected_shapes(name, config)
        count = sum(shape.numel() for shape in shapes.values())
        words = f"{name:<11} {len(shapes):>5} tensors {count:>13,} values"
        if opened:
            state = checkpoint.states[name]()
            size = sum(each.nbytes for each in state.values())
            dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in state.values()})
            words += f" {size / 1e6:>9.1f} MB  {', '.join(dtypes)}"
            all_size += size
        yield words
        all_count += count
    yield f"{'all':<11} {'':>13} {all_count:>13,} values" + (f" {all_size / 1e6:>9.1f} MB" if opened else "")
    yield ""
    yield f"licence       {licence_of(checkpoint.source)}"


def kind_of(checkpoint: Checkpoint) -> str:
    """In words, what the denoiser is told a prompt by."""
    denoiser = checkpoint.configs["unet"]
    if "phonemes" in checkpoint.configs:
        return "AudioLDM 2 speech: GPT-2 over CLAP and phonemes (converted and kept; it cannot be run yet)"
    heard = [name for name, role in (("GPT-2", "gpt2_attn"), ("T5", "t5_attn")) if role in denoiser.roles]
    heard += ["CLAP beside the diffusion time"] if denoiser.film_dim else []
    if denoiser.roles >= {"gpt2_attn", "t5_attn"}:
        size = "large" if denoiser.depth > 1 else "base size"
        return f"AudioLDM 2, {size}: hears {' and '.join(heard)}"
    return f"AudioLDM, hears {' and '.join(heard)}"


def licence_of(source: str) -> str:
    """What the publishers of a source say about its use, as read on their pages in 2024 and 2025."""
    for part, words in LICENCES.items():
        if part in source:
            return f"{words}. That holds for converted copies too."
    return "not known for this source; the published AudioLDM 2 weights are not for commercial use."


LICENCES = {  # by what the name of a source contains; the first that fits
    "cvssp/audioldm2": "CC BY-NC-SA 4.0: not for commercial use, share alike",
    "anhnct/audioldm2": "CreativeML OpenRAIL-M: read its use restrictions",
    "audioldm2-speech": "OpenRAIL: read its use restrictions",
    "audioldm2-full": "CC BY-NC-ND 4.0: not for commercial use, no derivatives to be passed on",
    "audioldm_48k": "CC BY-NC 4.0: not for commercial use",
    "audioldm_16k_crossattn_t5": "CC BY-NC 4.0: not for commercial use",
}
