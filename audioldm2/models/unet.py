"""The denoiser: a UNet over (time, mel) latents whose transformers attend to the sound and to two prompt
encodings.

Predicts the noise in a latent x at diffusion time t from two encodings of the prompt: GPT-2's eight vectors
(`gpt2_context`) and T5's vectors (`text_context`). A layer is a residual block followed by transformers in a
fixed order: one attends only to the sound, one also to GPT-2's vectors, one also to T5's (and in the large
model one more only to the sound). The 48 kHz model has no contexts: CLAP's vector of the prompt enters every
residual block beside the diffusion time (FiLM, Perez et al. 2017, of which only the shift is used).

Source: Liu et al. 2023, "AudioLDM 2" (arXiv 2308.05734), section III, and for the 48 kHz model "AudioLDM"
(arXiv 2301.12503); the reference is `AudioLDM2UNet2DConditionModel` of diffusers.

Traps
- In a transformer without a context both attentions are self-attention.
- The GPT-2 context is never masked; the T5 context is.
- The group norm before a transformer has eps 1e-6, those in residual blocks have the config's.
- Odd time sizes lose half a frame on the way down: the way up resizes to the skip, not by two.
- The published configs state another number of heads than the weights were trained with: see
  `UNetConfig.heads`.

The file is long because the whole network, with its config and the config's rules, is read in one sitting.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audioldm2 import ops
from audioldm2.errors import ArgumentError
from audioldm2.models.config_rules import (
    MOST_BLOCKS,
    require_eps,
    require_multiple,
    require_same_length,
    require_size_tuples,
    require_sizes,
)
from audioldm2.models.layers import (
    Conv2d,
    Linear,
    ModuleList,
    UpsamplingConv,
    repeat_to_batch,
    timestep_embedding,
)

KeyValue = tuple[Tensor, Tensor]  # keys and values of a context in one block, (batch, tokens, channels) each

SELF, GPT2, T5, LAST_SELF = "self_attn", "gpt2_attn", "t5_attn", "last_self_attn"


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: the base model. The large one has depth 2 and a LAST_SELF wherever it has transformers."""

    latent_channels: int = 8  # channels of the latent, and of the predicted noise
    channels: tuple[int, ...] = (128, 256, 384, 640)  # per level, from fine to coarse
    # Per level: the weights were trained with heads 32 wide; the published config reads as 8 at every level.
    heads: tuple[int, ...] = (4, 8, 12, 20)
    transformers: tuple[tuple[str, ...], ...] = ((), (SELF, GPT2, T5), (SELF, GPT2, T5), (SELF, GPT2, T5))
    depth: int = 1  # blocks in a transformer
    layers: int = 2  # layers in a level on the way down; one more on the way up
    gpt2_dim: int = 768  # width of the vectors in `gpt2_context`
    t5_dim: int = 1024  # width of the vectors in `text_context`
    film_dim: int = 0  # width of the vector beside the diffusion time; 0: there is none. 512 at 48 kHz
    norm_groups: int = 32  # groups of every group norm
    eps: float = 1e-5  # of the group norms in residual blocks

    def __post_init__(self) -> None:
        require_sizes(self, "latent_channels", "gpt2_dim", "t5_dim", "norm_groups")
        require_sizes(self, "depth", "layers", most=MOST_BLOCKS)
        require_sizes(self, "film_dim", least=0)
        require_size_tuples(self, "channels", "heads")
        if not isinstance(self.transformers, tuple):
            raise ArgumentError("transformers", self.transformers, "be a tuple, one entry a level")
        for index, roles in enumerate(self.transformers):
            known = isinstance(roles, tuple) and all(role in (SELF, GPT2, T5, LAST_SELF) for role in roles)
            if not known or len(set(roles)) < len(roles):
                allowed = f"name each of {SELF}, {GPT2}, {T5}, {LAST_SELF} at most once"
                raise ArgumentError(f"transformers[{index}]", roles, allowed)
        require_same_length(self, "channels", "heads", "transformers", each="level")
        require_multiple("channels", self.channels, "norm_groups", self.norm_groups)
        if self.channels[0] % 2:
            raise ArgumentError("channels[0]", self.channels[0], "be even, for pairs of sine and cosine")
        for index, (width, heads) in enumerate(zip(self.channels, self.heads, strict=True)):
            if self.transformers[index]:
                require_multiple(f"channels[{index}]", width, f"heads[{index}]", heads)
        require_eps(self)

    @property
    def time_dim(self) -> int:
        """Of the embedded diffusion time, and of the embedded vector beside it."""
        return 4 * self.channels[0]

    @property
    def roles(self) -> set[str]:
        """Of all its transformers: what it looks at."""
        return {role for level in self.transformers for role in level}


