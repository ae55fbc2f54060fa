"""The original checkpoints: one .pth file with everything that training held, and no config.

What the file is, is read from it: a network lies wherever its SIGNATURE is found, sizes are those of its
tensors, and what an AudioLDM 2 never uses is dropped by name, with the reason. Anything else is an error.

Source of the layout: https://github.com/haoheliu/AudioLDM2, `latent_diffusion/models/ddpm.py`.

Traps
- CLAP and T5 are stored two times in most files. The first, nearer to the top, is taken, as in the
  published twins; `differing_copies` compares.
- Heads, group counts, the vocoder's rates and the schedule's kind leave no trace in shapes: the published
  ones stand in, and a config file may say otherwise.
- The vocoder's tensors lie below the autoencoder's.

The file is long because all that such a file may hold is told in one place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from audioldm2.checkpoints import storage, validate
from audioldm2.errors import WeightsError, some
from audioldm2.models import NETWORKS
from audioldm2.sampling.schedule import NoiseSchedule

from . import clap, gpt2, hifigan, keymap, phonemes, projection, t5, unet, vae
from .configs import need
from .keymap import Move, Row, nest
from .sources import Opened, Reading, is_table, read_file

SIGNATURES = {  # the key by which a network is known, below wherever it lies
    "clap": "text_branch.embeddings.word_embeddings.weight",
    "t5": "shared.weight",
    "phonemes": "text_encoder.emb.weight",
    "projection": "start_of_sequence_tokens.weight",
    "gpt2": "wpe.weight",
    "unet": "input_blocks.0.0.weight",
    "vae": "post_quant_conv.weight",
    "hifigan": "conv_pre.weight",
}
EMA = "model_ema"
EMA_NOTE = "the running average of the UNet's weights; --ema takes it"
EMA_COUNTERS = "how the running average was made"
SCHEDULE = (  # of which the first alone is looked at
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"),
    *("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2"),
)
SPOKEN_VECTORS = 512  # that GPT-2 makes in a speech model, where others make 8; no tensor tells


@dataclass
class Original(storage.Checkpoint):
    """A Checkpoint out of an original file, with what was left there."""

    dropped: list[Move] = field(default_factory=list)  # what belongs to none of our networks
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # of the whole file, mapped
    copies: dict[str, list[str]] = field(default_factory=dict)  # network -> where it lies; the first is taken


def read_original(
    path: Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    heads: str = "trained",
    ema: bool = False,
    config: Mapping[str, Any] | None = None,
    tokenizers: Mapping[str, Path] | None = None,
) -> Original:
    """An original .pth file as a Checkpoint of our networks, memory-mapped; nothing is written.

    source, revision: what to call its origin (default: the file's path).
    heads:            "trained": 32 wide, as upstream's; "config": 8 at every level, as the published twins'.
    ema:              take the running average of the UNet's converted.
    config:           {network: {field: value}} for what the file cannot tell; "schedule" and "clap_mel" too.
    tokenizers:       the folder of each of `storage.TOKENIZERS`, by name: the file has none.
    Raises WeightsError, naming the file and the first offending keys.
    """
    tensors = _unwrapped(read_file(path), path)
    found = {name: _places(tensors, signature) for name, signature in SIGNATURES.items()}
    absent = [name for name in ("unet", "vae", "hifigan") if not found[name]]
    if absent:
        raise WeightsError(
            f"{path} is not an original AudioLDM 2 checkpoint: it has no {some(absent)}. Such a file begins "
            "with keys like 'model.diffusion_model.input_blocks.0.0.weight'."
        )
    if ema:
        tensors = _with_average(tensors, found["unet"][0], path)
    configs = _configs(tensors, found, path, config or {})
    if heads == "config":
        configs["unet"] = replace(configs["unet"], heads=(8,) * len(configs["unet"].channels))
    rows = _rows(configs, found, ema)
    moves = keymap.plan(tensors, rows, str(path))
    states = {}
    for name in configs:
        own = [_moved_up(move, name) for move in moves if (move.target or "").startswith(f"{name}.")]
        finish = hifigan.with_mean_and_scale if name == "hifigan" else _as_it_is
        states[name] = Reading(name, configs[name], str(path), partial(_opened, tensors, own), finish)
    settings, known = dict(config or {}), storage.tokenizers_of(configs)
    checkpoint = Original(
        configs=configs,
        states=states,
        schedule=_schedule(tensors, path) | settings.pop("schedule", {}),
        clap_mel=settings.pop("clap_mel", {}),
        tokenizers={name: folder for name, folder in (tokenizers or {}).items() if name in known},
        source=source or str(path),
        revision=revision,
        symbols=phonemes.SYMBOLS if "phonemes" in configs else None,
        dropped=[move for move in moves if move.target is None],
        tensors=tensors,
        copies=found,
    )
    storage.check(checkpoint, str(path))
    return checkpoint


def differing_copies(checkpoint: Original) -> list[str]:
    """A sentence for each network of which the file holds two that are not equal. Reads both from disk."""
    sentences = []
    for name, places in checkpoint.copies.items():
        for place in places[1:]:
            taken, left = (_tensors_below(checkpoint.tensors, each) for each in (places[0], place))
            differ = [
                key
                for key in {**taken, **left}
                if key not in taken or key not in left or not torch.equal(taken[key], left[key])
            ]
            if differ:
                sentences.append(
                    f"the file holds two copies of {name.upper()} that differ, at '{places[0]}' (taken) and "
                    f"'{place}' (left): {some(differ)} of {len(taken)} tensors."
                )
    return sentences


def _unwrapped(tensors: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The table of tensors, which training wraps with its counters and, on several devices, with a prefix."""
    table = tensors.get("state_dict", tensors)
    if not is_table(table):
        raise WeightsError(
            f"{path} does not hold a table of tensors under 'state_dict'; it is another kind of file. "
            "Give an original AudioLDM 2 checkpoint, such as 'audioldm2-full.pth'."
        )
    wrapped = bool(table) and all(key.startswith("module.") for key in table)
    return {key.removeprefix("module." if wrapped else ""): tensor.detach() for key, tensor in table.items()}


def _places(tensors: Mapping[str, Tensor], signature: str) -> list[str]:
    """Where a network lies, the place nearest to the top first."""
    found = [key.removesuffix(f".{signature}") for key in tensors if key.endswith(f".{signature}")]
    return sorted(found, key=lambda place: place.count("."))


def _tensors_below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{place}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{place}.")
    }


