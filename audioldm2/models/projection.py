"""The bridge from the two text encoders to GPT-2: both are mapped to its width and framed by learned vectors.

The sequence that GPT-2 continues is `[clap_sos, clap, clap_eos, t5_sos, t5 ..., t5_eos]`.

Source: AudioLDM 2 (arXiv 2308.05734), section III-C; the reference is `AudioLDM2ProjectionModel` of
        diffusers.

In the speech model a phoneme encoder replaces T5, and this network adds position vectors to its output.

Trap: `t5_eos` stands after the padding of the T5 vectors, not after the last real one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models.config_rules import require_sizes
from audioldm2.models.layers import Linear


@dataclass(frozen=True)
class ProjectionConfig:
    """Defaults: all published models of sounds and music."""

    clap_dim: int = 512  # width of CLAP's vector
    t5_dim: int = 1024  # width of T5's vectors, or of the phoneme encoder's
    gpt2_dim: int = 768  # width of the sequence that GPT-2 continues
    positions: int = 0  # learned position vectors, added to the second encoding; 310 in the speech model

    def __post_init__(self) -> None:
        require_sizes(self, "clap_dim", "t5_dim", "gpt2_dim")
        require_sizes(self, "positions", least=0)


class Projection(nn.Module):
    """CLAP and T5 vectors to GPT-2's input."""

    def __init__(self, config: ProjectionConfig):
        super().__init__()
        self.config = config
        self.clap_linear = Linear(config.clap_dim, config.gpt2_dim)
        self.t5_linear = Linear(config.t5_dim, config.gpt2_dim)
        if config.positions:
            self.t5_positions = nn.Parameter(torch.zeros(config.positions, config.t5_dim))
        self.clap_sos = nn.Parameter(torch.ones(config.gpt2_dim))
        self.clap_eos = nn.Parameter(torch.ones(config.gpt2_dim))
        self.t5_sos = nn.Parameter(torch.ones(config.gpt2_dim))
        self.t5_eos = nn.Parameter(torch.ones(config.gpt2_dim))

    def forward(self, clap: Tensor, t5: Tensor, t5_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frame and join the two encodings.

        clap: (batch, clap_dim); t5: (batch, seq, t5_dim); t5_mask: (batch, seq) bool, True = real. With
        positions, seq is at most as many.
        Returns (batch, seq + 5, gpt2_dim) vectors and their (batch, seq + 5) bool mask.
        """
        batch = clap.shape[0]
        clap_sos, clap_eos, t5_sos, t5_eos = (
            vector.expand(batch, 1, -1) for vector in (self.clap_sos, self.clap_eos, self.t5_sos, self.t5_eos)
        )
        clap = self.clap_linear(clap)[:, None]  # (batch, 1, gpt2_dim)
        if self.config.positions:
            t5 = t5 + self.t5_positions[: t5.shape[1]]
        t5 = self.t5_linear(t5)  # (batch, seq, gpt2_dim)
        vectors = torch.cat(
            [clap_sos, clap, clap_eos, t5_sos, t5, t5_eos], dim=1
        )  # (batch, seq + 5, gpt2_dim)
        return vectors, F.pad(t5_mask, (4, 1), value=True)
