"""`SampleLossCallback`: the loss of single samples at the end of every epoch."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.callbacks.sample_reading import SampleReading, reading_of_all
from hf_pdyn.common.numbers import is_count
from hf_pdyn.integrations import own_losses, probing
from hf_pdyn.integrations.transformers import log_apart
from hf_pdyn.measure.sample_loss import epoch_file, even_spread, summary
from hf_pdyn.run_dir.tables import SAMPLE_LOSSES
from hf_pdyn.tensors.sharding import gathered


class SampleLossCallback(PdynCallback):
    """Records the loss of every sample of a train probe and of the test set at the end of every epoch (IAD 4.1.2).

    The loss is the cross-entropy in nats of the sample's class, the mean over its labelled tokens, or the mean of an
    answer's first and last token, with the model in evaluation mode; label smoothing and the Trainer's own loss
    function do not enter. Rows of `tables.SAMPLE_LOSSES`
    go to one file an epoch (`epoch-0001.parquet`), and Table 2's summary of each split to a log record
    (`pdyn/samples/train/p95`). The evaluation set is the split test; several are test/NAME each.

    Training stays bit for bit what it is without the callback, on one process and on many. Random draws on the way
    (masked tokens, crops) are the same after every epoch and in every run.

    A data collator may flatten the samples of a batch into one row if it marks them (`DataCollatorWithFlattening`);
    documents that are packed into a sample have a loss each. A split that cannot be measured is left out with one
    warning: data without an index, regression, tensor parallelism, rows that are no samples, or a failure on any
    process, which ends the split for all of them. If a forward pass that takes every process (FSDP, ZeRO-3) fails in
    one alone, the others wait, as in training.

    Args:
        train_probe: number of samples of the train set, evenly spread, the same for every run and process; None: all;
            0: none.
        test_probe: number of samples of each test set; None: all; 0: none.
        train_set: measured in place of the Trainer's train set; the paper measures it without augmentation.
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[SampleLossCallback(8)])
        >>> result = trainer.train()
        >>> losses = sample_loss.read_epoch(args.output_dir, "train")
        >>> len(losses.loss)
        8
    """

    def __init__(
        self,
        train_probe: int | None = 1000,
        test_probe: int | None = None,
        train_set: Any = None,
        *,
        trainer: Any | None = None,
    ) -> None:
        super().__init__(trainer=trainer)
        for name, size in (("train_probe", train_probe), ("test_probe", test_probe)):
            if size is not None and not is_count(size):
                raise ValueError(f"{name} must be a number of samples >= 0, got {size!r}.")
        self.train_probe = train_probe
        self.test_probe = test_probe
        # run.json records public attributes: the data set's name, not all of its rows.
        self.train_set = None if train_set is None else type(train_set).__name__
        self._train_set = train_set
        self.row_buffer = self._records = RowBuffer(SAMPLE_LOSSES)
        self._indices: dict[str, list[int]] = {}
        self._batch_sizes: dict[str, int] = {}
        self._measured_at: int | None = None
        self._file: str | None = None

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self._indices, self._batch_sizes, self._measured_at, self._file = {}, {}, None, None
        self._unlabelled: set[str] = set()
        trainer = self.running_trainer()
        if trainer is None:
            self._say(state, "no Trainer delivers this event")
            return
        reason = own_losses.why_none(trainer) or probing.why_not_by_process(trainer)
        if reason:
            self._say(state, reason)
            return
        wanted = {split: one for split, one in self._data_sets(trainer).items() if self._probe(split) != 0}
        lengths = gathered({split: probing.length(data_set) for split, data_set in wanted.items()})
        for split, length in _lengths_of_all(lengths).items():
            if isinstance(length, str):
                self._say(state, length, split)
            else:
                self._indices[split] = even_spread(length, self._probe(split))
                self._batch_sizes[split] = probing.batch_size(trainer, wanted[split])

    def _probe(self, split: str) -> int | None:
        return self.train_probe if split == "train" else self.test_probe

    def _data_sets(self, trainer: Any) -> dict[str, Any]:
        found = probing.data_sets(trainer)
        return found if self._train_set is None else found | {"train": self._train_set}

    def _data_set(self, trainer: Any, split: str) -> Any:
        found = self._data_sets(trainer)
        if split not in found:
            raise LookupError("the Trainer has no such data set any more")
        return found[split]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.run.ends_epoch(state.global_step):  # the file is there before this step's checkpoint
            self._measure(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._measured_at != state.global_step:  # the end of training within an epoch, or no length
            self._measure(state)
        super().on_epoch_end(args, state, control, **kwargs)

    def _flush(self) -> None:
        self._records.flush(self._file)

    def _measure(self, state: TrainerState) -> None:
        self._measured_at = state.global_step
        trainer = self.running_trainer()
        if trainer is None:
            return
        rows: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        for split in list(self._indices):
            # Every process gets the same reading or reason, so that all of them go on alike.
            data_set = functools.partial(self._data_set, trainer, split)
            reading = reading_of_all(trainer, data_set, self._indices[split], self._batch_sizes[split])
            if isinstance(reading, str):
                del self._indices[split]
                self._say(state, reading, split)
                continue
            self._note_unlabelled(state, split, reading)
            rows += _rows(split, reading)
            metrics |= _metrics(split, reading)
        if rows:
            self._file = epoch_file(state.epoch or 0)
            self._records.write(state, rows, self._file)
        if metrics:
            log_apart(trainer, metrics)

    def _note_unlabelled(self, state: TrainerState, split: str, reading: SampleReading) -> None:
        missing = len(reading.index) - int(reading.labelled.sum())
        if missing and split not in self._unlabelled:
            self._unlabelled.add(split)
            self._say(state, f"{missing} of {len(reading.index)} samples have no label, and no loss", split)

    def _say(self, state: TrainerState, reason: str, split: str = "") -> None:
        if state.is_world_process_zero:
            warnings.warn(f"pdyn sample losses{f' of {split}' if split else ''}: {reason}.", stacklevel=2)


def _lengths_of_all(found: Sequence[Mapping[str, int | str]]) -> dict[str, int | str]:
    """Every split's length, or the reason why no process measures it, from what each process found."""
    agreed: dict[str, int | str] = {}
    for split in dict.fromkeys(chain.from_iterable(found)):
        lengths = [of_one.get(split, "there is no such data set") for of_one in found]
        reasons = [f"{length}, on process {rank}" for rank, length in enumerate(lengths) if isinstance(length, str)]
        if len(set(lengths)) == 1:
            agreed[split] = lengths[0]
        elif reasons:
            agreed[split] = reasons[0]
        else:
            agreed[split] = f"its length is not the same on all processes: {', '.join(map(str, lengths))}"
    return agreed


def _rows(split: str, reading: SampleReading) -> list[dict[str, Any]]:
    correct = [None] * len(reading.index) if reading.correct is None else reading.correct.tolist()
    columns = (reading.index, reading.part, reading.loss, reading.labelled)
    return [
        {
            "split": split,
            "index": index,
            "part": part,
            "loss": loss if labelled else None,
            "correct": right if labelled else None,
        }
        for index, part, loss, labelled, right in zip(*(column.tolist() for column in columns), correct, strict=True)
    ]


def _metrics(split: str, reading: SampleReading) -> dict[str, float]:
    """Table 2's row, without what is infinite or not there."""
    if not reading.labelled.any():
        return {}
    correct = None if reading.correct is None else reading.correct[reading.labelled]
    row = summary(reading.loss[reading.labelled], correct).to_dict()
    return {
        f"pdyn/samples/{split}/{name}": float(value)
        for name, value in row.items()
        if name != "count" and value is not None and math.isfinite(value)
    }
