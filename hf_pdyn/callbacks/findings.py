"""`FindingsCallback`: says, while training, what its user should know."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.callbacks.run_json_writer import describe_start
from hf_pdyn.common.never_fatal import never_fatal
from hf_pdyn.integrations import trackio
from hf_pdyn.integrations.transformers import all_callbacks, is_training_log
from hf_pdyn.policy.findings import Facts, findings
from hf_pdyn.run_dir import run_json

logger = logging.getLogger(__name__)

_RECORDS = 200
"""The last ones, which findings are made of while training: their time does not grow with the run."""


class FindingsCallback(PdynCallback):
    """Warns once of each of `policy.findings.FINDINGS`, in the log and as an alert of trackio.

    It reads the metrics of the other callbacks in the log records. `hf-pdyn explain OUTPUT_DIR` says the same of a run
    that has ended.

    Args:
        trainer: see `PdynCallback`.

    Example:
        >>> callbacks = [TelemetryCallback(), FindingsCallback()]
        >>> result = Trainer(model, args, train_dataset=data, callbacks=callbacks).train()
    """

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._said: set[str] = set()
        self._start: dict[str, Any] | None = None

    def stop_measuring(self) -> None:
        """Say nothing from here on."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and is_training_log(logs):
            self._say(args, state, ended=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._say(args, state, ended=True)
        super().on_train_end(args, state, control, **kwargs)

    @never_fatal
    def _say(self, args: TrainingArguments, state: TrainerState, *, ended: bool) -> None:
        if not state.is_world_process_zero:
            return
        if self._start is None:  # once all callbacks have begun
            ours = [callback for callback in all_callbacks(self, self._trainer) if isinstance(callback, PdynCallback)]
            described = describe_start(args, state, self.run.model, self.run.optimizer, ours)
            self._start = run_json.as_json(described)
        records = state.log_history if ended else state.log_history[-_RECORDS:]
        for finding in findings(Facts(records, self._start or {}, ended)):
            if finding.kind not in self._said:
                self._said.add(finding.kind)
                logger.warning("%s (%s)", finding, finding.kind)
                trackio.alert(args.report_to, finding.kind, str(finding))
