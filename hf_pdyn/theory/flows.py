"""Fields over parameters: structures of tensors as one vector, and solutions of theta' = field(theta).

Parameters are a tensor, or dicts and tuples of tensors as `torch.func.functional_call` takes them. A field maps them to
a structure of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

Params: TypeAlias = "Tensor | Mapping[str, Params] | tuple[Params, ...]"
ParamsT = TypeVar("ParamsT", bound=Params)


def trajectory(
    field: Callable[[int, ParamsT], ParamsT], params: ParamsT, *, lrs: Sequence[float], substeps: int = 1
) -> Iterator[ParamsT]:
    """The solution of theta' = field(n, theta) on [t_n, t_n + lrs[n]], n = 0, 1, ...: theta(t_0), theta(t_1), ...

    The classical Runge-Kutta method: its error is O((h / substeps)^4), and a modified flow misses its optimizer by
    O(h^2). So one substep is enough while the field is smooth on the scale of a step. A sign-like field (small eps) is
    not smooth where a gradient vanishes.

    Example:
        trajectory(lambda n, theta: modified_flow(loss, theta, ..., steps_done=n), params, lrs=[lr] * 100)
    """

    def slope(n: int, x: Tensor) -> Tensor:
        return flatten(field(n, unflatten(x, params)))

    x = flatten(params)
    yield unflatten(x, params)
    for n, h in enumerate(lrs):
        for _ in range(substeps):
            x = _runge_kutta_step(partial(slope, n), x, h / substeps)
        yield unflatten(x, params)


def flatten(params: Params) -> Tensor:
    """All entries as one vector, detached."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in _tensors(params)])


def unflatten(vector: Tensor, like: ParamsT) -> ParamsT:
    """The inverse of `flatten`: a vector of all entries in the structure and shapes of `like`."""
    shapes = [tensor.shape for tensor in _tensors(like)]
    parts = torch.split(vector, [shape.numel() for shape in shapes])
    return _structured(like, iter([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]))


def _runge_kutta_step(f: Callable[[Tensor], Tensor], x: Tensor, h: float) -> Tensor:
    k1 = f(x)
    k2 = f(x + h / 2 * k1)
    k3 = f(x + h / 2 * k2)
    k4 = f(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _tensors(params: Params) -> list[Tensor]:
    if isinstance(params, Tensor):
        return [params]
    parts = params.values() if isinstance(params, Mapping) else params
    return [tensor for part in parts for tensor in _tensors(part)]


def _structured(like: ParamsT, tensors: Iterator[Tensor]) -> ParamsT:
    if isinstance(like, Tensor):
        return cast(ParamsT, next(tensors))
    if isinstance(like, Mapping):
        return cast(ParamsT, {name: _structured(part, tensors) for name, part in like.items()})
    return cast(ParamsT, tuple(_structured(part, tensors) for part in like))
