"""Rounds of human feedback through the real Prefect engine and MLflow: responses collected from a tiny policy, ranked
by made-up annotators, a reward model trained on their consensus, and its champion's responses ranked in turn."""

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
import yaml
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401

from flows import cli
from rlhf_lib.errors import GateFailed

UNGATED = dict.fromkeys(
    ("min_pairs", "min_accuracy", "min_probe_accuracy", "max_calibration_error", "min_score_std",
     "max_length_correlation", "max_degenerate_win_rate")
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(prefect_server, mlflow_store, tmp_path_factory):
    """A tiny policy, prompts, and a recipe whose pairs are still to be collected."""
    root = tmp_path_factory.mktemp("rounds")
    tiny_gpt2().save_pretrained(root / "policy")
    word_tokenizer().save_pretrained(root / "policy")
    prompts = [{"text": f"w{i} w{(i * 7) % 60 + 1} w3"} for i in range(1, 61)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    settings = {
        "name": "rounds",
        "data": {
            "prompts": {"dataset": str(root / "prompts.jsonl"), "held_out": 0.2},
            "preferences": {"rankings": {"tasks": [], "feedback": ["later"], "held_out": 0.2}},
        },
        "policy": {"model": str(root / "policy")},
        "reward": {"train": {"max_steps": 3, "batch_size": 8}, "checks": UNGATED | {"pairs": 20}},
        "generation": {"max_new_tokens": 5},
        "ppo": {"steps": 1, "batch_size": 8},
        "evaluation": {"prompts": 8},
        "registration": {
            "gates": dict.fromkeys(("min_prompts", "min_reward_delta", "max_perplexity_ratio", "min_distinct_2_ratio"))
        },
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with mlflow_store(root), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUN_DIR", str(root))
        yield root


def read(file) -> list[dict]:
    text = Path(file).read_text(encoding="utf-8-sig")
    return (
        list(csv.DictReader(io.StringIO(text)))
        if str(file).endswith(".csv")
        else list(map(json.loads, text.split("\n")[:-1]))
    )


def judge(tasks: str, out: Path) -> None:
    """Ann and Ben rank by the last word's number, Cyd the other way round; Ben fills in the form."""
    rows, form = [], read(Path(tasks).with_suffix(".csv"))
    for task in read(tasks):
        by_id = {r["id"]: int(r["text"].split()[-1][1:]) for r in task["responses"]}
        order = sorted(set(by_id.values()))
        ranks = {name: order.index(number) + 1 for name, number in by_id.items()}
        rows.append({"id": task["id"], "annotator": "ann", "ranks": ranks})
        rows.append({"id": task["id"], "annotator": "cyd", "ranks": {name: -rank for name, rank in ranks.items()}})
        for row in form:
            if row["id"] == task["id"]:
                row |= {"annotator": "ben", "rank": ranks[row["response"]]}
    rows.append({"id": "nowhere", "annotator": "ann", "ranks": {"a": 1}})
    out.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(out.with_suffix(".csv"), "w", newline="") as filled:
        writer = csv.DictWriter(filled, form[0])
        writer.writeheader()
        writer.writerows(form)


def collect(folder, number: int, *options: str) -> str:
    """A round: collected by the command, ranked; returns the tasks' file."""
    out = str(folder / f"round{number}.jsonl")
    command = ["collect", str(folder / "recipe.yaml"), "--out", out, "--responses", "3", "--prompts", "30"]
    assert cli.main([*command, "--criterion", "honest", *options]) == 0
    judge(out, folder / f"ranked{number}")
    return out


def train(folder, rounds: int, *settings: str):
    """The pipeline on the rounds' rankings; its parent run and the child runs by stage."""
    from flows.rlhf import rlhf

    files = {
        "tasks": [str(folder / f"round{i + 1}.jsonl") for i in range(rounds)],
        "rankings": [str(folder / f"ranked{i + 1}{kind}") for i in range(rounds) for kind in (".jsonl", ".csv")],
        "feedback": [],
        "drop_flagged": True,
    }
    given = [f"data.preferences.rankings.{key}={json.dumps(value)}" for key, value in files.items()]
    with suppress(GateFailed):
        rlhf(recipe=str(folder / "recipe.yaml"), overrides=[*given, *settings])
    search = {"search_all_experiments": True, "output_format": "list"}
    [parent] = mlflow.search_runs(filter_string="attributes.run_name LIKE 'rounds%'", max_results=1, **search)
    children = mlflow.search_runs(filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'", **search)
    return parent, {child.data.tags["stage"]: child for child in children}


@pytest.fixture(scope="module")
def first(folder):
    tasks = collect(folder, 1)
    return tasks, *train(folder, 1)


def test_collected_tasks_and_form(folder, first):
    tasks = read(first[0])
    form = read(folder / "round1.csv")
    assert 20 <= len(tasks) <= 30
    assert {task["criterion"] for task in tasks} == {"honest"}
    assert all("how honest they are" in task["instructions"] for task in tasks)
    for task in tasks:
        texts = [response["text"].strip() for response in task["responses"]]
        assert 2 <= len(set(texts)) == len(texts) <= 3
        assert [response["id"] for response in task["responses"]] == list("abc"[: len(texts)])
        assert task["policy"] == str(folder / "policy")
    assert [(row["id"], row["response"]) for row in form] == [(t["id"], r["id"]) for t in tasks for r in t["responses"]]
    assert {row["annotator"] + row["rank"] for row in form} == {""}
    [run] = mlflow.search_runs(
        filter_string="tags.stage = 'collect'", search_all_experiments=True, output_format="list"
    )[-1:]
    assert run.data.metrics["tasks"] == len(tasks)
    assert {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)} == {
        "round1.jsonl",
        "round1.csv",
    }


def test_the_evaluations_prompts_are_shown_to_nobody(folder, first):
    from rlhf_lib.data.prompts import load_prompts
    from rlhf_lib.recipe import load_recipe

    held_out = set(load_prompts(load_recipe(str(folder / "recipe.yaml"))).test["query"])
    assert not held_out & {task["prompt"] for task in read(first[0])}


def test_agreement_and_rejected_rows_are_in_mlflow(first):
    run = first[2]["data"]
    metrics = run.data.metrics
    assert metrics["agreement/annotator/cyd/alpha"] < -0.9
    assert metrics["agreement/annotator/ann/agreement"] == pytest.approx(0.5, abs=0.05)  # ties agree with Cyd's
    assert (metrics["agreement/flagged"], metrics["rankings/rejected"]) == (1, 1)
    assert metrics["preferences/rankings/rejected/unknown_id"] == 1
    assert metrics["preferences/rankings/dropped/annotator_flagged"] > 0
    uri = run.info.artifact_uri
    assert "| cyd |" in mlflow.artifacts.load_text(f"{uri}/rankings/report.md")
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id, "rankings")}
    assert names == {
        f"rankings/{name}" for name in ("report.md", "rejected.json", "agreement.json", "agreement.png", "matrix.json")
    }
    assert {f"fingerprint.preferences/{kind}" for kind in ("tasks", "rankings")} <= set(first[1].data.tags)


def test_the_criterion_is_in_the_reward_models_tags_and_the_versions(first):
    _, parent, stages = first
    assert stages["reward_model"].data.tags["criterion"] == "honest"
    assert stages["reward_model"].data.metrics["accuracy/held_out"] >= 0
    version = mlflow.MlflowClient().get_model_version("rounds", parent.data.tags["model.version"])
    assert version.tags["criterion"] == "honest"


def test_the_champions_responses_join_in_a_second_round(folder, first):
    tasks = collect(folder, 2, "--policy", "models:/rounds@champion", "--seed", "1")
    assert {task["policy"] for task in read(tasks)} == {"models:/rounds/1"}
    # a gate out of reach stops the run after the reward model, which is all that is asked for
    before, after = first[2], train(folder, 2, "reward.checks.min_score_std=1e9")[1]
    assert set(after) == {"data", "reward_model", "reward_checks"}
    assert after["reward_model"].data.tags["reused"] == "false"
    count = "preferences/rankings/rankings"
    assert after["data"].data.metrics[count] > before["data"].data.metrics[count]
    assert after["reward_model"].data.metrics["pairs"] > before["reward_model"].data.metrics["pairs"]


def test_the_report_in_the_terminal(folder, first, capsys):
    files = [str(folder / "ranked1.jsonl"), str(folder / "ranked1.csv")]
    assert cli.main(["rankings", *files, "--tasks", first[0]]) == 0
    printed = capsys.readouterr().out
    assert "Criterion: honest." in printed
    assert "| flagged |" in next(line for line in printed.splitlines() if line.startswith("| cyd"))
    assert f"- {files[0]}, line" in printed
    assert "unknown id: no task has the id nowhere" in printed
    assert cli.main(["rankings", *files]) == 2
    assert "needs the tasks" in capsys.readouterr().err


def test_what_cannot_be_collected_is_refused(folder, capsys):
    recipe = str(folder / "recipe.yaml")
    for options, message in (
        (["--out", "tasks.csv"], "must be a .jsonl file"),
        (["--out", str(folder / "x.jsonl"), "--responses", "1"], "nothing to rank"),
        (
            ["--out", str(folder / "x.jsonl"), "--policy", "models:/none@champion"],
            "none@champion is not in the registry",
        ),
    ):
        assert cli.main(["collect", recipe, *options]) == 2
        assert message in capsys.readouterr().err
