"""Is a reward model from three annotators' consensus better than one from a single annotator? On PandaLM's test set.

    python benchmarks/pandalm.py PANDALM_FOLDER [--folds 5] [--seeds 0] [--flip 0.0] [--out runs/pandalm]

Wang et al. 2023 (PandaLM): 999 pairs of responses to 170 instructions, each judged by three annotators (1, 2, tie).
They become tasks and rankings as `rlhf collect` and annotators would write them, so that agreement, consensus and
training are the pipeline's own. For each seed a small GPT-2 is trained from scratch on the texts of all the responses,
without a judgement; then, in each of the folds, which are cut by instruction, reward models from it on the majority's
pairs, on every annotator's pairs, and on each annotator's alone. All are scored on the held-out instructions against
the majority, and where all three agree. `--flip RATE` turns so many of the training judgements round, each annotator's
by itself: made-up noise, to see what consensus is worth where annotators are less sure than these. Intervals are 95%,
by bootstrap over instructions.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.cli.configure import configure

configure()  # before torch is loaded

import numpy as np
from datasets import Dataset

from rlhf_lib.data.rankings.consensus import gather, ranked_pairs
from rlhf_lib.data.rankings.files import Ranking, read_rankings, read_tasks, task_id
from rlhf_lib.data.rankings.report import markdown
from rlhf_lib.recipe import ComputeConfig, FromScratchConfig, RankingsConfig, RewardConfig, TrainConfig
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.statistics import bootstrap_mean, paired_bootstrap
from rlhf_lib.training.reward_model import train_reward_model
from rlhf_lib.training.scratch import train_tokenizer
from rlhf_lib.training.sft import train_base_model

RANKS = {1: {"a": 1, "b": 2}, 2: {"a": 2, "b": 1}, 0: {"a": 1, "b": 1}}
SIZE = FromScratchConfig(layers=2, width=64, heads=4, positions=192, vocab_size=2048)
COMPUTE = ComputeConfig(device="cpu", precision="fp32")


def convert(folder: Path, out: Path) -> RankingsConfig:
    """The set as tasks.jsonl and rankings.jsonl in `out`; the recipe's section that reads them."""
    tasks, rankings = [], []
    for row in json.loads((folder / "testset-v1.json").read_text(encoding="utf-8")):
        prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        texts = [str(row["response1"]), str(row["response2"])]  # six of them are true, as JSON has it
        name = task_id(prompt, [*texts, row["cmp_key"]])
        responses = [{"id": letter, "text": text} for letter, text in zip("ab", texts, strict=True)]
        tasks.append({"id": name, "prompt": prompt, "responses": responses, "policy": row["cmp_key"]})
        for number in (1, 2, 3):
            ranks = RANKS[row[f"annotator{number}"]]
            rankings.append({"id": name, "annotator": f"annotator{number}", "ranks": ranks})
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("tasks", tasks), ("rankings", rankings)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RankingsConfig(tasks=[str(out / "tasks.jsonl")], rankings=[str(out / "rankings.jsonl")])


def flipped(rankings: list[Ranking], rate: float, seed: int) -> list[Ranking]:
    rng = np.random.default_rng([seed, 5])
    turn = rng.random(len(rankings)) < rate
    return [
        replace(r, ranks={name: -rank for name, rank in r.ranks.items()}) if t else r
        for r, t in zip(rankings, turn, strict=True)
    ]


def conditions(rankings: list[Ranking]) -> dict[str, Dataset]:
    """Training pairs by what they are made of; pairs with an empty response are left out, as the pipeline does."""
    names = sorted({ranking.annotator for ranking in rankings})
    sets = {"majority": ranked_pairs(rankings, "majority")[0], "all pairs": ranked_pairs(rankings, "none")[0]}
    for name in names:
        sets[name] = ranked_pairs([ranking for ranking in rankings if ranking.annotator == name], "majority")[0]
    return {
        name: Dataset.from_list(
            [
                {"prompt": p.prompt, "chosen": f"\n\n{p.chosen}", "rejected": f"\n\n{p.rejected}"}
                for p in pairs
                if p.chosen and p.rejected
            ]
        )
        for name, pairs in sets.items()
    }


def train_base(rankings: list[Ranking], folder: Path, seed: int) -> None:
    texts = sorted({(r.task.prompt, f"\n\n{text}") for r in rankings for text in r.task.responses.values() if text})
    corpus = Dataset.from_list([{"prompt": prompt, "chosen": text} for prompt, text in texts])
    tokenizer = train_tokenizer((p + t for p, t in texts), SIZE.vocab_size, SIZE.positions)
    settings = TrainConfig(from_scratch=SIZE, epochs=2, batch_size=16, learning_rate=2e-3)
    train_base_model(corpus, folder, train=settings, compute=COMPUTE, seed=seed, tokenizer=tokenizer)


