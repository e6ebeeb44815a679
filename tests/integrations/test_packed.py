"""Which tokens of a batch belong together, from the marks that collators make."""

from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening

from hf_pdyn.integrations.packed import document_ids, rows_are_packed


def apart(ids: torch.Tensor) -> list[list[int]]:
    """The same with numbers 1, 2, ... in the order of their first token in each row, and 0."""
    rows = []
    for row in ids.tolist():
        names = {0: 0}
        rows.append([names.setdefault(one, len(names)) for one in row])
    return rows


ROWS = [{"input_ids": list(range(length)), "labels": list(range(length))} for length in (3, 1, 2)]
FLAT = [[1, 1, 1, 2, 3, 3]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_position_ids": False, "return_flash_attn_kwargs": True},
        {"return_position_ids": False, "return_seq_idx": True},
        {"return_flash_attn_kwargs": True, "return_seq_idx": True},
    ],
    ids=lambda options: "+".join(options) or "position_ids",
)
def test_marks_of_transformers_flattening(options: dict[str, Any]) -> None:
    batch = DataCollatorWithFlattening(**options)(ROWS)
    ids = document_ids(batch, batch["labels"].shape)
    assert ids is not None and apart(ids) == FLAT


MARKS: dict[str, tuple[dict[str, torch.Tensor], list[list[int]] | None]] = {
    "a mask that counts": ({"attention_mask": torch.tensor([[1, 1, 2, 2, 3, 0]])}, [[1, 1, 2, 2, 3, 0]]),
    "positions from 2, as RoBERTa's": ({"position_ids": torch.tensor([[2, 3, 2, 2, 3, 4]])}, [[1, 1, 2, 3, 3, 3]]),
    "positions that jump ahead within a document": (
        {"position_ids": torch.tensor([[0, 1, 7, 8, 0, 1]])},
        [[1, 1, 1, 1, 2, 2]],
    ),
    "padded on the left": (
        {
            "position_ids": torch.tensor([[1, 1, 0, 1, 2, 3]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        },
        [[0, 0, 1, 1, 1, 1]],
    ),
    "lengths that end before the padding": ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, [[1, 1, 2, 2, 0, 0]]),
    "an ordinary mask alone": ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}, None),
    "positions of three axes": ({"position_ids": torch.zeros(3, 1, 6, dtype=torch.long)}, None),
    "a mask with a global token": ({"attention_mask": torch.tensor([[2, 1, 1, 1, 0, 0]])}, None),
    "a mask of bytes": ({"attention_mask": torch.ones(1, 6, dtype=torch.bool)}, None),
}


@pytest.mark.parametrize("name", MARKS)
def test_marks(name: str) -> None:
    inputs, expected = MARKS[name]
    ids = document_ids(inputs, torch.Size((1, 6)))
    assert (None if ids is None else apart(ids)) == expected


def test_lengths_of_a_batch_of_rows_mean_nothing() -> None:
    assert document_ids({"cu_seq_lens_q": torch.tensor([0, 2, 12])}, torch.Size((2, 6))) is None


def test_rows_that_trl_packed_keep_their_lengths() -> None:
    class Packed:
        column_names = ("input_ids", "seq_lengths")

    assert rows_are_packed(Packed()) and not rows_are_packed([{"seq_lengths": [1]}])
