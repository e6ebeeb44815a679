"""One linear layer, trained by the stock Trainer: the paper's minimal model, with as many outputs as wanted."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .processes import of_one_process


class LinearRegression(nn.Module):
    """z = x W^T + b under L = ||r||^2 / 2 a sample (IAD Eq. 10), from zero."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        for param in self.parameters():
            nn.init.zeros_(param)

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """inputs: (n, d). labels: (n, k)."""
        z = self.linear(inputs)
        return {"loss": (z - labels).square().sum(-1).mean() / 2, "logits": z}


class Samples(Dataset[dict[str, Tensor]]):
    """inputs: (n, d). labels: (n, k)."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


@dataclass(frozen=True)
class LinearTraining:
    """How it is trained. eps stands inside the power (Eq. 18)."""

    p: float
    lr: float
    eps: float
    steps: int
    batch_size: int
    update_scale: str = "raw"


def sparse_inputs(pi: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal inputs (count, d), of which the j-th is zero with probability 1 - pi_j."""
    active = torch.rand(count, len(pi), generator=generator) < pi
    return active * torch.randn(count, len(pi), generator=generator)


def train_linear(
    model: LinearRegression,
    samples: Samples,
    training: LinearTraining,
    seed: int,
    device: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Train at a constant learning rate, with nothing but the update in it; return the Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            optim="padam",
            optim_args=f"p={training.p!r},eps={training.eps!r},update_scale={training.update_scale}",
            learning_rate=training.lr,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            max_steps=training.steps,
            per_device_train_batch_size=of_one_process(training.batch_size),
            seed=seed,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device == "cuda",
        )
        trainer = Trainer(model, arguments, train_dataset=samples, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer
