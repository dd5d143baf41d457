"""A reward model from preference pairs with TRL's RewardTrainer: the Bradley-Terry loss, -log sigmoid(chosen - rejected
- margin) (Ouyang et al. 2022, eq. 1; margins: Touvron et al. 2023; centring: Eisenstein et al. 2023, eq. 2).

TRL drops pairs longer than its max_length and cuts nothing; it appends EOS where a text doesn't end with it. So the
pairs come tokenized, by `encode_answers`, the very function that scoring uses: cut from the left, ended. A prompt's
pairs share a batch (Ouyang et al. 2022, section 3.5). Length is kept out as rlhf_lib/training/length_debias.py says.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, set_seed

from rlhf_lib.conversation import prompts_of
from rlhf_lib.errors import DataError
from rlhf_lib.models.chat import set_template
from rlhf_lib.models.device import pick_device
from rlhf_lib.models.loading import distinct_pad, load_classifier, load_tokenizer, positions, quiet
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.classifier import ClassifierReward, encode_answers
from rlhf_lib.training.length_debias import WeightedCollator, WeightedPairs, fit_debias
from rlhf_lib.training.supervised import OnLog, PromptGroups, fit, trainer_arguments

if TYPE_CHECKING:
    from rlhf_lib import recipe

MEASUREMENTS = 10  # of the validation loss
ACCURACY_PAIRS = {"train": 256, "held_out": 512}  # the sanity checks take the held-out accuracy over more


def train_reward_model(
    pairs: Dataset,
    model: str,
    output: Path,
    *,
    reward: recipe.RewardConfig,
    compute: recipe.ComputeConfig,
    seed: int,
    held_out: Dataset | None = None,
    policy: recipe.PolicyConfig | None = None,
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Put a scalar head on `model` (a language model or classifier), train it on `pairs`, save it with its tokenizer.

    `pairs` have columns prompt, chosen, rejected and perhaps margin. No dropout. `policy`: the section whose model it
    is, which gives it its chat template. `on_log(step, metrics)` is called as training goes on. With
    `reward.train.validation`, that share of `pairs` measures the loss along the way and picks the weights; `held_out`
    picks nothing. Returns the metrics (accuracies on at most ACCURACY_PAIRS of either set) and those of each step.
    Raises ModelError for an absent model or a loss that diverges, DataError without pairs, or where
    `reward.train.length_debias` can't tell length from quality.
    """
    from trl import RewardConfig, RewardTrainer

    if not len(pairs):
        raise DataError("no pair to train the reward model on: are data.preferences empty?")
    pairs, validation = split_prompts(pairs, reward.train.validation, seed)
    debias = fit_debias(reward.train.length_debias, pairs)
    tokenizer = load_tokenizer(model, reward.trust_remote_code)
    if policy is not None:
        set_template(tokenizer, policy)
    set_seed(seed)
    network = load_classifier(model, trust_remote_code=reward.trust_remote_code, num_labels=1)
    distinct_pad(tokenizer, network)
    network.config.id2label, network.config.label2id = {0: "score"}, {"score": 0}
    limit = min(reward.train.max_length or reward.max_length or 1 << 20, positions(network.config))
    rows, truncated = tokenize_pairs(pairs, tokenizer, limit)
    rows = debias.columns(rows, pairs)
    measured = None
    if validation is not None:
        measured = debias.columns(tokenize_pairs(validation, tokenizer, limit)[0], validation)

    class GroupedRewardTrainer(PromptGroups, WeightedPairs, RewardTrainer):  # type: ignore[misc]
        pass

    with TemporaryDirectory() as scratch:
        arguments = trainer_arguments(
            reward.train, len(rows), compute, seed, Path(scratch) / "reward model", schedule="linear"
        )
        if measured is not None:
            arguments |= _selection(reward.train, len(rows))
        config = RewardConfig(**arguments, center_rewards_coefficient=reward.train.center_coefficient)
        trainer = GroupedRewardTrainer(
            model=network,
            args=config,
            train_dataset=rows,
            eval_dataset=measured,
            processing_class=tokenizer,
            data_collator=WeightedCollator(pad_token_id=tokenizer.pad_token_id),
        )
        if reward.train.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(reward.train.patience))
        log = fit(trainer, on_log)

    if hasattr(network.config, "use_cache"):
        network.config.use_cache = True  # the trainer switched it off in the configuration
    with quiet():
        network.save_pretrained(output)
    tokenizer.save_pretrained(output)
    metrics = {"pairs": float(len(rows)), "truncated": float(truncated), "tokens": float(sum(rows["tokens"]))}
    metrics |= debias.metrics(pairs)
    if losses := [row["loss"] for row in log if "loss" in row]:
        metrics["loss/train"] = losses[-1]
    if found := [row for row in log if "validation_loss" in row]:
        best = min(found, key=lambda row: row["validation_loss"])
        metrics |= {"validation/pairs": float(len(validation or [])), "validation/best_step": best["step"]}
        metrics |= {f"validation/{name}": best[f"validation_{name}"] for name in ("loss", "accuracy")}
    score = ClassifierReward(
        network, tokenizer, append_eos=True, max_length=limit, batch_size=reward.batch_size, device=pick_device(compute)
    )
    for name, sample in (("train", pairs), ("held_out", held_out)):
        if sample is not None and len(sample):
            step = -(-len(sample) // ACCURACY_PAIRS[name])
            metrics[f"accuracy/{name}"] = accuracy(score, sample.select(range(0, len(sample), step)))
    return metrics, log


def split_prompts(pairs: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """(training, validation) pairs, no prompt in both; validation has about that share of the pairs, None for 0.

    Raises DataError where there are not prompts enough for both.
    """
    if not share:
        return pairs, None
    prompts = list(pairs["prompt"])
    order = np.random.default_rng([seed, 5]).permutation(sorted(set(prompts)))
    counts, chosen, taken = Counter(prompts), set[str](), 0
    for prompt in map(str, order[:-1]):  # one prompt at least is trained on
        if taken >= share * len(prompts):
            break
        chosen.add(prompt)
        taken += counts[prompt]
    if not chosen:
        raise DataError(
            "the pairs have one prompt only, and none is left to validate on: set reward.train.validation to 0"
        )
    rows = {kept: [i for i, prompt in enumerate(prompts) if (prompt in chosen) == kept] for kept in (False, True)}
    return pairs.select(rows[False]), pairs.select(rows[True])


def _selection(train: recipe.RewardTrainingConfig, rows: int) -> dict[str, Any]:
    """Arguments that measure the loss on the validation pairs MEASUREMENTS times and keep the best weights."""
    steps = train.max_steps or max(1, round(train.epochs * rows / train.batch_size))
    every = max(1, steps // MEASUREMENTS)
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "per_device_eval_batch_size": train.batch_size,
        "save_strategy": "steps",
        "save_steps": every,
        "save_only_model": True,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def tokenize_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Dataset, int]:
    """Rows as RewardTrainer takes them (chosen_ids, rejected_ids, margin), `length` (the longer one's), `tokens` (of
    both) and `group` (the prompt's number), and how many dialogues lost tokens on the left to fit `limit`."""
    columns: dict[str, list] = {}
    truncated = 0
    prompts = prompts_of(pairs, "prompt")
    for side in ("chosen", "rejected"):
        answers = list(pairs[side])
        ids = encode_answers(tokenizer, prompts, answers, limit + 1, append_eos=True)["input_ids"]
        truncated += sum(len(row) > limit for row in ids)
        columns[f"{side}_ids"] = encode_answers(tokenizer, prompts, answers, limit, append_eos=True)["input_ids"]
    lengths = [(len(c), len(r)) for c, r in zip(*columns.values(), strict=True)]
    columns |= {"length": [max(pair) for pair in lengths], "tokens": [sum(pair) for pair in lengths]}
    numbers: dict[str, int] = {}
    columns["group"] = [numbers.setdefault(prompt, len(numbers)) for prompt in pairs["prompt"]]
    if "margin" in pairs.column_names:
        columns["margin"] = [float(margin) for margin in pairs["margin"]]
    return Dataset.from_dict(columns), truncated


def accuracy(reward: Reward, pairs: Dataset) -> float:
    """Share of the pairs whose chosen answer scores higher; ties count half."""
    prompts = prompts_of(pairs, "prompt")
    scores = np.array(reward(prompts * 2, [*pairs["chosen"], *pairs["rejected"]]))
    chosen, rejected = np.split(scores, 2)
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))
