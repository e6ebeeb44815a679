"""Parameters to step: only their shapes matter, so no model is built."""

from __future__ import annotations

import torch
from torch import nn

Shapes = list[tuple[int, ...]]


def gpt2(layers: int, width: int, vocabulary: int = 50_257, positions: int = 1024) -> Shapes:
    """The shapes of transformers' GPT2LMHeadModel, whose head is tied."""
    block: Shapes = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (positions, width), *(block * layers), (width,), (width,)]


def lora(tensors: int, width: int = 768, rank: int = 8) -> Shapes:
    """A and B of GPT-2's c_attn, so many in all."""
    return [(rank, width), (3 * width, rank)] * (tensors // 2)


SHAPES: dict[str, Shapes] = {
    "tiny": gpt2(1, 16, vocabulary=64, positions=8),
    "gpt2": gpt2(12, 768),
    "1b": gpt2(18, 2048),
    "lora24": lora(24),
    "lora200": lora(200),
}


class Parameters(nn.Module):
    """Parameters of these shapes with gradients of fine-tuning's size, named so that biases are labelled as such."""

    def __init__(self, shapes: Shapes, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator(device).manual_seed(0)
        self.layers = nn.ModuleList(nn.Module() for _ in range(-(-len(shapes) // 12)))
        for i, shape in enumerate(shapes):
            values = torch.randn(shape, device=device, generator=generator).mul_(0.02).to(dtype)
            name = f"{'weight' if len(shape) > 1 else 'bias'}_{i % 12}"
            self.layers[i // 12].register_parameter(name, nn.Parameter(values))
        for param in self.parameters():
            param.grad = torch.randn(param.shape, device=device, generator=generator).mul_(1e-3).to(dtype)

    @property
    def numel(self) -> int:
        return sum(param.numel() for param in self.parameters())
