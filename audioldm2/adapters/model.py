"""What a loaded model does with adapters and new words: load, weigh, unload, merge.

What reads their files is imported when it is needed: most models are used without.
"""

import copy
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from audioldm2.adapters.adapter import Adapter, additions
from audioldm2.errors import ArgumentError, require_choice, require_number
from audioldm2.prompt.tokenizers import T5Tokenizer
from audioldm2.prompt.words import Word
from audioldm2.runtime.placement import Networks

LARGEST_WEIGHT = 100.0
LAYOUTS = ("converted", "diffusers")
_changing = threading.Lock()  # held while the networks of a model with other adapters are built
_swapping = threading.Lock()  # held while they take the place of the old ones


class BaseWarning(UserWarning):
    """An adapter or a new word was trained on a model with other weights."""


Model = TypeVar("Model", bound="Adaptable")


class Adaptable:
    """The part of a model that adapters change.

    The weights of a model never change: with adapters it has other networks, which share their weights with
    those without. A request keeps the networks that the model had when it began.
    """

    networks: Networks
    t5_tokenizer: T5Tokenizer | None
    adapters: tuple[Adapter, ...] = ()  # in the order in which they were loaded
    words: tuple[Word, ...] = ()  # new ones, in the order in which they were loaded

    def load_lora(self, source: str | os.PathLike, weight: float = 1.0, name: str | None = None) -> str:
        """Load a LoRA adapter beside those that are loaded already; it acts from the next request on.

        Args:
            source: a folder in PEFT's layout, a .safetensors file of PEFT, diffusers or kohya, or a hub id.
            weight: multiplies what the adapter adds; 0 adds nothing.
            name: for `unload_lora` and the record of a sound; by default that of the folder or file.

        Returns:
            The name.

        Raises:
            ArgumentError: the weight is not a number, or the name is taken.
            WeightsError: the adapter cannot be found or read, or does not fit this model.

        Warns (BaseWarning) if the adapter says that it was trained on other weights than this model's.
        """
        weight = require_number("weight", weight, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        if name is not None and (not isinstance(name, str) or not name):
            raise ArgumentError("name", name, "be a text")
        from audioldm2.adapters import reading

        adapter = replace(reading.read(source, self.networks.configs, name), weight=weight)
        self._warn_of_other_base(adapter.name, adapter.metadata, adapter.layers)

        def appended(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
            if adapter.name in _names(adapters):
                raise ArgumentError("name", adapter.name, "differ from the adapters that are loaded already")
            return (*adapters, adapter)

        self._change(appended)
        return adapter.name

    def set_lora_weight(self, name: str, weight: float) -> None:
        """Give a loaded adapter another weight; it counts from the next request on.

        Raises:
            ArgumentError: the weight is not a number, or no adapter has this name.
        """
        weight = require_number("weight", weight, -LARGEST_WEIGHT, LARGEST_WEIGHT)

        def weighed(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
            _require_loaded(name, adapters)
            return tuple(replace(each, weight=weight) if each.name == name else each for each in adapters)

        self._change(weighed)

    def unload_lora(self, name: str | None = None) -> None:
        """Take an adapter out, or all of them if there is no name; what is left is as it was, to the bit.

        Raises:
            ArgumentError: no adapter has this name.
        """

        def without(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
            if name is None:
                return ()
            _require_loaded(name, adapters)
            return tuple(each for each in adapters if each.name != name)

        self._change(without)

    def load_word(self, source: str | os.PathLike) -> str:
        """Load a new word, which prompts may contain from the next request on.

        Args:
            source: the file, or the folder that `audioldm2 train --new-word` writes.

        Returns:
            The word as prompts write it.

        Raises:
            ArgumentError: the word is loaded already or in T5's vocabulary, or the model has no T5.
            WeightsError: the file cannot be found or read, or does not fit this model.

        Warns (BaseWarning) if the word says that it was trained with another T5 than this model's.
        """
        from audioldm2.adapters import words

        word = words.read(source, self.t5_tokenizer, self.networks.configs)
        self._warn_of_other_base(word.text, word.metadata, ["t5"])
        with _swapping:
            if word.text in [each.text for each in self.words]:
                raise ArgumentError("word", word.text, "differ from the words that are loaded already")
            self.words = (*self.words, word)
        return word.text

    def unload_word(self, text: str | None = None) -> None:
        """Take a new word out, or all of them if there is no text; what is left is as it was, to the bit.

        Raises:
            ArgumentError: no such word is loaded.
        """
        with _swapping:
            if text is not None:
                require_choice("word", text, [each.text for each in self.words])
            self.words = tuple(each for each in self.words if text not in (None, each.text))

    def merge_lora(self) -> None:
        """Fold the loaded adapters into the weights, which then compute the same without them.

        Reads the model's networks anew, so it takes as long as loading the model. It cannot be undone; the
        record of later sounds still lists the adapters, as merged. `save` writes the merged model, which
        lists them too.
        """
        with _changing:
            base = self.networks.without_additions()
            from audioldm2.adapters.merging import merged

            networks = base.reloaded(merged(base.checkpoint, self.adapters))  # type: ignore[arg-type]
            with _swapping:
                self.networks, self.adapters = networks, ()

    def save(
        self,
        folder: str | os.PathLike,
        *,
        layout: str = "converted",
        dtype: torch.dtype | None = None,
        force: bool = False,
    ) -> None:
        """Write the whole model, with the adapters that are merged into it.

        Args:
            folder: where to.
            layout: "converted", which loads fastest, or "diffusers".
            dtype: of every tensor; None keeps each, and weights with merged adapters are float32.
            force: replace the folder if it exists.

        Raises:
            ArgumentError: the layout is unknown, or adapters are loaded that are not merged.
            FileExistsError: the folder exists and `force` is not given.
            OSError: the disk refuses.
        """
        from audioldm2.checkpoints import storage
        from audioldm2.checkpoints.converter import require_converter

        require_choice("layout", layout, LAYOUTS)
        if self.adapters:
            allowed = "be merged before the model is saved: merge_lora(), or unload_lora()"
            raise ArgumentError("adapters", self.adapters, allowed, given=f"are {_names(self.adapters)}")
        write: Callable[..., None] = storage.write
        if layout == "diffusers":
            require_converter()
            from audioldm2 import convert

            write = convert.write_diffusers
        write(self.networks.checkpoint, Path(folder), dtype=dtype, force=force)

    def as_it_is_now(self: "Model") -> "Model":
        """This model with its present adapters, whatever another thread loads meanwhile: for one request."""
        with _swapping:
            return copy.copy(self)

    def describe_adapters(self) -> list[dict[str, Any]]:
        """The adapters that act on the next request, merged ones first, for its record."""
        merged = getattr(self.networks.checkpoint, "merged", ())  # when this model was made, or since
        found = [dict(each) | {"merged": True} for each in merged]
        return found + [each.describe() | {"merged": False} for each in self.adapters]

    def _warn_of_other_base(self, what: str, metadata: Mapping[str, str], names: Iterable[str]) -> None:
        """Warn if an adapter or a word has the hash of the weights that it is for, and ours differ."""
        expected = metadata.get("base_sha256")
        if not expected:
            return
        from audioldm2.adapters.writing import hash_of

        if hash_of(self.networks.checkpoint.states, names) != expected:
            warnings.warn(
                f"{what} was trained on other weights than this model has, those of "
                f"{metadata.get('base_model') or 'an unnamed model'}; it may do little, or something else",
                BaseWarning,
                stacklevel=3,
            )

    def _change(self, change: Callable[[tuple[Adapter, ...]], tuple[Adapter, ...]]) -> None:
        """Replace the adapters, and the networks by some with these adapters."""
        with _changing:
            adapters = change(self.adapters)
            networks = self.networks.with_additions(additions(adapters))
            with _swapping:
                self.adapters, self.networks = adapters, networks


def _require_loaded(name: str, adapters: tuple[Adapter, ...]) -> None:
    if not adapters:
        raise ArgumentError("name", name, "be that of a loaded adapter, and none is loaded")
    require_choice("name", name, _names(adapters))


def _names(adapters: tuple[Adapter, ...]) -> list[str]:
    return [each.name for each in adapters]
