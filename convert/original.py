"""The original checkpoints: one .pth file with everything that training held, and no config.

What the file is, is read from it: a network lies wherever its key of SIGNATURES is found, its sizes are those
of its tensors, and what AudioLDM 2 never uses is dropped by name, with the reason. Any other key is an error.

Source of the layout: https://github.com/haoheliu/AudioLDM2, `latent_diffusion/models/ddpm.py`, and for what
training adds https://github.com/haoheliu/AudioLDM-training-finetuning.

Traps
- Most files hold CLAP and T5 twice. The copy nearer to the top is taken, as in the published twins of the
  diffusers layout; `differing_copies` compares.
- Heads, group counts, the vocoder's rates and the schedule's kind leave no trace in shapes: those of the
  published models stand in, and a config file may override them.
- The vocoder's tensors lie below the autoencoder's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from audioldm2.checkpoints import storage, validate
from audioldm2.errors import ArgumentError, WeightsError, some
from audioldm2.models import NETWORKS
from audioldm2.sampling.schedule import NoiseSchedule

from . import audiomae, gpt2, hifigan, keymap, original_clap, original_unet, phonemes, projection, t5, vae
from .configs import need
from .keymap import Move, Row, nest
from .original_table import EMA, SIGNATURES, OriginalTable, below, places
from .sources import Opened, Reading, unchanged

EMA_NOTE = "the running average of the UNet's weights; --ema takes it"
EMA_COUNTERS = "how the running average was made"
SCHEDULE = (  # buffers that follow from the noise schedule; `_schedule` reads the first two
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"),
    *("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights"),
    *("ddim_sigmas", "ddim_alphas", "ddim_alphas_prev", "ddim_sqrt_one_minus_alphas"),
    "ddim_sigmas_for_original_num_steps",
)
VAE_TRAINING = {  # what the autoencoder's training keeps beside it
    "loss": "the autoencoder's training loss: its discriminator, LPIPS and logvar",
    "colorize": "colours of a picture that training logs",
}
OF_SPEECH: dict[str, Any] = {  # fields of a speech model's Checkpoint that no tensor shows
    "symbols": phonemes.SYMBOLS, "seconds": phonemes.SECONDS, "unconditional": "trained",
}  # fmt: skip


@dataclass
class Original(storage.Checkpoint):
    """A Checkpoint from an original file, and what was left there."""

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
    """Read an original .pth file as a Checkpoint of our networks, memory-mapped; nothing is written.

    Args:
        path: the file.
        source: the name of its origin (default: the path).
        revision: the commit of its origin.
        heads: "trained": 32 wide, as upstream's; "config": 8 at every level, as the published twins' configs.
        ema: take the running average of the UNet's weights.
        config: {network: {field: value}} for what no tensor shows; "schedule" and "clap_mel" too.
        tokenizers: the folder of each of `storage.TOKENIZERS`, by name: the file has none.

    Raises:
        WeightsError: the file is not such a checkpoint; names the file and the first keys.
    """
    tensors = OriginalTable(path, ema)
    found = {name: places(tensors, signature) for name, signature in SIGNATURES.items()}
    absent = [name for name in ("unet", "vae", "hifigan") if not found[name]]
    if absent:
        raise WeightsError(
            f"{path} is not an original AudioLDM 2 checkpoint: it has no {some(absent)}. Such a file begins "
            "with keys like 'model.diffusion_model.input_blocks.0.0.weight'."
        )
    configs = _configs(tensors, found, path, config or {})
    if heads == "config":
        configs["unet"] = replace(configs["unet"], heads=(8,) * len(configs["unet"].channels))
    moves = keymap.plan(tensors, _rows(configs, found, ema), str(path))
    states: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for name in configs:
        own = [_moved_up(move, name) for move in moves if (move.target or "").startswith(f"{name}.")]
        finish = hifigan.with_mean_and_scale if name == "hifigan" else unchanged
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
        **(OF_SPEECH if "phonemes" in configs else {}),
        dropped=[move for move in moves if move.target is None],
        tensors=tensors,
        copies=found,
    )
    storage.check(checkpoint, str(path))
    return checkpoint


def differing_copies(checkpoint: Original) -> list[str]:
    """Return a sentence for each network that the file holds twice, not equally. Reads both from disk."""
    sentences = []
    for name, copies in checkpoint.copies.items():
        for copy in copies[1:]:
            taken, left = (below(checkpoint.tensors, each) for each in (copies[0], copy))
            differ = [
                key
                for key in {**taken, **left}
                if key not in taken or key not in left or not torch.equal(taken[key], left[key])
            ]
            if differ:
                sentences.append(
                    f"the file holds two copies of {name.upper()} that differ, at '{copies[0]}' (taken) and "
                    f"'{copy}' (left): {some(differ)} of {len(taken)} tensors."
                )
    return sentences


def _shapes_below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Size]:
    return {key: tensor.shape for key, tensor in below(tensors, place).items()}


def _configs(
    tensors: Mapping[str, Tensor], found: Mapping[str, list[str]], path: Path, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return each network's config, in the order of NETWORKS: from shapes, overridden by `given`."""
    shapes = {name: _shapes_below(tensors, copies[0]) for name, copies in found.items() if copies}
    for name in given:
        known = [name for name in NETWORKS if _shapes_of(name, shapes)]
        if name not in (*known, "schedule", "clap_mel"):
            known += ["schedule", "clap_mel"]
            raise WeightsError(f"the config file has an entry '{name}'; {path} has {', '.join(known)}.")
    try:
        configs = _configs_from_shapes(tensors, found, shapes, given)
    except (WeightsError, ArgumentError) as error:
        raise WeightsError(f"{path}: {error} Is this a whole original AudioLDM 2 checkpoint?") from error
    for name, fields in given.items():
        if name in configs:
            kind, what = NETWORKS[name][1], f"'{name}' of the config file"
            configs[name] = validate.build(kind, fields, what, configs[name])
    return {name: configs[name] for name in NETWORKS if name in configs}


