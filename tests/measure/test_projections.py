"""Fused projections: the rows taken for a head's queries and keys are those that its attention goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from hf_pdyn.measure.attention_lora import ATTENTION_HEADS, find_products
from hf_pdyn.measure.projections import projections_of

HEADS, KEY_HEADS, SIZE = 4, 2, 8
_TEXT: dict[str, Any] = {"hidden_size": HEADS * SIZE, "num_hidden_layers": 1, "num_attention_heads": HEADS}
_TEXT |= {"vocab_size": 17, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "eager"}


def phi3(key_heads: int) -> nn.Module:
    return hf.Phi3Model(hf.Phi3Config(**_TEXT, num_key_value_heads=key_heads, intermediate_size=16))


def falcon(**settings: Any) -> nn.Module:
    return hf.FalconModel(hf.FalconConfig(**_TEXT, **settings))


def bigcode(multi_query: bool) -> nn.Module:
    sizes = {"n_embd": HEADS * SIZE, "n_layer": 1, "n_head": HEADS, "n_positions": 16, "n_inner": 16, "vocab_size": 17}
    config = hf.GPTBigCodeConfig(**sizes, multi_query=multi_query, attn_implementation="eager")
    return hf.GPTBigCodeModel(config)


def codegen() -> nn.Module:
    sizes = {"n_embd": HEADS * SIZE, "n_layer": 1, "n_head": HEADS, "n_positions": 16, "vocab_size": 17}
    return hf.CodeGenModel(hf.CodeGenConfig(**sizes, rotary_dim=4, attn_implementation="eager"))


# The model, and how many heads of keys it has.
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "Phi-3": (lambda: phi3(HEADS), HEADS),
    "Phi-3, grouped queries": (lambda: phi3(KEY_HEADS), KEY_HEADS),
    "ModernBERT": (
        lambda: hf.ModernBertModel(hf.ModernBertConfig(**_TEXT, intermediate_size=16, reference_compile=False)),
        HEADS,
    ),
    "GPT-NeoX": (lambda: hf.GPTNeoXModel(hf.GPTNeoXConfig(**_TEXT, intermediate_size=16)), HEADS),
    "Bloom": (
        lambda: hf.BloomModel(
            hf.BloomConfig(
                hidden_size=HEADS * SIZE, n_layer=1, n_head=HEADS, vocab_size=17, attn_implementation="eager"
            )
        ),
        HEADS,
    ),
    "Persimmon": (
        lambda: hf.PersimmonModel(hf.PersimmonConfig(**_TEXT, intermediate_size=16, qk_layernorm=False)),
        HEADS,
    ),
    "Falcon": (lambda: falcon(multi_query=False, new_decoder_architecture=False), HEADS),
    "Falcon, one key head": (lambda: falcon(multi_query=True, new_decoder_architecture=False), 1),
    "Falcon, grouped queries": (lambda: falcon(new_decoder_architecture=True, num_kv_heads=KEY_HEADS), KEY_HEADS),
    "GPT-BigCode": (lambda: bigcode(multi_query=False), HEADS),
    "GPT-BigCode, one key head": (lambda: bigcode(multi_query=True), 1),
    "CodeGen": (codegen, HEADS),
}


def attention_maps(model: nn.Module) -> Tensor:
    """(heads, tokens, tokens) of the only layer."""
    with torch.no_grad():
        tokens = torch.arange(3, 13).unsqueeze(0)
        return model(tokens, output_attentions=True).attentions[0][0]


def without(model: nn.Module, layer: nn.Module, rows: list[int]) -> Tensor:
    """The maps with these outputs of a linear layer at zero."""
    keep = torch.ones(layer.weight.shape[1 if type(layer).__name__ == "Conv1D" else 0])
    keep[rows] = 0
    hook = layer.register_forward_hook(lambda module, inputs, output: output * keep)
    try:
        return attention_maps(model)
    finally:
        hook.remove()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_head_s_queries_and_keys_are_what_its_attention_goes_by(name: str) -> None:
    """Without its queries, or without its keys, a head attends by position alone; the other heads do as before."""
    build, key_heads = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    for param in model.parameters():
        param.data = torch.randn(param.shape) + (param.ndim == 1)
    attention, *others = [module for module in model.modules() if projections_of(module) is not None]
    assert not others
    found = projections_of(attention)
    assert found is not None and not isinstance(found, str)
    query, key = found
    assert (len(query), len(key)) == (HEADS * SIZE, key_heads * SIZE)
    width = model.get_input_embeddings().weight.shape[1]
    numbers = torch.arange(query.layer.weight.numel() // width).unsqueeze(1)
    query_rows, key_rows = (rows.of(numbers).flatten().split(SIZE) for rows in (query.rows, key.rows))
    before = attention_maps(model)
    for head in range(HEADS):
        key_head = head // (HEADS // key_heads)
        no_query = without(model, query.layer, query_rows[head].tolist())
        no_key = without(model, key.layer, key_rows[key_head].tolist())
        torch.testing.assert_close(no_query[head], no_key[head])
        assert not torch.allclose(no_query[head], before[head], atol=1e-2)
        sharing = [other for other in range(HEADS) if other // (HEADS // key_heads) == key_head]
        for other in range(HEADS):
            if other != head:
                torch.testing.assert_close(no_query[other], before[other])
            if other not in sharing:
                torch.testing.assert_close(no_key[other], before[other])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_head_has_a_spectrum(name: str) -> None:
    products = find_products(MODELS[name][0]())
    assert not products.unavailable
    (product,) = products.products
    with torch.no_grad():
        heads = [one for one in product.measure(Tensor.detach) if one.kind == ATTENTION_HEADS]
    assert len(heads) == HEADS


@pytest.mark.parametrize("widths", [{}, {"kdim": 12, "vdim": 12}], ids=["one weight", "three weights"])
def test_torch_s_multi_head_attention(widths: dict[str, int]) -> None:
    attention = nn.MultiheadAttention(HEADS * SIZE, HEADS, bias=False, batch_first=True, **widths)
    query, key = torch.randn(1, 5, HEADS * SIZE), torch.randn(1, 5, widths.get("kdim", HEADS * SIZE))
    _, maps = attention(query, key, key, average_attn_weights=False)
    found = projections_of(attention)
    assert found is not None and not isinstance(found, str)
    weights = [projection.weight(Tensor.detach).unflatten(0, (HEADS, SIZE)) for projection in found]
    logits = torch.einsum("hdi,ti,hdj,sj->hts", weights[0], query[0], weights[1], key[0]) / SIZE**0.5
    torch.testing.assert_close(logits.softmax(-1), maps[0])
    products = find_products(attention).products
    assert len(products) == 1 and products[0].ranks()[ATTENTION_HEADS] == SIZE


def test_an_unknown_layout_says_so() -> None:
    class SomeAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query_key_value, self.num_heads = nn.Linear(8, 24), 2

    found = find_products(SomeAttention())
    assert list(found.unavailable.values()) == [
        "nothing tells how SomeAttention lays out the 24 rows of query_key_value"
    ]


def test_lora_on_torch_s_attention_is_no_silent_omission() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["1"]))
    assert "adapters of nn.MultiheadAttention are not read" in find_products(adapted).unavailable.values()
