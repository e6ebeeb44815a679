"""A classifier's head and its backbone, which stand side by side in ViT, DeiT, DINOv2, ResNet."""

import copy

from transformers import AutoModelForImageClassification, PreTrainedModel

from .entry_point import RecipeError


def with_new_head(pretrained: PreTrainedModel, class_names: tuple[str, ...]) -> PreTrainedModel:
    """Return a model of the same type with the backbone of ``pretrained`` and everything else anew."""
    config = copy.deepcopy(pretrained.config)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    model = AutoModelForImageClassification.from_config(config).to(pretrained.dtype)
    head_names(model)  # refuses a model that is all backbone
    setattr(model, model.base_model_prefix, pretrained.base_model)
    return model


def head_names(model: PreTrainedModel) -> list[str]:
    """Return the children of a model that have parameters and stand beside its backbone."""
    names = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]
    if model.base_model is model or not names:
        raise RecipeError(
            "--model_name_or_path must be a model whose head stands beside its backbone, as in ViT, DeiT and DINOv2,"
            f" got {type(model).__name__}; take one of these"
        )
    return names
