"""What orchestration and tracking cost: the same work by the library alone and by the flow, each a process of its own,
start-up included; how long `rlhf --help` takes; and when PPO starts in a re-run with other PPO settings.

    PYTHONPATH=. .venv/bin/python benchmarks/overhead.py [--rounds 3] [--whole --set ppo.steps=590]

The library's side does all the flow's work but registration: data, base model, reward model, checks, PPO, evaluation
with its report. It logs nowhere, and keeps only what the next stage reads. For recipes that train their base model from
scratch and their reward model on pairs, as the embedded one does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

STAGES = ("data", "base_model", "reward_model", "reward_checks", "ppo", "evaluation")
# little of everything, no gate in the way: what is left is what it costs to have a flow
REDUCED: dict[str, Any] = {
    "data.prompts.limit": 96,
    "data.prompts.test.split": "test[:60]",
    "data.preferences.limit": 256,
    "data.preferences.test.split": "test[:100]",
    "policy.train.from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 160, "vocab_size": 400},
    "policy.train.max_steps": 10,
    "reward.train.max_steps": 8,
    "reward.checks.pairs": 60,
    "reward.checks.min_accuracy": None,
    "reward.checks.min_probe_accuracy": None,
    "reward.checks.max_calibration_error": None,
    "reward.checks.min_score_std": None,
    "reward.checks.max_length_correlation": None,
    "reward.checks.max_degenerate_win_rate": None,
    "generation.max_new_tokens": 12,
    "ppo.steps": 3,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 8,
    "evaluation.prompts": 24,
    "evaluation.perplexity.limit": 20,
}


def library(recipe_name: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """Every stage by the library's own functions; seconds by stage."""
    from datasets import load_from_disk

    from rlhf_lib.data.corpus import load_texts
    from rlhf_lib.data.preferences import load_preferences
    from rlhf_lib.data.prompt_tokens import tokenize_splits
    from rlhf_lib.data.prompts import held_out_prompts, load_prompts
    from rlhf_lib.data.sources import fingerprint, load_sources
    from rlhf_lib.drawing import save
    from rlhf_lib.evaluation import plots
    from rlhf_lib.evaluation.compare import compare_policy
    from rlhf_lib.evaluation.perplexity import Perplexity
    from rlhf_lib.evaluation.report import build_report
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.models.loading import load_policy, load_tokenizer
    from rlhf_lib.ppo.run import Job
    from rlhf_lib.ppo.run import train as train_policy
    from rlhf_lib.recipe import load_recipe
    from rlhf_lib.rewards.build import build_reward
    from rlhf_lib.rewards.checks import run_checks
    from rlhf_lib.rewards.normalization import fit_normalization
    from rlhf_lib.training import scratch, sft
    from rlhf_lib.training.reward_model import train_reward_model

    recipe = load_recipe(recipe_name, overrides)
    assert recipe.policy.train is not None
    size = recipe.policy.train.from_scratch
    assert size is not None
    device = pick_device(recipe.compute)
    marks = [time.perf_counter()]

    loaded = load_sources(recipe)
    prompts, pairs = load_prompts(recipe, loaded), load_preferences(recipe, loaded)
    for rows in loaded.values():
        fingerprint(rows)
    marks.append(time.perf_counter())

    corpus = (text for row in pairs.train for text in (row["prompt"] + row["chosen"], row["rejected"]))
    tokenizer = scratch.train_tokenizer(corpus, size.vocab_size, size.positions)
    train, test, _ = tokenize_splits(prompts.train, prompts.test, recipe, tokenizer, size.positions)
    places = {"train": str(folder / "prompts/train"), "test": str(folder / "prompts/test")}
    train.save_to_disk(places["train"])
    test.save_to_disk(places["test"])
    sft.train_base_model(
        pairs.train,
        folder / "base",
        train=recipe.policy.train,
        compute=recipe.compute,
        seed=recipe.seed,
        tokenizer=tokenizer,
        held_out=pairs.test,
    )
    marks.append(time.perf_counter())

    train_reward_model(
        pairs.train,
        str(folder / "base"),
        folder / "reward",
        reward=recipe.reward,
        compute=recipe.compute,
        seed=recipe.seed,
        held_out=pairs.test,
    )
    constants = None
    if recipe.reward.normalize:
        from rlhf_lib.ppo.rollout import sample_responses

        some = train.select(range(min(len(train), 256)))
        model, words = load_policy(str(folder / "base")), load_tokenizer(str(folder / "base"))
        drawn = sample_responses(model.to(device), words, list(some["input_ids"]), recipe.generation, seed=recipe.seed)
        scorer = build_reward(recipe.reward, str(folder / "reward"), device)
        found = fit_normalization(scorer(list(some["query"]), drawn.texts))
        constants = (found.mean, found.std)
    marks.append(time.perf_counter())

    scorer = build_reward(recipe.reward, str(folder / "reward"), device)
    held_out = list(zip(pairs.test["prompt"], pairs.test["chosen"], pairs.test["rejected"], strict=True))
    run_checks(scorer, recipe.reward.checks, held_out, None, calibrated=True, seed=recipe.seed).raise_if_failed()
    marks.append(time.perf_counter())

    job = Job(
        recipe=recipe,
        policy=str(folder / "base"),
        prompts=places,
        reward=str(folder / "reward"),
        score_constants=constants,
        folder=str(folder / "ppo"),
        checkpoints=str(folder / "checkpoints"),
        key="overhead",
    )
    for _ in train_policy(job):
        pass
    marks.append(time.perf_counter())

    dtype = pick_dtype(recipe.compute, device)
    names = ("reference", "policy")
    models = {name: load_policy(str(folder / "ppo" / name), dtype).to(device) for name in names}
    asked = held_out_prompts(places["test"], recipe)
    words = load_tokenizer(str(folder / "ppo/policy"))
    comparison = compare_policy(
        models["reference"],
        models["policy"],
        words,
        build_reward(recipe.reward, str(folder / "reward"), device),
        list(asked["query"]),
        list(asked["input_ids"]),
        recipe.generation,
        seed=recipe.seed,
        micro_batch_tokens=recipe.ppo.micro_batch_tokens,
    )
    perplexity = None
    if recipe.evaluation.perplexity is not None:
        texts, _ = load_texts(recipe.evaluation.perplexity, recipe.data.prompts.dataset, seed=recipe.seed)
        size_ = recipe.evaluation.perplexity.batch_size
        perplexity = {}
        for name, model in models.items():
            measured = Perplexity(keep_in_memory=True).compute(
                predictions=texts, model=model, tokenizer=words, batch_size=size_
            )
            perplexity |= {name: measured["perplexity"], f"mean_per_text_{name}": measured["mean_perplexity"]}
    drawings = {
        "scores": plots.score_histogram(comparison.reference.scores, comparison.policy.scores),
        "gains": plots.delta_histogram(comparison.deltas, comparison.reward.ci95),
        "lengths": plots.length_histogram(comparison.reference.lengths, comparison.policy.lengths),
    }
    report = build_report(recipe.name, comparison, perplexity, [], probes=[], seed=recipe.seed)
    (folder / "report.html").write_text(report.html(save(drawings, folder / "plots")), encoding="utf-8")
    marks.append(time.perf_counter())
    assert len(load_from_disk(places["test"])) == len(test)
    return {name: end - start for name, start, end in zip(STAGES, marks, marks[1:], strict=False)}


