"""The metric modules that ship with the recipes, loaded as `evaluate` loads any, with no hub."""

from pathlib import Path

import evaluate
import pytest

METRICS = Path(__file__).resolve().parents[2] / "recipes" / "metrics"


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> evaluate.EvaluationModule:
    cache = tmp_path_factory.mktemp("metrics")
    return evaluate.load(str(METRICS / "accuracy"), keep_in_memory=True, cache_dir=str(cache))


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [([0, 1, 2, 2], [0, 1, 1, 2], 0.75), ([3], [3], 1.0), ([1, 0], [0, 1], 0.0)],
)
def test_accuracy_is_the_share_of_right_predictions(
    accuracy: evaluate.EvaluationModule, predictions: list[int], references: list[int], expected: float
) -> None:
    assert accuracy.compute(predictions=predictions, references=references) == {"accuracy": expected}


def test_batches_add_up(accuracy: evaluate.EvaluationModule) -> None:
    accuracy.add_batch(predictions=[0, 0, 0], references=[0, 0, 1])
    accuracy.add_batch(predictions=[1], references=[0])
    assert accuracy.compute() == {"accuracy": 0.5}