def _shapes_of(name: str, shapes: Mapping[str, Any]) -> bool:
    """Whether the file has one of our networks; CLAP's two lie in one module."""
    return ("clap" if name.startswith("clap") else name) in shapes


def _configs_from_shapes(
    tensors: Mapping[str, Tensor],
    found: Mapping[str, list[str]],
    shapes: Mapping[str, dict[str, Size]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    configs: dict[str, Any] = {}
    if "clap" in shapes:
        configs["clap_text"] = original_clap.text_config_from_shapes(shapes["clap"])
        configs["clap_audio"] = original_clap.audio_config_from_shapes(shapes["clap"])
    if "t5" in shapes:
        configs["t5"] = t5.original_config(shapes["t5"])
    positions = 0
    if "phonemes" in shapes:
        encoder = found["phonemes"][0]
        configs["phonemes"] = phonemes.original_config(_shapes_below(tensors, f"{encoder}.text_encoder"))
        positions = need(shapes["phonemes"], "learnable_positional_embedding", 3)[2]
    if "projection" in shapes:
        configs["projection"] = projection.original_config(shapes["projection"], positions)
    if "gpt2" in shapes:
        new_vectors = phonemes.NEW_VECTORS if "phonemes" in shapes else gpt2.GPT2Config.new_vectors
        configs["gpt2"] = gpt2.original_config(shapes["gpt2"], new_vectors)
        if "audiomae" in shapes:
            configs["audiomae"] = audiomae.original_config(shapes["audiomae"], new_vectors)
    configs["vae"] = vae.original_config(shapes["vae"], _scaling_factor(tensors))
    vocoder = validate.typed("'hifigan' of the config file", given.get("hifigan", {}), dict)
    configs["hifigan"] = hifigan.original_config(shapes["hifigan"], vocoder)
    dims = [configs[name].dim if name in configs else None for name in ("gpt2", "t5")]
    configs["unet"] = original_unet.config_from_shapes(shapes["unet"], *dims)
    return configs


def _scaling_factor(tensors: Mapping[str, Tensor]) -> float:
    factor = tensors.get("scale_factor")
    if factor is None or factor.numel() != 1 or not factor.is_floating_point():
        raise WeightsError("'scale_factor', the number that scales latents, is missing or not one number.")
    return float(factor)


def _rows(configs: Mapping[str, Any], found: Mapping[str, list[str]], ema: bool) -> list[Row]:
    """Return the rows of the whole file: those of each network below its module, and what is dropped."""
    first = {name: copies[0] for name, copies in found.items() if copies}
    rows = [
        *nest(first["unet"], "unet", original_unet.rows(configs["unet"])),
        *nest(first["vae"], "vae", vae.original_rows(configs["vae"])),
        *nest(first["hifigan"], "hifigan", hifigan.original_rows(configs["hifigan"])),
        Row(EMA, None, note=EMA_COUNTERS if ema else EMA_NOTE, optional=True),
        Row("scale_factor", None, note="becomes the VAE's scaling_factor"),
        Row("logvar", None, note="a weight of the training loss", optional=True),
        *(Row(name, None, note="follows from the noise schedule", optional=True) for name in SCHEDULE),
        *(
            Row(f"{first['vae']}.{name}", None, note=note, optional=True)
            for name, note in VAE_TRAINING.items()
        ),
    ]
    if "clap_text" in configs:
        rows += nest(first["clap"], "clap_text", original_clap.text_rows(configs["clap_text"]))
        rows += nest(first["clap"], "clap_audio", original_clap.audio_rows(configs["clap_audio"]))
        rows += nest(first["clap"], "", original_clap.UNUSED_ROWS)
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
    if "audiomae" in configs:
        rows += nest(first["audiomae"], "audiomae", audiomae.ORIGINAL_ROWS)
    for name in ("clap", "t5"):
        for copy in found[name][1:]:
            rows.append(Row(copy, None, note=f"another copy of {name.upper()}, compared with the first"))
    for copy in found["clap"]:
        front_end = f"{copy.removesuffix('.model')}.mel_transform"
        rows.append(Row(front_end, None, note=original_clap.FRONT_END, optional=True))
    return rows


def _moved_up(move: Move, name: str) -> Move:
    return Move(move.source, (move.target or "").removeprefix(f"{name}."), move.row)


def _opened(tensors: Mapping[str, Tensor], moves: list[Move]) -> Opened:
    return {move.source: tensors[move.source] for move in moves}, moves


def _schedule(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the fields of `NoiseSchedule` that give the file's buffers; {}, with a warning, if none do.

    The buffers of a file in half precision are rounded too; the published schedule is tried first.
    """
    stored = [name for name in ("betas", "alphas_cumprod") if name in tensors and tensors[name].numel() > 1]
    if not stored:
        return {}
    noise = tensors[stored[0]].flatten()
    betas = noise.double() if stored[0] == "betas" else _betas(noise.double())
    ends = {"beta_start": round(float(betas[0]), 7), "beta_end": round(float(betas[-1]), 7)}
    near = max(1e-4, 2 * torch.finfo(noise.dtype).eps) if noise.is_floating_point() else 0.0
    candidates: tuple[dict[str, Any], ...] = (
        {},
        {"kind": "scaled_linear", **ends},
        {"kind": "linear", **ends},
    )
    for fields in candidates:
        with suppress(ValueError):  # ends that no schedule can have
            schedule = NoiseSchedule(**fields, steps=len(noise))
            expected = _betas(schedule.alpha_bar) if stored[0] == "betas" else schedule.alpha_bar
            if torch.allclose(noise.double(), expected, rtol=near, atol=0):
                return asdict(schedule)
    warnings.warn(
        f"{path} has a noise schedule (betas {float(betas[0]):g} to {float(betas[-1]):g}) that is neither "
        f"'scaled_linear' nor 'linear'; the published one is used: {NoiseSchedule()}.",
        stacklevel=2,
    )
    return {}


def _betas(alpha_bar: Tensor) -> Tensor:
    """Return the variance of the noise added at each time, from the products of 1 - beta; both (steps,)."""
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
