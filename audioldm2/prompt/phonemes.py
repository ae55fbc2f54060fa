"""Phonemes as text -> the ids that the phoneme encoder of a speech model reads.

The published models know 183 symbols, listed after VITS and Tacotron (`convert.phonemes.SYMBOLS`). The first
pads, the last ends every text. The reference is `latent_diffusion/util.py` of haoheliu/AudioLDM2.

Traps
- A symbol that the table has twice (`'` in the published one) has the later id.
- Upstream, and `VitsTokenizer` of transformers, give an unknown symbol the id 0, which both read as padding:
  upstream loses a symbol at the end for each, diffusers the end itself. Here it is dropped, with a warning.
- Both lose the end of a text of 310 phonemes or more. Here it is kept, and the warning shows what is cut.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property

from audioldm2.errors import ArgumentError, require_whole, shown
from audioldm2.prompt.encode import TruncationWarning


class UnknownSymbolWarning(UserWarning):
    """Phonemes contained symbols that the model has not learnt."""


class PhonemeTokenizer:
    """Phonemes to ids and back.

    Args:
        symbols: of each id, "" for an id without one. The first pads, the last ends: neither is spoken.
        max_length: ids of a text at most, the end included.

    Raises:
        ArgumentError: there are fewer than two symbols, or `max_length` leaves no room.
    """

    def __init__(self, symbols: Sequence[str], max_length: int = 310) -> None:
        if len(symbols) < 2:
            raise ArgumentError("symbols", symbols, "contain one that pads and one that ends a text")
        self.symbols = tuple(symbols)
        self.max_length = require_whole("max_length", max_length, 1)
        self.end_id = len(symbols) - 1

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each symbol that can be spoken."""
        found = {symbol: number for number, symbol in enumerate(self.symbols) if symbol}
        return {symbol: found[symbol] for symbol in found if found[symbol] not in (0, self.end_id)}

    def encode(self, phonemes: str) -> list[int]:
        """Turn phonemes into ids, at most `max_length`; the last is that of the end.

        Warns (UnknownSymbolWarning) of symbols without an id, which are dropped, and (TruncationWarning) of
        the part that is too long, which is not spoken. Where several symbols match, the longest is taken.

        Raises:
            ArgumentError: `phonemes` is not a text.
        """
        if not isinstance(phonemes, str):
            raise ArgumentError("phonemes", phonemes, "be a text")
        split = list(self._split(phonemes))
        unknown = dict.fromkeys(symbol for symbol in split if symbol not in self.ids)
        if unknown:
            warnings.warn(
                f"the model has no phonemes {', '.join(map(repr, unknown))}; they are not spoken",
                UnknownSymbolWarning,
                stacklevel=2,
            )
        spoken = [symbol for symbol in split if symbol in self.ids]
        room = self.max_length - 1
        if len(spoken) > room:
            warnings.warn(
                f"the model speaks {room} phonemes at most, and these are {len(spoken)}; "
                f"this part is not spoken: {shown(''.join(spoken[room:]))}",
                TruncationWarning,
                stacklevel=2,
            )
        return [*(self.ids[symbol] for symbol in spoken[:room]), self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the phonemes of ids, without what pads and what ends them."""
        return "".join(self.symbols[number] for number in ids if number not in (0, self.end_id))

    def _split(self, phonemes: str) -> list[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, longest_first), "."]), phonemes, re.DOTALL)
