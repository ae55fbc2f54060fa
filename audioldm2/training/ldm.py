"""Stage 4: the denoiser learns to predict the noise in a latent, conditioned on the caption.

GPT-2 and the projection before it are trained together with the denoiser by its loss alone. CLAP and the VAE
are frozen, and so is T5 unless the recipe trains it. One caption in ten is dropped, so that the denoiser also
learns the unconditional distribution, which guidance needs.

What a dropped caption's conditioning is, and which are dropped together, follows `LDMRecipe.unconditional`:

- "trained", as upstream trains: the captions of a whole batch at once, with zeros for GPT-2's vectors and
  T5's vectors of the empty text unpadded. Besides, CLAP alone reads an empty text for one clip in ten. This
  is the default for the published sizes and for fine-tuning a published model, whose weights learnt it so.
- "reference": each caption by itself; the empty text goes through all text networks, which is what the
  reference pipeline (diffusers) samples with. The model in the box and others of the recipe "small" learn it
  so: they have no upstream to agree with, and sampling then needs no second reading of an empty prompt.

The saved model records the reading, and generation follows it.

A model that speaks has a phoneme encoder in T5's place, which learns too. Its captions carry what is said
(spoken.py). Its GPT-2 learns slowly from the denoiser's loss alone, so `LDMRecipe.auxiliary_weight` adds
another: a linear layer, which is not part of the model, predicts the frames of the latent from GPT-2's
vectors. It stands in for the AudioMAE features of upstream, which GPT-2 predicts there. For the first
`auxiliary_steps`, when GPT-2's vectors say nothing yet, the denoiser does not run.

Source: Ho et al. 2020, "DDPM" (arXiv 2006.11239), algorithm 1; Ho & Salimans 2022 (arXiv 2207.12598) for the
dropped captions; haoheliu/AudioLDM-training-finetuning, `LatentDiffusion.get_input` and
`CLAPAudioEmbeddingClassifierFreev2.forward`, for how upstream drops them; AudioLDM 2 (arXiv 2308.05734),
section III. The paper first trains GPT-2 to predict AudioMAE features of the sound (`models.audiomae`); here
GPT-2 learns from the denoiser's loss.

Traps
- With "reference", an empty caption is padded to the length of the caption that it replaces: guidance encodes
  a missing negative prompt that way, and GPT-2's output depends on the padding (see prompt/encode.py).
- Generation never pads prompts. But the text networks run once per distinct length in a batch, which for
  small networks takes half of a step. Lengths are therefore rounded up to a grid of every `LENGTH_STEP`th,
  whose offset is drawn at each step: GPT-2 sees every position, and every caption with no padding and with a
  little.

The file is a little long because it explains how captions are dropped, in which two schools differ.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from audioldm2.adapters.writing import hash_of
from audioldm2.checkpoints.storage import TOKENIZERS, Checkpoint, schedule_of
from audioldm2.errors import ArgumentError
from audioldm2.models.unet import GPT2, T5
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import UNCONDITIONAL, Row, TextEncoders, encode_rows, negative_row
from audioldm2.prompt.words import Word
from audioldm2.training.cache import CachedTexts, TensorCache, cached_latents, training_cache
from audioldm2.training.cache_filling import fill
from audioldm2.training.data import Captioned
from audioldm2.training.losses import noise_loss
from audioldm2.training.recipe import Recipe
from audioldm2.training.speech import FrameHead, KeptRows, PhonemeIds, auxiliary_loss, require_spoken
from audioldm2.training.stage import Sample, Stage

LENGTH_STEP = 4  # tokens between padded lengths
VALIDATION_TIMES = 8  # parts of the schedule; each validation clip is noised to one time in each


@dataclass(frozen=True)
class LDMRecipe(Recipe):
    """The defaults are upstream's, with Stable Diffusion's average of the weights."""

    normalize: bool = True
    steps: int = 1_500_000
    warmup: int = 5000
    weight_decay: float = 0.01
    ema: float = 0.9999
    prompt_dropout: float = 0.1  # fraction of captions that are dropped
    unconditional: str = "trained"  # what stands for a dropped caption: "trained" or "reference", see above
    clap_dropout: float = 0.1  # fraction of clips for which CLAP alone reads an empty text
    accumulate: int = 1  # parts of a batch that are computed one after the other; the loss stays the same
    recompute: bool = (
        False  # keep only the inputs of the denoiser's layers: less memory, one more forward pass
    )
    frozen_bf16: bool = False  # hold the weights that do not learn in bfloat16; needs bf16 or fp16
    cache_gb: float = 0.0  # of latents and text vectors, kept on disk (cache.py); 0: none
    min_snr: float | None = None  # gamma of min-SNR weighting, such as 5; null: no weighting
    train_t5: bool = False  # True for a T5 that was not pretrained
    train_gpt2: bool = True  # False: GPT-2 and what it reads stay, and the denoiser learns alone
    latent_noise: bool = True  # learn samples of the VAE's latents, as upstream; False: their means
    auxiliary_weight: float = 0.0  # of the error of latent frames predicted from GPT-2's vectors; 0: none
    auxiliary_steps: int = 0  # first steps, with this error alone: the denoiser does not run or learn yet

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            prompt_dropout=(0 <= self.prompt_dropout <= 1, "be from 0 to 1"),
            clap_dropout=(0 <= self.clap_dropout <= 1, "be from 0 to 1"),
            accumulate=(1 <= self.accumulate <= self.batch, "be from 1 to the batch size"),
            frozen_bf16=(self.bf16 or self.fp16 or not self.frozen_bf16, "be false without bf16 or fp16"),
            cache_gb=(self.cache_gb >= 0, "be at least 0"),
            unconditional=(self.unconditional in UNCONDITIONAL, f"be one of {', '.join(UNCONDITIONAL)}"),
            auxiliary_weight=(self.auxiliary_weight >= 0, "be at least 0"),
            auxiliary_steps=(
                self.auxiliary_steps >= 0 and (self.auxiliary_weight > 0 or not self.auxiliary_steps),
                "be at least 0, and 0 without auxiliary_weight",
            ),
            train_gpt2=(
                self.train_gpt2 or not (self.train_t5 or self.auxiliary_weight),
                "be true with train_t5 or auxiliary_weight",
            ),
        )


class Draws(NamedTuple):
    """What chance gives a step: of each clip the latent, its noise and time, and what is dropped."""

    mean: Tensor  # (batch, channels, time, mel): of the latent, without the VAE's noise
    x0: Tensor  # the same shape
    eps: Tensor  # the same shape
    t: Tensor  # (batch,)
    dropped: Tensor  # (batch,) bool, captions
    clap_dropped: Tensor  # (batch,) bool, captions for CLAP alone
    offset: int  # of the padded lengths, see `LENGTH_STEP`

    def of(self, rows: slice) -> "Draws":
        """Those of some clips."""
        mean, x0, eps, t, dropped, clap_dropped, offset = self
        return Draws(mean[rows], x0[rows], eps[rows], t[rows], dropped[rows], clap_dropped[rows], offset)


class LDMStage(Stage[LDMRecipe]):
    """Trains the denoiser and the networks that condition nothing else."""

    name = "ldm"
    captioned = True
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
        super().__init__(checkpoint, recipe, device, seed)
        tokenizers: dict[str, Any] = {
            name: kind.from_folder(checkpoint.tokenizers[name])
            for name, kind in TOKENIZERS.items()
            if name in checkpoint.tokenizers
        }
        self.encoders = TextEncoders(
            self.networks,
            tokenizers.get("clap_tokenizer"),
            tokenizers.get("t5_tokenizer"),
            self.words(),
        )
        self.phoneme_ids = PhonemeIds(checkpoint) if self.speaks else None
        self.kept = KeptRows()  # of a model that speaks, while GPT-2 does not learn
        self.cache: TensorCache | None = None
        self.hashes: dict[str, str] = {}  # of the weights of networks
        if recipe.cache_gb:
            self.cache = TensorCache(training_cache(), recipe.cache_gb * 1e9)
            texts = [name for name in ("clap_text", "t5") if name in self.frozen()]
            self.encoders = CachedTexts(
                self.encoders, self.cache, {name: self._settings_of(name) for name in texts}
            )
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

    @property
    def speaks(self) -> bool:
        """Whether the model has a phoneme encoder in T5's place."""
        return "phonemes" in self.initial.configs

    @property
    def _continuing(self) -> tuple[str, ...]:
        """GPT-2 and what it alone reads."""
        used = GPT2 in self.initial.configs["unet"].roles
        return (("projection", "gpt2") if used else ()) + (("phonemes",) if self.speaks else ())

    @property
    def _reads_t5(self) -> bool:
        return bool({GPT2, T5} & self.initial.configs["unet"].roles) and not self.speaks

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

    def require_captions(self, captions: Sequence[str]) -> None:
        require_spoken(captions, self.speaks, self.initial.source)

    def trainable(self) -> tuple[str, ...]:
        return (
            "unet",
            *(self._continuing if self.recipe.train_gpt2 else ()),
            *(("t5",) if self._reads_t5 and self.recipe.train_t5 else ()),
        )

    def frozen(self) -> tuple[str, ...]:
        config = self.initial.configs["unet"]
        return (
            "vae",
            *(("clap_text",) if config.film_dim or GPT2 in config.roles else ()),
            *(("t5",) if self._reads_t5 and not self.recipe.train_t5 else ()),
            *(() if self.recipe.train_gpt2 else self._continuing),
        )

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the networks that do not learn, half where the recipe says so."""
        return torch.bfloat16 if self.recipe.frozen_bf16 and name in self.frozen() else torch.float32

    @torch.no_grad()
    def prepare(self, wave: Tensor) -> Tensor:
        """Encodes clips to means and standard deviations of latents: (batch, 2, channels, time, mel)."""
        if self.cache is None:
            return self.encode_clips(wave)
        return cached_latents(self.cache, self._settings_of("vae"), wave, self.encode_clips).to(self.device)

    @torch.no_grad()
    def encode_clips(self, wave: Tensor) -> Tensor:
        """What `prepare` returns, computed."""
        with self.autocast():
            parts = [
                torch.stack(self.network("vae").encode(self.mel(wave[rows].to(self.device)).unsqueeze(1)), 1)
                for rows in self.parts(len(wave))
            ]
        return torch.cat(parts).float()

    def parts(self, clips: int) -> list[slice]:
        """Returns the rows of each part of a batch, as many parts as the recipe wants."""
        size = -(-clips // self.recipe.accumulate)
        return [slice(first, first + size) for first in range(0, clips, size)]

    def _settings_of(self, name: str) -> tuple[object, ...]:
        """What the output of a frozen network depends on, beside its input."""
        if name not in self.hashes:
            self.hashes[name] = hash_of(self.initial.states, [name])
        shape = (self.front_end, self.downsampling) if name == "vae" else ()
        return self.hashes[name], self.recipe.precision, self.dtype_of(name), *shape

    def compute_ahead(
        self, data: Captioned, validation: Captioned | None, report: Callable[[str], object],
        should_stop: Callable[[], object],
    ) -> None:  # fmt: skip
        """Fills the cache, and frees the networks whose whole output it holds."""
        if self.cache is None:
            return
        with self.autocast():
            complete = fill(
                cast(CachedTexts, self.encoders), self.prepare, data, validation, size=self.recipe.batch,
                pool=self.recipe.pool, report=report, should_stop=should_stop, ranks=self.ranks,
            )  # fmt: skip
        if complete:
            freed = [name for name in ("vae", "clap_text", "t5") if name in self.frozen()]
            for name in freed:
                self.networks.release(name)
            report(f"cache: {self.cache.bytes / 1e9:.3g} GB; freed {', '.join(freed)}")

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        draws = self.draw(clips, generator)
        metrics: dict[str, Tensor] = {}

        def parts() -> Iterator[Tensor]:
            for rows in self.parts(len(clips)):
                share = len(captions[rows]) / len(clips)
                errors = self.errors(captions[rows], draws.of(rows))
                loss = share * torch.stack([weight * error for weight, error in errors.values()]).sum()
                found = {"loss": loss}
                if len(errors) > 1 or self.helpers:
                    found |= {name: share * error for name, (_, error) in errors.items()}
                for name, value in found.items():
                    metrics[name] = metrics.get(name, 0.0) + value.detach()
                yield loss

        grad_norm = self.optimizer.step(parts(), self.done)
        return metrics | {"grad_norm": grad_norm}

    def draw(self, clips: Tensor, generator: torch.Generator) -> Draws:
        """Draws what a step needs for clips (batch, 2, channels, time, mel)."""
        recipe = self.recipe
        mean, x0 = self.latents(clips, generator)
        eps = self.randn_like(x0, generator)
        whole, rows = self.whole_batch(clips), self.ranks.rows
        t = rows(torch.randint(self.schedule.steps, (whole,), generator=generator))
        decisions = 1 if recipe.unconditional == "trained" else whole
        dropped = torch.rand(decisions, generator=generator) < recipe.prompt_dropout
        dropped = rows(dropped.expand(whole))
        offset = int(torch.randint(LENGTH_STEP, (), generator=generator))
        clap_dropped = torch.zeros(len(clips), dtype=torch.bool)
        if recipe.clap_dropout:
            clap_dropped = rows(torch.rand(whole, generator=generator) < recipe.clap_dropout)
        return Draws(mean, x0, eps, t, dropped, clap_dropped, offset)

    def latents(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the means of clips (batch, 2, channels, time, mel), and what the denoiser learns."""
        mean, std = clips.unbind(dim=1)
        sample = mean + std * self.randn_like(std, generator)
        return mean, sample if self.recipe.latent_noise else mean

    def loss(self, captions: list[str], draws: Draws) -> Tensor:
        """Computes the loss of a batch, with gradients into the networks that are trained."""
        return torch.stack([weight * error for weight, error in self.errors(captions, draws).values()]).sum()

    def errors(self, captions: list[str], draws: Draws) -> dict[str, tuple[float, Tensor]]:
        """Computes what the loss is a sum of: names to weights and errors."""
        mean, dropped = draws.mean, draws.dropped
        weight, errors = self.recipe.auxiliary_weight, {}
        alone = self.done < self.recipe.auxiliary_steps
        if alone:  # a dropped caption would teach GPT-2 nothing
            dropped = torch.zeros_like(dropped)
        with self.autocast():
            cond = self.encode(captions, dropped, draws.offset, draws.clap_dropped)
            if weight:
                assert cond.gpt2_context is not None, "make_helpers requires GPT-2"
                error = auxiliary_loss(self.helpers["head"], cond.gpt2_context, mean, dropped)
                errors["auxiliary"] = weight, error
        if alone:
            return errors
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

    @torch.no_grad()
    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the error of the predicted noise, unweighted, over all times and in each part of them."""
        _, x0 = self.latents(clips, generator)
        with self.autocast():
            cond = self.encode(captions, torch.zeros(len(clips), dtype=torch.bool))
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

    def encode(
        self, captions: list[str], dropped: Tensor, offset: int | None = None,
        clap_dropped: Tensor | None = None,
    ) -> Conditioning:  # fmt: skip
        """Encodes captions, with gradients into the networks that are trained.

        Args:
            captions: one per clip.
            dropped: (batch,) bool, True where the unconditional conditioning replaces the caption's.
            offset: pads captions to this many tokens, below LENGTH_STEP, or to a multiple of LENGTH_STEP
                more. None: no padding, as in generation.
            clap_dropped: (batch,) bool, True where CLAP reads an empty text.
        """
        encoders, rows = self.encoders, []
        without_clap = torch.zeros_like(dropped) if clap_dropped is None else clap_dropped
        for caption, drop, drop_clap in zip(captions, dropped.tolist(), without_clap.tolist(), strict=True):
            encoders.warn_if_cut(caption)
            length = encoders.length(caption)
            length += 0 if offset is None or self.speaks else (offset - length) % LENGTH_STEP
            if drop:
                rows.append(negative_row(encoders, "", length, self.recipe.unconditional))
            else:
                spoken = self.phoneme_ids(caption) if self.phoneme_ids else ()
                rows.append(Row(caption, "" if drop_clap else caption, length, phonemes=spoken))
        if self.speaks and not self.recipe.train_gpt2:
            return Conditioning.cat(self.kept(self.networks, encoders, rows))
        return Conditioning.cat(encode_rows(self.networks, encoders, rows))

    def words(self) -> tuple[Word, ...]:
        """Returns new words that captions may contain."""
        return ()

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields a generated sound for each caption, always from the same noise."""
        spoken = [self.phoneme_ids.spelled(each) for each in captions] if self.phoneme_ids else None
        result = model.generate(captions, phonemes=spoken, audio_length_in_s=self.recipe.seconds)
        for i, caption in enumerate(captions):
            yield Sample(f"{i}-{caption}", result.audio[i, 0], result.mel[i])
