"""A reading under ZeRO-3 is one all-reduce, however many steps, layers and quantities it is of."""

import pytest

from tests.distributed.reading_table import CASES, measure, render


@pytest.mark.distributed
def test_a_reading_under_zero_3_is_one_all_reduce() -> None:
    pytest.importorskip("deepspeed")
    name = next(iter(CASES))
    ranks = measure([name])
    for rank in ranks:
        report = rank[name]
        assert report["wrapper"] == "DeepSpeedEngine"
        assert report["records"] == CASES[name]["max_steps"] / 2
        assert len(report["all_reduces"]) >= report["records"] and set(report["all_reduces"]) == {1}
    assert f"| {name} | {ranks[0][name]['parameters']:,} | 1 |" in render(ranks)
