"""What we need of PEFT beyond its public API (tried with 0.18 to 0.21). Nothing here imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Whole = Callable[[Tensor], Tensor]
"""Gives all of a tensor that processes may have shared out among them."""


@dataclass(frozen=True)
class Lora:
    """What one adapter adds to a weight (out, in): scaling * B A, and DoRA's magnitude of every row.

    a: (r, in). b: (out, r). Of a convolution both have its kernel's dimensions behind, and in counts them.
    magnitude: DoRA's, (out,); None without.
    """

    adapter: str
    scaling: float
    a: Tensor
    b: Tensor
    magnitude: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """What is to be gathered for it."""
        return [tensor for tensor in (self.a, self.b, self.magnitude) if tensor is not None]

    def factors(self, whole: Whole) -> tuple[Tensor, Tensor]:
        """`left` (out, r) and `right` (in, r), in float32 at least, with left @ right^T = scaling * B A."""
        a, b = (_at_least_float32(whole(tensor)).flatten(1) for tensor in (self.a, self.b))
        return self.scaling * b, a.mT

    def apply(self, weight: Tensor, base: Tensor, whole: Whole) -> Tensor:
        """`weight` (out, in), which starts as `base`, with this adapter: W + scaling B A.

        With DoRA every row is scaled to its magnitude: m (W + scaling B A) / ||W + scaling B A||.
        """
        left, right = self.factors(whole)
        added = left @ right.mT
        if self.magnitude is None:
            return weight + added
        # PEFT takes the norm with the base's weight, also behind another adapter.
        scale = _at_least_float32(whole(self.magnitude)).flatten() / (base + added).norm(dim=1)
        return scale.unsqueeze(1) * (weight + added)


def running(module: nn.Module) -> nn.Module:
    """What runs in `module`'s place: of a wrapper for `modules_to_save`, its active copy."""
    copies = module._modules.get("modules_to_save")
    if not (isinstance(copies, nn.ModuleDict) and "original_module" in module._modules):
        return module
    if module.disable_adapters or not module.active_adapters:
        return module._modules["original_module"]  # type: ignore[return-value]
    return copies[module.active_adapters[0]]  # type: ignore[index]


def is_lora(module: nn.Module) -> bool:
    """Whether `module` is a layer with LoRA."""
    return _is_a(module, "peft.tuners.lora.layer", "LoraLayer")


def base_layer(module: nn.Module) -> nn.Module:
    """The model's own layer under any adapters; `module` itself where it has none."""
    has_adapters = _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")
    return module.get_base_layer() if has_adapters else module  # type: ignore[operator]


def why_unlike_lora(module: nn.Module) -> str | None:
    """Why its adapters do more than add scaling * B A, with DoRA's magnitudes perhaps; None where they do not."""
    if not _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer"):
        return None
    if not is_lora(module) or module.base_layer is not base_layer(module):
        return f"PEFT's {type(module).__name__} changes it in a way that hf_pdyn does not know"
    kinds = [type(variant).__name__ for variant in module.lora_variant.values()]  # type: ignore[operator]
    kinds += [type(module).__name__] if type(module).__name__ == "ParamWrapper" else []  # of all experts at once
    unknown = next((kind for kind in kinds if not kind.startswith("Dora")), None)
    return f"PEFT's {unknown} changes it in a way that hf_pdyn does not know" if unknown else None


def active_loras(module: Any) -> list[Lora]:
    """The active adapters of a layer with LoRA, in the order in which it applies them."""
    found = []
    for name in module.active_adapters:
        if name in module.lora_A:
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
        elif name in module.lora_embedding_A:
            a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
        else:
            continue
        magnitudes = module.lora_magnitude_vector
        magnitude = magnitudes[name].weight if name in magnitudes else None
        found.append(Lora(name, float(module.scaling[name]), a, b, magnitude))
    return found


def added_loras(module: Any) -> list[Lora]:
    """The adapters whose product a forward pass adds: none where they are switched off, or in the weight already."""
    return [] if not is_lora(module) or module.disable_adapters or module.merged else active_loras(module)


def _is_a(module: nn.Module, home: str, name: str) -> bool:
    return home in sys.modules and isinstance(module, getattr(sys.modules[home], name))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
