"""Two labels for every trainable parameter: its pathway and its component.

Names come last: the owning module's type decides where it can, because names mislead (GPT-2's `c_proj` is
in attention and in the MLP, its `ln_1` holds no "norm"). Shapes never decide: FSDP flattens them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import nn

from hf_pdyn.common.errors import did_you_mean, nearest, shortened
from hf_pdyn.common.label_names import COMPONENTS, PATHWAYS
from hf_pdyn.common.patterns import NamePattern
from hf_pdyn.grouping.decide import component_of, pathway_of
from hf_pdyn.grouping.names import canonical_name
from hf_pdyn.grouping.site import sites


class Label(NamedTuple):
    """What a parameter does (`pathway`, IAD Table 1) and where it stands (`component`).

    Example:
        >>> Label.parse("bias_like/norm").component
        'norm'
    """

    pathway: str
    component: str

    def __str__(self) -> str:
        return f"{self.pathway}/{self.component}"

    @classmethod
    def parse(cls, text: str) -> Label:
        """The label written as `pathway/component`; ValueError names what is allowed and what is nearest."""
        pathway, slash, component = text.partition("/")
        if not slash:
            raise ValueError(f"A label must be 'pathway/component', such as 'bias_like/norm', got {text!r}. {_ALLOWED}")
        _check("pathway", pathway, PATHWAYS, text)
        _check("component", component, COMPONENTS, text)
        return cls(pathway, component)


_ALLOWED = f"Pathways are {', '.join(PATHWAYS)}; components are {', '.join(COMPONENTS)}."

Rule = tuple[str, Label | str]
"""A regular expression that is searched in parameter names, and the label of what it finds."""


def label_parameters(model: nn.Module, rules: Sequence[Rule] = ()) -> dict[str, Label]:
    r"""A label for exactly the trainable parameters of `model`, by their raw names and in their order.

    The pathway follows Table 1 of *Information allocation dynamics* (IAD, section 3.5), continued for what
    the table leaves open:

    ============  =====================================================================================
    bias_like     biases (`bias`, `q_bias`, `in_proj_bias`, `lora_B.default.bias`, relative position
                  bias tables that are raw tensors, attention sinks); scale and shift of every
                  normalisation; magnitudes (DoRA, weight_norm); LayerScale, IA3 vectors, `logit_scale`
                  and other raw scales; raw additive tokens (`cls_token`, ViT's position embeddings)
    weight        everything else: Linear, Conv, GPT-2's Conv1D, attention, MLP and expert matrices;
                  `nn.Embedding` tables, also of positions, T5's relative bias and PEFT's virtual
                  tokens; LoRA A and B, as well as what other adapters multiply (AdaLoRA's E, VeRA's
                  vectors); Mamba's A_log and D
    ============  =====================================================================================

    The component is the first of these that holds:

    =============  =====================================================================================
    lora_A/lora_B  the tensor is (a bias of) such a matrix, whatever it adapts
    norm           owned by a normalisation
    conv           owned by, or a DoRA magnitude of, a `torch.nn` convolution (not GPT-2's Conv1D)
    embedding      the same for an `nn.Embedding`; or an additive token
    head           outside the base model of a PreTrainedModel (so BERT's pooler is not), in the output
                   embeddings, or under a usual head's name at the top of another model
    attention,     the nearest enclosing module that is one, by attribute or class name; else the
    mlp            owner's own name (`fc1`, `gate_proj`, `q_proj`), as in OPT and ConvNeXt
    other          the rest: poolers, state-space mixers, LayerScale between blocks, `logit_scale`
    =============  =====================================================================================

    LayerScale and IA3 are attention or mlp where they stand inside one, and other elsewhere.

    Args:
        model: wrapped or not (DDP, FSDP, torch.compile, PEFT). Tied parameters count once, under their
            first name.
        rules: `(regex, label)` pairs that go before all of the above. The first that is found in the canonical or
            the raw name, anywhere in it, wins.

    Raises:
        ValueError: for a rule with a regex that is invalid or takes too long, with an invalid label, or that matches
            no trainable parameter; for FSDP's flat parameters, which mix every label in one tensor.

    Example:
        >>> labels = label_parameters(model)
        >>> str(labels["transformer.h.0.ln_1.weight"]), str(labels["transformer.h.0.attn.c_attn.weight"])
        ('bias_like/norm', 'weight/attention')
        >>> labels = label_parameters(model, rules=[(r"\.wpe\.", "bias_like/embedding")])
        >>> str(labels["transformer.wpe.weight"])
        'bias_like/embedding'
    """
    found = list(sites(model))
    # Without rules nobody asks, and it takes longer than to decide.
    names = {site.name: canonical_name(site.name, model) for site in found} if rules else {}
    compiled = [_compile(rule, names) for rule in rules]
    labels: dict[str, Label] = {}
    for site in found:
        if site.tensor == "_flat_param":
            raise ValueError(
                f"FSDP merged parameters into {site.name!r}, so none of them can have a label. "
                "Set use_orig_params: true in the FSDP configuration."
            )
        ruled = (label for pattern, label in compiled if _matches(pattern, site.name, names))
        labels[site.name] = next(ruled, None) or Label(pathway_of(site), component_of(site))
    return labels


def _compile(rule: Rule, names: dict[str, str]) -> tuple[NamePattern, Label]:
    text, label = rule
    pattern = NamePattern(text)
    label = Label.parse(str(label) if isinstance(label, Label) else label)
    if not any(_matches(pattern, raw, names) for raw in names):
        raise ValueError(
            f"Label rule {shortened(text)} matches no trainable parameter. {resembling(text, names.values())}"
        )
    return pattern, label


def _matches(pattern: NamePattern, raw: str, names: dict[str, str]) -> bool:
    return pattern.found_in(names[raw]) or pattern.found_in(raw)


def resembling(pattern: str, names: Collection[str]) -> str:
    """The names nearest to `pattern` taken as text, compared with every run of their segments."""
    if not names:
        return "The model has no trainable parameter at all."
    runs: dict[str, str] = {}
    for name in names:
        segments = name.split(".")
        for start in range(len(segments)):
            for end in range(start + 1, len(segments) + 1):
                runs.setdefault(".".join(segments[start:end]), name)
    text = re.sub(r"\\.|[^\w.]", lambda match: "." if match[0] == r"\." else "", pattern)
    near = list(dict.fromkeys(runs[run] for run in nearest(text, runs)))
    if near:
        return f"Nearest are {', '.join(near)}."
    return f"Trainable are {', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''}."


def _check(kind: str, value: str, allowed: Sequence[str], text: str) -> None:
    if value not in allowed:
        raise ValueError(f"Unknown {kind} {value!r} in label {text!r}.{did_you_mean(value, allowed)} {_ALLOWED}")
