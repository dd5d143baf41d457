"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020), read from top to bottom.

    for stats in PPOTrainer(...).train():
        ...

One step: sample a response to each query of a batch; score the texts; charge every token for the KL to the reference
and pay the score at the last one; estimate advantages; then `ppo_epochs` passes over the batch with the clipped losses.
Statistics carry the names that users of TRL know. The loop is a generator: progress bars, trackers and stopping rules
of the caller's live with the caller. What differs from TRL 0.11 on purpose is listed in docs/ppo.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import RLHFError
from rlhf_lib.models.device import keep_freed_memory
from rlhf_lib.models.logprobs import check_head
from rlhf_lib.models.policy import Policy, autocast
from rlhf_lib.ppo.batch import Batch, unflatten
from rlhf_lib.ppo.evaluation import Evaluation, Metric, evaluation
from rlhf_lib.ppo.faults import diverged, memory_advice
from rlhf_lib.ppo.inputs import Prompts, Row, check_columns, check_given, check_rows, checked_policy, prompt_rows
from rlhf_lib.ppo.objectives import (
    RunningMoments,
    gae,
    kl_controller,
    kl_estimate,
    masked_mean,
    masked_var,
    policy_loss,
    shape_scores,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_lib.ppo.optimizer import build_optimizer, build_scheduler
from rlhf_lib.ppo.parallel import Processes, split_micro_batches
from rlhf_lib.ppo.passes import ScoringPasses
from rlhf_lib.ppo.rollout import Responses, prompt_order, sample_responses, sampling_agrees
from rlhf_lib.ppo.statistics import Stats, Timer, UpdateStatistics, rollout_statistics
from rlhf_lib.recipe import GenerationConfig, PPOConfig
from rlhf_lib.rewards import Reward, checked_scores, term_scores, timeouts
from rlhf_lib.rewards.columns import row_columns, with_ids
from rlhf_lib.rewards.judging import ask

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from peft import PeftModel

EVAL_STREAM = 2**31 - 1  # the step whose random numbers evaluations draw: no training step's


class PPOTrainer:
    """Trains `policy` in place against `reward`, which returns one number for each response: a function as TRL's GRPO
    has them, f(prompts, completions, **columns), or of (queries, responses), two lists of texts.

    `policy` is a causal or seq2seq model of Transformers or PEFT, which trains whole (PEFT: its adapter), or a `Policy`
    made of one, with LoRA, frozen layers or a critic. `prompts` are texts; or lists of token ids; or a datasets.Dataset
    with the texts in `prompt_column` (by default `query`, `prompt` or `text`); or rows with `query`, the text that the
    reward sees, and `input_ids`, what the policy continues: see `prompt_rows`, which makes rows of them all. Their
    other columns, say a solution, reach the reward, the judges and the metrics. Batches run through a fresh permutation
    of them an epoch. After each step, `samples` holds that batch's texts and scores.

    `eval_prompts`, in any of these forms, are answered and scored every `config.eval_every` steps, always with the same
    random numbers, measured by `metrics`, functions such as trlX's `metric_fn` (see `metric_values`), and scored by the
    `judges` too, rewards that aren't optimised, by name.
    `score_constants` (mean, std) normalise the scores for PPO; statistics of scores stay in raw units. With an
    `accelerator` all its processes, each with the same arguments, share the work of one run (ppo/parallel.py).

    A subclass may override `minibatch_order`, `compute_rollout_logprobs` and `update`: the points at which another
    order, other old log-probs or another update rule comes in. `batch` is the last step's, for them to read.

    Raises RLHFError where the policy, a prompt or a score can't be worked with.
    """

    batch: Batch

    def __init__(
        self,
        policy: Policy | PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        prompts: Prompts,
        config: PPOConfig,
        generation: GenerationConfig,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        score_constants: tuple[float, float] = (0.0, 1.0),
        prompt_column: str | None = None,
        eval_prompts: Prompts | None = None,
        metrics: Metric | Sequence[Metric] = (),
        judges: Mapping[str, Reward] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.policy = checked_policy(policy, tokenizer, reward, config, generation)
        self.tokenizer, self.reward = tokenizer, reward
        self.config, self.generation, self.seed, self.dtype = config, generation, seed, dtype
        self.score_constants, self.prompt_column = score_constants, prompt_column
        self.metrics = [metrics] if callable(metrics) else list(metrics)
        self.judges = dict(judges or {})
        self.prompts = self._rows(prompts, "prompts")
        self.eval_prompts = self._rows(eval_prompts, "eval_prompts") if eval_prompts else []
        if config.eval_every and not self.eval_prompts:
            raise RLHFError(f"config.eval_every is {config.eval_every}, and there are no eval_prompts to evaluate on")
        check_columns(reward, self.prompts, "prompts")
        check_columns(reward, self.eval_prompts, "eval_prompts")
        self.processes = Processes(accelerator)
        self.processes.check(batch_size=config.batch_size, mini_batch_size=config.mini_batch_size)
        self.timed_out: int | None = None  # of the last answers scored: by a reward function that is isolated
        self.step = 0
        self.stopped = False  # by the threshold, or from outside
        self.start: Stats = {}  # what an evaluation before the first step found, where there was one
        self.rollout_window: Callable[[], AbstractContextManager] = nullcontext  # see ppo/interrupt.py
        self.reuse_sampled: bool | None = {"recompute": False, "sampling": True}.get(config.old_logprobs)
        self.samples: list[dict] = []
        self.moments = RunningMoments()
        self.kl_controller = kl_controller(config)
        tried = check_head(self.policy.model, self.prompts[0]["input_ids"])
        optimizer = build_optimizer(self.policy, config)
        self.learner, self.optimizer = self.processes.prepare(self.policy, optimizer, tried)
        self.scheduler = build_scheduler(self.optimizer, config)
        if self.policy.device.type == "cpu":
            keep_freed_memory()

    # ------------------------------------------------------------ the algorithm

    def train(self) -> Iterator[Stats]:
        """Run from the present step to `config.steps` or the threshold `stop_at_reward`; yields each step's stats."""
        while self.step < self.config.steps and not self.stopped:
            stats = self.train_step()
            if self.config.eval_every and self.eval_prompts and self.step % self.config.eval_every == 0:
                stats |= self.evaluate().stats
            threshold = self.config.stop_at_reward
            self.stopped = threshold is not None and stats["ppo/mean_scores"] >= threshold
            yield stats

    def train_step(self) -> Stats:
        """One rollout batch with all its PPO epochs."""
        timer = Timer()
        with timer("time/ppo/total"):
            with self.rollout_window():
                rows = self._next_rows()
                with timer("time/ppo/generate"):
                    sampled = self._sample(rows, self.step)
                with timer("time/ppo/score"):
                    raw_scores_B = self._score(rows, sampled)
            timed_out = {} if self.timed_out is None else {"reward/timeouts": float(self.timed_out)}
            stats = self.learn(sampled, raw_scores_B) | timed_out
        self.samples = [
            {"query": row["query"], "response": text, "score": score}
            for row, text, score in zip(rows, sampled.texts, raw_scores_B.tolist(), strict=True)
        ]
        return stats | timer.seconds

    def evaluate(self, prompts: Prompts | None = None) -> Evaluation:
        """The policy's answers to the evaluation prompts, or to others: raw scores, KL, metrics, the judges' scores.

        Raises RLHFError where there are no prompts, or a score or a metric can't be worked with."""
        rows = self.eval_prompts if prompts is None else self._rows(prompts, "prompts")
        if not rows:
            raise RLHFError("there are no evaluation prompts: give eval_prompts to PPOTrainer, or prompts to evaluate")
        sampled = self._sample(rows, EVAL_STREAM)
        scores, timed_out = self._score(rows, sampled), self.timed_out
        judged = {name: self._score(rows, sampled, name) for name in self.judges}
        with self.processes.whole(self.policy), autocast(self.policy.device, self.dtype):
            kl = self.passes.kl(Batch.of(sampled.prompt_ids, sampled.response_ids, self.policy.device))
        return evaluation(rows, sampled, scores, self.metrics, self.tokenizer, kl=kl, judged=judged, timeouts=timed_out)

    def learn(self, sampled: Responses, raw_scores_B: Tensor) -> Stats:
        """Learn from responses and their raw scores: all of a step but sampling and scoring. Responses that come
        without log-probs and values (empty lists) get them from a scoring pass."""
        timer = Timer()
        check_given(self.policy, sampled.prompt_ids, sampled.response_ids)
        tokens = sum(map(len, sampled.prompt_ids)) + sum(map(len, sampled.response_ids))
        advice = partial(memory_advice, min(tokens, self.config.micro_batch_tokens))
        with timer("time/ppo/forward_pass"), advice():
            batch = self.batch = self.compute_rollout_logprobs(sampled)
        with timer("time/ppo/compute_advantages"):
            scores_B = shape_scores(
                raw_scores_B,
                sampled.ended,
                self.config,
                constants=self.score_constants,
                moments=self.moments,
                missing_eos_penalty=self.generation.missing_eos_penalty,
            )
            reward_kl = batch.kl_BT if self.config.kl_in == "reward" else torch.zeros_like(batch.kl_BT)
            penalty_BT = self.kl_controller.value * reward_kl
            rewards_BT = token_rewards(scores_B, penalty_BT, batch.mask_BT)
            if self.config.whiten_rewards:
                rewards_BT = whiten(rewards_BT, batch.mask_BT, shift_mean=False)
            advantages_BT, batch.returns_BT = gae(
                batch.values_BT, rewards_BT, batch.mask_BT, gamma=self.config.gamma, lam=self.config.lam
            )
            batch.advantages_BT = whiten(advantages_BT, batch.mask_BT)
        warming = self.step < self.config.critic_warmup
        with timer("time/ppo/optimize_step"), advice(), self.processes.learning(self.policy, values_alone=warming):
            updates, target = UpdateStatistics(), self.config.target_kl
            for epoch in range(self.config.ppo_epochs):
                for rows in self._minibatches(epoch, len(scores_B)):
                    updates.add(self.update(batch, rows), self._weight(batch, rows))
                if target is not None and updates.last("ppo/policy/approxkl") > 1.5 * target:
                    break
        batch.bottom = None  # no longer needed, and large
        stats = self._statistics(batch, raw_scores_B, scores_B, penalty_BT, sampled.ended, updates.means())
        if not warming:
            self.kl_controller.update(stats["objective/kl"], len(scores_B))
        self.scheduler.step()
        self.step += 1
        return stats | timer.seconds

    def minibatch_order(self, epoch: int, rows: int) -> np.ndarray:
        """The order in which a PPO epoch of this step goes through the batch's rows: a permutation of (rows,)."""
        return np.random.default_rng([self.seed, 2, self.step, epoch]).permutation(rows)

    def _minibatches(self, epoch: int, rows: int) -> list[np.ndarray]:
        size = self.config.mini_batch_size or rows
        order = self.minibatch_order(epoch, rows) if size < rows else np.arange(rows)
        return [order[start : start + size] for start in range(0, rows, size)]

    def _weight(self, batch: Batch, rows: np.ndarray) -> float:
        return batch.weight(rows, self.config.mini_batch_size or len(batch.responses))

    def update(self, batch: Batch, rows: np.ndarray) -> dict[str, Tensor]:
        """One optimizer step: accumulate the gradient of these rows' mean loss per real token, then step. The loss of
        a smaller last mini-batch is scaled down (`Batch.weight`). Statistics are means over the rows' tokens."""
        config, weight = self.config, self._weight(batch, rows)
        mask_BT = batch.mask_BT[rows]
        tokens = mask_BT.sum()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=mask_BT.device))
        self.optimizer.zero_grad(set_to_none=True)
        divided = split_micro_batches(rows, batch.lengths(rows), self.processes.count, config.micro_batch_tokens)
        parts = divided[self.processes.rank]
        for number, micro in enumerate(parts, start=1):
            mask = batch.mask_BT[micro].bool()
            flat = {
                name: getattr(batch, f"{name}_BT")[micro][mask]
                for name in ("logprobs", "values", "ref_logprobs", "advantages", "returns")
            }
            with self.processes.accumulating(self.learner, last=number == len(parts)):
                with autocast(self.policy.device, self.dtype):
                    logprobs, values, entropy = self.passes.forward(batch, micro, self.learner)
                policy, policy_sums = policy_loss(logprobs, flat["logprobs"], flat["advantages"], config.cliprange)
                value, value_sums = value_loss(values, flat["values"], flat["returns"], config.cliprange_value)
                loss = policy + config.vf_coef * value
                if config.kl_in == "loss":
                    kl = kl_estimate(logprobs, flat["ref_logprobs"], config.kl_estimator).sum()
                    loss = loss + self.kl_controller.value * kl
                    sums["ppo/loss/kl"] += kl.detach()
                self.processes.backward(weight * loss / tokens)
            sums["ppo/loss/policy"] += policy.detach()
            sums["ppo/loss/value"] += value.detach()
            sums["ppo/loss/total"] += loss.detach()
            sums["ppo/policy/entropy"] += entropy.sum()
            for name, total in policy_sums.items():
                sums[f"ppo/policy/{name}"] += total
            for name, total in value_sums.items():
                sums[f"ppo/val/{name}"] += total
        totals = self.processes.sum(torch.stack([*sums.values()]))
        stats = dict(zip(sums, totals / tokens, strict=True))
        stats["ppo/policy/skipped"] = torch.zeros((), device=mask_BT.device)
        if config.ratio_threshold is not None and stats["ppo/policy/ratio"] > config.ratio_threshold:
            stats["ppo/policy/skipped"] += 1  # the policy has run away from its samples: their gradient means nothing
        else:
            norm = self.processes.clip(self.policy.trainable(), config.max_grad_norm or float("inf"))
            if not norm.isfinite():
                raise diverged(self.step, float(stats["ppo/loss/total"]), float(norm), batch, rows)
            stats["ppo/grad_norm"] = norm
            self.optimizer.step()
        returns_BT, advantages_BT = batch.returns_BT[rows], batch.advantages_BT[rows]
        stats["ppo/policy/advantages_mean"] = masked_mean(advantages_BT, mask_BT)
        stats["ppo/returns/mean"] = masked_mean(returns_BT, mask_BT)
        stats["ppo/returns/var"] = masked_var(returns_BT, mask_BT)
        stats["ppo/val/mean"] = masked_mean(batch.values_BT[rows], mask_BT)
        stats["ppo/val/var"] = masked_var(batch.values_BT[rows], mask_BT)
        return stats

    def save_pretrained(self, folder: str | Path) -> None:
        """The policy as it is now, adapters merged, and the tokenizer: a folder for `from_pretrained`."""
        self.policy.save_pretrained(folder, self.tokenizer)

    # ------------------------------------------------------------ its parts

    def _rows(self, prompts: Prompts, what: str) -> list[Row]:
        rows = prompt_rows(prompts, self.tokenizer, self.prompt_column, what=what)
        check_rows(rows, self.policy, self.generation, what)
        return rows

    def _next_rows(self) -> list[Row]:
        """The step's prompts; the step alone is the cursor."""
        size = self.config.batch_size
        return [self.prompts[i] for i in prompt_order(len(self.prompts), self.step * size, size, seed=self.seed)]

    def _sample(self, rows: list[Row], step: int) -> Responses:
        """A response to each of the rows, with the random numbers of that step."""
        share = self.processes.share(len(rows))
        with self.processes.whole(self.policy), autocast(self.policy.device, self.dtype):
            sampled = sample_responses(
                self.policy.model,
                self.tokenizer,
                [row["input_ids"] for row in rows[share]],
                self.generation,
                seed=self.seed,
                step=step,
                first_row=share.start,
                batch_size=self.config.batch_size,
                value_head=self.policy.v_head if self.policy.critic is None else None,
            )
        return Responses(*(self.processes.gather(column) for column in vars(sampled).values()))

    @property
    def passes(self) -> ScoringPasses:
        """By the settings of this moment."""
        return ScoringPasses(self.policy, self.processes, self.generation.temperature, self.config.micro_batch_tokens)

    def _score(self, rows: list[Row], sampled: Responses, judge: str | None = None) -> Tensor:
        """Raw scores (B,) of the reward or of a judge, fp32 on the policy's device."""
        share = self.processes.share(len(rows))
        queries, texts, ended = [row["query"] for row in rows][share], sampled.texts[share], sampled.ended[share]
        columns = with_ids(row_columns(rows[share]), sampled.response_ids[share])
        scorer = self.reward if judge is None else self.judges[judge]
        before = timeouts(scorer)

        def scored() -> list[float]:
            if not queries:  # fewer rows than processes
                return []
            if judge is not None:
                return ask(scorer, judge, queries, texts, ended, columns)
            given = term_scores(scorer, queries, texts, ended, columns)
            return checked_scores(given, queries, texts, f"at step {self.step}").tolist()

        scores_B = torch.tensor(self.processes.gather_from(scored), device=self.policy.device)
        if judge is None and before is not None:
            self.timed_out = sum(self.processes.gather([(timeouts(scorer) or 0) - before]))
        return scores_B

    @torch.no_grad()
    def compute_rollout_logprobs(self, sampled: Responses) -> Batch:
        """Old log-probs and values, and the reference's log-probs, on the tokens sampled."""
        device = self.policy.device
        batch = Batch.of(sampled.prompt_ids, sampled.response_ids, device)
        mask_BT = batch.mask_BT
        with self.processes.whole(self.policy), autocast(device, self.dtype):
            if self.policy.shares_bottom:
                batch.bottom = self.passes.run_bottom(batch)
            batch.ref_logprobs_BT = unflatten(self.passes.reference_logprobs(batch), mask_BT)
            reused = self.reuse_sampled and sampled.logprobs and sampled.values and self.policy.critic is None
            if not reused:
                logprobs, values = self.passes.policy_outputs(batch)
        if reused:
            batch.logprobs_BT = pad_sequence(sampled.logprobs, batch_first=True).to(device)
            batch.values_BT = pad_sequence(sampled.values, batch_first=True).to(device)
        else:
            batch.logprobs_BT, batch.values_BT = unflatten(logprobs, mask_BT), unflatten(values, mask_BT)
            if self.reuse_sampled is None and sampled.logprobs:
                self.reuse_sampled = sampling_agrees(torch.cat(sampled.logprobs) - logprobs.cpu(), self.dtype)
        batch.kl_BT = kl_estimate(batch.logprobs_BT, batch.ref_logprobs_BT, self.config.kl_estimator) * mask_BT
        return batch

    def _statistics(
        self, batch: Batch, raw_scores_B: Tensor, scores_B: Tensor, penalty_BT: Tensor, ended: list[bool], update: Stats
    ) -> Stats:
        stats = rollout_statistics(
            raw_scores_B,
            scores_B,
            kl_BT=batch.kl_BT,
            penalty_BT=penalty_BT,
            logprobs_BT=batch.logprobs_BT,
            mask_BT=batch.mask_BT,
            query_lengths=[len(query) for query in batch.queries],
            ended=ended,
        )
        stats |= update | {
            "objective/kl_coef": self.kl_controller.value,
            "ppo/learning_rate": self.optimizer.param_groups[0]["lr"],
            "ppo/old_logprobs_reused": float(bool(self.reuse_sampled)),
            "ppo/val/var_explained": 1 - update["ppo/val/error"] / max(update["ppo/returns/var"], 1e-12),
        }
        return stats
