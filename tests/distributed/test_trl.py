"""Sample losses of TRL's DPOTrainer in two processes are those of one, where TRL is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_pdyn.measure.sample_loss import read_epoch
from tests.distributed.launching import ON_CPU, ROOT, start

trl = pytest.importorskip("trl")

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("default")]


def test_two_processes_measure_the_pairs_that_one_does(tmp_path: Path) -> None:
    """Within 1e-5: gradients of two processes add in another order. The Trainer's own records have no trace of it."""
    from tests.distributed.trl_worker import train

    places = os.pathsep.join([str(ROOT), str(Path(trl.__file__).parents[1])])
    cases = {"dpo": {}}
    start("trl_worker", 2, tmp_path / "two", cases, devices={**ON_CPU, "PYTHONPATH": places})
    ranks = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text())["dpo"] for rank in range(2)]
    alone = train(tmp_path / "one", {})
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert ranks[0]["said"] == ranks[1]["said"] == []
    assert ranks[0]["logged"] == ranks[1]["logged"] != []
    assert ranks[0]["rewards"] == pytest.approx(alone["rewards"], rel=1e-4, abs=1e-6)
    for split, count in (("train", 9), ("test", 5)):
        ours, expected = read_epoch(tmp_path / "two" / "dpo", split), read_epoch(tmp_path / "one", split)
        assert ours.index.tolist() == expected.index.tolist() and len(ours.loss) == count
        assert ours.loss == pytest.approx(expected.loss, rel=1e-5)
        assert ours.correct is not None and ours.correct.tolist() == expected.correct.tolist()  # type: ignore[union-attr]
