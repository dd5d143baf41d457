"""The prompts' other columns in PPO: to the reward and the judges, one process or two; what isolated functions cost."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401

from rlhf_lib.errors import DataError
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig
from rlhf_lib.recipe.reward import IsolateConfig
from rlhf_lib.rewards.function import function_reward

ROWS = [{"prompt": f"w{i}", "solution": f"w{10 * i}", "level": i} for i in range(1, 5)]


def trainer_of(reward, rows=ROWS, **more) -> PPOTrainer:
    config = PPOConfig(steps=2, batch_size=4, ppo_epochs=1)
    return PPOTrainer(tiny_gpt2(), word_tokenizer(), reward, rows, config, GenerationConfig(max_new_tokens=4), **more)


def ten_times(prompts, completions, completion_ids, solution, level, **kwargs):
    assert "input_ids" not in kwargs
    assert all(right == f"w{10 * int(prompt[1:])}" for prompt, right in zip(prompts, solution, strict=True))
    return [100.0 * number + len(ids) for number, ids in zip(level, completion_ids, strict=True)]


@pytest.mark.parametrize("rows", [ROWS, Dataset.from_list(ROWS)], ids=["rows", "data set"])
def test_the_reward_and_the_judges_get_the_columns_of_their_rows(rows):
    trainer = trainer_of(ten_times, rows, eval_prompts=rows, judges={"same": ten_times})
    stats = trainer.train_step()
    lengths = stats["tokens/responses_len_mean"]
    assert stats["ppo/mean_scores"] == pytest.approx(250 + lengths)  # each of the four prompts once
    assert "reward/timeouts" not in stats
    found = trainer.evaluate()
    assert found.stats["eval/mean_scores"] == found.stats["eval/judge/same"]
    assert found.stats["eval/mean_scores"] == pytest.approx(250 + found.stats["eval/responses_len_mean"])


def test_a_column_that_the_rows_lack_is_told_before_anything_is_trained():
    message = r"prompts have the columns level, and the reward function needs solution: give rows that have it, or"
    with pytest.raises(DataError, match=message):
        trainer_of(ten_times, [{"prompt": "w1", "level": 1}])
    with pytest.raises(DataError, match="eval_prompts have no columns beside the prompts"):
        trainer_of(ten_times, eval_prompts=["w1"])


def test_answers_that_cost_too_much_are_a_statistic_of_the_step(tmp_path, monkeypatch):
    (tmp_path / "sometimes_endless.py").write_text(
        "def f(prompts, completions, level):\n    while level[0] == 3:\n        pass\n    return [float(level[0])]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = function_reward("sometimes_endless:f", IsolateConfig(seconds=1.0, timeout_score=-7.0))
    trainer = trainer_of(reward, eval_prompts=ROWS[:1])
    stats = trainer.train_step()
    assert stats["reward/timeouts"] == 1
    assert stats["ppo/mean_scores"] == (1 + 2 - 7 + 4) / 4
    assert trainer.evaluate().stats["eval/timeouts"] == 0
