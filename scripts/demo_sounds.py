"""The sounds of the demo's world: families of procedural sounds, and the attributes that shape them.

A family is a pure function of a random generator, a length and attributes:

    FAMILIES["bell"](np.random.default_rng(0), 2.56, {"pitch": "high", "level": "quiet"})

returns float32 (samples,) at 16 kHz, within ±0.95, without a constant part, never silent. An attribute that
is named lies in its range in ATTRIBUTES; one that is not is left to chance, within UNSAID. A second of sound
takes about a millisecond.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audioldm2.audio import SAMPLE_RATE as RATE
from scripts.sound_measures import loudness

Wave = np.ndarray  # (samples,) at 16 kHz; float64 and of any scale until it is finished

SHORTEST, LONGEST = 0.64, 60.0  # s; less has no room for an event and its end
PEAK = 0.95  # of full scale; nothing is louder
HIGHEST = 7600.0  # Hz; partials above would be too near to half the rate

# attribute: {word: (lowest, highest)}. Far apart, so that they can still be told apart in what a model makes.
ATTRIBUTES: dict[str, dict[str, tuple[float, float]]] = {
    "pitch": {"low": (120, 220), "middle": (400, 700), "high": (1400, 2600)},  # Hz; a melody is around it
    "tempo": {"slow": (1.0, 1.8), "fast": (4.5, 7.0)},  # events a second
    "level": {"quiet": (-40, -35), "loud": (-14, -11)},  # dB to full scale, of the loudest 50 ms
    "length": {"short": (0.3, 0.5), "long": (0.92, 1.0)},  # short: s of sound; long: part of the clip
    "room": {"dry": (0, 0), "reverberant": (1.2, 2.0)},  # s until the echo is down by 60 dB
}
# What is drawn where nothing is said: any pitch, but a tempo, a level and a length in between, and no echo.
UNSAID = {
    "pitch": (120, 2600),
    "tempo": (2.2, 3.6),
    "level": (-23, -18),
    "length": (0.6, 1.0),
    "room": (0, 0),
}


@dataclass(frozen=True)
class Voice:
    """What the attributes come to in numbers, for the families that look at them."""

    pitch: float  # Hz
    tempo: float  # events a second
    length: float  # s of sound, from the start of the clip; silence follows


@dataclass(frozen=True)
class Family:
    """One kind of sound, and the attributes that it can have."""

    draw: Callable[[np.random.Generator, int, Voice], Wave]
    takes: tuple[str, ...]

    def __call__(
        self, rng: np.random.Generator, seconds: float, attributes: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """One sound of this family: float32 (seconds * 16,000,), all of whose chance comes from `rng`.

        attributes: {attribute: word}, as in ATTRIBUTES.
        Raises ValueError for an attribute that the family does not have, or a length outside 0.64 to 60 s.
        """
        attributes = attributes or {}
        for name, word in attributes.items():
            if name not in self.takes or word not in ATTRIBUTES[name]:
                known = ", ".join(f"{name} ({'/'.join(ATTRIBUTES[name])})" for name in self.takes)
                raise ValueError(f"attribute {name!r} is {word!r}; this family has {known}")
        if not SHORTEST <= seconds <= LONGEST:
            raise ValueError(f"seconds is {seconds}; allowed are {SHORTEST} to {LONGEST:g}")
        value = {
            name: between(rng, *(words[attributes[name]] if name in attributes else UNSAID[name]))
            for name, words in ATTRIBUTES.items()
        }
        is_short = attributes.get("length") == "short"
        length = min(value["length"], 0.4 * seconds) if is_short else value["length"] * seconds
        n = round(seconds * RATE)
        wave = self.draw(rng, n, Voice(value["pitch"], value["tempo"], length))
        if value["room"]:
            wave = in_a_room(rng, wave, value["room"])
        return finished(wave, value["level"])


FAMILIES: dict[str, Family] = {}


def family(*takes: str) -> Callable[[Callable], Callable]:
    """Enter a function (rng, samples, voice) -> wave into FAMILIES, under its own name."""

    def enter(draw: Callable) -> Callable:
        FAMILIES[draw.__name__] = Family(draw, (*takes, "level"))
        return draw

    return enter


# Building blocks --------------------------------------------------------------------------------------------


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number of the range; evenly in ratio where both ends are positive, as ears judge them."""
    return float(low * (high / low) ** rng.random()) if low > 0 else float(rng.uniform(low, high))


