"""The stage of reward checks in a flow: its report and figures in MLflow, done once, and a gate that stops the flow."""

from pathlib import Path

import pytest
from kitchen import preferences, train_reward
from tiny_models import one_thread, tiny_gpt2  # noqa: F401

from rlhf_lib.errors import GateFailed
from rlhf_lib.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, str]]:
    return preferences(400, seed=2)


@pytest.fixture(scope="module")
def tracked(prefect_server, mlflow_store, tmp_path_factory):
    """A parent run on an MLflow store of this module's own."""
    import mlflow

    from tasks.tracking.runs import PipelineRun

    folder = tmp_path_factory.mktemp("tracked")
    with mlflow_store(folder), mlflow.start_run() as parent:
        yield PipelineRun(run_dir=str(folder), parent_run_id=parent.info.run_id)


def _stage(run, trained, pairs, folder: Path, **checks):
    """Run the task in a flow, on the pairs saved as the data stage saves them."""
    from datasets import Dataset
    from prefect import flow

    from tasks.results import Folders, PreparedData, RewardArtifact, RewardChecks
    from tasks.reward_checks import check_reward_model

    columns = zip(*pairs, strict=True)
    rows = dict(zip(("prompt", "chosen", "rejected"), map(list, columns), strict=True))
    Dataset.from_dict(rows).save_to_disk(str(folder))
    recipe = Recipe.model_validate(
        {
            "name": "kitchen",
            "data": {"prompts": {"dataset": "x"}, "preferences": {}},
            "policy": {"model": "x"},
            "reward": {"kind": "preference", "checks": {"pairs": 100, **checks}},
        }
    )
    folders = Folders(train=str(folder), test=str(folder))
    nothing = dict.fromkeys(("prompts", "corpus", "labelled", "label_names", "criterion", "policy_fingerprint"))
    data = PreparedData(
        **nothing,
        texts=folders,
        preferences=folders,
        transfer=str(folder),
        fingerprints={"preferences/test": "f"},
        report={},
    )
    reward = RewardArtifact(model=str(trained), fingerprint="r", normalization=None)

    @flow(name="checks")
    def checks_only() -> RewardChecks:
        return check_reward_model(recipe, run, data, reward)

    return checks_only()


def _children(run) -> list:
    import mlflow

    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{run.parent_run_id}'",
        order_by=["start_time DESC"],
        output_format="list",
    )


def _artifacts(run_id: str) -> set[str]:
    import mlflow

    return {Path(f.path).name for f in mlflow.MlflowClient().list_artifacts(run_id, "reward_checks")}


def test_the_stage_logs_the_report_and_is_paid_for_once(tracked, trained, pairs, tmp_path):
    import mlflow

    record = _stage(tracked, trained, pairs, tmp_path)
    child = _children(tracked)[0]
    assert record.passed is True
    assert record.metrics["transfer_accuracy"] > 0.9
    assert "gain_over_ngrams" in record.metrics
    assert record.accuracy == child.data.metrics["accuracy"] > 0.9
    assert {c["name"] for c in record.checks} >= {"accuracy", "calibration", "length_bias", "batch_agreement"}
    assert _artifacts(child.info.run_id) == {
        "calibration.png", "scores.png", "length.png", "report.md", "checks.json", "examples.json",
    }  # fmt: skip
    with mlflow.start_run(nested=True) as later:
        other = tracked.model_copy(update={"parent_run_id": later.info.run_id})
        assert _stage(other, trained, pairs, tmp_path / "again") == record
    assert [run.data.tags["reused_from"] for run in _children(other)] == [child.info.run_id]


def test_a_failed_gate_stops_the_flow_with_its_report_logged_and_fails_again(tracked, trained, pairs, tmp_path):
    flipped = [(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]
    for attempt in range(2):
        with pytest.raises(
            GateFailed, match=r"accuracy: the lower bound of the share .* is 0\.\d+ and must be at least 0\.9 "
        ):
            _stage(tracked, trained, flipped, tmp_path / str(attempt), min_accuracy=0.9)
        child = _children(tracked)[0]
        assert child.info.status == "FAILED"
        assert child.data.tags["reused"] == "false"
        assert child.data.metrics["accuracy"] < 0.1
        assert {"report.md", "calibration.png"} <= _artifacts(child.info.run_id)


def vowels(queries, responses):
    """A reward of the answer alone, of which single letters as texts would tell nothing: it gives 0 for all of them."""
    return [sum(response.count(vowel) for vowel in "aeiou") if len(response) > 2 else 0.0 for response in responses]


def constant(queries, responses):
    return [1.0 for _ in responses]


def weighed(prompts, completions, solution, completion_ids, **kwargs):
    """A reward with a column of the prompts: the answer's tokens, a hundred for the place of the prompt's letter."""
    assert all(right == "bcdf".index(prompt) for prompt, right in zip(prompts, solution, strict=True))
    return [100.0 * right + len(said) for right, said in zip(solution, completions, strict=True)]


@pytest.mark.parametrize("reward", ["vowels", "constant", "weighed"])
def test_where_the_data_has_no_answers_the_starting_policy_gives_them(tracked, tmp_path, reward):
    """A closed set of four prompts, no gate set to null: passed where PPO has something to learn from. Where there are
    pairs, a reward that needs a column which they don't have is checked on the starting policy's answers too."""
    from datasets import Dataset, load_from_disk
    from prefect import flow

    from rlhf_lib.ppo.reference import REFERENCE_SAMPLES
    from rlhf_lib.training.scratch import train_tokenizer
    from tasks.results import Folders, PreparedData, StartingPolicy
    from tasks.reward_checks import check_reward_model
    from tasks.reward_model import prepare_reward_model

    letters = [{"text": letter} for letter in "bcdf"]
    Dataset.from_list(letters).to_json(tmp_path / "letters.jsonl")
    tokenizer = train_tokenizer(["bcdf aeiou"], 280)
    tiny_gpt2(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"query": row["text"], "input_ids": tokenizer(row["text"]).input_ids, "solution": number}
        for number, row in enumerate(letters)
    ]
    pairs = Folders(train=str(tmp_path / "pairs"), test=str(tmp_path / "pairs"))
    Dataset.from_dict({"prompt": ["b"] * 60, "chosen": ["x"] * 60, "rejected": ["y"] * 60}).save_to_disk(pairs.train)
    Dataset.from_list(rows).save_to_disk(tmp_path / "prompts")
    recipe = Recipe.model_validate(
        {
            "name": "letters",
            "data": {"prompts": {"dataset": str(tmp_path / "letters.jsonl"), "held_out": 0}},
            "policy": {"model": str(tmp_path / "model")},
            "reward": {"kind": "function", "function": f"{__name__}:{reward}", "normalize": reward == "vowels"},
            "generation": {"max_new_tokens": 24},
        }
    )
    nothing = ("prompts", "corpus", "labelled", "label_names", "criterion", "policy_fingerprint")
    preferences = pairs if reward == "weighed" else None
    folders = Folders(train=str(tmp_path / "prompts"), test=str(tmp_path / "prompts"))
    given = {"preferences": preferences, "texts": folders, "fingerprints": {"prompts/train": "f"}, "report": {}}
    data = PreparedData(**dict.fromkeys(nothing), **given)
    policy = StartingPolicy(model=str(tmp_path / "model"), fingerprint="p", prompts=folders)

    @flow(name="letters")
    def letters_only():
        made = prepare_reward_model(recipe, tracked, data, policy)
        return made, check_reward_model(recipe, tracked, data, made)

    if reward == "constant":
        with pytest.raises(GateFailed, match=r"scores is 0.* on 256 responses of the starting policy"):
            letters_only()
        return
    made, checks = letters_only()
    samples = load_from_disk(made.samples)
    assert len(samples) == REFERENCE_SAMPLES
    assert set(samples["query"]) == set("bcdf")
    assert [rows[number]["query"] for number in samples["solution"]] == samples["query"][:]
    assert len(set(samples["completions"])) > 4  # each prompt is answered anew
    assert checks.passed
    thresholds = {check["name"]: check["threshold"] for check in checks.checks}
    assert thresholds["score_spread"] == recipe.reward.checks.min_score_std
    assert thresholds["length_bias"] is thresholds["degenerate"] is None