def _below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Size]:
    return {key: tensor.shape for key, tensor in _tensors_below(tensors, place).items()}


def _configs(
    tensors: Mapping[str, Tensor], found: Mapping[str, list[str]], path: Path, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Each network's config, in the order of NETWORKS: read from shapes, then as the config file says."""
    shapes = {name: _below(tensors, places[0]) for name, places in found.items() if places}
    spoken = bool(found["phonemes"])
    made: dict[str, Any] = {}
    try:
        if "clap" in shapes:
            made["clap_text"] = clap.original_text_config(shapes["clap"])
            made["clap_audio"] = clap.original_audio_config(shapes["clap"])
        if "t5" in shapes:
            made["t5"] = t5.original_config(shapes["t5"])
        positions = 0
        if spoken:
            encoder = found["phonemes"][0]
            made["phonemes"] = phonemes.original_config(_below(tensors, f"{encoder}.text_encoder"))
            table = "learnable_positional_embedding"
            positions = need(_below(tensors, encoder), table, 3)[2]
        if "projection" in shapes:
            made["projection"] = projection.original_config(shapes["projection"], positions)
        if "gpt2" in shapes:
            new_vectors = SPOKEN_VECTORS if spoken else gpt2.GPT2Config.new_vectors
            made["gpt2"] = gpt2.original_config(shapes["gpt2"], new_vectors)
        made["vae"] = vae.original_config(shapes["vae"], _scaling_factor(tensors))
        made["hifigan"] = hifigan.original_config(shapes["hifigan"])
        dims = [made[name].dim if name in made else None for name in ("gpt2", "t5")]
        made["unet"] = unet.original_config(shapes["unet"], *dims)
    except WeightsError as error:
        raise WeightsError(
            f"{path}: {error} Is this an original AudioLDM 2 checkpoint, and whole?"
        ) from error
    for name, fields in given.items():
        if name not in (known := (*made, "schedule", "clap_mel")):
            raise WeightsError(f"the config file speaks of '{name}'; {path} has {', '.join(known)}.")
        if name in made:
            kind, what = NETWORKS[name][1], f"'{name}' of the config file"
            made[name] = validate.build(kind, fields, what, made[name])
    if not made["hifigan"].upsample_rates:
        raise WeightsError(
            f"{path}: its vocoder has kernels {made['hifigan'].upsample_kernels}, which no published one "
            "has, and no tensor tells its rates. Give a config file with "
            '{"hifigan": {"upsample_rates": [...], "sample_rate": ...}}.'
        )
    return {name: made[name] for name in NETWORKS if name in made}


def _scaling_factor(tensors: Mapping[str, Tensor]) -> float:
    factor = tensors.get("scale_factor")
    if factor is None or factor.numel() != 1 or not factor.is_floating_point():
        raise WeightsError("'scale_factor' is not there, or no number: what latents are scaled by.")
    return float(factor)


def _rows(configs: Mapping[str, Any], found: Mapping[str, list[str]], ema: bool) -> list[Row]:
    """The rows of the whole file: those of each network under its place, and what is dropped."""
    first = {name: places[0] for name, places in found.items() if places}
    rows = [
        *nest(first["unet"], "unet", unet.original_rows(configs["unet"])),
        *nest(first["vae"], "vae", vae.original_rows(configs["vae"])),
        *nest(first["hifigan"], "hifigan", hifigan.original_rows(configs["hifigan"])),
        Row(EMA, None, note=EMA_COUNTERS if ema else EMA_NOTE, optional=True),
        Row("scale_factor", None, note="becomes the VAE's scaling_factor"),
        Row("logvar", None, note="a weight of the training loss", optional=True),
        *(Row(name, None, note="follows from the noise schedule", optional=True) for name in SCHEDULE),
    ]
    if "clap_text" in configs:
        rows += nest(first["clap"], "clap_text", clap.original_text_rows(configs["clap_text"]))
        rows += nest(first["clap"], "clap_audio", clap.original_audio_rows(configs["clap_audio"]))
        rows += nest(first["clap"], "", clap.ORIGINAL_UNUSED)
    if "t5" in configs:
        rows += nest(first["t5"], "t5", t5.rows(configs["t5"]))
    if "phonemes" in configs:
        encoder = f"{first['phonemes']}.text_encoder"
        rows += nest(encoder, "phonemes", phonemes.original_rows(configs["phonemes"]))
        rows += nest(first["phonemes"], "projection", [projection.POSITIONS])
    if "projection" in configs:
        rows += nest(first["projection"], "projection", projection.ORIGINAL_ROWS)
    if "gpt2" in configs:
        rows += nest(first["gpt2"], "gpt2", gpt2.rows(configs["gpt2"]))
    for name in ("clap", "t5"):
        rows += [
            Row(place, None, note=f"another copy of {name.upper()}, compared with the first")
            for place in found[name][1:]
        ]
    for place in found["clap"]:
        rows.append(
            Row(f"{place.removesuffix('.model')}.mel_transform", None, note=clap.FRONT_END, optional=True)
        )
    if "projection" in first:
        audio = "the audio encoder (AudioMAE) that GPT-2 was taught by"
        rows.append(Row(f"{first['projection']}.cond_stage_models.2", None, note=audio, optional=True))
    return rows


def _moved_up(move: Move, name: str) -> Move:
    return Move(move.source, move.target.removeprefix(f"{name}."), move.row)


def _opened(tensors: Mapping[str, Tensor], moves: list[Move]) -> Opened:
    return {move.source: tensors[move.source] for move in moves}, moves


def _as_it_is(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    return state


def _with_average(tensors: Mapping[str, Tensor], place: str, path: Path) -> dict[str, Tensor]:
    """The UNet's weights replaced by their running average, whose names lack every dot."""
    above = place.partition(".")[0]  # "model", which the average's names leave out
    names = {
        key: f"{EMA}.{key.removeprefix(f'{above}.').replace('.', '')}"
        for key in tensors
        if key.startswith(f"{place}.")
    }
    missing = [name for name in names.values() if name not in tensors]
    if missing or len(set(names.values())) < len(names):
        raise WeightsError(
            f"{path} has no running average of its UNet ({some(missing or list(names))} missing); "
            "convert it without --ema."
        )
    others = {key: tensor for key, tensor in tensors.items() if key not in names.values()}
    return others | {key: tensors[name] for key, name in names.items()}


def _schedule(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The fields of `samplers.NoiseSchedule` that make the file's noise; none, with a warning, if none do.

    A file of half precision has its noise rounded too: then the published schedule, if it fits, is meant.
    """
    stored = [name for name in ("betas", "alphas_cumprod") if name in tensors and tensors[name].numel() > 1]
    if not stored:
        return {}
    noise = tensors[stored[0]].flatten()
    betas = noise.double() if stored[0] == "betas" else _betas(noise.double())
    ends = {"beta_start": round(float(betas[0]), 7), "beta_end": round(float(betas[-1]), 7)}
    near = max(1e-4, 2 * torch.finfo(noise.dtype).eps) if noise.is_floating_point() else 0.0
    for fields in ({}, {"kind": "scaled_linear", **ends}, {"kind": "linear", **ends}):
        with suppress(ValueError):  # ends that no schedule has
            schedule = NoiseSchedule(**fields, steps=len(noise))
            expected = _betas(schedule.alpha_bar) if stored[0] == "betas" else schedule.alpha_bar
            if torch.allclose(noise.double(), expected, rtol=near, atol=0):
                return asdict(schedule)
    warnings.warn(
        f"{path} has a noise schedule (betas {float(betas[0]):g} to {float(betas[-1]):g}) that is neither "
        f"'scaled_linear' nor 'linear'; the published one is taken: {NoiseSchedule()}.",
        stacklevel=2,
    )
    return {}


def _betas(alpha_bar: Tensor) -> Tensor:
    """The variance of the noise added at each time, of what is left of the signal after it, both (steps,)."""
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