def times(n: int) -> np.ndarray:
    """The time of each sample, in s."""
    return np.arange(n) / RATE


def phase(hz: np.ndarray | float, n: int) -> np.ndarray:
    """The phase of an oscillator whose frequency is a number or a curve (n,), in radians."""
    return 2 * np.pi / RATE * (np.cumsum(hz) if np.ndim(hz) else hz * np.arange(n))


def harmonics(hz: np.ndarray | float, n: int, amplitudes: Sequence[float]) -> Wave:
    """A tone with overtones: amplitudes of the frequency, its double, ...; those too high are left out."""
    rotor = np.exp(1j * phase(hz, n))
    power, wave = np.ones(n, dtype=complex), np.zeros(n)
    for amplitude in amplitudes[: int(HIGHEST / np.max(hz))]:
        power *= rotor  # exp(i k phase), without another exponential
        wave += amplitude * power.imag
    return wave


def band(low: float, high: float, order: float = 2.0) -> Callable[[np.ndarray], np.ndarray]:
    """The gain of a band-pass over the frequency in Hz, with slopes of 6 dB an octave for each order."""
    return lambda hz: (
        ((1 + (low / np.maximum(hz, 1e-3)) ** (2 * order)) * (1 + (hz / high) ** (2 * order))) ** -0.5
    )


def shaped_noise(rng: np.random.Generator, n: int, gain: Callable[[np.ndarray], np.ndarray]) -> Wave:
    """Gaussian noise with a spectrum, of unit power."""
    spectrum = np.fft.rfft(rng.standard_normal(n)) * gain(np.fft.rfftfreq(n, 1 / RATE))
    spectrum[0] = 0
    wave = np.fft.irfft(spectrum, n)
    return wave / wave.std()


def drift(rng: np.random.Generator, n: int, low: float, high: float, per_second: float) -> np.ndarray:
    """A curve (n,) that wanders between two values, with so many turns a second."""
    place = times(n) * per_second
    knots = rng.uniform(low, high, size=int(place[-1]) + 2)
    return np.interp(place, np.arange(len(knots)), knots)


def decay(n: int, seconds: float) -> np.ndarray:
    """exp(-t / seconds), brought down to zero at its end, with an attack of 1 ms."""
    t = times(n)
    return np.exp(-t / seconds) * np.minimum(1, t / 0.001) * np.minimum(1, np.linspace(4, 0, n))


def faded(wave: Wave, seconds: float = 0.01) -> Wave:
    """The wave with ramps at both ends: an edge would click."""
    edge = min(round(seconds * RATE), len(wave) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(edge) / edge)
    wave = wave.copy()
    wave[:edge] *= ramp
    wave[len(wave) - edge :] *= ramp[::-1]
    return wave


def beats(rng: np.random.Generator, n: int, per_second: float) -> np.ndarray:
    """When regular events begin, in samples: the first within 0.1 s, the others in time to 1.5 %."""
    first = rng.uniform(0.01, 0.1)
    count = int(np.ceil((n / RATE - first - 0.03) * per_second))
    jitter = rng.normal(0, 0.015, size=count)
    return ((first + np.maximum(np.arange(count) + jitter, 0) / per_second) * RATE).astype(int)


def placed(n: int, starts: Sequence[int] | np.ndarray, events: Sequence[Wave]) -> Wave:
    """A clip of n samples with an event at each start, taken in turn; what passes the end is cut."""
    wave = np.zeros(n)
    for i, start in enumerate(starts):
        if start >= n:  # by chance, a beat may come as late as that
            continue
        event = events[i % len(events)][: n - start]
        wave[start : start + len(event)] += event
    return wave


def scattered(rng: np.random.Generator, n: int, per_second: float, event: Wave, spread: float) -> Wave:
    """The same event at random times and of random size, log-normal of width `spread`; unit power in all."""
    count = 1 + rng.poisson(per_second * n / RATE)
    sizes = np.exp(spread * rng.standard_normal(count)) * rng.choice([-1, 1], size=count)
    hits = np.bincount(rng.integers(n, size=count), weights=sizes, minlength=n)
    wave = np.fft.irfft(np.fft.rfft(hits) * np.fft.rfft(event, n), n)
    return wave / wave.std()


def held(wave: Wave, voice: Voice) -> Wave:
    """The first `voice.length` seconds, and silence after them."""
    sounding = round(voice.length * RATE)
    return np.pad(faded(wave[:sounding]), (0, len(wave) - sounding))


