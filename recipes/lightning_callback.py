"""Telemetry and Algorithm 1 in Lightning's Trainer: a callback to copy (tried with Lightning 2.6).

    trainer = lightning.Trainer(callbacks=[PdynGauges(interval=200)])

The module's `configure_optimizers` returns one optimizer; control needs `hf_pdyn.Padam`. A resumed training warns that
the checkpoint's p overrules the optimizer's, which is meant.
"""

from typing import Any

import lightning
import torch
from bare_loop import decide, gauges

import hf_pdyn
from hf_pdyn.policy.algorithm1 import ControlState


class PdynGauges(lightning.Callback):
    """Logs D_w, D_b and the gauges of a step every `log_every_n_steps`.

    Args:
        interval: optimizer steps between decisions of Algorithm 1; None: p stays.
    """

    def __init__(self, interval: int | None = None) -> None:
        self.interval = interval
        self.saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        if self.interval and "p" not in optimizer.param_groups[0]:
            raise ValueError(f"Algorithm 1 moves the p of a Padam, got {type(optimizer).__name__}.")
        self.statistics = hf_pdyn.StepStatistics.of(optimizer, pl_module)
        if self.statistics.unavailable:
            raise ValueError(f"The gradients cannot be read: {self.statistics.unavailable}.")
        self.record, self.observed = self.statistics.window(), self.statistics.window()
        self.control = ControlState(p=optimizer.param_groups[0].get("p", 0.5))
        if self.saved is not None:  # of the checkpoint that Lightning resumes from
            self.control = ControlState.from_dict(self.saved["control"])
            self.record.load_state_dict(self.saved["record"])
            self.observed.load_state_dict(self.saved["observed"])
            self.saved = None
        self.seen = trainer.global_step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        # Not in on_before_optimizer_step: Lightning calls it inside the step, after the gradients' closure.
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            self.statistics.measure_next_step()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value":
            gradients = [param.grad for param in pl_module.parameters() if param.grad is not None]
            total_norm = torch.nn.utils.get_total_norm(gradients)
            self.statistics.note_clip(total_norm, float(trainer.gradient_clip_val))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.seen:  # gradients are still accumulated
            return
        self.seen = trainer.global_step
        if self.seen % trainer.log_every_n_steps == 0:
            pl_module.log_dict(gauges(self.record.read()), on_step=True, on_epoch=False)
        if self.interval and self.seen % self.interval == 0:
            self.control = decide(self.control, self.observed.read(), self.statistics.optimizer)

    def state_dict(self) -> dict[str, Any]:
        windows = {"record": self.record.state_dict(), "observed": self.observed.state_dict()}
        return {"control": self.control.to_dict()} | windows

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict
