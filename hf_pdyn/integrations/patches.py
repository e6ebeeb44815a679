"""Every attribute of another library that hf_pdyn changes. docs/patches.md shows this list."""

from __future__ import annotations

from hf_pdyn.integrations.patching import Patch

_TRANSFORMERS = "5.2 to 5.23"
_ACCELERATE = "1.3 to 1.15"

_IMPORT = "`import hf_pdyn`, or the import of the module if that comes later"
_TRAINING = "`--optim padam` builds its optimizer, or one of our callbacks begins a training"
_LAUNCHER = "the launcher"

OPTIMIZER_NAMES = Patch(
    "transformers.training_args:OptimizerNames",
    tried=_TRANSFORMERS,
    when=_IMPORT,
    lost='TrainingArguments refuses `optim="padam"`.',
    required=True,
)
OPTIMIZER_HANDLERS = Patch(
    "transformers.trainer_optimizer:_OPTIMIZER_HANDLERS",
    tried=_TRANSFORMERS,
    when=_IMPORT,
    lost="The Trainer cannot build Padam.",
    required=True,
)
SAVE_CHECKPOINT = Patch(
    "transformers.trainer:Trainer._save_checkpoint",
    tried=_TRANSFORMERS,
    when=_TRAINING,
    lost="Checkpoints have no state of Algorithm 1 and of telemetry, and a checkpoint that was overwritten only in "
    "part looks whole.",
    required=True,
)
SAVE_RNG_STATE = Patch(
    "transformers.trainer:Trainer._save_rng_state",
    tried=_TRANSFORMERS,
    when=_TRAINING,
    lost="With several processes a checkpoint looks whole before all of them have written their random state.",
    required=True,
)
GET_BATCH_SAMPLES = Patch(
    "transformers.trainer:Trainer.get_batch_samples",
    tried=_TRANSFORMERS,
    when=_TRAINING,
    lost="A run that is resumed inside an epoch at or behind `max_steps` trains one step too many.",
    required=False,
)
MIXED_MESH_GRAD_NORM = Patch(
    "transformers.trainer:Trainer._mixed_mesh_grad_norm",
    tried=_TRANSFORMERS,
    when="telemetry, control, allocation, shutoff or spectra begin a training",
    lost="Where gradients lie on several device meshes, D_w and D_b are those after clipping.",
    required=False,
    since="5.17",
)
CLIP_GRAD_NORM = Patch(
    "accelerate:Accelerator.clip_grad_norm_",
    tried=_ACCELERATE,
    when="telemetry, control, allocation, shutoff or spectra begin a training",
    lost="D_w and D_b are those after clipping, which Algorithm 1 would take for the training's.",
    required=True,
)
ZERO_OPTIMIZER_STEP = Patch(
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._optimizer_step",
    tried="0.19.8",
    when="Padam, `nonfinite` or statistics meet ZeRO-1 or ZeRO-2",
    lost="DeepSpeed steps each parameter group by itself, and nothing can read or match a training step as a whole.",
    required=True,
)
ZERO_3_OPTIMIZER_STEP = Patch(
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3._optimizer_step",
    tried="0.19.8",
    when="Padam, `nonfinite` or statistics meet ZeRO-3",
    lost="DeepSpeed steps each sub-group by itself, and nothing can read or match a training step as a whole: "
    "telemetry says so, and what needs it is refused.",
    required=False,
)
OFFLOADED_OPTIMIZER = Patch(
    "accelerate.accelerator:map_pytorch_optim_to_deepspeed",
    tried=_ACCELERATE,
    when="`--optim padam` builds its optimizer where DeepSpeed is loaded",
    lost="Where ZeRO offloads the optimizer, accelerate trains with DeepSpeedCPUAdam instead of Padam.",
    required=True,
)
DEFAULT_CALLBACKS = Patch(
    "transformers.trainer:DEFAULT_CALLBACKS",
    tried=_TRANSFORMERS,
    when=_LAUNCHER,
    lost="The launcher's callbacks reach no Trainer.",
    required=True,
)
GET_LAST_CHECKPOINT = Patch(
    "transformers.trainer_utils:get_last_checkpoint",
    tried=_TRANSFORMERS,
    when=_LAUNCHER,
    lost="A launched script that resumes takes the checkpoint with the highest number, whole or not.",
    required=False,
)

PATCHES = (
    OPTIMIZER_NAMES,
    OPTIMIZER_HANDLERS,
    SAVE_CHECKPOINT,
    SAVE_RNG_STATE,
    GET_BATCH_SAMPLES,
    MIXED_MESH_GRAD_NORM,
    CLIP_GRAD_NORM,
    ZERO_OPTIMIZER_STEP,
    ZERO_3_OPTIMIZER_STEP,
    OFFLOADED_OPTIMIZER,
    DEFAULT_CALLBACKS,
    GET_LAST_CHECKPOINT,
)
