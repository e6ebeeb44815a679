"""The distribution of sample losses, hard samples and their overlaps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_pdyn.measure import sample_loss
from hf_pdyn.measure.sample_loss import (
    even_spread,
    hard_sample_overlap,
    hard_samples,
    jaccard,
    jaccard_matrix,
    read_epoch,
    summary,
)
from hf_pdyn.run_dir import run_json, tables


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_summary_is_numpys(count: int) -> None:
    losses = np.random.default_rng(count).exponential(3.0, count)
    row = summary(losses, losses < 1)
    assert (row.count, row.nonfinite) == (count, 0)
    assert [row.p50, row.p95, row.p99] == pytest.approx(np.quantile(losses, [0.5, 0.95, 0.99]).tolist(), rel=1e-12)
    assert [row.mean, row.std] == pytest.approx([losses.mean(), losses.std()], rel=1e-12)
    assert [row.accuracy, row.share_above_5] == [np.mean(losses < 1), np.mean(losses > 5)]


def test_what_is_not_finite_counts_as_largest() -> None:
    row = summary([3.0, math.nan, 1.0, math.inf, 2.0])
    assert (row.count, row.nonfinite, row.accuracy) == (5, 2, None)
    assert (row.mean, row.p50, row.p95, row.share_above_5) == (2.0, 3.0, math.inf, 0.4)
    assert row.std == pytest.approx(math.sqrt(2 / 3))


def test_a_quantile_at_the_last_finite_loss_is_finite() -> None:
    assert summary([1.0, 2.0, math.inf]).p50 == 2.0


def test_nothing_finite_has_no_mean() -> None:
    row = summary([math.nan, math.nan])
    assert math.isnan(row.mean) and math.isnan(row.std) and row.p50 == math.inf and row.nonfinite == 2


@pytest.mark.parametrize(
    ("losses", "correct", "message"),
    [
        ([], None, "at least one number"),
        ([[1.0]], None, "one dimension"),
        ([1.0], [True, True], "one value a loss"),
    ],
)
def test_what_has_no_summary(losses: Any, correct: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary(losses, correct)


@pytest.mark.parametrize(
    ("losses", "share", "expected"),
    [
        ([1.0, 4.0, 2.0, 3.0], 0.5, [1, 3]),
        ([1.0, 2.0, 2.0, 2.0], 0.5, [1, 2]),  # the first of equals
        ([1.0, math.nan, 9.0, math.inf], 0.75, [1, 3, 2]),
        ([5.0, 1.0], 0.1, [0]),  # at least one
        ([1.0] * 30, 0.1, [0, 1, 2]),  # 0.1 * 30 is 3.0000000000000004
        ([1.0] * 17, 0.1, [0, 1]),  # 1.7 is rounded
        ([2.0, 1.0], 1.0, [0, 1]),
    ],
)
def test_hard_samples(losses: list[float], share: float, expected: list[int]) -> None:
    assert hard_samples(losses, share).tolist() == expected


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_is_one(share: float) -> None:
    with pytest.raises(ValueError, match="share must be"):
        hard_samples([1.0], share)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [([1, 2], [2, 3], 1 / 3), ([1], [2], 0), ([], [], 1), ([3, 1], [1, 3], 1)]
)
def test_jaccard(a: list[int], b: list[int], expected: float) -> None:
    assert jaccard(a, b) == jaccard(b, a) == expected


def test_jaccard_matrix() -> None:
    assert jaccard_matrix([[1, 2], [2, 3], [4]]).tolist() == [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    assert jaccard_matrix([]).shape == (0, 0)


@pytest.mark.parametrize(("length", "size"), [(10, 3), (10, 10), (3, 10), (7, None), (50_000, 1000), (5, 0)])
def test_a_probe_is_evenly_spread(length: int, size: int | None) -> None:
    probe = even_spread(length, size)
    assert len(probe) == min(length, length if size is None else size)
    gaps = np.diff([*probe, length])
    assert all(0 <= i < length for i in probe) and (gaps >= 1).all()
    assert not probe or (probe[0] == 0 and gaps.max() - gaps.min() <= 1)


def recorded(
    run_dir: Path, losses: list[float | None], *, epoch: float = 1.0, split: str = "test", run_id: str | None = None
) -> None:
    writer = tables.TableWriter(run_dir, tables.SAMPLE_LOSSES, run_id)
    writer.add(
        {"step": int(8 * epoch), "epoch": epoch, "split": split, "index": i, "loss": loss, "correct": loss and loss < 1}
        if loss is not None
        else {"step": int(8 * epoch), "epoch": epoch, "split": split, "index": i}
        for i, loss in enumerate(losses)
    )
    writer.flush(f"epoch-{math.ceil(epoch):04d}-{split}")


def test_an_epoch_is_read(tmp_path: Path) -> None:
    recorded(tmp_path, [0.5, None, math.nan, 2.0])
    recorded(tmp_path, [0.25, 0.5, 1.5, 1.0], epoch=1.5)
    first, last = read_epoch(tmp_path, epoch=1), read_epoch(tmp_path)
    assert sample_loss.epochs(tmp_path) == [1.0, 1.5]
    assert (first.step, first.epoch, first.unlabelled, last.step, last.epoch) == (8, 1.0, 1, 12, 1.5)
    assert first.index.tolist() == [0, 2, 3] and first.loss.tolist() == pytest.approx([0.5, math.nan, 2.0], nan_ok=True)
    assert last.summary().accuracy == 0.5 and first.summary().nonfinite == 1
    assert first.hard_samples(0.7).tolist() == [2, 3]


def test_a_damaged_last_file_is_not_passed_over(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        recorded(tmp_path, [0.5, 2.0], epoch=epoch)
    folder = tables.SAMPLE_LOSSES.folder(tmp_path)
    (folder / "epoch-0001-test.parquet").write_bytes(b"damaged")
    assert read_epoch(tmp_path).epoch == 3
    (folder / "epoch-0003-test.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot be read \(epoch-0003-test.parquet\), the last before .* of epoch 2"):
        read_epoch(tmp_path)
    assert read_epoch(tmp_path, epoch=2).epoch == 2


def test_what_another_run_left_is_not_this_run_s(tmp_path: Path) -> None:
    run_id = run_json.write_start(tmp_path, 0, {})
    recorded(tmp_path, [0.5, 2.0], epoch=1, run_id=run_id)
    recorded(tmp_path, [9.0, 9.0], epoch=2, run_id="another")
    assert sample_loss.epochs(tmp_path) == [1.0]
    assert read_epoch(tmp_path).loss.tolist() == [0.5, 2.0]


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    recorded(tmp_path, [0.5], split="train")
    with pytest.raises(ValueError, match=r"no sample losses for the split 'test', only: train 1\."):
        read_epoch(tmp_path)
    with pytest.raises(ValueError, match="of epoch 2 for the split 'train', only: train 1"):
        read_epoch(tmp_path, "train", 2)
    with pytest.raises(ValueError, match="only: none"):
        read_epoch(tmp_path / "nowhere")


def test_overlaps_of_runs(tmp_path: Path) -> None:
    for name, losses in {"a": [1.0, 2.0, 3.0, 4.0], "b": [4.0, 1.0, 2.0, 3.0], "c": [1.0]}.items():
        recorded(tmp_path / name, losses)
    a, b, c = (read_epoch(tmp_path / name) for name in "abc")
    assert hard_sample_overlap([a, b], share=0.5).tolist() == [[1, 1 / 3], [1 / 3, 1]]
    with pytest.raises(ValueError, match="the same samples in every run"):
        hard_sample_overlap([a, c])
