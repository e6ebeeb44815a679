"""Where a parameter stands: what the decisions about its label look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from hf_pdyn.grouping.names import (
    TRANSPARENT,
    TUNER_KEY,
    adapter_start,
    core_path,
    own_segments,
)

_TO_BASE_LAYER = ("base_layer", "original_module", "token_adapter", *TRANSPARENT)


class Place(NamedTuple):
    """A module and the attribute under which its parent holds it."""

    attribute: str
    module: nn.Module


@dataclass(frozen=True)
class Site:
    """A trainable parameter in its model.

    Attributes:
        name: as `named_parameters()` gives it.
        tensor: the name that the owner has for it: `weight`, `cls_token`, or an adapter's (`ia3_l`).
        adapter: the attribute of PEFT's layer that holds it (`lora_A`), if any.
        owner: the module that holds the tensor.
        host: the module that the tensor serves: the owner, or for adapters what they adapt.
        places: from below the unwrapped model down to the host, wrappers left out.
        core: the unwrapped model.
        in_core: whether it is a part of that (PEFT's prompt encoders are not).
    """

    name: str
    tensor: str
    adapter: str | None
    owner: nn.Module
    host: nn.Module
    places: tuple[Place, ...]
    core: nn.Module
    in_core: bool


def sites(model: nn.Module) -> Iterator[Site]:
    """The site of every trainable parameter, in the order of `named_parameters()`."""
    modules = dict(model.named_modules(remove_duplicate=False))
    prefix = core_path(model)
    core = modules[".".join(prefix)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _site(name, modules, prefix, core)


def _site(name: str, modules: dict[str, nn.Module], prefix: tuple[str, ...], core: nn.Module) -> Site:
    segments = name.split(".")
    in_core = tuple(segments[: len(prefix)]) == prefix
    start = len(prefix) if in_core else 0
    stop = max(adapter_start(segments), start)
    places = tuple(
        Place(segments[i], _inside(modules[".".join(segments[: i + 1])], TRANSPARENT))
        for i in own_segments(segments)
        if start <= i < stop
    )
    adapter = segments[stop] if TUNER_KEY.fullmatch(segments[stop]) else None
    if segments[stop] == "token_adapter":
        adapter = "trainable_tokens_delta"
    owner = modules[".".join(segments[:-1])]
    host = modules[".".join(segments[:stop])]
    return Site(
        name=name,
        tensor=_tensor_name(segments, stop, owner),
        adapter=adapter,
        owner=owner,
        host=_inside(host, _TO_BASE_LAYER) if adapter else host,
        places=places,
        core=core,
        in_core=in_core,
    )


def _tensor_name(segments: list[str], stop: int, owner: nn.Module) -> str:
    last = segments[-1]
    if segments[stop] == "parametrizations":
        tensor = segments[stop + 1]
        # original0 of torch's weight_norm is the magnitude that the older hook named weight_g.
        is_weight_norm = any(type(child).__name__ == "_WeightNorm" for child in owner.children())
        return f"{tensor}_g" if is_weight_norm and last == "original0" else tensor
    is_adapters_own = stop < len(segments) - 1 and last not in ("weight", "bias")
    return segments[stop] if is_adapters_own else last


def _inside(module: nn.Module, attributes: tuple[str, ...]) -> nn.Module:
    """What is left of `module` after following `attributes` for as long as it has one of them."""
    while True:
        # PEFT's TrainableTokensWrapper registers original_module as None.
        children = (module._modules.get(attribute) for attribute in attributes)
        inner = next((child for child in children if child is not None), None)
        if inner is None:
            return module
        module = inner
