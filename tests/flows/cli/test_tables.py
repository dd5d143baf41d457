"""Tables that the commands print."""

from __future__ import annotations

from flows.cli.tables import run_table


def test_metrics_of_one_s_own_are_in_the_table_of_a_run():
    record = {
        "reward": {"reference": 0.1, "policy": 0.3, "delta": 0.2, "ci95": [0.1, 0.3], "win_rate": 0.75, "prompts": 60},
        "perplexity": None,
        "diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.7},
        "metrics": {
            "share_of_right_answers": {"reference": 0.5, "policy": 0.75, "delta": 0.25, "ci95": [0.0, 0.5]},
            "n": {"reference": None, "policy": 2.0, "delta": None, "ci95": None},
        },
        "ppo": {"kl": 1.5},
        "reward_model": {"accuracy": None},
        "model": {"name": "m", "version": "1", "promoted": True},
    }
    lines = run_table(record).splitlines()
    own = next(line for line in lines if line.startswith("share_of_right_answers"))
    assert own.split(None, 3) == ["share_of_right_answers", "0.500", "0.750", "delta +0.250, 95% [+0.000, +0.500]"]
    assert next(line for line in lines if line.startswith("n ")).split() == ["n", "-", "2.000", "delta", "-"]
    judged = record["reward"] | {"delta": -0.2, "ci95": [-0.3, -0.1], "win_rate": 0.25, "only_reports": "why"}
    lines_judged = run_table({**record, "judges": {"fair": judged}}).splitlines()
    assert lines_judged[2].split(None, 4) == [
        "judge", "fair", "0.100", "0.300",
        "delta -0.200, wins 25%, 95% [-0.300, -0.100], 60 prompts; only reports",
    ]  # fmt: skip
    assert run_table({**record, "metrics": None}).count("\n") == len(lines) - 3
