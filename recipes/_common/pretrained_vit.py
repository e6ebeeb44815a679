"""The default checkpoint of the image recipe: a small ViT and its image processor, made here, with no network."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

from hf_pdyn.common import environment

from .cache import built_once
from .image_data import EMBEDDED, LabelledImages, ToPixels
from .pretraining import LoopSettings, pretrain, random_numbers_apart


@dataclass(frozen=True)
class ViTPretrainingSettings(LoopSettings):
    """Everything that decides the checkpoint, and so its place in the cache."""

    images: str = "digits-0-4"
    image_size: int = 28
    patch_size: int = 4
    hidden_size: int = 64
    n_layer: int = 4
    n_head: int = 4
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05


def vit_checkpoint(
    settings: ViTPretrainingSettings,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
) -> Path:
    """Return the directory of the checkpoint, pretraining it on the first call."""
    directory = (cache_dir or environment.cache_dir()) / f"vit-{settings.images}-{settings.fingerprint()}"
    build = functools.partial(_build, settings=settings, device=torch.device(device), show_progress=show_progress)
    return built_once(directory, build)


def _build(directory: Path, settings: ViTPretrainingSettings, device: torch.device, show_progress: bool) -> None:
    write_processor(directory, settings.image_size)
    images = EMBEDDED[settings.images]()
    pixels = _all_pixels(images.train, ToPixels(AutoImageProcessor.from_pretrained(directory)))
    labels = torch.from_numpy(images.train.labels)
    with random_numbers_apart(settings.seed, device):
        model = _new_model(settings, images.class_names).to(device)
        pretrain(
            model,
            len(labels),
            lambda rows: {"pixel_values": pixels[rows], "labels": labels[rows]},
            settings,
            show_progress,
        )
    model.save_pretrained(directory)


def write_processor(directory: Path, image_size: int) -> None:
    """Write what `AutoImageProcessor` reads: the class itself has another name where torchvision is missing."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _all_pixels(images: LabelledImages, to_pixels: ToPixels) -> torch.Tensor:
    return torch.stack([to_pixels(image) for image in images.images])


def _new_model(settings: ViTPretrainingSettings, class_names: tuple[str, ...]) -> ViTForImageClassification:
    config = ViTConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.n_layer,
        num_attention_heads=settings.n_head,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    return ViTForImageClassification(config)
