"""Networks that are trained together, against the same ones trained by the Trainer with optim="padam"."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_pdyn import TelemetryCallback, sample_loss
from papers._claims.images import Pixels
from papers._claims.networks import ResNetSize, resnet
from papers._claims.stacked_networks import StackedNetworks, at_seed
from papers._claims.stacked_training import (
    Epochs,
    Samples,
    Training,
    cropped_or_flipped,
    hardest,
    packed,
    train_together,
    unpacked,
)

SIZE = ResNetSize((4, 8), (1, 1))
IMAGES, BATCH, CLASSES = 20, 8, 3
LAST = Epochs(epochs=2, batch_size=BATCH, measured_after=(2,))


def samples(networks: int, images: int = IMAGES, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(networks, images, 6, 6, 1, generator=generator)
    return Samples(pixels, torch.randint(CLASSES, (networks, images), generator=generator))


def stacked(seeds: list[int]) -> StackedNetworks:
    return StackedNetworks(SIZE, 1, CLASSES, seeds, "cpu")


def one(training: Training, train: Samples, test: Samples, how: Epochs = LAST) -> tuple[StackedNetworks, Any]:
    networks = stacked([training.seed])
    (result,) = train_together(networks, [training], train, test, how)
    return networks, result


def channels_first(pixels: Tensor) -> Tensor:
    return pixels.movedim(-1, -3).contiguous()


class InThatOrder(Trainer):
    """Takes the images in the order in which `train_together` does, without the last, smaller batch."""

    def _get_train_sampler(self, *_: Any) -> Any:
        generator = torch.Generator().manual_seed(self.args.seed)
        count = len(self.train_dataset)

        class Order(torch.utils.data.Sampler[int]):
            def __iter__(self) -> Iterator[int]:
                return iter(torch.randperm(count, generator=generator).tolist())

            def __len__(self) -> int:
                return count

        return Order()


def by_trainer(training: Training, train: Samples, folder: Path) -> tuple[nn.Module, list[dict[str, Any]]]:
    arguments = TrainingArguments(
        str(folder),
        optim="padam",
        optim_args=f"p={training.p},eps={training.eps},update_scale={training.update_scale}",
        learning_rate=training.lr,
        lr_scheduler_type=training.lr_scheduler,
        max_grad_norm=0.0,
        num_train_epochs=LAST.epochs,
        per_device_train_batch_size=BATCH,
        dataloader_drop_last=True,
        seed=training.seed,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = at_seed(training.seed, lambda: resnet(SIZE, 1, CLASSES))
    data = Pixels(channels_first(train.pixels[0]), train.labels[0])
    trainer = InThatOrder(model, arguments, train_dataset=data, callbacks=[TelemetryCallback(every=1)])
    trainer.train()
    return model, [record for record in trainer.state.log_history if "learning_rate" in record]


@pytest.mark.parametrize(
    "training",
    [
        Training(p=-0.4, lr=0.5, seed=3),
        Training(p=0.0, lr=0.1, seed=1, lr_scheduler="constant"),
        Training(p=0.3, lr=0.05, seed=0, eps=1e-8),
        Training(p=0.3, lr=0.01, seed=2, update_scale="adam"),
    ],
)
def test_a_network_goes_where_the_trainer_takes_it(training: Training, tmp_path: Path) -> None:
    """float32 sums in another order, four steps: 1e-4 of the weights' size, 1e-3 of norms' own."""
    train, test = samples(1), samples(1, 12, seed=1)
    networks, result = one(training, train, test)
    model, records = by_trainer(training, train, tmp_path)
    ours, theirs = networks.values[0].detach(), torch.cat([one.detach().flatten() for one in model.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    for name, key in (
        ("D_w", "pdyn/D_w"),
        ("D_b", "pdyn/D_b"),
        ("G_w_over_G_b", "pdyn/G_w_over_G_b"),
        ("update_w", "pdyn/update_norm/weight"),
        ("update_b", "pdyn/update_norm/bias_like"),
        ("loss", "loss"),
    ):
        found = [record[key] for record in records]
        np.testing.assert_allclose(result["curves"][name], found, rtol=1e-3, err_msg=name)
    model.eval()
    with torch.no_grad():
        logits = model(channels_first(test.pixels[0])).logits
        losses = nn.functional.cross_entropy(logits, test.labels[0], reduction="none").numpy()
    table = sample_loss.summary(losses, (logits.argmax(1) == test.labels[0]).numpy())
    found = result["measured"]["2"]["table_2"]["test"]
    for name in ("accuracy", "mean", "std", "p50", "p95", "p99", "share_above_5"):
        assert found[name] == pytest.approx(getattr(table, name), rel=2e-3, abs=1e-4), name
    assert unpacked(result["hard"]["test"], 12).sum() == 1


def test_networks_do_not_touch_each_other() -> None:
    """Together as alone, up to sums in another order: 1e-5 after four steps."""
    trainings = [Training(0.3, 0.05, seed=0), Training(0.0, 0.1, seed=1), Training(0.2, 0.01, 2, update_scale="adam")]
    train, test = samples(3), samples(3, 12, seed=1)
    together = stacked([0, 1, 2])
    train_together(together, trainings, train, test, LAST)
    for i, training in enumerate(trainings):
        own = [Samples(part.pixels[i : i + 1], part.labels[i : i + 1]) for part in (train, test)]
        alone, _ = one(training, *own)
        torch.testing.assert_close(together.values[i], alone.values[0], rtol=0, atol=1e-5)


def test_another_form_of_convolution_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one for GPUs, to float32 sums in another order: after four steps 1e-4 of the weights' size."""
    trainings, train, test = [Training(0.3, 0.05, seed=seed) for seed in (0, 1)], samples(2), samples(2, 12, seed=1)
    found = []
    for usual in (True, False):
        networks = stacked([0, 1])
        monkeypatch.setattr("papers._claims.stacked_networks._one_after_the_other", lambda *_, usual=usual: usual)
        (result, _) = train_together(networks, trainings, train, test, LAST)
        found.append((networks.values.detach(), result["measured"]["2"]["table_2"]["test"]["mean"]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-4 * float(found[0][0].abs().max()))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)


