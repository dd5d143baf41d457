"""The data stage: all of a recipe's data, read, filtered, tokenized, saved and shown in MLflow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import entities
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from prefect import task

from rlhf_lib.credentials import redact
from rlhf_lib.recipe import Recipe, leaves
from tasks.results import Folders, PreparedData
from tasks.stage.keys import DATA
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking import run_logger, tell_losses
from tasks.tracking.reports import FILES, ranking_fingerprints, show_feedback
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from rlhf_lib.data.corpus import Corpus
    from rlhf_lib.data.labelled import LabelledTexts

EXAMPLES = 10
_DIGEST = 36  # MLflow's database keeps no more characters of a data set's digest


@task(name="data", **OPTIONS)
def prepare_data(recipe: Recipe, run: PipelineRun) -> PreparedData:
    """Save what the later stages read; reused where the content of rows, settings and tokenizer is the same.

    Raises DataError, and ModelError for a missing model or a rewarded label that the labelled texts don't have.
    """
    from rlhf_lib.data.corpus import is_seq2seq
    from rlhf_lib.data.joined import items
    from rlhf_lib.data.losses import data_losses
    from rlhf_lib.data.prepare import prepare
    from rlhf_lib.data.sources import fingerprint, load_sources, sources
    from rlhf_lib.models.loading import fingerprint as model_fingerprint

    loaded = load_sources(recipe)
    digests = {key: fingerprint(rows) for key, rows in {id(rows): rows for rows in loaded.values()}.items()}
    fingerprints = {role: digests[id(rows)] for role, rows in loaded.items()} | ranking_fingerprints(recipe)
    from_scratch = recipe.policy.train is not None and recipe.policy.train.from_scratch is not None
    model = None if from_scratch else recipe.policy.model
    # the key covers the rows' content, not where they come from
    place = {"dataset", "name", "data_dir", "split", "test"}
    splits: dict[str, Any] = {kind: {"train": True, "test": True} for kind in ("preferences", "corpus", "labelled")}
    splits["preferences"] |= {"rankings": set(FILES), "transfer": True}
    settings = recipe.data.model_dump(mode="json", exclude={"prompts": place, **splits})
    settings["weights"] = {
        role: [weight for _, weight in items(source, default)] for role, (source, default, _) in sources(recipe).items()
    }
    policy = (model_fingerprint(model), recipe.generation.response_limit) if model else None
    chat = recipe.policy.chat_settings
    cut = recipe.data.corpus is not None and is_seq2seq(recipe)
    key = DATA.key(settings, fingerprints, recipe.seed, policy, cut, chat)

    for role, digest in fingerprints.items():
        mlflow.MlflowClient().set_tag(run.parent_run_id, f"fingerprint.{role}", digest)
    sets = _sets(recipe, loaded, fingerprints)
    mlflow.MlflowClient().log_inputs(run.parent_run_id, datasets=sets)
    with run_stage(DATA, run, key=key) as current:
        if current.reused:
            _check_label(recipe, current.result.label_names)
            _tell(recipe, current.result.report)
            _check_sizes(recipe, current.result.report)
            return current.result
        made = prepare(recipe, loaded, _tokenizer(recipe, model) if model else None)
        report, labelled = made.report, made.labelled
        pairs = {"train": made.pairs.train, "test": made.pairs.test} if made.pairs else None
        criterion = None
        shown: dict[str, float] = {}
        if (
            made.pairs
            and made.pairs.feedback is not None
            and recipe.data.preferences
            and recipe.data.preferences.rankings
        ):
            criterion = made.pairs.feedback.criterion
            shown = show_feedback(made.pairs.feedback, recipe.data.preferences.rankings)
        names = labelled.names if labelled else None
        _check_label(recipe, names)
        _check_sizes(recipe, report)

        counts = {name: value for name, value in leaves(report, "/").items() if isinstance(value, int | float)}
        metrics = {name.replace(" ", "_"): float(value) for name, value in counts.items()}
        metrics |= shown | _show(made.tokenized or made.texts, pairs, made.corpus)
        if labelled:
            _show_labels(labelled)
        mlflow.MlflowClient().log_inputs(current.run.info.run_id, datasets=sets)
        mlflow.log_dict(report | {"losses": [str(loss) for loss in data_losses(report)]}, "report.json")
        _tell(recipe, report)
        current.log_metrics(metrics)
        with _no_progress_bars():
            kept = {"prompts": made.tokenized, "texts": made.texts, "preferences": pairs}
            for kind, rows in (("corpus", made.corpus), ("labelled", labelled)):
                kept[kind] = {"train": rows.train, "test": rows.test} if rows else None
            transfer = made.pairs.transfer if made.pairs else None
            if transfer is not None:
                transfer.save_to_disk(current.folder / "transfer")
            folders: dict[str, Any] = {name: _save(rows, current.folder / name) for name, rows in kept.items()}
        current.finish(
            PreparedData(
                **folders,
                transfer=None if transfer is None else str(current.folder / "transfer"),
                label_names=names,
                criterion=criterion,
                fingerprints=fingerprints,
                policy_fingerprint=policy[0] if policy else None,
                report=report,
                metrics=metrics,
            )
        )
    return current.result


def _tell(recipe: Recipe, report: dict[str, Any]) -> None:
    """What was lost on the way and what leaks, in the terminal; and every count on the run's page in Prefect."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import TaskRunContext

    from rlhf_lib.data.losses import data_losses, table

    losses = data_losses(report)
    tell_losses("data", losses)
    if TaskRunContext.get() is not None:
        lines = "\n".join(f"- {loss}" for loss in losses)
        create_markdown_artifact(
            f"{table(report)}\n\n{lines}", key="data", description=f"{recipe.name}: rows read, dropped and kept"
        )


