"""The small training run that most tests share: a 2-layer GPT-2 on fixed random tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import hf_pdyn  # noqa: F401  (registers padam)

VOCABULARY = 64


def gpt2(seed: int = 0, layers: int = 2) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers,
        n_head=2,
        n_embd=16,
        n_positions=16,
        vocab_size=VOCABULARY,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def token_blocks(count: int = 64, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of a noisy counting sequence: learnable, and different in every batch."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY, (count, 1), generator=generator)
    noise = torch.randint(3, (count, 12), generator=generator)
    tokens = (starts + torch.arange(12) + noise) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(output_dir: Path | str, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "optim": "padam",
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "logging_steps": 2,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    return TrainingArguments(output_dir=str(output_dir), **(defaults | options))


def trainer(output_dir: Path | str, model: torch.nn.Module | None = None, **options: Any) -> Trainer:
    callbacks = options.pop("callbacks", None)
    cls = options.pop("trainer_class", Trainer)
    optimizers = options.pop("optimizers", (None, None))
    return cls(
        model=gpt2() if model is None else model,
        args=arguments(output_dir, **options),
        train_dataset=token_blocks(),
        eval_dataset=token_blocks(16, seed=9),
        callbacks=callbacks,
        optimizers=optimizers,
    )


def training_logs(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in logs if "loss" in record]


def saved_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text())
