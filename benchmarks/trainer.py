"""A Trainer's step with padam and every callback, against the same Trainer with AdamW and none.

Two Trainers train in two threads that take turns, step by step. What spectra and sample losses do at the end of an
epoch is timed once, and counted as of an epoch of EPOCH steps, which would take too long here.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_pdyn import PdynArguments

WARMING_UP = 2
LOGGING = 5
EPOCH = 100
PROBED = 0.02
"""Of the samples of such an epoch, those whose losses are taken at its end."""

SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50_257},
    "tiny": {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64},
}
BATCH, LENGTH = 4, 128


class _Turns:
    """Lets two threads do a step each, one after the other."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._turn = 0
        self._alone = False

    def wait(self, who: int) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._alone or self._turn == who)

    def hand_over(self, who: int) -> None:
        with self._condition:
            self._turn = 1 - who
            self._condition.notify_all()

    def leave(self) -> None:
        """The other goes on alone."""
        with self._condition:
            self._alone = True
            self._condition.notify_all()


class _TakesTurns(TrainerCallback):
    """A step lasts from one beginning to the next: batch, both passes, optimizer, callbacks and log record."""

    def __init__(self, turns: _Turns, who: int, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._turns, self._who, self._device = turns, who, device
        self._start: float | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._finish()
        self._turns.hand_over(self._who)
        self._turns.wait(self._who)
        self._start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._start is not None:
            self.seconds.append(time.perf_counter() - self._start)


def model(size: str, *, lora: bool) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(**SIZES[size], n_positions=LENGTH, bos_token_id=0, eos_token_id=0)
    plain = GPT2LMHeadModel(config)
    if not lora:
        return plain
    return get_peft_model(plain, LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True, bias="all"))


def data(vocabulary: int, steps: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (BATCH * steps, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def _trainer(size: str, *, lora: bool, ours: bool, steps: int, turns: _TakesTurns, device: str, folder: str) -> Trainer:
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-5,
        weight_decay=0.01,
        logging_steps=LOGGING,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        optim="padam" if ours else "adamw_torch_fused",
        optim_args="p=0.37" if ours else None,
    )
    callbacks: list[TrainerCallback] = [turns]
    if ours:
        pdyn = PdynArguments(
            telemetry="layers",
            p_control="gradient",
            p_interval=str(min(LOGGING, steps // 4)),  # several decisions, however short the training
            wd_off="0.5",
            spectra="epoch",
            sample_losses=round(PROBED * EPOCH * BATCH),
        )
        callbacks += pdyn.callbacks()
    trainer = Trainer(
        model(size, lora=lora),
        arguments,
        train_dataset=data(SIZES[size]["vocab_size"], _epoch_of(steps)),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(device: torch.device, size: str, steps: int) -> dict[str, Any]:
    rows = []
    for name, lora in (("LoRA", True), ("full fine-tuning", False)):
        ours, theirs = _both(device, size, lora=lora, steps=steps)
        last_of_epoch = ours.pop(_epoch_of(steps) - 1 - WARMING_UP)
        epoch_end = last_of_epoch - statistics.median(ours)
        rows.append(
            {
                "training": f"{size} {name}",
                "milliseconds": round(1e3 * statistics.median(ours), 2),
                "theirs_milliseconds": round(1e3 * statistics.median(theirs), 2),
                "ratio": round(statistics.median(ours) / statistics.median(theirs), 4),
                "ratio_of_means": round(statistics.mean(ours) / statistics.mean(theirs), 4),
                "epoch_end_seconds": round(epoch_end, 3),
                "ratio_of_epochs": round((statistics.median(ours) + epoch_end / EPOCH) / statistics.median(theirs), 4),
                "target": 1.02,
                "steps": len(ours),
            }
        )
        print(line(rows[-1]), flush=True)
    return {"batch": [BATCH, LENGTH], "logging_steps": LOGGING, "epoch": EPOCH, "probed": PROBED, "rows": rows}


def _epoch_of(steps: int) -> int:
    """How long the epoch is here, so that its end is neither warming up nor the last step."""
    return max(steps // 2, WARMING_UP + 1)


def _both(device: torch.device, size: str, *, lora: bool, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of every step but the first ones, with padam and with AdamW."""
    turns, failures = _Turns(), []
    callbacks = [_TakesTurns(turns, who, device) for who in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            _trainer(size, lora=lora, ours=who == 0, steps=steps, turns=turn, device=device.type, folder=folder)
            for who, turn in enumerate(callbacks)
        ]

        def train(who: int) -> None:
            turns.wait(who)
            try:
                trainers[who].train()
            except Exception as error:
                failures.append(error)
            finally:
                turns.hand_over(who)
                turns.leave()

        threads = [threading.Thread(target=train, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    ours, theirs = (callback.seconds[WARMING_UP:-1] for callback in callbacks)  # the other's last runs alone
    return ours, theirs


HEADER = (
    "| training | ms a step | theirs | ratio of medians | of means | end of an epoch, s | ratio of epochs | target |\n"
    "|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"| {row['training']} | {row['milliseconds']:.1f} | {row['theirs_milliseconds']:.1f} | {row['ratio']:.3f} | "
        f"{row['ratio_of_means']:.3f} | {row['epoch_end_seconds']:.2f} | {row['ratio_of_epochs']:.3f} | "
        f"{row['target']:.2f} |"
    )