def _tokenizer(recipe: Recipe, model: str) -> tuple[PreTrainedTokenizerBase, int]:
    """The policy's tokenizer and positions."""
    from rlhf_lib.models.chat import policy_tokenizer
    from rlhf_lib.models.loading import load_config, positions

    return policy_tokenizer(recipe.policy, model), positions(load_config(model, recipe.policy.trust_remote_code))


def _save(splits: dict[str, Dataset] | None, folder: Path) -> Folders | None:
    if splits is None:
        return None
    for name, rows in splits.items():
        rows.save_to_disk(folder / name)
    return Folders(train=str(folder / "train"), test=str(folder / "test"))


def _check_label(recipe: Recipe, names: list[str] | None) -> None:
    """Raise ModelError where the reward's label is none of the labels that its classifier is to be trained on."""
    from transformers import PreTrainedConfig

    from rlhf_lib.rewards.classifier import label_column

    if names is not None:
        label_column(PreTrainedConfig(id2label=dict(enumerate(names))), recipe.reward.label)


def _check_sizes(recipe: Recipe, report: dict[str, Any]) -> None:
    """Warn of a small evaluation. Raises DataError for too few held-out pairs."""
    from rlhf_lib.evaluation.sample_size import check_sample_sizes

    prompts = report.get("tokenized", report["prompts"])["test"]["kept"]
    pairs = report["preferences"]["test"]["kept"] if "preferences" in report else None
    for warning in check_sample_sizes(recipe, prompts, pairs):
        run_logger().warning("data: %s", warning)


def _show_labels(labelled: LabelledTexts) -> None:
    from rlhf_lib.data.describe import label_bars

    splits = {"train": labelled.train, "test": labelled.test}
    mlflow.log_figure(label_bars(labelled.names, {k: list(rows["labels"]) for k, rows in splits.items()}), "labels.png")
    rows = labelled.train[:EXAMPLES]
    names = [", ".join(labelled.names[i] for i in numbers) for numbers in rows["labels"]]
    mlflow.log_table({"text": rows["text"], "labels": names}, "examples/labelled.json")


def _show(
    prompts: dict[str, Dataset], pairs: dict[str, Dataset] | None, corpus: Corpus | None = None
) -> dict[str, float]:
    """Length histograms and example rows to MLflow; returns the lengths' metrics."""
    from rlhf_lib.data.describe import length_histogram, summarize

    column, unit = ("input_ids", "tokens") if "input_ids" in prompts["train"].column_names else ("prompt", "characters")
    panels = {f"prompt, {unit}": {name: [len(value) for value in rows[column]] for name, rows in prompts.items()}}
    mlflow.log_table(prompts["train"].select_columns(["query", "prompt"])[:EXAMPLES], "examples/prompts.json")
    if pairs is not None:
        answers = {name: [len(text) for text in pairs["train"][name]] for name in ("chosen", "rejected")}
        panels["answer of the training pairs, characters"] = answers
        mlflow.log_table(pairs["train"][:EXAMPLES], "examples/preferences.json")
    if corpus is not None:
        splits = {"train": corpus.train, "test": corpus.test}
        panels["corpus, characters"] = {name: [len(text) for text in rows["chosen"]] for name, rows in splits.items()}
        mlflow.log_table(corpus.train[:EXAMPLES], "examples/corpus.json")
    mlflow.log_figure(length_histogram(panels), "lengths.png")
    return {
        f"{panel.split(',')[0].split()[0]}_{panel.split(', ')[1]}/{series}/{name}": value
        for panel, lengths in panels.items()
        for series, values in lengths.items()
        for name, value in summarize(values).items()
    }


def _sets(recipe: Recipe, loaded: dict[str, Dataset], fingerprints: dict[str, str]) -> list[entities.DatasetInput]:
    """Each set once for MLflow, whatever number of roles it has, its content's fingerprint as the digest."""
    from mlflow.data.huggingface_dataset import from_huggingface

    from rlhf_lib.data.joined import items
    from rlhf_lib.data.sources import EMBEDDED, sources

    roles: dict[int, list[str]] = {}
    for role, rows in loaded.items():
        roles.setdefault(id(rows), []).append(role)
    described = sources(recipe)
    inputs = []
    for shared in roles.values():
        source, default, _ = described[shared[0]]
        sets = [one for one, _ in items(source, default)]
        places = [redact(str(one.dataset)) for one in sets]
        name = " + ".join(
            "/".join(part for part in (place.rstrip("/").split("/")[-1], one.name, one.data_dir, one.split) if part)
            for place, one in zip(places, sets, strict=True)
        )
        logged = from_huggingface(
            loaded[shared[0]],
            path=None if len(places) > 1 or places == [EMBEDDED] else places[0],
            data_dir=source.data_dir if len(places) == 1 else None,
            name=name[:500],
            digest=fingerprints[shared[0]][:_DIGEST],
        )
        with warnings.catch_warnings():  # MLflow's hint that integer columns can't hold missing values
            warnings.simplefilter("ignore", UserWarning)
            entity = entities.Dataset(**logged.to_dict())
        inputs.append(entities.DatasetInput(entity, [entities.InputTag(MLFLOW_DATASET_CONTEXT, ", ".join(shared))]))
    return inputs


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
