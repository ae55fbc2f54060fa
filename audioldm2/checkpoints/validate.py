"""Configurations out of files, held against what the networks can be, before any network is built.

A config.json may be damaged, edited, or of another model. Here that is a WeightsError with a sentence;
without this it would be any error, at any time. Types follow from the dataclasses' annotations, and RULES
holds what those cannot say. It is long because each network has its rules here, one function a network.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from operator import ge
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from audioldm2.audio import MelSettings
from audioldm2.errors import WeightsError, some
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.models.phonemes import PhonemesConfig
from audioldm2.models.unet import GPT2, LAST_SELF, SELF, T5, UNetConfig
from audioldm2.models.vae import VAEConfig

LARGEST = 1_000_000  # of whole numbers; the published models' largest is 50,265
MOST_BLOCKS = 100  # of what is counted in blocks, so that a wrong digit cannot build for hours
COUNTS = ("depth", "depths", "layers")
MAY_BE_ZERO = (
    *("padding_id", "dropout", "slope", "eps", "steps_offset", "f_min"),
    *("film_dim", "positions"),  # 0: there is none
)

WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    dict: "an object",
    NoneType: "null",
}


def typed(what: str, value: Any, kind: Any) -> Any:
    """A value from JSON, lists as tuples; WeightsError, which calls it `what`, unless it is of a kind.

    kind: int, float (a whole number will do), bool, str, dict, tuple[kind, ...], or a union of such and None.
    """
    if not _fits(value, kind):
        raise WeightsError(f"{what} is {value!r:.80}; it has to be {_words(kind)}.")
    return _tuples(value)


def build(kind: type, values: Any, what: str, default: Any = None) -> Any:
    """A dataclass from a JSON object: each field of its type, none unknown, none missing.

    default: an instance whose fields stand in for missing ones.
    Raises WeightsError, which calls the object `what`; so it does when the dataclass refuses the values.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{what} is {values!r:.80}; it has to be an object.")
    kinds = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    odd = sorted(set(values) - known if default else set(values) ^ known)
    if odd:
        raise WeightsError(
            f"{what} and this version differ in {', '.join(odd)}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    given = {name: typed(f"{name} of {what}", value, kinds[name]) for name, value in values.items()}
    try:
        return kind(**given) if default is None else replace(default, **given)
    except ValueError as error:
        raise WeightsError(f"{what} is refused: {error}") from error


def check(name: str, config: Any, where: str) -> None:
    """Raise WeightsError unless what `name` stands for in RULES can be built and run with this config."""
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value = typed(f"{field.name} of '{name}' in {where}", getattr(config, field.name), kinds[field.name])
        zero, most = field.name in MAY_BE_ZERO, MOST_BLOCKS if field.name in COUNTS else LARGEST
        for number in _numbers(value):
            if not (0 <= number <= most and (number or zero)):
                raise WeightsError(
                    f"{field.name} of '{name}' in {where} is {value!r:.80}; "
                    f"it has to be {'from' if zero else 'above'} 0, and {most:,} at most."
                )
    for holds, sentence in RULES[name](config):
        if not holds:
            raise WeightsError(f"the config of '{name}' in {where} cannot work: {sentence}.")


def needed(unet: UNetConfig) -> set[str]:
    """The networks without which this denoiser cannot be told a prompt, or its latents be heard.

    What it hears from GPT-2 comes from two text encoders; the second is "t5", or "phonemes" in speech models.
    """
    names = {"unet", "vae", "hifigan"}
    if unet.film_dim:
        names |= {"clap_text"}
    if T5 in unet.roles:
        names |= {"t5"}
    if GPT2 in unet.roles:
        names |= {"clap_text", "projection", "gpt2"}
    return names


def check_together(configs: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError unless all networks are there that are needed, and they fit each other."""
    unet = configs.get("unet")
    missing = sorted(needed(unet) - set(configs)) if unet else ["unet"]
    if not missing and GPT2 in unet.roles and not {"t5", "phonemes"} & set(configs):
        missing = ["t5"]
    if missing:
        raise WeightsError(
            f"{where} lacks the networks {some(missing)}, without which there is no sound. "
            "Download or convert the checkpoint again."
        )
    second = "phonemes" if "phonemes" in configs else "t5"
    pairs = [  # what one network gives, what the next one takes; only where both are there
        ("projection_dim of 'clap_text'", "clap_dim of 'projection'", True),
        (f"dim of '{second}'", "t5_dim of 'projection'", True),
        ("gpt2_dim of 'projection'", "dim of 'gpt2'", True),
        ("dim of 'gpt2'", "gpt2_dim of 'unet'", GPT2 in unet.roles),
        (f"dim of '{second}'", "t5_dim of 'unet'", T5 in unet.roles),
        ("projection_dim of 'clap_text'", "film_dim of 'unet'", unet.film_dim > 0),
        ("latent_channels of 'unet'", "latent_channels of 'vae'", True),
        ("projection_dim of 'clap_text'", "projection_dim of 'clap_audio'", True),
    ]
    for given, taken, counts in pairs:
        one, other = (_named(configs, each) for each in (given, taken))
        if counts and None not in (one, other) and one != other:
            raise WeightsError(
                f"the networks in {where} do not fit: {given} is {one} and {taken} is {other}."
            )
    mels, downsampling = configs["hifigan"].mels, configs["vae"].downsampling
    if mels % downsampling:
        raise WeightsError(
            f"the networks in {where} do not fit: "
            f"mels of 'hifigan' is {mels}, no multiple of the VAE's {downsampling}."
        )


def _named(configs: Mapping[str, Any], what: str) -> Any:
    """The value that "FIELD of 'NETWORK'" names; None where the network is not there."""
    field, network = what.rstrip("'").split(" of '")
    return getattr(configs.get(network), field, None)


# What has to hold inside one network: pairs of whether it does, and the sentence ----------------------------

Rule = tuple[bool, str]


def _heads(config: Any) -> list[Rule]:
    words = f"dim ({config.dim}) has to be a multiple of heads ({config.heads})"
    return [(config.dim % config.heads == 0, words)]


def _t5(config: Any) -> list[Rule]:
    return [
        (config.buckets >= 4, f"buckets is {config.buckets}; it has to be at least 4"),
        (
            config.max_distance > config.buckets // 4,
            f"max_distance ({config.max_distance}) has to be above a fourth of buckets ({config.buckets})",
        ),
    ]


def _phonemes(config: PhonemesConfig) -> list[Rule]:
    words = f"ff_kernel is {config.ff_kernel}; it has to be {MOST_BLOCKS} at most"
    return [*_heads(config), (config.ff_kernel <= MOST_BLOCKS, words)]


ROLES = {SELF, GPT2, T5, LAST_SELF}


def _unet(config: UNetConfig) -> list[Rule]:
    levels = list(zip(config.channels, config.heads, config.transformers, strict=False))
    return [
        (
            len(config.channels) == len(config.heads) == len(config.transformers) > 0,
            "channels, heads and transformers need one entry a level each, and at least one",
        ),
        (_all_multiples(config.channels, config.norm_groups), _groups(config)),
        (
            all(channels % heads == 0 for channels, heads, roles in levels if roles),
            f"channels {config.channels} with transformers have to be multiples of heads {config.heads}",
        ),
        (config.channels[:1] != () and config.channels[0] % 2 == 0, "the first of channels has to be even"),
        (
            all({*roles} <= ROLES and len({*roles}) == len(roles) for _, _, roles in levels),
            f"transformers {config.transformers} may name each of {', '.join(sorted(ROLES))} once a level",
        ),
    ]  # fmt: skip


def _vae(config: VAEConfig) -> list[Rule]:
    return [
        (len(config.channels) > 0, "channels needs at least one level"),
        (_all_multiples(config.channels, config.norm_groups), _groups(config)),
        (config.mel_channels == 1, f"mel_channels is {config.mel_channels}; a spectrogram has 1"),
    ]


def _hifigan(config: HiFiGANConfig) -> list[Rule]:
    stages = len(config.upsample_rates)
    return [
        (
            stages == len(config.upsample_kernels) > 0,
            "upsample_rates and upsample_kernels need one entry a stage each, and at least one",
        ),
        (
            all(map(ge, config.upsample_kernels, config.upsample_rates)),
            f"upsample_kernels {config.upsample_kernels} must not be below rates {config.upsample_rates}",
        ),
        (config.channels >= 2**stages, f"channels ({config.channels}) cannot be halved {stages} times"),
        (
            len(config.branch_kernels) == len(config.branch_dilations) > 0,
            "branch_kernels and branch_dilations need one entry a branch each, and at least one",
        ),
        (
            all(kernel % 2 for kernel in config.branch_kernels),
            f"branch_kernels {config.branch_kernels} have to be odd",
        ),
    ]  # fmt: skip


def _clap_audio(config: ClapAudioConfig) -> list[Rule]:
    dims = [config.dim * 2**stage for stage in range(len(config.depths))]
    return [
        (
            len(config.depths) == len(config.heads) > 0,
            "depths and heads need one entry a stage each, and at least one",
        ),
        (
            all(dim % heads == 0 for dim, heads in zip(dims, config.heads, strict=False)),
            f"the stages' widths {dims} have to be multiples of heads {config.heads}",
        ),
        (all(dim <= LARGEST for dim in dims), f"the stages' widths {dims} may be {LARGEST:,} at most"),
        (config.spec_size % config.mels == 0, f"spec_size ({config.spec_size}) has to be a multiple of mels"),
        (
            config.patch_stride <= config.patch_size <= config.spec_size,
            f"patch_size ({config.patch_size}) has to lie between patch_stride and spec_size",
        ),
        (int(config.ff_ratio * config.dim) > 0, f"ff_ratio ({config.ff_ratio}) leaves no feed-forward"),
        (config.dropout < 1, f"dropout is {config.dropout}; it has to be below 1"),
    ]


def _mel(settings: MelSettings) -> list[Rule]:
    return [
        (
            settings.f_min < settings.f_max <= settings.sample_rate / 2,
            f"f_min ({settings.f_min}) < f_max ({settings.f_max}) <= half the sample rate has to hold",
        ),
        (
            settings.n_fft % 2 == 0 and settings.n_fft <= settings.sample_rate,
            f"n_fft ({settings.n_fft}) has to be even, and a second at most",
        ),
    ]


def _all_multiples(channels: tuple[int, ...], groups: int) -> bool:
    return all(width % groups == 0 for width in channels)


def _groups(config: Any) -> str:
    return f"channels {config.channels} have to be multiples of norm_groups ({config.norm_groups})"


RULES: dict[str, Callable[[Any], list[Rule]]] = {
    "clap_text": lambda config: [
        *_heads(config),
        (
            config.padding_id < config.vocabulary,
            f"padding_id ({config.padding_id}) has to be below vocabulary ({config.vocabulary})",
        ),
    ],
    "t5": _t5,
    "phonemes": _phonemes,
    "projection": lambda config: [],
    "gpt2": _heads,
    "unet": _unet,
    "vae": _vae,
    "hifigan": _hifigan,
    "clap_audio": _clap_audio,
    "schedule": lambda schedule: [],
    "clap_mel": _mel,
}


# Types ------------------------------------------------------------------------------------------------------


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(each, get_args(kind)[0]) for each in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and -1e300 < value < 1e300
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_words(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each entry {_words(get_args(kind)[0])}"
    return WORDS[kind]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> list[int | float]:
    """Every number in a value, however deep; texts and flags are none."""
    if isinstance(value, tuple):
        return [number for each in value for number in _numbers(each)]
    return [] if isinstance(value, (bool, str)) else [value]
