"""Each finding by a made-up run that has it, and one that does not."""

import dataclasses
from typing import Any

import pytest

from hf_pdyn.policy.findings import FINDINGS, KINDS, Facts, Finding, equals_baseline, findings

CONFIG = {"p_min": 0.25, "p_max": 0.6, "p_step": 0.02, "threshold": 1.2}
START: dict[str, Any] = {
    "callbacks": [{"name": "TelemetryCallback"}, {"name": "PControlCallback", "config": CONFIG, "interval_steps": 10}],
    "training_arguments": {"max_grad_norm": 1.0},
    "model": {"trainable_dtypes": ["float32"]},
}
HEALTHY: dict[str, Any] = {
    "pdyn/steps": 10,
    "pdyn/D_w": 2.0,
    "pdyn/D_b": 1.0,
    "pdyn/D_w_clipped": 2.0,
    "pdyn/D_b_clipped": 1.0,
    "pdyn/update_norm/weight": 0.01,
    "pdyn/update_norm/bias_like": 0.01,
    "pdyn/param_norm/weight": 10.0,
    "pdyn/param_norm/bias_like": 10.0,
    "pdyn/eps_share/weight": 0.01,
    "pdyn/by_label/weight/lora_A/grad_share": 0.1,
    "pdyn/by_label/weight/lora_B/grad_share": 0.6,
    "pdyn/weight_decay": 0.0,
    "pdyn/a_t": 0.0,
    "pdyn/nonfinite_steps": 0,
}
P = [0.5, 0.52, 0.5, 0.48, 0.5, 0.46, 0.44, 0.46, 0.5, 0.52]


def run(*, start: dict[str, Any] | None = None, ended: bool = True, **changed: Any) -> Facts:
    """Ten records like HEALTHY, with other metrics; a list is one value a record, None leaves it out."""
    changes = {"pdyn/control/p": P, **changed}
    records = []
    for i in range(10):
        values = HEALTHY | {name: value[i] if isinstance(value, list) else value for name, value in changes.items()}
        records.append({name: value for name, value in values.items() if value is not None})
    return Facts(records, START | (start or {}), ended)


BF16 = {"model": {"trainable_dtypes": ["bfloat16"]}}
TARGET = {"callbacks": [{"name": "PTargetCallback", "config": CONFIG}]}
WITH: dict[str, list[Facts]] = {
    "nonfinite": [run(**{"pdyn/nonfinite_steps": [0] * 8 + [1, 3]})],
    "always_clipped": [run(**{"pdyn/D_w_clipped": 0.6, "pdyn/D_b_clipped": 0.3})],
    "adapter_without_gradient": [
        run(**{"pdyn/by_label/weight/lora_A/grad_share": 0.0}),
        run(**{"pdyn/by_label/weight/lora_B/grad_share": 1e-13}),
    ],
    "updates_round_to_nothing": [run(start=BF16), run(start=BF16, **{"pdyn/update_norm/weight": 0.1})],
    "eps_rules": [run(**{"pdyn/eps_share/weight": 0.7}), run(**{"pdyn/eps_share/bias_like": 0.51})],
    "no_bias_gradient": [run(**{"pdyn/D_b": None, "pdyn/D_b_clipped": None})],
    "noisy_control": [run(**{"pdyn/D_b": [1.0, 1.4] * 5})],
    "p_never_moved": [
        run(**{"pdyn/control/p": 0.5}),
        run(start=TARGET, **{"pdyn/control/p": None, "pdyn/target/p": 0.4}),
    ],
    "p_at_its_limit": [
        run(**{"pdyn/control/p": [0.5, 0.55, 0.58] + [0.6] * 7}),
        run(start=TARGET, **{"pdyn/target/p": [0.5, 0.3, 0.28] + [0.25] * 7}),
    ],
    "decay_never_off": [run(**{"pdyn/weight_decay": 0.1, "pdyn/a_t": [-0.01 * i for i in range(10)]})],
}
WITHOUT: dict[str, list[Facts]] = {
    "nonfinite": [],
    "always_clipped": [
        run(**{"pdyn/D_w_clipped": [0.6] * 8 + [2.0, 2.0], "pdyn/D_b_clipped": [0.3] * 8 + [1.0, 1.0]}),
        run(**{"pdyn/D_w_clipped": 1.999, "pdyn/D_b_clipped": 0.999}),
    ],
    "adapter_without_gradient": [
        run(**{"pdyn/by_label/weight/lora_A/grad_share": [0.0] * 5 + [0.1] * 5}),  # B = 0 at first
        run(**{"pdyn/by_label/weight/lora_A/grad_share": None, "pdyn/by_label/weight/lora_B/grad_share": None}),
    ],
    "updates_round_to_nothing": [
        run(start=BF16, **{"pdyn/update_norm/weight": 0.1, "pdyn/update_norm/bias_like": 0.1}),
        run(start=BF16 | {"training_arguments": {"optim_args": "p=0.4, weight_correction=True"}}),
        run(start=BF16 | {"training_arguments": {"optim_args": "weight_correction = yes,p=0.4"}}),
    ],
    "eps_rules": [run(**{"pdyn/eps_share/weight": [0.9] * 5 + [0.1] * 5})],
    "no_bias_gradient": [],
    "noisy_control": [
        run(**{"pdyn/D_b": [1.0, 1.05] * 5}),
        run(**{"pdyn/D_b": [2.0 - 0.1 * i for i in range(10)]}),  # a trend is no noise
        run(start={"callbacks": [START["callbacks"][1] | {"interval_steps": 1000}]}, **{"pdyn/D_b": [1.0, 1.4] * 5}),
        run(start=TARGET, **{"pdyn/D_b": [1.0, 1.4] * 5}),
    ],
    "p_never_moved": [run(ended=False, **{"pdyn/control/p": 0.5}), run(start={"callbacks": []})],
    "p_at_its_limit": [run(**{"pdyn/control/p": [0.5, 0.55, 0.6, 0.6, 0.6, 0.58, 0.56, 0.6, 0.6, 0.6]})],
    "decay_never_off": [
        run(ended=False, **{"pdyn/weight_decay": 0.1, "pdyn/a_t": -0.1}),
        run(**{"pdyn/weight_decay": [0.1] * 5 + [0.0] * 5, "pdyn/a_t": -0.1}),
        run(**{"pdyn/weight_decay": 0.1, "pdyn/a_t": -0.001}),
    ],
}


