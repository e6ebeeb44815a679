"""Which layer a parameter serves, where a model has so many that layers are joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hf_pdyn.grouping.names import layer_of

MOST_LAYERS = 2048
"""Layers that statistics keep apart, so that neither a reading nor its rows grow with a model's tensors."""


class LayerNames:
    """The layers of a model; beyond `most` of them (MOST_LAYERS), those are one whose names begin alike.

    All names are cut to the same number of segments, the largest that leaves `most`: with 3, `h.0.mlp.experts.7` and
    `h.0.mlp.experts.8` are `h.0.mlp`.

    Attributes:
        joined: which layers are one, in words; None where none are.
    """

    def __init__(self, names: Iterable[str], most: int | None = None) -> None:
        self._layers = {name: layer_of(name) for name in names}
        layers = {layer: layer.split(".") for layer in self._layers.values()}
        self.joined: str | None = None
        most = MOST_LAYERS if most is None else most
        if len(layers) <= most:
            return
        length = max(map(len, layers.values()))
        blocks = set(layers)
        while length and len(blocks) > most:
            length -= 1
            blocks = {".".join(segments[:length]) for segments in layers.values()}
        block_of = {layer: ".".join(segments[:length]) for layer, segments in layers.items()}
        self._layers = {name: block_of[layer] for name, layer in self._layers.items()}
        largest, count = Counter(block_of.values()).most_common(1)[0]
        self.joined = (
            f"{len(layers):,} layers are taken as {len(blocks):,}, by the first {length} segments of their names: "
            f"{largest or 'the model'} has {count:,} of them"
        )

    def of(self, name: str) -> str:
        """The layer of one of the names."""
        return self._layers[name]
