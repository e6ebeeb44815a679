"""Cross-entropy by sample, against the definition in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_utils import ForQuestionAnsweringLoss

from hf_pdyn.measure import cross_entropy
from hf_pdyn.measure.cross_entropy import answer_cross_entropy, sample_cross_entropy


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
        loss, labelled, correct, _ = sample_cross_entropy(logits, labels, len(labels))
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
        loss, labelled, correct, _ = sample_cross_entropy(logits, labels, 4, shifted=shifted)
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
    loss, labelled, _, _ = sample_cross_entropy(
        torch.tensor([[float("nan"), 1.0], [0.0, 0.0]]), torch.tensor([0, 0]), 2
    )
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


def joined(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and document numbers (1, T) of documents one after another."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, sum(lengths), 7, generator=generator)
    labels = torch.randint(7, (1, sum(lengths)), generator=generator)
    return logits, labels, torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))[None]


@pytest.mark.parametrize("shifted", [False, True])
def test_flattened_samples_have_the_losses_of_rows(shifted: bool) -> None:
    """Samples of one to five tokens; the collator's separator need not be -100."""
    lengths = [3, 1, 5, 1, 2]
    logits, labels, documents = joined(lengths)
    found = sample_cross_entropy(logits, labels, 5, shifted=shifted, documents=documents)
    assert found.parts is None
    for i, (row, wanted) in enumerate(zip(logits[0].split(lengths), labels[0].split(lengths), strict=True)):
        alone = sample_cross_entropy(row[None], wanted[None], 1, shifted=shifted)
        assert found.labelled[i] == alone.labelled[0] == (lengths[i] > 1 or not shifted)
        assert found.loss[i].item() == pytest.approx(alone.loss[0].item(), rel=1e-6)


@pytest.mark.parametrize("shifted", [False, True])
def test_documents_packed_into_rows_have_a_loss_each(shifted: bool) -> None:
    """Two rows: documents of 4 and 2 tokens with three of padding, and of 1, 5 and 3."""
    lengths = [4, 2, 1, 5, 3]
    logits, labels, _ = joined(lengths)
    padded = functional.pad(logits, (0, 0, 0, 3))[0]
    order = [0, 1, 2, 3, 4, 5, 15, 16, 17, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    rows = padded[order].reshape(2, 9, 7)
    wanted = functional.pad(labels, (0, 3), value=-100)[0][order].reshape(2, 9)
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]])
    found = sample_cross_entropy(rows, wanted, 2, shifted=shifted, documents=documents)
    assert found.parts == [2, 3] and found.correct is None
    assert found.labelled.tolist() == [True, True, not shifted, True, True]
    for i, (row, own) in enumerate(zip(logits[0].split(lengths), labels[0].split(lengths), strict=True)):
        alone = sample_cross_entropy(row[None], own[None], 1, shifted=shifted)
        assert found.loss[i].item() == pytest.approx(alone.loss[0].item(), rel=1e-6)


def test_rows_of_one_document_each_are_whole_samples() -> None:
    """Padded on the left and on the right, as a mask tells."""
    logits, labels, _ = joined([6, 6])
    rows, wanted = logits.reshape(2, 6, 7), labels.reshape(2, 6)
    documents = torch.tensor([[0, 0, 4, 4, 4, 4], [1, 1, 1, 0, 0, 0]])
    found = sample_cross_entropy(rows, wanted, 2, shifted=True, documents=documents)
    assert found.parts is None
    assert found.loss.tolist() == sample_cross_entropy(rows, wanted, 2, shifted=True).loss.tolist()


@pytest.mark.parametrize("padding", [(1, 1), (2,), (1, 3)])
def test_tokens_that_pad_a_flattened_row_are_no_documents(padding: tuple[int, ...]) -> None:
    """A collator that pads position_ids with 0 begins a document with each, one that counts on begins one of many."""
    logits, labels, documents = joined([3, 2, *padding])
    labels[:, 5:] = -100
    found = sample_cross_entropy(logits, labels, 2, shifted=True, documents=documents)
    assert found.loss.shape == (2,) and found.parts is None and found.labelled.all()
    packed = sample_cross_entropy(logits, labels, 1, shifted=True, documents=documents)
    assert packed.parts == [2] and packed.loss.tolist() == found.loss.tolist()
    empty = torch.full_like(labels, -100)
    assert sample_cross_entropy(logits, empty, 1, shifted=True, documents=documents * 0).labelled.tolist() == [False]


@pytest.mark.parametrize(
    ("rows", "samples", "documents"),
    [
        (1, 3, None),
        (1, 3, torch.tensor([[1, 1, 1, 2, 2, 2]])),  # two samples stand in it, not three
        (2, 3, torch.tensor([[1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1]])),  # which row a packer chose is unknown
        (4, 2, None),
    ],
    ids=["flattened", "too few", "packed", "pairs"],
)
def test_rows_that_are_not_the_samples(rows: int, samples: int, documents: Tensor | None) -> None:
    labels = torch.zeros(rows, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"made {rows} row\(s\) of {samples} samples"):
        sample_cross_entropy(torch.zeros(rows, 6, 7), labels, samples, documents=documents)


@pytest.mark.parametrize("column", [False, True], ids=["(B,)", "(B, 1)"])
def test_answers(column: bool) -> None:
    """The mean of two cross-entropies; a position behind the row is left out, and one before it means its first."""
    generator = torch.Generator().manual_seed(4)
    start_logits, end_logits = 3 * torch.randn(2, 5, 8, generator=generator)
    start, end = torch.tensor([0, 7, -1, 9, 2]), torch.tensor([3, 8, 0, 12, 2])
    start[4], end[4] = start_logits[4].argmax(), end_logits[4].argmax()
    given = (start[:, None], end[:, None]) if column else (start, end)
    found = answer_cross_entropy(start_logits, end_logits, *given, samples=5)
    assert found.labelled.tolist() == [True, True, True, False, True]
    expected = [
        (by_definition(start_logits[0], 0) + by_definition(end_logits[0], 3)) / 2,
        by_definition(start_logits[1], 7),
        (by_definition(start_logits[2], 0) + by_definition(end_logits[2], 0)) / 2,
        (by_definition(start_logits[4], int(start[4])) + by_definition(end_logits[4], int(end[4]))) / 2,
    ]
    assert found.loss[found.labelled].tolist() == pytest.approx(expected, rel=1e-6)
    right = (start_logits.argmax(1) == start.clamp(min=0)) & (end_logits.argmax(1) == end.clamp(min=0))
    assert found.correct is not None and found.correct.tolist() == right.tolist() and bool(right[4])
    mean = found.loss[[0, 2, 4]].mean().item()
    rows = [0, 2, 4]
    stock = ForQuestionAnsweringLoss(start_logits[rows], end_logits[rows], start[rows], end[rows])
    assert mean == pytest.approx(stock.item(), rel=1e-6)


def test_answers_need_a_start_and_an_end_each() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="one start and one end a row"):
        answer_cross_entropy(logits, logits, torch.zeros(2), torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"made 2 row\(s\) of 1 samples"):
        answer_cross_entropy(logits, logits, torch.zeros(2).long(), torch.zeros(2).long(), 1)


def test_classes_need_a_row_for_each_sample() -> None:
    with pytest.raises(ValueError, match=r"made 2 row\(s\) of 1 samples"):
        sample_cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 1)
