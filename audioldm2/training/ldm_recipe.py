"""What a recipe of the denoiser can choose: how captions are dropped, the language of audio, speech.

What a dropped caption's conditioning is, and which are dropped together, follows `LDMRecipe.unconditional`:

- "trained", as upstream trains: the captions of a whole batch at once, with zeros for GPT-2's vectors and
  T5's vectors of the empty text unpadded. Besides, CLAP alone reads an empty text for one clip in ten. This
  is the default for the published sizes and for fine-tuning a published model, whose weights learnt it so.
- "reference": each caption by itself; the empty text goes through all text networks, which is what the
  reference pipeline (diffusers) samples with. The model in the box and others of the recipe "small" learn it
  so: they have no upstream to agree with, and sampling then needs no second reading of an empty prompt.

The saved model records the reading, and generation follows it.

Where the model has AudioMAE, the denoiser can learn on the language of audio (LOA) of the very clip in place
of GPT-2's vectors, as in the paper:

- `gt_loa` is the share of clips for which it does. At 1, GPT-2 does not run and captions are not read (T5
  reads an empty text): self-supervised training on sounds alone. Upstream trains jointly at 0.25.
- `loa_weight` adds the L1 error of GPT-2's vectors to the loss, each predicted after the true ones before it.
  Upstream counts it twice.
- `rollout_gradients`: whether the denoiser's loss trains GPT-2 too, through the vectors that it generates.

A model that speaks has a phoneme encoder in T5's place, which learns too. Its captions carry what is said
(spoken.py). Its GPT-2 learns slowly from the denoiser's loss alone, so `LDMRecipe.auxiliary_weight` adds
another: a linear layer, which is not part of the model, predicts the frames of the latent from GPT-2's
vectors. It stands in for the AudioMAE features of upstream, which GPT-2 predicts there. For the first
`auxiliary_steps`, when GPT-2's vectors say nothing yet, the denoiser does not run.

Trap: with "reference", an empty caption is padded to the length of the caption that it replaces: guidance
encodes a missing negative prompt that way, and GPT-2's output depends on the padding (see prompt/encode.py).
"""

from dataclasses import dataclass

from audioldm2.prompt.encode import UNCONDITIONAL
from audioldm2.training.conditioned import ConditionedRecipe


@dataclass(frozen=True)
class LDMRecipe(ConditionedRecipe):
    """The defaults are upstream's, with Stable Diffusion's average of the weights."""

    steps: int = 1_500_000
    ema: float = 0.9999
    prompt_dropout: float = 0.1  # fraction of captions that are dropped
    unconditional: str = "trained"  # what stands for a dropped caption: "trained" or "reference", see above
    recompute: bool = (
        False  # keep only the inputs of the denoiser's layers: less memory, one more forward pass
    )
    min_snr: float | None = None  # gamma of min-SNR weighting, such as 5; null: no weighting
    train_gpt2: bool = True  # False: GPT-2 and what it reads stay, and the denoiser learns alone
    latent_noise: bool = True  # learn samples of the VAE's latents, as upstream; False: their means
    gt_loa: float = 0.0  # share of clips whose LOA stands in place of GPT-2's vectors; 1: no captions
    loa_weight: float = 0.0  # of GPT-2's error in predicting LOA; 0: none
    rollout_gradients: bool = True  # the denoiser's loss trains GPT-2 through the vectors that it generates
    auxiliary_weight: float = 0.0  # of the error of latent frames predicted from GPT-2's vectors; 0: none
    auxiliary_steps: int = 0  # first steps, with this error alone: the denoiser does not run or learn yet

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = self.gt_loa == 1  # the denoiser never meets GPT-2
        self.require(
            prompt_dropout=(0 <= self.prompt_dropout <= 1, "be from 0 to 1"),
            unconditional=(self.unconditional in UNCONDITIONAL, f"be one of {', '.join(UNCONDITIONAL)}"),
            gt_loa=(
                0 <= self.gt_loa <= 1 and (not alone or self.unconditional == "trained"),
                "be from 0 to 1, and 1 with unconditional 'trained' alone",
            ),
            loa_weight=(
                self.loa_weight >= 0 and not (self.loa_weight and (alone or not self.train_gpt2)),
                "be at least 0, and 0 where GPT-2 does not learn: with gt_loa 1, or train_gpt2 false",
            ),
            rollout_gradients=(
                self.rollout_gradients or self.loa_weight > 0,
                "be true without loa_weight, since nothing else teaches GPT-2",
            ),
            auxiliary_weight=(
                self.auxiliary_weight >= 0 and not (self.auxiliary_weight and alone),
                "be at least 0, and 0 with gt_loa 1",
            ),
            auxiliary_steps=(
                self.auxiliary_steps >= 0 and (self.auxiliary_weight > 0 or not self.auxiliary_steps),
                "be at least 0, and 0 without auxiliary_weight",
            ),
            train_gpt2=(
                self.train_gpt2 or not (self.train_t5 or self.auxiliary_weight),
                "be true with train_t5 or auxiliary_weight",
            ),
        )