class Attention(nn.Module):
    """Attention of `dim` wide queries to keys and values computed from vectors `context_dim` wide."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = Linear(dim, dim, bias=False)
        self.key = Linear(context_dim, dim, bias=False)
        self.value = Linear(context_dim, dim, bias=False)
        self.out = Linear(dim, dim)

    def keys_values(self, context: Tensor) -> KeyValue:
        """Keys and values (batch, seq, dim) of vectors (batch, seq, context_dim)."""
        return self.key(context), self.value(context)

    def forward(self, x: Tensor, context: KeyValue | None = None, mask: Tensor | None = None) -> Tensor:
        """x: (batch, seq, dim); context: what to attend to, x itself if None."""
        key, value = self.keys_values(x) if context is None else context
        return self.out(ops.attention(self.query(x), key, value, self.heads, mask=mask))


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): one half of the projection gates the other, through the exact GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.value_and_gate = Linear(dim, 8 * dim)
        self.out = Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.value_and_gate(x).chunk(2, dim=-1)  # (batch, seq, 4 * dim) each
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (or to itself, if there is none), feed-forward; pre-norm."""

    def __init__(self, dim: int, context_dim: int | None, heads: int):
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, dim, heads)
        self.context_norm = nn.LayerNorm(dim)
        self.context_attn = Attention(dim, context_dim or dim, heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: KeyValue | None, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_norm(x))
        x = x + self.context_attn(self.context_norm(x), context, mask)
        return x + self.ff(self.ff_norm(x))


class Transformer(nn.Module):
    """A transformer over all positions of a feature map, as a residual on the map."""

    def __init__(self, channels: int, context_dim: int | None, heads: int, depth: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, context_dim, heads) for _ in range(depth))
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, context: list[KeyValue] | None, mask: Tensor | None) -> Tensor:
        """x: (batch, channels, time, mel); context: keys and values, a pair per block, or None."""
        seq = self.norm(x).flatten(2).transpose(1, 2)  # (batch, time * mel, channels)
        seq = self.proj_in(seq)
        for i, block in enumerate(self.blocks):
            seq = block(seq, None if context is None else context[i], mask)
        seq = self.proj_out(seq)
        return x + seq.transpose(1, 2).unflatten(2, x.shape[2:])  # (batch, channels, time, mel)


class ResidualBlock(nn.Module):
    """Two convolutions with the diffusion time (and CLAP's vector, where there is one) added between them."""

    def __init__(self, config: UNetConfig, channels_in: int, channels_out: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(config.norm_groups, channels_in, eps=config.eps)
        self.conv_in = Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_proj = Linear(config.time_dim * (2 if config.film_dim else 1), channels_out)
        self.norm_out = nn.GroupNorm(config.norm_groups, channels_out, eps=config.eps)
        self.conv_out = Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(self.norm_in(x), inplace=True))  # (batch, channels_out, time, mel)
        time = self.time_proj(F.silu(time))[:, :, None, None]  # (1 or batch, channels_out, 1, 1)
        hidden = hidden + (time if len(time) == 1 else repeat_to_batch(time, len(hidden)))
        hidden = self.conv_out(F.silu(self.norm_out(hidden), inplace=True))
        return self.shortcut(x) + hidden  # (batch, channels_out, time, mel)


