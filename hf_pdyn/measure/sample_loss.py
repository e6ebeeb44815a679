"""Losses of single samples: their distribution, the hard ones, and how these overlap between runs.

*Information allocation dynamics*, 4.1.2 and 4.1.3: `summary` gives a row of Table 2, `hard_samples` and
`jaccard_matrix` Fig. 5. `read_epoch` reads what `SampleLossCallback` wrote.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import OF_ANOTHER_RUN, SAMPLE_LOSSES, read_table

LARGE_LOSS = 5.0
"""Table 2 gives the share of samples whose loss, in nats, is above it."""
HARD_SHARE = 0.1
"""Hard samples are this share of all, those of the highest loss (4.1.3)."""


def even_spread(length: int, size: int | None = None) -> list[int]:
    """Indices of `size` samples of a data set of `length`, evenly spread and ascending; all of them, if not given.

    Not the first ones: many data sets are sorted by class, or by length.
    """
    size = length if size is None else min(size, length)
    return [i * length // size for i in range(size)]


@dataclass(frozen=True)
class SampleLossSummary:
    """A row of Table 2. Shares are fractions, where the paper prints percent.

    Losses that are NaN or infinite count as larger than every other: in quantiles, which they can make infinite, and
    in `share_above_5`. `mean` and `std` are of the finite ones (NaN if there are none), and `nonfinite` says how many
    those leave out.

    accuracy: None where nothing is classified.
    std: of the samples themselves (divided by n).
    p50, p95, p99: `quantiles`.
    """

    count: int
    accuracy: float | None
    mean: float
    std: float
    p50: float
    p95: float
    p99: float
    share_above_5: float
    nonfinite: int

    def to_dict(self) -> dict[str, float | None]:
        """The fields by name."""
        return dataclasses.asdict(self)


def summary(losses: ArrayLike, correct: ArrayLike | None = None) -> SampleLossSummary:
    """The distribution of losses (n,), with the accuracy where `correct` (n,) says which samples are classified right.

    ValueError where there are no losses, or the lengths differ.

    Example:
        >>> summary([0.5, 1.0, 6.0, 0.5]).share_above_5
        0.25
    """
    ordered = np.sort(_ranked(losses))
    if correct is not None and np.shape(correct) != ordered.shape:
        raise ValueError(f"correct must have one value a loss, got {np.shape(correct)} for {ordered.shape}.")
    finite = ordered[np.isfinite(ordered)]
    p50, p95, p99 = quantiles(losses, (0.50, 0.95, 0.99))
    return SampleLossSummary(
        count=len(ordered),
        accuracy=None if correct is None else float(np.mean(np.asarray(correct, dtype=bool))),
        mean=float(finite.mean()) if len(finite) else math.nan,
        std=float(finite.std()) if len(finite) else math.nan,
        p50=p50,
        p95=p95,
        p99=p99,
        share_above_5=float(np.mean(ordered > LARGE_LOSS)),
        nonfinite=len(ordered) - len(finite),
    )


def quantiles(losses: ArrayLike, shares: Sequence[float]) -> list[float]:
    """The quantiles of losses (n,) at these shares, interpolated linearly between order statistics (numpy's default).

    NaN and infinity count as larger than every other loss; a quantile that one of them enters is infinite. ValueError
    where there are no losses.
    """
    ordered = np.sort(_ranked(losses))
    return [_quantile(ordered, share) for share in shares]


def hard_samples(losses: ArrayLike, share: float = HARD_SHARE) -> NDArray[np.int64]:
    """Where in `losses` (n,) the hard samples stand, the hardest first: round(share * n) of them, at least one.

    Of equal losses the one that stands first is the harder; NaN and infinity are the hardest. ValueError where there
    are no losses, or the share is not in (0, 1].

    Example:
        >>> hard_samples([0.1, 3.0, 0.2, 2.0], share=0.5).tolist()
        [1, 3]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    ranked = _ranked(losses)
    return np.argsort(-ranked, kind="stable")[: max(1, round(share * len(ranked)))]


def jaccard(a: ArrayLike, b: ArrayLike) -> float:
    """|A and B| / |A or B| of two sets of indices; 1 for two empty ones.

    Example:
        >>> jaccard([1, 2, 3], [2, 3, 4])
        0.5
    """
    union = np.union1d(a, b)
    return len(np.intersect1d(a, b)) / len(union) if len(union) else 1.0


def jaccard_matrix(sets: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """The overlaps (k, k) of k sets of indices, each with each."""
    return np.array([[jaccard(a, b) for b in sets] for a in sets]).reshape(len(sets), len(sets))


@dataclass(frozen=True, eq=False)
class SampleLosses:
    """Losses of one split of a run after an epoch.

    step: optimizer steps done. epoch: epochs done, a fraction where training ended within one.
    index: (n,), of the samples in their data set, ascending. loss: (n,), in nats.
    correct: (n,), or None where nothing is classified.
    unlabelled: samples that were looked at and have no label, hence no loss.
    part: (n,), which of the documents packed into the sample; None where each sample is one.
    """

    split: str
    step: int
    epoch: float
    index: NDArray[np.int64]
    loss: NDArray[np.float64]
    correct: NDArray[np.bool_] | None
    unlabelled: int
    part: NDArray[np.int64] | None = None

    def summary(self) -> SampleLossSummary:
        """The row of Table 2."""
        return summary(self.loss, self.correct)

    def hard_samples(self, share: float = HARD_SHARE) -> NDArray[np.int64]:
        """Indices in the data set, the hardest first; of packed samples those of the rows that the documents are in."""
        return self.index[hard_samples(self.loss, share)]


def epoch_file(epoch: float) -> str:
    """The name of an epoch's file, without its suffix; a part of an epoch counts as it."""
    return f"epoch-{math.ceil(epoch):04d}"


def epochs(run_dir: str | Path) -> list[float]:
    """The epochs after which a run recorded sample losses; a last one may be a fraction."""
    found: list[float] = pc.unique(_read(run_dir)[0]["epoch"]).to_pylist()
    return sorted(found)


def _read(run_dir: str | Path) -> tuple[pa.Table, dict[Path, str]]:
    """The rows of the directory's run, and its files that cannot be read, with the reason."""
    table, left_out = read_table(run_dir, SAMPLE_LOSSES, run_json.id_of(run_dir))
    return table, {path: reason for path, reason in left_out.items() if reason != OF_ANOTHER_RUN}


def read_epoch(run_dir: str | Path, split: str = "test", epoch: float | None = None) -> SampleLosses:
    """What a run recorded after an epoch, by default its last.

    ValueError where it has no such split or epoch; it says which there are, and which files cannot be read. So it does
    where the file of a later epoch than the last one that can be read is damaged, and no epoch was named.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[SampleLossCallback(8)])
        >>> result = trainer.train()
        >>> losses = read_epoch(args.output_dir, "train")
        >>> losses.index.tolist()
        [0, 2, 4, 6, 8, 10, 12, 14]
    """
    table, problems = _read(run_dir)
    of_split = table.filter(pc.equal(table["split"], split))
    wanted = pc.max(of_split["epoch"]).as_py() if epoch is None else epoch
    if epoch is None and wanted is not None:
        later = [path.name for path in problems if path.stem > epoch_file(wanted)]
        if later:
            raise ValueError(
                f"The last sample losses of {run_dir} cannot be read ({', '.join(later)}), the last before them are of "
                f"epoch {wanted:g}. Name the epoch to have those."
            )
    rows = of_split.filter(pc.equal(of_split["epoch"], wanted)).sort_by([("index", "ascending"), ("part", "ascending")])
    labelled = rows.filter(pc.is_valid(rows["loss"]))
    if len(labelled) == 0:
        recorded = table.group_by(["split", "epoch"]).aggregate([]).sort_by("epoch").to_pylist()
        found = ", ".join(f"{row['split']} {row['epoch']:g}" for row in recorded)
        damaged = "".join(f"; {path.name} cannot be read: {reason}" for path, reason in problems.items())
        at = "" if epoch is None else f" of epoch {epoch:g}"
        raise ValueError(
            f"{run_dir} has no sample losses{at} for the split {split!r}, only: {found or 'none'}{damaged}. They are "
            "written by SampleLossCallback (--sample_losses)."
        )
    classified = labelled["correct"].null_count == 0
    part = labelled["part"].fill_null(0).to_numpy()
    return SampleLosses(
        split=split,
        step=labelled["step"][0].as_py(),
        epoch=wanted,
        index=labelled["index"].to_numpy(),
        loss=labelled["loss"].to_numpy(),
        correct=labelled["correct"].to_numpy() if classified else None,
        unlabelled=len(rows) - len(labelled),
        part=part if part.any() else None,
    )


def hard_sample_overlap(runs: Sequence[SampleLosses], share: float = HARD_SHARE) -> NDArray[np.float64]:
    """Fig. 5: the Jaccard overlaps (k, k) between the hard samples of k runs.

    ValueError where the runs do not have losses of the same samples.
    """
    for run in runs:
        if not np.array_equal(_places(run), _places(runs[0])):
            raise ValueError(
                "Overlaps of hard samples need losses of the same samples in every run, got "
                f"{len(runs[0].index)} of {runs[0].split!r} and {len(run.index)} of {run.split!r} with other indices. "
                "Record them with the same --sample_losses and data."
            )
    return jaccard_matrix([hard_samples(run.loss, share) for run in runs])


def _places(run: SampleLosses) -> NDArray[np.int64]:
    """Row and document (2, n) of each loss."""
    return np.stack([run.index, np.zeros_like(run.index) if run.part is None else run.part])


def _ranked(losses: ArrayLike) -> NDArray[np.float64]:
    """The losses, infinite where they are NaN or infinite; ValueError unless (n,) with n >= 1."""
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"losses must be at least one number, in one dimension; got the shape {values.shape}.")
    return np.where(np.isfinite(values), values, np.inf)


def _quantile(ordered: NDArray[np.float64], q: float) -> float:
    # numpy's own, given an infinite loss, subtracts infinities and answers NaN.
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(high if np.isinf(high) else low + (high - low) * (position - math.floor(position)))
