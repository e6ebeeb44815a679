"""Canonical names under any combination of wrappers, and of anything that may be a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hf_pdyn.grouping.names import TRANSPARENT, canonical_name, layer_of

WORDS = st.sampled_from(["transformer", "h", "0", "11", "attn", "c_attn", "mlp", "ln_1", "wte", "score"])
NAMES = st.builds(
    lambda modules, tensor: ".".join([*modules, tensor]),
    st.lists(WORDS, min_size=1, max_size=5),
    st.sampled_from(["weight", "bias"]),
)
TRAPS = ("module", "base_model", "model", "base_layer", "modules_to_save", "default", "weight", "lora_A", "ia3_l")
ANY_NAME = st.lists(st.sampled_from([*TRAPS, *TRANSPARENT, "h"]) | st.text(max_size=3), max_size=8).map(".".join)


@given(name=NAMES)
def test_a_model_s_own_names_are_canonical(name: str) -> None:
    assert canonical_name(name) == name
    assert layer_of(name) == name.rpartition(".")[0]


@given(name=NAMES, places=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(TRANSPARENT))), ddp=st.booleans())
def test_wrappers_leave_no_trace(name: str, places: list[tuple[int, str]], ddp: bool) -> None:
    segments = name.split(".")
    for place, wrapper in places:
        segments.insert(min(place, len(segments) - 1), wrapper)
    wrapped = ".".join(["module", *segments] if ddp else segments)
    assert canonical_name(wrapped) == name
    assert layer_of(wrapped) == layer_of(name)


@given(name=NAMES, adapter=st.sampled_from(["default", "task_2", "weight"]), wrapper=st.booleans())
def test_an_adapter_serves_its_layer(name: str, adapter: str, wrapper: bool) -> None:
    layer, _, tensor = name.rpartition(".")
    prefix = "base_model.model." + ("_orig_mod." if wrapper else "")
    lora = f"{prefix}{layer}.lora_A.{adapter}.weight"
    assert canonical_name(lora) == f"{layer}.lora_A.weight"
    assert layer_of(lora) == layer_of(f"{prefix}{layer}.base_layer.{tensor}") == layer
    assert canonical_name(f"{prefix}{layer}.base_layer.{tensor}") == name
    assert canonical_name(f"{prefix}{layer}.modules_to_save.{adapter}.{tensor}") == name


@given(name=ANY_NAME)
def test_any_name_only_loses_segments(name: str) -> None:
    layer_of(name)
    canonical = canonical_name(name)
    rest = iter(name.split("."))
    assert canonical == "" or all(segment in rest for segment in canonical.split("."))
