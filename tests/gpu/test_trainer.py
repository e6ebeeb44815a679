"""The Trainer with everything on, on a CUDA device: the CPU's numbers, a checkpoint, and gradient scalers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_pdyn import TelemetryCallback
from tests.callbacks.test_mixed_precision import (
    OPTIMIZERS,
    Overflow,
    assert_a_fused_optimizer_unscales,
    assert_overflows_leave_no_trace,
)
from tests.callbacks.test_resume import SAVED, assert_resumes_bit_for_bit
from tests.distributed.matrix import CASES, NOISY, difference
from tests.distributed.trainer_worker import train
from tests.training import gpt2, trainer, training_logs

pytestmark = pytest.mark.gpu

# Relative, after 18 steps: exp, tanh and every sum of a forward pass round otherwise, at 6e-8 in float32, and Adam's
# normalised steps pass such differences on to the weights.
TOLERANCE = 1e-4

ON_DEVICE = {"use_cpu": False}


@pytest.mark.parametrize("case", [name for name in CASES if "accumulation" not in name])
def test_statistics_decisions_and_weights_are_those_of_the_cpu(tmp_path: Path, case: str, record_property: Any) -> None:
    """Telemetry, shutoff and, for padam, control."""
    on_cpu = train(tmp_path / "cpu", dict(CASES[case]))
    on_device = train(tmp_path / "cuda", {**CASES[case], **ON_DEVICE})
    assert (on_cpu["device"], on_device["device"]) == ("cpu", "cuda")
    found = difference([on_device], on_cpu)
    record_property("difference", str(found))
    assert found.same_p and found.weights <= TOLERANCE, str(found)
    for name, largest in found.metrics.items():
        assert largest <= NOISY.get(name, TOLERANCE), (name, largest)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("optim_args", ["p=0.5", "p=0.3,update_scale=adam,p.norm=0.1"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, optim_args: str, saved: int) -> None:
    assert_resumes_bit_for_bit(tmp_path, "control", saved, optim_args=optim_args, **ON_DEVICE)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_overflows_under_a_gradient_scaler_leave_no_trace(tmp_path: Path, name: str, max_grad_norm: float) -> None:
    assert_overflows_leave_no_trace(tmp_path, name, max_grad_norm=max_grad_norm, **ON_DEVICE)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_unscales_before_statistics_are_taken(optimizer_class: type[torch.optim.Optimizer]) -> None:
    assert_a_fused_optimizer_unscales(optimizer_class, "cuda")


class ScaledTooFar(Trainer):
    """accelerate's own fp16 and its scaler, from a scale at which gradients of logits exceed fp16's 65504.

    Those of a mean over 88 tokens are up to scale / 88.
    """

    scale = 2.0**24

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        assert self.accelerator.scaler is not None
        self.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=self.scale)


class States(TrainerCallback):
    """Weights and moments before and after every step."""

    def __init__(self) -> None:
        self.changed: list[bool] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = self.copies(kwargs["model"], kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after = self.copies(kwargs["model"], kwargs["optimizer"])
        # A fused optimizer makes its states, all zero, also in a step that it then skips.
        before = {key: self.before.get(key, torch.zeros_like(value)) for key, value in after.items()}
        self.changed.append(not all(torch.equal(value, before[key]) for key, value in after.items()))

    @staticmethod
    def copies(model: torch.nn.Module, optimizer: Any) -> dict[Any, torch.Tensor]:
        values = {}
        for name, param in model.named_parameters():
            values[name, "weight"] = param.detach().clone()
            for key, value in optimizer.state.get(param, {}).items():
                if isinstance(value, torch.Tensor):
                    values[name, key] = value.detach().clone()
        return values


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fp16_overflows(tmp_path: Path, name: str, max_grad_norm: float) -> None:
    """Overflows of fp16 itself in the first steps, and one put in later; each halves the scale."""
    put_in = 14
    states, model = States(), gpt2()
    run = trainer(
        tmp_path,
        model,
        trainer_class=ScaledTooFar,
        callbacks=[TelemetryCallback(), states, Overflow(math.inf, steps=(put_in,))],
        **{**OPTIMIZERS[name], **ON_DEVICE, "fp16": True, "max_steps": 18, "logging_steps": 1},
        max_grad_norm=max_grad_norm,
    )
    run.train()
    skips = round(math.log2(ScaledTooFar.scale / run.accelerator.scaler.get_scale()))
    taken = sum(states.changed)
    assert len(states.changed) == 18
    assert not states.changed[0] and not states.changed[put_in] and states.changed[put_in - 1]
    assert 2 <= skips == 18 - taken
    logs = training_logs(run.state.log_history)
    assert logs[-1]["pdyn/skipped_steps"] == skips
    # The mean gradient norms of the steps taken, of unscaled gradients: those of the loss itself.
    norms = [math.hypot(record["pdyn/D_w"], record["pdyn/D_b"]) for record in logs if "pdyn/D_w" in record]
    assert len(norms) == taken
    assert all(0.01 < norm < 100 for norm in norms)
    for param in model.parameters():
        assert all(
            value.isfinite().all() for value in run.optimizer.state[param].values() if isinstance(value, torch.Tensor)
        )
        if "step" in run.optimizer.state[param]:
            assert run.optimizer.state[param]["step"].item() == taken
