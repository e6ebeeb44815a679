"""Which products a model has, and that their weights are those of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from hf_pdyn.measure.attention_lora import ATTENTION, ATTENTION_HEADS, LORA, Measured, find_products
from hf_pdyn.measure.spectra import Spectrum
from tests.grouping import models

# float32 against float64; QR and svdvals round a few times more.
TOLERANCE = 1e-5


def applied(layer: nn.Module, inputs: int) -> Tensor:
    """The weight (out, in) that a linear layer applies, adapters included, by what it makes of the identity."""
    layer = layer.eval().double()
    with torch.no_grad():
        return (layer(torch.eye(inputs).double()) - layer(torch.zeros(1, inputs).double())).T


def expected_spectrum(product: Tensor) -> Spectrum | None:
    return Spectrum.of(torch.linalg.svdvals(product))


def measured(model: nn.Module) -> dict[tuple[str, str], Measured]:
    found = find_products(model)
    assert not found.unavailable
    with torch.no_grad():
        pairs = [(product, one) for product in found.products for one in product.measure(Tensor.detach)]
    for product, one in pairs:
        # Of rank r, the ratio is at most the root of r, where all singular values are alike.
        assert one.spectrum is None or one.spectrum.nuc_over_fro <= product.ranks()[one.kind] ** 0.5 * (1 + TOLERANCE)
    rows = [(product.layer, one) for product, one in pairs]
    assert len({(layer, one.part) for layer, one in rows}) == len(rows)
    return {(layer, one.part): one for layer, one in rows}


def assert_close(found: Measured, product: Tensor) -> None:
    expected = expected_spectrum(product)
    assert found.spectrum is not None and expected is not None
    for name in ("nuc_over_fro", "nuclear", "effective_rank", "stable_rank"):
        assert getattr(found.spectrum, name) == pytest.approx(getattr(expected, name), rel=TOLERANCE)


def randomized(model: nn.Module) -> nn.Module:
    """Every weight drawn anew, B and magnitudes too, large enough to matter."""
    torch.manual_seed(3)
    for param in model.parameters():
        param.data = 0.5 * torch.randn(param.shape) + (param.ndim == 1)
    return model


def llama(heads: int, key_heads: int, head_dim: int | None = None) -> nn.Module:
    config = models._TEXT | {"num_attention_heads": heads, "num_key_value_heads": key_heads, "hidden_size": 16}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config, head_dim=head_dim or 16 // heads))


def gpt2_cross_attention() -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(**models._GPT2, add_cross_attention=True)).transformer.h[0].crossattention


def gpt2_two_adapters() -> nn.Module:
    model = models.gpt2_lora()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True, lora_alpha=5))
    model.base_model.set_adapter(["default", "second"])
    return model


def gpt2_merged() -> nn.Module:
    model = randomized(models.gpt2_lora())
    model.merge_adapter()
    return model


def gpt2_saved_projection() -> nn.Module:
    model = models._lora(models.gpt2(), ["c_proj"], modules_to_save=["c_attn"])
    for param in model.get_submodule("base_model.model.transformer.h.0.attn.c_attn.modules_to_save").parameters():
        param.data += 1.0
    return model


@dataclass
class Case:
    """A model, its attention layer, and the names of its projections there and how many heads each has."""

    build: Callable[[], nn.Module]
    layer: str
    attention: Callable[[nn.Module], nn.Module]
    projections: tuple[str, str] = ("q_proj", "k_proj")
    heads: tuple[int, int] = (2, 2)
    keep_weights: bool = False

    def query_and_key(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        """(heads, rows of a head, in) of both, keys repeated for the queries that share them."""
        names = dict.fromkeys(self.projections)
        weights = {name: applied(getattr(attention, name), self.inputs(attention, name)) for name in names}
        if len(weights) == 1:
            query, key, _ = weights["c_attn"].chunk(3)
        else:
            query, key = (weights[name] for name in self.projections)
            key = key.chunk(2)[0] if self.projections[1] == "c_attn" else key
        query, key = (
            weight.reshape(heads, -1, weight.shape[1]) for weight, heads in zip((query, key), self.heads, strict=True)
        )
        return query, key.repeat_interleave(self.heads[0] // self.heads[1], dim=0)

    @staticmethod
    def inputs(attention: nn.Module, name: str) -> int:
        layer = getattr(attention, name)
        base = getattr(layer, "base_layer", None) or getattr(layer, "original_module", None) or layer
        return base.weight.shape[0 if type(base).__name__ == "Conv1D" else 1]


def gpt2_attention(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if type(module).__name__ == "GPT2Attention")


def of_class(name: str) -> Callable[[nn.Module], nn.Module]:
    return lambda model: next(module for module in model.modules() if type(module).__name__ == name)


VIT = (
    ("vit.layers.0.attention", "ViTAttention", ("q_proj", "k_proj"))
    if hasattr(hf.ViTModel(hf.ViTConfig(**models._VISION, intermediate_size=16)), "layers")
    else ("vit.encoder.layer.0.attention.attention", "ViTSelfAttention", ("query", "key"))
)
GPT2_LAYER = "transformer.h.0.attn"
FUSED = ("c_attn", "c_attn")

CASES: dict[str, Case] = {
    "gpt2": Case(models.gpt2, GPT2_LAYER, gpt2_attention, FUSED),
    "gpt2, cross-attention": Case(gpt2_cross_attention, "", gpt2_attention, ("q_attn", "c_attn")),
    "gpt2, LoRA": Case(models.gpt2_lora, GPT2_LAYER, gpt2_attention, FUSED),
    "gpt2, rsLoRA": Case(models.gpt2_rslora, GPT2_LAYER, gpt2_attention, FUSED),
    "gpt2, DoRA": Case(models.gpt2_dora, GPT2_LAYER, gpt2_attention, FUSED),
    "gpt2, two adapters": Case(gpt2_two_adapters, GPT2_LAYER, gpt2_attention, FUSED),
    "gpt2, merged LoRA": Case(gpt2_merged, GPT2_LAYER, gpt2_attention, FUSED, keep_weights=True),
    "gpt2, modules_to_save": Case(gpt2_saved_projection, GPT2_LAYER, gpt2_attention, FUSED, keep_weights=True),
    "gpt2, compiled": Case(lambda: models.wrap_by_compile(models.gpt2()), GPT2_LAYER, gpt2_attention, FUSED),
    "vit": Case(models.vit, VIT[0], of_class(VIT[1]), VIT[2]),
    "vit of transformers 4": Case(
        models.vit_of_transformers_4,
        "vit.encoder.layer.0.attention.attention",
        of_class("ViTSelfAttention"),
        ("query", "key"),
    ),
    "bert": Case(
        models.bert_classifier, "bert.encoder.layer.0.attention.self", of_class("BertSelfAttention"), ("query", "key")
    ),
    "llama": Case(lambda: llama(4, 4), "model.layers.0.self_attn", of_class("LlamaAttention"), heads=(4, 4)),
    "llama, grouped queries": Case(
        lambda: llama(4, 2), "model.layers.0.self_attn", of_class("LlamaAttention"), heads=(4, 2)
    ),
    "llama, one key head": Case(
        lambda: llama(4, 1), "model.layers.0.self_attn", of_class("LlamaAttention"), heads=(4, 1)
    ),
    "llama, heads larger than the model": Case(
        lambda: llama(4, 2, head_dim=24), "model.layers.0.self_attn", of_class("LlamaAttention"), heads=(4, 2)
    ),
    "opt": Case(models.opt, "model.decoder.layers.0.self_attn", of_class("OPTAttention")),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_is_that_of_the_forward_pass(name: str) -> None:
    case = CASES[name]
    model = case.build() if case.keep_weights else randomized(case.build())
    if name == "vit of transformers 4":  # its modules tell no number of heads
        case.attention(model).num_attention_heads = 2
    found = measured(model)
    query, key = case.query_and_key(case.attention(model))
    assert_close(found[case.layer, "attention"], (key.mT @ query).sum(0))
    heads = [one for (layer, _), one in found.items() if layer == case.layer and one.kind == ATTENTION_HEADS]
    assert [head.part for head in heads] == [f"attention/head {i}" for i in range(case.heads[0])]
    for i, head in enumerate(heads):
        assert_close(head, key[i].T @ query[i])


LORA_MODELS: dict[str, Callable[[], nn.Module]] = {
    "Linear, transposed": models.gpt2_lora,
    "rsLoRA": models.gpt2_rslora,
    "DoRA": models.gpt2_dora,
    "a convolution and DoRA": models.vit_lora,
    "an embedding": models.gpt2_embedding_dora,
    "merged": gpt2_merged,
    "two adapters": gpt2_two_adapters,
}


@pytest.mark.parametrize("name", LORA_MODELS)
def test_lora_is_what_peft_says_it_adds(name: str) -> None:
    model = LORA_MODELS[name]()
    model = model if name == "merged" else randomized(model)
    found = {key: one for key, one in measured(model).items() if one.kind == LORA}
    layers = [(path, module) for path, module in model.named_modules() if hasattr(module, "lora_A")]
    adapters = [(path, module, adapter) for path, module in layers for adapter in module.scaling]
    assert len(found) == len(adapters) > 0
    for path, module, adapter in adapters:
        layer = path.removeprefix("base_model.model.")
        part = "lora" if len(module.scaling) == 1 else f"lora/{adapter}"
        assert_close(found[layer, part], module.get_delta_weight(adapter).detach().double().flatten(1))


def test_b_is_zero_at_the_start() -> None:
    found = [one for one in measured(models.gpt2_lora()).values() if one.kind == LORA]
    assert found and all(one.spectrum is None for one in found)


def test_adapters_that_are_switched_off_add_nothing() -> None:
    model = randomized(models.gpt2_lora())
    attention = gpt2_attention(model)
    with_adapter = measured(model)[GPT2_LAYER, "attention"]
    with model.disable_adapter():
        without = measured(model)[GPT2_LAYER, "attention"]
    query, key, _ = attention.c_attn.base_layer.weight.detach().double().T.chunk(3)
    assert_close(without, key.T @ query)
    assert with_adapter.spectrum != without.spectrum


def test_what_is_shared_counts_once() -> None:
    layer = models.gpt2().transformer.h[0]
    model = nn.ModuleList([layer, layer])
    assert len(find_products(model).products) == 1
    other = models.gpt2().transformer.h[0]
    other.attn.c_attn.weight = layer.attn.c_attn.weight
    assert len(find_products(nn.ModuleList([layer, other])).products) == 1


def test_layers_are_kept_apart() -> None:
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**(models._GPT2 | {"n_layer": 3})))
    kinds = [one.kind for one in measured(model).values()]
    assert kinds.count(ATTENTION) == 3 and kinds.count(ATTENTION_HEADS) == 6
    assert {layer for layer, _ in measured(model)} == {f"transformer.h.{i}.attn" for i in range(3)}


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_a_model_without_products(name: str) -> None:
    found = find_products(models.build(name))
    assert not found.products and not found.unavailable


class Attention(nn.Module):
    """Projections and nothing else."""

    def __init__(self, rows: int, key_rows: int, **known: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, rows), nn.Linear(8, key_rows)
        for name, value in known.items():
            setattr(self, name, value)


def quantised() -> nn.Module:
    attention = Attention(8, 8, num_heads=2)
    attention.q_proj.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return attention


class Packed(Tensor):
    """As torchao's int8 weights: it reports the dtype that it unpacks to, and refuses most operations."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        raise NotImplementedError(f"Packed has no {func}")


