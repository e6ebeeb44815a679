import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from papers._claims import images, networks, training
from papers._claims.linear import LinearRegression, LinearTraining, Samples, sparse_inputs, train_linear
from papers._claims.training import Optimization
from tests.recipes.cifar import write_cifar100

TINY = networks.ResNetSize((4, 8), (1, 1))
TWO_EPOCHS = Optimization(p=0.2, lr=0.1, epochs=2, batch_size=30)


@pytest.fixture(scope="module")
def few() -> images.Images:
    """60 digits to train on, 50 to test on."""
    digits = images.embedded_digits(range(10), 0.5)
    train, test = digits.train, digits.test
    return images.Images(
        10, 1, images.Pixels(train.pixels[:60], train.labels[:60]), images.Pixels(test.pixels[:50], test.labels[:50])
    )


def trained(few: images.Images, how: Optimization) -> tuple[dict[str, Any], torch.nn.Module]:
    set_seed(0)
    model = networks.resnet(TINY, few.channels, few.classes)
    return training.train(model, few, how, 0, "cpu"), model


def test_resnet_18_is_the_usual_one() -> None:
    """11,173,962 parameters for CIFAR-10: the count of the ResNet-18 that is in common use there."""
    model = networks.resnet(networks.RESNET18, 3, 10)
    assert sum(param.numel() for param in model.parameters()) == 11_173_962
    logits = model(pixel_values=torch.zeros(1, 3, 32, 32)).logits
    assert logits.shape == (1, 10)
    assert model.resnet(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 512, 4, 4)


def test_what_is_observed(few: images.Images) -> None:
    """Against losses by hand of the model that is left; float32, batches of another size."""
    result, model = trained(few, TWO_EPOCHS)
    assert all(len(curve) == 2 for curve in result["curves"].values())
    assert result["curves"]["p"] == [0.2, 0.2]
    assert result["curves"]["learning_rate"][0] > result["curves"]["learning_rate"][1]
    ratio = result["curves"]["D_w"][-1] / result["curves"]["D_b"][-1]
    assert result["curves"]["G_w_over_G_b"][-1] == pytest.approx(ratio, rel=1e-4)
    model.eval()
    for split, part in (("train", few.train), ("test", few.test)):
        with torch.no_grad():
            logits = model(pixel_values=part.pixels).logits
        losses = torch.nn.functional.cross_entropy(logits, part.labels, reduction="none").double().numpy()
        row = result["table_2"][split]
        assert row["mean"] == pytest.approx(losses.mean(), rel=1e-4)
        assert row["p95"] == pytest.approx(np.quantile(losses, 0.95), rel=1e-4)
        assert row["accuracy"] == pytest.approx(float((logits.argmax(-1) == part.labels).float().mean()), abs=1e-6)
        assert set(result["hard"][split]) == set(np.argsort(-losses)[: round(0.1 * len(losses))].tolist())
    weights = [name.removesuffix(".weight") for name, param in model.named_parameters() if param.ndim > 1]
    assert list(result["gradients"]["weight"]) == weights
    weights, biases = (np.array(list(result["gradients"][part].values())) for part in ("weight", "bias_like"))
    assert weights.shape == (7, 2)
    # The root of a sum of squared means is the mean of roots, less what the spread over steps takes.
    for part, norm in ((weights, "D_w"), (biases, "D_b")):
        together = np.sqrt(np.square(part).sum(0))
        whole = np.array(result["curves"][norm])
        assert (together <= whole * (1 + 1e-5)).all() and (together > 0.9 * whole).all()
    assert result["samples"] == {"train": len(few.train), "test": len(few.test)}


def test_the_same_seed_gives_the_same(few: images.Images) -> None:
    assert trained(few, TWO_EPOCHS)[0] == trained(few, TWO_EPOCHS)[0]


