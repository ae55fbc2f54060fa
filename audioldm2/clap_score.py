"""CLAP scores: how well a sound fits a text, and the order of each prompt's candidates.

The score is the cosine of CLAP's unit vectors of the text and of the sound (Wu et al. 2023, arXiv
2211.06687).

CLAP reads 10 s. A longer sound is cut into evenly spaced windows of 10 s that cover it completely, and its
vector is the mean of theirs: every second counts, and the same sound always has the same score. (The
reference crops at random.)
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import FASTEST_RATE, MelSettings, clap_crops, clap_log_mel, require_waves, resample
from audioldm2.errors import ArgumentError, WeightsError, require_texts, require_whole
from audioldm2.models.clap_audio import ClapAudioConfig
from audioldm2.prompt.tokenizers import ClapTokenizer, pad
from audioldm2.runtime.placement import Networks

Sounds = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]


@torch.no_grad()
def embed_texts(networks: Networks, tokenizer: ClapTokenizer, texts: Sequence[str]) -> Tensor:
    """Compute CLAP's vectors of texts: float32 (texts, clap_dim), norm 1, on the CPU."""
    tokens = pad([tokenizer.encode(text) for text in texts], tokenizer.pad_id)
    with networks.running("clap_text") as clap_text:
        return clap_text(tokens.ids.to(networks.device), tokens.mask.to(networks.device)).float().cpu()


@torch.no_grad()
def embed_sounds(
    networks: Networks,
    front_end: MelSettings,
    audio: Tensor | Sequence[Tensor],
    sample_rate: int | Sequence[int],
) -> Tensor:
    """Compute CLAP's vectors of sounds.

    Args:
        networks:    with "clap_audio".
        front_end:   the log-mel settings that the network was trained with.
        audio:       floats (sounds, samples), or a sequence of sounds (samples,) of different lengths.
        sample_rate: Hz, one for all sounds or one for each.

    Returns:
        float32 (sounds, clap_dim), norm 1, on the CPU.
    """
    rates = sample_rate if isinstance(sample_rate, (list, tuple)) else [sample_rate] * len(audio)
    vectors = []
    with networks.running("clap_audio") as clap_audio:
        for sound, rate in zip(audio, rates, strict=True):  # one by one: at 48 kHz a long sound is large
            wave = resample(sound[None].float().to(networks.device), rate, front_end.sample_rate)
            windows = clap_crops(wave, 10 * front_end.sample_rate)
            embedded = [
                clap_audio(clap_log_mel(window, front_end).to(networks.dtypes["clap_audio"])).float()
                for window in windows
            ]
            vectors.append(torch.stack(embedded).mean(dim=0))  # (1, clap_dim)
    return F.normalize(torch.cat(vectors), dim=-1).cpu()


def score(
    networks: Networks,
    tokenizer: ClapTokenizer,
    front_end: MelSettings,
    text: str | Sequence[str],
    audio: Sounds,
    sample_rate: int | Sequence[int],
) -> Tensor:
    """Score sounds against texts; raise if any sound cannot be scored. See `score_sounds` for the arguments.

    Returns:
        float32 (sounds,), -1 to 1; NaN where CLAP itself overflows, as it may in half precision.

    Raises:
        ArgumentError: as `score_sounds` does; also for sounds that have no samples, or NaN or infinite
            samples, by row.
    """
    sounds, rates, texts = _require_inputs(text, audio, sample_rate)
    unusable = _find_unusable(sounds)
    if unusable:
        rows = ", ".join(f"row {row} {reason}" for row, reason in unusable[:3])
        more = f" and {len(unusable) - 3} more" if len(unusable) > 3 else ""
        given = unusable[0][1] if len(sounds) == 1 else f"has sounds that cannot be scored ({rows}{more})"
        raise ArgumentError("audio", audio, "hold finite samples, at least one in each sound", given=given)
    return _cosines(networks, tokenizer, front_end, texts, sounds, rates)


