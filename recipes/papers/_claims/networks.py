"""BatchNorm networks for images."""

from dataclasses import dataclass

from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification


@dataclass(frozen=True)
class ResNetSize:
    """Channels and blocks of every stage."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]


RESNET18 = ResNetSize((64, 128, 256, 512), (2, 2, 2, 2))
SMALL = ResNetSize((16, 32), (1, 1))


def resnet(size: ResNetSize, channels: int, classes: int) -> ResNetForImageClassification:
    """A ResNet of basic blocks with the usual stem for small images: a 3 x 3 convolution, no pooling."""
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=size.widths[0],
        hidden_sizes=list(size.widths),
        depths=list(size.blocks),
        layer_type="basic",
        num_labels=classes,
    )
    model = ResNetForImageClassification(config)
    stem = nn.Conv2d(channels, size.widths[0], kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.resnet.embedder.embedder.convolution = stem
    model.resnet.embedder.pooler = nn.Identity()
    return model