def in_a_room(rng: np.random.Generator, wave: Wave, seconds: float) -> Wave:
    """The wave and its echo, as in a large hall: noise that decays by 60 dB in so many seconds."""
    n = len(wave)
    echo = rng.standard_normal(round(seconds * RATE))
    echo *= 10 ** (-3 * times(len(echo)) / seconds)
    echo[: round(0.01 * RATE)] = 0  # the walls are not at the ear
    size = 1 << (n + len(echo) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo / np.linalg.norm(echo), size), size)[:n]
    return wave + 0.6 * wet


def finished(wave: Wave, level: float) -> np.ndarray:
    """As float32 at a level in dB: faded, limited, without a constant part (silent parts stay silent)."""
    wave = faded(wave, 0.005)
    wave = wave * 10 ** ((level - loudness(wave, RATE)) / 20)
    if np.abs(wave).max() > PEAK:  # sharp clicks, which are never as loud as they are tall
        wave = PEAK * np.tanh(wave / PEAK)
    wave -= np.abs(wave) * (wave.mean() / np.abs(wave).mean())
    return (wave * min(1, PEAK / np.abs(wave).max())).astype(np.float32)


# Tones ------------------------------------------------------------------------------------------------------


@family("pitch", "length")
def tone(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A sine."""
    return held(harmonics(voice.pitch, n, [1]), voice)


@family("pitch", "room")
def beep(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """One short tone of an electronic buzzer: odd harmonics."""
    length = round(rng.uniform(0.25, 0.45) * RATE)
    return placed(n, [round(rng.uniform(0.01, 0.1) * RATE)], [buzzer(voice.pitch, length)])


@family("pitch", "tempo", "room")
def beeps(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """The same buzzer, again and again."""
    length = round(min(rng.uniform(0.4, 0.5) / voice.tempo, 0.3) * RATE)
    return placed(n, beats(rng, n, voice.tempo), [buzzer(voice.pitch, length)])


def buzzer(pitch: float, length: int) -> Wave:
    return faded(harmonics(pitch, length, [1, 0, 0.35, 0, 0.2, 0, 0.12]))


@family("length")
def rising(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that glides up, two to four octaves."""
    return glide(rng, n, voice, up=True)


@family("length")
def falling(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that glides down, two to four octaves."""
    return glide(rng, n, voice, up=False)


def glide(rng: np.random.Generator, n: int, voice: Voice, up: bool) -> Wave:
    low = between(rng, 150, 350)
    octaves = rng.uniform(2, 3.6)
    way = np.clip(times(n) / voice.length, 0, 1)
    return held(harmonics(low * 2 ** (octaves * (way if up else 1 - way)), n, [1, 0.3]), voice)


@family("length")
def siren(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A tone that wails up and down an octave or less, about once a second."""
    wail = np.sin(phase(between(rng, 0.8, 1.5), n) - np.pi / 2)
    return held(harmonics(between(rng, 750, 1000) * 2 ** (0.45 * wail), n, [1, 0.6, 0.45, 0.3, 0.2]), voice)


@family("pitch")
def bell(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Inharmonic partials that ring on, the higher the shorter, after one stroke."""
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.52, 3.01, 4.17])
    amplitudes = np.array([0.35, 1, 0.4, 0.25, 0.5, 0.3, 0.25, 0.2])
    start = round(rng.uniform(0.01, 0.1) * RATE)
    t, ring = times(n - start), rng.uniform(0.8, 1.4)  # s, of the lowest partials
    stroke = np.zeros(n - start)
    for ratio, amplitude in zip(ratios, amplitudes, strict=True):
        if ratio * voice.pitch <= HIGHEST:
            detuned = ratio * voice.pitch * rng.normal(1, 0.002)
            stroke += amplitude * np.exp(-t * max(ratio, 1) / ring) * np.sin(2 * np.pi * detuned * t)
    return placed(n, [start], [stroke * np.minimum(1, t / 0.002)])


@family("pitch", "tempo")
def melody(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Plucked notes of one scale, each stopped by the next."""
    starts = beats(rng, n, voice.tempo)
    length = round(0.95 / voice.tempo * RATE)
    notes = voice.pitch * 2 ** (np.array([-4, -2, 0, 3]) / 12)
    picked = (rng.integers(1, len(notes), size=len(starts)).cumsum() + rng.integers(4)) % len(notes)
    envelope = decay(length, 0.22)
    plucks = [envelope * harmonics(note, length, [1, 0.55, 0.4, 0.25, 0.18, 0.1]) for note in notes]
    return placed(n, starts, [plucks[i] for i in picked])


# Noises -----------------------------------------------------------------------------------------------------


@family("length")
def noise(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """White noise."""
    return held(rng.standard_normal(n), voice)


@family()
def wind(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Low noise in gusts, and a howl: a narrow band of noise whose middle wanders."""
    gusts = drift(rng, n, 0.35, 1, per_second=1.5)
    angle = phase(drift(rng, n, 400, 900, per_second=2), n)
    slow = band(0, 30)
    howl = shaped_noise(rng, n, slow) * np.cos(angle) + shaped_noise(rng, n, slow) * np.sin(angle)
    return gusts * (shaped_noise(rng, n, band(80, 350, 1)) + 0.5 * gusts * howl)


@family()
def rain(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A hiss of far drops, and near ones that can be heard one by one."""
    event = round(0.02 * RATE)
    drop = decay(event, 0.002) * shaped_noise(rng, event, band(2000, 5000, 1))
    return shaped_noise(rng, n, band(2500, 6000)) + 0.8 * scattered(rng, n, between(rng, 40, 100), drop, 0.4)


@family()
def waves(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Noise that swells and ebbs every few seconds, brighter when it is louder."""
    t, period = times(n), rng.uniform(2.2, 3.5)
    crest = rng.uniform(0.35, 0.65) * min(t[-1], period)
    swell = 0.5 + 0.5 * np.cos(2 * np.pi * (t - crest) / period)
    water, spray = shaped_noise(rng, n, band(100, 500, 1)), shaped_noise(rng, n, band(900, 4000, 1))
    return (0.1 + 0.9 * swell) * water + 0.8 * swell**3 * spray


@family()
def thunder(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A crack, and a rumble that rolls away."""
    t = times(n)
    roll = drift(rng, n, 0.2, 1, per_second=6) * np.exp(-t / rng.uniform(0.9, 1.5))
    rumble = roll * shaped_noise(rng, n, band(50, 160, 1.5))
    crack = np.exp(-t / rng.uniform(0.05, 0.12)) * shaped_noise(rng, n, band(100, 1500, 1))
    return rumble + 0.5 * crack


@family()
def fire(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Sparse, sharp crackles of very different size over a soft roar."""
    event = round(0.01 * RATE)
    snap = decay(event, 0.0012) * shaped_noise(rng, event, band(800, 7000, 1))
    crackles = scattered(rng, n, between(rng, 14, 28), snap, 0.6)
    return crackles + 0.25 * drift(rng, n, 0.5, 1, per_second=3) * shaped_noise(rng, n, band(60, 250, 1))


@family()
def bubbles(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Round little tones at random times, each rising as its bubble does."""
    count = 2 + rng.poisson(between(rng, 9, 16) * n / RATE)
    starts = np.append(rng.integers(0, 800), rng.integers(0, n - 800, size=count))
    event = round(0.09 * RATE)
    up = 1 + 8 * times(event)
    envelope = np.sin(np.pi * np.linspace(0, 1, event)) ** 2 * np.linspace(1, 0.2, event)
    blips = [
        rng.uniform(0.4, 1) * envelope * harmonics(between(rng, 350, 1100) * up, event, [1]) for _ in starts
    ]
    return placed(n, starts, blips)


@family("length")
def engine(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """The hum of a motor: many harmonics of a low, slightly unsteady frequency, and a little noise."""
    hz = between(rng, 38, 60) * drift(rng, n, 0.97, 1.03, per_second=3)
    overtones = np.arange(1, 17)
    amplitudes = rng.uniform(0.5, 1, size=len(overtones)) * np.exp(-(((overtones - 3) / 5) ** 2))
    return held(harmonics(hz, n, amplitudes) + 0.2 * shaped_noise(rng, n, band(80, 800, 1)), voice)


# Blows, barks, chirps ---------------------------------------------------------------------------------------


@family("tempo", "room")
def clock(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Tick and tock: short, high clicks of wood and metal."""
    event, hz = round(0.04 * RATE), between(rng, 2200, 3200)
    ticks = [
        decay(event, 0.007) * sum(np.sin(phase(ratio * hz * lower, event)) for ratio in (1, 1.63, 2.21))
        for lower in (1.0, 0.82)
    ]
    return placed(n, beats(rng, n, voice.tempo), ticks)


@family("tempo", "room")
def drums(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Bass drum and snare drum in turn."""
    event = round(min(0.25, 0.75 / voice.tempo) * RATE)
    t = times(event)
    kick = decay(event, 0.07) * np.sin(phase(rng.uniform(60, 75) * (1 + 3 * np.exp(-t / 0.02)), event))
    skin = np.sin(phase(rng.uniform(170, 210), event))
    snare = decay(event, 0.045) * (0.5 * skin + 0.35 * shaped_noise(rng, event, band(1000, 7000, 1)))
    return placed(n, beats(rng, n, voice.tempo), [kick, snare])


@family("tempo", "room")
def footsteps(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A dull heel, and a crunch of the sole behind it."""
    event = round(0.12 * RATE)
    late = round(0.025 * RATE)
    steps = []
    for _ in "left", "right":
        heel = decay(event, 0.018) * shaped_noise(rng, event, band(90, 350, 1.5))
        sole = decay(event - late, 0.02) * shaped_noise(rng, event - late, band(700, 2500, 1))
        steps.append(rng.uniform(0.8, 1) * (heel + 0.35 * np.pad(sole, (late, 0))))
    return placed(n, beats(rng, n, voice.tempo), steps)


@family("room")
def dog(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Barks, in twos: a throat that opens and closes, rough with breath."""
    event = round(rng.uniform(0.14, 0.2) * RATE)
    arch = np.sin(np.pi * np.linspace(0, 1, event) ** 0.6)
    pitch = between(rng, 280, 420) * (0.7 + 0.5 * arch)
    throat = harmonics(pitch, event, [0.5, 1, 1, 0.6, 0.3, 0.2, 0.1])
    bark = arch**0.7 * (throat + 0.5 * shaped_noise(rng, event, band(600, 1800)))
    gap = event + rng.uniform(0.06, 0.12) * RATE
    pair = gap * 2 + rng.uniform(0.2, 0.4) * RATE
    starts = rng.uniform(0.01, 0.1) * RATE + pair * np.arange(n // pair + 1)[:, None] + gap * np.arange(2)
    starts = starts.astype(int).ravel()
    return placed(n, starts[starts < max(n - event, starts[0] + 1)], [bark])


@family()
def birds(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A bird's phrase of quick chirps, each a sweep up or down, a pause, and the phrase again."""
    phrase, length = [], 0
    for _ in range(rng.integers(3, 6)):
        event = round(rng.uniform(0.05, 0.11) * RATE)
        sweep = between(rng, 2600, 3600) * 2 ** (rng.choice([-1, 1]) * np.linspace(-0.3, 0.4, event))
        phrase.append((length, np.hanning(event) * harmonics(sweep, event, [1, 0.1])))
        length += event + round(rng.uniform(0.02, 0.06) * RATE)
    length += round(rng.uniform(0.15, 0.4) * RATE)
    first = round(rng.uniform(0.01, 0.1) * RATE)
    starts = [first + again * length + at for again in range(n // length + 1) for at, _ in phrase]
    chirps = [chirp for _, chirp in phrase]
    return placed(n, [start for start in starts if start < n - 800], chirps)


@family()
def crickets(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A steady, very high note, cut into pulses, which come in threes or fours."""
    t, pulses = times(n), rng.uniform(26, 34)
    count = rng.integers(3, 5)
    chirp = count + rng.uniform(3, 6)  # pulses from one chirp to the next, the pause included
    place = (t * pulses) % chirp
    gate = np.where(place < count, np.sin(np.pi * place) ** 2, 0)
    return gate * harmonics(between(rng, 4200, 5200), n, [1])


@family("room")
def laser(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """Zaps of a toy ray gun: a bright tone that drops four octaves in a moment."""
    event = round(rng.uniform(0.16, 0.28) * RATE)
    t = times(event)
    hz = 180 + between(rng, 3000, 4500) * np.exp(-t / (0.2 * t[-1]))
    zap = faded(sum(np.sin(k * phase(hz, event)) / k * (k * hz < HIGHEST) for k in (1, 2, 3, 4)))
    gap = event / RATE + rng.uniform(0.15, 0.4)
    return placed(n, beats(rng, n, 1 / gap), [zap * np.linspace(1, 0.4, event)])
