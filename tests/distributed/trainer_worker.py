"""One process of Trainer runs with everything on, case by case; writes what it saw to `OUT/rank<i>.pt`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback

from hf_pdyn import (
    AllocationCallback,
    GroupRulesCallback,
    PControlCallback,
    PTargetCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.measure import power_kernel
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.tensors.sharding import first_param, held
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.leaving import leave
from tests.training import gpt2, trainer

CONTROL = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)
INTERVAL = 3
GLOBAL_BATCH = 8


class Exponents(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.steps.append(optimizer.param_groups[0].get("p", -1.0))


def build(model: str) -> torch.nn.Module:
    if model == "full":
        return gpt2()
    config = LoraConfig(
        r=4, target_modules=["c_attn"], bias="all", modules_to_save=["ln_1", "ln_2", "ln_f"], fan_in_fan_out=True
    )
    torch.manual_seed(1)
    return get_peft_model(gpt2(), config)


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = options.get("gradient_accumulation_steps", 1)
    # Launches sum the allocation curve by the kernel, as of larger models; one process by tensor operations.
    power_kernel.WORTH_COMPILING = 0 if world_size > 1 else 2**62
    exponents = Exponents()
    shutoff = WeightDecayShutoffCallback(options.pop("wd_off", "0.5"))
    callbacks = [TelemetryCallback(every=1, per_layer=True), shutoff, exponents]
    if options.get("optim") != "sgd":  # which has no second moment
        callbacks.append(AllocationCallback("log"))
    rules = options.pop("groups", None)
    if rules is not None:
        callbacks.append(GroupRulesCallback(rules))
    target = options.pop("target", None)
    if target is not None:
        callbacks.insert(0, PTargetCallback(target, CONTROL, interval=INTERVAL))
    elif options.get("optim", "padam") == "padam":
        callbacks.insert(0, PControlCallback(CONTROL, interval=INTERVAL))
    run = trainer(
        out,
        model=build(options.pop("model")),
        callbacks=callbacks,
        **{
            "weight_decay": 0.1,
            "max_steps": 18,
            # The gradient of attention's key biases is zero but for rounding, which Adam's epsilon of 1e-8 would scale
            # up to whole steps, in another direction for every order of the sums.
            "adam_epsilon": 1e-6,
            "logging_steps": INTERVAL,
            "per_device_train_batch_size": GLOBAL_BATCH // world_size // accumulation,
            **options,
        },
    )
    run.remove_callback(PrinterCallback)
    run.train()
    inner = run.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "wrapper": type(run.model_wrapped).__name__,
        "tensors": kinds(inner),
        "names": sorted({group.get("group_name", "") for group in inner.param_groups}),
        "device": first_param(inner).device.type,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "p": exponents.steps,
        "logs": [record for record in run.state.log_history if "loss" in record],
        "weights": full_weights(run.model),
    }


def kinds(optimizer: torch.optim.Optimizer) -> list[str]:
    params = [param for params in held(optimizer) for param in params]
    if all(isinstance(param, DTensor) for param in params):
        return ["DTensor"]
    if all(param.ndim == 1 for param in params):
        return ["1-D Parameter" if all(isinstance(param, torch.nn.Parameter) for param in params) else "flat Tensor"]
    return sorted({type(param).__name__ for param in params})


def full_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            return copies(model)
    return copies(model)


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights = {}
    for name, param in model.named_parameters():
        if hasattr(param, "ds_shape"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([param]):
                weights[name] = param.detach().double().cpu().clone()
            continue
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        weights[name.replace("_fsdp_wrapped_module.", "")] = whole.detach().double().cpu().clone()
    return weights


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    reports = {}
    for i, (name, options) in enumerate(cases.items()):
        reports[name] = train(out / f"case{i}", options)
    torch.save(reports, out / f"rank{os.environ.get('RANK', '0')}.pt")
    leave()


if __name__ == "__main__":
    main()
