"""Captions of speech: a caption describes the voice, and carries what it says."""


class Spoken(str):
    """The caption of speech. What reads captions alone, as CLAP does, reads it as the text that it is.

    Attributes:
        transcription: the words; "" where the table has phonemes only.
        phonemes: the same in IPA; "" where they have to be found.
    """

    transcription: str
    phonemes: str

    def __new__(cls, caption: str, transcription: str = "", phonemes: str = "") -> "Spoken":
        spoken = super().__new__(cls, caption)
        spoken.transcription, spoken.phonemes = transcription, phonemes
        return spoken

    def __repr__(self) -> str:
        return f"Spoken({str(self)!r}, {self.transcription!r}, {self.phonemes!r})"
