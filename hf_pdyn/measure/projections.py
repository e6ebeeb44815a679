"""Where attention layers have the weights of their queries and keys: in layers of their own, or fused into one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_pdyn.integrations import peft
from hf_pdyn.integrations.deepspeed import full_shape
from hf_pdyn.integrations.peft import Whole
from hf_pdyn.tensors.sharding import is_dtensor

_SEPARATE = (("q_proj", "k_proj"), ("query", "key"), ("q_lin", "k_lin"), ("query_proj", "key_proj"), ("q", "k"))
_HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_KEY_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")

_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv")
"""Names of a linear layer with queries, keys and values."""
# The layout is the model's code, not the layer's name (read in transformers 5.23): classes that have another than the
# usual one of their layer's name.
_HEAD_BY_HEAD = re.compile(r"GPTNeoX|Bloom|Persimmon")
_SEPARATED = re.compile(r"Phi3|Phi4")


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix that is cut into `blocks` of equal height: in each, `count` of them from `start` on."""

    start: int
    count: int
    blocks: int = 1

    def __len__(self) -> int:
        return self.count * self.blocks

    def of(self, matrix: Tensor) -> Tensor:
        """Shape (len(self), columns)."""
        blocks = matrix.reshape(self.blocks, -1, matrix.shape[1])
        return blocks[:, self.start : self.start + self.count].flatten(0, 1)


@dataclass(frozen=True)
class Projection:
    """Rows of a linear layer's weight (out, in), with its adapters.

    attribute: the weight's name; nn.MultiheadAttention has `in_proj_weight`.
    """

    layer: nn.Module
    rows: Rows
    attribute: str = "weight"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> int:
        """The inputs of the layer."""
        own = self._own_weight()
        return full_shape(own)[0 if _is_transposed(self._base()) else 1]

    def tensors(self) -> list[Tensor]:
        """What the weight is made of."""
        loras = peft.added_loras(peft.running(self.layer))
        return [self._own_weight(), *(tensor for lora in loras for tensor in lora.tensors)]

    def weight(self, whole: Whole) -> Tensor:
        """(len(self), in), as a forward pass applies it, in float32 at least."""
        base = whole(self._own_weight())
        base = base.to(torch.promote_types(base.dtype, torch.float32))
        effective = base = base.mT if _is_transposed(self._base()) else base
        for lora in peft.added_loras(peft.running(self.layer)):
            effective = lora.apply(effective, base, whole)
        return self.rows.of(effective)

    def why_unknown(self) -> str | None:
        """Why the weight cannot be read; None where it can."""
        weight = self._own_weight()
        if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            return f"its weights are quantised ({weight.dtype})"
        if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_dtensor(weight):
            return (
                f"its weights are {type(weight).__name__}"  # such as torchao's, which report the dtype they unpack to
            )
        return peft.why_unlike_lora(peft.running(self.layer))

    def _base(self) -> nn.Module:
        return peft.base_layer(peft.running(self.layer))

    def _own_weight(self) -> Tensor:
        return getattr(self._base(), self.attribute)


