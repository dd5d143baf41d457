"""`rlhf check`, as a user types it: what it prints, and that it does nothing else."""

import json
import os
import re

import psutil
import pytest

from flows import cli
from flows.cli.check import page
from rlhf_lib.plan.plan import Lengths, Plan

SMALL = {
    "data.prompts.limit": 60,
    "data.prompts.test.split": "test[:40]",
    "data.preferences.limit": 50,
    "data.preferences.test.split": "test[:30]",
    "policy.train.from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 160, "vocab_size": 400},
    "generation.max_new_tokens": 12,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 8,
    "evaluation.perplexity.limit": 20,
    "reward.checks.min_pairs": 30,
}


def options(**changes) -> list[str]:
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(autouse=True)
def run_dir(tmp_path, monkeypatch):
    """Nothing may be written or started: no run folder, no server."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path / "runs"))
    before = psutil.Process().children(recursive=True)
    yield
    assert not (tmp_path / "runs").exists()
    assert psutil.Process().children(recursive=True) == before


def test_a_recipe_on_one_screen(capsys):
    assert cli.main(["check", "embedded", *options()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    assert "training prompts 8,000 0 0 7,940 60" in text  # read, dropped, held out, above the limit, kept
    assert "test pairs 30 0 0 0 30" in text
    assert "texts for perplexity 20" in text
    assert "of 148; base model" in text  # 160 positions less 12 for the response
    assert "PPO" in text
    assert "52 steps of 16 responses" in text
    for part in ("weights", "gradients", "optimizer", "reference", "reward", "activations", "logits"):
        assert re.search(rf"{part} [0-9.]+ MB", text.partition("memory in PPO")[2])
    assert "trained here on the pairs" in text
    assert "min_accuracy 0.8, min_gain_over_length 0, min_gain_over_ngrams -0.03, min_prompt_sensitivity 0.5" in text
    assert "min_reward_delta 0, min_judge_delta 0, max_perplexity_ratio 2" in text


def test_what_is_lost_and_what_the_reward_says(tmp_path, monkeypatch, capsys):
    rows = [
        {"prompt": f"Is number {i} odd?", "chosen": " yes" if i % 2 else " no", "rejected": " no"} for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "check_rewards.py").write_text("def length(queries, responses): return [len(r) for r in responses]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = {
        "name": "mine",
        "data": {
            "prompts": {"dataset": "pairs.jsonl", "column": "prompt", "held_out": 0.25},
            "preferences": {"train": {"split": "train[:32]"}, "test": {"split": "train[32:]"}},
        },
        "policy": {
            "train": {"from_scratch": {"layers": 1, "width": 16, "heads": 1, "positions": 40, "vocab_size": 280}}
        },
        "reward": {"kind": "function", "function": "check_rewards:length", "checks": {"min_pairs": 4}},
        "generation": {"max_new_tokens": 8},
        "ppo": {"steps": 2, "batch_size": 8},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    assert cli.main(["check", "mine.yaml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"]["preferences"]["train"] == {
        "rows": 32,
        "dropped": {
            "prompts differ": 0,
            "empty answer": 0,
            "identical answers": 16,
            "repeated pair": 0,
            "prompt in test": 0,
        },
        "kept": 16,
    }
    assert "16 of 32 (50%) training pairs dropped: 16 with the same chosen and rejected answer" in plan["warnings"]
    assert any("evaluation prompts are in the training pairs too" in line for line in plan["warnings"])
    assert sorted(set(plan["scores"])) == [0.0, 3.0, 4.0]  # of an empty response, " no" and " yes"
    assert plan["size"]["parameters"]["reward"] == 0
    assert plan["seconds"]["ppo"] == pytest.approx(2 * plan["seconds"]["ppo_step"])
    assert "min_accuracy" in plan["checks"]
    assert "max_calibration_error" not in plan["checks"]  # the scores of a function are no log-odds
    assert "max_perplexity_ratio" not in plan["gates"]  # no texts to measure it on


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embeded"], "unknown recipe 'embeded': did you mean embedded?"),
        (["embedded", "--set", "data.prompts.column=txt"], "column 'txt' not found"),
        (
            ["embedded", "--set", "policy.unfrozen_layers=2"],
            "unfrozen_layers is 2, but GPT2LMHeadModel has 2",
        ),
        (["embedded", "--set", "reward={kind: function, function: 'no:such'}"], "module no can't be imported"),
    ],
)
def test_what_would_stop_the_run_is_one_line_and_exit_code_1(arguments, said, capsys):
    assert cli.main(["check", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("rlhf: error: ")
    assert said in printed.err
    assert printed.out == ""
    assert cli.main(["check", *arguments, "--json"]) == 1
    assert said in json.loads(capsys.readouterr().out)["error"]


def test_more_losses_than_fit_are_counted():
    plan = Plan(
        recipe="x",
        rows={
            "prompts": {"train": {"rows": 9, "dropped": {}, "kept": 9}},
            "tokenized": {"train": {"rows": 9, "kept": 9}},
        },
        perplexity_texts=None,
        losses=[f"loss {i}" for i in range(50)],
        warnings=["loss 7", "loss 49"],
        lengths={"prompt": Lengths(mean=1, longest=2, limit=1 << 20, cut=0, looked_at=9)},
        size=None,
        steps=1,
        batch_size=1,
        scores=None,
        reward="function x:y",
        checks={},
        gates={},
        seconds=None,
    )
    lines = page(plan)
    assert len(lines) == 40
    assert lines[5:8] == ["warning: loss 7", "warning: loss 49", "loss 0"]
    shown = sum("loss" in line for line in lines)
    assert f"and {50 - shown} more: rlhf check --json" in lines
    assert "longest, tokens  prompt 2" in lines
    plan = plan.model_copy(update={"losses": ["loss"], "warnings": []})
    assert "loss" in page(plan)
