"""A Trainer's step with padam and callbacks, against the same Trainer with AdamW and none.

Two Trainers train in two threads that take turns, step by step. What spectra and sample losses do at the end of an
epoch is timed once, and counted as of an epoch of EPOCH steps, which would take too long here.

Whole steps differ by a few percent from one to the next, which is as much as is asked for. So the parts that differ,
the callbacks and the optimizer's step, are timed apart too, and put in the place of the other Trainer's.
"""

from __future__ import annotations

import functools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_pdyn import PdynArguments

WARMING_UP = 2
LOGGING = 5
EPOCH = 100
PROBED = 0.02
"""The share of such an epoch's samples whose losses are taken at its end."""

SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50_257},
    "tiny": {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64},
}
BATCH, LENGTH = 4, 128
CALLBACKS = ("defaults", "everything")
_RESAMPLED = 2000


class _Step(NamedTuple):
    """Seconds of a step, and of these, those in callbacks and the optimizer's step."""

    whole: float
    apart: float


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
        self.steps: list[_Step] = []
        self._apart = 0.0
        self._turns, self._who, self._device = turns, who, device
        self._start: float | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._finish()
        self._turns.hand_over(self._who)
        self._turns.wait(self._who)
        self._start = time.perf_counter()

    def watch(self, trainer: Trainer) -> None:
        """Time the callbacks of `trainer`, of which this must be the first, from the end of the turn on."""
        call_event = trainer.callback_handler.call_event

        def timed(event: str, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            called = call_event(event, *args, **kwargs)
            waited = event == "on_step_begin" and self._start is not None
            self._apart += time.perf_counter() - (self._start if waited else begun)
            return called

        trainer.callback_handler.call_event = timed

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        step = optimizer.step

        @functools.wraps(step)  # by which a scheduler knows a step that it watches
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            found = step(*args, **kwargs)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._apart += time.perf_counter() - begun
            return found

        optimizer.step = timed

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._start is not None:
            self.steps.append(_Step(time.perf_counter() - self._start, self._apart))
        self._apart = 0.0


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


def _arguments(callbacks: str, steps: int) -> PdynArguments:
    if callbacks == "defaults":
        return PdynArguments()
    return PdynArguments(
        telemetry="layers",
        p_control="gradient",
        p_interval=str(min(LOGGING, steps // 4)),  # several decisions, however short the training
        wd_off="0.5",
        spectra="epoch",
        sample_losses=round(PROBED * EPOCH * BATCH),
    )


def _trainer(
    size: str, *, lora: bool, ours: PdynArguments | None, steps: int, turns: _TakesTurns, device: str, folder: str
) -> Trainer:
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
    callbacks: list[TrainerCallback] = [turns, *(ours.callbacks() if ours else [])]
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
    for callbacks in CALLBACKS:
        for name, lora in (("LoRA", True), ("full fine-tuning", False)):
            ours, theirs = _both(device, size, lora=lora, steps=steps, callbacks=callbacks)
            last = _epoch_of(steps) - 1 - WARMING_UP  # of the epoch
            epoch_end, _ = ours.pop(last)
            theirs.pop(last)
            median, their_median = (statistics.median(step.whole for step in of) for of in (ours, theirs))
            epoch_end = max(0.0, epoch_end - median)
            pairs = list(zip(ours, theirs, strict=True))
            rows.append(
                {
                    "training": f"{size} {name}",
                    "callbacks": callbacks,
                    "milliseconds": round(1e3 * median, 2),
                    "theirs_milliseconds": round(1e3 * their_median, 2),
                    "ratio": round(median / their_median, 4),
                    "ratio_of_means": round(_ratio_of_means(pairs), 4),
                    "interval_of_means": _interval(_ratio_of_means, pairs),
                    "ratio_by_parts": round(_ratio_by_parts(pairs), 4),
                    "interval_by_parts": _interval(_ratio_by_parts, pairs),
                    "epoch_end_seconds": round(epoch_end, 3),
                    "ratio_of_epochs": round((median + epoch_end / EPOCH) / their_median, 4),
                    "target": 1.02,
                    "steps": len(ours),
                }
            )
            print(line(rows[-1]), flush=True)
    return {"batch": [BATCH, LENGTH], "logging_steps": LOGGING, "epoch": EPOCH, "probed": PROBED, "rows": rows}


_Pairs = list[tuple[_Step, _Step]]


def _ratio_of_means(pairs: _Pairs) -> float:
    return sum(ours.whole for ours, _ in pairs) / sum(theirs.whole for _, theirs in pairs)


def _ratio_by_parts(pairs: _Pairs) -> float:
    """The other Trainer's steps with our parts in the place of its own, over its steps."""
    return 1 + sum(ours.apart - theirs.apart for ours, theirs in pairs) / sum(theirs.whole for _, theirs in pairs)


def _interval(ratio: Callable[[_Pairs], float], pairs: _Pairs) -> list[float]:
    """Where the ratio lies in 95 % of the samples that are drawn of the pairs with replacement."""
    draw = random.Random(0)
    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLED))
    return [round(ratios[round(end * (_RESAMPLED - 1))], 4) for end in (0.025, 0.975)]


def _epoch_of(steps: int) -> int:
    """How long the epoch is here, so that its end is neither warming up nor the last step."""
    return max(steps // 2, WARMING_UP + 1)


def _both(
    device: torch.device, size: str, *, lora: bool, steps: int, callbacks: str
) -> tuple[list[_Step], list[_Step]]:
    """Every step but the first ones, with padam and with AdamW."""
    turns, failures = _Turns(), []
    taking = [_TakesTurns(turns, who, device) for who in range(2)]
    arguments = (_arguments(callbacks, steps), None)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            _trainer(size, lora=lora, ours=ours, steps=steps, turns=turn, device=device.type, folder=folder)
            for ours, turn in zip(arguments, taking, strict=True)
        ]
        for trainer, turn in zip(trainers, taking, strict=True):
            turn.watch(trainer)

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
    ours, theirs = (callback.steps[WARMING_UP:-1] for callback in taking)  # the other's last runs alone
    return ours, theirs


HEADER = (
    "| training | callbacks | ms a step | theirs | ratio of medians | of means (95 %) | by parts (95 %) | "
    "end of an epoch, s | ratio of epochs | target |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"| {row['training']} | {row['callbacks']} | {row['milliseconds']:.1f} | {row['theirs_milliseconds']:.1f} | "
        f"{row['ratio']:.3f} | {_with_interval(row, 'of_means')} | {_with_interval(row, 'by_parts')} | "
        f"{row['epoch_end_seconds']:.2f} | {row['ratio_of_epochs']:.3f} | {row['target']:.2f} |"
    )


def _with_interval(row: dict[str, Any], of: str) -> str:
    low, high = row[f"interval_{of}"]
    return f"{row[f'ratio_{of}']:.3f} ({low:.3f} to {high:.3f})"
