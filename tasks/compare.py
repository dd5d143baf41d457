"""The comparison of models, as a Prefect task: registered versions, folders, hub ids, on the same prompts and seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import LoggedModelInput
from prefect import task
from pydantic import BaseModel

from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import Recipe, load_recipe
from tasks.registry import versions
from tasks.registry.policies import resolve_model
from tasks.stage.options import OPTIONS
from tasks.tracking import run_logger
from tasks.tracking.progress import showing
from tasks.tracking.reports import publish
from tasks.tracking.run_folder import open_verdicts
from tasks.tracking.runs import model_link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from rlhf_lib.evaluation.compare import PerplexityOf
    from rlhf_lib.evaluation.judges import Judgement
    from rlhf_lib.evaluation.results import Comparison

REFERENCE = "reference"  # what a user writes for the reference of the first registered version


class Model(BaseModel):
    """A model to compare: its display name, where it comes from, and the folder or hub id to load."""

    name: str
    uri: str
    folder: str
    model_id: str | None = None  # of MLflow's logged model; None for what isn't registered


class Plan(BaseModel):
    """What to compare, and on what, with everything resolved and nothing computed."""

    recipe: Recipe
    models: list[Model]
    reward_model: str | None
    judges: dict[str, str] = {}  # folders of those that a run of the recipe trained

    @property
    def anchor(self) -> int:
        """Whom the KL is measured to: the reference where it is among them, else the first."""
        return next((i for i, model in enumerate(self.models) if model.name == REFERENCE), 0)


def plan_comparison(
    names: list[str], recipe: str | None = None, overrides: list[str] | None = None, prompts: int | None = None
) -> Plan:
    """Resolve what the user wrote: `names` are registry URIs, hub ids, folders, or `reference`; without a `recipe` the
    first registered version's own is used. Raises ModelError naming the first that isn't available."""
    from rlhf_lib.evaluation.opinions import check_judge
    from rlhf_lib.models.loading import load_config, load_tokenizer
    from rlhf_lib.rewards.build import check_reward

    if len(names) < 2:
        raise ModelError(f"can't compare {' '.join(names) or 'nothing'} with nothing: name at least two models")
    made = {name: versions.version_of(name) for name in names if name.startswith("models:/")}
    first = next(iter(made.values()), None)
    if first is None and (recipe is None or REFERENCE in names):
        listed = ", ".join(names)
        if recipe is None:
            raise ModelError(
                f"none of {listed} is a registered version (models:/NAME/VERSION), whose recipe would say which prompts"
                " and which reward to compare on: name a recipe with --recipe"
            )
        raise ModelError(
            f"'{REFERENCE}' is what the first registered version was trained from, and none of {listed} is one "
            "(models:/NAME/VERSION): name the reference's folder or hub id instead"
        )
    settings = overrides or []
    if prompts is not None:
        settings = [*settings, f"evaluation.prompts={prompts}"]
    loaded = load_recipe(recipe, settings) if recipe else versions.recipe_of(first, settings)  # type: ignore[arg-type]
    models: list[Model] = []
    for name in names:
        if name == REFERENCE:
            found = Model(name=name, uri=name, folder=versions.reference_of(first))  # type: ignore[arg-type]
        elif name in made:
            version = made[name]
            uri = versions.uri_of(version)
            found = Model(
                name=f"{version.name} {version.version}",
                uri=uri,
                folder=resolve_model(uri),
                model_id=versions.logged_model_of(version),
            )
        else:
            found = Model(name=Path(name).name if Path(name).is_dir() else name, uri=name, folder=name)
        taken = [model.name for model in models]
        if found.name in taken:
            found.name += f" ({1 + sum(model.name.partition(' (')[0] == found.name for model in models)})"
        load_config(found.folder, loaded.policy.trust_remote_code)
        load_tokenizer(found.folder, loaded.policy.trust_remote_code)
        models.append(found)
    reward_model = versions.reward_model_of(loaded, made.values())
    if reward_model is None or not Path(reward_model).is_dir():
        check_reward(loaded.reward)
    for title, judge in loaded.evaluation.judges.items():
        if judge.model is not None:
            judge.model = resolve_model(judge.model)
        if remark := check_judge(title, judge):
            run_logger().warning("%s", remark)
    judges = versions.judges_of(loaded, made.values())
    return Plan(recipe=loaded, models=models, reward_model=reward_model, judges=judges)


@task(name="compare", **OPTIONS)
@showing("compare")
def compare_models(plan: Plan, folder: str) -> dict[str, Any]:
    """Sample, score and measure, and log to the active MLflow run: metrics, the table of all responses, plots, an HTML
    and a Markdown report in `folder`, links to the versions.

    Returns `models` (name, uri, and the metrics of each), `win_rates`, `prompts`, `report` (path of the page).
    """
    from rlhf_lib.evaluation import plots
    from rlhf_lib.evaluation.compare import compare_folders
    from rlhf_lib.evaluation.judges import judge_models
    from rlhf_lib.evaluation.measures import flat_metrics
    from rlhf_lib.evaluation.report import build_comparison_report, how_sampled
    from rlhf_lib.evaluation.results import ModelSource, slug
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.rewards.build import build_reward

    recipe = plan.recipe
    _link(plan)
    device = pick_device(recipe.compute)
    done = compare_folders(
        [ModelSource(model.name, model.folder) for model in plan.models],
        _prompts(plan),
        build_reward(recipe.reward, plan.reward_model, device),
        recipe.generation,
        device=device,
        dtype=pick_dtype(recipe.compute, device),
        seed=recipe.seed,
        anchor=plan.anchor,
        held_out=not recipe.data.prompts.unheld,
        perplexity_of=_perplexity_of(recipe),
        policy=recipe.policy,
        micro_batch_tokens=recipe.ppo.micro_batch_tokens,
        on_done=lambda name: run_logger().info("compare: %s has answered", name),
    )
    judged, opinions = judge_models(
        recipe,
        done,
        plan.judges,
        device,
        verdicts=partial(open_verdicts, Path(folder).parents[2]),  # RUN_DIR/work/RUN/compare
        run=Path(folder).parent.name,
    )
    drawings = {
        "scores": plots.score_boxes(done),
        "gains": plots.gain_intervals(done),
        "wins": plots.win_map(done),
    }
    notes = [how_sampled(recipe), f"Prompts, generation and reward of recipe {recipe.name}."]
    report = build_comparison_report(
        f"Compared: {', '.join(model.name for model in plan.models)}", done, notes, judges=judged, seed=recipe.seed
    )
    mlflow.set_tag("held_out_prompts", str(done.held_out).lower())
    by_judge = {
        name: {slug(result.name): found.record for result, found in zip(done.results[1:], judgements, strict=True)}
        for name, judgements in judged.items()
    }
    mlflow.log_metrics(done.metrics() | {"prompts": float(len(done.queries))} | flat_metrics({"judge": by_judge}))
    mlflow.log_table(done.table() | opinions, "responses.json")
    page = publish(report, drawings, Path(folder), key="compare", description=report.title)
    return _record(plan, done, judged) | {"report": str(page)}


def _link(plan: Plan) -> None:
    """The models to the active run: as tags, as inputs (a version's page then shows the run), and in words."""
    run = mlflow.active_run()
    assert run is not None
    mlflow.log_params(
        {"recipe": plan.recipe.name, "seed": plan.recipe.seed, "prompts": plan.recipe.evaluation.prompts}
        | {f"model.{i}": model.uri for i, model in enumerate(plan.models, start=1)}
    )
    lines = []
    for i, model in enumerate(plan.models, start=1):
        link = model_link(model.uri)
        mlflow.set_tags({f"model.{i}": model.uri} | ({f"model.{i}.url": link} if link else {}))
        lines.append(f"- [{model.uri}]({link})" if link else f"- `{model.uri}`")
    mlflow.set_tag("mlflow.note.content", "\n".join(["Compared:", *lines]))
    logged = [LoggedModelInput(model.model_id) for model in plan.models if model.model_id]
    if logged:
        mlflow.MlflowClient().log_inputs(run.info.run_id, models=logged)


def _prompts(plan: Plan) -> Dataset:
    """The recipe's evaluation prompts as its pipeline would draw them with the first model's tokenizer, columns query
    and prompt."""
    from rlhf_lib.data.prompt_tokens import tokenize_splits
    from rlhf_lib.data.prompts import draw_prompts, load_prompts
    from rlhf_lib.models.chat import tokenizer_of
    from rlhf_lib.models.loading import load_config, positions

    recipe, first = plan.recipe, plan.models[0].folder
    trust = recipe.policy.trust_remote_code
    tokenizer = tokenizer_of(recipe.policy, first)
    texts = load_prompts(recipe, chat=tokenizer.chat_template is not None)
    _, held_out, _ = tokenize_splits(texts.train, texts.test, recipe, tokenizer, positions(load_config(first, trust)))
    return draw_prompts(held_out, recipe)


def _perplexity_of(recipe: Recipe) -> PerplexityOf | None:
    """Measures a model on the recipe's perplexity set; None where it has none."""
    from rlhf_lib.data.corpus import load_texts
    from rlhf_lib.evaluation.perplexity import measure_perplexity

    wanted = recipe.evaluation.perplexity
    if wanted is None:
        return None
    prompts = recipe.data.prompts
    read: dict[tuple[bool, bool], tuple[list[str], list[str] | None]] = {}

    def measure(model: Any, tokenizer: Any) -> dict[str, Any]:
        kind = seq2seq, chat = bool(model.config.is_encoder_decoder), tokenizer.chat_template is not None
        if kind not in read:
            read[kind] = load_texts(
                wanted,
                default=prompts.dataset,
                seed=recipe.seed,
                prompts=prompts if seq2seq else None,
                chat=recipe.policy if chat else None,
            )
        texts, given_texts = read[kind]
        return measure_perplexity(wanted, model, tokenizer, texts, given_texts)

    return measure


def _record(plan: Plan, done: Comparison, judged: Mapping[str, Sequence[Judgement]]) -> dict[str, Any]:
    """What the flow returns: small, JSON."""
    models = []
    for number, (model, result) in enumerate(zip(plan.models, done.results, strict=True)):
        gain = result.gain
        models.append(
            {
                "name": model.name,
                "uri": model.uri,
                "reward": result.mean,
                "delta": gain.delta if gain else None,
                "ci95": list(gain.ci95) if gain and gain.ci95 else None,
                "win_rate": gain.win_rate if gain else None,
                "perplexity": result.perplexity,
                "kl": result.kl,
                "distinct_2": result.distinct_2,
                "judges": {name: _opinion(judgements, number) for name, judgements in judged.items()},
            }
        )
    return {
        "recipe": plan.recipe.name,
        "prompts": len(done.queries),
        "distinct_prompts": done.distinct,
        "held_out": done.held_out,
        "models": models,
        "win_rates": done.win_rates,
        "kl_to": done.anchor,
    }


def _opinion(judgements: Sequence[Judgement], number: int) -> dict[str, Any]:
    """A judge's mean score of one of the models, and what it gained on the first."""
    if not number:
        # what the first wins differs from opponent to opponent
        alone = judgements[0].gained if judgements[0].asked is None else None
        return {"mean": alone and alone.reference, "delta": None, "ci95": None, "win_rate": None}
    record = judgements[number - 1].record
    return {"mean": record["policy"]} | {key: record[key] for key in ("delta", "ci95", "win_rate", "failed")}
