"""Responses for annotators, as a Prefect task: sampled from a policy, written as ranking tasks and as a form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import mlflow
from prefect import task

from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe
from tasks.registry import policies
from tasks.registry.versions import uri_of, version_of
from tasks.stage.options import OPTIONS
from tasks.tracking import run_logger
from tasks.tracking.progress import showing

INSTRUCTIONS = (
    "Rank the responses to each prompt by how {criterion} they are: 1 is the best, equal ranks are a tie. Rank every "
    "response of a prompt, and put your name on every row."
)
FORM = ("id", "prompt", "response", "text", "annotator", "rank")


@task(name="collect", **OPTIONS)
@showing("collect")
def collect_responses(
    recipe: Recipe,
    policy: str,
    out: str,
    *,
    responses: int,
    prompts: int,
    criterion: str,
    instructions: str | None,
    seed: int,
) -> dict[str, Any]:
    """Sample `responses` per prompt for `prompts` of the recipe's training prompts and write the tasks to `out` (JSONL)
    and, beside it, a form (CSV) that is a rankings file once filled in. Logs to the active MLflow run.

    `seed` draws the prompts, the samples and the order in which responses are shown. Equal responses of a prompt are
    shown once, empty ones not at all, and prompts with fewer than two left are no task. Returns the files and counts.
    Raises ModelError for a policy that isn't there, DataError where no prompt has two different responses.
    """
    import numpy as np

    from rlhf_lib.data.rankings.files import task_id

    if policy.startswith("models:/"):  # an alias's version of now, so that the tasks say who answered
        policy = uri_of(version_of(policy))
    rows, texts = _sample(recipe, policy, responses, prompts, seed)
    instructions = instructions or INSTRUCTIONS.format(criterion=criterion)
    order = np.random.default_rng([seed, 3])
    tasks, equal = [], 0
    for i, query in enumerate(rows):
        drawn = texts[i * responses : (i + 1) * responses]
        distinct = list({text.strip(): text for text in drawn if text.strip()}.values())
        equal += len(drawn) - len(distinct)
        if len(distinct) < 2:
            continue
        shown = [distinct[j] for j in order.permutation(len(distinct))]
        tasks.append(
            {
                "id": task_id(query, shown, criterion),
                "prompt": query,
                "responses": [{"id": _letter(j), "text": text} for j, text in enumerate(shown)],
                "criterion": criterion,
                "instructions": instructions,
                "policy": policy,
            }
        )
    counts = {
        "prompts": len(rows),
        "tasks": len(tasks),
        "responses": sum(len(t["responses"]) for t in tasks),
        "equal or empty responses": equal,
        "prompts without two responses": len(rows) - len(tasks),
    }
    if not tasks:
        raise DataError(
            f"{policy} gave none of {len(rows)} prompts two different responses: raise --responses, or the recipe's "
            "generation.temperature"
        )
    files = {"tasks": out, "form": str(Path(out).with_suffix(".csv"))}
    Path(out).write_text("".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks), encoding="utf-8")
    _write_form(files["form"], tasks)
    mlflow.log_params(
        {"policy": policy, "responses": responses, "criterion": criterion, "seed": seed, "recipe": recipe.name}
    )
    mlflow.log_metrics({name.replace(" ", "_"): float(count) for name, count in counts.items()})
    for file in files.values():
        mlflow.log_artifact(file)
    run_logger().info("%s: %s tasks by %s for annotators", out, len(tasks), policy)
    return {"files": files, "policy": policy, "counts": counts}


def _sample(recipe: Recipe, policy: str, responses: int, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Queries (P), and their responses (P * responses), grouped by query."""
    import numpy as np

    from rlhf_lib.data.prompt_tokens import tokenize_splits
    from rlhf_lib.data.prompts import load_prompts
    from rlhf_lib.data.sources import first_seen
    from rlhf_lib.models.chat import tokenizer_of
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.models.loading import load_config, load_policy, positions
    from rlhf_lib.models.policy import autocast
    from rlhf_lib.ppo.rollout import sample_responses

    folder, trust = policies.resolve_model(policy), recipe.policy.trust_remote_code
    tokenizer = tokenizer_of(recipe.policy, folder)
    texts = load_prompts(recipe, chat=tokenizer.chat_template is not None)
    # the pipeline's own split: the evaluation's prompts are never shown to annotators
    train, _, _ = tokenize_splits(texts.train, texts.test, recipe, tokenizer, positions(load_config(folder, trust)))
    train = train.select(np.flatnonzero(first_seen(train["query"])))  # weights and openings repeat some
    drawn = np.random.default_rng([seed, 4]).permutation(len(train))[:count]
    rows = train.select(drawn.tolist())
    device = pick_device(recipe.compute)
    model = load_policy(folder, trust_remote_code=trust).to(device)  # type: ignore[arg-type]
    with autocast(device, pick_dtype(recipe.compute, device)):
        prompts = [ids for ids in rows["input_ids"] for _ in range(responses)]
        sampled = sample_responses(model, tokenizer, prompts, recipe.generation, seed=seed)
    return list(rows["query"]), sampled.texts


def _write_form(file: str, tasks: list[dict[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8-sig", newline="") as opened:  # the mark tells spreadsheets that it is UTF-8
        writer = csv.writer(opened)
        writer.writerow(FORM)
        for task in tasks:
            for response in task["responses"]:
                writer.writerow([task["id"], task["prompt"].strip(), response["id"], response["text"].strip(), "", ""])


def _letter(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    before, last = divmod(place, 26)
    return (_letter(before - 1) if before else "") + chr(ord("a") + last)
