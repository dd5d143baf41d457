"""Runs of PPO for tests that kill them: `python ppo_worker.py` imports everything once and forks a run for each folder
named on its standard input.

A run goes on from the folder's checkpoints, tells of each phase as it begins (`phase NAME STEP`) and leaves
`history.json` and `policy.safetensors`. `pid N` comes before, `exit N` after: the status, or minus the signal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import remainder_reward, tiny_gpt2, tiny_prompts, word_tokenizer

from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.checkpoint import resume, save_checkpoint
from rlhf_lib.ppo.interrupt import stop_at_boundary
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

STEPS, CHECKPOINT_EVERY, KEY = 40, 2, "worker"
PHASES = ("rollout", "score", "forward", "update", "checkpoint")


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


class Telling(PPOTrainer):
    """Says which phase begins."""

    def _next_rows(self):
        tell(f"phase rollout {self.step}")
        return super()._next_rows()

    def _score(self, *args):
        tell(f"phase score {self.step}")
        return super()._score(*args)

    def compute_rollout_logprobs(self, *args):
        tell(f"phase forward {self.step}")
        return super().compute_rollout_logprobs(*args)

    def update(self, *args):
        tell(f"phase update {self.step}")
        return super().update(*args)


def noisy_reward(queries: list[str], responses: list[str]) -> list[float]:
    """Takes its time, as rewards do, and draws from all three generators that it may use."""
    time.sleep(0.01)
    noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return [score + noise for score in remainder_reward(queries, responses)]


def build() -> PPOTrainer:
    """Everything that has a state is on: momentum, schedule, adaptive KL, running moments, the decision on reuse."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    config = PPOConfig(
        steps=STEPS,
        batch_size=8,
        mini_batch_size=4,
        ppo_epochs=2,
        learning_rate=1e-2,
        schedule="cosine",
        kl_horizon=40,
        scale_scores=True,
        normalize_scores=True,
    )
    generation = GenerationConfig(max_new_tokens=7)
    return Telling(Policy(tiny_gpt2()), word_tokenizer(), noisy_reward, tiny_prompts(), config, generation)


def interrupt(*_: object) -> None:
    """As the command line's handler: not Python's own."""
    raise KeyboardInterrupt


def run(folder: Path) -> None:
    trainer = build()
    history = resume(trainer, folder, key=KEY) or []

    def save() -> None:
        tell(f"phase checkpoint {trainer.step}")
        save_checkpoint(trainer, folder, key=KEY, history=history)

    with stop_at_boundary(trainer, save):
        for stats in trainer.train():
            history.append(stats)
            if trainer.step % CHECKPOINT_EVERY == 0:
                save()
            tell(f"phase between {trainer.step}")
    (folder / "history.json").write_text(json.dumps(history))
    save_file({n: p.detach().clone() for n, p in trainer.policy.named_parameters()}, folder / "policy.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            signal.signal(signal.SIGINT, interrupt)
            try:
                run(Path(line.strip()))
                status = 0
            except SystemExit as ending:
                status = int(str(ending.code))
            except KeyboardInterrupt:
                status = 130
            except BaseException as error:
                tell(f"error {error!r}")
            finally:
                os._exit(status)
        tell(f"pid {child}")
        tell(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
