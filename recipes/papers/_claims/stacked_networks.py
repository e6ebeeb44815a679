"""Many small ResNets in the same tensors, one beside the other, so that a GPU computes hundreds of them at once.

A network here is one of `networks.resnet` with basic blocks, of which tests compare outputs and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import ResNetForImageClassification

from .networks import ResNetSize, resnet

MOMENTUM, BN_EPS = 0.1, 1e-5
"""BatchNorm's: of its running statistics, and under its root."""
ALL = slice(None)


class StackedNetworks:
    """Networks of one size.

    Args:
        seeds: of the initial weights, one a network.

    Attributes:
        values: (networks, parameters), the leaf that gradients are of.
        names, sizes: of the tensors that lie one after the other in `values`.
    """

    def __init__(self, size: ResNetSize, channels: int, classes: int, seeds: Sequence[int], device: str) -> None:
        models = [at_seed(seed, lambda: resnet(size, channels, classes)) for seed in seeds]
        shapes = {name: one.shape for name, one in models[0].named_parameters()}
        self.size, self.names, self._shapes = size, list(shapes), list(shapes.values())
        self.sizes = [shape.numel() for shape in self._shapes]
        self.values = torch.stack([_flat(model) for model in models]).to(device).requires_grad_()
        width = {
            name.removesuffix(".weight"): shape.numel()
            for name, shape in shapes.items()
            if name.endswith(".normalization.weight")
        }
        self._means = {name: torch.zeros(len(models), 1, n, device=device) for name, n in width.items()}
        self._variances = {name: torch.ones(len(models), 1, n, device=device) for name, n in width.items()}

    def __len__(self) -> int:
        return len(self.values)

    def logits(self, pixels: Tensor, *, batch_statistics: bool, keep: bool = False, of: slice = ALL) -> Tensor:
        """Outputs of shape (networks, images, classes).

        pixels: (networks, images, height, width, channels). batch_statistics: BatchNorm takes those of the images
        instead of the running ones. keep: and lets them enter the running ones. of: which networks.
        """
        pieces = self.values[of].split(self.sizes, 1)
        given = {
            name: piece.unflatten(1, shape) for name, piece, shape in zip(self.names, pieces, self._shapes, strict=True)
        }

        def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
            x = _convolved(x, given[f"{name}.convolution.weight"], stride)
            name = f"{name}.normalization"
            gain, shift = given[f"{name}.weight"][:, None], given[f"{name}.bias"][:, None]
            mean, variance = (
                self._of_batch(x, name, keep, of)
                if batch_statistics
                else (self._means[name][of], self._variances[name][of])
            )
            factor = gain * (variance + BN_EPS).rsqrt()
            return torch.addcmul(shift - mean * factor, x.flatten(1, 3), factor).view_as(x)

        x = block(pixels, "resnet.embedder.embedder").relu()
        for stage, depth in enumerate(self.size.blocks):
            for layer in range(depth):
                name = f"resnet.encoder.stages.{stage}.layers.{layer}"
                stride = 2 if stage and not layer else 1
                hidden = block(block(x, f"{name}.layer.0", stride).relu(), f"{name}.layer.1")
                changes_shape = f"{name}.shortcut.convolution.weight" in given
                x = (hidden + (block(x, f"{name}.shortcut", stride) if changes_shape else x)).relu()
        weight, bias = given["classifier.1.weight"], given["classifier.1.bias"]
        return torch.baddbmm(bias[:, None], x.mean((2, 3)), weight.transpose(1, 2))

    def _of_batch(self, x: Tensor, name: str, keep: bool, of: slice) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x.flatten(1, 3), 1, correction=0, keepdim=True)
        if keep:
            n = x[0, ..., 0].numel()
            self._means[name][of].lerp_(mean.detach(), MOMENTUM)
            self._variances[name][of].lerp_(variance.detach() * (n / (n - 1)), MOMENTUM)
        return mean, variance


def kind_of(name: str) -> str:
    """The kind of a tensor: weight, norm or bias."""
    return "norm" if ".normalization." in name else "bias" if name.endswith(".bias") else "weight"


def at_seed(seed: int, make: Callable[[], ResNetForImageClassification]) -> ResNetForImageClassification:
    """A model whose initial weights are of that seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _flat(model: ResNetForImageClassification) -> Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def _one_after_the_other(x: Tensor) -> bool:
    """Whether the library's convolution, of one network at a time, is the faster one: thrice on a CPU."""
    return x.device.type == "cpu" or len(x) == 1


def _convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """x: (networks, images, height, width, in). weight: (networks, out, in, side, side), padded by half a side."""
    side = weight.shape[-1]
    if _one_after_the_other(x):
        pairs = zip(x.movedim(-1, 2), weight, strict=True)
        found = [functional.conv2d(images, kernel, stride=stride, padding=side // 2) for images, kernel in pairs]
        return torch.stack([one.permute(0, 2, 3, 1) for one in found])
    padding = side // 2
    padded = functional.pad(x, (0, 0, padding, padding, padding, padding))
    patches = padded.unfold(2, side, stride).unfold(3, side, stride)
    height, width = patches.shape[2:4]
    columns = patches.reshape(len(x), -1, weight[0, 0].numel())
    found = torch.bmm(columns, weight.flatten(2).transpose(1, 2))
    return found.view(len(x), -1, height, width, weight.shape[1])
