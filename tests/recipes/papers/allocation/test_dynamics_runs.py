"""A real run of each kind that claims 8 and 12 have, cut short, on scikit-learn's digits."""

import dataclasses
from typing import Any

import pytest

from papers._claims.options import Options
from papers.allocation import dynamic_p, label_p
from papers.allocation._strategies import BASELINE, run_together

SIZE = {"data": "digits", "fashion_mnist_dir": "", "data_dir": None, "train_images": 40, "test_images": 60} | {
    "pixels": 8, "width": 4, "epochs": 4, "batch_size": 20
}  # fmt: skip


@pytest.fixture
def given(options: Options) -> Options:
    return dataclasses.replace(options, own=tuple(SIZE.items()))


def of(given: Options, claim: Any, **wanted: Any) -> dict[str, Any]:
    return next(c for c in claim.configurations(given) if wanted.items() <= c.items())


def test_strategies_are_trained_together(given: Options) -> None:
    strategies = (BASELINE, "p = 0.6", "p 0.45 to 0.35", "Algorithm 1", "random signs", "lr matched to p 0.6 to 0.5")
    configurations = [of(given, dynamic_p, strategy=name, update_scale="raw", lr=3e-3) for name in strategies]
    found = dict(zip(strategies, run_together(configurations, given), strict=True))
    assert [found[name]["last_p"] for name in strategies[:3]] == [0.5, 0.6, pytest.approx(0.35)]
    assert found["p 0.45 to 0.35"]["mean_p"] == pytest.approx(0.4)
    for name in (
        "Algorithm 1",
        "random signs",
    ):  # four epochs, of which the first only observes, and none follows the last
        assert abs(found[name]["last_p"] - 0.5) <= 0.0401
    matched = found["lr matched to p 0.6 to 0.5"]
    assert matched["last_p"] == 0.5 and matched["matched_within"] < 0.2
    for result in found.values():
        assert len(result["validation_accuracy"]) == 2 and 0 <= result["test_accuracy"] <= 1
        assert 1 < result["update_centre"]["norm"] < 4
    alone = run_together([configurations[3]], given)[0]
    assert alone["validation_accuracy"] == found["Algorithm 1"]["validation_accuracy"]


def test_labels_have_a_p_of_their_own(given: Options) -> None:
    configurations = [of(given, label_p, p=0.5, p_norm=p_norm, p_bias=0.5, lr=3e-3, seed=1) for p_norm in (0.0, 0.5)]
    zero, half = label_p.run_together(configurations, given)
    assert zero.keys() == half.keys() == {*label_p.LOGS, "test_accuracy", "test_loss", "train_accuracy"}
    # Small second moments: with p = 0 normalisation moves by far less, and so less of an update is bias-like.
    assert zero["log U_w/U_b"] > half["log U_w/U_b"] + 0.5
