"""The fused step for GPUs compiles to what its speed and its accuracy rest on. No device is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the fused step for GPUs is written in Triton")

from hf_pdyn.optim.step_work import SUMS
from tests.optim.fused.compiled import VARIANTS

ROOT = Path(__file__).parents[3]

CHUNK = 2048
REGISTERS = 65536  # of a multiprocessor, since compute capability 3.7


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "tests.optim.fused.compiled"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_registers_leave_room_for_several_programs_on_a_multiprocessor(
    compiled: dict[str, Any], variant: str, record_property: Any
) -> None:
    """So that some load while others compute: four, of half the threads where moments are rounded. A measured step has
    twice the arithmetic, and registers for it."""
    found = compiled[variant]["step_chunk"]
    if found["registers"] is None:
        pytest.skip("this build of Triton brings no cuobjdump")
    record_property("registers", found["registers"])
    assert found["spilled"] == 0
    measured = variant.startswith("measured")
    assert found["threads"] == (128 if "16bit" in variant and not measured else 256)
    least = 2 if measured or variant == "unaligned" else 4
    assert REGISTERS // (found["threads"] * found["registers"]) >= least


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "unaligned"])
def test_tensors_are_loaded_and_stored_in_vectors_of_128_bits(compiled: dict[str, Any], variant: str) -> None:
    """And where moments have 8 bits, of four elements: of 64 bits, and 32. Scalars are settings."""
    found = compiled[variant]["step_chunk"]
    moved = {
        kind: {name: count for name, count in found["instructions"].items() if name.startswith(f"{kind}.global")}
        for kind in ("ld", "st")
    }
    options = VARIANTS[variant]
    of_8_bits = options.get("state_dtype") == "8_16bit"
    settings = moved["ld"].pop("ld.global.b32", 0), moved["ld"].pop("ld.global.b64", 0)
    sums = moved["st"].pop("st.global.b32", 0)
    theta, grad = (2 if "16" in str(options.get(name, "")) else 4 for name in ("theta", "grad"))
    m, v = {"fp32": (4, 4), "16bit": (2, 2), "8_16bit": (1, 2)}[options.get("state_dtype", "fp32")]
    moved_once = m + v + theta + v * options.get("amsgrad", False) + 2 * options.get("corrected", False)
    read, written = moved_once + grad, moved_once
    if variant == "matched, first pass":
        written -= theta  # and read with coupled decay only
    elif variant == "matched, second pass":
        read, written = read - grad, theta
    elements = CHUNK // found["threads"]
    codes = elements // 4 if of_8_bits else 0
    widths = {"v4.b32": 16, "v2.b32": 8}
    for kind, of_an_element in (("ld", read), ("st", written)):
        words = sum(widths[name.removeprefix(f"{kind}.global.")] * n for name, n in moved[kind].items()) + 4 * codes
        assert words == of_an_element * elements
        assert of_8_bits or moved[kind].keys() == {f"{kind}.global.v4.b32"}
    assert sum(settings) - codes <= 28
    assert sums - codes <= len(SUMS)


def test_without_alignment_nothing_is_assumed(compiled: dict[str, Any]) -> None:
    assert not any(".v" in name for name in compiled["unaligned"]["step_chunk"]["instructions"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_is_given_no_subnormal_number_flushes_them(compiled: dict[str, Any], variant: str) -> None:
    """And no logarithm is NVIDIA's approximation; exp2 and sqrt are those that the kernels' docstring counts on."""
    instructions = compiled[variant]["step_chunk"]["instructions"]
    flushing = {name for name in instructions if ".ftz" in name}
    assert flushing <= {"ex2.approx.ftz.f32", "sqrt.approx.ftz.f32", "cvt.rmi.ftz.f32.f32"}
    assert "ex2.approx.ftz.f32" in flushing
    assert not any(name.startswith("lg2") for name in instructions)
    assert "fma.rn.f32" in instructions  # on which the power's last digits rest


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_is_for_sums_over_chunks_alone(compiled: dict[str, Any], variant: str) -> None:
    """It is up to 64 times slower."""
    assert not any(name.endswith(".f64") for name in compiled[variant]["step_chunk"]["instructions"])
    if compiled[variant]["add_chunks"]:
        assert any(name.startswith("add") and name.endswith("f64") for name in add_chunks(compiled, variant))
        assert compiled[variant]["add_chunks"]["spilled"] in (0, None)


def add_chunks(compiled: dict[str, Any], variant: str) -> dict[str, int]:
    return compiled[variant]["add_chunks"]["instructions"]


@pytest.mark.parametrize(("variant", "kind"), [("bf16", "bf16"), ("bf16 on 8.0", "bf16"), ("fp16", "f16")])
def test_parameters_are_rounded_to_the_nearest(compiled: dict[str, Any], variant: str, kind: str) -> None:
    instructions = compiled[variant]["step_chunk"]["instructions"]
    roundings = [
        name for name in instructions if name.startswith("cvt") and f".{kind}" in name and name.endswith("f32")
    ]
    assert roundings and all(name.startswith("cvt.rn.") for name in roundings)
