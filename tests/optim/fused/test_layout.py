"""The columns that Python, C++ and Triton exchange are the same ones, in the same order."""

import re
from pathlib import Path

from hf_pdyn.optim import fused
from hf_pdyn.optim.fused.layout import COLUMNS
from hf_pdyn.optim.step_work import STEP_SUMS, Task

SOURCE = Path(fused.__file__).with_name("padam.cpp").read_text()


def snake_case(name: str) -> str:
    """`kVHatSum` as `v_hat_sum`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix("k")).lower()


def test_sums_of_cpp_are_the_columns_of_a_step() -> None:
    (body,) = re.findall(r"enum Sum \{(.*?), kSums\s*\};", SOURCE, re.DOTALL)
    assert [snake_case(name) for name in re.findall(r"k\w+", body)] == [name.lower() for name in STEP_SUMS]


def test_tasks_of_cpp_are_those_of_a_step() -> None:
    (body,) = re.findall(r"enum Task : int32_t \{(.*?)\};", SOURCE, re.DOTALL)
    found = {snake_case(name).upper(): int(value) for name, value in re.findall(r"(k\w+) = (\d+)", body)}
    assert found == {task.name: task.value for task in Task if task}


def test_settings_of_cpp_are_the_columns_of_the_table() -> None:
    """C++ is given lr times c_t as rate, lr times weight_decay as decay, and how to undo clipping."""
    (body,) = re.findall(r"struct Settings \{(.*?)\};", SOURCE, re.DOTALL)
    renamed = {"lr": "rate", "weight_decay": "decay"}
    assert re.findall(r"float (\w+);", body) == [*(renamed.get(name, name) for name in COLUMNS), "grad_rescale"]
