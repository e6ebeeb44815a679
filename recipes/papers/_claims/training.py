"""One training of a claim, with nothing but the stock Trainer, `optim="padam"` and the plugin's callbacks."""

import math
import tempfile
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_pdyn import (
    PControlCallback,
    SampleLossCallback,
    ScheduleCallback,
    TelemetryCallback,
    sample_loss,
)
from hf_pdyn.run_dir import tables

from .images import Images
from .processes import from_main_process, of_one_process

CURVES = {
    "D_w": "pdyn/D_w",
    "D_b": "pdyn/D_b",
    "G_w_over_G_b": "pdyn/G_w_over_G_b",
    "update_w": "pdyn/update_norm/weight",
    "update_b": "pdyn/update_norm/bias_like",
    "p": "pdyn/p",
    "learning_rate": "learning_rate",
    "test_accuracy": "pdyn/samples/test/accuracy",
    "test_loss": "pdyn/samples/test/mean",
}
"""What a result keeps of every epoch, by its name in the log records."""

SPLITS = ("train", "test")

TABLE_2 = ("accuracy", "mean", "std", "p50", "p95", "p99", "share_above_5")


@dataclass(frozen=True)
class Optimization:
    """How a network is trained: all that the claims vary.

    eps stands inside the power (Eq. 18). lr_factors: of every epoch, on top of cosine decay.
    """

    p: float
    lr: float
    lr_scheduler: str = "cosine"
    update_scale: str = "raw"
    eps: float = 1e-8
    epochs: int = 40
    batch_size: int = 10
    p_schedule: str | None = None
    p_control: bool = False
    lr_factors: tuple[float, ...] | None = None


def train(
    model: nn.Module,
    images: Images,
    optimization: Optimization,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Train and return what was observed, as plain numbers, on every process.

    curves: CURVES over epochs. table_2: of the train and the test set after the last epoch. gradients, updates: norms
    by pathway and layer, over epochs. hard: of both sets, the hardest tenth after the last epoch; samples: how
    many they have.
    """
    # In a temporary folder: what a claim keeps is in its row.
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, images, optimization, seed, device, folder)
        trainer.train()
        return from_main_process(lambda: _observed(trainer, folder), device)


def _observed(trainer: Trainer, folder: str) -> dict[str, Any]:
    epochs = _by_epoch(trainer.state.log_history)
    return {
        "curves": {name: [_short(epoch.get(key)) for epoch in epochs] for name, key in CURVES.items()},
        "table_2": {
            split: {name: _short(epochs[-1].get(f"pdyn/samples/{split}/{name}")) for name in TABLE_2}
            for split in SPLITS
        },
        "gradients": _by_layer(folder, "grad_norm"),
        "updates": _by_layer(folder, "update_norm"),
        "hard": {split: _hard_samples(folder, split) for split in SPLITS},
        "samples": {"train": len(trainer.train_dataset), "test": len(trainer.eval_dataset)},
    }


def _trainer(
    model: nn.Module,
    images: Images,
    optimization: Optimization,
    seed: int,
    device: str,
    folder: str,
) -> Trainer:
    arguments = TrainingArguments(
        folder,
        optim="padam",
        optim_args=f"p={optimization.p!r},eps={optimization.eps!r},update_scale={optimization.update_scale}",
        learning_rate=optimization.lr,
        lr_scheduler_type=optimization.lr_scheduler,
        max_grad_norm=0.0,  # the paper clips nothing
        num_train_epochs=optimization.epochs,
        per_device_train_batch_size=of_one_process(optimization.batch_size),
        per_device_eval_batch_size=500,
        seed=seed,
        logging_strategy="epoch",  # so that D_w and D_b are means over epochs (Eq. 31)
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
    )
    callbacks = [
        TelemetryCallback(every=1, per_layer=True),
        SampleLossCallback(None, train_set=images.train.as_they_are()),
    ]
    if optimization.p_schedule is not None:
        callbacks.append(ScheduleCallback("p", optimization.p_schedule))
    if optimization.p_control:
        callbacks.append(PControlCallback(interval="epoch"))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=images.train,
        eval_dataset=images.test,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if optimization.lr_factors is not None:
        steps_per_epoch = math.ceil(len(images.train) / optimization.batch_size)
        trainer.lr_scheduler = _cosine_times(trainer, optimization, steps_per_epoch)
    return trainer


def _cosine_times(trainer: Trainer, optimization: Optimization, steps_per_epoch: int) -> LambdaLR:
    factors = optimization.lr_factors or ()
    steps = steps_per_epoch * optimization.epochs

    def factor(step: int) -> float:
        return (1 + math.cos(math.pi * step / steps)) / 2 * factors[min(step // steps_per_epoch, len(factors) - 1)]

    return LambdaLR(trainer.create_optimizer(), factor)


def _by_epoch(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged at the end of every epoch, in one record each."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in history:
        by_step.setdefault(record["step"], {}).update(record)
    return [record for record in by_step.values() if "learning_rate" in record]


def _short(value: float | None, digits: int = 6) -> float | None:
    """Six digits are more than seeds agree on; None where it was not logged, or is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _by_layer(folder: str, name: str) -> dict[str, dict[str, list[float | None]]]:
    """A quantity by pathway, by layer, over epochs."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in tables.read_table(folder, tables.LAYERS)[0].to_pylist():
        if row["name"] == name:
            found.setdefault(row["part"], {}).setdefault(row["layer"], []).append(_short(row["value"], digits=4))
    return found


def _hard_samples(folder: str, split: str) -> list[int]:
    losses = sample_loss.read_epoch(folder, split)
    return sorted(int(index) for index in losses.hard_samples())
