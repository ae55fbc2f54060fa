"""English texts as a phonemiser reads them: lower-case ASCII, with abbreviations and amounts as words.

Source: the cleaners that the speech models were trained with, `english_cleaners2` of VITS (Kim et al. 2021,
arXiv 2106.06103), which go back to Tacotron's. Differences, each a text that those read wrongly:

- "$5" is "5 dollars", not "dollar 5"; "6 ft." is "6 feet", not "6 fort".
- "mrs." is "misses", not "misess", of which espeak stresses the wrong syllable.
- Greek letters have their English names. Letters of other alphabets are an error: transliterated, they would
  be spoken as English words that mean nothing.
- An abbreviation is a word of its own: "mr.smith" is "mister smith".
"""

# ruff: noqa: RUF001 - characters that look like ASCII are the subject of this file

import re
import unicodedata

from audioldm2.errors import ArgumentError, some

# What compatibility decomposition leaves, or would turn into something else. Spaces part words.
SPOKEN_AS = {
    **dict.fromkeys("‘’‚‛′‹›ʼ`´", "'"),
    **dict.fromkeys("“”„‟″«»〝〞", '"'),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("—―", " -- "),
    "¡": "!", "¿": "?", "。": ".", "、": ",", "…": "...",
    "ß": "ss", "ẞ": "ss", "æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "ø": "o", "Ø": "o",
    "ł": "l", "Ł": "l", "đ": "d", "Đ": "d", "ð": "d", "Ð": "d", "þ": "th", "Þ": "th", "ı": "i", "ħ": "h",
    "Ħ": "h", "ŋ": "ng", "Ŋ": "ng",
    "×": " times ", "÷": " divided by ", "±": " plus or minus ", "°": " degrees ", "µ": "micro", "™": "",
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "№": " number ",
}  # fmt: skip
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu",
    "ν": "nu", "ξ": "xi", "ο": "omicron", "π": "pi", "ρ": "rho", "σ": "sigma",
    "ς": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi",
    "ω": "omega",
}  # fmt: skip
ABBREVIATIONS = {
    "mrs": "misses", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior",
    "maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant",
    "hon": "honorable", "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited",
    "col": "colonel", "ft": "fort",
}  # fmt: skip
CURRENCIES = {  # one, several, and the hundredth
    "$": ("dollar", "dollars", "cents"),
    "€": ("euro", "euros", "cents"),
    "£": ("pound", "pounds", "pence"),
    "¥": ("yen", "yen", "sen"),
}
SCALES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}

_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_NUMBER = r"(?P<number>\d+(?:,\d{3})*(?:\.\d+)?)"
_SCALE = r"(?:\s*(?P<scale>(?:thousand|million|billion|trillion|k|m|bn|b|tn)(?![a-z0-9])))?"
_AMOUNT = re.compile(rf"(?P<sign>[{''.join(CURRENCIES)}])\s*{_NUMBER}{_SCALE}(?![a-z0-9])")
_AMOUNT_BEFORE = re.compile(rf"(?<![\d.,]){_NUMBER}\s*(?P<sign>[{''.join(CURRENCIES)}])(?P<scale>)")
_FEET = re.compile(r"(?<=\d)\s*ft\.?(?![a-z0-9])")
_ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.(?=(\w?))")


def clean(text: str) -> str:
    """Returns a text as a phonemiser reads it: lower-case printable ASCII with single spaces.

    Tags such as <laughs>, emoji and other pictures are left out. Cleaning a clean text changes nothing.

    Raises:
        ArgumentError: the text has letters that English has no sound for.
    """
    text = _ascii(text).lower()
    while (found := _TAG.sub(" ", text)) != text:
        text = found
    text = _AMOUNT.sub(_amount, text)
    text = _AMOUNT_BEFORE.sub(_amount, text)
    for sign, (_, several, _) in CURRENCIES.items():
        text = text.replace(sign, f" {several} ")
    text = _FEET.sub(" feet", text)
    text = _ABBREVIATION.sub(lambda found: ABBREVIATIONS[found[1]] + " " * bool(found[2]), text)
    return " ".join(text.split())


def _ascii(text: str) -> str:
    """A text in ASCII and the signs of currencies."""
    text = "".join(SPOKEN_AS.get(character, character) for character in text)
    found, foreign = [], []
    for character in unicodedata.normalize("NFKD", text):
        kind = unicodedata.category(character)
        if (character.isascii() and character.isprintable()) or character in CURRENCIES:
            found.append(character)
        elif kind == "Nd":
            found.append(str(unicodedata.decimal(character)))
        elif character.lower() in GREEK:
            found.append(f" {GREEK[character.lower()]} ")
        elif character in SPOKEN_AS:  # out of a decomposition
            found.append(SPOKEN_AS[character])
        elif kind == "Mn" or kind == "Cf":  # an accent, or a hint for typesetting
            continue
        elif kind.startswith("L"):
            foreign.append(character)
        else:  # a picture, or a space of some kind
            found.append(" ")
    if foreign:
        letters = some(list(dict.fromkeys(foreign)))
        raise ArgumentError(
            "transcription",
            text,
            "be English in Latin letters, or be given as phonemes",
            given=f"contains {letters}",
        )
    return "".join(found)


def _amount(found: re.Match[str]) -> str:
    """An amount of money in the order in which it is spoken."""
    one, several, hundredth = CURRENCIES[found["sign"]]
    number, scale = found["number"], found["scale"]
    if scale:
        return f" {number} {SCALES.get(scale, scale)} {several}"
    whole, _, part = number.partition(".")
    if len(part) != 2:
        return f" {number} {one if number == '1' else several}"
    spoken = [] if whole.strip("0") == "" else [f"{whole} {one if whole == '1' else several}"]
    if part != "00" or not spoken:
        spoken.append(f"{int(part)} {hundredth}")
    return " " + " and ".join(spoken)
