"""One PPO over several processes, on Hugging Face Accelerate: which process does which rows, and what all share.

Every process holds the whole batch's token ids and per-token metrics, which are small; sampling, scoring, the passes
and the gradients are shared out. So advantages, whitening, KL control and statistics are over the global batch without
further ado, and the number of processes changes rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rlhf_lib.errors import RecipeError, RLHFError
from rlhf_lib.models.logprobs import Packed, Padded, micro_batches

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf_lib.models.policy import Policy


DEEPSPEED = "DEEPSPEED"  # Accelerate's name of it
WARMUP_UNDER_DEEPSPEED = (
    "ppo.critic_warmup can't be had under DeepSpeed, which trains all weights in every step: set it to 0, or "
    "compute.accelerate to a configuration of FSDP2 or DDP"
)


class Processes:
    """The processes of a run; without an Accelerator this one alone, to which nothing here does anything."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.main = self.rank == 0
        self.sharded = False  # whether each process holds a part of the weights alone (FSDP2)
        self.by_hand = False  # whether `clip` exchanges gradients, instead of DDP

    def check(self, **sizes: int | None) -> None:
        """Raises RecipeError for a number of rows that can't be shared out evenly."""
        for name, size in sizes.items():
            if size is not None and size % self.count:
                raise RecipeError(f"ppo.{name} is {size}, which {self.count} processes can't share evenly")

    def prepare(
        self, policy: Policy, optimizer: torch.optim.Optimizer, example: Packed | Padded
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The policy as it is to be called where gradients are wanted, and its optimizer. `example` is any batch."""
        if self.accelerator is None:
            return policy, optimizer
        from torch.distributed.fsdp import FSDPModule

        learner, optimizer = self.accelerator.prepare(policy, optimizer)
        self.sharded = isinstance(learner, FSDPModule)
        if self.sharded:
            with torch.no_grad():  # FSDP wants its first pass to be through the whole policy
                learner(example, 1.0)
            learner.reshard()
        return learner, optimizer

    # ------------------------------------------------------------ rows

    def share(self, rows: int) -> slice:
        """This process's part of so many rows: the parts of all, one after the other, are the whole."""
        bounds = np.linspace(0, rows, self.count + 1).astype(int)
        return slice(int(bounds[self.rank]), int(bounds[self.rank + 1]))

    def gather(self, items: list[Any]) -> list[Any]:
        """Every process's items, in the order of the processes. Tensors come back on the CPU."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object([item.cpu() if isinstance(item, Tensor) else item for item in items])

    def gather_from(self, work: Callable[[], list[Any]]) -> list[Any]:
        """What `work` gives in every process. An RLHFError that it raises in one is raised in all, so that none waits
        for another."""
        if self.count == 1:
            return work()
        items: list[Any] = []
        error: list[RLHFError] = []
        try:
            items = work()
        except RLHFError as raised:
            error = [raised]
        if errors := self.gather(error):
            raise errors[0]
        return self.gather(items)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise, over all processes."""
        return values if self.accelerator is None else self.accelerator.reduce(values, "sum")

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag if self.count == 1 else any(self.gather([flag]))

    def wait(self) -> None:
        """Until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------ gradients

    @contextmanager
    def learning(self, policy: Policy, *, values_alone: bool) -> Iterator[None]:
        """Round a step's updates; with `values_alone` what predicts values learns, and nothing else has gradients.

        Raises RecipeError under DeepSpeed, whose optimizer would go on with the momentum of what is to stay."""
        if not values_alone:
            yield
            return
        if self.accelerator is not None and self.accelerator.distributed_type == DEEPSPEED:
            raise RecipeError(WARMUP_UNDER_DEEPSPEED)
        self.by_hand = self.count > 1 and not self.sharded  # DDP waits for gradients of all that it was made with
        try:
            with policy.only_values_learn():
                yield
        finally:
            self.by_hand = False

    def accumulating(self, learner: nn.Module, last: bool) -> AbstractContextManager:
        """Round a backward pass: gradients are exchanged in a mini-batch's last one alone."""
        if self.accelerator is None:
            return nullcontext()
        self.accelerator.sync_gradients = last  # which DeepSpeed and Accelerate's optimizers go by
        return nullcontext() if last and not self.by_hand else self.accelerator.no_sync(learner)

    def backward(self, loss: Tensor) -> None:
        """The gradient of a loss whose sum over the processes is meant; data-parallel engines take the mean."""
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss * self.count)

    def clip(self, parameters: list[nn.Parameter], norm: float) -> Tensor:
        """Scale the gradient down to the norm; what it was before."""
        if self.accelerator is None:
            return torch.nn.utils.clip_grad_norm_(parameters, norm)
        for parameter in parameters if self.by_hand else ():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        found = self.accelerator.clip_grad_norm_(parameters, norm)
        if not isinstance(found, Tensor):
            return torch.tensor(float(found or 0.0))  # DeepSpeed clips by its own settings, and tells what it found
        return found.full_tensor() if hasattr(found, "full_tensor") else found

    # ------------------------------------------------------------ sharded weights

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        """Inside the block all weights are at hand in every process, for passes that no engine's hooks accompany."""
        from torch.distributed.fsdp import FSDPModule

        parts = [module for module in policy.modules() if isinstance(module, FSDPModule)] if self.sharded else []
        for part in parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()


def gathered(state: Any) -> Any:
    """A tensor, or what holds tensors, with sharded ones made whole: every process must ask for it."""
    from torch.distributed.tensor import DTensor

    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as the parameter is: sharded the same way, or whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def split_micro_batches(
    rows: np.ndarray, lengths: Sequence[int], processes: int, tokens: int
) -> list[list[np.ndarray]]:
    """For each process its micro-batches of a mini-batch's rows: at most `tokens` tokens each (one row at least), and
    as many for one process as for another, since sharded engines exchange weights in every pass.

    `lengths` are the tokens of each of the rows; the rows can be shared evenly.
    """
    divided = []
    for process in range(processes):
        mine = np.arange(process, len(rows), processes)
        divided.append([mine[part] for part in micro_batches([lengths[int(i)] for i in mine], tokens)])
    most = max(map(len, divided))
    for parts in divided:
        while len(parts) < most:
            largest = max(range(len(parts)), key=lambda i: len(parts[i]))
            parts[largest : largest + 1] = np.array_split(parts[largest], 2)
    return [[rows[part] for part in parts] for parts in divided]
