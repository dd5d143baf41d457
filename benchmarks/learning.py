"""How fast PPO learns: the mean score over windows of steps, seed by seed, in fp32 or bf16, beside TRL 0.11.4's.

    python benchmarks/learning.py POLICY CLASSIFIER REVIEWS.jsonl.gz [--seeds 0 1 2] [--precision bf16] [--steps 40]

The published sentiment set-up at a small scale, with TRL's defaults: lr 1e-4, batch 128, 4 PPO epochs, queries of 2 to
7 tokens of reviews over 200 characters, responses of 4 to 15, the POSITIVE logit as the score. Each seed draws its own
prompts. Prints a row a seed and their mean, and writes every step's statistics and a plot to --out.
"""

import argparse
import gzip
import json
import random
import statistics
import time
from pathlib import Path

from flows.cli.configure import configure

configure()  # before torch is loaded

import torch

from rlhf_lib.models.loading import load_causal_lm, load_classifier, load_tokenizer
from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.statistics import Stats
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, LengthSamplerConfig, PPOConfig
from rlhf_lib.rewards.classifier import ClassifierReward

WINDOWS = ((1, 5), (16, 20), (36, 40))
TRL = (0.03, 0.37, 0.52)  # TRL 0.11.4's means over these windows on the same two models, at KL 3.1 in the end


def learn(args: argparse.Namespace, seed: int) -> list[Stats]:
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(args.policy)
    classifier = load_classifier(args.classifier), load_tokenizer(args.classifier)
    with gzip.open(args.reviews, "rt") as file:
        texts = [row["text"] for row in map(json.loads, file) if len(row["text"]) > 200]
    rng = random.Random(seed)
    rng.shuffle(texts)
    rows = [tokenizer.encode(text)[: rng.randrange(2, 8)] for text in texts[: args.steps * 128]]
    trainer = PPOTrainer(
        Policy(load_causal_lm(args.policy)),
        tokenizer,
        ClassifierReward(*classifier, label="POSITIVE"),
        [{"query": tokenizer.decode(ids), "input_ids": ids} for ids in rows],
        PPOConfig(
            steps=args.steps,
            batch_size=128,
            learning_rate=1e-4,
            warmup_steps=0,  # as TRL, here and in the next two
            kl_horizon=10_000,
            max_grad_norm=None,
        ),
        GenerationConfig(length_sampler=LengthSamplerConfig(min=4, max=16)),
        seed=seed,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision],
    )
    return list(trainer.train())


def windows(history: list[Stats]) -> list[float]:
    scores = [stats["ppo/mean_scores"] for stats in history]
    return [statistics.mean(scores[first - 1 : last]) for first, last in WINDOWS if last <= len(scores)]


def plot(histories: dict[int, list[Stats]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for seed, history in histories.items():
        scores = [stats["ppo/mean_scores"] for stats in history]
        axes.plot(range(1, len(scores) + 1), scores, linewidth=1, alpha=0.7, label=f"seed {seed}")
    for (first, last), score in zip(WINDOWS, TRL, strict=True):
        label = "TRL 0.11.4, mean of the steps" if first == 1 else None
        axes.hlines(score, first, last, colors="black", linewidth=3, label=label)
    axes.set(xlabel="step", ylabel="mean score", title="POSITIVE logit of a batch's responses")
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("policy", "classifier", "reviews"):
        parser.add_argument(name)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    histories: dict[int, list[Stats]] = {}
    print("| | " + " | ".join(f"steps {first}-{last}" for first, last in WINDOWS) + " | KL | s/step |")
    print("|---|" + "---:|" * (len(WINDOWS) + 2))
    for seed in args.seeds:
        begun = time.perf_counter()
        histories[seed] = history = learn(args, seed)
        kl = statistics.mean(stats["objective/kl"] for stats in history[-5:])
        figures = [*windows(history), kl, (time.perf_counter() - begun) / len(history)]
        print(f"| seed {seed} | " + " | ".join(f"{value:.2f}" for value in figures) + " |", flush=True)
    means = [statistics.mean(column) for column in zip(*map(windows, histories.values()), strict=True)]
    print("| mean | " + " | ".join(f"{value:.2f}" for value in means) + " | | |")
    print("| TRL 0.11.4 | " + " | ".join(f"{value:.2f}" for value in TRL) + " | | |")
    name = f"learning-{args.precision}"
    (args.out / f"{name}.json").write_text(json.dumps(histories))
    plot(histories, args.out / f"{name}.png")


if __name__ == "__main__":
    main()
