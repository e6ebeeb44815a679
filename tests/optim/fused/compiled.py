"""What Triton makes of the kernels of the fused step for NVIDIA GPUs, as JSON: `python -m tests.optim.fused.compiled`.

No device is needed: `gpu.advance` is called on CPU tensors, and its launches compile where they would run. A process
of its own, since the environment of the tests has the kernels interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_pdyn.optim.fused import gpu, triton_kernels
from hf_pdyn.optim.hyperparameters import StateDtype
from hf_pdyn.optim.state_format import storage_of
from hf_pdyn.optim.step_work import Task, Update
from hf_pdyn.optim.weight_correction import STORAGE

STEP = Task.MOMENTS | Task.APPLY
MEASURED = STEP | Task.GRADIENT | Task.MEASURE | Task.PARAMETER
GROUP = {
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-16,
    "p": 0.37,
    "weight_decay": 0.1,
    "maximize": False,
    "decoupled_weight_decay": True,
}
# Of a step: dtypes, capability, tasks, and what else a kernel is compiled for.
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32 on 8.0": {"capability": 80},
    "bf16": {"theta": torch.bfloat16, "grad": torch.bfloat16},
    "bf16 on 8.0": {"theta": torch.bfloat16, "grad": torch.bfloat16, "capability": 80},
    "fp16": {"theta": torch.float16, "grad": torch.float16},
    "bf16 with float32 gradients": {"theta": torch.bfloat16},
    "unaligned": {"offset": 1},
    "amsgrad": {"amsgrad": True},
    "on the device": {"on_device": True},
    "matched, first pass": {"tasks": Task.MOMENTS | Task.DIRECTION},
    "matched, second pass": {"tasks": Task.APPLY, "scale": True},
    "gradient": {"tasks": STEP | Task.GRADIENT},
    "measured": {"tasks": MEASURED, "clip": True},
    "measured bf16": {"tasks": MEASURED, "theta": torch.bfloat16, "grad": torch.bfloat16},
    "16bit": {"state_dtype": "16bit"},
    "16bit on 8.0": {"state_dtype": "16bit", "capability": 80},
    "16bit, gradient": {"state_dtype": "16bit", "tasks": STEP | Task.GRADIENT},
    "16bit, bf16": {"state_dtype": "16bit", "theta": torch.bfloat16, "grad": torch.bfloat16},
    "8_16bit": {"state_dtype": "8_16bit"},
    "8_16bit, gradient": {"state_dtype": "8_16bit", "tasks": STEP | Task.GRADIENT},
    "measured 16bit": {"state_dtype": "16bit", "tasks": MEASURED, "amsgrad": True, "clip": True},
    "measured 8_16bit": {"state_dtype": "8_16bit", "tasks": MEASURED, "on_device": True},
    "corrected bf16": {"theta": torch.bfloat16, "grad": torch.bfloat16, "corrected": True},
    "corrected fp16": {"theta": torch.float16, "grad": torch.float16, "corrected": True},
    "corrected 16bit": {"theta": torch.bfloat16, "grad": torch.bfloat16, "corrected": True, "state_dtype": "16bit"},
    "measured, all": {"tasks": MEASURED, "amsgrad": True, "on_device": True, "clip": True},
}


class Compiler:
    """Stands for a kernel; its launch compiles it for the arguments and notes what came of it."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability
        self.found: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, num_warps: int = 4, enable_fp_fusion: bool, **constants: Any) -> None:
        names = self.kernel.arg_names
        values = dict(zip(names, args, strict=False)) | constants
        fixed = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
        types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64"}
        signature = {n: "constexpr" if n in fixed else types[values[n].dtype] for n in names}
        pointers = [i for i, name in enumerate(names) if name not in fixed]
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        compiled = triton.compile(
            _source(self.kernel, signature, fixed, pointers),
            target=GPUTarget("cuda", self.capability, 32),
            options=options,
        )
        self.found = {"threads": 32 * num_warps, **_describe(compiled)}


def _source(kernel: Any, signature: dict[str, str], constants: dict[str, Any], pointers: list[int]) -> Any:
    """pointers: the arguments that are multiples of 16."""
    try:
        positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        hints = {(i,): [["tt.divisibility", 16]] for i in pointers}
        return ASTSource(fn=kernel, signature=signature, constexprs=positions, attrs=hints)
    except TypeError:  # Triton 3.2
        from triton.backends.compiler import AttrsDescriptor

        hints = {"arg_properties": {"tt.divisibility": pointers}, "cls": "AttrsDescriptor"}
        types = {name: kind for name, kind in signature.items() if name not in constants}
        return ASTSource(fn=kernel, signature=types, constants=constants, attrs=AttrsDescriptor.from_dict(hints))


def _describe(compiled: Any) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    instructions = Counter(re.findall(r"^\s+(?:@!?%\w+ )?([a-z]\w*(?:\.[\w:]+)+)", ptx, re.MULTILINE))
    return {"instructions": instructions, **_resources(compiled.asm["cubin"])}


def _resources(cubin: bytes) -> dict[str, int | None]:
    """Registers of a thread, and bytes of it that registers were spilled to."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {"registers": None, "spilled": None}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": numbers["REG"], "spilled": numbers["STACK"] + numbers["LOCAL"]}


def compile_variant(
    theta: torch.dtype = torch.float32,
    grad: torch.dtype = torch.float32,
    capability: int = 90,
    tasks: Task = STEP,
    offset: int = 0,
    *,
    state_dtype: StateDtype = "fp32",
    amsgrad: bool = False,
    corrected: bool = False,
    on_device: bool = False,
    scale: bool = False,
    clip: bool = False,
) -> dict[str, Any]:
    """What was found of both kernels."""

    def zeros(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(offset + 64, dtype=dtype)[offset:]

    parameter = zeros(theta)
    time = torch.ones(()) if on_device else 1.0
    of_m, of_v = storage_of(state_dtype, torch.float32)
    maximum = zeros(of_v) if amsgrad else None
    update = Update(GROUP, parameter, parameter, zeros(grad), zeros(of_m), zeros(of_v), maximum, time)
    update.weight_correction = zeros(STORAGE) if corrected else None
    kernels = {name: Compiler(getattr(triton_kernels, name), capability) for name in ("step_chunk", "add_chunks")}
    for name, kernel in kernels.items():
        setattr(triton_kernels, name, kernel)
    one = torch.ones(())
    gpu.advance([update], tasks, scale=one if scale else None, clip_factor=one if clip else None)
    for name, kernel in kernels.items():
        setattr(triton_kernels, name, kernel.kernel)
    return {name: kernel.found for name, kernel in kernels.items()}


if __name__ == "__main__":
    json.dump({name: compile_variant(**options) for name, options in VARIANTS.items()}, sys.stdout)
