"""Trainings of many small networks at once, each with its own images, order, learning rate and exponents.

Nothing couples the networks. The update is that of `hf_pdyn.Padam`, and what is observed is what the Trainer's
telemetry observes; tests compare both, step by step. On a CPU a network takes about the time that it takes alone; on a
GPU hundreds of the quick setting take a minute together.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hf_pdyn.measure.sample_loss import hard_samples, summary

from .stacked_networks import ALL, StackedNetworks
from .stacked_norms import BIAS_LIKE, StackedNorms
from .stacked_padam import StackedPadam, Training
from .training import TABLE_2

_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() != "AVX2"
"""Whether gradients may take oneDNN's convolutions. Those of torch 2.13 write past their buffers here on CPUs with AVX2
and no AVX-512, and the process aborts."""

LARGEST = 2**28
"""Elements of the largest tensor that a measurement makes."""


@dataclass(frozen=True)
class Samples:
    """Images and classes of every network: (networks, images, height, width, channels) and (networks, images)."""

    pixels: Tensor
    labels: Tensor

    def of(self, which: Tensor) -> Samples:
        """Those of indices (networks, images)."""
        rows = torch.arange(len(which), device=which.device)[:, None]
        return Samples(self.pixels[rows, which], self.labels[rows, which])

    def first(self, count: int) -> Samples:
        return Samples(self.pixels[:, :count], self.labels[:, :count])

    def __len__(self) -> int:
        """Images of one network."""
        return self.labels.shape[1]


@dataclass(frozen=True)
class Epochs:
    """How long, and when more is measured.

    measured_after: epochs, counted from 1, after which all sample losses and the gradient of the whole train set are
    measured, at least the last. probe: images of the train set that these take. validated_every: so many epochs, where
    there are images for it. augment: crops out of 4 pixels of padding, and mirror images, in training.
    """

    epochs: int
    batch_size: int
    measured_after: tuple[int, ...]
    probe: int = 500
    validated_every: int = 1
    augment: bool = False


Move = Callable[[int, list[float], list[float]], Sequence[float]]
"""After an epoch, counted from 1, with D_w and D_b of every network in it: every network's p of the next epoch."""

CURVES = ("D_w", "D_b", "G_w_over_G_b", "by_name", "invariant", "update_w", "update_b", "conv_norm", "loss")
"""Curves over epochs, means over the steps of each: gradient norms by pathway; the mean of weights over that of
bias-like ones by Table 1, and by parameter name; sqrt(sum ||w||^2 ||g||^2) of convolutions over D_b; update norms by
pathway; norm of all convolutions; training loss."""