def score_sounds(
    networks: Networks,
    tokenizer: ClapTokenizer,
    front_end: MelSettings,
    text: str | Sequence[str],
    audio: Sounds,
    sample_rate: int | Sequence[int],
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Score the sounds that can be scored, and name the others.

    Args:
        networks:    with "clap_text" and "clap_audio".
        tokenizer:   CLAP's.
        front_end:   the log-mel settings that CLAP's audio branch was trained with.
        text:        one for all sounds or one for each.
        audio:       PyTorch tensor or NumPy array of floats, full scale at ±1: (samples,) or (sounds,
                     samples); or a list of sounds (samples,) of different lengths.
        sample_rate: Hz, one for all sounds or one for each.

    Returns:
        The cosine of each sound and its text, float32 (sounds,) on the CPU, -1 to 1, NaN where a sound cannot
        be scored; and (row, reason) of each of those, where the reason follows the sound's name in a
        sentence: "has no samples".

    Raises:
        ArgumentError: arrays that are not sounds (integers, other shapes), no sound at all, a rate out of
            range, or a number of texts or rates that does not match.
    """
    sounds, rates, texts = _require_inputs(text, audio, sample_rate)
    unusable = _find_unusable(sounds)
    rows = sorted(set(range(len(sounds))) - {row for row, _ in unusable})
    scores = torch.full((len(sounds),), torch.nan, dtype=torch.float32, device="cpu")
    if rows:
        scores[rows] = _cosines(
            networks,
            tokenizer,
            front_end,
            [texts[row] for row in rows],
            [sounds[row] for row in rows],
            [rates[row] for row in rows],
        )
    overflows = [(row, "has no score: CLAP computes NaN for it") for row in rows if scores[row].isnan()]
    return scores, sorted(unusable + overflows)


def score_likeness(
    networks: Networks,
    front_end: MelSettings,
    like: Sequence[Tensor],
    like_rate: int,
    audio: Sequence[Tensor],
    sample_rate: int,
) -> Tensor:
    """Score sounds against other sounds.

    Args:
        networks:    with "clap_audio".
        front_end:   as for `score_sounds`.
        like:        sounds (samples,), one for each; the same one is embedded once.
        like_rate:   of these, Hz.
        audio:       sounds (samples,), which are scored.
        sample_rate: of these, Hz.

    Returns:
        The cosine of CLAP's vectors of each pair, float32 (sounds,) on the CPU, -1 to 1, NaN where a sound
        cannot be scored.
    """
    different = {id(sound): sound for sound in like}
    vectors = dict(
        zip(different, embed_sounds(networks, front_end, list(different.values()), like_rate), strict=True)
    )
    wanted = torch.stack([vectors[id(sound)] for sound in like])  # (sounds, clap_dim)
    scores = torch.full((len(audio),), torch.nan, dtype=torch.float32, device="cpu")
    unusable = {row for row, _ in _find_unusable(audio)}
    rows = [row for row in range(len(audio)) if row not in unusable]
    if rows:
        found = embed_sounds(networks, front_end, [audio[row] for row in rows], sample_rate)
        scores[rows] = (wanted[rows] * found).sum(dim=-1)
    return scores


def _require_inputs(
    text: str | Sequence[str], audio: Sounds, sample_rate: int | Sequence[int]
) -> tuple[list[Tensor], list[int], list[str]]:
    """The sounds (samples,), their rates and their texts, one each."""
    is_list = isinstance(audio, (list, tuple))  # of sounds; a list of numbers is one sound
    if is_list and (not audio or any(isinstance(each, (Tensor, np.ndarray)) for each in audio)):
        sounds = [require_waves(f"audio[{row}]", each, most_dims=1) for row, each in enumerate(audio)]
    else:
        waves = require_waves("audio", audio)
        sounds = list(waves if waves.ndim == 2 else waves[None])
    if not sounds:
        allowed = "be floats in [-1, 1], (samples,) or (sounds, samples), with one sample or more"
        raise ArgumentError("audio", audio, allowed, given="has no sounds")
    texts = require_texts("text", text)
    given_rates = sample_rate if isinstance(sample_rate, (list, tuple)) else [sample_rate]
    rates = [require_whole("sample_rate", rate, 1, FASTEST_RATE) for rate in given_rates]
    for name, values in (("text", texts), ("sample_rate", rates)):
        if len(values) not in (1, len(sounds)):
            given = f"has {len(values)} entries for {len(sounds)} sounds"
            raise ArgumentError(name, values, "have one for all or one for each", given=given)
    return (
        sounds,
        rates * len(sounds) if len(rates) == 1 else rates,
        texts * len(sounds) if len(texts) == 1 else texts,
    )


def _find_unusable(sounds: Sequence[Tensor]) -> list[tuple[int, str]]:
    """(row, reason) of the sounds that have no score."""
    found = []
    for row, sound in enumerate(sounds):
        broken = int((~sound.isfinite()).sum())
        if broken:
            found.append((row, f"has {broken} samples of {len(sound)} that are NaN or infinite"))
        elif not len(sound):
            found.append((row, "has no samples"))
    return found


def _cosines(
    networks: Networks,
    tokenizer: ClapTokenizer,
    front_end: MelSettings,
    texts: Sequence[str],
    sounds: Sequence[Tensor],
    rates: Sequence[int],
) -> Tensor:
    """The cosine of each sound and its own text: float32 (sounds,)."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}  # each text is embedded once
    vectors = embed_texts(networks, tokenizer, list(places))
    own = vectors[[places[text] for text in texts]]  # (sounds, clap_dim)
    return (own * embed_sounds(networks, front_end, sounds, rates)).sum(dim=-1)


def require_front_end(config: ClapAudioConfig, front_end: MelSettings, where: str) -> None:
    """Raise WeightsError unless CLAP's audio branch can read the spectrogram that the front end computes.

    Call it before scoring, not at loading: the checkpoint generates sounds all the same.
    """
    frames = 10 * front_end.sample_rate // front_end.hop + 1
    most = config.spec_size * (config.spec_size // config.mels)
    if front_end.mels != config.mels or frames > most:
        raise WeightsError(
            f"sounds cannot be scored with {where}: CLAP's front end computes {frames} frames of "
            f"{front_end.mels} mel bands, and its audio branch reads at most {most} frames of {config.mels}. "
            "Ask for one waveform per prompt, or add the feature extractor that the checkpoint was trained "
            "with."
        )


def best_first(scores: Tensor) -> Tensor:
    """Sort scores along the last dimension, best first.

    NaN, the score of a sound that cannot be scored, comes last, after -inf. Equal scores, and NaNs among
    themselves, keep their order.

    Args:
        scores: (..., sounds), such as (prompts, waveforms).

    Returns:
        Indices of the same shape.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    is_nan = scores.isnan().gather(-1, order).to(torch.uint8)
    return order.gather(-1, is_nan.argsort(dim=-1, stable=True))
