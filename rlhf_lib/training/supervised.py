"""What all supervised training shares: trainer arguments, shuffled batches of similar lengths, and the log."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.models.device import keep_freed_memory, pick_device, pick_dtype
from rlhf_lib.progress import listened, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlhf_lib.recipe import ComputeConfig, RewardTrainingConfig, TrainConfig

# TRL's own default sets the deprecated name
warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)

OnLog = Callable[[int, dict[str, float]], None]


def trainer_arguments(
    train: TrainConfig | RewardTrainingConfig,
    rows: int,
    compute: ComputeConfig,
    seed: int,
    output: Path,
    *,
    schedule: str,
) -> dict[str, Any]:
    """Arguments that TRL's trainers share, for `rows` training examples.

    Rows come tokenized with a `length` column, so nothing is mapped, filtered or truncated behind our back; nothing is
    written to `output` but what we save. Raises RecipeError for a GPU that the trainers can't be told to use.
    """
    device = pick_device(compute)
    if device.type == "cuda" and device.index:
        raise RecipeError(
            f"compute.device {compute.device}: the base and the reward model train on the first visible GPU; set "
            f"compute.device=cuda and the environment's CUDA_VISIBLE_DEVICES={device.index}"
        )
    steps = train.max_steps or max(1, round(train.epochs * rows / train.batch_size))
    return {
        "output_dir": str(output),
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": schedule,
        "adam_beta2": 0.98,  # runs of hundreds of steps are over before 0.999 has seen enough gradients
        "warmup_steps": 0.05,
        "logging_steps": max(1, steps // 50),
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,  # it would take the length column away before the sampler reads it
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": pick_dtype(compute, device) == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }


class ShuffledLengthGroups(LengthGroupedSampler):
    """Batches of like lengths as Hugging Face draws them, then in random order.

    Theirs run from long to short within each group, and the last batches, at the lowest learning rate, are all short.
    """

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield from batches[i]


class LengthGroups:
    """Mix-in for a Trainer that draws its training rows in ShuffledLengthGroups."""

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> torch.utils.data.Sampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return ShuffledLengthGroups(self.args.train_batch_size, lengths=list(rows["length"]))


class PromptBatches(Sampler[list[int]]):
    """Batches of at most `batch_size` rows, each prompt's rows in one of them (Ouyang et al. 2022, section 3.5: spread
    over batches they overfit), of like lengths and in random order. A prompt with more rows than a batch fills several.

    Every epoch has as many batches: which sizes share one is fixed, and which prompts of these sizes is drawn anew.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], prompts: Sequence[int]) -> None:
        self.batch_size = batch_size
        rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        self.groups = [
            found[start : start + batch_size] for found in rows.values() for start in range(0, len(found), batch_size)
        ]
        self.lengths = [max(lengths[row] for row in group) for group in self.groups]
        self.sizes = _filled(Counter(map(len, self.groups)), batch_size)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = {}
        for group in reversed(get_length_grouped_indices(self.lengths, self.batch_size)):
            waiting.setdefault(len(self.groups[group]), []).append(group)
        batches = [[row for size in sizes for row in self.groups[waiting[size].pop()]] for sizes in self.sizes]
        for i in torch.randperm(len(batches)).tolist():
            yield batches[i]


def _filled(counts: Counter[int], room: int) -> list[list[int]]:
    """So many groups of each size, put into batches of at most `room` rows: the largest that fits comes next."""
    left, batches = Counter(counts), list[list[int]]()
    while left:
        batches.append([])
        free = room
        while size := max((size for size in left if size <= free), default=0):
            batches[-1].append(size)
            free -= size
            left -= Counter({size: 1})
    return batches


class PromptGroups(LengthGroups):
    """The same where rows have a column `group`, their prompt's number: a prompt's rows share a batch."""

    def get_train_dataloader(self: Any) -> torch.utils.data.DataLoader:
        rows = self.train_dataset
        if len(set(rows["group"])) == len(rows):
            return super().get_train_dataloader()  # type: ignore[misc]
        batches = PromptBatches(self.args.train_batch_size, list(rows["length"]), list(rows["group"]))
        loader = torch.utils.data.DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)


class _Bar(ProgressCallback):
    """A progress bar that shows the loss, instead of a line of metrics every few steps."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(Path(args.output_dir).name)


class _Log(TrainerCallback):
    """Reports each step, passes metrics on to `on_log` as they come, and stops at the first loss that is NaN or
    infinite."""

    def __init__(self, on_log: OnLog | None) -> None:
        self.rows: list[dict[str, float]] = []
        self.measured: list[dict[str, float]] = []  # on the validation rows
        self.on_log_figures = on_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report("step", 0, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = {"loss": self.rows[-1]["loss"]} if self.rows else {}
        report("step", state.global_step, state.max_steps, **loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        metrics = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and k != "epoch"}
        if "eval_loss" in metrics:
            metrics = {f"validation_{name}": metrics[f"eval_{name}"] for name in ("loss", "accuracy")}
            self.measured.append({"step": state.global_step, **metrics})
            if self.on_log_figures:
                self.on_log_figures(state.global_step, metrics)
            return
        if "loss" not in metrics:
            return
        if not torch.tensor(metrics["loss"]).isfinite():
            stage = Path(args.output_dir).name
            key = f"{'policy' if stage == 'base model' else 'reward'}.train.learning_rate"
            raise ModelError(f"{stage}: the loss is NaN or infinite at step {state.global_step}: lower {key}")
        self.rows.append({"step": state.global_step, **metrics})
        if self.on_log_figures:
            self.on_log_figures(state.global_step, metrics)


def fit(trainer: Trainer, on_log: OnLog | None) -> list[dict[str, float]]:
    """Train, with a progress bar where nothing listens (rlhf_lib/progress.py), and give the logged metrics: one dict
    per logged step, `step` among its keys; then, where the trainer has evaluation rows, one per measurement on these,
    with `validation_loss` and `validation_accuracy`.

    Raises ModelError when the loss is NaN or infinite.
    """
    log = _Log(on_log)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not listened() and (sys.stderr.isatty() or "ipykernel" in sys.modules):  # in a log file a bar is a flood
        trainer.add_callback(_Bar())
    trainer.add_callback(log)
    if trainer.args.device.type == "cpu":
        keep_freed_memory()
    try:
        trainer.train()
    finally:  # what Accelerate keeps for the process, precision and device among it, is not the next trainer's
        AcceleratorState._reset_state(reset_partial_state=True)
    trainer.model.eval()  # type: ignore[union-attr]
    return [*log.rows, *log.measured]


def curve(rows: list[dict[str, float]], *names: str) -> Figure:
    """One panel per logged metric, over the training steps."""
    from rlhf_lib.drawing import panels

    logged = [n for n in names if any(n in row for row in rows)]
    figure, every = panels(len(logged), 5, 3.5, left=1.0, top=0.2)
    for axes, name in zip(every, logged, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 2 else None)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    return figure