class Layer(nn.Module):
    """A residual block, then the level's transformers, each an attribute named by what it attends to."""

    def __init__(self, config: UNetConfig, level: int, channels_in: int):
        super().__init__()
        channels = config.channels[level]
        self.resnet = ResidualBlock(config, channels_in, channels)
        context_dims = {SELF: None, GPT2: config.gpt2_dim, T5: config.t5_dim, LAST_SELF: None}
        self.roles = config.transformers[level]
        for role in self.roles:
            transformer = Transformer(
                channels, context_dims[role], config.heads[level], config.depth, config.norm_groups
            )
            self.add_module(role, transformer)

    def keys_values(self, contexts: dict[str, Tensor | None]) -> dict[str, list[KeyValue]]:
        """Of each role with a context: the keys and values of every block of its transformer."""
        return {
            role: [block.context_attn.keys_values(contexts[role]) for block in getattr(self, role).blocks]
            for role in self.roles
            if role in contexts
        }

    def forward(
        self, x: Tensor, time: Tensor, contexts: dict[str, list[KeyValue]], masks: dict[str, Tensor | None]
    ) -> Tensor:
        x = self.resnet(x, time)
        for role in self.roles:
            context = contexts.get(role)
            if context is not None:
                x = repeat_to_batch(x, len(context[0][0]))
            x = getattr(self, role)(x, context, masks.get(role))
        return x


class DownLevel(nn.Module):
    """Layers at one resolution, then (but for the coarsest) a strided convolution to the next."""

    def __init__(self, config: UNetConfig, level: int, channels_in: int, downsample: bool):
        super().__init__()
        channels = config.channels[level]
        inputs = [channels_in] + [channels] * (config.layers - 1)
        self.layers = ModuleList(Layer(config, level, channels_in) for channels_in in inputs)
        self.downsample = Conv2d(channels, channels, 3, stride=2, padding=1) if downsample else None


