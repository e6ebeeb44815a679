"""The products of a model's weights whose spectra are worth watching: K^T Q of attention, scaling * B A of LoRA.

Attention's logits are x^T K^T Q x for the weights K and Q, (out, in) each, up to biases, 1/sqrt(d), rotary embeddings
and norms in between, which are left out here. The whole product is the sum of those of its heads. Where heads share
keys (grouped-query attention), head h of Q goes with head h // group of K in both. Adapters that a forward pass adds
are part of K and Q.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_pdyn.common.never_fatal import described
from hf_pdyn.grouping import layer_of
from hf_pdyn.integrations import peft
from hf_pdyn.integrations.peft import Whole
from hf_pdyn.measure.spectra import Spectrum, singular_values
from hf_pdyn.tensors.sharding import is_dtensor

ATTENTION, ATTENTION_HEADS, LORA = "attention", "attention_heads", "lora"

_SEPARATE = (("q_proj", "k_proj"), ("query", "key"), ("q_lin", "k_lin"), ("query_proj", "key_proj"), ("q", "k"))
_HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")


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
class Projection:
    """Rows of a linear layer's weight (out, in), with its adapters."""

    layer: nn.Module
    start: int
    stop: int

    def tensors(self) -> list[Tensor]:
        """What the weight is made of."""
        module = peft.running(self.layer)
        return [_own_weight(module), *(tensor for lora in peft.added_loras(module) for tensor in lora.tensors)]

    def weight(self, whole: Whole) -> Tensor:
        """(stop - start, in), as a forward pass applies it, in float32 at least."""
        module = peft.running(self.layer)
        base = whole(_own_weight(module))
        base = base.to(torch.promote_types(base.dtype, torch.float32))
        effective = base = base.mT if _is_transposed(peft.base_layer(module)) else base
        for lora in peft.added_loras(module):
            effective = lora.apply(effective, base, whole)
        return effective[self.start : self.stop]


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
        """Of the whole product and of one head's."""
        rows = min(projection.stop - projection.start for projection in (self.query, self.key))
        columns = _columns(self.query.layer)
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
        """Of the adapter with the largest."""
        ranks = (min(*lora.a.flatten(1).shape, lora.b.shape[0]) for lora in peft.active_loras(self.module))
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

    Attention is known by its projections: GPT-2's fused `c_attn` (with `q_attn` in cross-attention), and pairs such as
    `q_proj` and `k_proj` or `query` and `key`.
    """
    found = Found()
    seen: set[tuple[Tensor, ...]] = set()
    for path, module in model.named_modules():
        if "original_module" in path.split("."):  # its trained copy stands beside it
            continue
        layer = layer_of(f"{path}.weight")
        try:
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
    projections = _projections(module)
    if projections is not None:
        query, key = projections
        reasons = (_why_unknown(projection.layer) for projection in projections)
        yield next((reason for reason in reasons if reason), None) or _attention(layer, module, query, key)


def _projections(attention: nn.Module) -> tuple[Projection, Projection] | None:
    """Where an attention layer has its queries and keys; None where `attention` is none that is known."""
    children = {name: child for name, child in attention._modules.items() if child is not None and _is_linear(child)}
    if "c_attn" in children:
        fused = children["c_attn"]
        width = _rows(fused)
        if "q_attn" in children:  # cross-attention: c_attn has keys and values
            query = Projection(children["q_attn"], 0, _rows(children["q_attn"]))
            return query, Projection(fused, 0, width // 2)
        if width == 3 * _columns(fused):
            return Projection(fused, 0, width // 3), Projection(fused, width // 3, 2 * width // 3)
    for query_name, key_name in _SEPARATE:
        if query_name in children and key_name in children:
            query, key = (Projection(children[name], 0, _rows(children[name])) for name in (query_name, key_name))
            return query, key
    return None


def _attention(layer: str, attention: nn.Module, query: Projection, key: Projection) -> AttentionProduct | str:
    rows, key_rows = (projection.stop - projection.start for projection in (query, key))
    size = _first_int(attention, _HEAD_SIZES)
    heads = _first_int(attention, _HEAD_COUNTS) or _first_int(getattr(attention, "config", None), _HEAD_COUNTS)
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


def _why_unknown(layer: nn.Module) -> str | None:
    module = peft.running(layer)
    dtype = _own_weight(module).dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"its weights are quantised ({dtype})"
    weight = _own_weight(module)
    if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_dtensor(weight):
        return f"its weights are {type(weight).__name__}"  # such as torchao's, which report the dtype they unpack to
    return peft.why_unlike_lora(module)


def _is_linear(layer: nn.Module) -> bool:
    weight = getattr(peft.base_layer(peft.running(layer)), "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _is_transposed(module: nn.Module) -> bool:
    """Whether its weight is (in, out): transformers' Conv1D, of GPT-2."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _own_weight(module: nn.Module) -> Tensor:
    return peft.base_layer(module).weight  # type: ignore[return-value]


def _rows(layer: nn.Module) -> int:
    """The outputs of a linear layer, all of its rows."""
    base = peft.base_layer(peft.running(layer))
    return _own_weight(base).shape[1 if _is_transposed(base) else 0]


def _columns(layer: nn.Module) -> int:
    """The inputs of a linear layer."""
    base = peft.base_layer(peft.running(layer))
    return _own_weight(base).shape[0 if _is_transposed(base) else 1]


def _first_int(owner: Any, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that is a positive number."""
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
