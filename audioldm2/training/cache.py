"""What frozen networks compute, kept on disk: latents of clips, CLAP's and T5's vectors of captions.

A latent's key is a hash of the clip's samples, of the VAE's weights and of the settings that its computation
depends on. The samples are those after cropping, padding and bringing to a level, so another crop rule or
level gives another key. A caption's key is a hash of its tokens and of its network's weights. Nothing that is
kept can thus be out of date, and runs with the same sounds share it.

A new random crop is a new clip, which the cache cannot know. So a run with a cache needs clips that repeat:
sounds no longer than a clip, or a fixed number of crops a sound (`crops` in the recipe), or a pool.

Each entry is a safetensors file, which is written beside its place and renamed: a killed run leaves whole
entries, and the next one continues with them. A file that cannot be read is computed again.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from audioldm2.files import atomic_write, is_refused_write, remove_drafts
from audioldm2.prompt.encode import TextEncoders
from audioldm2.prompt.words import for_clap
from audioldm2.training.sound_checks import cache_folder

_FORMAT = "1"  # of what is kept; another one is another key
SUFFIX = ".safetensors"


def training_cache() -> Path:
    """Returns the folder of the cache that all runs of a user share."""
    return cache_folder() / "training"


class TensorCache:
    """Tensors on disk by key.

    Args:
        folder: where; it is created if need be. Several runs may use it at once.
        limit: bytes of all entries, beyond which nothing more is kept. What others write meanwhile is counted
            at the next start. Nothing is removed: the folder may be deleted at any time.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder)
        self.bytes = sum(path.stat().st_size for path in folder.glob(f"*{SUFFIX}"))
        self.complete = True  # whether everything that was computed has been kept
        self._lock = threading.Lock()  # the next batch is prepared while a step runs

    def get(self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """Returns the tensors of some keys, on the CPU.

        Args:
            keys: they may repeat.
            compute: called with the places of the keys that are missing, each key once, if there are any;
                returns their tensors.
        """
        found = {key: self._read(key) for key in keys}
        missing = [keys.index(key) for key, tensor in found.items() if tensor is None]
        if missing:
            for place, tensor in zip(missing, compute(missing), strict=True):
                tensor = tensor.detach().cpu().contiguous().clone()
                found[keys[place]] = tensor
                self._write(keys[place], tensor)
        return [found[key] for key in keys]  # type: ignore[misc]

    def _read(self, key: str) -> Tensor | None:
        try:
            return load_file(self.folder / f"{key}{SUFFIX}")["tensor"]
        except (OSError, SafetensorError, KeyError):
            return None

    def _write(self, key: str, tensor: Tensor) -> None:
        with self._lock:
            if self.bytes + tensor.nbytes > self.limit:
                self.complete = False
                return
            self.bytes += tensor.nbytes
        try:
            with atomic_write(self.folder / f"{key}{SUFFIX}") as draft:
                save_file({"tensor": tensor}, draft)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_refused_write(error) and not isinstance(error, SafetensorError):
                raise
            self.complete = False  # a full disk: training goes on without the cache


def key_of(*parts: object) -> str:
    """Returns a hash of tensors and of the printed form of everything else."""
    digest = hashlib.blake2b(_FORMAT.encode(), digest_size=20)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().numpy().data)
        else:
            digest.update(f"{part!r}\0".encode())
    return digest.hexdigest()


def cached_latents(
    cache: TensorCache, settings: object, wave: Tensor, encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns `encode(wave)`, of which only clips that the cache lacks are computed.

    Args:
        cache: keeps a tensor for each clip.
        settings: all else that the result depends on, by its printed form.
        wave: clips (batch, samples).
        encode: maps clips (some, samples) to tensors (some, ...).
    """
    keys = [key_of("latent", settings, clip) for clip in wave]
    return torch.stack(cache.get(keys, lambda missing: list(encode(wave[missing]))))


class CachedTexts(TextEncoders):
    """Text encoders that compute the vectors of each text once.

    T5 reads a text without padding, and its vectors are padded with zeros, which every reader masks.

    Args:
        encoders: those of the model.
        cache: keeps the vectors.
        settings: of each encoder that does not learn, by the network's name: what its output depends on. The
            others run at each call.
    """

    def __init__(self, encoders: TextEncoders, cache: TensorCache, settings: dict[str, object]) -> None:
        super().__init__(encoders.networks, encoders.clap_tokenizer, encoders.t5_tokenizer, encoders.words)
        self.cache, self.settings = cache, settings

    def read_clap(self, texts: Sequence[str]) -> Tensor:
        assert self.clap_tokenizer is not None
        if "clap_text" not in self.settings:
            return super().read_clap(texts)
        ids = [self.clap_tokenizer.encode(for_clap(text, self.words)) for text in texts]
        keys = [key_of("clap_text", self.settings["clap_text"], each) for each in ids]
        read = super().read_clap
        found = self.cache.get(keys, lambda missing: list(read([texts[place] for place in missing])))
        return torch.stack(found).to(self.networks.device)

    def read_t5(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        assert self.t5_tokenizer is not None
        if "t5" not in self.settings:
            return super().read_t5(texts, length)
        ids = [self.t5_tokenizer.encode(text) for text in texts]
        keys = [key_of("t5", self.settings["t5"], each) for each in ids]
        read = super().read_t5
        found = self.cache.get(
            keys, lambda missing: [read([texts[place]], len(ids[place]))[0][0] for place in missing]
        )  # of each (its tokens, t5_dim)
        padded = torch.stack([F.pad(each, (0, 0, 0, length - len(each))) for each in found])
        mask = torch.arange(length)[None] < torch.tensor([len(each) for each in found])[:, None]
        device = self.networks.device
        return padded.to(device), mask.to(device)