class Middle(nn.Module):
    """At the coarsest resolution: a layer and one more residual block."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels = config.channels[-1]
        self.layer = Layer(config, len(config.channels) - 1, channels)
        self.resnet = ResidualBlock(config, channels, channels)


class UpLevel(nn.Module):
    """Layers at one resolution, each given a skip; then (but for the finest) resizing and a convolution."""

    def __init__(self, config: UNetConfig, level: int, channels_in: int, skips: list[int], upsample: bool):
        super().__init__()
        channels = config.channels[level]
        inputs = [channels_in] + [channels] * config.layers
        self.layers = ModuleList(
            Layer(config, level, channels_in + skip) for channels_in, skip in zip(inputs, skips, strict=True)
        )
        self.upsample = UpsamplingConv(channels) if upsample else None


class UNet(nn.Module):
    """Predicts the noise in a latent."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, last = config.channels, len(config.channels) - 1
        self.time_in = Linear(channels[0], config.time_dim)
        self.time_out = Linear(config.time_dim, config.time_dim)
        self.film = Linear(config.film_dim, config.time_dim) if config.film_dim else None
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)

        self.down: ModuleList[DownLevel] = ModuleList()
        skips = [channels[0]]  # channels of every feature map that the way up will be given
        for level, width in enumerate(channels):
            self.down.append(DownLevel(config, level, skips[-1], downsample=level < last))
            skips += [width] * (config.layers + (level < last))

        self.middle = Middle(config)

        self.up: ModuleList[UpLevel] = ModuleList()  # from coarse to fine
        width = channels[-1]
        for level in reversed(range(len(channels))):
            level_skips = [skips.pop() for _ in range(config.layers + 1)]
            self.up.append(UpLevel(config, level, width, level_skips, upsample=level > 0))
            width = channels[level]

        self.norm_out = nn.GroupNorm(config.norm_groups, channels[0], eps=config.eps)
        self.conv_out = Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def context_keys_values(
        self, gpt2_context: Tensor | None, text_context: Tensor | None
    ) -> list[dict[str, list[KeyValue]]]:
        """What the attention layers read of the contexts: the same at every diffusion time, so computed once.

        Args:
            gpt2_context: (batch, tokens, gpt2_dim).
            text_context: (batch, tokens, t5_dim).

        Returns:
            Per layer of `layers()`: role -> keys and values, one pair per block, (batch, tokens, channels)
            each.
        """
        contexts = {GPT2: gpt2_context, T5: text_context}
        return [layer.keys_values(contexts) for layer in self.layers()]

    def layers(self) -> list[Layer]:
        """All layers, in the order in which `forward` runs them."""
        down = [layer for level in self.down for layer in level.layers]
        up = [layer for level in self.up for layer in level.layers]
        return [*down, self.middle.layer, *up]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        gpt2_context: Tensor | None = None,
        text_context: Tensor | None = None,
        t5_mask: Tensor | None = None,
        clap_vector: Tensor | None = None,
        keys_values: list[dict[str, list[KeyValue]]] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Predict the noise in x.

        Args:
            x: (batch, latent_channels, time, mel) noisy latent. It may have fewer rows than the contexts, by
                a whole factor: then every latent is predicted once per block of context rows, and what does
                not depend on the prompt is computed once.
            t: () or (rows of x,) diffusion time, 0 to 999, whole or fractional.
            gpt2_context: (batch, tokens, gpt2_dim), for the transformers called "gpt2_attn".
            text_context: (batch, tokens, t5_dim), for the transformers called "t5_attn".
            t5_mask: (batch, tokens) bool, True where there is a real token of the text context; None means
                all.
            clap_vector: (batch, film_dim), where the config has one.
            keys_values: what `context_keys_values` returned for these contexts; computed here if None.
            recompute: for training with less memory: of each layer keep only its input, and run it once more
                on the way back (gradient checkpointing, Chen et al. 2016, arXiv 1604.06174).

        Returns:
            (batch, latent_channels, time, mel).
        """
        if keys_values is None:
            keys_values = self.context_keys_values(gpt2_context, text_context)
        contexts = iter(keys_values)  # one for each layer below
        run = partial(checkpoint, use_reentrant=False) if recompute else _run
        masks = {T5: None if t5_mask is None else t5_mask[:, None, None, :]}  # (batch, 1, 1, tokens)
        time = timestep_embedding(t.reshape(-1), self.config.channels[0])  # (1 or batch, channels[0])
        time = self.time_out(F.silu(self.time_in(time.to(x.dtype))))  # (1 or batch, time_dim)
        if self.film is not None:
            assert clap_vector is not None, "this model needs clap_vector"
            time = torch.cat([repeat_to_batch(time, len(clap_vector)), self.film(clap_vector)], dim=-1)
            x = repeat_to_batch(x, len(clap_vector))

        x = self.conv_in(x)  # (batch, channels[0], time, mel)
        skips = [x]
        for down in self.down:
            for layer in down.layers:
                x = run(layer, x, time, next(contexts), masks)
                skips.append(x)
            if down.downsample is not None:
                x = down.downsample(x)  # (batch, channels, ceil(time / 2), ceil(mel / 2))
                skips.append(x)

        x = run(self.middle.layer, x, time, next(contexts), masks)
        x = self.middle.resnet(x, time)

        for up in self.up:
            for layer in up.layers:
                x = torch.cat(
                    [x, repeat_to_batch(skips.pop(), len(x))], dim=1
                )  # (batch, channels + skip, time, mel)
                x = run(layer, x, time, next(contexts), masks)  # (batch, channels, time, mel)
            if up.upsample is not None:
                x = up.upsample(x, skips[-1].shape[2:])  # to the next skip's time and mel

        return self.conv_out(F.silu(self.norm_out(x), inplace=True))  # (batch, latent_channels, time, mel)


def _run(layer: Layer, *inputs: Any) -> Tensor:
    return layer(*inputs)
