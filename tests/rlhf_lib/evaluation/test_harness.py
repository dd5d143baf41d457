"""Tasks of the harness over local files, with real tiny models; the gate on them, on figures made by hand."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
import yaml
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401

from rlhf_lib.errors import DataError, RecipeError
from rlhf_lib.evaluation import harness
from rlhf_lib.evaluation.harness import change, check_tasks, measure_tasks
from rlhf_lib.evaluation.promotion import judge
from rlhf_lib.recipe import EvaluationConfig, GatesConfig, LmEvalConfig
from tests.rlhf_lib.evaluation.test_promotion import figures

pytest.importorskip("lm_eval")
CHOICES = ["w5", "w6 w7"]


@pytest.fixture(scope="module", name="folder")
def task_files(tmp_path_factory):
    """The task `next_words`: 24 questions, which of two continuations is likelier; and one that has no mean."""
    root = tmp_path_factory.mktemp("harness")
    rows = [{"question": f"w{8 + i} w{9 + i}", "choices": CHOICES, "answer": i % 2} for i in range(24)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "questions.jsonl")}}}
    mean = {"aggregation": "mean", "higher_is_better": True}
    choice = {
        "task": "next_words",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"} | mean, {"metric": "acc_norm"} | mean],
    }
    rolling = {
        "task": "texts",
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    fewer = choice | {"task": "fewer_words", "process_docs": "!function pick.first_six"}
    for task in (choice, rolling):
        (root / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | data))
    six = yaml.safe_dump(fewer | data).replace("'!function pick.first_six'", "!function pick.first_six")
    (root / "fewer_words.yaml").write_text(six)
    (root / "pick.py").write_text("def first_six(documents):\n    return documents.select(range(6))\n")
    (root / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["next_words", "fewer_words"]}))
    missing = choice | {"task": "missing", "dataset_path": "nobody/nothing-here"}
    (root / "missing.yaml").write_text(yaml.safe_dump(missing))
    return root


def settings(folder, *tasks, **more):
    return LmEvalConfig(tasks=list(tasks) or ["next_words"], include_path=str(folder), **more)


def likelier(model, rows, ids):
    """Spelt out: whether the answer's continuation has the larger sum of log-probabilities."""
    found = []
    for prompt, answer in rows:
        sums = []
        for choice in ids:
            tokens = torch.tensor([prompt + choice])
            with torch.no_grad():
                logprobs = model(tokens).logits.log_softmax(-1)[0]
            sums.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(choice)))
        found.append(float(max(range(len(ids)), key=sums.__getitem__) == answer))
    return found


def test_a_task_before_and_after_is_what_the_models_log_probabilities_say(folder):
    models = {"reference": tiny_gpt2(0).eval(), "policy": tiny_gpt2(3).eval()}
    rows = [([8 + i, 9 + i], i % 2) for i in range(24)]
    before, after = (likelier(model, rows, [[5], [6, 7]]) for model in models.values())
    assert before != after
    (found,) = measure_tasks(models, word_tokenizer(), settings(folder))
    assert (found.name, found.metric, found.documents) == ("next_words", "acc", 24)
    assert found.reference == pytest.approx(sum(before) / 24)
    assert found.policy == pytest.approx(sum(after) / 24)
    assert found.delta == pytest.approx((sum(after) - sum(before)) / 24)
    assert found.ci95[0] <= found.delta <= found.ci95[1]
    (few,) = measure_tasks(models, word_tokenizer(), settings(folder, limit=10, metrics={"next_words": "acc_norm"}))
    assert (few.metric, few.documents, few.ci95) == ("acc_norm", 10, None)
    (same,) = measure_tasks(dict.fromkeys(models, models["policy"]), word_tokenizer(), settings(folder))
    assert (same.delta, same.ci95) == (0.0, (0.0, 0.0))


def test_examples_before_the_question_are_as_many_as_asked_for(folder):
    models = dict.fromkeys(("reference", "policy"), tiny_gpt2(0).eval())
    plain, shot = (measure_tasks(models, word_tokenizer(), settings(folder, num_fewshot=n))[0] for n in (0, 2))
    assert plain.reference != shot.reference