def test_ratios_of_the_whole_set_are_those_of_its_gradient() -> None:
    train = samples(1)
    _, result = one(Training(0.0, 0.0, seed=0), train, train)
    model = at_seed(0, lambda: resnet(SIZE, 1, CLASSES))
    nn.functional.cross_entropy(model(channels_first(train.pixels[0])).logits, train.labels[0]).backward()
    squares = {name: float(one.grad.square().sum()) for name, one in model.named_parameters()}
    sizes = {name: float(one.detach().square().sum()) for name, one in model.named_parameters()}
    weights = [name for name in squares if "normalization" not in name and name.endswith("weight")]
    biases = [name for name in squares if name not in weights]
    by_name = [name for name in squares if name.endswith("bias")]
    convolutions = [name for name in weights if "convolution" in name]
    invariant = math.sqrt(sum(squares[name] * sizes[name] for name in convolutions))

    def norm(names: list[str]) -> float:
        return math.sqrt(sum(squares[name] for name in names))

    assert result["measured"]["2"]["of_whole_set"] == pytest.approx(
        {
            "G_w_over_G_b": norm(weights) / norm(biases),
            "by_name": norm([name for name in squares if name not in by_name]) / norm(by_name),
            "invariant": invariant / norm(biases),
        },
        rel=1e-3,
    )
    assert result["curves"]["conv_norm"][-1] == pytest.approx(
        math.sqrt(sum(sizes[name] for name in convolutions)), 1e-4
    )


def test_an_exponent_by_label() -> None:
    """With exponents 0 for all but one label, that label alone moves otherwise than under p = 0."""
    train = samples(1)
    how = dataclasses.replace(LAST, epochs=1, batch_size=IMAGES, measured_after=(1,))
    plain, _ = one(Training(0.0, 0.1, seed=0), train, train, how)
    names = np.repeat(plain.names, plain.sizes)
    for label, of_label in (
        ("p", lambda name: name.endswith("weight") and "normalization" not in name),
        ("p_norm", lambda name: "normalization" in name),
        ("p_bias", lambda name: name == "classifier.1.bias"),
    ):
        exponents = {"p": 0.0, "p_norm": 0.0, "p_bias": 0.0} | {label: 0.5}
        moved, _ = one(Training(lr=0.1, seed=0, **exponents), train, train, how)
        differs = (moved.values != plain.values)[0].numpy()
        assert set(names[differs]) == {name for name in plain.names if of_label(name)}


