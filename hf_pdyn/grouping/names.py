"""Parameter names without the segments that wrappers and adapters put into them. Strings only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes under which torch.compile, FSDP1 and activation checkpointing keep the wrapped module."""

TUNER_KEY = re.compile(
    r"(poly_|supertuning_)?lora_(embedding_)?[AB]|lora_(E|diag|magnitude_vector)"
    r"|(adamss|gralora|hira|lily|peanut|vblora)_\w+|(hada|lokr)_(w|t)\d?\w*|p?vera_lambda_[bd]"
    r"|(oft|boft|deft|psoft)_(embedding_)?[RPs]|randlora_(lambda|gamma)|road_(theta|alpha)"
    r"|(ia3_l|hra_u|tinylora_v|c3a_kernel|miss_block|bone_block|shira_weight|beft_bias|unilora_theta_d)"
    r"|(fourierft|waveft)_spectrum|trainable_tokens_delta"
)
"""Attributes in which PEFT's layers (0.18 to 0.21) hold their adapters: a dict from adapter to tensors."""

_WHOLE_MODULE_KEYS = (
    "modules_to_save",
    "ln_tuning_layers",
)  # {adapter: a copy of the wrapped module}


def canonical_name(name: str, model: nn.Module | None = None) -> str:
    """`name` as the model's own code has it: without wrappers' prefixes and adapters' names.

        base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight
                      -> transformer.h.0.attn.c_attn.lora_A.weight

    Args:
        name: as `model.named_parameters()` gives it.
        model: with it, the prefix is stripped that `model`'s structure shows to be a wrapper's. Without,
            a leading `module.` or `base_model.model.` counts as one if more than `weight` or `bias` remains.

    Two adapters of one layer share their canonical names.
    """
    segments = name.split(".")
    prefix = _string_prefix(segments) if model is None else core_path(model)
    for attribute in prefix:
        if segments[0] != attribute:  # PEFT keeps prompt encoders beside the model that it wraps
            break
        segments = segments[1:]
    return ".".join(segments[i] for i in own_segments(segments))


def layer_of(name: str) -> str:
    """The canonical module that a parameter serves, the same for a weight, its bias and its adapters.

    `transformer.h.0.attn.c_attn` for that module's weight, bias, LoRA matrices and DoRA magnitude;
    the empty string for a parameter of the model itself (`logit_scale`).
    """
    segments = [s for s in canonical_name(name).split(".") if s != "original_module"]
    return ".".join(segments[: adapter_start(segments)])


def adapter_start(segments: Sequence[str]) -> int:
    """Where `segments` of a name leave the model's own modules, for an adapter or for the tensor."""
    for i, segment in enumerate(segments[:-1]):
        if segment in ("token_adapter", "parametrizations") or TUNER_KEY.fullmatch(segment):
            return i
    return len(segments) - 1


def core_path(model: nn.Module) -> tuple[str, ...]:
    """Attributes that lead from `model` through its wrappers to the model that the user wrote."""
    path: list[str] = []
    while (attribute := _wrapped_attribute(model)) is not None:
        path.append(attribute)
        model = model._modules[attribute]  # type: ignore[assignment]
    return tuple(path)


def _wrapped_attribute(model: nn.Module) -> str | None:
    children = dict(model.named_children())
    for attribute in TRANSPARENT:
        if attribute in children:
            return attribute
    if set(children) == {"module"} and not model._parameters:
        return "module"
    # PeftModel forwards unknown attributes to what it wraps, so hasattr() tells nothing about it.
    if any(base.__module__.startswith("peft.") for base in type(model).__mro__):
        return next((attribute for attribute in ("base_model", "model") if attribute in children), None)
    return None


def _string_prefix(segments: Sequence[str]) -> tuple[str, ...]:
    """The longest prefix of wrappers that leaves more than `weight` or `bias`."""
    end = 0
    while True:
        if segments[end] == "module" or segments[end] in TRANSPARENT:
            rest = segments[end + 1 :]
        elif tuple(segments[end : end + 2]) == ("base_model", "model"):
            rest = segments[end + 2 :]
        else:
            break
        if not rest or list(rest) in (["weight"], ["bias"]):
            break
        end = len(segments) - len(rest)
    return tuple(segments[:end])


def own_segments(segments: Sequence[str]) -> Iterator[int]:
    """Indices of the `segments` that are neither a wrapper's attribute nor an adapter's name."""
    rest = [i for i, segment in enumerate(segments) if segment not in TRANSPARENT]
    while rest:
        i, *rest = rest
        segment = segments[i]
        if segment == "base_layer" and rest:
            continue
        if segment in _WHOLE_MODULE_KEYS and len(rest) >= 2:
            rest = rest[1:]
            continue
        yield i
        # A ModuleDict's adapter holds tensors, a ParameterDict's is one; `lora_A.weight` names none.
        holds_adapters = TUNER_KEY.fullmatch(segment) and rest
        if holds_adapters and (len(rest) > 1 or segments[rest[0]] not in ("weight", "bias")):
            rest = rest[1:]
