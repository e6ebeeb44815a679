"""The cross-entropy of every sample of a batch, where a loss function would give their mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hf_pdyn.measure.documents import (
    Stretch,
    by_document,
    documents_by_row,
    starts,
    stretches,
    without_bare_ends,
)
from hf_pdyn.tensors.norms import accumulator_dtype

_IGNORED = -100
"""The label that transformers and torch leave out of a loss."""
_CHUNK = 2**24
"""Logits that are in float32 at a time; 64 MB."""


class SampleCrossEntropy(NamedTuple):
    """Losses of the B samples of a batch, or of the N documents that are packed into them.

    loss: (N,), in nats; float64, or float32 where the device has no float64; meaningless where nothing is labelled.
    labelled: (N,), whether the sample has a label, or a token that has one.
    correct: (N,), whether the class of the largest logit is the label; None for tokens.
    parts: (B,), how many documents each sample holds, which stand in `loss` in their order; None where N = B.
    """

    loss: Tensor
    labelled: Tensor
    correct: Tensor | None
    parts: list[int] | None = None


def sample_cross_entropy(
    logits: Tensor, labels: Tensor, samples: int, *, shifted: bool = False, documents: Tensor | None = None
) -> SampleCrossEntropy:
    """The cross-entropy of every sample: that of its class, or the mean over its labelled tokens.

    Labels that are no class, such as -100, label nothing. Logits of any dtype are read as float32, a part at a time;
    sums over tokens are float64 where the device has it.

    Args:
        logits: (B, C) for classes, (B, T, V) for tokens, or (1, T, V) for samples flattened into one row.
        labels: integers, of the logits' shape without the last dimension.
        samples: how many samples the batch was made of.
        shifted: whether the logits at one token predict the next one.
        documents: (B, T), the same number along a document and another one after it, 0 for padding. It tells
            flattened samples apart, and the documents that are packed into a sample's row.

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
    found, parts = _documents(labels, samples, documents if tokens else None)
    labels = labels.long()  # the smaller types have no -100
    if tokens and shifted:
        if found is not None:  # the token before a document's first one belongs to another document
            begins = starts(found, labels.device)
            labels = labels.flatten().index_fill(0, begins, _IGNORED).view_as(labels)
        # The labels move, as in transformers' own loss: a shifted view of the logits would have to be copied.
        labels = functional.pad(labels, (0, 1), value=_IGNORED)[:, 1:]
    labels = torch.where((labels >= 0) & (labels < logits.shape[-1]), labels, _IGNORED)
    losses = _cross_entropy(logits.flatten(0, -2), labels.flatten()).view_as(labels)
    labelled = labels != _IGNORED
    if not tokens:
        return SampleCrossEntropy(losses.to(accumulator_dtype(losses.device)), labelled, logits.argmax(-1) == labels)
    if found is not None:
        losses, labelled = by_document(losses, found), by_document(labelled, found)
    counts = labelled.sum(dim=1)
    sums = losses.sum(dim=1, dtype=accumulator_dtype(losses.device))
    return SampleCrossEntropy(sums / counts.clamp(min=1), counts > 0, None, parts)


def answer_cross_entropy(
    start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor, samples: int
) -> SampleCrossEntropy:
    """The cross-entropy of every sample of extractive question answering: the mean of its first and last token's.

    As in transformers' own loss, a position at or behind the end of the row is left out, and one below 0 means 0. A
    sample is `correct` where both are the largest logits.

    Args:
        start_logits: (B, T), of each token as the first one of the answer.
        end_logits: (B, T), as the last one.
        start: (B,) or (B, 1), the position of the first token.
        end: (B,) or (B, 1), that of the last one.
        samples: how many samples the batch was made of.

    Raises:
        ValueError: for other shapes, and rows that are not the samples.
    """
    logits = torch.stack([start_logits, end_logits], dim=1)
    if start.numel() != len(logits) or end.numel() != len(logits):
        raise ValueError(
            f"sample losses of answers need one start and one end a row, got {tuple(start.shape)} and "
            f"{tuple(end.shape)} for {len(logits)} rows"
        )
    positions = torch.stack([start.flatten(), end.flatten()], dim=1).clamp(min=0)
    found = sample_cross_entropy(logits, positions, samples)
    return found._replace(correct=(logits.argmax(-1) == positions).all(dim=1))


def _documents(labels: Tensor, samples: int, documents: Tensor | None) -> tuple[list[Stretch] | None, list[int] | None]:
    """The stretches of a batch whose rows are not its samples, and how many documents each packed sample holds."""
    number = ""
    if documents is not None:
        found = stretches(labels, documents)
        if len(labels) == samples:
            found = without_bare_ends(found, at_least=1)
            counts = documents_by_row(found)
            parts = [counts[row] for row in range(samples)]
            return (found, parts) if max(parts) > 1 else (None, None)
        if len(labels) == 1:
            found = without_bare_ends(found, at_least=samples)
            if documents_by_row(found)[0] == samples:
                return found, None
        number = f", with {sum(documents_by_row(found).values())} documents in them"
    if len(labels) == samples:
        return None, None
    raise ValueError(
        "sample losses need a row for each sample, or one row in which position_ids (or another mark) tell the samples "
        f"apart; the data collator made {len(labels)} row(s) of {samples} samples{number}. "
        "per_device_eval_batch_size=1 measures rows of a packed data set, by document"
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 of logits (N, C) and labels (N,), 0 where ignored."""
    rows = max(1, _CHUNK // logits.shape[-1])
    parts = [
        functional.cross_entropy(part.float(), wanted, reduction="none", ignore_index=_IGNORED)
        for part, wanted in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    ]
    return torch.cat(parts)
