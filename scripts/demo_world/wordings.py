"""How captions name sounds, say attributes and join two sounds, for the splits "train" and "test".

The wordings of "test" never occur in "train", but each of their words does: a reader who sees "a very high
beep" for the first time can still know what it means.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

SPLITS = ("train", "test")


class Wording(NamedTuple):
    """Noun phrases, in which {} takes adjectives, and clauses; or patterns that join two of them."""

    nouns: tuple[str, ...]
    clauses: tuple[str, ...]


class AttributePhrases(NamedTuple):
    """Phrases for an attribute: adjectives, phrases after a noun or verb, and adverbs."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    adverbs: tuple[str, ...]


Kind = TypeVar("Kind", Wording, AttributePhrases)
Key = TypeVar("Key", str, tuple[str, str])


def _table(kind: type[Kind], rows: dict[Key, tuple[str, ...]]) -> dict[Key, dict[str, Kind]]:
    """Parses rows of texts: the fields of "train", then those of "test", with alternatives between bars."""
    fields = len(kind._fields)

    def parse(texts: Sequence[str]) -> Kind:
        return kind(
            *(tuple(option.strip() for option in text.split("|") if option.strip()) for text in texts)
        )

    return {
        key: {split: parse(texts[i * fields : (i + 1) * fields]) for i, split in enumerate(SPLITS)}
        for key, texts in rows.items()
    }


# Each row: noun phrases and clauses of "train", then those of "test".
CONJUNCTIONS = _table(Wording, {
    "and": (
        "{} and {} | {} with {} | {} and {} at the same time | {} together with {} | {} mixed with {}",
        "{} and {} | {} while {} | {} as {}",
        "{} and {} together | {} with {} at the same time",
        "{} while {} at the same time",
    ),
    "then": (
        "{}, then {} | {} followed by {} | {} and then {} | first {}, then {} | {} and after that {} | "
        "{} before {}",
        "{}, then {} | {} and then {} | first {}, then {} | {} before {}",
        "{}, after that {} | first {} and then {}",
        "first {} and then {}",
    ),
})  # fmt: skip