def fold(
    base: Path, train: list[Ranking], test: list[Ranking], seed: int, epochs: float
) -> dict[str, list[tuple[str, float]]]:
    """For each condition (prompt, 1 right, 0 wrong, 0.5 equal scores) of the held-out majority's pairs."""
    held_out = conditions(test)["majority"]
    found = {}
    for name, pairs in conditions(train).items():
        # as many steps for every annotator's pairs as for a third of them
        passes = epochs / 3 if name == "all pairs" else epochs
        reward = RewardConfig(train={"epochs": passes, "batch_size": 16, "learning_rate": 1e-3})
        with TemporaryDirectory() as model:
            train_reward_model(pairs, str(base), Path(model), reward=reward, compute=COMPUTE, seed=seed)
            score = build_reward(reward, model)
        prompts = list(held_out["prompt"])
        a, b = (np.array(score(prompts, list(held_out[side]))) for side in ("chosen", "rejected"))
        found[name] = list(zip(prompts, ((a > b) + 0.5 * (a == b)).tolist(), strict=True))
    found["longer response"] = [
        (
            row["prompt"],
            (len(row["chosen"]) > len(row["rejected"])) + 0.5 * (len(row["chosen"]) == len(row["rejected"])),
        )
        for row in held_out
    ]
    return found


def by_prompt(rows: list[tuple[str, float]]) -> dict[str, float]:
    groups = defaultdict(list)
    for prompt, right in rows:
        groups[prompt].append(right)
    return {prompt: float(np.mean(rights)) for prompt, rights in sorted(groups.items())}


def table(right: dict[str, list[tuple[str, float]]]) -> str:
    means = {name: by_prompt(rows) for name, rows in right.items()}
    lines = ["| trained on | accuracy | majority's less this |", "|---|---|---|"]
    for name, values in means.items():
        mean, low, high = bootstrap_mean(list(values.values()))
        line = f"| {name} | {mean:.3f} ({low:.3f} to {high:.3f}) |"
        if name != "majority":
            gap, low, high = paired_bootstrap(list(values.values()), list(means["majority"].values()))
            line += f" {gap:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"{line} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds testset-v1.json")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--flip", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("runs/pandalm"))
    args = parser.parse_args()
    start = time.process_time()
    settings = convert(args.folder, args.out)
    print(markdown(gather(settings)), flush=True)

    rankings, _ = read_rankings(settings.rankings, read_tasks(settings.tasks)[0])
    judged = defaultdict(set)
    for ranking in rankings:
        judged[ranking.task.id].add(np.sign(ranking.ranks["b"] - ranking.ranks["a"]))
    prompts = sorted({ranking.task.prompt for ranking in rankings})
    everywhere: dict[str, list[tuple[str, float]]] = defaultdict(list)
    agreed: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for seed in args.seeds:
        base = args.out / f"base-{seed}"
        train_base(rankings, base, seed)
        order = np.random.default_rng(seed).permutation(len(prompts))
        for k in range(args.folds):
            held_out = {prompts[i] for i in order[k :: args.folds]}
            train = [r for r in rankings if r.task.prompt not in held_out]
            test = [r for r in rankings if r.task.prompt in held_out]
            noisy = flipped(train, args.flip, seed * 100 + k)
            clear = [r for r in test if len(judged[r.task.id]) == 1]
            told = {(p.prompt, f"\n\n{p.chosen}", f"\n\n{p.rejected}") for p in ranked_pairs(clear, "majority")[0]}
            rows = conditions(test)["majority"]
            unanimous = [(row["prompt"], row["chosen"], row["rejected"]) in told for row in rows]
            for name, right in fold(base, noisy, test, seed, args.epochs).items():
                everywhere[name] += right
                agreed[name] += [row for row, clear in zip(right, unanimous, strict=True) if clear]
            done = {name: round(float(np.mean([value for _, value in rows])), 3) for name, rows in everywhere.items()}
            print(f"seed {seed}, fold {k}, {time.process_time() - start:.0f} s of CPU: {done}", flush=True)
    pairs, clear = (len(rows["majority"]) // len(args.seeds) for rows in (everywhere, agreed))
    print(f"\n{len(args.seeds)} x {args.folds} folds, {args.flip:.0%} of the training judgements turned round")
    print(f"\nAgainst the majority, {pairs} pairs:\n\n{table(everywhere)}")
    print(f"\nWhere all three agree, {clear} pairs:\n\n{table(agreed)}\n\n{time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
