"""Stage 4: the denoiser learns to predict the noise in a latent, conditioned on the caption.

GPT-2 and the projection before it are trained together with the denoiser by its loss alone. CLAP and the VAE
are frozen, and so is T5 unless the recipe trains it. One caption in ten is dropped, so that the denoiser also
learns the unconditional distribution, which guidance needs.

What a recipe can choose is in `ldm_recipe`. The file is a little long because the adapters' stages build on
each part of a step: drawing, conditioning, noise, prediction.

Source: Ho et al. 2020, "DDPM" (arXiv 2006.11239), algorithm 1; Ho & Salimans 2022 (arXiv 2207.12598) for the
dropped captions; haoheliu/AudioLDM-training-finetuning, `LatentDiffusion.get_input` and
`CLAPAudioEmbeddingClassifierFreev2.forward`, for how upstream drops them; AudioLDM 2 (arXiv 2308.05734),
section III, and `AudioMAEConditionCTPoolRandTFSeparated` and `Sequence2AudioMAE` of the same code for LOA.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from audioldm2.checkpoints.storage import Checkpoint, schedule_of
from audioldm2.errors import ArgumentError
from audioldm2.models.unet import GPT2
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import Row, encode_rows, negative_row
from audioldm2.prompt.openings import Opening
from audioldm2.training.conditioned import LENGTH_STEP, ConditionedStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.loa import pack, predict_loa, unpack
from audioldm2.training.losses import noise_loss
from audioldm2.training.recipe import Recipe
from audioldm2.training.speech import FrameHead, KeptRows, auxiliary_loss
from audioldm2.training.stage import Sample

VALIDATION_TIMES = 8  # parts of the schedule; each validation clip is noised to one time in each


class Draws(NamedTuple):
    """What chance gives a step: of each clip the latent, its noise and time, and what is dropped."""

    mean: Tensor  # (batch, channels, time, mel): of the latent, without the VAE's noise
    x0: Tensor  # the same shape
    eps: Tensor  # the same shape
    t: Tensor  # (batch,)
    dropped: Tensor  # (batch,) bool, captions
    clap_dropped: Tensor  # (batch,) bool, captions for CLAP alone
    offset: int  # of the padded lengths, see `conditioned.LENGTH_STEP`
    loa: Tensor | None = None  # (batch, tokens, dim), where the recipe reads it
    heard: Tensor | None = None  # (batch,) bool: its LOA stands in place of GPT-2's vectors

    def of(self, rows: slice) -> "Draws":
        """Those of some clips."""
        parts = (each[rows] if isinstance(each, Tensor) else each for each in self)
        return Draws(*parts)  # type: ignore[arg-type]


class LDMStage(ConditionedStage[LDMRecipe]):
    """Trains the denoiser and the networks that condition nothing else."""

    name = "ldm"
    generates = True
    recipes: ClassVar = {
        "published": LDMRecipe(),
        "small": LDMRecipe(
            normalize=False, unconditional="reference", clap_dropout=0.0,
            batch=32, seconds=2.56, pool=16_384, steps=7500, learning_rate=1e-3, warmup=300,
            schedule="cosine", ema=0.999, min_snr=5.0, train_t5=True,
        ),
        "finetune": LDMRecipe(batch=8, steps=2000, learning_rate=1e-4, warmup=50, ema=0.995),
    }  # fmt: skip

    def __init__(
        self, checkpoint: Checkpoint, recipe: LDMRecipe, device: torch.device, seed: int = 0
    ) -> None:
        if (recipe.gt_loa or recipe.loa_weight) and GPT2 not in checkpoint.configs["unet"].roles:
            allowed = f"be 0 for {checkpoint.source}, whose denoiser reads no vectors of GPT-2"
            raise ArgumentError(
                "gt_loa" if recipe.gt_loa else "loa_weight", True, allowed, given="is above 0"
            )
        super().__init__(checkpoint, recipe, device, seed)
        self.kept = KeptRows()  # of a model that speaks, while GPT-2 does not learn
        self.schedule = schedule_of(checkpoint, checkpoint.source)
        self.alpha_bar = self.schedule.alpha_bar.float()  # (steps,)

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns the recipe "finetune" with what depends on the model.

        A model that learnt another level than the published ones was trained here and says how its captions
        were dropped. All others have learnt what upstream trains; a converted one records "reference" only
        because it samples by default as the reference pipeline does.
        """
        recipe = cast(LDMRecipe, super().recipe_for(checkpoint))
        if checkpoint.normalized or checkpoint.unconditional == "trained":
            return recipe
        return replace(recipe, unconditional=checkpoint.unconditional, clap_dropout=0.0)

    @classmethod
    def reads_captions(cls, recipe: Recipe) -> bool:
        return not isinstance(recipe, LDMRecipe) or recipe.gt_loa < 1

    @property
    def reads_loa(self) -> bool:
        """Whether AudioMAE reads the clips."""
        return bool(self.recipe.gt_loa or self.recipe.loa_weight)

    @property
    def only_loa(self) -> bool:
        """Whether the denoiser never meets a caption."""
        return self.recipe.gt_loa == 1

    def make_helpers(self) -> dict[str, nn.Module]:
        """Builds the layer that predicts latents from GPT-2's vectors, if the recipe asks for its error."""
        configs = self.initial.configs
        if not self.recipe.auxiliary_weight:
            return {}
        if GPT2 not in configs["unet"].roles:
            allowed = f"be 0 for {self.initial.source}, which has no GPT-2"
            raise ArgumentError("auxiliary_weight", self.recipe.auxiliary_weight, allowed)
        mel = configs["hifigan"].mels // self.downsampling
        return {"head": FrameHead(configs["gpt2"].dim, configs["vae"].latent_channels, mel)}

    def trainable(self) -> tuple[str, ...]:
        if self.only_loa:
            return ("unet",)
        return (
            "unet",
            *(self.continuing if self.recipe.train_gpt2 else ()),
            *(("t5",) if self.reads_t5 and self.recipe.train_t5 else ()),
        )

    def frozen(self) -> tuple[str, ...]:
        config, trainable = self.initial.configs["unet"], self.trainable()
        used = (
            "unet",
            "vae",
            *(("audiomae",) if self.reads_loa else ()),
            *(("clap_text",) if config.film_dim or GPT2 in config.roles else ()),
            *(("t5",) if self.reads_t5 else ()),
            *self.continuing,
        )
        return tuple(name for name in used if name not in trainable)

    @torch.no_grad()
    def prepare(self, wave: Tensor) -> Tensor:
        """Encodes clips to means and standard deviations of latents: (batch, 2, channels, time, mel).

        Where the recipe reads LOA, a row holds that too; see `loa.pack`.
        """
        latents = self.cached("vae", wave, self.encode_clips).to(self.device)
        return pack(latents, self.loa(wave)) if self.reads_loa else latents

    @torch.no_grad()
    def encode_clips(self, wave: Tensor) -> Tensor:
        """Computes the latents that `prepare` returns."""
        with self.autocast():
            parts = [
                torch.stack(self.network("vae").encode(self.mel(wave[rows].to(self.device)).unsqueeze(1)), 1)
                for rows in self.parts(len(wave))
            ]
        return torch.cat(parts).float()

    def draw(self, clips: Tensor, generator: torch.Generator) -> Draws:
        """Draws what a step needs for prepared clips."""
        recipe = self.recipe
        latents, loa = self._parted(clips)
        mean, x0 = self.latents(latents, generator)
        eps = self.randn_like(x0, generator)
        whole, rows = self.whole_batch(clips), self.ranks.rows
        t = rows(torch.randint(self.schedule.steps, (whole,), generator=generator))
        decisions = 1 if recipe.unconditional == "trained" else whole
        dropped = torch.rand(decisions, generator=generator) < recipe.prompt_dropout
        dropped = rows(dropped.expand(whole))
        offset = int(torch.randint(LENGTH_STEP, (), generator=generator))
        clap_dropped = self.draw_bools(clips, recipe.clap_dropout, generator)
        heard = self.draw_bools(clips, recipe.gt_loa, generator) if self.reads_loa else None
        return Draws(mean, x0, eps, t, dropped, clap_dropped, offset, loa, heard)

    def _parted(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latents (batch, 2, channels, time, mel) and LOA of prepared clips."""
        if not self.reads_loa:
            return clips, None
        configs = self.initial.configs
        shape = (2, configs["vae"].latent_channels, -1, configs["hifigan"].mels // self.downsampling)
        return unpack(clips, shape, (configs["gpt2"].new_vectors, configs["gpt2"].dim))

    def latents(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the means of latents (batch, 2, channels, time, mel), and what the denoiser learns."""
        mean, std = latents.unbind(dim=1)
        sample = mean + std * self.randn_like(std, generator)
        return mean, sample if self.recipe.latent_noise else mean

    def loss(self, captions: list[str], draws: Draws) -> Tensor:
        """Computes the loss of a batch, with gradients into the networks that are trained."""
        return torch.stack([weight * error for weight, error in self.errors(captions, draws).values()]).sum()

    def errors(self, captions: list[str], draws: Draws) -> dict[str, tuple[float, Tensor]]:
        """Computes what the loss is a sum of: names to weights and errors."""
        recipe, errors = self.recipe, {}
        dropped = draws.dropped
        alone = self.done < recipe.auxiliary_steps
        if alone:  # a dropped caption would teach GPT-2 nothing
            dropped = torch.zeros_like(dropped)
        with self.autocast():
            cond = self.encode(
                captions, dropped, draws.offset, draws.clap_dropped, loa=draws.loa, heard=draws.heard
            )
            if recipe.auxiliary_weight:
                assert cond.gpt2_context is not None, "make_helpers requires GPT-2"
                error = auxiliary_loss(self.helpers["head"], cond.gpt2_context, draws.mean, dropped)
                errors["auxiliary"] = recipe.auxiliary_weight, error
            if recipe.loa_weight:
                errors["loa"] = recipe.loa_weight, self.loa_error(captions, draws, dropped)
        if alone:
            return errors
        if not recipe.rollout_gradients and cond.gpt2_context is not None:
            cond = replace(cond, gpt2_context=cond.gpt2_context.detach())
        return errors | self.denoising_errors(captions, draws, cond)

    def denoising_errors(
        self, captions: list[str], draws: Draws, cond: Conditioning
    ) -> dict[str, tuple[float, Tensor]]:
        """Computes the denoiser's part of `errors`."""
        noisy, alpha_bar = self.noisy(draws)
        predicted = self.predict(noisy, draws.t, cond, recompute=self.recipe.recompute)
        return {"noise": (1.0, noise_loss(predicted, draws.eps, alpha_bar, self.recipe.min_snr))}

    def noisy(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Returns the noisy latents, and alpha_bar at their times, (batch,)."""
        alpha_bar = self.alpha_bar[draws.t].to(self.device)
        signal, noise = (part.sqrt().view(-1, 1, 1, 1) for part in (alpha_bar, 1 - alpha_bar))
        return signal * draws.x0 + noise * draws.eps, alpha_bar

    def predict(self, noisy: Tensor, t: Tensor, cond: Conditioning, *, recompute: bool = False) -> Tensor:
        """Returns the noise that the denoiser predicts, float32."""
        with self.autocast():
            predicted: Tensor = self.network("unet")(
                noisy, t.to(self.device), **cond.tensors, recompute=recompute
            )
        return predicted.float()

    def loa_error(self, captions: list[str], draws: Draws, dropped: Tensor) -> Tensor:
        """Computes the L1 error of GPT-2's vectors, each after the true ones; 0 for a dropped caption."""
        assert draws.loa is not None
        rows = self.rows(captions, torch.zeros_like(dropped), draws.offset, draws.clap_dropped)
        predicted = predict_loa(self.networks, self.encoders, rows, draws.loa)
        error = (predicted.float() - draws.loa).abs().mean(dim=(1, 2))  # (batch,)
        return (error * ~dropped.to(error.device)).mean()

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the error of the predicted noise, unweighted, over all times and in each part of them.

        The denoiser reads what it will read in use: GPT-2's vectors, but LOA where it learns on that alone.
        """
        latents, loa = self._parted(clips)
        _, x0 = self.latents(latents, generator)
        none = torch.zeros(len(clips), dtype=torch.bool)
        with self.autocast():
            cond = self.encode(captions, none, loa=loa, heard=~none if self.only_loa else none)
        edges = [round(part * self.schedule.steps / VALIDATION_TIMES) for part in range(VALIDATION_TIMES + 1)]
        metrics = {}
        for first, end in pairwise(edges):
            t = self.ranks.rows(torch.randint(first, end, (self.whole_batch(clips),), generator=generator))
            eps = self.randn_like(x0, generator)
            alpha_bar = self.alpha_bar[t].to(self.device).view(-1, 1, 1, 1)
            noisy, t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps, t.to(self.device)
            with self.autocast():
                parts = [
                    self.network("unet")(noisy[rows], t[rows], **cond[rows].tensors)
                    for rows in self.parts(len(clips))
                ]
            metrics[f"loss_t{first}-{end - 1}"] = (torch.cat(parts).float() - eps).square().mean()
        return {"loss": torch.stack(list(metrics.values())).mean()} | metrics

    def checkpoint(self) -> Checkpoint:
        """Returns the whole model; it keeps what generation has to know of its training."""
        recipe = self.recipe
        return replace(
            super().checkpoint(), seconds=recipe.seconds, normalized=recipe.normalize,
            unconditional=recipe.unconditional,
        )  # fmt: skip

    def rows(
        self, captions: list[str], dropped: Tensor, offset: int | None = None,
        clap_dropped: Tensor | None = None, *, loa: Tensor | None = None, heard: Tensor | None = None,
    ) -> list[Row]:  # fmt: skip
        """Returns what captions are encoded from; the arguments are those of `encode`."""
        rows, no = [], torch.zeros_like(dropped)
        captions = [""] * len(captions) if self.only_loa else captions
        lengths = self.padded_lengths(captions, None if self.only_loa else offset)
        flags = (dropped, no if clap_dropped is None else clap_dropped, no if heard is None else heard)
        for place, (caption, length, drop, drop_clap, hears) in enumerate(
            zip(captions, lengths, *(each.tolist() for each in flags), strict=True)
        ):
            if drop:
                rows.append(negative_row(self.encoders, "", length, self.recipe.unconditional))
                continue
            opening = Opening(loa[place]) if hears and loa is not None else None
            spoken = self.phoneme_ids(caption) if self.phoneme_ids and not self.only_loa else ()
            text = "" if drop_clap else caption
            rows.append(Row(caption, text, length, phonemes=spoken, opening=opening))
        return rows

    def encode(
        self, captions: list[str], dropped: Tensor, offset: int | None = None,
        clap_dropped: Tensor | None = None, *, loa: Tensor | None = None, heard: Tensor | None = None,
    ) -> Conditioning:  # fmt: skip
        """Encodes captions, with gradients into the networks that are trained.

        Args:
            captions: one per clip.
            dropped: (batch,) bool, True where the unconditional conditioning replaces the caption's.
            offset: of padded lengths, as in `padded_lengths`.
            clap_dropped: (batch,) bool, True where CLAP reads an empty text.
            loa: (batch, tokens, dim) of the clips.
            heard: (batch,) bool, True where these stand in place of GPT-2's vectors.
        """
        rows = self.rows(captions, dropped, offset, clap_dropped, loa=loa, heard=heard)
        if self.speaks and not self.recipe.train_gpt2 and not self.reads_loa:
            return Conditioning.cat(self.kept(self.networks, self.encoders, rows))
        return Conditioning.cat(encode_rows(self.networks, self.encoders, rows))

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields a generated sound for each caption, or like each clip, always from the same noise."""
        if self.only_loa:
            texts, given = [""] * len(wave), {"audio_prompt": list(wave)}
            captions = [f"like clip {i}" for i in range(len(wave))]
        else:
            texts, given = captions, {}
        spoken = [self.phoneme_ids.spelled(each) for each in captions] if self.phoneme_ids else None
        result = model.generate(texts, phonemes=spoken, audio_length_in_s=self.recipe.seconds, **given)
        for i, caption in enumerate(captions):
            yield Sample(f"{i}-{caption}", result.audio[i, 0], result.mel[i])