def test_in_a_group_every_document_counts_the_same(folder):
    models = {"reference": tiny_gpt2(0).eval(), "policy": tiny_gpt2(3).eval()}
    rows = [([8 + i, 9 + i], i % 2) for i in range(24)]
    after = likelier(models["policy"], rows, [[5], [6, 7]])
    (found,) = measure_tasks(models, word_tokenizer(), settings(folder, "both"))
    assert (found.name, found.documents) == ("both", 30)
    assert found.policy == pytest.approx((sum(after) + sum(after[:6])) / 30)


def test_changes_are_paired_by_document():
    before = {("arc", i): float(i % 2) for i in range(40)}
    after = {("arc", i): float(i < 30) * (i % 2) for i in reversed(range(40))}
    found = change("arc", "acc", before, after)
    assert (found.reference, found.policy, found.delta) == (0.5, 0.375, -0.125)
    # of the 40 differences 5 are -1: a standard error of sqrt(0.125 * 0.875 / 40) = 0.052
    assert found.ci95 == pytest.approx((-0.125 - 1.96 * 0.052, -0.125 + 1.96 * 0.052), abs=0.03)
    assert found.record["documents"] == 40
    with pytest.raises(ValueError, match="different documents"):
        change("arc", "acc", before, {("arc", 0): 1.0})


def found(**changes):
    base = {"metric": "acc", "reference": 0.5, "policy": 0.48, "delta": -0.02, "ci95": [-0.03, -0.01]}
    return base | {"documents": 400, "higher_is_better": 1} | changes


@pytest.mark.parametrize(
    ("measured", "least", "passes"),
    [
        (found(), -0.03, False),
        (found(ci95=[-0.02, 0.0]), -0.02, False),  # above, not at
        (found(ci95=[-0.019, 0.01]), -0.019, True),
        (found(ci95=None, delta=-0.01, documents=9), -0.01, True),
        (found(higher_is_better=0), 0.01, True),  # of an error rate, less is a gain
        (found(higher_is_better=0, delta=0.02, ci95=[0.01, 0.03]), -0.03, False),
        (found(ci95=[math.nan, 0.1]), math.nan, False),
    ],
)
def test_the_gate_holds_for_the_intervals_lower_end(measured, least, passes):
    evaluation = figures(lm_eval={"arc": measured})
    passed, gates, reason = judge(GatesConfig(min_lm_eval_delta=-0.02), evaluation, None)
    (gate,) = [gate for gate in gates if gate["name"] == "lm_eval/arc"]
    assert gate["figure"] == pytest.approx(least, nan_ok=True)
    assert passed == gate["passed"] == passes
    assert passes or "acc on arc" in reason
    assert judge(GatesConfig(), evaluation, None)[0]  # off unless asked for


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ({"tasks": ["next_word"]}, RecipeError, "no task next_word: did you mean next_words"),
        ({"tasks": ["texts"]}, RecipeError, "texts has no metric with a value for each document"),
        ({"metrics": {"next_words": "f1"}}, RecipeError, "metrics: next_words has no f1: use acc or acc_norm"),
        ({"tasks": ["missing"]}, DataError, "missing can't be opened: .*HF_HUB_OFFLINE is set: run once with the hub"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(folder, monkeypatch, asked, kind, says):
    listed = harness._listed  # without the harness's own tasks, which take ten seconds to list
    monkeypatch.setattr(harness, "_listed", lambda include_path, defaults: listed(include_path, False))
    with pytest.raises(kind, match=says):
        check_tasks(LmEvalConfig(**{"tasks": ["next_words"], "include_path": str(folder)} | asked))


def test_without_the_package_the_extra_is_named(monkeypatch, folder):
    find = importlib.util.find_spec
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(RecipeError, match=r"needs the package lm_eval: pip install 'ppo-rlhf\[lm-eval\]'"):
        check_tasks(settings(folder))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"include_path .*/none: no such folder"):
        check_tasks(settings(tmp_path / "none"))


def test_a_list_of_tasks_is_the_section_with_that_list():
    assert EvaluationConfig(lm_eval=["arc_easy"]).lm_eval == LmEvalConfig(tasks=["arc_easy"])
    for wrong in ({"tasks": ["a", "a"]}, {"tasks": []}, {"tasks": ["a"], "metrics": {"b": "acc"}}):
        with pytest.raises(ValueError):
            EvaluationConfig(lm_eval=wrong)
