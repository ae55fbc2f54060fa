"""Reports: what a conversion does, whether a converted folder equals its source, what a checkpoint is."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError, some
from audioldm2.models import expected_shapes

from .clap import OTHER_BRANCH
from .keymap import Move
from .original import Original
from .sources import Reading


@dataclass
class Tally:
    """How many tensors of one network, or of what belongs to none, are read, renamed, changed and dropped."""

    read: int = 0  # tensors on our side: one of the source may be cut into several
    size: int = 0  # their bytes in the source
    sources: set[str] = field(default_factory=set)
    renamed: int = 0
    changed: Counter[str] = field(default_factory=Counter)  # name of the transform -> tensors
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> tensors
    dropped_size: Counter[str] = field(default_factory=Counter)  # reason -> bytes

    def add(self, move: Move, tensor: Tensor) -> None:
        """Count one tensor of the source."""
        if move.target is None:
            self.dropped[move.row.note] += 1
            self.dropped_size[move.row.note] += tensor.nbytes
            return
        self.read += 1
        self.size += tensor.nbytes if move.source not in self.sources else 0
        self.sources.add(move.source)
        self.renamed += move.source != move.target
        change = move.row.transform
        if change is not None and change.forward(tensor) is not tensor:  # it passes what it is not for
            self.changed[change.name] += 1


def tally(checkpoint: Checkpoint) -> dict[str, Tally]:
    """Count the tensors of each network, and under "" of what belongs to none; reads no value.

    In a converted folder nothing is renamed.
    """
    tallies = {}
    for name, reading in checkpoint.states.items():
        tallies[name] = counts = Tally()
        if isinstance(reading, Reading):
            tensors, moves = reading.open()
            for move in moves:
                if move.row.note != OTHER_BRANCH:  # the other network reads it
                    counts.add(move, tensors[move.source])
        else:
            for tensor in reading().values():
                counts.read, counts.size = counts.read + 1, counts.size + tensor.nbytes
    if isinstance(checkpoint, Original):
        tallies[""] = counts = Tally()
        for move in checkpoint.dropped:
            counts.add(move, checkpoint.tensors[move.source])
    return tallies


def lines(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """Yield the lines of a table: each network with counts and bytes, then what is dropped and why."""
    for name, counts in tallies.items():
        if name:
            done = [
                f"{counts.renamed} renamed",
                *(f"{count} {what}" for what, count in counts.changed.items()),
            ]
            yield f"{name:<11} {counts.read:>5} tensors {counts.size / 1e6:>9.1f} MB   {', '.join(done)}"
    for name, counts in tallies.items():
        for reason, count in counts.dropped.items():
            whose = f" of {name}" if name else ""
            size = counts.dropped_size[reason] / 1e6
            yield f"dropped     {count:>5} tensors {size:>9.1f} MB  {whose} {reason}"


def check_by_value(converted: Checkpoint, source: Checkpoint, folder: Path) -> int:
    """Compare every tensor of a converted folder with its source's, cast to the folder's dtype.

    Args:
        converted: the folder.
        source: the checkpoint that it was converted from.
        folder: the folder's path, for errors.

    Returns:
        The number of tensors.

    Raises:
        WeightsError: some differ; names the first.
    """
    ours, theirs = (_settings(each) for each in (converted, source))
    other = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if other:
        raise WeightsError(
            f"{folder} and {source.source} differ in the configs of {some(other)}. "
            f"{_why_differing(other, ours)}"
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


def _why_differing(differing: Sequence[str], ours: Mapping[str, Any]) -> str:
    if set(differing) != {"audiomae"}:
        return "Was it converted from another checkpoint, or with other --heads?"
    if "audiomae" in ours:
        return "Name the file that its AudioMAE came from: --audiomae FILE."
    return "It was converted before AudioMAE was kept, and loads as ever; convert it again to add that."


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return everything in a checkpoint but its tensors."""
    return checkpoint.configs | {
        "schedule": storage.schedule_of(checkpoint, checkpoint.source),
        "clap_mel": storage.clap_mel_of(checkpoint, checkpoint.source),
        "symbols": checkpoint.symbols,
        "pronunciations": checkpoint.pronunciations,
    }


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((theirs.to(ours.dtype) == ours).all())


def describe(checkpoint: Checkpoint, *, opened: bool = True) -> Iterator[str]:
    """Yield lines that describe a checkpoint. Sizes follow from the configs; no weight is read.

    opened: look for dtypes and bytes in the weight files, which have to be there.
    """
    configs = checkpoint.configs
    vocoder, denoiser, vae = configs["hifigan"], configs["unet"], configs["vae"]
    yield f"source        {checkpoint.source}"
    yield f"revision      {checkpoint.revision or 'not known'}"
    if checkpoint.audiomae_source is not None:
        yield f"AudioMAE      from {checkpoint.audiomae_source}"
    yield f"kind          {kind_of(checkpoint)}"
    yield f"sound         {vocoder.sample_rate} Hz, {vocoder.mels} mel bands, hop {vocoder.hop}"
    yield f"latent        {vae.latent_channels} channels, {vae.downsampling} mel frames and bands to one"
    yield f"heads         {', '.join(map(str, denoiser.heads))}"
    for each in checkpoint.merged:
        base = f", trained on {each['base_model']}" if "base_model" in each else ""
        yield f"adapter       {each.get('name')}, weight {each.get('weight')}, in the weights{base}"
    yield ""
    all_count = all_size = 0
    for name, config in configs.items():
        shapes = expected_shapes(name, config)
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
    """Return the kind of a model in words: its size, and the contexts of its denoiser."""
    denoiser = checkpoint.configs["unet"]
    if "phonemes" in checkpoint.configs:
        return "AudioLDM 2 speech: speaks phonemes, conditioned on GPT-2 over CLAP and phonemes"
    contexts = [name for name, role in (("GPT-2", "gpt2_attn"), ("T5", "t5_attn")) if role in denoiser.roles]
    contexts += ["CLAP beside the diffusion time"] if denoiser.film_dim else []
    if denoiser.roles >= {"gpt2_attn", "t5_attn"}:
        size = "large" if denoiser.depth > 1 else "base size"
        return f"AudioLDM 2, {size}: conditioned on {' and '.join(contexts)}"
    return f"AudioLDM, conditioned on {' and '.join(contexts)}"


def licence_of(source: str) -> str:
    """Return the licence of a source, as read on its publishers' pages in 2024 and 2025."""
    for part, words in LICENCES.items():
        if part in source:
            return f"{words}. That holds for converted copies too."
    return "not known for this source; the published AudioLDM 2 weights are not for commercial use."


LICENCES = {  # part of a source's name -> its licence; the first match counts
    "cvssp/audioldm2": "CC BY-NC-SA 4.0: not for commercial use, share alike",
    "anhnct/audioldm2": "CreativeML OpenRAIL-M: read its use restrictions",
    "audioldm2-speech": "OpenRAIL: read its use restrictions",
    "audioldm2-full": "CC BY-NC-ND 4.0: not for commercial use, no derivatives to be passed on",
    "audioldm_48k": "CC BY-NC 4.0: not for commercial use",
    "audioldm_16k_crossattn_t5": "CC BY-NC 4.0: not for commercial use",
    "scripts/demo_world": "MIT, as this package",
    "scripts/speech_demo": "MIT, as this package",
}
