"""Norms of many networks at once, by tensor and by pathway."""

from __future__ import annotations

import torch
from torch import Tensor

from .stacked_networks import StackedNetworks, kind_of

BIAS_LIKE = ("norm", "bias")
"""Normalisation, and the classifier's bias."""


class StackedNorms:
    """Squared norms of tensors, and of the groups that they belong to."""

    def __init__(self, networks: StackedNetworks) -> None:
        self._networks = networks
        kinds = [kind_of(name) for name in networks.names]
        device = networks.values.device

        def mask(which: list[bool]) -> Tensor:
            return torch.tensor(which, device=device, dtype=torch.float32)

        self.weights = mask([kind == "weight" for kind in kinds])
        self.convolutions = mask([".convolution." in name for name in networks.names])
        self.bias_by_name = mask([name.endswith(".bias") for name in networks.names])
        self.bias_like = torch.stack([mask([kind == one for kind in kinds]) for one in BIAS_LIKE], 1)

    def squares(self, values: Tensor) -> Tensor:
        """(networks, parameters) to (networks, tensors)."""
        return torch.stack([piece.square().sum(1) for piece in values.detach().split(self._networks.sizes, 1)], 1)

    def of_step(self, loss: Tensor, grads: Tensor, weights: Tensor, updates: Tensor) -> Tensor:
        """(networks, 9): norms that `CURVES` are made of; the arguments after loss as squares by tensor."""
        biases = 1 - self.weights
        sums = [
            grads @ self.weights,
            grads @ biases,
            grads @ (1 - self.bias_by_name),
            grads @ self.bias_by_name,
            (grads * weights) @ self.convolutions,
            updates @ self.weights,
            updates @ biases,
            weights @ self.convolutions,
        ]
        return torch.cat([torch.stack(sums, 1).sqrt(), loss[:, None]], 1)
