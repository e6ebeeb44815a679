"""Losses of chosen samples, from all processes: the part of `SampleLossCallback` that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_pdyn.integrations import own_losses, probing
from hf_pdyn.measure.cross_entropy import SampleCrossEntropy, answer_cross_entropy, sample_cross_entropy
from hf_pdyn.tensors.sharding import gathered, own_share


@dataclass(frozen=True, eq=False)
class SampleReading:
    """Losses of n samples, (n,) each.

    index: of the sample in its data set. part: which of the documents packed into it, 0 where it is one. loss: NaN is a
    loss too. correct: None where nothing is classified.
    """

    index: NDArray[np.int64]
    part: NDArray[np.int64]
    loss: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    correct: NDArray[np.bool_] | None


class _FailedElsewhereError(Exception):
    """Another process failed; it reports the reason."""


def reading_of_all(
    trainer: Any, data_set: Callable[[], Any], indices: Sequence[int], batch_size: int
) -> SampleReading | str:
    """The losses of those samples, ascending, on every process; or why there are none, also on every process."""
    parts = gathered(_own_reading_or_reason(trainer, data_set, indices, batch_size))
    reasons = [f"{part}, on process {rank}" for rank, part in enumerate(parts) if isinstance(part, str)]
    if reasons:
        return f"{reasons[0]}. Training goes on without them"
    readings = [part for part in parts if isinstance(part, SampleReading)]
    places = np.stack([np.concatenate([part.index for part in readings]), np.concatenate([p.part for p in readings])])
    places, first = np.unique(places, axis=1, return_index=True)
    correct = [part.correct for part in readings if part.correct is not None]
    return SampleReading(
        places[0],
        places[1],
        np.concatenate([part.loss for part in readings])[first],
        np.concatenate([part.labelled for part in readings])[first],
        np.concatenate(correct)[first] if correct else None,
    )


def _own_reading_or_reason(
    trainer: Any, data_set: Callable[[], Any], indices: Sequence[int], batch_size: int
) -> SampleReading | str | None:
    """This process's losses or reason to stop; None where another process has the reason."""
    try:
        share = own_share(indices)
        batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
        return _own_reading(trainer, data_set, batches)
    except _FailedElsewhereError:
        return None
    except Exception as error:
        # The text of an error about a tensor may hold all of its numbers.
        return f"{type(error).__name__}: {str(error)[:300]}"


def _own_reading(trainer: Any, data_set: Callable[[], Any], batches: Sequence[Sequence[int]]) -> SampleReading:
    """The losses of this process's batches of samples, in their order."""
    together = probing.forwards_together(trainer)
    loaded = _loaded(trainer, data_set, batches)
    found: list[SampleCrossEntropy] = []
    problem: Exception | None = None
    with ExitStack() as evaluation:
        try:
            evaluation.enter_context(probing.evaluating(trainer))
        except Exception as error:
            problem = error
        for indices in batches:
            batch = None
            try:
                batch = next(loaded) if problem is None else None
            except Exception as error:
                problem = error
            # A process that cannot go on says so before the others wait for it in a forward pass.
            if any(gathered(problem is not None)) if together else problem is not None:
                break
            try:
                found.append(_losses(trainer, batch, len(indices)))
            except Exception as error:
                problem = error
    if problem is not None:
        raise problem
    if len(found) < len(batches):
        raise _FailedElsewhereError
    correct = [one.correct for one in found if one.correct is not None]
    parts = [one.parts or [1] * len(indices) for one, indices in zip(found, batches, strict=True)]
    return SampleReading(
        np.repeat(np.concatenate(batches), np.concatenate(parts)),
        np.concatenate([np.arange(count) for counts in parts for count in counts]),
        torch.cat([one.loss for one in found]).double().cpu().numpy(),
        torch.cat([one.labelled for one in found]).cpu().numpy(),
        torch.cat(correct).cpu().numpy() if correct else None,
    )


def _losses(trainer: Any, batch: Any, samples: int) -> SampleCrossEntropy:
    if own_losses.are_asked(trainer):
        loss, right = own_losses.of_sample(trainer, batch)
        correct = None if right is None else torch.tensor([right])
        return SampleCrossEntropy(loss[None], torch.tensor([True]), correct)
    outputs = probing.forward(trainer, batch)
    if isinstance(outputs, probing.Answers):
        return answer_cross_entropy(*outputs, samples)
    shifted = probing.shifts_labels(trainer)
    return sample_cross_entropy(outputs.logits, outputs.labels, samples, shifted=shifted, documents=outputs.documents)


def _loaded(trainer: Any, data_set: Callable[[], Any], batches: Sequence[Sequence[int]]) -> Iterator[Any]:
    """Load the batches lazily, so that a failure to build the loader is raised with the first batch."""
    yield from probing.loader(trainer, data_set(), batches)
