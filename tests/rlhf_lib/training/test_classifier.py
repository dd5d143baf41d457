"""The classifier trained here: its figures by hand, its tokenizer and positions, and that it learns what words mean."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lib.conversation import Conversation, columns_of, in_full, user
from rlhf_lib.errors import DataError
from rlhf_lib.models.loading import load_tokenizer, positions
from rlhf_lib.recipe import ClassifierFromScratchConfig, ComputeConfig, RewardConfig
from rlhf_lib.rewards.build import build_reward, check_reward
from rlhf_lib.training.classifier import (
    label_figure,
    measure,
    scratch_classifier,
    start_at_shares,
    tokenize_texts,
    train_classifier,
    train_tokenizer,
)
from tests.support.chat_models import chat_folder

COMPUTE = ComputeConfig(device="cpu", precision="fp32")
WORDS = {"joy": ["glad", "happy"], "anger": ["mad", "furious"], "neutral": ["table", "letter"]}
NAMES = list(WORDS)
SIZE = {"layers": 1, "width": 32, "heads": 2, "positions": 24, "vocab_size": 300}


def texts(rows, seed=0, most=1):
    """The labels are those of the words in the text."""
    draw = random.Random(seed)
    labels = [sorted(draw.sample(range(3), draw.randint(1, most))) for _ in range(rows)]
    written = [" ".join(["we saw", *(draw.choice(WORDS[NAMES[i]]) for i in own), "there"]) for own in labels]
    return Dataset.from_dict({"text": written, "labels": labels})


def reward(**train) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "kind": "classifier",
            "label": "joy",
            "output": "probability",
            "train": {"from_scratch": SIZE, "epochs": 6, "batch_size": 16, "learning_rate": 5e-3} | train,
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    figures = train_classifier(
        texts(200), NAMES, folder, reward=reward(), compute=COMPUTE, seed=0, held_out=texts(60, seed=1)
    )
    return folder, *figures


def test_a_text_counts_as_right_where_its_highest_output_is_among_its_labels():
    logits = np.array([[2.0, 1.0, -1.0], [0.5, -1.0, -2.0], [-1.0, 3.0, 1.0], [-3.0, -2.0, -1.0]])
    labels = [[0, 1], [1], [1], [0]]
    figures, table = measure(logits, labels, NAMES, single=False)
    # given at 0.5: {0, 1}, {0}, {1, 2}, {}; label 0: 1 hit of 2 given and 2 true; 1: 2 of 2 and 3; 2: 0 of 1 and 0
    assert figures == {"accuracy": 0.5, "macro_f1": pytest.approx((0.5 + 0.8 + 0) / 3)}
    assert table[0] == {"label": "joy", "texts": 2, "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert (table[1]["texts"], table[1]["accuracy"], table[1]["f1"]) == (3, pytest.approx(1 / 3), pytest.approx(0.8))
    assert table[2] == {"label": "neutral", "texts": 0, "accuracy": None, "precision": 0.0, "recall": None, "f1": 0.0}
    assert len(label_figure(table).axes[0].patches) == 2


@pytest.mark.parametrize("single", [True, False])
def test_macro_f1_is_sklearns(single):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(50, 3))
    labels = [[int(i)] for i in draw.integers(0, 3, 50)] if single else [[0, 2] if i % 3 else [1] for i in range(50)]
    truth = np.array([[float(k in own) for k in range(3)] for own in labels])
    given = np.eye(3)[logits.argmax(1)] if single else logits >= 0
    figures, _ = measure(logits, labels, NAMES, single=single)
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, given, average="macro"))


def test_what_is_trained_on():
    tokenizer = train_tokenizer(["ab"], 259, 8)
    rows = Dataset.from_dict({"text": ["ab", "abcdefgh"], "labels": [[1], [0, 2]]})
    made, truncated = tokenize_texts(rows, 3, tokenizer, 5, single=False)
    assert [tokenizer.decode(ids) for ids in made["input_ids"]] == ["<s>ab</s>", "<s>fgh</s>"]
    assert list(made["labels"]) == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    assert (list(made["length"]), truncated) == ([4, 5], 1)
    assert list(tokenize_texts(rows.select([0]), 3, tokenizer, 5, single=True)[0]["labels"]) == [1]


@pytest.mark.parametrize("single", [True, False])
def test_the_first_probabilities_are_the_labels_shares(single):
    tokenizer = train_tokenizer(["ab"], 259, 8)
    model = scratch_classifier(ClassifierFromScratchConfig(**SIZE), tokenizer, {"id2label": dict(enumerate(NAMES))})
    start_at_shares(model, [[0]] * 69 + [[1]] * 30, single=single)
    logits = model.classifier.out_proj.bias.detach()
    found = logits.exp() if single else logits.sigmoid()
    assert found.tolist() == pytest.approx([0.695, 0.305, 0.005])  # half a text more each: no label is impossible


def test_one_label_a_text_is_learnt_by_cross_entropy(trained):
    folder, metrics, log, table = trained
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]
    assert metrics["accuracy/held_out"] > 0.95
    assert metrics["macro_f1/held_out"] > 0.9
    assert 0.2 < metrics["majority/held_out"] < 0.5
    assert [row["label"] for row in table] == NAMES

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.problem_type == "single_label_classification"
    assert model.config.id2label == dict(enumerate(NAMES))
    assert positions(model.config) == AutoTokenizer.from_pretrained(folder).model_max_length == 24
    assert model.config.hidden_dropout_prob == 0.1
    with torch.no_grad():  # as many tokens as it has positions
        model(torch.full((1, 24), 5))


def test_the_folder_is_a_reward_like_any_other(trained):
    folder, *_ = trained
    score = build_reward(reward(), str(folder), "cpu")
    glad, mad, long = score(["we saw"] * 3, [" happy there", " furious there", " table" * 50])
    assert glad > 0.8
    assert mad < 0.2
    assert 0 <= long <= 1
    check_reward(RewardConfig(kind="classifier", model=str(folder), label="anger"))


def test_a_model_given_gets_a_new_head_and_texts_of_several_labels_each_apart(trained, tmp_path):
    folder, *_ = trained
    given = RewardConfig(
        kind="classifier", model=str(folder), label="x", train=reward(from_scratch=None, epochs=12).train
    )
    check_reward(given, trained_here=True)
    metrics, _, _ = train_classifier(
        texts(200, most=2), ["x", "y", "z"], tmp_path, reward=given, compute=COMPUTE, seed=0, held_out=texts(60, 1, 2)
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert metrics["accuracy/held_out"] > 0.95
    assert metrics["macro_f1/held_out"] > 0.9


def answers(rows, seed=0) -> Dataset:
    """Answers to a question, desirable (label 1) where they are glad."""
    labels = [random.Random(f"{seed} {row}").randrange(2) for row in range(rows)]
    prompts = [Conversation([{"role": "system", "content": "Be brief."}, user(f"How was it {row}?")]) for row in labels]
    said = [f"We were {('mad', 'glad')[label]}." for label in labels]
    full = [in_full(prompt, answer) for prompt, answer in zip(prompts, said, strict=True)]
    columns = {"text": full, "labels": [[label] for label in labels], "completion": said}
    return Dataset.from_dict(columns | columns_of(prompts, "prompt"))


def test_answers_are_read_in_the_tokenizers_own_chat_template(tmp_path):
    base = chat_folder(tmp_path / "base")
    tokenizer, row = load_tokenizer(str(base)), answers(1)
    said = row["completion"][0]
    made, truncated = tokenize_texts(row, 2, tokenizer, 256, single=True)
    assert tokenizer.decode(made["input_ids"][0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{row['messages'][0][1]['content']}<|im_end|>\n"
        f"<|im_start|>assistant\n{said}<|im_end|>\n"
    )
    assert truncated == 0
    tokenizer.chat_template = None
    made, _ = tokenize_texts(row, 2, tokenizer, 256, single=True)
    assert tokenizer.decode(made["input_ids"][0]) == row["text"][0]

    given = RewardConfig(
        kind="classifier", model=str(base), label="desirable", train=reward(from_scratch=None, epochs=3).train
    )
    names = ["undesirable", "desirable"]
    metrics, _, _ = train_classifier(
        answers(100), names, tmp_path / "trained", reward=given, compute=COMPUTE, seed=0, held_out=answers(40, 1)
    )
    assert metrics["accuracy/held_out"] == 1
    score = build_reward(given, str(tmp_path / "trained"), "cpu")
    asked = Conversation([{"role": "system", "content": "Be brief."}, user("How was it 0?")])
    glad, mad = score([asked] * 2, ["We were glad.", "We were mad."])
    assert glad > mad


def test_the_same_seed_gives_the_same_weights(tmp_path):
    def weights(name, seed):
        train_classifier(
            texts(40), NAMES, tmp_path / name, reward=reward(max_steps=2, epochs=1), compute=COMPUTE, seed=seed
        )
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / name).classifier.dense.weight

    first, again, other = weights("first", 3), weights("again", 3), weights("other", 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data\.labelled"):
        train_classifier(texts(0), NAMES, tmp_path, reward=reward(), compute=COMPUTE, seed=0)
