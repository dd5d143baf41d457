"""The best step, under a cap on the KL, and the prompts that pick it."""

import pytest
from datasets import Dataset
from tiny_models import one_thread, tiny_gpt2, tiny_prompts, word_tokenizer  # noqa: F401

from rlhf_lib.errors import DataError, SettingsError
from rlhf_lib.ppo.run import Job, build_trainer
from rlhf_lib.ppo.selection import best_step, evaluations, falls_for, has_fallen, selection_split, why_stopped
from rlhf_lib.recipe import PPOConfig, Recipe


def words(queries, responses):
    return [float(len(response.split())) for response in responses]


HISTORY = [
    {"objective/kl": 0.0, "eval/mean_scores": 1.0},
    {"objective/kl": 2.0},
    {"objective/kl": 4.0, "eval/mean_scores": 3.0},
    {"objective/kl": 3.0, "eval/mean_scores": 2.0},
]


def test_the_best_step_is_the_highest_within_the_cap():
    assert best_step(HISTORY, "eval/mean_scores") == 3
    assert best_step(HISTORY, "eval/mean_scores", 4.0) == 3
    assert best_step(HISTORY, "eval/mean_scores", 3.5) == 4
    assert best_step(HISTORY, "eval/mean_scores", 2.5) == 1
    assert best_step(HISTORY[1:], "eval/mean_scores", 2.5) is None
    assert best_step(HISTORY, "absent") is best_step([], "eval/mean_scores") is None


def test_a_nat_of_kl_has_its_price():
    history = [
        {"objective/kl": 0.0, "ppo/mean_scores": 1.0},
        {"objective/kl": 9.0, "ppo/mean_scores": 2.0, "eval/mean_scores": 2.0, "eval/kl": 1.0},
        {"objective/kl": 1.0, "ppo/mean_scores": 3.0, "eval/mean_scores": 3.0, "eval/kl": 4.0},
    ]
    assert best_step(history, "eval/mean_scores", kl_coef=0.3) == 3  # 1.7 against 1.8
    assert best_step(history, "eval/mean_scores", kl_coef=0.4) == 2  # 1.6 against 1.4
    assert best_step(history, "ppo/mean_scores", kl_coef=0.4) == 3  # 1, -1.6, 2.6
    assert best_step(history, "ppo/mean_scores", kl_coef=3.0) == 1


def test_a_fall_is_counted_in_evaluations():
    def counted(*values: float) -> int:
        return falls_for([found for value in values for found in ({"eval/x": value}, {"objective/kl": 0.0})], "eval/x")

    assert counted() == counted(1.0) == counted(1.0, 2.0) == 0
    assert counted(2.0, 1.0) == 1
    assert counted(2.0, 1.0, 1.5, 1.9) == 3
    assert counted(2.0, 1.0, 2.0) == 0  # as good as the best
    assert counted(2.0, 1.0, 2.0, 1.0) == 1


def test_a_run_stops_when_the_judge_has_fallen():
    config = PPOConfig(steps=9, eval_every=1, stop_when={"judge": "j", "falls_for": 2})
    start, *history = ({"eval/judge/j": value, "ppo/mean_scores": 0.0} for value in (0.5, 0.25, 1.0, 0.5, 0.75))
    assert [has_fallen(start, history[:n], config) for n in range(5)] == [False] * 4 + [True]
    assert has_fallen({"eval/judge/j": 2.0}, history[:2], config)  # the reference counts
    told = "judge j was below its best (1 at step 2) 2 times in a row (ppo.stop_when)"
    assert why_stopped(start, history, config) == told
    assert "its best (2 before training)" in str(why_stopped({"eval/judge/j": 2.0}, history[:2], config))
    assert why_stopped(start, history, PPOConfig(steps=4)) is None
    assert why_stopped({}, history, PPOConfig(steps=9, stop_at_reward=0.0)) == (
        "the mean score reached its threshold (ppo.stop_at_reward)"
    )


