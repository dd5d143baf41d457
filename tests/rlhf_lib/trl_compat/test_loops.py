"""The published GPT-2/IMDB and DLite loops, written for TRL 0.11, unchanged on the drop-in: real data and models.

Each step is TRL's default batch of 128, sampled one response at a time as published, so a loop takes half a minute.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run_loop(assets):
    if not (assets / "loops").is_dir():
        pytest.skip("RLHF_TEST_ASSETS has no folder loops/")

    def run(loop: str, *arguments: str | Path) -> list[dict[str, float]]:
        """The statistics that the loop prints, one dict a step."""
        models, data = assets / "models", assets / "data"
        ran = subprocess.run(
            [
                sys.executable,
                assets / f"loops/{loop}.py",
                "rlhf_lib.trl_compat",
                models / "gpt2-imdb-mini",
                models / "distilbert-imdb-mini",
                *(data / a if isinstance(a, Path) else a for a in arguments),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return [ast.literal_eval(line) for line in ran.stdout.splitlines() if line.startswith("{")]

    return run


@pytest.mark.parametrize("options", [["--lr", "1e-3"], ["--lr", "1e-2", "--lora"]], ids=["full", "lora"])
def test_the_sentiment_loop_runs(run_loop, options):
    steps = run_loop("sentiment_loop", Path("imdb/train.jsonl.gz"), "--steps", "2", *options)
    assert len(steps) == 2
    assert steps[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    # it has learned something: several standard errors of the estimate above 0, for sampling is not seeded
    assert steps[1]["objective/kl"] > 0.01
    assert all(abs(step["ppo/mean_scores"]) < 3 for step in steps)  # logits of a classifier that is rarely sure
    assert all(abs(step["ppo/loss/total"]) < 1 for step in steps)


def test_the_pair_reward_loop_runs(run_loop):
    (step,) = run_loop("pair_reward_loop", Path("hh-rlhf/helpful-base/test.jsonl.gz"), "--steps", "1")
    assert step["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(step["ppo/mean_scores"]) < 3
    assert abs(step["ppo/loss/total"]) < 1
