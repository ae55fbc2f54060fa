"""The 23 families of procedural sounds in the demo world.

A family is a pure function of a random generator, a length and attributes:

    FAMILIES["bell"](np.random.default_rng(0), 2.56, {"pitch": "high", "level": "quiet"})

returns float32 (samples,) at 16 kHz within ±0.95, without a DC offset and never silent. A specified attribute
lies in its range in ATTRIBUTES, an unspecified one is drawn from UNSPECIFIED. One second of sound takes about
a millisecond.
"""

import numpy as np

from audioldm2.audio import SAMPLE_RATE as RATE
from scripts.demo_world.registry import FAMILIES, Voice, family
from scripts.demo_world.synthesis import (
    HIGHEST,
    Wave,
    bandpass,
    decay,
    draw_between,
    fade,
    harmonics,
    onset_times,
    phase,
    place_events,
    random_curve,
    scatter,
    shaped_noise,
    sustain,
    times,
)

__all__ = ["FAMILIES"]  # complete once this module is imported


# Tones ------------------------------------------------------------------------------------------------------


@family("pitch", "length")
def tone(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A sine."""
    return sustain(harmonics(voice.pitch, n, [1]), voice.length)


@family("pitch", "room")
def beep(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """One short tone of an electronic buzzer, which has odd harmonics only."""
    length = round(rng.uniform(0.25, 0.45) * RATE)
    return place_events(n, [round(rng.uniform(0.01, 0.1) * RATE)], [buzzer(voice.pitch, length)])


@family("pitch", "tempo", "room")
def beeps(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A buzzer that repeats."""
    length = round(min(rng.uniform(0.4, 0.5) / voice.tempo, 0.3) * RATE)
    return place_events(n, onset_times(rng, n, voice.tempo), [buzzer(voice.pitch, length)])


def buzzer(pitch: float, length: int) -> Wave:
    """Returns one tone of a buzzer, `length` samples long."""
    return fade(harmonics(pitch, length, [1, 0, 0.35, 0, 0.2, 0, 0.12]))


@family("length")
def rising(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that glides up by two to four octaves."""
    return glide(rng, n, voice, up=True)


@family("length")
def falling(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that glides down by two to four octaves."""
    return glide(rng, n, voice, up=False)


def glide(rng: np.random.Generator, n: int, voice: Voice, up: bool) -> Wave:
    """Returns a tone that glides over two to four octaves."""
    low = draw_between(rng, 150, 350)
    octaves = rng.uniform(2, 3.6)
    progress = np.clip(times(n) / voice.length, 0, 1)
    return sustain(
        harmonics(low * 2 ** (octaves * (progress if up else 1 - progress)), n, [1, 0.3]), voice.length
    )


@family("length")
def siren(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that wails up and down by up to an octave, about once a second."""
    wail = np.sin(phase(draw_between(rng, 0.8, 1.5), n) - np.pi / 2)
    return sustain(
        harmonics(draw_between(rng, 750, 1000) * 2 ** (0.45 * wail), n, [1, 0.6, 0.45, 0.3, 0.2]),
        voice.length,
    )


@family("pitch")
def bell(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """One stroke with inharmonic partials, of which the higher ones decay faster."""
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.52, 3.01, 4.17])
    amplitudes = np.array([0.35, 1, 0.4, 0.25, 0.5, 0.3, 0.25, 0.2])
    start = round(rng.uniform(0.01, 0.1) * RATE)
    t, ring = times(n - start), rng.uniform(0.8, 1.4)  # s, of the lowest partials
    stroke = np.zeros(n - start)
    for ratio, amplitude in zip(ratios, amplitudes, strict=True):
        if ratio * voice.pitch <= HIGHEST:
            detuned = ratio * voice.pitch * rng.normal(1, 0.002)
            stroke += amplitude * np.exp(-t * max(ratio, 1) / ring) * np.sin(2 * np.pi * detuned * t)
    return place_events(n, [start], [stroke * np.minimum(1, t / 0.002)])


@family("pitch", "tempo")
def melody(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Plucked notes of one scale, each of which stops when the next begins."""
    starts = onset_times(rng, n, voice.tempo)
    length = round(0.95 / voice.tempo * RATE)
    notes = voice.pitch * 2 ** (np.array([-4, -2, 0, 3]) / 12)
    picked = (rng.integers(1, len(notes), size=len(starts)).cumsum() + rng.integers(4)) % len(notes)
    envelope = decay(length, 0.22)
    plucks = [envelope * harmonics(note, length, [1, 0.55, 0.4, 0.25, 0.18, 0.1]) for note in notes]
    return place_events(n, starts, [plucks[i] for i in picked])


# Noises -----------------------------------------------------------------------------------------------------


@family("length")
def noise(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """White noise."""
    return sustain(rng.standard_normal(n), voice.length)


@family()
def wind(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Gusts of low noise and a howl: a narrow band of noise with a drifting centre."""
    gusts = random_curve(rng, n, 0.35, 1, per_second=1.5)
    angle = phase(random_curve(rng, n, 400, 900, per_second=2), n)
    slow = bandpass(0, 30)
    howl = shaped_noise(rng, n, slow) * np.cos(angle) + shaped_noise(rng, n, slow) * np.sin(angle)
    return gusts * (shaped_noise(rng, n, bandpass(80, 350, 1)) + 0.5 * gusts * howl)


@family()
def rain(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """The hiss of distant drops and single drops nearby."""
    event = round(0.02 * RATE)
    drop = decay(event, 0.002) * shaped_noise(rng, event, bandpass(2000, 5000, 1))
    return shaped_noise(rng, n, bandpass(2500, 6000)) + 0.8 * scatter(
        rng, n, draw_between(rng, 40, 100), drop, 0.4
    )


@family()
def waves(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Noise that swells and ebbs every few seconds and is brighter when it is louder."""
    t, period = times(n), rng.uniform(2.2, 3.5)
    crest = rng.uniform(0.35, 0.65) * min(t[-1], period)
    swell = 0.5 + 0.5 * np.cos(2 * np.pi * (t - crest) / period)
    water, spray = shaped_noise(rng, n, bandpass(100, 500, 1)), shaped_noise(rng, n, bandpass(900, 4000, 1))
    return (0.1 + 0.9 * swell) * water + 0.8 * swell**3 * spray


@family()
def thunder(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A crack, then a rumble that rolls away."""
    t = times(n)
    roll = random_curve(rng, n, 0.2, 1, per_second=6) * np.exp(-t / rng.uniform(0.9, 1.5))
    rumble = roll * shaped_noise(rng, n, bandpass(50, 160, 1.5))
    crack = np.exp(-t / rng.uniform(0.05, 0.12)) * shaped_noise(rng, n, bandpass(100, 1500, 1))
    return rumble + 0.5 * crack


@family()
def fire(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Sparse, sharp crackles of varying loudness over a soft roar."""
    event = round(0.01 * RATE)
    snap = decay(event, 0.0012) * shaped_noise(rng, event, bandpass(800, 7000, 1))
    crackles = scatter(rng, n, draw_between(rng, 14, 28), snap, 0.6)
    return crackles + 0.25 * random_curve(rng, n, 0.5, 1, per_second=3) * shaped_noise(
        rng, n, bandpass(60, 250, 1)
    )


@family()
def bubbles(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Short, soft tones at random times, each with a rising pitch."""
    count = 2 + rng.poisson(draw_between(rng, 9, 16) * n / RATE)
    starts = np.append(rng.integers(0, 800), rng.integers(0, n - 800, size=count))
    event = round(0.09 * RATE)
    up = 1 + 8 * times(event)
    envelope = np.sin(np.pi * np.linspace(0, 1, event)) ** 2 * np.linspace(1, 0.2, event)
    blips = [
        rng.uniform(0.4, 1) * envelope * harmonics(draw_between(rng, 350, 1100) * up, event, [1])
        for _ in starts
    ]
    return place_events(n, starts, blips)


@family("length")
def engine(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A motor's hum: many harmonics of a low, slightly unsteady frequency and a little noise."""
    hz = draw_between(rng, 38, 60) * random_curve(rng, n, 0.97, 1.03, per_second=3)
    overtones = np.arange(1, 17)
    amplitudes = rng.uniform(0.5, 1, size=len(overtones)) * np.exp(-(((overtones - 3) / 5) ** 2))
    return sustain(
        harmonics(hz, n, amplitudes) + 0.2 * shaped_noise(rng, n, bandpass(80, 800, 1)), voice.length
    )


# Impacts, animals, zaps -------------------------------------------------------------------------------------


@family("tempo", "room")
def clock(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Alternating tick and tock: short, high clicks."""
    event, hz = round(0.04 * RATE), draw_between(rng, 2200, 3200)
    ticks = [
        decay(event, 0.007) * sum(np.sin(phase(ratio * hz * lower, event)) for ratio in (1, 1.63, 2.21))
        for lower in (1.0, 0.82)
    ]
    return place_events(n, onset_times(rng, n, voice.tempo), ticks)


@family("tempo", "room")
def drums(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Alternating bass drum and snare drum."""
    event = round(min(0.25, 0.75 / voice.tempo) * RATE)
    t = times(event)
    kick = decay(event, 0.07) * np.sin(phase(rng.uniform(60, 75) * (1 + 3 * np.exp(-t / 0.02)), event))
    skin = np.sin(phase(rng.uniform(170, 210), event))
    snare = decay(event, 0.045) * (0.5 * skin + 0.35 * shaped_noise(rng, event, bandpass(1000, 7000, 1)))
    return place_events(n, onset_times(rng, n, voice.tempo), [kick, snare])


@family("tempo", "room")
def footsteps(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """The dull thud of a heel, then the crunch of a sole."""
    event = round(0.12 * RATE)
    late = round(0.025 * RATE)
    steps = []
    for _ in "left", "right":
        heel = decay(event, 0.018) * shaped_noise(rng, event, bandpass(90, 350, 1.5))
        sole = decay(event - late, 0.02) * shaped_noise(rng, event - late, bandpass(700, 2500, 1))
        steps.append(rng.uniform(0.8, 1) * (heel + 0.35 * np.pad(sole, (late, 0))))
    return place_events(n, onset_times(rng, n, voice.tempo), steps)


@family("room")
def dog(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Barks in pairs: a pitch and loudness that rise and fall, with breath noise."""
    event = round(rng.uniform(0.14, 0.2) * RATE)
    arch = np.sin(np.pi * np.linspace(0, 1, event) ** 0.6)
    pitch = draw_between(rng, 280, 420) * (0.7 + 0.5 * arch)
    throat = harmonics(pitch, event, [0.5, 1, 1, 0.6, 0.3, 0.2, 0.1])
    bark = arch**0.7 * (throat + 0.5 * shaped_noise(rng, event, bandpass(600, 1800)))
    gap = event + rng.uniform(0.06, 0.12) * RATE
    pair = gap * 2 + rng.uniform(0.2, 0.4) * RATE
    starts = rng.uniform(0.01, 0.1) * RATE + pair * np.arange(n // pair + 1)[:, None] + gap * np.arange(2)
    starts = starts.astype(int).ravel()
    return place_events(n, starts[starts < max(n - event, starts[0] + 1)], [bark])


@family()
def birds(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A repeated phrase of quick chirps, each a sweep up or down, with pauses between phrases."""
    phrase, length = [], 0
    for _ in range(rng.integers(3, 6)):
        event = round(rng.uniform(0.05, 0.11) * RATE)
        sweep = draw_between(rng, 2600, 3600) * 2 ** (rng.choice([-1, 1]) * np.linspace(-0.3, 0.4, event))
        phrase.append((length, np.hanning(event) * harmonics(sweep, event, [1, 0.1])))
        length += event + round(rng.uniform(0.02, 0.06) * RATE)
    length += round(rng.uniform(0.15, 0.4) * RATE)
    first = round(rng.uniform(0.01, 0.1) * RATE)
    starts = [first + again * length + at for again in range(n // length + 1) for at, _ in phrase]
    chirps = [chirp for _, chirp in phrase]
    return place_events(n, [start for start in starts if start < n - 800], chirps)


@family()
def crickets(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A steady, very high tone in groups of three or four pulses."""
    t, pulses = times(n), rng.uniform(26, 34)
    count = rng.integers(3, 5)
    chirp = count + rng.uniform(3, 6)  # pulses per group, including the pause
    position = (t * pulses) % chirp
    gate = np.where(position < count, np.sin(np.pi * position) ** 2, 0)
    return gate * harmonics(draw_between(rng, 4200, 5200), n, [1])


@family("room")
def laser(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Zaps of a toy ray gun: a bright tone that quickly drops by four octaves."""
    event = round(rng.uniform(0.16, 0.28) * RATE)
    t = times(event)
    hz = 180 + draw_between(rng, 3000, 4500) * np.exp(-t / (0.2 * t[-1]))
    zap = fade(sum(np.sin(k * phase(hz, event)) / k * (k * hz < HIGHEST) for k in (1, 2, 3, 4)))
    gap = event / RATE + rng.uniform(0.15, 0.4)
    return place_events(n, onset_times(rng, n, 1 / gap), [zap * np.linspace(1, 0.4, event)])
