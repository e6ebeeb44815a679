"""Quantities of layers: from the rows of a run to the cells of its heat maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_pdyn.common.label_names import PATHWAYS
from hf_pdyn.report.columns import encoded, known

_LAYERS_OF_A_HEAT_MAP = 1000


@dataclass(frozen=True, eq=False)
class LayerQuantity:
    """A quantity of a part as it was recorded: (n,) each, values finite. layer: where its name stands in `names`."""

    names: Sequence[str]
    layer: NDArray[np.int32]
    step: NDArray[np.int64]
    value: NDArray[np.float64]

    def at(self, steps: Sequence[int], layers: Sequence[str]) -> NDArray[np.float64]:
        """Values (layers, steps), NaN where there are none; steps ascend."""
        row_of = {layer: row for row, layer in enumerate(layers)}
        rows = np.array([row_of.get(name, -1) for name in self.names])[self.layer]
        kept = np.isin(self.step, steps) & (rows >= 0)
        found = np.full((len(layers), len(steps)), np.nan)
        found[rows[kept], np.searchsorted(steps, self.step[kept])] = self.value[kept]
        return found


def layer_quantities(table: pa.Table) -> dict[str, dict[str, LayerQuantity]]:
    """By part, pathways first, by name of the quantity."""
    table = known(table, ("part", "name", "layer", "step", "value"))
    table = table.filter(pc.is_finite(table["value"]))
    (part, parts), (name, names), (layer, layers) = (encoded(table[column]) for column in ("part", "name", "layer"))
    step, value = table["step"].to_numpy(), table["value"].to_numpy()
    found: dict[str, dict[str, LayerQuantity]] = {}
    kinds = part.astype(np.int64) * max(len(names), 1) + name
    by_kind = np.argsort(kinds, kind="stable")
    for own in np.split(by_kind, np.flatnonzero(np.diff(kinds[by_kind])) + 1) if len(kinds) else ():
        kind = kinds[own[0]]
        quantity = LayerQuantity(layers, layer[own], step[own], value[own])
        found.setdefault(parts[kind // len(names)], {})[names[kind % len(names)]] = quantity
    return {
        part: found[part] for part in sorted(found, key=lambda part: (part not in PATHWAYS, part != "weight", part))
    }


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A heat map of a quantity, or of its ratio to another: its layers from top to bottom, and all of its steps.

    left_out: how many layers it has beyond those that can be drawn.
    """

    above: LayerQuantity
    below: LayerQuantity | None
    layers: list[str]
    steps: list[int]
    left_out: int

    @classmethod
    def of(cls, above: LayerQuantity, below: LayerQuantity | None = None) -> HeatMap:
        """The map of `above`, or of `above / below` where both were recorded."""
        layers, steps = np.unique(above.layer), np.unique(above.step)
        if below is not None:
            layers, steps = np.intersect1d(layers, below.layer), np.intersect1d(steps, below.step)
        drawn = sorted((above.names[i] for i in layers[:_LAYERS_OF_A_HEAT_MAP]), key=natural)
        return cls(above, below, drawn, steps.tolist(), max(len(layers) - _LAYERS_OF_A_HEAT_MAP, 0))

    def values(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """Values (layers, steps), NaN where there are none, or none that is finite."""
        found = self.above.at(steps, self.layers)
        if self.below is not None:
            with np.errstate(all="ignore"):
                found = found / self.below.at(steps, self.layers)
        return np.where(np.isfinite(found), found, np.nan)


def short_labels(layers: Sequence[str]) -> dict[str, str]:
    """The layers' names without the parents that all of them have; a layer of the model itself keeps its name."""
    dotted = [layer.split(".") for layer in layers if "." in layer]
    shared = 0
    while dotted and all(len(parts) > shared + 1 for parts in dotted) and len({parts[shared] for parts in dotted}) == 1:
        shared += 1
    if len(dotted) < 2:
        return {layer: layer for layer in layers}
    while shared and dotted[0][shared].isdecimal() and not dotted[0][shared - 1].isdecimal():
        shared -= 1  # h.3 says more than 3
    short = {layer: ".".join(layer.split(".")[shared:]) if "." in layer else layer for layer in layers}
    return short if len(set(short.values())) == len(layers) else {layer: layer for layer in layers}


def natural(text: str) -> list[tuple[int, int | str]]:
    """A key by which h.2 comes before h.10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text)]
