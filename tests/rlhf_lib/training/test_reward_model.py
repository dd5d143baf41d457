"""Training a reward model on pairs easily told apart, and the stages that do it."""

import json
import math
import random

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    set_seed,
)
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf_lib.errors import DataError, SettingsError
from rlhf_lib.recipe import Recipe as RecipeSection
from rlhf_lib.recipe import RewardConfig, RewardTrainingConfig
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.training.reward_model import accuracy, split_prompts, tokenize_pairs, train_reward_model
from rlhf_lib.training.scratch import train_tokenizer
from tests.rlhf_lib.rewards.test_rewards import COMPUTE


def polite_pairs(rows, seed):
    """The better answer says "thanks" somewhere, the worse one "never"."""
    draw = random.Random(seed)

    def answer(word):
        words = draw.choices(["we", "will", "look", "at", "it", "now", "and", "then"], k=draw.randint(2, 9))
        words.insert(draw.randint(0, len(words)), word)
        return " " + " ".join(words)

    prompts = [f"\n\nHuman: where is it, {draw.choice('abcdef')}?\n\nAssistant:" for _ in range(rows)]
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "chosen": [answer("thanks") for _ in prompts],
            "rejected": [answer("never") for _ in prompts],
        }
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A language model with random weights; its tokenizer, as GPT-2's own, pads with EOS."""
    folder = tmp_path_factory.mktemp("start")
    rows = polite_pairs(50, seed=9)
    tokenizer = train_tokenizer(rows["prompt"][:] + rows["chosen"][:] + rows["rejected"][:], 320, 64)
    set_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


SETTINGS = RewardConfig(
    train=RewardTrainingConfig(epochs=3, batch_size=32, learning_rate=3e-3, max_length=40, center_coefficient=0.01)
)


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    logged = []
    metrics, log = train_reward_model(
        polite_pairs(320, seed=0), str(start), folder, reward=SETTINGS, compute=COMPUTE, seed=0,
        held_out=polite_pairs(100, seed=1), on_log=lambda step, figures: logged.append((step, figures["loss"])),
    )  # fmt: skip
    assert logged == [(row["step"], row["loss"]) for row in log]
    return folder, metrics, log


def test_training_tells_the_answers_apart(trained):
    folder, metrics, log = trained
    assert metrics["accuracy/held_out"] > 0.95
    assert metrics["accuracy/train"] > 0.95
    assert metrics["loss/train"] < 0.3 < log[0]["loss"]
    # six prompts with some 53 pairs each don't quite fill batches of 32
    assert [row["step"] for row in log] == list(range(1, 34))
    reward = build_reward(SETTINGS, str(folder))
    assert accuracy(reward, polite_pairs(100, seed=2)) > 0.95
    # centred: the coefficient keeps the sum of a pair's scores near 0
    scores = reward([""] * 2, [" thanks we will look", " never we will look"])
    assert scores[0] > 0 > scores[1]


def test_saved_scores_are_those_of_training(trained):
    folder, *_ = trained
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "score"}
    assert model.config.pad_token_id not in (None, model.config.eos_token_id)
    reward = build_reward(SETTINGS, str(folder))
    rows = polite_pairs(8, seed=3)
    tokens, _ = tokenize_pairs(rows, reward.tokenizer, 40)
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits.item() for ids in tokens["chosen_ids"]]
    assert reward(list(rows["prompt"]), list(rows["chosen"])) == pytest.approx(alone, abs=1e-5)


def test_pairs_are_tokenized_as_trl_does_but_cut_rather_than_dropped(trained):
    from trl import RewardConfig, RewardTrainer

    folder, *_ = trained
    reward = build_reward(SETTINGS, str(folder))
    rows = polite_pairs(16, seed=4)
    tokens, truncated = tokenize_pairs(rows, reward.tokenizer, 64)
    assert truncated == 0
    assert list(tokens["length"]) == [
        max(len(c), len(r)) for c, r in zip(tokens["chosen_ids"], tokens["rejected_ids"], strict=True)
    ]
    config = RewardConfig(output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to="none", max_length=64)
    trl = RewardTrainer(model=reward.model, args=config, train_dataset=rows, processing_class=reward.tokenizer)
    for side in ("chosen_ids", "rejected_ids"):
        assert trl.train_dataset[side][:] == tokens[side][:]

    cut, truncated = tokenize_pairs(rows, reward.tokenizer, 20)
    assert len(cut) == 16
    assert truncated == sum(len(ids) > 20 for side in ("chosen_ids", "rejected_ids") for ids in tokens[side])
    assert 0 < truncated < 32
    assert cut["chosen_ids"][:] == [ids[-20:] for ids in tokens["chosen_ids"]]


