"""Stage `loa`: GPT-2 learns to predict the language of audio (LOA) of a sound from its caption.

AudioMAE is frozen and computes LOA of every clip. GPT-2 reads the caption and then the true vectors, and
predicts each from those before it (teacher forcing). The projection learns with it, and T5 if the recipe says
so. In use GPT-2 reads its own vectors; validation measures that error too, beside the one of a constant
prediction.

Source: AudioLDM 2 (arXiv 2308.05734), section III-C. The L1 loss, teacher forcing and learning rate are
those of `Sequence2AudioMAE` in audioldm_train/modules/audiomae/sequence_gen/sequence_input.py of
haoheliu/AudioLDM-training-finetuning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models.unet import GPT2
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.encode import Row, TextEncoders, encode_rows
from audioldm2.runtime.placement import Networks
from audioldm2.training.conditioned import LENGTH_STEP, ConditionedRecipe, ConditionedStage
from audioldm2.training.recipe import Recipe
from audioldm2.training.stage import Sample


def predict_loa(networks: Networks, encoders: TextEncoders, rows: Sequence[Row], loa: Tensor) -> Tensor:
    """Computes GPT-2's vectors for rows, each predicted after the true ones before it.

    Args:
        networks: those of the model.
        encoders: of the texts.
        rows: what GPT-2 reads first.
        loa: (rows, tokens, dim), the true vectors.

    Returns:
        (rows, tokens, dim), with gradients into the networks that are trained.
    """
    places: list[int] = []
    found: list[Tensor] = []
    for length in sorted({row.length for row in rows}):
        alike = [place for place, row in enumerate(rows) if row.length == length]
        vectors = encoders.read([rows[place] for place in alike])
        with networks.running("projection") as projection:
            sequence, mask = projection(*vectors)  # (alike, seq + 5, dim)
        with networks.running("gpt2") as gpt2:
            found.append(gpt2.predict(sequence, mask, loa[alike].to(sequence.dtype)))
        places += alike
    return torch.cat(found)[torch.tensor(places).argsort()]


def pack(latents: Tensor, loa: Tensor) -> Tensor:
    """Joins latents (batch, ...) and LOA (batch, tokens, dim) to one row a clip, as a pool keeps clips."""
    return torch.cat([latents.flatten(1), loa.flatten(1)], dim=1)


def unpack(clips: Tensor, latents: tuple[int, ...], loa: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Takes rows of `pack` apart.

    Args:
        clips: (batch, numbers).
        latents: their shape without the batch; -1 for one unknown size.
        loa: its shape without the batch.
    """
    size = loa[0] * loa[1]
    return clips[:, :-size].unflatten(1, latents), clips[:, -size:].unflatten(1, loa)


@dataclass(frozen=True)
class LOARecipe(ConditionedRecipe):
    """The defaults are upstream's."""

    steps: int = 300_000
    learning_rate: float = 2e-4
    warmup: int = 1000


class Draws(NamedTuple):
    """What chance gives a step."""

    loa: Tensor  # (batch, tokens, dim)
    clap_dropped: Tensor  # (batch,) bool, captions for CLAP alone
    offset: int  # of the padded lengths, see `conditioned.LENGTH_STEP`

    def of(self, rows: slice) -> "Draws":
        """Those of some clips."""
        return Draws(self.loa[rows], self.clap_dropped[rows], self.offset)


class LOAStage(ConditionedStage[LOARecipe]):
    """Trains GPT-2 and what it alone reads."""

    name = "loa"
    recipes: ClassVar = {
        "published": LOARecipe(),
        "small": LOARecipe(
            normalize=False, clap_dropout=0.0, batch=64, seconds=2.56, pool=16_384, steps=3000,
            learning_rate=1e-3, warmup=100, schedule="cosine", ema=0.995, train_t5=True,
        ),
        "finetune": LOARecipe(batch=8, steps=2000, learning_rate=1e-4, warmup=50, ema=0.995),
    }  # fmt: skip

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns the recipe "finetune"; a model that was trained here never missed CLAP's vector."""
        recipe = super().recipe_for(checkpoint)
        if checkpoint.normalized or checkpoint.unconditional == "trained":
            return recipe
        return replace(recipe, clap_dropout=0.0)  # type: ignore[call-arg]

    def trainable(self) -> tuple[str, ...]:
        if GPT2 not in self.initial.configs["unet"].roles:
            raise ValueError(
                f"{self.initial.source} has no GPT-2 that its denoiser reads, which the stage 'loa' trains."
            )
        return (*self.continuing, *(("t5",) if self.reads_t5 and self.recipe.train_t5 else ()))

    def frozen(self) -> tuple[str, ...]:
        return tuple(
            name
            for name in ("audiomae", "clap_text", *(("t5",) if self.reads_t5 else ()), "unet")
            if name not in self.trainable()  # the UNet does not run: its config says what it reads
        )

    def prepare(self, wave: Tensor) -> Tensor:
        """Computes LOA of clips: (batch, tokens, dim)."""
        return self.loa(wave)

    def draw(self, clips: Tensor, generator: torch.Generator) -> Draws:
        """Draws what a step needs for LOA of clips."""
        offset = int(torch.randint(LENGTH_STEP, (), generator=generator))
        return Draws(clips, self.draw_bools(clips, self.recipe.clap_dropout, generator), offset)

    def errors(self, captions: list[str], draws: Draws) -> dict[str, tuple[float, Tensor]]:
        """Computes the L1 error of the predicted vectors."""
        rows = self.rows(captions, draws.clap_dropped, draws.offset)
        with self.autocast():
            predicted = predict_loa(self.networks, self.encoders, rows, draws.loa)
        return {"loa": (1.0, (predicted.float() - draws.loa).abs().mean())}

    def rows(
        self, captions: list[str], clap_dropped: Tensor | None = None, offset: int | None = None
    ) -> list[Row]:
        """Returns what GPT-2 reads before the vectors."""
        lengths = self.padded_lengths(captions, offset)
        without_clap = [False] * len(captions) if clap_dropped is None else clap_dropped.tolist()
        return [
            Row(
                caption, "" if drop_clap else caption, length,
                phonemes=self.phoneme_ids(caption) if self.phoneme_ids else (),
            )
            for caption, length, drop_clap in zip(captions, lengths, without_clap, strict=True)
        ]  # fmt: skip

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes L1 errors of the vectors.

        Returns:
            "loss": where GPT-2 reads its own vectors, as in use. "teacher_forced": where it reads the true
            ones. "mean": of the mean of these clips in place of a prediction.
        """
        rows = self.rows(captions)
        with self.autocast():
            forced = predict_loa(self.networks, self.encoders, rows, clips)
            generated = torch.cat(
                [each.tensors["gpt2_context"] for each in encode_rows(self.networks, self.encoders, rows)]
            )
        mean = self.ranks.gather(clips).mean(dim=0, keepdim=True)
        guesses = {"loss": generated, "teacher_forced": forced, "mean": mean}
        return {name: (guess.float() - clips).abs().mean() for name, guess in guesses.items()}

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields nothing: the denoiser has to learn these vectors before they sound. See validation.jsonl."""
        return iter(())
