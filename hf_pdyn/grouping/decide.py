"""The decisions about one parameter: tables of types and patterns, and the functions that read them."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hf_pdyn.grouping.site import Place, Site

_NORM_TYPES = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)  # _NormBase: Batch, Sync, Instance
_NORM_CLASS = re.compile(r"(Norm(Gated|PerHead|1P|Act|Activation)?(\d[dD])?|GRN)$")
_LAYER_SCALE_CLASS = re.compile(r"Layer_?Scale$")
_EMBEDDING_TYPES = (nn.Embedding, nn.EmbeddingBag)

# Tensors by name. "bias" may stand inside: Swin's relative_position_bias_table, an LSTM's bias_ih_l0.
_BIAS = re.compile(r"(^|_)bias(es)?(_|$)|^sinks$")
_SCALE = re.compile(r"(^|_)(gamma|beta)(_?\d)?$|^lambda_?\d$|(^|_)layer_?scale|(^|_)scal(es?|ing)$|^temperature$")
_TOKEN = re.compile(
    r"(^|_)tokens?$|^image_newline$"
    r"|(^|_)(cls|class|mask|masked_spec|pos|position|positional|level|seg|temporal)"
    r"_emb(ed|eds|edding|eddings)?(_|$)"
)
_MAGNITUDES = ("lora_magnitude_vector", "weight_g")
_IA3 = "ia3_l"
_LORA = re.compile(r"lora_(?:embedding_)?([AB])")

_HEADS = frozenset(("classifier", "score", "lm_head", "fc", "head", "heads", "qa_outputs", "classification_head"))

# A whole attention or mlp, by attribute or class. Attention goes first: Qwen2MoeAttention is one. "Moe"
# counts at the end of a class name only: Qwen3MoeDecoderLayer is not an mlp.
_ATTENTION_ATTRIBUTE = re.compile(r"attn|attention|^relative_position_bias$", re.IGNORECASE)
_ATTENTION_CLASS = re.compile(r"Attention|Attn")
_MLP_ATTRIBUTE = re.compile(
    r"(^|_)(mlp|ff|ffn|feed_?forward|moe|experts?)(_|\d|$)|^intermediate$|^densereludense$",
    re.IGNORECASE,
)
_MLP_CLASS = re.compile(
    r"M(LP|lp)|FeedForward|FFN|[a-z]FF$|Intermediate$|Dense(Gated)?ActDense"
    r"|M(oE|oe)(Block|Layer)?$|Experts?$"
)

# A projection that stands in its layer directly, as in OPT and ConvNeXt.
_MLP_PROJECTION = re.compile(
    r"(fc|pwconv|linear|lin)_?[12]|c_fc|fc_(in|out)|(gate|up|down|gate_up)_proj|wi(_\d)?"
    r"|dense_(h_to_4h|4h_to_h)"
)
_ATTENTION_PROJECTION = re.compile(r"[qkv]_(proj|lin)|qkv(_proj)?|query|key|value|query_key_value|c_attn")


def pathway_of(site: Site) -> str:
    """`weight` or `bias_like` (IAD Table 1)."""
    if _BIAS.search(site.tensor) or (site.adapter or site.tensor) in (*_MAGNITUDES, _IA3):
        return "bias_like"
    if site.adapter is not None:
        return "weight"
    calibrates = is_norm(site.owner) or _LAYER_SCALE_CLASS.search(type(site.owner).__name__)
    if calibrates or _SCALE.search(site.tensor) or _is_token(site):
        return "bias_like"
    return "weight"


def component_of(site: Site) -> str:
    """One of COMPONENTS: the first that holds, in the order of `label_parameters`' table."""
    if lora := _LORA.fullmatch(site.adapter or site.tensor):
        return f"lora_{lora[1]}"
    if is_norm(site.owner):
        return "norm"
    if site.adapter == _IA3:
        return _block_of(site) or "other"
    if isinstance(site.host, _ConvNd):
        return "conv"
    if isinstance(site.host, _EMBEDDING_TYPES) or _is_token(site):
        return "embedding"
    if _is_head(site):
        return "head"
    return _block_of(site) or "other"


def is_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation, by type or by the name of its class."""
    return isinstance(module, _NORM_TYPES) or bool(_NORM_CLASS.search(type(module).__name__))


def _is_token(site: Site) -> bool:
    return site.adapter is None and bool(_TOKEN.search(site.tensor))


def _is_head(site: Site) -> bool:
    if not site.in_core:
        return False
    attributes = [*(place.attribute for place in site.places), site.tensor]
    modules = [site.core, *(place.module for place in site.places)]
    # The model may be a part of the user's own, so any of the enclosing modules can have a base model.
    for module, attribute in zip(modules, attributes, strict=True):
        base = getattr(type(module), "base_model_prefix", None)
        if base in module._modules and attribute != base:
            return True
    if getattr(type(site.core), "base_model_prefix", None) in site.core._modules:
        return False
    output = _output_embeddings(site.core)
    return attributes[0] in _HEADS or any(module is output for module in modules[1:])


def _output_embeddings(core: nn.Module) -> object:
    getter = getattr(type(core), "get_output_embeddings", None)
    try:
        return getter(core) if getter else None
    except (
        AttributeError,
        NotImplementedError,
    ):  # of models that inherit the method and have no such head
        return None


def _block_of(site: Site) -> str | None:
    """`attention` or `mlp`: the nearest enclosing module that is one, else the host by its own name."""
    modules = [site.core, *(place.module for place in site.places)]
    for place, parent in zip(reversed(site.places), reversed(modules[:-1]), strict=True):
        if kind := _kind_of(place, parent):
            return kind
    own = site.places[-1].attribute if site.places else ""
    if _MLP_PROJECTION.fullmatch(own):
        return "mlp"
    return "attention" if _ATTENTION_PROJECTION.fullmatch(own) else None


def _kind_of(place: Place, parent: nn.Module) -> str | None:
    class_name = type(place.module).__name__
    if _ATTENTION_ATTRIBUTE.search(place.attribute) or _ATTENTION_CLASS.search(class_name):
        return "attention"
    if _MLP_ATTRIBUTE.search(place.attribute) or _MLP_CLASS.search(class_name):
        return "mlp"
    # BertOutput is the second half of the mlp that BertIntermediate begins; BertSelfOutput is not.
    if place.attribute == "output" and "intermediate" in parent._modules:
        return "mlp"
    return None
