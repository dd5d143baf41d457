"""The evaluation task through the real Prefect engine and a real MLflow store."""

from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from datasets import Dataset
from llm_server import llm_server
from mlflow.artifacts import download_artifacts
from prefect import flow
from prefect.artifacts import Artifact
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lib.evaluation.perplexity import Perplexity
from rlhf_lib.recipe import Recipe
from tasks.evaluation import evaluate_policy
from tasks.results import (
    EvaluationResult,
    Folders,
    PPOResult,
    PreparedData,
    RewardArtifact,
    StartingPolicy,
    run_record,
)
from tasks.tracking.runs import PipelineRun

WORDS = ["<eos>", *"abcdefghijklmnopqrs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A reference, a policy that says `a` more often, prompts and perplexity texts, all on disk."""
    root = tmp_path_factory.mktemp("evaluation")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, eos_token_id=0))
    for name in ("reference", "policy"):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        embedding = model.transformer.wte.weight[1].detach()
        model.transformer.ln_f.bias.data += 2 * embedding / embedding.square().sum()
    queries = [f"{a} {b}" for a in "bcdefg" for b in "jklmno"]
    ids = [[WORDS.index(word) for word in query.split()] for query in queries]
    Dataset.from_dict({"query": queries, "prompt": queries, "input_ids": ids}).save_to_disk(root / "prompts")
    (root / "texts").mkdir()
    Dataset.from_dict({"chosen": ["a b c", "d e " * 20, ""]}).to_json(root / "texts" / "test.jsonl")
    (root / "tasks").mkdir()
    Dataset.from_dict({"question": queries}).to_json(root / "tasks" / "questions.jsonl")
    mean = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    task = {
        "task": "avoids_a",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "tasks" / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["a", "p"],
        "doc_to_target": 1,
        "metric_list": [mean],
    }
    (root / "tasks" / "avoids_a.yaml").write_text(yaml.safe_dump(task))
    return root


def count_a(queries, responses):
    return [float(response.split().count("a")) for response in responses]


def metric_fn(samples, prompts, outputs, **kwargs):
    return {"letters/a": [output.count("a") for output in outputs], "responses": len(samples)}


def more_a(conversation, answer_a, answer_b):
    """What a language model says that counts as the reward does."""
    a, b = count_a([], [answer_a, answer_b])
    return "[[C]]" if a == b else f"[[{'A' if a > b else 'B'}]]"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, llm_server(more_a) as server:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture(scope="module")
def evaluated(folders, prefect_server, mlflow_store, server):
    """Record and MLflow run of the task with, and without, a perplexity set."""
    llm = {"base_url": server.url, "retries": 0}
    nowhere = llm | {"base_url": server.url.removesuffix("/v1")}
    judges = {name: {"kind": "llm", "model": "m", "llm": one} for name, one in (("fair", llm), ("down", nowhere))}
    settings = {
        "name": "counting",
        "data": {
            "prompts": {
                "dataset": str(folders / "texts"),
                "column": "chosen",
                "query": {"kind": "first_words", "min": 1, "max": 2},
            }
        },
        "policy": {"model": str(folders / "reference")},
        "reward": {"kind": "function", "function": f"{__name__}:count_a"},
        "generation": {"max_new_tokens": 6},
        "evaluation": {"prompts": 32, "perplexity": {}, "metrics": [f"{__name__}:metric_fn"], "judges": judges}
        | {"lm_eval": {"tasks": ["avoids_a"], "include_path": str(folders / "tasks")}},
        "compute": {"device": "cpu", "precision": "fp32"},
    }

    @flow
    def pipeline(with_perplexity: bool):
        recipe = Recipe.model_validate(settings)
        if not with_perplexity:
            recipe.evaluation.perplexity = None
            recipe.evaluation.metrics = []
            recipe.evaluation.lm_eval = None
            recipe.evaluation.best_of = None
        with mlflow.start_run() as parent:
            run = PipelineRun(run_dir=str(folders / "runs"), parent_run_id=parent.info.run_id)
            return evaluate_policy(
                recipe,
                run,
                policy=StartingPolicy(
                    model=str(folders / "reference"),
                    fingerprint=None,
                    prompts=Folders(train=str(folders / "prompts"), test=str(folders / "prompts")),
                ),
                reward=RewardArtifact(model=None, fingerprint=None, normalization=None),
                ppo=PPOResult(
                    reference=str(folders / "reference"),
                    policy=str(folders / "policy"),
                    steps=1,
                    seconds=1.0,
                    kl=0.0,
                    warnings=[{"kind": "length", "message": "step 9: responses went from 3 to 6 tokens on average"}],
                ),
                data=PreparedData(
                    prompts=None,
                    texts=Folders(train="", test=""),
                    preferences=None,
                    corpus=None,
                    labelled=None,
                    label_names=None,
                    criterion=None,
                    fingerprints={},
                    policy_fingerprint=None,
                    report={"prompts": {"test": {"rows": 40, "dropped": {"duplicate": 4}, "kept": 36}}},
                ),
            )

    with mlflow_store(folders):
        records = {wanted: pipeline(wanted) for wanted in (True, False)}
        yield records, Artifact.get("evaluation")


