"""The machine-readable record that every run ends with, and the table that a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.results import EvaluationResult, PPOResult, RegisteredModel, RewardChecks

Record = dict[str, Any]


def build_record(
    recipe: str, run_id: str, checks: RewardChecks, ppo: PPOResult, evaluation: EvaluationResult, model: RegisteredModel
) -> Record:
    """One record from the stages' results; a metric that doesn't apply is None, never 0."""
    diversity = evaluation.diversity
    return {
        "recipe": recipe,
        "mlflow_run_id": run_id,
        "model": {"name": model.name, "version": model.version, "promoted": model.promoted},
        "reward_model": {"accuracy": checks.accuracy, "checks_passed": checks.passed},
        "ppo": {"steps": ppo.steps, "seconds": ppo.seconds, "kl": evaluation.kl},
        "reward": evaluation.reward,
        "perplexity": evaluation.perplexity,
        "diversity": {key: diversity[key] for key in ("distinct_2_reference", "distinct_2_policy")},
    }


def report_page(record: Record, run_dir: Path) -> Path:
    """The evaluation's report of the run."""
    return run_dir / "work" / record["mlflow_run_id"] / "evaluation" / "report.html"


def table(record: Record) -> str:
    """The record's headline figures as aligned lines of text."""

    def figure(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    reward, perplexity, model = record["reward"], record["perplexity"] or {}, record["model"] or {}
    low, high = reward["ci95"]
    promoted = "champion" if model.get("promoted") else "challenger"
    rows = [
        ("", "before", "after", ""),
        (
            "reward",
            figure(reward["reference"]),
            figure(reward["policy"]),
            f"delta {figure(reward['delta'], '+.3f')}, 95% [{figure(low, '+.3f')}, {figure(high, '+.3f')}], "
            f"wins {figure(reward['win_rate'], '.0%')}",
        ),
        ("perplexity", figure(perplexity.get("reference"), ".2f"), figure(perplexity.get("policy"), ".2f"), ""),
        (
            "distinct-2",
            figure(record["diversity"]["distinct_2_reference"]),
            figure(record["diversity"]["distinct_2_policy"]),
            "",
        ),
        ("KL", "", figure(record["ppo"]["kl"], ".2f"), "nats per response"),
        (
            "reward model",
            "",
            figure(record["reward_model"]["accuracy"]),
            "held-out accuracy" if record["reward_model"]["accuracy"] is not None else "no held-out pairs or labels",
        ),
        ("registered", "", "", f"{model['name']} version {model['version']} ({promoted})" if model else "-"),
    ]
    return "\n".join(f"{name:<14}{before:>10}{after:>10}  {note}".rstrip() for name, before, after, note in rows)


def comparison_table(record: Record) -> str:
    """What `compare` returned as aligned lines of text, and the matrix of who beats whom."""

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    models = record["models"]
    width = max(16, *(len(model["name"]) for model in models))
    head = f"{'reward':>9}  {'gain, 95% interval':<28}{'wins':>5}{'perplexity':>12}{'KL':>8}{'distinct-2':>12}"
    lines = [" " * width + head]
    for model in models:
        gain = "-"
        if model["ci95"]:
            low, high = model["ci95"]
            gain = f"{model['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(
            f"{model['name']:<{width}}{model['reward']:>9.3f}  {gain:<28}{figure(model['win_rate'], '.0%'):>5}"
            f"{figure(model['perplexity'], '.2f'):>12}{figure(model['kl'], '.2f'):>8}{model['distinct_2']:>12.3f}"
        )
    lines += [
        f"Gains and wins against {models[0]['name']}, on {record['prompts']} prompts of {record['recipe']}; KL to "
        f"{record['kl_to']}, nats per response.",
        "",
        "row beats column".ljust(width) + "".join(f"  {model['name']}" for model in models),
    ]
    for model, row in zip(models, record["win_rates"], strict=True):
        shares = zip(models, row, strict=True)
        cells = (f"  {figure(share, '.0%'):>{len(other['name'])}}" for other, share in shares)
        lines.append(model["name"].ljust(width) + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)
