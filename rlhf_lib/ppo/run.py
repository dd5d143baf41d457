"""PPO of a recipe, from its prompts and models to the exported policy: resumed, checkpointed, in one process or more.

    for progress in train(job): ...

Several processes are those of `accelerate launch -m rlhf_lib.ppo.run JOB.json`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rlhf_lib.errors import RLHFError
from rlhf_lib.ppo.faults import Diverged
from rlhf_lib.ppo.orphan import LAUNCHER, end_with_launcher
from rlhf_lib.ppo.selection import has_fallen, kept_step, picks_by_prompts, selection_split
from rlhf_lib.ppo.statistics import Stats
from rlhf_lib.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from rlhf_lib.models.critic import Critic
    from rlhf_lib.models.policy import Policy
    from rlhf_lib.ppo.trainer import PPOTrainer

logger = logging.getLogger(__name__)
POLL = 0.2  # seconds between looks at what the processes have to tell


class Job(BaseModel):
    """What PPO needs to know beyond the recipe: where everything lies."""

    recipe: Recipe
    policy: str  # hub id or folder
    prompts: dict[str, str]  # data sets on disk: train, test
    reward: str | None  # of a reward model; None where the recipe's reward names its own
    judges: dict[str, str] = {}  # models of those that were trained here, by name
    score_constants: tuple[float, float] | None = None
    folder: str  # policy/ and reference/ are exported there
    checkpoints: str
    key: str  # of everything that decides the run: checkpoints with another are foreign


class Progress(BaseModel):
    """A step done; step 0 is the evaluation before the first one, which there is where judges are asked."""

    step: int
    stats: Stats
    resumed: bool = False  # by an interrupted run, whose checkpoint told of it
    samples: list[dict[str, Any]] = []  # of every ppo.sample_every-th step


def train(job: Job, accelerator: Accelerator | None = None) -> Iterator[Progress]:
    """Train to the end, or until `ppo.stop_when` ends it, going on from the newest good checkpoint, then export the
    policy (the best step's, where `ppo.keep_best` names a statistic) and its reference.

    In this process, or in `recipe.compute.processes` of their own where these are several; with an accelerator this is
    one of them, and every one must call it.
    """
    if accelerator is None and job.recipe.compute.processes > 1:
        yield from launch(job)
        return
    from rlhf_lib.ppo.checkpoint import load_best, resume, save_best, save_checkpoint
    from rlhf_lib.ppo.interrupt import stop_at_boundary

    config, checkpoints = job.recipe.ppo, Path(job.checkpoints)
    trainer = build_trainer(job, accelerator)
    history = resume(trainer, checkpoints, key=job.key) or []
    if trainer.judges and not history:
        trainer.start = trainer.evaluate().stats
    if trainer.start:
        yield Progress(step=0, stats=trainer.start, resumed=bool(history))
    for step, stats in enumerate(history, start=1):
        yield Progress(step=step, stats=stats, resumed=True)

    def save() -> None:
        if history:
            save_checkpoint(trainer, checkpoints, key=job.key, history=history, keep=config.keep_checkpoints)

    asked = _stop_file(job).exists if accelerator is not None else lambda: False
    with stop_at_boundary(trainer, save, asked) as window:
        for stats in trainer.train():
            history.append(stats)
            kept = config.best_statistic
            due = "eval/mean_scores" in stats or not (kept or "").startswith("eval/")
            if kept is not None and kept not in stats and due:
                known = ", ".join(sorted(stats))
                raise RLHFError(
                    f"ppo.keep_best is {config.keep_best}, but no step has that statistic: set one of {known}"
                )
            if kept in stats and kept_step(history, config) == trainer.step:
                save_best(trainer, checkpoints)
            trainer.stopped |= has_fallen(trainer.start, history, config)
            every = config.checkpoint_every
            if every and trainer.step % every == 0 and trainer.step < config.steps:
                save()
            shown = trainer.step % config.sample_every == 0 or trainer.step in (1, config.steps)
            samples = trainer.samples[: config.samples] if shown else []
            yield Progress(step=trainer.step, stats=stats, samples=samples)
        if config.checkpoint_every:
            save()  # what follows may be interrupted too
    if window.left:
        return
    if config.keep_best is not None and not load_best(trainer, checkpoints):
        logger.warning(
            "ppo.keep_best: no step that was measured has a KL of at most ppo.keep_best_max_kl (%s): the last is kept",
            config.keep_best_max_kl,
        )
    export(trainer, job)


def build_trainer(job: Job, accelerator: Accelerator | None = None) -> PPOTrainer:
    """The trainer that the job describes."""
    import torch
    from datasets import load_from_disk

    from rlhf_lib.models.chat import policy_tokenizer
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.ppo.evaluation import import_metrics
    from rlhf_lib.ppo.trainer import PPOTrainer
    from rlhf_lib.rewards.build import build_reward

    # The same kernels in every run; warn_only, since a GPU has none such for some. Filling fresh memory with NaN, which
    # comes with it, finds mistakes of ours and costs a pass over all of it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    recipe = job.recipe
    device = pick_device(recipe.compute) if accelerator is None else accelerator.device
    tokenizer = policy_tokenizer(recipe.policy, job.policy)
    rows: list[Any] = load_from_disk(job.prompts["train"]).to_list()
    watched: list[Any] | None = None
    if picks_by_prompts(recipe):
        rows, watched = selection_split(rows, recipe.ppo.eval_prompts, recipe.seed)
    elif recipe.ppo.eval_every:
        watched = _eval_prompts(job, tokenizer)
    trainer = PPOTrainer(
        build_policy(job).to(device),
        tokenizer,
        build_reward(recipe.reward, job.reward, device),
        rows,
        recipe.ppo,
        recipe.generation,
        seed=recipe.seed,
        dtype=pick_dtype(recipe.compute, device),
        score_constants=job.score_constants or (0.0, 1.0),
        eval_prompts=watched,
        metrics=import_metrics(recipe.evaluation.metrics),
        judges={
            name: build_reward(judge, job.judges.get(name), device) for name, judge in recipe.judges_in_ppo.items()
        },
        accelerator=accelerator,
    )
    if trainer.processes.rank:
        torch.manual_seed(recipe.seed + trainer.processes.rank)  # what a reward draws differs between processes
    return trainer


def _eval_prompts(job: Job, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """`ppo.eval_texts` in turn, each time with random numbers of its own, or held-out prompts."""
    from datasets import load_from_disk

    from rlhf_lib.conversation import Conversation
    from rlhf_lib.models.chat import prompt_ids

    recipe, count = job.recipe, job.recipe.ppo.eval_prompts
    if recipe.ppo.eval_texts is None:
        return load_from_disk(job.prompts["test"]).to_list()[:count]
    if tokenizer.chat_template is not None:
        asked = [Conversation.of(text, recipe.policy.system) for text in recipe.ppo.eval_texts]
        rows: list[dict] = [
            {"query": query, "input_ids": ids} for query, ids in zip(asked, prompt_ids(tokenizer, asked), strict=True)
        ]
        return [rows[i % len(rows)] for i in range(count)]
    template = recipe.data.prompts.template or "{query}"
    rows = [
        {"query": text, "input_ids": tokenizer(template.replace("{query}", text)).input_ids}
        for text in recipe.ppo.eval_texts
    ]
    return [rows[i % len(rows)] for i in range(count)]


def build_policy(job: Job) -> Policy:
    """The policy as it is before anything is learnt, the same in every process, on the CPU."""
    import torch

    from rlhf_lib.models.loading import load_policy
    from rlhf_lib.models.policy import Policy
    from rlhf_lib.rewards.critic import load_critic

    settings = job.recipe.policy
    critic: bool | Critic = settings.critic == "separate"
    if settings.critic == "reward":
        critic = load_critic(job.recipe, job.reward, job.policy, job.score_constants)
    torch.manual_seed(job.recipe.seed)  # LoRA draws its weights
    return Policy(
        load_policy(job.policy, torch.float32, settings.trust_remote_code),
        settings.lora,
        unfrozen_layers=settings.unfrozen_layers,
        critic=critic,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def export(trainer: PPOTrainer, job: Job) -> None:
    """`policy` and `reference`, what it was at the start, as ordinary model folders."""
    from rlhf_lib.models.loading import load_policy
    from rlhf_lib.ppo.checkpoint import learnt_weights

    weights = learnt_weights(trainer) if trainer.processes.sharded else None
    if trainer.processes.main:
        policy, folder = trainer.policy, Path(job.folder)
        if weights is not None:
            policy = build_policy(job)
            policy.load_state_dict(weights, strict=False)
        policy.save_pretrained(folder / "policy", trainer.tokenizer)
        load_policy(job.policy, None, job.recipe.policy.trust_remote_code).save_pretrained(folder / "reference")
        trainer.tokenizer.save_pretrained(folder / "reference")
    trainer.processes.wait()


# ------------------------------------------------------------ several processes


def launch(job: Job) -> Iterator[Progress]:
    """The same in processes of their own. Their output goes to `launch/log.txt` in the job's folder.

    Raises what the run raised, or RLHFError where one of the processes was killed: all of them end then, and the same
    job, launched again, resumes from the last checkpoint.
    """
    from rlhf_lib.ppo.interrupt import Request, announce

    scratch = _scratch(job)
    scratch.mkdir(parents=True, exist_ok=True)
    told, log, stop = scratch / "progress.jsonl", scratch / "log.txt", _stop_file(job)
    told.write_text("")
    stop.unlink(missing_ok=True)
    (scratch / "job.json").write_text(job.model_dump_json())
    error: dict[str, Any] = {}
    request = Request()
    with request.catching(lambda: announce(request.number)):
        with log.open("w") as output:
            process = subprocess.Popen(
                launch_command(job, scratch / "job.json"),
                stdout=output,
                stderr=output,
                env=_environment(job),
                process_group=0,  # Ctrl-C is for this process, which asks them to end at the same step
            )
        try:
            with told.open() as lines:
                ended, begun, partial = False, False, ""
                while not ended:
                    ended = process.poll() is not None  # looked at before the lines, so that none of them is missed
                    if request and not begun:
                        break  # no step is done yet that could be lost
                    if request and not stop.exists():
                        stop.touch()
                    *whole, partial = (partial + lines.read()).split("\n")
                    for event in map(json.loads, whole):
                        if "error" in event:
                            error = event
                        else:
                            begun = True
                            yield Progress.model_validate(event)
                    if not ended:
                        time.sleep(POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    request.pass_on()
    if error:
        raise Diverged(error["error"], error["rows"]) if error["rows"] else RLHFError(error["error"])
    if process.returncode:
        with log.open(errors="replace") as output:  # what the launcher says of its own comes last, and tells nothing
            said = itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, output)
            tail = "".join(deque(said, maxlen=30))
        raise RLHFError(
            f"one of PPO's {job.recipe.compute.processes} processes was killed or failed (exit code "
            f"{process.returncode}), and all have ended. Start the run again: it resumes from its last checkpoint. The "
            f"end of {log}:\n{tail}"
        )


def _scratch(job: Job) -> Path:
    return Path(job.folder) / "launch"


def _stop_file(job: Job) -> Path:
    """With which `launch` asks its processes to end. Signals won't do: Accelerate's launcher gives its processes 30
    seconds to end by them, and a step may take longer."""
    return _scratch(job) / "stop"


def launch_command(job: Job, file: Path) -> list[str]:
    """`accelerate launch` of this module, with the recipe's number of processes and configuration file."""
    compute = job.recipe.compute
    options = ["--num_processes", str(compute.processes)]
    if compute.accelerate is not None:
        options += ["--config_file", compute.accelerate]
    else:
        options += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        options += ["--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launcher, *options, "-m", "rlhf_lib.ppo.run", str(file)]


def _environment(job: Job) -> dict[str, str]:
    from rlhf_lib.models.device import pick_device

    environment = os.environ | {LAUNCHER: str(os.getpid())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))  # where a reward may lie
    if pick_device(job.recipe.compute).type == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // job.recipe.compute.processes))
    return environment


def main(accelerator: Accelerator | None = None) -> None:
    """One of the processes that `launch` starts."""
    end_with_launcher()
    from accelerate import Accelerator

    file = Path(sys.argv[1])
    job = Job.model_validate_json(file.read_text())
    accelerator = accelerator or Accelerator()
    told = file.with_name("progress.jsonl")

    def tell(event: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            with told.open("a") as lines:
                lines.write(json.dumps(event) + "\n")

    try:
        for progress in train(job, accelerator):
            tell(progress.model_dump())
    except RLHFError as error:
        tell({"error": str(error), "rows": getattr(error, "rows", None)})
        raise SystemExit(str(error)) from None  # to the log: what one process alone has met with is told there
    accelerator.end_training()


if __name__ == "__main__":
    main()