WORDINGS = _table(Wording, {
    "tone": (
        "a {}tone | a {}steady tone | a {}pure tone | a {}sine tone | a {}test tone | "
        "a {}continuous sine wave",
        "a tone sounds | a steady tone plays",
        "a {}steady sine wave | a {}pure sine tone", "a pure tone plays",
    ),
    "beep": (
        "a {}beep | a {}single beep | one {}beep | a {}beep of a machine | a {}electronic beep | "
        "the {}beep of a microwave",
        "a machine beeps once | a microwave beeps once",
        "one {}electronic beep | a {}single beep of a machine", "an electronic machine beeps once",
    ),
    "beeps": (
        "{}beeps | repeated {}beeps | a {}beep again and again | a series of {}beeps | {}beeping | "
        "the {}beeping of an alarm | a {}alarm",
        "an alarm beeps | a machine beeps again and again",
        "a series of repeated {}beeps | repeated {}beeping", "an alarm beeps again and again",
    ),
    "rising": (
        "a {}rising tone | a {}rising sweep | a {}tone going up | a {}sweep from low to high | "
        "a {}tone that rises | a {}upward sweep",
        "a tone rises | the pitch goes up",
        "a {}sweep going up | a {}upward tone", "a tone goes up",
    ),
    "falling": (
        "a {}falling tone | a {}falling sweep | a {}tone going down | a {}sweep from high to low | "
        "a {}tone that falls | a {}downward sweep",
        "a tone falls | the pitch goes down",
        "a {}sweep going down | a {}downward tone", "a tone goes down",
    ),
    "siren": (
        "a {}siren | a {}wailing siren | the {}siren of an ambulance | a {}police siren | "
        "the {}wail of a siren | a {}emergency siren",
        "a siren wails | a police siren sounds",
        "the {}wail of a police siren | a {}wailing ambulance siren", "a police siren wails",
    ),
    "bell": (
        "a {}bell | a {}church bell | a {}ringing bell | the {}ring of a bell | a {}bell ringing | "
        "one {}stroke of a bell",
        "a bell rings | a church bell is struck",
        "the {}ring of a church bell | a {}church bell ringing", "a church bell rings",
    ),
    "melody": (
        "a {}plucked melody | a {}guitar melody | {}plucked strings | a {}melody on a guitar | "
        "a {}harp melody | {}notes on a harp",
        "a guitar plays a melody | someone plucks a harp",
        "a {}melody on plucked strings | {}notes on a guitar", "someone plucks a guitar",
    ),
    "noise": (
        "{}white noise | {}static | {}noise | a {}hiss | the {}static of a radio | {}television noise",
        "white noise plays | a radio hisses",
        "the {}white noise of a radio | {}television static", "a television hisses",
    ),
    "wind": (
        "{}wind | a {}howling wind | {}wind blowing | the {}howl of the wind | a {}gust of wind | "
        "{}wind in the trees",
        "the wind blows | the wind howls",
        "{}wind howling in the trees | a {}gust of howling wind", "the wind howls in the trees",
    ),
    "rain": (
        "{}rain | {}rain falling | {}rain on a roof | the {}patter of rain | a {}rain shower | "
        "{}raindrops on a window",
        "rain falls | it is raining",
        "{}rain on a window | the {}patter of raindrops", "rain falls on a roof",
    ),
    "waves": (
        "{}sea waves | {}ocean waves | {}waves on a beach | the {}sound of the sea | "
        "a {}wave breaking on the shore | {}surf",
        "waves roll onto the beach | the sea breaks on the shore",
        "{}ocean waves on a beach | {}waves breaking on the shore", "ocean waves roll onto the shore",
    ),
    "thunder": (
        "{}thunder | a {}clap of thunder | {}rumbling thunder | a {}thunderstorm | the {}rumble of thunder | "
        "a {}roll of thunder",
        "thunder rumbles | thunder rolls over the land",
        "a {}rumbling thunderstorm | the {}rumble of a thunderstorm", "thunder rumbles over the land",
    ),
    "fire": (
        "a {}crackling fire | a {}campfire | a {}fire | the {}crackle of a fire | {}burning wood | "
        "{}wood crackling",
        "a fire crackles | wood burns",
        "a {}crackling campfire | the {}crackle of burning wood", "a campfire crackles",
    ),
    "bubbles": (
        "{}bubbles | {}bubbling water | {}bubbles in water | the {}bubbling of water | {}boiling water | "
        "a {}bubbling pot",
        "water bubbles | water boils in a pot",
        "{}bubbles in boiling water | the {}bubbling of a pot", "water bubbles in a pot",
    ),
    "engine": (
        "a {}engine | a {}running engine | the {}hum of an engine | a {}motor running | "
        "the {}hum of a motor | a {}truck engine",
        "an engine runs | a motor hums",
        "a {}running motor | the {}hum of a truck", "an engine hums",
    ),
    "clock": (
        "{}ticking | the {}ticking of a clock | {}ticks of a clock | the {}tick of a watch | "
        "a clock with a {}tick | a ticking clock | a clock ticking",
        "a clock ticks | a watch is ticking",
        "the {}ticking of a watch | a watch with a {}tick", "a clock is ticking",
    ),
    "drums": (
        "a {}drum beat | {}drums | {}drumming | a {}beat on a drum | a {}drum rhythm | "
        "a {}rhythm on a drum kit",
        "drums play | someone plays the drums",
        "a {}beat on the drums | a {}drum kit rhythm", "someone plays a drum beat",
    ),
    "footsteps": (
        "{}footsteps | {}steps | the {}footsteps of a person | {}footsteps on gravel | "
        "someone taking {}steps | {}steps on a path | a person walking",
        "someone walks | a person walks on gravel",
        "the {}steps of a person | {}steps on gravel", "a person walks on a path",
    ),
    "dog": (
        "{}barking | the {}bark of a dog | a dog's {}bark | {}barks of a dog | a dog with a {}bark | "
        "a dog barking | a dog",
        "a dog barks | a dog is barking again and again",
        "the {}barking of a dog | the {}barks of a dog", "a dog barks again and again",
    ),
    "birds": (
        "{}birds | {}bird song | {}birds chirping | the {}chirping of birds | a {}bird singing | "
        "{}chirps of a bird",
        "birds sing | a bird chirps",
        "{}birds singing | the {}song of a bird", "a bird sings in the trees",
    ),
    "crickets": (
        "{}crickets | {}crickets chirping | a {}cricket | the {}chirping of crickets | {}insects at night | "
        "{}crickets at night",
        "crickets chirp | a cricket sings at night",
        "{}crickets chirping at night | the {}chirping of insects", "crickets chirp at night",
    ),
    "laser": (
        "a {}laser zap | {}laser shots | the {}zap of a ray gun | {}zapping | {}zaps of a laser | "
        "the {}shots of a laser gun | a laser",
        "a laser fires | a ray gun zaps",
        "the {}zap of a laser gun | {}ray gun shots", "a laser gun fires",
    ),
})  # fmt: skip