def train_together(
    networks: StackedNetworks,
    trainings: Sequence[Training],
    train: Samples,
    test: Samples,
    how: Epochs,
    move: Move | None = None,
    validation: Samples | None = None,
) -> list[dict[str, Any]]:
    """Train all networks; return what was observed of each, as plain numbers.

    curves: `CURVES` over epochs, with p. table_2: of the train probe and the test set after the last epoch. measured:
    by epoch of `measured_after`, the same two summaries, and the three ratios of the gradient of the train probe.
    layers: in the last epoch, mean gradient norms by tensor, and norms of the tensors. hard: the hardest tenth of both
    sets at the end, as `packed`. eps_share: of second moments below eps at the end. update_centre: of BIAS_LIKE, the
    mean epoch, counted from 1, weighted by update norms. validation_accuracy: every `validated_every` epochs.
    """
    device = networks.values.device
    optimizer, norms = StackedPadam(networks, trainings), StackedNorms(networks)
    generators = [torch.Generator().manual_seed(one.seed) for one in trainings]
    per_epoch = len(train) // how.batch_size
    rates = _rates(trainings, per_epoch, how.epochs).to(device)
    curves, moving = [], [[one.p] for one in trainings]
    centres = torch.zeros(2, len(trainings), len(BIAS_LIKE), device=device)
    accuracies: list[Tensor] = []
    measured: list[dict[str, Any]] = [{} for _ in trainings]
    for epoch in range(how.epochs):
        orders = torch.stack([torch.randperm(len(train), generator=one) for one in generators]).to(device)
        sums = torch.zeros(len(trainings), len(CURVES), device=device)
        by_tensor = torch.zeros(len(trainings), len(networks.names), device=device)
        for i in range(per_epoch):
            batch = train.of(orders[:, i * how.batch_size : (i + 1) * how.batch_size])
            if how.augment:
                batch = Samples(cropped_or_flipped(batch.pixels), batch.labels)
            loss, grads = _gradient(networks, batch, keep=True)
            weights, of_grads = norms.squares(networks.values), norms.squares(grads)
            updates = norms.squares(optimizer.step(grads, rates[epoch * per_epoch + i]))
            sums += norms.of_step(loss, of_grads, weights, updates)
            by_tensor += of_grads.sqrt()
            bias_like = (updates @ norms.bias_like).sqrt()
            centres += torch.stack([bias_like * (epoch + 1), bias_like])
        curves.append(sums.double().cpu().numpy() / per_epoch)
        if validation is not None and (epoch + 1) % how.validated_every == 0:
            hits = _logits(networks, validation).argmax(2) == validation.labels
            accuracies.append(hits.float().mean(1))
        if epoch + 1 in how.measured_after:
            of_probe = _of_probe(networks, norms, train.first(how.probe))
            for one, found in zip(measured, _measured(networks, train.first(how.probe), test, of_probe), strict=True):
                one[str(epoch + 1)] = found
        if move is not None and epoch + 1 < how.epochs:
            exponents = move(epoch + 1, curves[-1][:, 0].tolist(), curves[-1][:, 1].tolist())
            optimizer.set_p(torch.tensor(exponents, dtype=torch.float32)[:, None].expand(-1, len(networks.names)))
            for one, p in zip(moving, exponents, strict=True):
                one.append(p)
    shares = optimizer.share_below_eps().tolist()
    last = {"G": by_tensor / per_epoch, "norm": norms.squares(networks.values).sqrt()}
    return [
        {
            "curves": _named(np.array([epoch[i] for epoch in curves])) | {"p": moving[i] if move else [moving[i][0]]},
            "measured": {at: {k: v for k, v in one.items() if k != "losses"} for at, one in measured[i].items()},
            "layers": {
                kind: dict(zip(networks.names, _short(found[i].tolist(), 4), strict=True))
                for kind, found in last.items()
            },
            "hard": {
                split: packed(hardest(losses)) for split, losses in measured[i][str(how.epochs)]["losses"].items()
            },
            "samples": {"train": min(how.probe, len(train)), "test": len(test)},
            "eps_share": shares[i],
            "update_centre": dict(zip(BIAS_LIKE, _short((centres[0, i] / centres[1, i]).tolist()), strict=True)),
            "validation_accuracy": _short([float(of_networks[i]) for of_networks in accuracies]),
        }
        for i in range(len(trainings))
    ]


def cropped_or_flipped(pixels: Tensor) -> Tensor:
    """A crop of each image, of its size, out of 4 pixels of padding; half of the time its mirror image."""
    count, images, height, width, _ = pixels.shape
    padded = functional.pad(pixels, (0, 0, 4, 4, 4, 4)).flatten(0, 1)
    tops, lefts, flips = (torch.randint(n, (count * images, 1, 1), device=pixels.device) for n in (9, 9, 2))
    rows = tops + torch.arange(height, device=pixels.device)[:, None]
    columns = torch.arange(width, device=pixels.device)[None]
    columns = lefts + torch.where(flips.bool(), width - 1 - columns, columns)
    which = torch.arange(count * images, device=pixels.device)[:, None, None]
    return padded[which, rows, columns].view_as(pixels)


