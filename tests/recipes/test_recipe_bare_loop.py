"""The training loop without a Trainer: what docs/bare_loop.md shows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import bare_loop
import pytest
import torch

from hf_pdyn.cli import main
from hf_pdyn.policy.algorithm1 import ControlConfig, ControlState, next_p

DOCUMENT = Path(__file__).parents[2] / "docs" / "bare_loop.md"


def run(folder: Path, *options: Any) -> list[dict[str, Any]]:
    sizes = ("--steps", "40", "--logging_steps", "4", "--interval", "8", "--output_dir", folder)
    return bare_loop.train(bare_loop.parse([str(option) for option in (*sizes, *options)]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def test_it_has_the_gauges_and_moves_p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = run(tmp_path)
    assert [record["step"] for record in history] == list(range(4, 41, 4))
    for record in history:
        assert record["pdyn/D_w"] > 0 and record["pdyn/D_b"] > 0 and record["pdyn/steps"] == 4
        assert record["pdyn/D_w_clipped"] ** 2 + record["pdyn/D_b_clipped"] ** 2 <= bare_loop.MAX_NORM**2 * (1 + 1e-6)
        assert record["pdyn/update_norm/weight"] > 0 and record["pdyn/implicit_bias/weight"] < 0
        assert record["pdyn/allocation/cosine_to_adam"] == pytest.approx(1, abs=0.01)
    clipped = [record for record in history if record["pdyn/D_w"] > 1.01 * record["pdyn/D_w_clipped"]]
    assert clipped  # else the test above would say nothing of D_w

    # Every other record ends an interval; its D_w and D_b are the means of two records.
    state = ControlState(p=0.5)
    for i, record in enumerate(history):
        assert record["pdyn/p"] == state.p
        if i % 2:
            norms = [(history[i - 1][name] + record[name]) / 2 for name in ("pdyn/D_w", "pdyn/D_b")]
            state = next_p(state, weight_norm=norms[0], bias_norm=norms[1], config=ControlConfig())
            assert record["pdyn/control/p"] == state.p
    assert state.interval == 5 and state.p != 0.5

    times = {record["step"]: record["pdyn/a_t"] for record in history}
    assert times[28] == pytest.approx(-28 * 3e-3 * 0.1) and times[32] == times[40] == pytest.approx(-30 * 3e-3 * 0.1)
    capsys.readouterr()
    main(["explain", str(tmp_path)])
    assert "Nothing was found that needs a word." in capsys.readouterr().out  # its records were read


@pytest.mark.parametrize("stop", [16, 22])
def test_a_resumed_loop_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    """Bit for bit, at the end of an interval and within one."""
    straight = run(tmp_path / "straight")
    run(tmp_path / "resumed", "--stop_at", stop)
    resumed = run(tmp_path / "resumed", "--resume")
    assert resumed == straight
    ours, expected = weights(tmp_path / "resumed"), weights(tmp_path / "straight")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_the_document_shows_lines_of_the_recipe() -> None:
    """Every line of its Python blocks that calls something of ours stands in the recipe."""
    recipe = {line.strip() for line in Path(bare_loop.__file__).read_text().splitlines()}
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    shown = [line for line in lines if line and not line.startswith(("#", "...", "import", "from"))]
    assert len(shown) > 10 and not [line for line in shown if line not in recipe]


def test_states_of_a_checkpoint_are_plain(tmp_path: Path) -> None:
    run(tmp_path, "--stop_at", 8)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["control"].keys() == {field.name for field in dataclasses.fields(ControlState)}
