"""Each benchmark runs once at its smallest size; nothing here looks at a time."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import offload, record, scale, step, table, timing
from benchmarks.opponents import OPPONENTS, is_installed
from benchmarks.shapes import SHAPES, Parameters
from hf_pdyn.measure.windows import MEASURED, QUANTITIES


@pytest.mark.parametrize("what", ["step", "trainer", "spectral"])
def test_it_runs_and_writes_what_it_found(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "found.json"
    command.main([what, "--tiny", "--device", "cpu", "--threads", "1", "--json", str(target)])
    found = json.loads(target.read_text())
    assert found["what"] == what
    assert found["versions"]["torch"] == torch.__version__
    assert "1 threads" in found["hardware"]
    assert found["rows"] and all(row["ratio"] > 0 and row["milliseconds"] > 0 for row in found["rows"])
    printed = capsys.readouterr().out
    assert printed.count("\n| tiny") == len(found["rows"])
    assert [path.name for path in target.parent.iterdir()] == ["found.json"]
    if what == "step":
        against = {row["against"] for row in found["rows"]}
        assert against == {name for name in (*OPPONENTS, "padam") if is_installed(name)}
        assert ("left out, since they are not installed" in printed) == (len(against) < len(OPPONENTS) + 1)
        assert {row["dtype"] for row in found["rows"]} == {"fp32", "bf16"}
        assert set(found["extremes"]) == {"adamw", "padam, nothing compiled", "padam, compiled"}
        assert all(values["peak_bytes"] > 1e6 for values in found["extremes"].values())


def test_very_many_tensors_in_small(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    command.main(["scale", "--tiny", "--device", "cpu", "--threads", "1", "--json", str(target)])
    found = json.loads(target.read_text())
    sizes = [row["tensors"] for row in found["rows"]]
    assert sizes[0] < sizes[1] and all(row["all_reduces"] == 1 for row in found["rows"])
    # Two steps' gradient norms and clipping, and one step's measured quantities, in float64.
    columns = found["rows"][1]["scopes"]
    assert found["rows"][1]["bytes_of_a_reading"] == 8 * (2 * (columns + 1) + len(MEASURED) * columns)
    with_all, without = found["training_with"], found["training_without"]
    assert with_all["disk"]["layers"]["rows"] > 0 and "disk" not in without
    assert found["budget"]["disk"]["layers"]["rows"] <= found["budget"]["values"]
    assert len(scale.lines(found)) > 20


def test_the_step_of_offloaded_partitions_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another AdamW in the place of DeepSpeed's, which takes minutes to compile."""
    monkeypatch.setattr(offload, "cpu_adam", lambda of: torch.optim.AdamW(of.groups(), lr=1e-5, fused=True))
    target = tmp_path / "found.json"
    command.main(["offload", "--tiny", "--device", "cpu", "--threads", "1", "--json", str(target)])
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 4 and {row["against"] for row in rows} == {"DeepSpeedCPUAdam"}
    assert all(row["ratio"] > 0 for row in rows)


def test_partitions_hold_what_the_model_does() -> None:
    partitions = offload.Partitions(SHAPES["tiny"])
    assert sum(flat.numel() for flat in partitions.flat) == sum(math.prod(shape) for shape in SHAPES["tiny"])
    assert len(partitions.pieces) == len(SHAPES["tiny"])
    before = [flat.detach().clone() for flat in partitions.flat]
    offload.padam(partitions, p=0.5, statistics=True).step()
    assert all(not torch.equal(a, b) for a, b in zip(before, partitions.flat, strict=True))


def test_a_missing_device_is_said_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        command.main(["step", "--device", "cuda"])
    assert "this torch sees none" in capsys.readouterr().err


def test_shapes_are_those_of_the_models() -> None:
    """124,439,808 is GPT-2's; transformers counts as many."""
    assert sum(math.prod(shape) for shape in SHAPES["gpt2"]) == 124_439_808
    assert 0.9e9 < sum(math.prod(shape) for shape in SHAPES["1b"]) < 1.1e9
    assert [len(SHAPES[name]) for name in ("lora24", "lora200")] == [24, 200]


def test_opponents_do_take_steps() -> None:
    for name, build in OPPONENTS.items():
        if not is_installed(name):
            continue
        model = Parameters(SHAPES["tiny"], device=torch.device("cpu"), dtype=torch.float32)
        before = [param.detach().clone() for param in model.parameters()]
        build(model).step()
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_measured_steps_are_measured() -> None:
    """Or the benchmark would compare a cheaper step."""
    model = Parameters(SHAPES["tiny"], device=torch.device("cpu"), dtype=torch.float32)
    optimizer = step.padam(p=0.37, statistics="measured")(model)
    windows = [
        cell.cell_contents for hook in optimizer._optimizer_step_post_hooks.values() for cell in hook.__closure__ or ()
    ]
    for _ in range(3):
        optimizer.step()
    reading = next(found for found in windows if hasattr(found, "read")).read()
    assert (reading.steps, reading.measured_steps) == (3, 3)
    assert set(reading.quantities) == set(QUANTITIES)


def test_interleaving_takes_turns() -> None:
    calls: list[str] = []
    pair = timing.interleaved(
        lambda: calls.append("a"), lambda: calls.append("b"), seconds=0.0, device=torch.device("cpu")
    )
    assert "".join(calls) == "ab" * (2 + pair.rounds) and pair.rounds == 5


def test_the_documents_show_the_newest_records() -> None:
    records = table.newest()
    assert all(records[what] for what in ("step", "offload", "trainer", "spectral", "scale"))
    for path, text in table.documents(records).items():
        assert path.read_text() == text, f"{path.name} is not of the newest records: python -m benchmarks.table"


def test_a_document_without_its_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the lines <!-- speed: begin -->"):
        table.insert("nothing", "speed", "")


def test_a_record_is_named_by_what_hardware_and_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    path = record.write("step", torch.device("cpu"), {"rows": []}, None)
    assert path.name.startswith("step-") and path.name.endswith(f"{json.loads(path.read_text())['date']}.json")


def test_rows_are_added_to_a_record(tmp_path: Path) -> None:
    def row(name: str, ratio: float) -> dict[str, object]:
        return {"shapes": "tiny", "dtype": "fp32", "ours": name, "against": "adamw", "ratio": ratio}

    device, target = torch.device("cpu"), str(tmp_path / "record.json")
    first = {"rows": [row("a", 1.0), row("b", 1.1)], "extremes": {"adamw": 1}}
    record.write("step", device, first, target, add=True)
    record.write("step", device, {"rows": [row("b", 1.2), row("c", 1.3)]}, target, add=True)
    found = json.loads(Path(target).read_text())
    assert found["rows"] == [row("a", 1.0), row("b", 1.2), row("c", 1.3)]
    assert found["extremes"] == {"adamw": 1}
    record.write("step", device, {"rows": []}, target)
    assert json.loads(Path(target).read_text())["rows"] == []


def test_a_record_names_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMMIT", "1234567")
    path = record.write("step", torch.device("cpu"), {"rows": []}, str(tmp_path / "record.json"))
    assert json.loads(path.read_text())["commit"] == "1234567"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(record, "FOLDER", tmp_path)  # no checkout
    assert record.commit() is None
