"""Phonemes from libespeak-ng, through its C interface.

The library is found and initialised at the first use. It may be, in this order:

1. the file that the environment variable PHONEMIZER_ESPEAK_LIBRARY names, as for the package phonemizer;
2. the system's libespeak-ng;
3. the one in the package espeakng_loader (`pip install espeakng-loader`, or the extra "speech");
4. the system's libespeak, which espeak-ng continues.

espeak-ng is under the GPL-3. Nothing of it is part of this package.

Traps
- The library has global state, a voice among it: one lock, and the voice is chosen in each call.
- It ends the process where its data is missing, unless it is initialised with DONT_EXIT.
- It changes the process's LC_CTYPE.
- A word beyond its buffers ends the process as well: longer ones are refused here.

Source: speak_lib.h of espeak-ng 1.51.
"""

import ctypes
import locale
import os
import re
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from audioldm2.errors import ArgumentError

VARIABLE = "PHONEMIZER_ESPEAK_LIBRARY"
VOICE = b"en-us"
LONGEST_WORD = 100  # characters between two spaces; far below espeak's buffers
OLDEST = (1, 48)  # the phoneme modes below came with it

SYNCHRONOUS, DONT_EXIT = 2, 0x8000  # no sound device is opened
UTF8, IPA = 1, 2
_FLAG = re.compile(r"\([a-z-]+\)")  # where espeak changes the language: "(fr)"

INSTALL = (
    "Install it with pip install espeakng-loader on Linux (x86-64), macOS (Apple silicon) and Windows; "
    "with apt install libespeak-ng1 or dnf install espeak-ng on other Linux machines; with brew install "
    "espeak-ng on other Macs. Phonemes (phonemes=, --phonemes) need no espeak."
)


class EspeakError(ValueError):
    """No espeak library that can be used; the message says what to install."""


class Espeak:
    """An initialised library.

    Args:
        path: its file, or the name by which the system finds it.
        data: the folder espeak-ng-data; None leaves it to the library.

    Raises:
        EspeakError: it cannot be loaded or initialised, or is too old.
    """

    def __init__(self, path: str, data: str | None = None):
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise EspeakError(f"{path} cannot be loaded ({error})") from error
        try:
            info = library.espeak_Info
            start, self._set_voice = library.espeak_Initialize, library.espeak_SetVoiceByName
            self._read = library.espeak_TextToPhonemes
        except AttributeError as error:
            raise EspeakError(f"{path} is no espeak library, or one that is too old") from error
        info.restype, info.argtypes = ctypes.c_char_p, [ctypes.POINTER(ctypes.c_char_p)]
        start.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self._set_voice.argtypes = [ctypes.c_char_p]
        self._read.restype = ctypes.c_char_p
        self._read.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]

        before = locale.setlocale(locale.LC_CTYPE)
        try:
            rate = start(SYNCHRONOUS, 0, os.fsencode(data) if data else None, DONT_EXIT)
        finally:
            locale.setlocale(locale.LC_CTYPE, before)
        if rate <= 0:
            raise EspeakError(f"{path} does not find its data")
        if self._set_voice(VOICE) != 0:
            raise EspeakError(f"{path} has no American English voice")
        text = info(None).decode("utf-8", "replace").split()[0]
        numbers = tuple(map(int, re.findall(r"\d+", text)[:2]))
        if numbers < OLDEST:
            raise EspeakError(f"{path} is version {text}, which is older than {'.'.join(map(str, OLDEST))}")
        self.version = f"{'espeak-ng' if numbers >= (1, 49) else 'espeak'} {text}"

    def phonemes(self, text: str) -> str:
        """The phonemes (IPA, with stress) of a text without punctuation; words are a space apart.

        Raises:
            ArgumentError: the text has a word that is too long for espeak.
        """
        longest = max(text.split(), key=len, default="")
        if len(longest) > LONGEST_WORD:
            raise ArgumentError(
                "transcription",
                longest,
                f"have words of at most {LONGEST_WORD} characters",
                given=f"contains a word of {len(longest)} characters, '{longest[:20]}...'",
            )
        rest, found = ctypes.c_char_p(text.encode("utf-8", "ignore")), []
        self._set_voice(VOICE)
        while rest.value is not None:  # one clause a call
            clause = self._read(ctypes.byref(rest), UTF8, IPA)
            found.append((clause or b"").decode("utf-8", "replace"))
        return " ".join(_FLAG.sub("", " ".join(found)).split())


_LOCK = threading.Lock()
_found: Espeak | None = None


def phonemes(texts: list[str]) -> list[str]:
    """The phonemes (IPA, with stress) of texts without punctuation, in American English.

    Raises:
        EspeakError: no espeak library is found, or none that can be used.
        ArgumentError: a text has a word that is too long for espeak.
    """
    with _LOCK:
        espeak = _espeak()
        return [espeak.phonemes(text) for text in texts]


def version() -> str:
    """The name and version of the library, such as "espeak-ng 1.51"; raises EspeakError without one."""
    with _LOCK:
        return _espeak().version


def _espeak() -> Espeak:
    global _found
    if _found is None:
        _found = find()
    return _found


def find() -> Espeak:
    """The first library that can be used.

    Raises:
        EspeakError: none can be used, or not the one that the environment names.
    """
    if chosen := os.environ.get(VARIABLE):
        try:
            return Espeak(chosen, _data_beside(chosen))
        except EspeakError as error:
            raise EspeakError(f"{VARIABLE} names a library that cannot be used: {error}.") from error
    broken = []
    for path, data in candidates():
        try:
            return Espeak(path, data)
        except EspeakError as error:
            if not isinstance(error.__cause__, OSError) or Path(path).is_file():  # it is there
                broken.append(str(error))
    if broken:
        raise EspeakError(f"No espeak can be used to read a text: {'; '.join(broken)}. {INSTALL}")
    raise EspeakError(f"Reading a text needs espeak-ng, which is not found. {INSTALL}")


def candidates() -> Iterator[tuple[str, str | None]]:
    """Files or names of libraries that may be there, each with its data folder if it has its own."""
    yield from ((path, None) for path in _system("espeak-ng"))
    try:
        loader = import_module("espeakng_loader")
        yield loader.get_library_path(), loader.get_data_path()
    except (ImportError, RuntimeError):  # not installed, or without its data
        pass
    yield from ((path, None) for path in _system("espeak"))


def _system(name: str) -> list[str]:
    """Where the system's library of a name may be."""
    if sys.platform == "win32":
        folders = [os.environ[key] for key in ("ProgramFiles", "ProgramFiles(x86)") if key in os.environ]
        folders = [
            os.path.join(folder, "eSpeak NG" if name == "espeak-ng" else "eSpeak") for folder in folders
        ]
        return [f"lib{name}.dll", *(os.path.join(folder, f"lib{name}.dll") for folder in folders)]
    if sys.platform == "darwin":
        folders = ["/opt/homebrew/lib", "/usr/local/lib", "/opt/local/lib"]  # Homebrew's two, MacPorts
        return [f"lib{name}.dylib", *(f"{folder}/lib{name}.dylib" for folder in folders)]
    return [f"lib{name}.so.1", f"lib{name}.so"]


def _data_beside(path: str) -> str | None:
    folder = Path(path).parent / "espeak-ng-data"
    return str(folder) if folder.is_dir() else None