def test_p_moves_after_an_epoch() -> None:
    train, how = samples(1), dataclasses.replace(LAST, epochs=3, measured_after=(3,))
    seen = []

    def move(epoch: int, d_w: list[float], d_b: list[float]) -> list[float]:
        seen.append((epoch, *d_w, *d_b))
        return [0.1 * epoch]

    networks = stacked([0])
    (result,) = train_together(networks, [Training(0.5, 0.01, seed=0)], train, train, how, move)
    assert result["curves"]["p"] == [0.5, 0.1, 0.2]
    assert [epoch for epoch, *_ in seen] == [1, 2]
    assert [d_w for _, d_w, _ in seen] == pytest.approx(result["curves"]["D_w"][:2], rel=1e-4)
    assert not torch.equal(networks.values, one(Training(0.5, 0.01, seed=0), train, train, how)[0].values)


def test_learning_rates() -> None:
    cosine = Training(0.0, 0.2, seed=0, lr_factors=(1.0, 0.5))
    assert cosine.rate(0, 4, 0) == 0.2
    assert cosine.rate(2, 4, 1) == pytest.approx(0.05)
    assert dataclasses.replace(cosine, lr_scheduler="constant").rate(3, 4, 1) == 0.1


def test_the_share_of_second_moments_below_eps() -> None:
    train = samples(1)
    shares = [one(Training(0.0, 0.0, seed=0, eps=eps), train, train)[1]["eps_share"] for eps in (1e-30, 1e-6, 1e10)]
    assert shares[0] < shares[1] < shares[2] == 1


def test_crops_are_pieces_of_the_padded_image() -> None:
    torch.manual_seed(0)
    image = torch.arange(1.0, 37.0).view(1, 1, 6, 6, 1).expand(2, 50, 6, 6, 1)
    found = cropped_or_flipped(image)[..., 0].flatten(0, 1)
    padded = nn.functional.pad(image[0, 0, ..., 0], (4, 4, 4, 4))
    crops = [padded[top : top + 6, left : left + 6] for top in range(9) for left in range(9)]
    pieces = {tuple(piece.flatten().tolist()) for crop in crops for piece in (crop, crop.flip(1))}
    assert all(tuple(one.flatten().tolist()) in pieces for one in found)
    assert len({tuple(one.flatten().tolist()) for one in found}) > 30


def test_hard_samples_are_kept_as_text() -> None:
    losses = np.array([0.1, math.nan, 0.3, 5.0, *[0.0] * 16])
    mask = hardest(losses)
    assert mask.tolist() == [False, True, False, True, *[False] * 16]
    np.testing.assert_array_equal(unpacked(packed(mask), 20), mask)


def test_validation_does_not_disturb_training() -> None:
    """Accuracies of the networks as they are then, every second epoch of four."""
    training, how = Training(0.3, 0.05, seed=0), dataclasses.replace(LAST, epochs=4, measured_after=(4,))
    train, test = samples(1), samples(1, 12, seed=1)
    networks, usual = one(training, train, test, how)
    watched = stacked([0])
    how = dataclasses.replace(how, validated_every=2)
    (result,) = train_together(watched, [training], train, test, how, validation=test)
    torch.testing.assert_close(watched.values, networks.values, rtol=0, atol=0)
    assert usual["validation_accuracy"] == [] and len(result["validation_accuracy"]) == 2
    assert result["validation_accuracy"][-1] == pytest.approx(result["measured"]["4"]["table_2"]["test"]["accuracy"])


def test_where_updates_of_bias_like_parameters_centre() -> None:
    """With learning rates of two epochs as 1 to 3, about 1.75 where directions have one size, as p = 1/2 gives them."""
    train, test = samples(1), samples(1, 12, seed=1)
    centres = []
    for factors in ((1e-3, 3e-3), (1e-3, 1e-3)):
        training = Training(0.5, 1.0, seed=0, lr_scheduler="constant", lr_factors=factors)
        _, result = one(training, train, test)
        centres.append(result["update_centre"])
    for kind in ("norm", "bias"):
        odds = [(centre[kind] - 1) / (2 - centre[kind]) for centre in centres]
        assert odds[0] / odds[1] == pytest.approx(3, rel=0.15)
