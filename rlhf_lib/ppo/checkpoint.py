"""Checkpoints from which a run goes on bit for bit: whole or not there at all, and recognised when they are neither.

A checkpoint is a folder `step-000050` written under a temporary name, synced and renamed. Its manifest holds the hash
of every file and the run's key; one that is truncated or belongs to another run is passed over with a warning, and the
one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rlhf_lib.ppo.parallel import gathered, sharded_like
from rlhf_lib.ppo.statistics import Stats
from rlhf_lib.ppo.trainer import PPOTrainer

MANIFEST = "manifest.json"
BEST = "best.safetensors"


def save_checkpoint(trainer: PPOTrainer, folder: Path, *, key: str, history: list[Stats], keep: int = 2) -> Path:
    """Write the trainer's state at its step boundary, then drop all but the `keep` newest checkpoints. A good one of
    this step stays as it is: it can only be the same. Of several processes all must call it, and the first writes."""
    random_now = trainer.processes.gather([random_states(trainer.policy.device)])
    weights, optimizer = learnt_weights(trainer), gathered(trainer.optimizer.state_dict())
    final = folder / f"step-{trainer.step:06d}"
    if trainer.processes.main:
        _write(trainer, final, weights, optimizer, random_now, key=key, history=history)
        for old in checkpoints(folder)[keep:]:
            shutil.rmtree(old)
    trainer.processes.wait()
    return final


def _write(
    trainer: PPOTrainer,
    final: Path,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    random_now: list[dict[str, Any]],
    *,
    key: str,
    history: list[Stats],
) -> None:
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    if final.exists() and _fault(final, key) is None:
        return
    scratch = folder / f".{final.name}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    save_file(weights, scratch / "policy.safetensors")
    torch.save(
        {
            "optimizer": optimizer,
            "scheduler": trainer.scheduler.state_dict(),
        },
        scratch / "optimizer.pt",
    )
    state = {
        "step": trainer.step,
        "kl_coef": trainer.kl_controller.value,
        "moments": vars(trainer.moments),
        "reuse_sampled": trainer.reuse_sampled,
        "stopped": trainer.stopped,
        "start": trainer.start,
        "random": random_now,  # of each process
        "history": history,
    }
    (scratch / "state.json").write_text(json.dumps(state))
    files = {p.name: _digest(p) for p in sorted(scratch.iterdir())}
    (scratch / MANIFEST).write_text(json.dumps({"key": key, "files": files}))
    for path in scratch.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    _sync(folder)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the folder, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max(map(step_of, checkpoints(folder)), default=0)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def resume(trainer: PPOTrainer, folder: Path, *, key: str) -> list[Stats] | None:
    """Put the trainer where the newest good checkpoint left it; its stats so far, or None where there is none."""
    for path in checkpoints(folder):
        fault = _fault(path, key)
        if fault is None:
            return _load(trainer, path)
        warnings.warn(f"checkpoint {path} is passed over: {fault}", stacklevel=2)
    return None


def _load(trainer: PPOTrainer, path: Path) -> list[Stats]:
    _put(trainer, path / "policy.safetensors")
    rest = torch.load(path / "optimizer.pt", weights_only=True, map_location=trainer.policy.device)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for number, state in rest["optimizer"]["state"].items():
        for name, value in state.items():
            state[name] = sharded_like(value, parameters[number]) if isinstance(value, torch.Tensor) else value
    trainer.optimizer.load_state_dict(rest["optimizer"])
    trainer.scheduler.load_state_dict(rest["scheduler"])
    state = json.loads((path / "state.json").read_text())
    trainer.step = state["step"]
    trainer.kl_controller.value = state["kl_coef"]
    vars(trainer.moments).update(state["moments"])
    trainer.reuse_sampled = state["reuse_sampled"]
    trainer.stopped = state["stopped"]
    trainer.start = state["start"]
    if len(state["random"]) == trainer.processes.count:
        set_random_states(state["random"][trainer.processes.rank], trainer.policy.device)
    else:  # another number of processes: nothing to go on with
        torch.manual_seed(hash((trainer.seed, trainer.step, trainer.processes.rank)) % 2**63)
    return state["history"]


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the generators that a user's reward may draw from, a GPU's among them, fit for JSON."""
    states = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return json.loads(json.dumps(states, default=lambda array: array.tolist()))


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put the generators where `random_states` found them; that of a GPU only where the states are of one too."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
    numpy_state = states["numpy"]["state"]
    key = np.array(numpy_state["key"], dtype=np.uint32)
    np.random.set_state(states["numpy"] | {"state": numpy_state | {"key": key}})  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def save_best(trainer: PPOTrainer, folder: Path) -> None:
    """Keep what has been learned so far as the best; replaces the one before at once."""
    weights = learnt_weights(trainer)
    if not trainer.processes.main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".best.tmp"
    save_file(weights, scratch)
    _sync(scratch)
    scratch.replace(folder / BEST)


def load_best(trainer: PPOTrainer, folder: Path) -> bool:
    """Put the best weights into the policy; False where none were kept."""
    if not (folder / BEST).is_file():
        return False
    _put(trainer, folder / BEST)
    return True


def learnt_weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """What learns, by name (tied weights once), whole: of several processes all must ask for it."""
    return {name: gathered(p.data) for name, p in trainer.policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def _put(trainer: PPOTrainer, file: Path) -> None:
    saved = load_file(file, device=str(trainer.policy.device))
    for name, parameter in trainer.policy.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(sharded_like(saved[name], parameter))


def _fault(path: Path, key: str) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["key"] != key:
            return "it belongs to a run with other settings or inputs"
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it can't be read ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
