"""Cross-entropy by sample, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from hf_pdyn.measure import cross_entropy
from hf_pdyn.measure.cross_entropy import sample_cross_entropy


def by_definition(logits: Tensor, label: int) -> float:
    return (logits.double().logsumexp(0) - logits.double()[label]).item()


@pytest.fixture(params=[2**24, 13], ids=["in one", "in parts"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK", request.param)


# The same numbers, as the logits' dtype has them, so the tolerance is float32's rounding in either.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_parts")
class TestValues:
    def test_classes(self, dtype: torch.dtype) -> None:
        logits = (4 * torch.randn(9, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
        labels = torch.tensor([0, 1, 2, 3, 4, -100, -1, 5, 2])
        loss, labelled, correct = sample_cross_entropy(logits, labels, len(labels))
        assert labelled.tolist() == [0 <= label < 5 for label in labels.tolist()]
        expected = [by_definition(logits[i], labels[i]) for i in range(9) if labelled[i]]
        assert loss[labelled].tolist() == pytest.approx(expected, rel=1e-6)
        assert correct is not None
        assert correct[labelled].tolist() == (logits.argmax(1) == labels)[labelled].tolist()

    @pytest.mark.parametrize("shifted", [False, True])
    def test_tokens(self, dtype: torch.dtype, shifted: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        logits = (4 * torch.randn(4, 6, 7, generator=generator)).to(dtype)
        labels = torch.randint(7, (4, 6), generator=generator)
        labels[0, 3:] = -100
        labels[1] = -100
        labels[2, 1:] = -100  # its only label has no position before it
        loss, labelled, correct = sample_cross_entropy(logits, labels, 4, shifted=shifted)
        assert labelled.tolist() == [True, False, not shifted, True] and correct is None
        for i in labelled.nonzero().flatten().tolist():
            places = [t for t in range(int(shifted), 6) if labels[i, t] >= 0]
            tokens = [by_definition(logits[i, t - int(shifted)], int(labels[i, t])) for t in places]
            assert loss[i].item() == pytest.approx(sum(tokens) / len(tokens), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[0, 1, 2, 3], [6, 5, 4, 3]])
    for shifted in (False, True):
        ours, expected = (sample_cross_entropy(logits, one, 2, shifted=shifted) for one in (labels.to(dtype), labels))
        assert ours.loss.tolist() == expected.loss.tolist() and ours.labelled.all()


def test_nan_stays_nan() -> None:
    loss, labelled, _ = sample_cross_entropy(torch.tensor([[float("nan"), 1.0], [0.0, 0.0]]), torch.tensor([0, 0]), 2)
    assert loss.isnan().tolist() == [True, False] and labelled.all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2), "regression"),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), "regression"),
        (torch.zeros(2, 3), torch.zeros(2), "regression"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "got \\(2, 3\\) with \\(2, 3\\)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.long), "with \\(2, 4\\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), "need logits"),
    ],
)
def test_what_has_no_sample_losses(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_cross_entropy(logits, labels, 2)


@pytest.mark.parametrize("shifted", [False, True])
def test_flattened_samples_have_the_losses_of_rows(shifted: bool) -> None:
    """Samples of one to five tokens, whose first positions are 2 as in RoBERTa; the collator's separator is no -100."""
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 1, 5, 1, 2]
    logits = torch.randn(1, sum(lengths), 7, generator=generator)
    labels = torch.randint(7, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(2, 2 + length) for length in lengths])[None]
    found = sample_cross_entropy(logits, labels, 5, shifted=shifted, position_ids=positions)
    for i, (row, wanted) in enumerate(zip(logits[0].split(lengths), labels[0].split(lengths), strict=True)):
        alone = sample_cross_entropy(row[None], wanted[None], 1, shifted=shifted)
        assert found.labelled[i] == alone.labelled[0] == (lengths[i] > 1 or not shifted)
        assert found.loss[i].item() == pytest.approx(alone.loss[0].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "samples", "position_ids"),
    [
        (1, 3, None),
        (1, 3, torch.tensor([[0, 1, 2, 0, 1, 2]])),  # two samples stand in it, not three
        (1, 3, torch.tensor([[0, 1, 2]])),
        (2, 3, torch.tensor([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])),  # which row a packer chose is unknown
        (4, 2, None),
    ],
    ids=["flattened", "too few", "another shape", "packed", "pairs"],
)
def test_rows_that_are_not_the_samples(rows: int, samples: int, position_ids: Tensor | None) -> None:
    labels = torch.zeros(rows, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"made {rows} row\(s\) of {samples} samples"):
        sample_cross_entropy(torch.zeros(rows, 6, 7), labels, samples, position_ids=position_ids)


def test_classes_need_a_row_for_each_sample() -> None:
    with pytest.raises(ValueError, match=r"made 2 row\(s\) of 1 samples"):
        sample_cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 1)
