"""Groups by rules: the three examples of docs/groups.md on small models, and what splitting keeps."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from torch import nn

from hf_pdyn import Padam, build_param_groups
from hf_pdyn.grouping import NAME, select, split_by_rules
from hf_pdyn.integrations.transformers import stock_groups
from hf_pdyn.policy.group_rules import GroupRules
from tests.grouping import models
from tests.training import gpt2

LR = 1e-3
DOCS = Path(__file__).parents[2] / "docs" / "groups.md"


def example(number: int) -> GroupRules:
    """The n-th YAML block of the documentation."""
    return GroupRules(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)[number]))


def llava() -> nn.Module:
    vision = hf.CLIPVisionConfig(**models._VISION, intermediate_size=16)
    text = hf.LlamaConfig(**{**models._TEXT, "num_hidden_layers": 2})
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=10)
    return hf.LlavaForConditionalGeneration(config)


def vit() -> nn.Module:
    sizes = {**models._VISION, "num_hidden_layers": 3}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, intermediate_size=16, num_labels=3))


def by_name(model: nn.Module, rules: GroupRules) -> dict[str, dict[str, Any]]:
    """The group of every parameter, of torch's AdamW over the Trainer's groups."""
    optimizer = torch.optim.AdamW(stock_groups(model, 0.1), lr=LR)
    groups = split_by_rules(optimizer.param_groups, model, rules)
    name_of = {id(param): name for name, param in model.named_parameters()}
    found = [(name_of[id(param)], group) for group in groups for param in group["params"]]
    assert sorted(name for name, _ in found) == sorted(name_of.values())  # every parameter once
    return dict(found)


def test_towers_at_learning_rates_of_their_own() -> None:
    groups = by_name(llava(), example(0))
    rates = {"vision_tower": 2e-6, "multi_modal_projector": 1e-3, "language_model": 2e-5}
    seen = set()
    for name, group in groups.items():
        for part, lr in rates.items():
            if f"{part}." in name:
                assert group["lr"] == pytest.approx(lr), name
                seen.add(part)
    assert seen == set(rates)


def test_the_embedding_s_learning_rate() -> None:
    for name, group in by_name(gpt2(), example(1)).items():
        is_embedding = "wte" in name or "wpe" in name
        assert group["lr"] == pytest.approx(0.1 * LR if is_embedding else LR)
        assert group.get(NAME) == ("embeddings" if is_embedding else None)


def test_layer_wise_decay() -> None:
    rates = {name: group["lr"] / LR for name, group in by_name(vit(), example(2)).items()}
    for name, rate in rates.items():
        layer = re.search(r"layers?\.(\d+)\.", name)
        depth = 3 - int(layer[1]) if layer else 4 if "embeddings" in name else 0
        assert rate == pytest.approx(0.75**depth), name
    assert {round(rate, 6) for rate in rates.values()} == {round(0.75**depth, 6) for depth in range(5)}


def test_the_first_rule_that_matches_wins() -> None:
    rules = GroupRules([{"name": "one", "match": "ln_1", "lr": 1}, {"name": "all", "match": ".", "lr": 2}])
    for name, group in by_name(gpt2(), rules).items():
        assert group["lr"] == (1 if "ln_1" in name else 2)


def test_weight_decay_is_for_the_weights_or_for_all_where_there_are_none() -> None:
    rules = [
        {"name": "norms", "match": "ln_", "weight_decay": 0.3},
        {"name": "h", "match": r"\.h\.", "weight_decay": 0.2},
    ]
    for name, group in by_name(gpt2(), GroupRules(rules)).items():
        expected = 0.3 if "ln_" in name else 0.1 if name.startswith("transformer.w") else 0.2
        assert group["weight_decay"] == (0.0 if name.endswith("bias") and "ln_" not in name else expected), name


def test_padam_s_labels_are_refined_and_its_p_is_pinned() -> None:
    model = gpt2()
    optimizer = Padam(build_param_groups(model, weight_decay=0.1), lr=LR)
    for group in optimizer.param_groups:
        group.update(p_pinned=False, initial_p=0.5)
    groups = split_by_rules(optimizer.param_groups, model, GroupRules([{"name": "top", "match": r"h\.1", "p": 0.25}]))
    top = select(groups, "top")
    assert {group["p"] for group in top} == {group["initial_p"] for group in top} == {0.25}
    assert all(group["p_pinned"] for group in top)
    assert all(group["p"] == 0.5 and not group["p_pinned"] for group in groups if NAME not in group)
    for group in groups:
        assert len(group["param_names"]) == len(group["params"])
        assert all(("h.1." in name) == (group.get(NAME) == "top") for name in group["param_names"])


@pytest.mark.parametrize("setting", ["p", "weight_decay"])
def test_a_rule_s_setting_is_pinned_in_an_optimizer_of_one_s_own(setting: str) -> None:
    model = gpt2()
    optimizer = Padam(model.parameters(), lr=LR, weight_decay=0.1)
    rules = GroupRules([{"name": "top", "match": r"h\.1", setting: 0.25}])
    groups = split_by_rules(optimizer.param_groups, model, rules)
    pinned = [group for group in groups if group.get(f"{setting}_pinned")]
    assert pinned == [group for group in groups if group[setting] == 0.25] != []
    assert all(group[NAME] == "top" and group[f"initial_{setting}"] == 0.25 for group in pinned)


def test_a_tensor_as_learning_rate_stays_one() -> None:
    model = gpt2()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(LR), capturable=False, foreach=False)
    rules = GroupRules([{"name": "a", "match": "wte", "lr": 0.5}, {"name": "b", "match": ".", "lr_mult": 2}])
    rates = {group[NAME]: group["lr"] for group in split_by_rules(optimizer.param_groups, model, rules)}
    assert all(isinstance(rate, torch.Tensor) for rate in rates.values())
    assert (rates["a"].item(), rates["b"].item()) == pytest.approx((0.5, 2 * LR))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"name": "a", "match": "wtee"}], "Group rule 'a' matches no trainable parameter.*Nearest are.*wte"),
        (
            [{"name": "all", "match": "."}, {"name": "late", "match": "wte"}],
            "'late' takes no parameter: all that 'wte' matches are taken by all before it.*move it up",
        ),
        ([{"name": "a", "match": ".", "p": 0.4}], "sets p, which this optimizer's groups do not have; p is for"),
        ([{"name": "a", "match": "wte", "layer": 0.9}], "has layer=0.9, but no numbered layers"),
    ],
)
def test_rules_that_cannot_be_met(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name(gpt2(), GroupRules(rules))


def test_parameters_of_another_model_are_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=LR)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) that is none of GPT2LMHeadModel's"):
        split_by_rules(optimizer.param_groups, gpt2(), GroupRules([{"name": "a", "match": "."}]))


def test_names_are_labels_that_select_knows() -> None:
    groups = [{"params": [], NAME: "tower"}]
    assert select(groups, "tower") == groups
    with pytest.raises(ValueError, match="Unknown label 'towr'. Did you mean 'tower'"):
        select(groups, "towr")
