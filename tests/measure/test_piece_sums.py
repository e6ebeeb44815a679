"""What a measured step sums over each piece, against float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam
from hf_pdyn.measure import piece_sums
from hf_pdyn.measure.implicit_bias import exponent
from hf_pdyn.measure.piece_sums import measured_sums
from hf_pdyn.optim.step_work import SUMS
from hf_pdyn.tensors.sharding import Piece

SHAPES = ((30, 7), (7,), (300,), (1,))
CLOSE = 1e-5
"""Float32 squares and powers, summed in float64."""

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, eps=1e-3),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=1e-2, amsgrad=True),
    "padam, p=1": lambda params: Padam(params, lr=1e-2, p=1.0, eps=1e-6),
    "padam, p=.25": lambda params: Padam(params, lr=1e-2, p=0.25, eps=1e-6),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2),
}


def stepped(make: Any) -> tuple[Any, list[nn.Parameter], dict[Tensor, Tensor]]:
    """An optimizer after two steps, and the parameters as they were before the second."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer, before = make(params), {}
    for _ in range(2):
        before = {param: param.detach().clone() for param in params}
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return optimizer, params, before


def expected(optimizer: Any, piece: Piece, before: Tensor, factor: float) -> dict[str, float]:
    grad, old, new = (
        piece.of(value).double()
        for value in (piece.holder.grad, before, piece.holder.detach())  # type: ignore[arg-type]
    )
    p, eps = exponent(optimizer, optimizer.param_groups[0])
    perturbed = (grad / factor).square() + eps
    sums = {
        "grad_sq": grad.square().sum(),
        "update_sq": (new - old).square().sum(),
        "param_sq": new.square().sum(),
        "one_norm": perturbed.sqrt().sum(),
        "numel": torch.tensor(float(grad.numel())),
    }
    if p is not None:
        sums["N_p"] = perturbed.log().sum() / 2 if p == 1 else (perturbed ** (1 - p)).sum() / (2 * (1 - p))
    state = optimizer.state[piece.holder]
    v = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if v is not None:
        sums["v_hat_sum"] = piece.of(v).double().sum() / (1 - 0.999 ** float(state["step"]))
    return {name: value.item() for name, value in sums.items()}


@pytest.mark.parametrize("at_once", [1, 250, 2**16])
@pytest.mark.parametrize("factor", [None, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sums_are_those_of_each_piece(
    name: str, factor: float | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pieces share operations; of gradients before clipping where that is asked."""
    monkeypatch.setattr(piece_sums, "_ON_CPU", at_once)
    optimizer, params, before = stepped(OPTIMIZERS[name])
    pieces = [*map(Piece, params[:2]), Piece(params[2], 10, 200), Piece(params[3])]
    wanted = [expected(optimizer, piece, before[piece.holder], factor or 1.0) for piece in pieces]
    found = measured_sums(optimizer, pieces, before, None if factor is None else torch.tensor(factor))
    for row, sums in zip(found.tolist(), wanted, strict=True):
        for column, value in zip(SUMS, row, strict=False):
            if column in sums:
                assert value == pytest.approx(sums[column], rel=CLOSE), column
            else:
                assert math.isnan(value), column


def test_without_a_copy_of_before_there_is_no_update() -> None:
    optimizer, params, _ = stepped(OPTIMIZERS["adamw"])
    found = measured_sums(optimizer, [Piece(param) for param in params], {}, None)
    assert found[:, SUMS.index("update_sq")].isnan().all()
    assert found[:, SUMS.index("param_sq")].isfinite().all()