def projections_of(attention: nn.Module) -> tuple[Projection, Projection] | str | None:
    """The queries' and the keys' projection of an attention layer; None where `attention` is none that is known.

    A text says why a layer that has them fused cannot be told apart. Known are pairs such as `q_proj` and `k_proj`;
    GPT-2's fused `c_attn` (with `q_attn` in cross-attention); `qkv_proj`, `Wqkv`, `qkv` and `query_key_value` of
    transformers' models; and nn.MultiheadAttention.
    """
    if isinstance(attention, nn.MultiheadAttention):
        return _of_torch(attention)
    children = {name: child for name, child in attention._modules.items() if child is not None and _is_linear(child)}
    for query_name, key_name in _SEPARATE:
        if query_name in children and key_name in children:
            return _whole(children[query_name]), _whole(children[key_name])
    name = next((name for name in _FUSED if name in children), None)
    if name is None:
        return None
    fused = children[name]
    width = len(_whole(fused))
    if "q_attn" in children:  # cross-attention: c_attn has keys and values
        return _whole(children["q_attn"]), Projection(fused, Rows(0, width // 2))
    rows = _fused_rows(attention, name, width, _whole(fused).columns)
    return rows if rows is None or isinstance(rows, str) else (Projection(fused, rows[0]), Projection(fused, rows[1]))


def head_size(attention: nn.Module) -> int | None:
    """Rows of one head; None where nothing tells."""
    return _first_int(attention, _HEAD_SIZES)


def head_count(attention: nn.Module) -> int | None:
    """Heads of queries; None where nothing tells."""
    return _first_int(attention, _HEAD_COUNTS) or _first_int(getattr(attention, "config", None), _HEAD_COUNTS)


def _fused_rows(attention: nn.Module, name: str, width: int, columns: int) -> tuple[Rows, Rows] | str | None:
    """Rows of queries and keys among `width` fused ones."""
    kind = type(attention).__name__
    heads = head_count(attention)
    unknown = f"nothing tells how {kind} lays out the {width} rows of {name}"
    if kind.startswith("Falcon"):
        return _of_falcon(attention, width) or unknown
    if kind.startswith("GPTBigCode"):
        size = head_size(attention)
        if getattr(attention, "multi_query", False) and size:
            return Rows(0, width - 2 * size), Rows(width - 2 * size, size)
        return _head_by_head(heads, width) or unknown
    if kind.startswith("CodeGen"):  # four blocks, each with queries, values and keys
        return Rows(0, width // 12, blocks=4), Rows(width // 6, width // 12, blocks=4)
    if name == "query_key_value":
        return (_HEAD_BY_HEAD.match(kind) and _head_by_head(heads, width)) or unknown
    if name == "qkv_proj" and not _SEPARATED.match(kind):
        return unknown
    key_heads = _first_int(attention, _KEY_HEAD_COUNTS) or _first_int(
        getattr(attention, "config", None), _KEY_HEAD_COUNTS
    )
    if heads and key_heads and width % (heads + 2 * key_heads) == 0:
        size = width // (heads + 2 * key_heads)
        return Rows(0, heads * size), Rows(heads * size, key_heads * size)
    if width != 3 * columns:
        return None if name == "c_attn" else unknown
    return Rows(0, width // 3), Rows(width // 3, width // 3)


def _head_by_head(heads: int | None, width: int) -> tuple[Rows, Rows] | None:
    """Each head has its queries, keys and values together."""
    if not heads or width % (3 * heads):
        return None
    size = width // (3 * heads)
    return Rows(0, size, heads), Rows(size, size, heads)


def _of_falcon(attention: nn.Module, width: int) -> tuple[Rows, Rows] | None:
    """Every key head comes behind the query heads that share it; with multi_query there is one."""
    heads, size, key_heads = (getattr(attention, name, None) for name in ("num_heads", "head_dim", "num_kv_heads"))
    if not (isinstance(heads, int) and isinstance(size, int) and isinstance(key_heads, int)):
        return None
    if not getattr(attention, "new_decoder_architecture", False) and not getattr(attention, "multi_query", False):
        return _head_by_head(heads, width)
    if width != (heads + 2 * key_heads) * size:
        return None
    shared = heads // key_heads * size
    return Rows(0, shared, key_heads), Rows(shared, size, key_heads)


def _of_torch(attention: nn.MultiheadAttention) -> tuple[Projection, Projection]:
    width = attention.embed_dim
    if attention.in_proj_weight is not None:
        queries, keys = Rows(0, width, 1), Rows(width, width, 1)
        return Projection(attention, queries, "in_proj_weight"), Projection(attention, keys, "in_proj_weight")
    names = ("q_proj_weight", "k_proj_weight")  # keys of another width than queries
    query, key = (Projection(attention, Rows(0, width), name) for name in names)
    return query, key


def _whole(layer: nn.Module) -> Projection:
    base = peft.base_layer(peft.running(layer))
    shape = full_shape(base.weight)  # type: ignore[arg-type]
    return Projection(layer, Rows(0, shape[1 if _is_transposed(base) else 0]))


def _is_linear(layer: nn.Module) -> bool:
    weight = getattr(peft.base_layer(peft.running(layer)), "weight", None)
    return isinstance(weight, Tensor) and len(full_shape(weight)) == 2


def _is_transposed(module: nn.Module) -> bool:
    """Whether its weight is (in, out): transformers' Conv1D, of GPT-2."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _first_int(owner: Any, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that is a positive number."""
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
