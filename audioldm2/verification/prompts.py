"""The prompts whose CLAP scores compare readings: sound effects, music, speech-like sounds, scenes.

A speech model describes its voice by them, and speaks PHONEMES.
"""

PHONEMES = "wʌn, tu, θɹi."

PROMPTS = (
    "A dog barks twice",
    "Heavy rain falls on a tin roof",
    "A hammer hitting a wooden surface",
    "Birds sing in a forest",
    "A steam train passes by",
    "Waves break on a pebble beach",
    "A crowd cheers and applauds",
    "A church bell rings slowly",
    "A motorcycle engine idles, then accelerates",
    "Glass shatters on a stone floor",
    "Techno music with a strong, upbeat tempo and high melodic riffs",
    "A solo violin plays a slow, sad melody",
    "An acoustic guitar is strummed in a major key",
    "A brass band plays a march",
    "A lively jazz trio with piano, double bass and drums",
    "Ambient electronic music with soft pads",
    "A man speaks calmly in a quiet room",
    "Children laugh and play in a yard",
    "A baby cries",
    "A keyboard is typed on quickly",
)
