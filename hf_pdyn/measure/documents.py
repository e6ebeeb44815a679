"""Documents that stand one after another in the rows of a batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of a row: a document, or padding.

    bare: whether it has no label, as padding that collators count in position_ids.
    """

    row: int
    length: int
    is_document: bool
    bare: bool


def stretches(labels: Tensor, documents: Tensor) -> list[Stretch]:
    """The stretches of a batch, row after row; their lengths add up to B * T.

    Args:
        labels: (B, T); what is negative labels nothing.
        documents: (B, T), the same number along a document and another one after it, 0 for padding. A row of nothing
            but padding is a document.
    """
    documents = documents.masked_fill((documents == 0).all(dim=1, keepdim=True), 1)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    lengths = torch.diff(starts, append=starts.new_tensor([documents.numel()]))
    of_token = begins.flatten().cumsum(0) - 1
    bare = torch.zeros_like(lengths).index_add(0, of_token, (labels.flatten() >= 0).long()) == 0
    is_document = documents.flatten()[starts] != 0
    columns = (starts // documents.shape[1], lengths, is_document, bare)
    return [Stretch(*fields) for fields in zip(*(column.tolist() for column in columns), strict=True)]


def without_bare_ends(found: list[Stretch], at_least: int) -> list[Stretch]:
    """The stretches, with bare documents at the end of a row as padding while the row has more of them than that."""
    documents = documents_by_row(found)
    ended: set[int] = set()
    kept: list[Stretch] = []
    for stretch in reversed(found):
        if stretch.is_document and stretch.row not in ended:
            if stretch.bare and documents[stretch.row] > at_least:
                documents[stretch.row] -= 1
                stretch = replace(stretch, is_document=False)
            else:
                ended.add(stretch.row)
        kept.append(stretch)
    return kept[::-1]


def documents_by_row(found: list[Stretch]) -> Counter[int]:
    """How many documents each row holds."""
    return Counter(stretch.row for stretch in found if stretch.is_document)


def starts(found: list[Stretch], device: torch.device) -> Tensor:
    """Where in B * T the stretches begin."""
    return torch.tensor([0, *(stretch.length for stretch in found[:-1])], device=device).cumsum(0)


def by_document(values: Tensor, found: list[Stretch]) -> Tensor:
    """(N, longest) of values (B, T), a document each row, with zeros behind it."""
    pieces = torch.split(values.flatten(), [stretch.length for stretch in found])
    kept = [piece for piece, stretch in zip(pieces, found, strict=True) if stretch.is_document]
    return pad_sequence(kept, batch_first=True)