def test_a_margin_enters_the_loss(start, tmp_path):
    """Before the first step both scores are near 0, so the loss is about -log sigmoid(-margin): 0.69 and 2.13."""
    first = {}
    settings = SETTINGS.model_copy(update={"train": RewardTrainingConfig(max_steps=1)})
    for margin in (0.0, 2.0):
        rows = polite_pairs(64, seed=0).add_column("margin", [margin] * 64)
        _, log = train_reward_model(rows, str(start), tmp_path, reward=settings, compute=COMPUTE, seed=0)
        first[margin] = log[0]["loss"]
    assert first[0.0] == pytest.approx(math.log(2), abs=0.05)
    assert first[2.0] == pytest.approx(math.log(1 + math.exp(2)), abs=0.1)


def test_a_prompts_pairs_share_a_batch_in_training(start, tmp_path, monkeypatch):
    """20 prompts with 6 pairs each, as of four ranked answers, and 8 with one."""
    rows = polite_pairs(128, seed=0)
    groups = [i // 6 for i in range(120)] + list(range(20, 28))
    rows = rows.remove_columns("prompt").add_column("prompt", [f"\n\nHuman: {i}\n\nAssistant:" for i in groups])
    rows = rows.shuffle(seed=0)
    batches = []
    collate = DataCollatorForPreference.torch_call

    def note(self, examples):
        batches.append([example["group"] for example in examples])
        return collate(self, examples)

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", note)
    settings = SETTINGS.model_copy(update={"train": RewardTrainingConfig(epochs=2, batch_size=14, learning_rate=3e-3)})
    _, log = train_reward_model(rows, str(start), tmp_path, reward=settings, compute=COMPUTE, seed=0)
    assert log[-1]["step"] == len(batches) == 20  # of two prompts with 6 pairs and at most two with one
    for epoch in (batches[:10], batches[10:]):
        assert sum(map(len, epoch)) == 128
        assert max(map(len, epoch)) <= 14
        found = [group for batch in epoch for group in set(batch)]
        assert len(found) == len(set(found)) == 28
    assert batches[:10] != batches[10:]


def test_validation_pairs_have_prompts_of_their_own():
    rows = polite_pairs(200, seed=0)  # of 6 prompts
    train, validation = split_prompts(rows, 0.2, seed=0)
    assert not set(train["prompt"]) & set(validation["prompt"])
    assert len(train) + len(validation) == 200
    assert 0.2 <= len(validation) / 200 < 0.45
    assert split_prompts(rows, 0.0, seed=0) == (rows, None)
    with pytest.raises(DataError, match=r"one prompt only.*set reward\.train\.validation to 0"):
        split_prompts(rows.filter(lambda row: row["prompt"] == rows[0]["prompt"]), 0.2, seed=0)


def test_the_best_weights_are_kept_and_training_stops_where_nothing_gets_better(start, tmp_path):
    """Labels drawn by lot: what is learned of the training pairs makes the others worse."""
    draw = random.Random(0)
    rows = polite_pairs(240, seed=0)
    swapped = [draw.random() < 0.5 for _ in rows]
    columns = {
        "prompt": [f"\n\nHuman: {i}\n\nAssistant:" for i in range(240)],
        "chosen": [r["rejected" if s else "chosen"] for r, s in zip(rows, swapped, strict=True)],
        "rejected": [r["chosen" if s else "rejected"] for r, s in zip(rows, swapped, strict=True)],
    }
    rows = Dataset.from_dict(columns)
    train = {"epochs": 20, "batch_size": 16, "learning_rate": 1e-2, "validation": 0.3, "patience": 2}
    settings = SETTINGS.model_copy(update={"train": RewardTrainingConfig.model_validate(train)})
    logged = []
    metrics, log = train_reward_model(
        rows, str(start), tmp_path, reward=settings, compute=COMPUTE, seed=0,
        on_log=lambda step, figures: logged.append(figures),
    )  # fmt: skip
    losses = {row["step"]: row["validation_loss"] for row in log if "validation_loss" in row}
    assert metrics["pairs"] == 168
    assert metrics["validation/pairs"] == 72
    best = min(losses, key=losses.get)
    assert metrics["validation/best_step"] == best
    assert [*losses].index(best) == len(losses) - 3  # two measurements later it stopped
    assert max(losses) < 210
    assert [f["validation_loss"] for f in logged if "validation_loss" in f] == [*losses.values()]
    # the weights on disk are those of the best step
    _, validation = split_prompts(rows, 0.3, seed=0)
    scores = build_reward(settings, str(tmp_path))(
        list(validation["prompt"]) * 2, [*validation["chosen"], *validation["rejected"]]
    )
    margins = [c - r for c, r in zip(scores[:72], scores[72:], strict=True)]
    loss = sum(math.log(1 + math.exp(-margin)) for margin in margins) / 72
    assert loss == pytest.approx(losses[best], abs=0.02)


def test_patience_needs_pairs_to_measure_on():
    with pytest.raises(SettingsError, match="patience needs validation"):
        RewardTrainingConfig(patience=2)
    with pytest.raises(SettingsError, match="validation is for kinds preference and ensemble"):
        RewardConfig(kind="likelihood", model="x", train=RewardTrainingConfig(validation=0.1))


def test_no_pairs_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(DataError, match="no pair to train"):
        train_reward_model(
            polite_pairs(0, seed=0), "/no/such/model", tmp_path, reward=SETTINGS, compute=COMPUTE, seed=0
        )


def test_ties_count_half():
    rows = Dataset.from_dict({"prompt": ["q"] * 4, "chosen": ["a", "b", "c", "d"], "rejected": ["b", "a", "c", "a"]})
    by_letter = lambda queries, responses: [float(ord(r)) for r in responses]  # noqa: E731
    assert accuracy(by_letter, rows) == (0 + 1 + 0.5 + 1) / 4


# ---------------------------------------------------------------- the stages


def test_both_stages_train_record_and_are_reused(tmp_path, monkeypatch, mlflow_store):
    import mlflow

    from tasks.base_model import train_base_model
    from tasks.results import Folders, PreparedData
    from tasks.reward_model import prepare_reward_model
    from tasks.tracking.runs import PipelineRun

    recipe = RecipeSection.model_validate(
        {
            "name": "tiny",
            "data": {"prompts": {"dataset": "unused"}, "preferences": {}},
            "policy": {
                "train": {
                    "from_scratch": {"layers": 1, "width": 16, "heads": 2, "positions": 64, "vocab_size": 300},
                    "max_steps": 3,
                }
            },
            "reward": {"normalize": True, "train": {"max_steps": 3}},
            "generation": {"max_new_tokens": 6},
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )
    folders = {}
    for kind, splits in {
        "preferences": {"train": polite_pairs(60, 0), "test": polite_pairs(20, 1)},
        "texts": {
            "train": Dataset.from_dict({"query": ["one", "two"], "prompt": ["one", "two"]}),
            "test": Dataset.from_dict({"query": ["three"], "prompt": ["three"]}),
        },
    }.items():
        folders[kind] = Folders(train=str(tmp_path / kind / "train"), test=str(tmp_path / kind / "test"))
        for split, rows in splits.items():
            rows.save_to_disk(getattr(folders[kind], split))
    nothing = dict.fromkeys(("prompts", "corpus", "labelled", "label_names", "criterion", "policy_fingerprint"))
    data = PreparedData(**folders, **nothing, fingerprints={}, report={})

    with mlflow_store(tmp_path), mlflow.start_run() as parent:
        run = PipelineRun(run_dir=str(tmp_path / "run"), parent_run_id=parent.info.run_id)
        base = train_base_model.fn(recipe, run, data)
        reward = prepare_reward_model.fn(recipe, run, data, base)
        assert load_from_disk(base.prompts.train)[:]["query"] == ["one", "two"]
        stored = json.loads(
            (tmp_path / "run" / "stages").glob("reward_model-*/normalization.json").__next__().read_text()
        )
        assert stored == reward.normalization.model_dump()
        assert build_reward(recipe.reward, reward.model)(["one"], [" two"])

        for record in (base, reward):
            child = mlflow.get_run(record.mlflow_run_id)
            assert {k: child.data.metrics[k] for k in record.metrics} == pytest.approx(record.metrics)
            history = mlflow.MlflowClient().get_metric_history(record.mlflow_run_id, "train/loss")
            assert [point.step for point in history] == [1, 2, 3]
            assert "curve.png" in [a.path for a in mlflow.MlflowClient().list_artifacts(record.mlflow_run_id)]
        assert base.metrics["perplexity/held_out"] > 1
        assert 0 <= reward.metrics["accuracy/held_out"] <= 1

        # nothing changed: both are reused, though nothing could be trained any more
        monkeypatch.setattr("rlhf_lib.training.supervised.fit", None)
        monkeypatch.setattr("rlhf_lib.training.sft.fit", None)
        monkeypatch.setattr("rlhf_lib.training.reward_model.fit", None)
        assert train_base_model.fn(recipe, run, data) == base
        assert prepare_reward_model.fn(recipe, run, data, base) == reward
        checks = recipe.model_copy(deep=True)
        checks.reward.checks.min_accuracy = 0.99
        assert prepare_reward_model.fn(checks, run, data, base) == reward
        other = recipe.model_copy(deep=True)
        other.reward.train.learning_rate *= 2
        with pytest.raises(TypeError):
            prepare_reward_model.fn(other, run, data, base)
