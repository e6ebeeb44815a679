"""Runs that differ in their seed alone are one line with a band."""

import json
from pathlib import Path

import pytest

from hf_pdyn.report.charts import sections
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.seed_charts import seed_groups
from tests.report.runs import make_run


def seeded(folder: Path, name: str, seed: int, **options: float) -> Path:
    directory = make_run(folder / f"{name}-seed={seed}", seed=seed, **options)  # type: ignore[arg-type]
    path = directory / "pdyn" / "run.json"
    noted = json.loads(path.read_text())
    noted["starts"][0]["training_arguments"] |= {"seed": seed, "output_dir": str(directory)}
    path.write_text(json.dumps(noted))
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> list[RecordedRun]:
    directories = [seeded(tmp_path, "small", seed) for seed in (1, 2, 3)]
    directories += [seeded(tmp_path, "large", seed, learning_rate=1e-2) for seed in (1, 2)]
    return read_runs([*directories, seeded(tmp_path, "alone", 1, learning_rate=0.5)])


def test_runs_are_grouped_by_all_but_their_seed(runs: list[RecordedRun]) -> None:
    groups = seed_groups(runs)
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "small (3 seeds)": ["small-seed=1", "small-seed=2", "small-seed=3"],
        "large (2 seeds)": ["large-seed=1", "large-seed=2"],
    }


def test_a_band_spans_the_seeds(runs: list[RecordedRun]) -> None:
    (section,) = (section for section in sections(runs)[0] if section.key == "seeds")
    charts = {chart.key: chart for chart in section.charts}
    assert {"seeds-loss", "seeds-eval_loss", "seeds-update_ratio"} == charts.keys()
    rows = charts["seeds-loss"].spec["data"]["values"]
    (first,) = (row for row in rows if row["run"].startswith("small") and row["step"] == 10)
    values = sorted(run.series("loss").values[0] for run in runs[:3])
    assert (first["q05"], first["median"], first["q95"]) == pytest.approx(values, rel=1e-4)
    assert charts["seeds-loss"].spec["encoding"]["color"]["legend"] is not None


def test_without_seeds_there_is_no_section(tmp_path: Path) -> None:
    found, _ = sections(read_runs([make_run(tmp_path / name, seed=i) for i, name in enumerate("ab")]))
    assert "seeds" not in {section.key for section in found}
