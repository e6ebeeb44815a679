"""Layers of parameters, also where there are too many to keep apart."""

from hf_pdyn.grouping.layer_names import LayerNames

NAMES = [
    f"model.layers.{layer}.{rest}"
    for layer in range(3)
    for rest in (
        "self_attn.q_proj.weight",
        *(f"mlp.experts.{i}.{side}.weight" for i in range(40) for side in ("up", "down")),
    )
]


def test_few_layers_are_themselves() -> None:
    layers = LayerNames(NAMES)
    assert layers.joined is None
    assert layers.of("model.layers.1.mlp.experts.7.up.weight") == "model.layers.1.mlp.experts.7.up"


def test_many_layers_are_joined_by_the_beginning_of_their_names() -> None:
    layers = LayerNames(NAMES, most=10)
    assert {layers.of(name) for name in NAMES} == {
        f"model.layers.{layer}.{rest}" for layer in range(3) for rest in ("self_attn.q_proj", "mlp.experts")
    }
    assert layers.joined == (
        "243 layers are taken as 6, by the first 5 segments of their names: model.layers.0.mlp.experts has 80 of them"
    )


def test_one_segment_fewer_only_where_it_must_be() -> None:
    assert LayerNames(NAMES, most=130).of("model.layers.1.mlp.experts.7.up.weight") == "model.layers.1.mlp.experts.7"


def test_layers_without_a_common_beginning_are_the_model() -> None:
    layers = LayerNames([f"p{i}.weight" for i in range(9)], most=4)
    assert layers.of("p3.weight") == "" and layers.joined is not None and "the model has 9 of them" in layers.joined
