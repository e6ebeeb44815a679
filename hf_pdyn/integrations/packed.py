"""Which tokens of a batch belong together, from the marks that data collators give a model.

Tried with transformers 5.2 to 5.23 (`DataCollatorWithFlattening`), TRL 1.16 (`SFTTrainer` with packing), axolotl 0.19
(`V2BatchSamplerDataCollatorForSeq2Seq`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def document_ids(inputs: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    """A number for each token of a batch: the same along a document and another one after it, 0 for padding.

    Marks are, in this order: `seq_idx`; an attention mask that counts documents (1 1 2 2 2 0); the cumulative lengths
    `cu_seq_lens_q` of flash attention; position_ids that do not rise, where the attention mask is not 0.

    Args:
        inputs: what the model is given.
        shape: (B, T), of the labels.

    Returns:
        (B, T), or None where the batch has no such mark.
    """

    def of_tokens(name: str) -> Tensor | None:
        found = inputs.get(name)
        whole = isinstance(found, Tensor) and found.shape == shape and not found.is_floating_point()
        return found if whole else None

    mask = of_tokens("attention_mask")
    sequence, positions = of_tokens("seq_idx"), of_tokens("position_ids")
    lengths = inputs.get("cu_seq_lens_q")
    if sequence is not None:
        ids = sequence + 1
    elif mask is not None and _counts(mask):
        return mask
    elif isinstance(lengths, Tensor) and lengths.ndim == 1 and shape[0] == 1:
        places = torch.arange(shape[1], device=lengths.device)
        ids = torch.bucketize(places, lengths[1:], right=True) + 1
        ids = torch.where(places < lengths[-1], ids, 0)[None]
    elif positions is not None:
        ids = torch.ones_like(positions, dtype=torch.long)
        ids[:, 1:] += (positions.diff() <= 0).long().cumsum(dim=1)
    else:
        return None
    return ids if mask is None else ids * (mask != 0)


def _counts(mask: Tensor) -> bool:
    """Whether an attention mask numbers documents; Longformer's has a 2 where attention is global."""
    if mask.dtype == torch.bool or not (mask > 1).any():
        return False
    falls = (mask.diff() < 0) & (mask[:, 1:] != 0)
    return not falls.any()


def rows_are_packed(data_set: Any) -> bool:
    """Whether a data set's rows hold several documents each, which a flattening collator mixes with other rows'.

    TRL's packing keeps the documents' lengths in a column, `seq_lengths`.
    """
    return "seq_lengths" in (getattr(data_set, "column_names", None) or ())