def _rates(trainings: Sequence[Training], per_epoch: int, epochs: int) -> Tensor:
    """Learning rates (steps, networks, 1)."""
    steps = per_epoch * epochs
    return torch.tensor([[[one.rate(step, steps, step // per_epoch)] for one in trainings] for step in range(steps)])


def _gradient(networks: StackedNetworks, batch: Samples, *, keep: bool, of: slice = ALL) -> tuple[Tensor, Tensor]:
    """Mean losses (networks,), and their gradients (networks, parameters)."""
    with _safe_convolutions():
        logits = networks.logits(batch.pixels, batch_statistics=True, keep=keep, of=of)
        losses = functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none").mean(1)
        (grads,) = torch.autograd.grad(losses.sum(), networks.values)
    return losses.detach(), grads[of]


@contextmanager
def _safe_convolutions() -> Iterator[None]:
    """Not oneDNN's where they abort. Not `mkldnn.flags`, which sets what warns (torch 2.13)."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and _ONEDNN
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _of_probe(networks: StackedNetworks, norms: StackedNorms, probe: Samples) -> Tensor:
    """As `StackedNorms.of_step`, of one gradient of the whole probe: without the noise of small batches."""
    weights = norms.squares(networks.values)
    found = []
    for of in _slices(networks, probe):
        loss, grads = _gradient(networks, Samples(probe.pixels[of], probe.labels[of]), keep=False, of=of)
        of_grads = norms.squares(grads)
        found.append(norms.of_step(loss, of_grads, weights[of], of_grads))
    return torch.cat(found)


def _slices(networks: StackedNetworks, samples: Samples) -> list[slice]:
    """Slices of the networks, so many at a time that no tensor is too large."""
    at_a_time = max(LARGEST // (len(samples) * _elements(networks, samples)), 1)
    return [slice(start, start + at_a_time) for start in range(0, len(networks), at_a_time)]


def _elements(networks: StackedNetworks, samples: Samples) -> int:
    """The elements of the largest tensor, for one image of one network."""
    return 9 * samples.pixels[0, 0, ..., 0].numel() * networks.size.widths[0]


@torch.no_grad()
def _measured(networks: StackedNetworks, train: Samples, test: Samples, of_probe: Tensor) -> list[dict[str, Any]]:
    """Losses of both sets, their summaries, and ratios of the probe's gradient, for every network."""
    losses, correct = {}, {}
    for split, samples in (("train", train), ("test", test)):
        logits = _logits(networks, samples)
        losses[split] = functional.cross_entropy(logits.transpose(1, 2), samples.labels, reduction="none")
        correct[split] = logits.argmax(2) == samples.labels
    of_gradient = of_probe.double().cpu().numpy()
    found = []
    for i in range(len(networks)):
        of_splits = {split: losses[split][i].double().cpu().numpy() for split in losses}
        table = {split: _table_2(of_splits[split], correct[split][i].cpu().numpy()) for split in losses}
        ratios = {name: _named(of_gradient[i : i + 1])[name][0] for name in ("G_w_over_G_b", "by_name", "invariant")}
        found.append({"table_2": table, "of_whole_set": ratios, "losses": of_splits})
    return found


@torch.no_grad()
def _logits(networks: StackedNetworks, samples: Samples) -> Tensor:
    """Outputs with running statistics, of so many images at a time that no tensor is too large."""
    at_a_time = max(LARGEST // (len(networks) * _elements(networks, samples)), 1)
    starts = range(0, len(samples), at_a_time)
    parts = [samples.pixels[:, start : start + at_a_time] for start in starts]
    return torch.cat([networks.logits(part, batch_statistics=False) for part in parts], 1)


def _table_2(losses: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    found = summary(losses, correct).to_dict()
    return {name: _short([found[name]])[0] for name in TABLE_2}


def _named(sums: np.ndarray) -> dict[str, list[Any]]:
    """`CURVES`; sums: (epochs, 9) of `StackedNorms.of_step`."""
    d_w, d_b, by_name, bias, invariant, update_w, update_b, conv_norm, loss = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (d_w, d_b, d_w / d_b, by_name / bias, invariant / d_b, update_w, update_b, conv_norm, loss)
    return {name: _short(values.tolist()) for name, values in zip(CURVES, found, strict=True)}


def _short(values: Sequence[float], digits: int = 5) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def hardest(losses: np.ndarray) -> np.ndarray:
    """A mask of the tenth of the samples with the largest losses; a NaN is a large one."""
    mask = np.zeros(len(losses), bool)
    mask[hard_samples(losses)] = True
    return mask


def packed(mask: np.ndarray) -> str:
    """A mask as text, eight samples a byte."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The mask of `packed`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:count].astype(bool)
