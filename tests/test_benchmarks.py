"""The benchmarks run, on workloads too small to tell anything, and give the figures that they promise."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_speed_tells_phases_memory_and_the_share_of_the_peak(tmp_path):
    said = run("speed.py", "--alone", "--size", "tiny", "--batch", 8, "--steps", 1, "--out", tmp_path)
    assert "% of the peak" in said
    report = json.loads((tmp_path / "tiny-full-fp32-cpu.json").read_text())
    (figures,) = report["medians"].values()
    phases = [figures[name] for name in ("generation", "reward", "forward", "update")]
    assert min(phases) > 0
    assert sum(phases) <= figures["total"]
    assert 4 <= figures["response_tokens"] <= 15
    assert figures["peak_gb"] > 0
    assert 0 < report["update_share_of_peak"] < 1


def test_scaling_tells_what_a_token_costs(tmp_path):
    run("scaling.py", "--batches", 8, "--responses", 4, 8, "--steps", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "scaling.json").read_text())
    sizes = [(row["batch"], row["response"], row["tokens"]) for row in rows]
    assert sizes == [(8, 32, 320), (64, 4, 768), (64, 8, 1024)]
    assert all(row["total"] > 0 for row in rows)
    assert (tmp_path / "scaling.png").stat().st_size > 5000


def test_judged_takes_gains_over_the_reference_and_over_best_of_1(tmp_path):
    record = {
        "ppo": {"kl": 4.0},
        "reward": {"delta": 0.5, "ci95": [0.4, 0.6]},
        "judges": {"fair": {"delta": -0.25, "ci95": None}},
        "baselines": {
            "best_of_1": {"kl": 0.0, "reward": 1.0, "judges": {"fair": 2.0}},
            "best_of_4": {"kl": 0.64, "reward": 1.75, "judges": {"fair": 2.5}},
            "sft_on_chosen": {"kl": 9.0, "reward": 3.0, "judges": {"fair": 3.0}},
        },
    }
    judged = runpy.run_path(str(ROOT / "benchmarks/judged.py"))
    assert judged["of_run"](record, "fair") == (2.0, 0.5, [0.4, 0.6], -0.25, None, "")
    one, four = judged["best_of"](record, "fair")
    assert one == (0.0, 0.0, None, 0.0, None, "1")
    assert four == (pytest.approx(0.8), 0.75, None, 0.5, None, "4")
    seen = [
        {"step": step, "eval/kl": kl, "eval/mean_scores": reward, "eval/judge/fair": judge}
        for step, kl, reward, judge in ((0, -0.1, 1.0, 3.0), (5, 4.0, 1.5, 2.5))
    ]
    assert judged["course"](record, "fair") == []
    record["course"] = seen
    assert judged["course"](record, "fair") == [(0.0, 0.0, None, 0.0, None, ""), (2.0, 0.5, None, -0.5, None, "")]
    summary, plot = tmp_path / "run.json", tmp_path / "plot.png"
    summary.write_text(json.dumps(record))
    run("judged.py", plot, "--judge", "fair", f"usual={summary}")
    assert plot.stat().st_size > 5000
