"""The products of a model's weights whose spectra are worth watching: K^T Q of attention, scaling * B A of LoRA.

Attention's logits are x^T K^T Q x for the weights K and Q, (out, in) each, up to biases, 1/sqrt(d), rotary embeddings
and norms in between, which are left out here. The whole product is the sum of those of its heads. Where heads share
keys (grouped-query attention), head h of Q goes with head h // group of K in both. Adapters that a forward pass adds
are part of K and Q.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from hf_pdyn.common.never_fatal import described
from hf_pdyn.grouping import layer_of
from hf_pdyn.integrations import peft
from hf_pdyn.integrations.deepspeed import full_shape
from hf_pdyn.integrations.peft import Whole
from hf_pdyn.measure.projections import Projection, head_count, head_size, projections_of
from hf_pdyn.measure.spectra import Spectrum, singular_values

ATTENTION, ATTENTION_HEADS, LORA = "attention", "attention_heads", "lora"


@dataclass(frozen=True)
class Measured:
    """One product's spectrum.

    kind: ATTENTION, ATTENTION_HEADS or LORA.
    part: `attention`, `attention/head 3`, `lora`, or `lora/NAME` where several adapters are active.
    spectrum: None where the product is zero, as B A is when LoRA starts, or not finite.
    """

    kind: str
    part: str
    spectrum: Spectrum | None


class Product(ABC):
    """A product of weights in a layer of the model, which are looked up anew at every call: wrappers replace them."""

    layer: str
    name: ClassVar[str]
    """The product's name in a warning."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What it is made of, in the same order on every process."""

    @abstractmethod
    def ranks(self) -> dict[str, int]:
        """The largest rank that each kind of product measured here can have."""

    @abstractmethod
    def measure(self, whole: Whole) -> list[Measured]:
        """Its spectra; `whole` gives all of each of `tensors()`."""


@dataclass(frozen=True)
class AttentionProduct(Product):
    """K^T Q of an attention layer, whole and of every head.

    head_size: rows of one head; None where nothing tells, which leaves the whole product.
    """

    name = "attention's K^T Q"
    layer: str
    query: Projection
    key: Projection
    head_size: int | None

    def tensors(self) -> list[Tensor]:
        """Once each, also of a fused layer."""
        return list(dict.fromkeys([*self.query.tensors(), *self.key.tensors()]))

    def ranks(self) -> dict[str, int]:
        """Ranks of the whole product and of one head's."""
        rows = min(len(projection) for projection in (self.query, self.key))
        columns = self.query.columns
        whole = {ATTENTION: min(rows, columns)}
        return whole if self.head_size is None else whole | {ATTENTION_HEADS: min(self.head_size, columns)}

    def measure(self, whole: Whole) -> list[Measured]:
        """The whole product and those of the heads, in their order."""
        query, key = self.query.weight(whole), self.key.weight(whole)
        if self.head_size is None:
            return [_whole_attention(query, key)]
        # (heads of K, heads of Q that go with each, rows of a head, in)
        key_heads = key.reshape(-1, 1, self.head_size, key.shape[1])
        query_heads = query.reshape(len(key_heads), -1, self.head_size, query.shape[1])
        values = singular_values(key_heads.mT, query_heads.mT).flatten(0, 1).cpu()
        return [
            _whole_attention(query_heads.sum(1).flatten(0, 1), key),
            *(
                Measured(ATTENTION_HEADS, f"{ATTENTION}/head {head}", Spectrum.of(of_head))
                for head, of_head in enumerate(values)
            ),
        ]


def _whole_attention(query: Tensor, key: Tensor) -> Measured:
    """K^T Q of two weights with as many rows, (rows, in) each."""
    return Measured(ATTENTION, ATTENTION, Spectrum.of(singular_values(key.mT, query.mT).cpu()))


@dataclass(frozen=True)
class LoraProduct(Product):
    """scaling * B A of every active adapter of a layer."""

    name = "LoRA's B A"
    layer: str
    module: nn.Module

    def tensors(self) -> list[Tensor]:
        """Without magnitudes, which are no factor of it."""
        return [tensor for lora in peft.active_loras(self.module) for tensor in (lora.a, lora.b)]

    def ranks(self) -> dict[str, int]:
        """The rank of the adapter with the largest."""
        shapes = ((full_shape(lora.a), full_shape(lora.b)) for lora in peft.active_loras(self.module))
        ranks = (min(a[0], math.prod(a[1:]), b[0]) for a, b in shapes)
        return {LORA: max(ranks, default=0)}

    def measure(self, whole: Whole) -> list[Measured]:
        """One spectrum an adapter."""
        loras = peft.active_loras(self.module)
        return [
            Measured(
                LORA,
                LORA if len(loras) == 1 else f"{LORA}/{lora.adapter}",
                Spectrum.of(singular_values(*lora.factors(whole)).cpu()),
            )
            for lora in loras
        ]


@dataclass
class Found:
    """The products of a model, and of layers that have one which cannot be measured, the reason by layer."""

    products: list[Product] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)


def find_products(model: nn.Module) -> Found:
    """Every attention layer and every layer with LoRA, in the order of `named_modules`, what is shared once.

    Attention is known by its projections, see `projections_of`.
    """
    found = Found()
    seen: set[tuple[Tensor, ...]] = set()
    for path, module in model.named_modules():
        if "original_module" in path.split("."):  # its trained copy stands beside it
            continue
        layer = layer_of(f"{path}.weight")
        try:
            if isinstance(module, nn.MultiheadAttention) and path.endswith("base_layer"):
                found.unavailable[layer] = "adapters of nn.MultiheadAttention are not read"
                continue
            for product in _products_of(layer, module):
                if isinstance(product, str):
                    found.unavailable[layer] = product
                elif (tensors := tuple(product.tensors())) not in seen:
                    seen.add(tensors)
                    found.products.append(product)
        except Exception as error:  # a quantised weight may refuse any operation
            found.unavailable[layer] = described(error)
    return found


def _products_of(layer: str, module: nn.Module) -> Iterator[Product | str]:
    """The products of one module, or why one cannot be measured."""
    if peft.is_lora(module):
        yield peft.why_unlike_lora(module) or LoraProduct(layer, module)
    projections = projections_of(module)
    if isinstance(projections, str):
        yield projections
    elif projections is not None:
        query, key = projections
        reasons = (projection.why_unknown() for projection in projections)
        yield next((reason for reason in reasons if reason), None) or _attention(layer, module, query, key)


def _attention(layer: str, attention: nn.Module, query: Projection, key: Projection) -> AttentionProduct | str:
    rows, key_rows = len(query), len(key)
    size, heads = head_size(attention), head_count(attention)
    if size is None and heads:
        size = rows // heads
    if size is None:
        if rows != key_rows:
            return f"nothing tells how its {rows} rows of Q go with {key_rows} of K"
        return AttentionProduct(layer, query, key, None)
    # Q's rows may hold more than queries (Qwen3-Next has gates there), and heads that do not pair up have no product.
    if rows % size or key_rows % size or (rows // size) % (key_rows // size) or rows != (heads or rows // size) * size:
        return f"{rows} rows of Q and {key_rows} of K are not heads of {size}"
    return AttentionProduct(layer, query, key, size)
