"""Small smooth losses in float64, and Padam's steps on them.

A loss takes rows of parameters, (..., d), and returns its sum over the rows: one gradient serves all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from _common.image_data import digits
from hf_pdyn import Padam

Loss: TypeAlias = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    """start: (d,). losses: of the mini-batches, which share the samples evenly; of a full batch, one."""

    start: Tensor
    losses: list[Loss]


def bilinear(seed: int, batches: int) -> Problem:
    """E = (y - x t1 t2)^2 / 2 (IBA section 5), in the mean over four pairs (x, y), which draw from the seed."""
    random = _Normal(seed)
    x, y = 1 + 0.1 * random(4), 1.5 + 0.15 * random(4)

    def loss_of(batch: slice) -> Loss:
        return lambda theta: (y[batch] - x[batch] * theta.prod(-1, keepdim=True)).square().mean(-1).sum() / 2

    return Problem(torch.tensor([0.6, 1.0], dtype=torch.float64) * (1 + 0.1 * random(2)), _shared(loss_of, batches))


def logistic(seed: int, batches: int) -> Problem:
    """Logistic regression on 40 samples of 5 inputs, with classes drawn from a model."""
    random = _Normal(seed)
    inputs, model = random(40, 5), random(5)
    signs = torch.sign(inputs @ model + random(40))
    signed = inputs * signs[:, None]

    def loss_of(batch: slice) -> Loss:
        return lambda theta: softplus(-theta @ signed[batch].T).mean(-1).sum()

    return Problem(random(5), _shared(loss_of, batches))


def tanh_network(seed: int, batches: int) -> Problem:
    """Six hidden units on 24 samples of two inputs, squared error to a smooth function."""
    random = _Normal(seed)
    hidden, width = 6, 2
    inputs = random(24, width)
    targets = torch.sin(2 * inputs[:, 0]) * inputs[:, 1]
    parts = (hidden * width, hidden, hidden)

    def loss_of(batch: slice) -> Loss:
        def loss(theta: Tensor) -> Tensor:
            weights, biases, outputs = theta.split(parts, -1)
            units = inputs[batch] @ weights.unflatten(-1, (hidden, width)).transpose(-1, -2) + biases.unsqueeze(-2)
            found = (torch.tanh(units) * outputs.unsqueeze(-2)).sum(-1)
            return (found - targets[batch]).square().mean(-1).sum() / 2

        return loss

    scales = torch.tensor([width**-0.5, 0.3, hidden**-0.5], dtype=torch.float64).repeat_interleave(torch.tensor(parts))
    return Problem(scales * random(sum(parts)), _shared(loss_of, batches))


def digits_network(seed: int) -> Problem:
    """Ten hidden units and a softmax on 100 of scikit-learn's digits, 760 parameters; of one row of parameters only."""
    random = _Normal(seed)
    images = digits().train
    rows = torch.randperm(len(images), generator=random.generator)[:100].numpy()
    inputs = torch.from_numpy(images.images[rows]).double().flatten(1) / 255 - 0.3
    classes = torch.from_numpy(images.labels[rows])
    shapes = ((10, 64), (10,), (10, 10), (10,))
    sizes = [torch.Size(shape).numel() for shape in shapes]

    def loss(theta: Tensor) -> Tensor:
        w, b, v, c = (part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True))
        return cross_entropy(torch.tanh(inputs @ w.T + b) @ v.T + c, classes)

    scales = torch.tensor([64**-0.5, 0.0, 10**-0.5, 0.0], dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
    return Problem(scales * random(sum(sizes)), [loss])


def padam_path(
    losses: Iterator[Loss], start: Tensor, *, exponents: Sequence[float] = (0.5,), **hyperparameters: Any
) -> Iterator[Tensor]:
    """theta^(0), theta^(1), ..., each (len(exponents), d): a row of parameters for each exponent."""
    rows: list[Tensor] = [nn.Parameter(start.clone()) for _ in exponents]
    groups = [{"params": [row], "p": p} for row, p in zip(rows, exponents, strict=True)]
    optimizer = Padam(groups, weight_decay=0.0, **hyperparameters)
    yield torch.stack(rows).detach()
    for loss in losses:
        optimizer.zero_grad()
        loss(torch.stack(rows)).backward()
        optimizer.step()
        yield torch.stack(rows).detach()


class _Normal:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


def _shared(loss_of: Callable[[slice], Loss], batches: int) -> list[Loss]:
    return [loss_of(slice(batch, None, batches)) for batch in range(batches)]
