"""One training of a claim: the stock Trainer, an optimizer that the paper names, and this package's callbacks."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_pdyn import SpectralCallback, TelemetryCallback, WeightDecayShutoffCallback
from papers._claims.processes import from_main_process, of_one_process

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
"""torch's: decay is decoupled in the first, and a part of the gradient in the second."""

CURVES = {
    "step": "step",
    "a": "pdyn/a_t",
    "test_loss": "eval_loss",
    "test_accuracy": "eval_accuracy",
}
"""What a result keeps of every record, by its name in the log; and `ratio`, the nuclear over the Frobenius norm."""


@dataclass(frozen=True)
class Training:
    """How a network is trained: all that the claims vary.

    cycles: of a cosine with warm restarts; None is a constant learning rate. off_at: the step from which nothing
    decays. every: steps from one record to the next, which divides `steps`.
    """

    optimizer: str
    lr: float
    weight_decay: float
    steps: int
    batch_size: int
    every: int
    momentum: float = 0.0
    cycles: int | None = None
    off_at: int | None = None

    @property
    def schedule(self) -> dict[str, Any]:
        if self.cycles is None:
            return {"lr_scheduler_type": "constant"}
        return {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": self.cycles}}

    @property
    def callbacks(self) -> list[TrainerCallback]:
        own = [TelemetryCallback(), SpectralCallback(self.every)]
        return own if self.off_at is None else [*own, WeightDecayShutoffCallback(self.off_at)]


def train(
    model: nn.Module,
    train_set: Dataset[Any],
    test_set: Dataset[Any],
    training: Training,
    kind: str,
    seed: int,
    device: str,
    accuracy: bool = False,
) -> dict[str, list[float | None]]:
    """Train, and return CURVES and `ratio` over records, on every process.

    kind: of the product whose spectra are followed, `attention` or `lora`. accuracy: of a classifier.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            **training.schedule,
            learning_rate=training.lr,
            weight_decay=training.weight_decay,
            max_grad_norm=0.0,
            max_steps=training.steps,
            per_device_train_batch_size=of_one_process(training.batch_size),
            per_device_eval_batch_size=256,
            seed=seed,
            logging_steps=training.every,
            eval_strategy="steps",
            eval_steps=training.every,
            label_names=["labels"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device == "cuda",
        )
        momentum = {"momentum": training.momentum} if training.momentum else {}
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train_set,
            eval_dataset=test_set,
            compute_metrics=_accuracy if accuracy else None,
            optimizer_cls_and_kwargs=(OPTIMIZERS[training.optimizer], {"lr": training.lr, **momentum}),
            callbacks=training.callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        names = {**CURVES, "ratio": f"pdyn/spectrum/{kind}/nuc_over_fro"}
        return from_main_process(lambda: curves(trainer.state.log_history, names), device)


def curves(history: Sequence[dict[str, Any]], names: dict[str, str]) -> dict[str, list[float | None]]:
    """What was logged at every step that has a record of training, in six digits; None where it is missing."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in history:
        by_step.setdefault(record["step"], {}).update(record)
    records = [record for record in by_step.values() if "learning_rate" in record]
    return {name: [short(record.get(key)) for record in records] for name, key in names.items()}


def short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}
