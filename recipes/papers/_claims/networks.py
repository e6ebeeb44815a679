"""The networks that claims train on images."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification


@dataclass(frozen=True)
class ResNetSize:
    """Channels and blocks of every stage."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]


RESNET18 = ResNetSize((64, 128, 256, 512), (2, 2, 2, 2))
RESNET50 = ResNetSize((256, 512, 1024, 2048), (3, 4, 6, 3))
RESNET101 = ResNetSize((256, 512, 1024, 2048), (3, 4, 23, 3))
SMALL = ResNetSize((16, 32), (1, 1))


def resnet(size: ResNetSize, channels: int, classes: int, *, bottleneck: bool = False) -> ResNetForImageClassification:
    """A ResNet with the usual stem for small images: a 3 x 3 convolution, no pooling.

    bottleneck: blocks are bottlenecks, as in ResNet-50 and deeper, a quarter as wide inside; else basic ones.
    """
    width = size.widths[0] // 4 if bottleneck else size.widths[0]
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=list(size.widths),
        depths=list(size.blocks),
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=classes,
    )
    model = ResNetForImageClassification(config)
    stem = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.resnet.embedder.embedder.convolution = stem
    model.resnet.embedder.pooler = nn.Identity()
    return model


class TanhNetwork(nn.Module):
    """One hidden layer of tanh units and a softmax: as smooth as theorems ask for."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pixel_values: (N, C, H, W). labels: (N,)."""
        logits = self.classifier(self.hidden(pixel_values.flatten(1)).tanh())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
