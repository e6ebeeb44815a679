"""The cross-entropy of every sample of a batch, where a loss function would give their mean."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from hf_pdyn.tensors.norms import accumulator_dtype

_IGNORED = -100
"""The label that transformers and torch leave out of a loss."""
_CHUNK = 2**24
"""Logits that are in float32 at a time; 64 MB."""


class SampleCrossEntropy(NamedTuple):
    """Losses of the B samples of a batch.

    loss: (B,), in nats; float64, or float32 where the device has no float64; meaningless where nothing is labelled.
    labelled: (B,), whether the sample has a label, or a token that has one.
    correct: (B,), whether the class of the largest logit is the label; None for tokens.
    """

    loss: Tensor
    labelled: Tensor
    correct: Tensor | None


def sample_cross_entropy(
    logits: Tensor, labels: Tensor, samples: int, *, shifted: bool = False, position_ids: Tensor | None = None
) -> SampleCrossEntropy:
    """The cross-entropy of every sample: that of its class, or the mean over its labelled tokens.

    Labels that are no class, such as -100, label nothing. Logits of any dtype are read as float32, a part at a time;
    sums over tokens are float64 where the device has it.

    Args:
        logits: (B, C) for classes, (B, T, V) for tokens, or (1, T, V) for samples flattened into one row.
        labels: integers, of the logits' shape without the last dimension.
        samples: how many samples the batch was made of.
        shifted: whether the logits at one token predict the next one.
        position_ids: (1, T), tells flattened samples apart; unused where every sample has a row.

    Raises:
        ValueError: for regression, other shapes, and rows that are not the samples.
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
    lengths = None if len(labels) == samples else _flattened_lengths(labels, samples, position_ids)
    labels = labels.long()  # the smaller types have no -100
    if tokens and shifted:
        if lengths is not None:  # the token before a sample's first one belongs to another sample
            starts = torch.tensor([0, *lengths[:-1]], device=labels.device).cumsum(0)
            labels = labels.index_fill(1, starts, _IGNORED)
        # The labels move, as in transformers' own loss: a shifted view of the logits would have to be copied.
        labels = functional.pad(labels, (0, 1), value=_IGNORED)[:, 1:]
    labels = torch.where((labels >= 0) & (labels < logits.shape[-1]), labels, _IGNORED)
    losses = _cross_entropy(logits.flatten(0, -2), labels.flatten()).view_as(labels)
    labelled = labels != _IGNORED
    if not tokens:
        return SampleCrossEntropy(losses.to(accumulator_dtype(losses.device)), labelled, logits.argmax(-1) == labels)
    if lengths is not None:
        losses, labelled = (
            pad_sequence(list(torch.split(row[0], lengths)), batch_first=True) for row in (losses, labelled)
        )
    counts = labelled.sum(dim=1)
    sums = losses.sum(dim=1, dtype=accumulator_dtype(losses.device))
    return SampleCrossEntropy(sums / counts.clamp(min=1), counts > 0, None)


def _flattened_lengths(labels: Tensor, samples: int, position_ids: Tensor | None) -> list[int]:
    """The lengths of samples that stand one after another in one row, where their position_ids start anew."""
    found = ""
    if labels.ndim == 2 and len(labels) == 1 and position_ids is not None and position_ids.shape == labels.shape:
        starts = [0, *((position_ids[0].diff() != 1).nonzero().flatten() + 1).tolist(), labels.shape[1]]
        lengths = [end - start for start, end in pairwise(starts)]
        if len(lengths) == samples:
            return lengths
        found = f", with position_ids of {len(lengths)}"
    raise ValueError(
        "sample losses need a row for each sample, or one row whose position_ids start anew at each; the data "
        f"collator made {len(labels)} row(s) of {samples} samples{found}. per_device_eval_batch_size=1 measures packed "
        "rows whole"
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 of logits (N, C) and labels (N,), 0 where ignored."""
    rows = max(1, _CHUNK // logits.shape[-1])
    parts = [
        functional.cross_entropy(part.float(), wanted, reduction="none", ignore_index=_IGNORED)
        for part, wanted in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    ]
    return torch.cat(parts)