class Timed(NamedTuple):
    begun: float  # seconds since the epoch
    seconds: float
    processor: float  # seconds of processor time, by it and by all that it started
    printed: str


def timed(command: list[str], environment: dict[str, str]) -> Timed:
    """Run it to its end. What it printed is shown where it fails."""
    begun, start = time.time(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        said.seek(0)
        errors.seek(0)
        if status:
            sys.exit(f"{' '.join(command)}\n{said.read()}{errors.read()}")
        return Timed(begun, seconds, usage.ru_utime + usage.ru_stime, said.read())


def stages(run_dir: Path, summary: Path) -> dict[str, tuple[float, float]]:
    """(start, seconds) of every stage of the run that wrote the summary, as MLflow has them."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run_dir}/mlflow.db")
    parent = client.get_run(json.loads(summary.read_text())["mlflow_run_id"])
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", order_by=["start_time"]
    )
    return {
        run.data.tags["stage"]: (
            run.info.start_time / 1000,
            ((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
        )
        for run in found
    }


def main() -> None:
    from flows.cli.configure import configure

    configure()  # both sides inherit the settings
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--whole", action="store_true", help="the recipe as it is, not reduced")
    parser.add_argument("--rounds", type=int, default=1, help="of each side, in turn; medians are told")
    parser.add_argument("--out", type=Path, help="folder for overhead.json")
    parser.add_argument("--library", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # one side, in this process
    args = parser.parse_args()
    reduced = {} if args.whole else REDUCED
    overrides = [f"{key}={json.dumps(value)}" for key, value in reduced.items()] + args.overrides
    if args.library:
        print(json.dumps(library(args.recipe, overrides, args.library)))
        return

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_"))}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    options = [word for setting in overrides for word in ("--set", setting)]
    cli = [sys.executable, "-m", "flows.cli"]
    alone, flow, steered = [], [], []
    by_stage: dict[str, list[tuple[float, float]]] = {}
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder, run_dir, summary = Path(scratch) / "library", Path(scratch) / "runs", Path(scratch) / "s.json"
            folder.mkdir()
            command = [sys.executable, __file__, "--recipe", args.recipe, "--library", str(folder), *options]
            run = [*cli, "run", args.recipe, "--run-dir", str(run_dir), "--summary", str(summary), *options]
            mine, theirs = timed([*command, "--whole"], environment), timed(run, environment)
            alone.append(mine)
            flow.append(theirs)
            print(f"round {i + 1}: library alone {mine.seconds:.1f} s, flow {theirs.seconds:.1f} s", flush=True)
            libraries = json.loads(mine.printed)
            for name, (_, seconds) in stages(run_dir, summary).items():
                by_stage.setdefault(name, []).append((libraries.get(name, 0.0), seconds))
            again = [*run, "--set", "ppo.kl_coef=0.123", "--set", "ppo.steps=1"]
            begun = timed(again, environment).begun
            steered.append(stages(run_dir, summary)["ppo"][0] - begun)
    helped = [timed([*cli, "--help"], environment).seconds for _ in range(5)]

    report: dict[str, Any] = {}
    for what in ("seconds", "processor"):
        pairs = [(getattr(a, what), getattr(b, what)) for a, b in zip(alone, flow, strict=True)]
        report[what] = {
            "library": statistics.median(a for a, _ in pairs),
            "flow": statistics.median(b for _, b in pairs),
            "added": statistics.median(b - a for a, b in pairs),
            "added_share": statistics.median(b / a - 1 for a, b in pairs),
        }
    report |= {
        "stages": {
            name: [statistics.median(side) for side in zip(*pairs, strict=True)] for name, pairs in by_stage.items()
        },
        "help": statistics.median(helped),
        "ppo_starts_after": statistics.median(steered),
        "rounds": args.rounds,
    }
    for what, name in (("seconds", "seconds"), ("processor", "of processor time")):
        line = "library alone {library:.1f}, flow {flow:.1f} {name}: {added:+.1f}, {added_share:+.1%}"
        print(line.format(name=name, **report[what]))
    sides_by_stage = (f"{name} {a:.1f} {b:.1f}" for name, (a, b) in report["stages"].items())
    print("stages, library and flow: " + ", ".join(sides_by_stage))
    print(f"with another ppo.kl_coef PPO starts after {report['ppo_starts_after']:.1f} s")
    print(f"rlhf --help {report['help']:.2f} s")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "overhead.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
