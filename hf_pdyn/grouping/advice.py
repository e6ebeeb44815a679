"""How to train bias-like parameters of a model that trains none, in its own names."""

from __future__ import annotations

from torch import nn

from hf_pdyn.grouping.decide import is_norm
from hf_pdyn.grouping.names import canonical_name


def how_to_train_bias_like(model: nn.Module) -> str:
    """The end of a sentence, such as `biases (bias="all"), norms (modules_to_save=["ln_1", "ln_f"]) or ...`."""
    ways = []
    if any(name.rpartition(".")[2] == "bias" for name, _ in model.named_parameters()):
        ways.append('biases (LoraConfig(bias="all"))')
    if names := norm_names(model):
        listed = ", ".join(f'"{name}"' for name in names)
        ways.append(f"norms (modules_to_save=[{listed}])")
    return f"{', '.join([*ways, ''])}or magnitudes (use_dora=True)" if ways else "magnitudes (use_dora=True)"


def norm_names(model: nn.Module) -> list[str]:
    """What PEFT's `modules_to_save` matches all normalisations by: the ends of their names, each once."""
    found = []
    for name, module in model.named_modules():
        is_copied = "original_module" in name.split(".")  # PEFT's trained copy stands beside it
        if is_norm(module) and not is_copied and next(module.parameters(recurse=False), None) is not None:
            own = canonical_name(f"{name}.weight", model).removesuffix(".weight")
            end = own.rpartition(".")[2]
            found.append(own if end.isdigit() else end)  # in a Sequential, a number ends other names too
    return list(dict.fromkeys(found))
