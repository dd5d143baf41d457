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
    task = {"metric": "acc", "reference": 0.5, "policy": 0.45, "delta": -0.05, "ci95": [-0.08, -0.02], "documents": 400}
    (line,) = set(run_table({**record, "lm_eval": {"arc_easy": task}}).splitlines()) - set(lines)
    assert line.split(None, 3) == [
        "arc_easy", "0.500", "0.450", "acc, delta -0.050, 95% [-0.080, -0.020], 400 documents"
    ]  # fmt: skip
    failed = dict.fromkeys(judged) | {"failed": "it was down"}
    down = run_table({**record, "judges": {"fair": failed}}).splitlines()[2]
    assert down.split(None, 4) == ["judge", "fair", "-", "-", "failed: it was down"]
    assert run_table({**record, "metrics": None}).count("\n") == len(lines) - 3
    warned = run_table({**record, "warnings": [{"kind": "critic"}, {"kind": "length"}]}).splitlines()
    assert [" ".join(line.split()) for line in warned if line not in lines] == [
        "PPO's warnings critic, length; see the report"
    ]


def test_the_perplexity_of_answers_is_in_the_table_where_there_is_one():
    record = {
        "reward": {"reference": 0.1, "policy": 0.3, "delta": 0.2, "ci95": [0.1, 0.3], "win_rate": 0.75, "prompts": 60},
        "perplexity": {"reference": 155.0, "policy": 184.0},
        "answer_perplexity": {"reference": 2.12, "policy": 2.5},
        "diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.7},
        "ppo": {"kl": 1.5},
        "reward_model": {"accuracy": None},
        "model": None,
    }
    lines = [line.split() for line in run_table(record).splitlines()]
    assert ["perplexity", "155.00", "184.00"] in lines
    assert ["of", "answers", "2.12", "2.50", "perplexity"] in lines
    assert len(run_table(record | {"answer_perplexity": None}).splitlines()) == len(lines) - 1


def test_baselines_stand_under_ppo_with_what_they_cost():
    best = {
        f"best_of_{n}": {
            "reward": float(n), "ci95": [0.5, 1.5], "kl": 0.25 * n, "prompts": 64,
            "judges": {"fair": n / 32}, "judges_ci95": {"fair": [0.0, 0.25] if n < 16 else None},
            "judges_lead": {"fair": {"delta": 0.5, "ci95": [0.25, 0.75] if n < 16 else None}},
        }
        for n in (1, 2, 4, 8, 16)
    }  # fmt: skip
    record = {
        "reward": {"reference": 0.1, "policy": 0.3, "delta": 0.2, "ci95": [0.1, 0.3], "win_rate": 0.75, "prompts": 60},
        "perplexity": None,
        "diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.7},
        "baselines": best,
        "ppo": {"kl": 1.5},
        "reward_model": {"accuracy": None},
        "model": None,
    }
    shown = [line for line in run_table(record).splitlines() if line.startswith("best of")]
    assert [line.split(None, 4) for line in shown] == [
        [
            "best",
            "of",
            "4",
            "4.000",
            "of the reference, KL <= 1.00, 95% [0.500, 1.500], 64 prompts; fair 0.125 [0.000, 0.250], "
            "PPO +0.500 [+0.250, +0.750]",
        ],
        ["best", "of", "16", "16.000", "of the reference, KL <= 4.00, 95% [0.500, 1.500], 64 prompts; fair 0.500"],
    ]
