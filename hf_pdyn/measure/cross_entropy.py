"""The cross-entropy of every sample of a batch, where a loss function would give their mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hf_pdyn.tensors.norms import accumulator_dtype

_IGNORED = -100
"""The label that transformers and torch leave out of a loss."""
_CHUNK = 2**24
"""Logits that are in float32 at a time; 64 MB."""


class SampleCrossEntropy(NamedTuple):
    """What a batch says of its samples.

    loss: (B,), in nats; float64, float32 where the device has no other; meaningless where nothing is labelled.
    labelled: (B,), whether the sample has a label, or a token that has one.
    correct: (B,), whether the class of the largest logit is the label; None for tokens.
    """

    loss: Tensor
    labelled: Tensor
    correct: Tensor | None


def sample_cross_entropy(logits: Tensor, labels: Tensor, *, shifted: bool = False) -> SampleCrossEntropy:
    """Cross-entropy by sample: of a class, or the mean over a sample's labelled tokens.

    Labels outside the classes, -100 among them, label nothing. Logits of any dtype are read as float32, a part at a
    time, and sums over tokens are float64 where the device has it.

    Args:
        logits: (B, C) for classes, or (B, T, V) for tokens.
        labels: integers, (B,) or (B, T).
        shifted: of tokens, that the logits at one position predict the label at the next.

    Raises:
        ValueError: for anything else, regression among it.
    """
    tokens = logits.ndim == 3
    if logits.ndim not in (2, 3) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"sample losses need logits (B, C) with labels (B,), or (B, T, V) with (B, T); got {tuple(logits.shape)} "
            f"with {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or logits.shape[-1] == 1:
        raise ValueError(
            f"sample losses need labels that are classes, got {labels.dtype} for {logits.shape[-1]} outputs: that is "
            "regression, or several labels at once"
        )
    labels = labels.long()  # the smaller types have no -100
    if tokens and shifted:
        # The labels move, as in transformers' own loss: a shifted view of the logits would have to be copied.
        labels = functional.pad(labels, (0, 1), value=_IGNORED)[:, 1:]
    labels = torch.where((labels >= 0) & (labels < logits.shape[-1]), labels, _IGNORED)
    losses = _cross_entropy(logits.flatten(0, -2), labels.flatten()).view_as(labels)
    labelled = labels != _IGNORED
    if not tokens:
        return SampleCrossEntropy(losses.to(accumulator_dtype(losses.device)), labelled, logits.argmax(-1) == labels)
    counts = labelled.sum(dim=1)
    sums = losses.sum(dim=1, dtype=accumulator_dtype(losses.device))
    return SampleCrossEntropy(sums / counts.clamp(min=1), counts > 0, None)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 of logits (N, C) and labels (N,), 0 where ignored."""
    rows = max(1, _CHUNK // logits.shape[-1])
    parts = [
        functional.cross_entropy(part.float(), wanted, reduction="none", ignore_index=_IGNORED)
        for part, wanted in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    ]
    return torch.cat(parts)
