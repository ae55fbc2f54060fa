"""Reads JSON strictly into config dataclasses, and checks that the networks of a checkpoint fit together.

A config.json may be damaged, edited or of another model. Types follow from the dataclasses' annotations, and
what a config allows stands in its `__post_init__`; here every violation becomes a WeightsError that names the
file, the network and the field.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from audioldm2.errors import ArgumentError, WeightsError, shown, some
from audioldm2.models.unet import GPT2, T5, UNetConfig

TYPE_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    dict: "an object",
    NoneType: "null",
}


def typed(what: str, value: Any, kind: Any) -> Any:
    """Return a value from JSON, lists as tuples, if it has the type `kind`.

    Args:
        what: what to call the value in an error, such as "'seconds' in base/config.json".
        value: the value, as `json.loads` returns it.
        kind: int, float (which admits whole numbers), bool, str, dict, tuple[kind, ...], or a union of these
            and None.

    Raises:
        WeightsError: the value has another type.
    """
    if not _has_type(value, kind):
        raise WeightsError(f"{what} is {shown(value)}; it has to be {_type_name(kind)}.")
    return _as_tuples(value)


def build(kind: type, values: Any, what: str, default: Any = None) -> Any:
    """Build a dataclass from a JSON object: every field typed, none unknown, none missing.

    Args:
        kind: the dataclass.
        values: the object.
        what: what to call the object in an error, such as "'unet' in base/config.json".
        default: an instance that supplies the fields the object leaves out.

    Raises:
        WeightsError: the object does not have these fields, or the dataclass rejects a value.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{what} is {shown(values)}; it has to be an object.")
    kinds = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    odd = sorted(set(values) - known if default else set(values) ^ known)
    if odd:
        raise WeightsError(
            f"{what} and this version differ in {', '.join(odd)}. "
            "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
        )
    given = {name: typed(f"{name} of {what}", value, kinds[name]) for name, value in values.items()}
    with naming_fields(what):
        return kind(**given) if default is None else replace(default, **given)


@contextmanager
def naming_fields(what: str) -> Iterator[None]:
    """Turn an error about a config's field into a WeightsError that says where the config comes from."""
    try:
        yield
    except ArgumentError as error:
        raise WeightsError(error.sentence(f"{error.name} of {what}")) from error
    except ValueError as error:
        raise WeightsError(f"{what} cannot be used: {error}") from error


def required_networks(unet: UNetConfig) -> set[str]:
    """Return the networks without which this denoiser cannot get a prompt or its latents become no sound.

    GPT-2's input comes from two text encoders. The second is not in this set: it is "t5", or "phonemes" in
    speech models.
    """
    names = {"unet", "vae", "hifigan"}
    if unet.film_dim:
        names |= {"clap_text"}
    if T5 in unet.roles:
        names |= {"t5"}
    if GPT2 in unet.roles:
        names |= {"clap_text", "projection", "gpt2"}
    return names


def _lacking(where: str, networks: list[str]) -> WeightsError:
    return WeightsError(
        f"{where} lacks the networks {some(networks)}, without which there is no sound. "
        "Download or convert the checkpoint again."
    )


def check_together(configs: Mapping[str, Any], where: str) -> None:
    """Check that all required networks are there and that one's output fits the next one's input.

    Args:
        configs: each network's config, by the network's name.
        where: the file or folder that the configs come from.

    Raises:
        WeightsError: a network is missing, or two sizes differ.
    """
    if "unet" not in configs:
        raise _lacking(where, ["unet"])
    unet = configs["unet"]
    missing = sorted(required_networks(unet) - set(configs))
    if not missing and GPT2 in unet.roles and not {"t5", "phonemes"} & set(configs):
        missing = ["t5"]
    if missing:
        raise _lacking(where, missing)
    second = "phonemes" if "phonemes" in configs else "t5"
    pairs = [  # (network, its output size), (network, its input size), whether the one feeds the other
        (("clap_text", "projection_dim"), ("projection", "clap_dim"), True),
        ((second, "dim"), ("projection", "t5_dim"), True),
        (("projection", "gpt2_dim"), ("gpt2", "dim"), True),
        (("gpt2", "dim"), ("unet", "gpt2_dim"), GPT2 in unet.roles),
        ((second, "dim"), ("unet", "t5_dim"), T5 in unet.roles),
        (("clap_text", "projection_dim"), ("unet", "film_dim"), unet.film_dim > 0),
        (("unet", "latent_channels"), ("vae", "latent_channels"), True),
        (("clap_text", "projection_dim"), ("clap_audio", "projection_dim"), True),
    ]
    for (giver, given), (taker, taken), is_used in pairs:
        if not is_used or giver not in configs or taker not in configs:
            continue
        size, expected = getattr(configs[giver], given), getattr(configs[taker], taken)
        if size != expected:
            raise WeightsError(
                f"the networks in {where} do not fit together: {given} of '{giver}' is {size}, but "
                f"{taken} of '{taker}' is {expected}."
            )
    if "phonemes" in configs:
        _check_speech(configs, where)
    mels, downsampling = configs["hifigan"].mels, configs["vae"].downsampling
    if mels % downsampling:
        raise WeightsError(
            f"the networks in {where} do not fit together: mels of 'hifigan' is {mels}; it has to be a "
            f"multiple of the VAE's downsampling, {downsampling}."
        )


def _check_speech(configs: Mapping[str, Any], where: str) -> None:
    """Check that GPT-2 alone reads the phonemes of a speech model, and that its positions suffice."""
    if configs["unet"].roles & {GPT2, T5} != {GPT2}:
        raise WeightsError(
            f"the networks in {where} do not fit together: 'phonemes' feeds GPT-2, and so the context of "
            f"'unet' has to be GPT-2's alone; its attentions are {sorted(configs['unet'].roles)}."
        )
    positions, gpt2 = configs["projection"].positions, configs["gpt2"]
    room = gpt2.max_positions - gpt2.new_vectors - 5  # CLAP's vector, and two that frame each of both
    if not 0 < positions <= room:
        raise WeightsError(
            f"the networks in {where} do not fit together: positions of 'projection' is {positions}; it has "
            f"to be from 1 to {room}, as GPT-2 has {gpt2.max_positions} and generates {gpt2.new_vectors}."
        )


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_has_type(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        entry = get_args(kind)[0]
        return isinstance(value, (list, tuple)) and all(_has_type(each, entry) for each in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and -1e300 < value < 1e300
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_type_name(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each entry {_type_name(get_args(kind)[0])}"
    return TYPE_NAMES[kind]


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value