def test_record_is_the_contract(evaluated):
    record = evaluated[0][True]
    assert set(record.reward) == {"reference", "policy", "delta", "ci95", "win_rate", "prompts"}
    assert set(record.perplexity) == {"reference", "policy", "mean_per_text_reference", "mean_per_text_policy"}
    assert {"distinct_1_reference", "distinct_2_policy"} < set(record.diversity)
    assert record.reward["ci95"][0] > 0
    assert record.kl > 0
    counts = record.perplexity_counts
    assert (counts["texts"], counts["tokens"], counts["truncated"], counts["skipped"]) == (3, 3 + 15, 1, 1)
    assert EvaluationResult.model_validate_json(record.model_dump_json()) == record


def test_answers_have_a_perplexity_of_their_own(evaluated, folders):
    """Of what follows each text's query alone, which the policy is given."""
    record = evaluated[0][True]
    for name in ("reference", "policy"):
        found = Perplexity(keep_in_memory=True).compute(
            predictions=[" b c", " e" + " d e" * 19], prompts=["a", "d"],
            model=GPT2LMHeadModel.from_pretrained(folders / name),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folders / name),
        )  # fmt: skip
        assert record.answer_perplexity[name] == pytest.approx(found["perplexity"])
        assert record.answer_perplexity[f"mean_per_text_{name}"] == pytest.approx(found["mean_perplexity"])
        assert record.metrics[f"answer_perplexity/{name}"] == record.answer_perplexity[name]
        assert record.answer_perplexity[name] != pytest.approx(record.perplexity[name])
    assert record.trained_on == "texts"
    page = Path(record.report).read_text(encoding="utf-8")
    assert "<td>Perplexity of answers</td>" in page
    assert "Perplexity of answers: those in 2 of these texts, given their prompts." in page
    assert evaluated[0][False].answer_perplexity is None


def test_metrics_of_one_s_own_are_before_and_after(evaluated):
    record, without = evaluated[0][True], evaluated[0][False]
    assert record.measured["letters-a"] == {key: record.reward[key] for key in ("reference", "policy", "delta", "ci95")}
    assert record.measured["responses"] == {"reference": 32.0, "policy": 32.0, "delta": 0.0, "ci95": None}
    assert record.metrics["evaluation/letters-a/ci95_low"] == record.reward["ci95"][0]
    assert record.metrics["evaluation/responses/policy"] == 32
    assert "evaluation/responses/ci95_low" not in record.metrics
    assert "<td>letters/a</td>" in Path(record.report).read_text(encoding="utf-8")
    table = mlflow.load_table("before_after.json", run_ids=[record.mlflow_run_id])
    assert table["letters/a_after"].tolist() == table["score_after"].tolist()
    assert without.measured == {}
    assert not [name for name in without.metrics if name.startswith("evaluation/")]


def test_a_task_of_the_harness_is_in_the_record_the_metrics_and_the_report(evaluated):
    """The policy learned to say `a`, and so unlearned the task whose answer it isn't."""
    record, without = evaluated[0][True], evaluated[0][False]
    found = record.lm_eval["avoids_a"]
    assert (found["metric"], found["documents"], found["higher_is_better"]) == ("acc", 36, 1)
    assert found["delta"] == pytest.approx(found["policy"] - found["reference"])
    assert found["ci95"][1] < 0
    assert record.metrics["lm_eval/avoids_a/delta"] == found["delta"]
    assert record.metrics["lm_eval/avoids_a/ci95_low"] == found["ci95"][0]
    page = Path(record.report).read_text(encoding="utf-8")
    assert "<tr><td>avoids_a</td><td>acc</td>" in page
    assert run_record("counting", "", {"evaluation": record})["lm_eval"] == record.lm_eval
    assert without.lm_eval == {}