def packed() -> nn.Module:
    attention = Attention(8, 8, num_heads=2)
    weight = Tensor._make_wrapper_subclass(Packed, (8, 8), dtype=torch.float32)
    attention.k_proj.weight = nn.Parameter(weight, requires_grad=False)
    return attention


class Unreadable(nn.Module):
    """Attention by its children, of a kind that raises where a weight is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(2, 2), nn.Linear(2, 2)

    @property
    def head_dim(self) -> int:
        raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Attention(16, 8, head_dim=4, num_heads=2), "16 rows of Q and 8 of K are not heads of 4"),
        (lambda: Attention(12, 8, head_dim=4), "12 rows of Q and 8 of K are not heads of 4"),
        (lambda: Attention(16, 8), "nothing tells how its 16 rows of Q go with 8 of K"),
        (quantised, "its weights are quantised (torch.int8)"),
        (packed, "its weights are Packed"),
        (Unreadable, "RuntimeError: out of luck"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(build: Callable[[], nn.Module], reason: str) -> None:
    model = nn.ModuleDict({"block": build()})
    found = find_products(model)
    assert not found.products
    assert list(found.unavailable) == ["block"]
    assert found.unavailable["block"] == reason


def test_other_adapters_are_not_taken_for_lora() -> None:
    found = find_products(models.gpt2_ia3())
    assert not found.products
    (reason,) = found.unavailable.values()
    assert "PEFT's Linear changes it" in reason


def test_without_a_number_of_heads_there_is_the_whole_product() -> None:
    model = randomized(Attention(8, 8))
    (one,) = measured(model).values()
    assert_close(one, model.k_proj.weight.detach().double().T @ model.q_proj.weight.detach().double())


def test_the_largest_ranks_of_products() -> None:
    """Of GPT-2 with two heads of 4 rows each, and of adapters of ranks 2 and 3."""
    whole = find_products(models.gpt2()).products[0].ranks()
    assert whole == {ATTENTION: 8, ATTENTION_HEADS: 4}
    adapters = [product for product in find_products(gpt2_two_adapters()).products if product.name == "LoRA's B A"]
    assert adapters[0].ranks() == {LORA: 3}
    shared = find_products(llama(heads=4, key_heads=2)).products[0].ranks()
    assert shared == {ATTENTION: 8, ATTENTION_HEADS: 4}
