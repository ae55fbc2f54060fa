"""adapter_config.json of PEFT: how the matrices of a file are scaled."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from audioldm2.checkpoints.validate import typed
from audioldm2.errors import WeightsError

# Settings that change what an adapter computes, with the values that leave it a plain one.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices"), (None, [], {})),
    **dict.fromkeys(("alora_invocation_tokens", "target_parameters", "arrow_config"), (None, [], {})),
}


@dataclass(frozen=True)
class Settings:
    """Rank and scale of every layer, as PEFT's `LoraConfig` states them."""

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)  # of layers whose names match a pattern
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False  # rank-stabilised (arXiv 2312.03732): the scale is alpha / sqrt(rank)

    def rank_of(self, module: str) -> int:
        """The rank that a module has."""
        return _matching(self.ranks, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """The scale of a module's adapter, whose rank is `rank`."""
        alpha = _matching(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def settings_from(config: Mapping[str, Any], where: str) -> Settings:
    """Read PEFT's settings; WeightsError if they ask for more than low-rank matrices."""
    odd = [name for name, plain in PLAIN.items() if name in config and config[name] not in plain]
    if odd:
        raise WeightsError(
            f"{where} says {odd[0]} = {config[odd[0]]!r:.80}; only plain LoRA can be loaded, "
            f"with {odd[0]} = {PLAIN[odd[0]][0]!r}."
        )
    rank = typed(f"'r' in {where}", config.get("r"), int)
    alpha = typed(f"'lora_alpha' in {where}", config.get("lora_alpha", rank), float)
    patterns = {
        name: {
            key: typed(f"'{key}' of '{name}' in {where}", value, kind)
            for key, value in typed(f"'{name}' in {where}", config.get(name) or {}, dict).items()
        }
        for name, kind in (("rank_pattern", int), ("alpha_pattern", float))
    }
    by_root = typed(f"'use_rslora' in {where}", config.get("use_rslora") or False, bool)
    return Settings(rank, alpha, patterns["rank_pattern"], patterns["alpha_pattern"], by_root)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a module's name, as in PEFT (`get_pattern_key`)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
