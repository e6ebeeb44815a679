"""`SpectralCallback`: how nearly low-rank attention's K^T Q and LoRA's B A are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.memory import check_remembered
from hf_pdyn.callbacks.remembering import RememberingCallback
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.never_fatal import described, give_up, never_fatal
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.integrations.deepspeed import gathered, is_partitioned
from hf_pdyn.measure.attention_lora import ATTENTION, ATTENTION_HEADS, LORA, Measured, Product, find_products
from hf_pdyn.measure.spectra import QUANTITIES, summary
from hf_pdyn.policy.intervals import parse_interval
from hf_pdyn.policy.row_budget import plan_rows
from hf_pdyn.run_dir.tables import LAYERS
from hf_pdyn.tensors.sharding import agreed, has_fsdp1, is_dtensor, whole

logger = logging.getLogger(__name__)

_KINDS = (ATTENTION, ATTENTION_HEADS, LORA)
_STEP = "pdyn/spectrum/step"


class SpectralCallback(RememberingCallback):
    """Follows the singular values of products of weights, which weight decay moves (TMF, section 5).

    Measured are K^T Q of every attention layer, whole and of every head, and scaling * B A of every LoRA
    module: before the first step, at every interval's end, and after the last step. The next training record has
    `pdyn/spectrum/KIND/QUANTITY` over all layers, KIND one of `attention`, `attention_heads`, `lora`, QUANTITY
    one of `spectra.QUANTITIES`, and `pdyn/spectrum/step`, the step of the measurement. Each layer's are rows of
    `tables.LAYERS` in the output directory. Products that are zero are missing.

    `measured_at` is how many steps were done at the last measurement, and `latest` has its metrics, on the main process
    alone.

    Args:
        every: "epoch", or a number of optimizer steps.
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[SpectralCallback(4)])
        >>> result = trainer.train()
        >>> record = trainer.state.log_history[0]  # has the measurement before the first step
        >>> 1 <= record["pdyn/spectrum/attention/nuc_over_fro"] <= 4  # the root of the rank, 16
        True
    """

    memory_name = "spectra"
    without_memory = "The record of spectra starts"

    def __init__(self, every: int | str = "epoch", *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        self.every = parse_interval("every", every, "epoch")
        self.row_buffer = self._layers = RowBuffer(LAYERS)
        self._products: Sequence[Product] = ()
        self._sharded = False
        self._failed: set[type[Product]] = set()
        self._said_thinned = False
        self._unlogged: dict[str, float] = {}
        self.measured_at: int | None = None
        self.latest: dict[str, float] = {}

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._products, self._sharded, self._unlogged = (), False, {}
        self._failed.clear()
        self._said_thinned = False
        self._find(state)
        # A resumed run has the measurement of its checkpoint's step, if there was one.
        self.measured_at = state.global_step if state.global_step > 0 else None
        self.latest = {}
        self._measure(state)

    @never_fatal
    def _find(self, state: TrainerState) -> None:
        problem = None
        if has_fsdp1(self.run.model):
            problem = "FSDP1 keeps flat pieces of weights; use FSDP2 (fsdp_config version 2) or DDP"
        else:
            found = find_products(self.run.model)
            tensors = [tensor for product in found.products for tensor in product.tensors()]
            self._sharded = any(is_dtensor(tensor) or is_partitioned(tensor) for tensor in tensors)
            self._products = found.products
            if found.unavailable:
                layer, reason = next(iter(found.unavailable.items()))
                problem = f"missing for {len(found.unavailable)} layers, the first is {layer}: {reason}"
            elif not found.products:
                problem = (
                    f"{type(self.run.model).__name__} has no LoRA module and no attention layer that hf_pdyn knows "
                    "(c_attn, or pairs such as q_proj and k_proj, query and key); drop SpectralCallback or --spectra"
                )
        if problem and state.is_world_process_zero:
            warnings.warn(f"pdyn spectra: {problem}.", stacklevel=2)

    def ranks(self) -> dict[str, int]:
        """The largest rank of each kind of product that this training measures."""
        found: dict[str, int] = {}
        for product in self._products:
            found |= {kind: max(rank, found.get(kind, 0)) for kind, rank in product.ranks().items()}
        return found

    def interval(self) -> int | None:
        """Steps between measurements; None for epochs of unknown length."""
        return self.run.steps_per_epoch if self.every == "epoch" else int(self.every)

    def stop_measuring(self) -> None:
        """Log nothing from here on. Products stay: while they are sharded, other processes wait for their parts."""
        self._unlogged = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every == "epoch":
            due = self.run.ends_epoch(state.global_step)
        else:
            due = state.global_step % int(self.every) == 0
        # The last step's here, so that its record and its checkpoint have it.
        if due or state.global_step >= state.max_steps:
            self._measure(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every == "epoch" and self.run.steps_per_epoch is None:
            self._measure(state)
        super().on_epoch_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state)  # of a training that was stopped before its last step
        super().on_train_end(args, state, control, **kwargs)

    @torch.no_grad()
    def _measure(self, state: TrainerState) -> None:
        """Take all spectra on the main process, unless this step has them.

        Sharded weights are gathered a layer at a time. All processes come to every gathering, also one that failed.
        """
        if self.measured_at == state.global_step:
            return
        self.measured_at, self.latest = state.global_step, {}
        main = state.is_world_process_zero
        if self._sharded and agreed([self.gave_up], self.run.device)[0]:
            return
        found: list[tuple[Product, Measured]] = []
        for product in self._products if self._sharded or main else ():
            parts = self._gather(product) if self._sharded else None
            if main:
                found += [(product, measured) for measured in self._spectra(product, parts)]
        if main:
            self._note(state, [(product, measured) for product, measured in found if type(product) not in self._failed])

    def _gather(self, product: Product) -> dict[Tensor, Tensor]:
        try:
            return {
                tensor: gathered(tensor) if is_partitioned(tensor) else whole(tensor) for tensor in product.tensors()
            }
        except Exception as error:
            give_up(self, error)
            return {}

    def _spectra(self, product: Product, parts: dict[Tensor, Tensor] | None) -> list[Measured]:
        """Empty once a product of this kind has failed: a mean over the other layers would be about something else."""
        if self.gave_up or type(product) in self._failed:
            return []
        try:
            return product.measure(Tensor.detach if parts is None else parts.__getitem__)
        except Exception as error:
            self._failed.add(type(product))
            warnings.warn(
                f"pdyn spectra: those of {product.name} are missing from here on, since {product.layer} cannot be "
                f"measured: {described(error)}.",
                stacklevel=2,
            )
            return []

    @never_fatal
    def _note(self, state: TrainerState, found: list[tuple[Product, Measured]]) -> None:
        rows = [
            {"layer": product.layer, "part": measured.part, "name": name, "value": getattr(measured.spectrum, name)}
            for product, measured in found
            if measured.spectrum is not None
            for name in QUANTITIES
        ]
        if self._takes_rows(state, len(found) * len(QUANTITIES)):
            self._layers.add(state, rows)
        values = {
            f"pdyn/spectrum/{kind}/{name}": value
            for kind in _KINDS
            for name, value in summary([measured.spectrum for _, measured in found if measured.kind == kind]).items()
        }
        self.latest = values
        self._unlogged = {**values, _STEP: state.global_step} if values else {}

    def _takes_rows(self, state: TrainerState, values: int) -> bool:
        """Whether this measurement has rows; of a run with very many of them, only some have."""
        interval = self.interval()
        if interval is None:
            return True
        plan = plan_rows(values, interval=interval, total_steps=self.run.total_steps)
        if plan.thinned and not self._said_thinned:
            self._said_thinned = True
            logger.warning("pdyn rows of spectra are kept of %s, and of the last: %s each.", plan.thinned, values)
        return plan.takes(state.global_step)

    def metrics(self, state: TrainerState) -> dict[str, float]:
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def remember(self) -> dict[str, Any]:
        return {"unlogged": self._unlogged}

    def recall(self, memory: object) -> None:
        try:
            found = check_remembered(memory, ("unlogged",), "The state of spectra")
            self._unlogged = _check_unlogged(found["unlogged"])
        except ValueError as error:
            self.say_what_starts_anew(error)


def _names(kind: str) -> set[str]:
    return {f"pdyn/spectrum/{kind}/{quantity}" for quantity in QUANTITIES}


def _check_unlogged(found: object) -> dict[str, float]:
    """`found`; ValueError unless it is what `_note` keeps for the next log record."""
    if not isinstance(found, dict) or not all(map(is_number, found.values())):
        raise damaged(f"The state of spectra must hold finite numbers by metric, got {shortened(str(found))}")
    measured = [_names(kind) for kind in _KINDS if found.keys() & _names(kind)]
    expected = set().union({_STEP} if found else (), *measured)
    if found.keys() != expected or (found and not is_count(found[_STEP])):
        raise damaged(f"The state of spectra must hold whole spectra and their step, got {shortened(', '.join(found))}")
    return found