# Each row: adjectives, trailing phrases and adverbs of "train", then those of "test". Both splits share the
# first adjective.
ATTRIBUTE_PHRASES = _table(AttributePhrases, {
    ("pitch", "low"): (
        "low | low-pitched | deep", "at a low pitch | with a low pitch | in a low register", "",
        "low | very low | very deep", "at a very low pitch | with a deep pitch", "",
    ),
    ("pitch", "middle"): (
        "middle-pitched | medium-pitched | mid-range",
        "at a middle pitch | with a medium pitch | in a middle register", "",
        "middle-pitched | mid-pitched", "at a medium pitch | in a medium register", "",
    ),
    ("pitch", "high"): (
        "high | high-pitched | shrill", "at a high pitch | with a high pitch | in a high register", "",
        "high | very high | very shrill", "at a very high pitch | with a shrill pitch", "",
    ),
    ("tempo", "slow"): (
        "slow | slow-paced | leisurely", "at a slow pace | at a slow tempo | at a leisurely pace", "slowly",
        "slow | very slow", "at a very slow pace | at a leisurely tempo", "very slowly",
    ),
    ("tempo", "fast"): (
        "fast | quick | rapid | fast-paced", "at a fast pace | at a fast tempo | at a quick pace",
        "quickly | rapidly",
        "fast | very fast | very rapid", "at a very fast pace | at a quick tempo", "very quickly",
    ),
    ("level", "quiet"): (
        "quiet | soft | faint | very quiet", "at a quiet level | in the far distance",
        "quietly | softly | very softly",
        "quiet | very soft | very faint", "at a very quiet level | at a soft level | far in the distance",
        "very quietly",
    ),
    ("level", "loud"): (
        "loud | powerful | strong | very loud", "at a loud level | at full volume",
        "loudly | very loudly | powerfully",
        "loud | very powerful | very strong", "at a very loud level | at a powerful level", "very powerfully",
    ),
    ("length", "short"): (
        "short | brief", "for a short time | for a moment", "briefly",
        "short | very short | very brief", "for a very short time | for a brief moment", "very briefly",
    ),
    ("length", "long"): (
        "long | sustained | long-lasting", "for a long time | for a while | without a pause", "",
        "long | very long", "for a very long time | for a long while", "",
    ),
    ("room", "dry"): (
        "dry | echoless", "without any echo | in a dry room", "",
        "dry | very dry", "in a very dry room | in a room without any echo", "",
    ),
    ("room", "reverberant"): (
        "reverberant | echoing", "in a large hall | with a lot of echo | in a big echoing room", "",
        "reverberant | very reverberant", "in a large echoing hall | in a big hall", "",
    ),
})  # fmt: skip