def test_evaluations_are_picked_out_of_the_history():
    start, step = {"eval/kl": 0.0}, {"eval/kl": 1.0, "eval/mean_scores": 2.0, "objective/kl": 3.0}
    assert evaluations({}, [{"objective/kl": 0.0}, step]) == [{"step": 2.0, "eval/kl": 1.0, "eval/mean_scores": 2.0}]
    assert [found["step"] for found in evaluations(start, [step])] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("ppo", "says"),
    [
        ({"stop_when": {"judge": "j"}}, "stop_when needs eval_every"),
        ({"keep_best": "judge/j"}, "keep_best judge/j needs eval_every"),
        ({"keep_best_kl_coef": 0.1}, "keep_best_kl_coef needs keep_best"),
    ],
)
def test_judges_that_act_need_evaluations(ppo, says):
    with pytest.raises(SettingsError, match=says):
        PPOConfig(**ppo)


def test_a_cap_needs_a_statistic_to_pick_by():
    with pytest.raises(SettingsError, match="keep_best_max_kl needs keep_best"):
        PPOConfig(keep_best_max_kl=5.0)


def test_prompts_that_pick_the_step_are_not_trained_on():
    rows = [{"query": f"q{i % 50}", "input_ids": [i]} for i in range(100)]  # each twice
    train, selection = selection_split(rows, 8, seed=0)
    assert len(selection) == len({row["query"] for row in selection}) == 8
    assert len(train) == 84
    assert not {row["query"] for row in train} & {row["query"] for row in selection}
    assert selection_split(rows, 8, seed=0) == (train, selection)
    assert selection_split(rows, 8, seed=1)[1] != selection
    assert len(selection_split(rows, 64, seed=0)[1]) == 10  # a fifth
    assert len(selection_split(rows[:2], 64, seed=0)[1]) == 1
    with pytest.raises(DataError, match=r"but one training prompt.*ppo\.keep_best"):
        selection_split(rows[:1], 64, seed=0)


@pytest.mark.parametrize("kept", [None, "ppo/mean_scores", "eval/mean_scores", "judge/words", "stop_when"])
def test_a_run_picks_its_step_by_prompts_that_neither_training_nor_the_evaluation_uses(tmp_path, kept):
    tiny_gpt2().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    rows = tiny_prompts(40)
    for split, part in (("train", rows[:30]), ("test", rows[30:])):
        Dataset.from_list(part).save_to_disk(tmp_path / split)
    recipe = {
        "name": "x",
        "data": {"prompts": {"dataset": "none"}},
        "policy": {"model": str(tmp_path / "model")},
        "reward": {"kind": "function", "function": "tiny_models:remainder_reward"},
        "ppo": {"batch_size": 4, "eval_every": 2, "eval_prompts": 5}
        | ({"stop_when": {"judge": "words"}} if kept == "stop_when" else {"keep_best": kept}),
        "evaluation": {"judges": {"words": {"kind": "function", "function": f"{__name__}:words"}}},
        "compute": {"device": "cpu", "precision": "fp32"},
    }
    trainer = build_trainer(
        Job(
            recipe=Recipe.model_validate(recipe),
            policy=str(tmp_path / "model"),
            prompts={split: str(tmp_path / split) for split in ("train", "test")},
            reward=None,
            folder=str(tmp_path / "out"),
            checkpoints=str(tmp_path / "checkpoints"),
            key="x",
        )
    )
    trained, watched, test = (
        {tuple(row["input_ids"]) for row in part} for part in (trainer.prompts, trainer.eval_prompts, rows[30:])
    )
    assert len(trainer.eval_prompts) == 5
    assert not trained & watched
    assert list(trainer.judges) == ["words"]
    if kept in ("eval/mean_scores", "judge/words", "stop_when"):
        assert not watched & test
        assert len(trainer.prompts) == 25
    else:
        assert watched < test  # nothing is picked by them
        assert len(trainer.prompts) == 30