def test_a_language_model_judges_and_its_verdicts_serve_the_next_run(evaluated, folders):
    records = evaluated[0]
    fair, again = records[True].judges["fair"], records[False].judges["fair"]
    assert fair["win_rate"] == fair["policy"] == records[True].reward["win_rate"]  # it counts as the reward does
    assert fair["delta"] == pytest.approx(2 * fair["win_rate"] - 1)
    assert (fair["failed"], fair["asked"]["judged"], fair["prompts"]) == (None, 32, 32)
    assert fair["asked"]["requests"] > 0
    assert again == fair | {"asked": fair["asked"] | {"requests": 0, "known_verdicts": fair["asked"]["requests"]}}
    assert records[True].metrics["judge/fair/asked/requests"] == fair["asked"]["requests"]
    assert "fair" not in records[True].baselines["best_of_4"]["judges"]
    assert (folders / "runs" / "verdicts.sqlite").is_file()
    table = mlflow.load_table("before_after.json", run_ids=[records[True].mlflow_run_id])
    assert table["judge/fair_after"].mean() == fair["policy"]


def test_a_language_model_that_can_t_be_asked_costs_its_opinion_alone(evaluated):
    record = evaluated[0][True]
    assert record.judges["down"]["delta"] is None
    assert record.judges["down"]["failed"].startswith("evaluation.judges.down: what http://127.0.0.1:")
    assert "Judge down has no opinion" in Path(record.report).read_text(encoding="utf-8")
    assert not [name for name in record.metrics if name.startswith("judge/down")]


def test_a_figure_that_does_not_apply_is_left_out(evaluated):
    record = evaluated[0][False]
    assert record.perplexity is None
    assert not [name for name in record.metrics if "perplexity" in name]
    assert not [name for name in mlflow.get_run(record.mlflow_run_id).data.metrics if "perplexity" in name]


def test_child_run_has_figures_table_plots_and_report(evaluated):
    record = evaluated[0][True]
    run = mlflow.get_run(record.mlflow_run_id)
    logged = dict(run.data.metrics)
    assert logged.pop("seconds") > 0
    assert logged == pytest.approx(record.metrics)
    named = {"reward/delta", "reward/ci95_low", "kl", "perplexity/mean_per_text_policy", "diversity/distinct_2_policy"}
    assert named < set(logged)
    table = mlflow.load_table("before_after.json", run_ids=[run.info.run_id])
    assert len(table) == 32
    assert table["score_after"].mean() == pytest.approx(record.reward["policy"])
    page = Path(download_artifacts(run_id=run.info.run_id, artifact_path="report.html")).read_text(encoding="utf-8")
    assert '<li class="bad">step 9: responses went from 3 to 6 tokens on average</li>' in page  # PPO's warnings
    assert "Evaluation of counting" in page
    assert "Data: 4 of 40 (10%) evaluation prompts dropped: 4 repeated." in page
    assert (
        "texts of more than 16 tokens, start token included, lose their start (cut: 1; without a token to score: 1)"
        in page
    )
    plots = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in ("scores", "gains", "lengths", "baselines")}


def test_best_of_n_is_on_the_same_prompts(evaluated):
    record, without = evaluated[0][True], evaluated[0][False]
    assert list(record.baselines) == [f"best_of_{n}" for n in (1, 2, 4, 8, 16)]
    rewards = [found["reward"] for found in record.baselines.values()]
    assert rewards == sorted(rewards)
    error = record.metrics["reward/reference_std"] / 32**0.5
    assert rewards[0] == pytest.approx(record.reward["reference"], abs=4 * error)  # other samples of the same model
    assert record.baselines["best_of_16"]["prompts"] == 32
    assert record.metrics["baseline/best_of_16/reward"] == rewards[-1]
    assert record.metrics["baseline/same_kl/policy"] == pytest.approx(record.reward["policy"])
    page = Path(record.report).read_text(encoding="utf-8")
    assert "Did PPO buy more than best-of-n would have?" in page
    assert "<td>best of 16</td>" in page
    assert without.baselines == {}
    assert not [name for name in without.metrics if name.startswith("baseline/")]
    assert "best of" not in Path(without.report).read_text(encoding="utf-8").lower()


def test_prefect_shows_the_report(evaluated):
    assert evaluated[1].data.startswith("# Evaluation of counting")


def test_same_seed_same_figures(evaluated):
    with_set, without = evaluated[0][True], evaluated[0][False]
    assert with_set.reward == without.reward
    assert with_set.kl == without.kl
