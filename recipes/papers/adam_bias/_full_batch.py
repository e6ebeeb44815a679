"""A training with all images as one batch, by the stock Trainer with `optim="padam"`, observed at every step."""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments

from hf_pdyn import TelemetryCallback
from papers._claims.images import Images
from papers._claims.processes import from_main_process, of_one_process

EVALUATIONS = 50
"""How often the test set is looked at, evenly over training."""


@dataclass(frozen=True)
class Adam:
    """Adam as IBA's Definition 2.1 has it: p = 1/2, eps inside the root. A step is an epoch."""

    beta: float
    rho: float
    lr: float
    epochs: int
    eps: float = 1e-8


@dataclass(frozen=True)
class Observed:
    """What is seen over training.

    loss, norm: of the gradient, by step; the norm is the perturbed one-norm less its floor, d sqrt(eps). steps: after
    how many the test set was evaluated. test_loss, test_error: by these.
    """

    loss: np.ndarray
    norm: np.ndarray
    steps: np.ndarray
    test_loss: np.ndarray
    test_error: np.ndarray


def train(model: nn.Module, images: Images, adam: Adam, seed: int, device: str, micro_batch: int | None) -> Observed:
    """Train on clean images. micro_batch: how many images go through the network at a time; None for all of them."""
    count = len(images.train)
    at_a_time = of_one_process(micro_batch or count)
    every = max(adam.epochs // EVALUATIONS, 1)
    # The mean over micro-batches is left to the Trainer, since no image classifier divides by `num_items_in_batch`.
    model.accepts_loss_kwargs = False
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            optim="padam",
            optim_args=f"p=0.5,eps={adam.eps!r}",
            adam_beta1=adam.beta,
            adam_beta2=adam.rho,
            learning_rate=adam.lr,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            num_train_epochs=adam.epochs,
            per_device_train_batch_size=at_a_time,
            gradient_accumulation_steps=count // (micro_batch or count),
            per_device_eval_batch_size=500,
            seed=seed,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=every,
            eval_on_start=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device == "cuda",
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=images.train.as_they_are(),
            eval_dataset=images.test,
            compute_metrics=_error,
            callbacks=[TelemetryCallback(every=1)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        floor = sum(param.numel() for param in model.parameters() if param.requires_grad) * adam.eps**0.5
        return from_main_process(lambda: _observed(trainer.state.log_history, floor), device)


def _error(predictions: EvalPrediction) -> dict[str, float]:
    return {"error": float((predictions.predictions.argmax(-1) != predictions.label_ids).mean())}


def _observed(history: list[dict[str, Any]], floor: float) -> Observed:
    """From the Trainer's records; of step 0 and of every step after which the test set was evaluated."""
    steps = [record for record in history if "loss" in record]
    tests = [record for record in history if "eval_loss" in record]
    norm = [sum(record[f"pdyn/one_norm/{pathway}"] for pathway in ("weight", "bias_like")) for record in steps]
    return Observed(
        loss=np.array([record["loss"] for record in steps]),
        norm=np.array(norm) - floor,
        steps=np.array([record["step"] for record in tests]),
        test_loss=np.array([record["eval_loss"] for record in tests]),
        test_error=np.array([record["eval_error"] for record in tests]),
    )