def kinds(facts: Facts) -> list[str]:
    return [finding.kind for finding in findings(facts)]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"pdyn/nonfinite_steps": [0] * 7 + [5, 15, 25]}, "Go back to a checkpoint from before"),
        ({"pdyn/nonfinite_steps": [0] * 7 + [5, 15, 24]}, "--nonfinite skip has padam leave such steps out"),
        (
            {"pdyn/nonfinite_steps": [0] * 7 + [5, 15, 25], "pdyn/skipped_steps": [0] * 7 + [5, 15, 25]},
            "Look for the batch or the layer that makes them",
        ),
    ],
)
def test_the_cure_of_nonfinite_steps_knows_whether_weights_are_lost(metrics: dict[str, Any], said: str) -> None:
    (finding,) = findings(run(**metrics))
    assert said in finding.cure and ("checkpoint" in finding.cure) == ("checkpoint" in said)


def test_the_cure_of_decay_that_never_ends_knows_of_a_target() -> None:
    metrics = {"pdyn/weight_decay": 0.1, "pdyn/a_t": -0.1}
    (without,), (missed,) = (
        findings(run(start={"callbacks": callbacks}, **metrics))
        for callbacks in ([], [{"name": "WeightDecayShutoffCallback", "at": "ratio<0.2"}])
    )
    assert "try --wd_off 0.5" in without.cure
    assert "moment or target did not come" in missed.cure
    of_labels = [{"name": "WeightDecayShutoffCallback", "at": "0.5", "labels": ["attention"]}]
    assert not findings(run(start={"callbacks": of_labels}, **metrics))


def test_the_cure_of_rounding_names_the_option() -> None:
    (found,) = findings(WITH["updates_round_to_nothing"][0])
    assert '--optim_args "weight_correction=true"' in found.cure


def test_a_healthy_run_has_none() -> None:
    assert kinds(run()) == []


@pytest.mark.parametrize("kind", FINDINGS)
def test_a_run_that_has_it(kind: str) -> None:
    assert WITH[kind]
    for facts in WITH[kind]:
        (finding,) = (found for found in findings(facts) if found.kind == kind)
        assert finding.value >= finding.threshold or kind in ("adapter_without_gradient", "updates_round_to_nothing")
        assert str(finding).endswith(".") and finding.cure in str(finding)


@pytest.mark.parametrize("kind", FINDINGS)
def test_runs_that_have_it_not(kind: str) -> None:
    for facts in (run(), *WITHOUT[kind]):
        assert kind not in kinds(facts)


@pytest.mark.parametrize(
    "kind", [kind for kind in FINDINGS if kind not in ("nonfinite", "p_never_moved", "p_at_its_limit")]
)
def test_few_records_tell_nothing(kind: str) -> None:
    for facts in WITH[kind]:
        assert kind not in kinds(dataclasses.replace(facts, records=facts.records[:3]))


@pytest.mark.parametrize("kind", FINDINGS)
@pytest.mark.parametrize("start", [{}, {"callbacks": None, "model": [], "training_arguments": 3}, {"callbacks": [1]}])
def test_a_configuration_that_cannot_be_read_is_no_error(kind: str, start: dict[str, Any]) -> None:
    for facts in WITH[kind]:
        findings(dataclasses.replace(facts, start=start))
        findings(dataclasses.replace(facts, records=[{"loss": "text"}, {}, *facts.records]))


def test_a_run_equals_its_baseline() -> None:
    losses = [3.0, 2.5, 2.21, 2.0, 1.81, 1.6]
    found = equals_baseline(losses, [value + 0.01 for value in losses])
    assert isinstance(found, Finding) and found.kind in KINDS
    assert found.value == pytest.approx(0.01)
    assert equals_baseline(losses, [value + 0.5 for value in losses]) is None
    assert equals_baseline(losses, losses[:3]) is None
    assert equals_baseline(losses, []) is None