def test_learning_rate_factors_multiply_the_cosine(few: images.Images) -> None:
    factors = (0.5, 2.0)
    plain, _ = trained(few, TWO_EPOCHS)
    scaled, _ = trained(few, dataclasses.replace(TWO_EPOCHS, lr_factors=factors))
    rates = np.array([result["curves"]["learning_rate"] for result in (plain, scaled)])
    np.testing.assert_allclose(rates[1], rates[0] * np.array(factors), rtol=1e-5)  # six digits are kept


def test_p_moves_and_updates_are_told(few: images.Images) -> None:
    how = dataclasses.replace(TWO_EPOCHS, p=0.5, p_schedule="linear:0.5..0.3")
    result, model = trained(few, how)
    assert 0.5 > result["curves"]["p"][0] > result["curves"]["p"][1] >= 0.3
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert set(result["updates"]["bias_like"]) == {*norms, "classifier.1"}
    assert all(len(values) == 2 for values in result["updates"]["bias_like"].values())


def test_control_decides_at_every_epoch(few: images.Images) -> None:
    result, _ = trained(few, dataclasses.replace(TWO_EPOCHS, p=0.5, p_control=True, epochs=6))
    assert len(set(result["curves"]["p"])) > 1


def test_a_diverged_training_has_no_numbers(few: images.Images) -> None:
    result, _ = trained(few, dataclasses.replace(TWO_EPOCHS, p=0.5, lr=1e30))
    assert result["table_2"]["test"]["mean"] is None
    assert None in result["curves"]["D_w"]


def test_cifar_100_is_standardised_and_augmented(tmp_path: Path) -> None:
    write_cifar100(tmp_path, count=12)
    found = images.cifar(str(tmp_path))
    assert (found.classes, found.channels, len(found.train), len(found.test)) == (100, 3, 12, 12)
    torch.testing.assert_close(found.train.pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.train.pixels.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    drawn = torch.stack([found.train[0]["pixel_values"] for _ in range(20)])
    assert drawn.shape == (20, 3, 32, 32) and len({tuple(image.flatten().tolist()) for image in drawn}) > 10
    clean = found.train.as_they_are()
    assert torch.equal(clean[0]["pixel_values"], found.train.pixels[0]) and clean.augment is None


def test_crops_are_shifts_and_mirror_images() -> None:
    """Of an image of one bright pixel, the pixel moves by at most four; or its mirror image does."""
    image = torch.zeros(1, 8, 8)
    image[0, 4, 2] = 1.0
    torch.manual_seed(0)
    places = {tuple(spot.tolist()) for _ in range(500) for spot in images.crop_or_flip(image)[0].nonzero()}
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert rows == set(range(8)) and columns == set(range(8))
    assert all(abs(row - 4) <= 4 for row in rows)


def test_held_out_digits_are_of_every_class() -> None:
    found = images.embedded_digits(range(5, 10), 0.5)
    assert found.classes == 5 and found.train.labels.unique().tolist() == found.test.labels.unique().tolist()
    assert abs(len(found.train) - len(found.test)) <= 5


def test_sparse_inputs_are_active_as_often_as_they_should() -> None:
    """20,000 draws: three standard errors of a share are at most 0.011."""
    pi = torch.tensor([0.005, 0.1, 1.0])
    inputs = sparse_inputs(pi, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close((inputs != 0).float().mean(0), pi, atol=0.011, rtol=0)
    assert float(inputs[:, 2].std()) == pytest.approx(1.0, abs=0.02)


def test_a_linear_layer_learns_its_target() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator)
    labels = inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3.0
    model = LinearRegression(3, 1)
    how = LinearTraining(p=0.0, lr=0.2, eps=1e-12, steps=120, batch_size=64)
    trainer = train_linear(model, Samples(inputs, labels), how, 0, "cpu")
    assert trainer.state.global_step == 120
    torch.testing.assert_close(model.linear.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), atol=1e-2, rtol=0)
    assert float(model.linear.bias.detach()) == pytest.approx(3.0, abs=1e-2)
    assert math.isclose(trainer.optimizer.param_groups[0]["p"], 0.0)
