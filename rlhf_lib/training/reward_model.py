"""A reward model from preference pairs with TRL's RewardTrainer: the Bradley-Terry loss, -log sigmoid(chosen - rejected
- margin) (Ouyang et al. 2022, eq. 1; margins: Touvron et al. 2023; centring: Eisenstein et al. 2023, eq. 2).

TRL drops pairs longer than its max_length and cuts nothing; it appends EOS where a text doesn't end with it. So the
pairs come tokenized, by `encode`, the very function that scoring uses: cut from the left, ended with EOS.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from rlhf_lib.errors import DataError
from rlhf_lib.models.device import pick_device
from rlhf_lib.models.loading import distinct_pad, load_classifier, load_tokenizer, positions, quiet
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.classifier import ClassifierReward, encode
from rlhf_lib.training.supervised import LengthGroups, OnLog, fit, trainer_arguments

if TYPE_CHECKING:
    from rlhf_lib import recipe

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
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Put a scalar head on `model` (a language model or classifier), train it on `pairs`, save it with its tokenizer.

    `pairs` have columns prompt, chosen, rejected and perhaps margin. No dropout. `on_log(step, metrics)` is called as
    training goes on. Returns the metrics (accuracies on at most ACCURACY_PAIRS of either set) and those of each step.
    Raises ModelError for an absent model or a loss that diverges, DataError without pairs.
    """
    from trl import RewardConfig, RewardTrainer

    if not len(pairs):
        raise DataError("no pair to train the reward model on: are data.preferences empty?")
    tokenizer = load_tokenizer(model, reward.trust_remote_code)
    set_seed(seed)
    network = load_classifier(model, trust_remote_code=reward.trust_remote_code, num_labels=1)
    distinct_pad(tokenizer, network)
    network.config.id2label, network.config.label2id = {0: "score"}, {"score": 0}
    limit = min(reward.train.max_length or reward.max_length or 1 << 20, positions(network.config))
    rows, truncated = tokenize_pairs(pairs, tokenizer, limit)

    class LengthGroupedRewardTrainer(LengthGroups, RewardTrainer):
        pass

    with TemporaryDirectory() as scratch:
        arguments = trainer_arguments(
            reward.train, len(rows), compute, seed, Path(scratch) / "reward model", schedule="linear"
        )
        config = RewardConfig(**arguments, center_rewards_coefficient=reward.train.center_coefficient)
        trainer = LengthGroupedRewardTrainer(model=network, args=config, train_dataset=rows, processing_class=tokenizer)
        log = fit(trainer, on_log)

    if hasattr(network.config, "use_cache"):
        network.config.use_cache = True  # the trainer switched it off in the configuration
    with quiet():
        network.save_pretrained(output)
    tokenizer.save_pretrained(output)
    metrics = {"pairs": float(len(rows)), "truncated": float(truncated), "tokens": float(sum(rows["tokens"]))}
    if log:
        metrics["loss/train"] = log[-1]["loss"]
    score = ClassifierReward(
        network, tokenizer, append_eos=True, max_length=limit, batch_size=reward.batch_size, device=pick_device(compute)
    )
    for name, sample in (("train", pairs), ("held_out", held_out)):
        if sample is not None and len(sample):
            step = -(-len(sample) // ACCURACY_PAIRS[name])
            metrics[f"accuracy/{name}"] = accuracy(score, sample.select(range(0, len(sample), step)))
    return metrics, log


def tokenize_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Dataset, int]:
    """Rows as RewardTrainer takes them (chosen_ids, rejected_ids, margin), `length` (the longer one's) and `tokens` (of
    both), and how many dialogues lost tokens on the left to fit `limit`."""
    columns: dict[str, list] = {}
    truncated = 0
    for side in ("chosen", "rejected"):
        texts = [prompt + answer for prompt, answer in zip(pairs["prompt"], pairs[side], strict=True)]
        ids = encode(tokenizer, texts, limit + 1, append_eos=True)["input_ids"]
        truncated += sum(len(row) > limit for row in ids)
        columns[f"{side}_ids"] = encode(tokenizer, texts, limit, append_eos=True)["input_ids"]
    lengths = [(len(c), len(r)) for c, r in zip(*columns.values(), strict=True)]
    columns |= {"length": [max(pair) for pair in lengths], "tokens": [sum(pair) for pair in lengths]}
    if "margin" in pairs.column_names:
        columns["margin"] = [float(margin) for margin in pairs["margin"]]
    return Dataset.from_dict(columns), truncated


def accuracy(reward: Reward, pairs: Dataset) -> float:
    """Share of the pairs whose chosen answer scores higher; ties count half."""
    prompts = list(pairs["prompt"])
    scores = np.array(reward(prompts * 2, [*pairs["chosen"], *pairs["rejected"]]))
    chosen, rejected = np.split(scores, 2)
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))
