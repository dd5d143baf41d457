"""Rewards: scores by hand, the same in any batch, cut from the left; functions; normalisation."""

import json
import math
import random
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.recipe import ComputeConfig, RewardConfig
from rlhf_lib.rewards import sampled_scores
from rlhf_lib.rewards.build import build_reward, check_reward
from rlhf_lib.rewards.classifier import ClassifierReward, encode, label_column
from rlhf_lib.rewards.function import function_reward
from rlhf_lib.rewards.normalization import Normalization, fit_normalization, normalized

COMPUTE = ComputeConfig(device="cpu", precision="fp32")
WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
CLS, PAD, SEP, EOS = 0, 1, 2, 3  # ids of the word tokenizers
LETTER = {letter: i + 4 for i, letter in enumerate(WORDS)}


def word_tokenizer(*, around=False, **special):
    """One token a letter; with `around` a text becomes <cls> text <sep>, a pair <cls> a <sep> b <sep>, as BERT's."""
    vocabulary = {"<cls>": CLS, "<pad>": PAD, "<sep>": SEP, "<eos>": EOS, **LETTER}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if around:
        words.post_processor = processors.TemplateProcessing(
            "<cls> $A <sep>", "<cls>:0 $A:0 <sep>:0 $B:1 <sep>:1", [("<cls>", CLS), ("<sep>", SEP)]
        )
        special |= {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": "<pad>"}
    names = ["input_ids", "token_type_ids", "attention_mask"] if around else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=names, **special)


SMALL = {"vocab_size": 30, "num_labels": 2, "pad_token_id": PAD}
ENCODER = SMALL | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def classifier(kind, **changes):
    """(model, tokenizer) of a family, two layers with random weights large enough that scores differ."""
    set_seed(0)
    match kind:
        case "gpt2":  # as published ones are: no pad token, padded with EOS
            config = GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
                                **SMALL | {"pad_token_id": None} | changes)  # fmt: skip
            return GPT2ForSequenceClassification(config).eval(), word_tokenizer(eos_token="<eos>", pad_token="<eos>")
        case "distilbert":
            config = DistilBertConfig(dim=16, hidden_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32,
                                      initializer_range=0.5, **SMALL | changes)  # fmt: skip
            model = DistilBertForSequenceClassification(config)
        case "bert":
            model = BertForSequenceClassification(
                BertConfig(max_position_embeddings=32, initializer_range=0.5, **ENCODER | changes)
            )
        case "roberta":
            model = RobertaForSequenceClassification(
                RobertaConfig(max_position_embeddings=34, initializer_range=0.5, **ENCODER | changes)
            )
        case "deberta":
            model = DebertaV2ForSequenceClassification(
                DebertaV2Config(max_position_embeddings=32, relative_attention=True, pos_att_type=["p2c", "c2p"],
                                type_vocab_size=2, initializer_range=0.5, **ENCODER | changes)
            )  # fmt: skip
    tokenizer = word_tokenizer(around=True)
    if kind in ("distilbert", "roberta"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return model.eval(), tokenizer


FAMILIES = ["gpt2", "distilbert", "bert", "roberta", "deberta"]


def texts(count, longest=20, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


# ---------------------------------------------------------------- labels and outputs


def test_labels_are_found_by_name():
    config = DistilBertConfig(id2label={0: "NEGATIVE", 1: "POSITIVE"})
    assert label_column(config, "POSITIVE") == 1
    assert label_column(config, "negative") == 0
    with pytest.raises(ModelError, match=r"no label 'JOY': set reward\.label to one of NEGATIVE, POSITIVE"):
        label_column(config, "JOY")
    with pytest.raises(ModelError, match=r"has 2 outputs: set reward\.label to one of NEGATIVE, POSITIVE"):
        label_column(config, None)
    assert label_column(DistilBertConfig(id2label={0: "score"}), None) == 0
    assert label_column(DistilBertConfig(id2label={0: "Joy", 1: "joy"}), "joy") == 1
    with pytest.raises(ModelError, match="no label 'JOY'"):
        label_column(DistilBertConfig(id2label={0: "Joy", 1: "joy"}), "JOY")


@pytest.mark.parametrize(
    ("changes", "label", "expected"),
    [
        ({}, "LABEL_1", 1 / (1 + math.exp(-2))),  # softmax of (1, 3): 0.881
        ({"problem_type": "multi_label_classification"}, "LABEL_1", 1 / (1 + math.exp(-3))),  # 0.953
        ({"num_labels": 1}, None, 1 / (1 + math.exp(-1))),  # 0.731
    ],
)
def test_logit_and_probability(changes, label, expected):
    model, tokenizer = classifier("distilbert", **changes)
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, 3.0][: model.config.num_labels]))
    logit = ClassifierReward(model, tokenizer, label=label)(["a b"], [" c"])
    assert logit == [3.0 if label else 1.0]
    probability = ClassifierReward(model, tokenizer, label=label, output="probability")(["a b", "c"], ["", " d"])
    assert probability == pytest.approx([expected] * 2)


# ---------------------------------------------------------------- batches, truncation, pairs


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_score_is_the_model_s_own_whatever_the_batch(kind):
    model, tokenizer = classifier(kind)
    queries, responses = texts(13), [f" {text}" for text in texts(13, longest=8, seed=1)]
    with torch.no_grad():  # one text at a time, without any padding
        alone = [
            model(**tokenizer(q + r, return_tensors="pt")).logits[0, 1].item()
            for q, r in zip(queries, responses, strict=True)
        ]
    assert max(alone) - min(alone) > 0.1
    for size in (1, 4, 64):
        reward = ClassifierReward(model, tokenizer, label="LABEL_1", batch_size=size)
        assert reward(queries, responses) == pytest.approx(alone, abs=1e-5)


def test_decoders_are_read_at_the_last_token_even_if_it_is_the_pad_token():
    model, tokenizer = classifier("gpt2")
    rows = ["a b c", "d e", "f g h i j"]
    with torch.no_grad():
        by_hand = [
            model.score(model.transformer(torch.tensor([[*tokenizer(row).input_ids, EOS]])).last_hidden_state)[0, -1, 0]
            for row in rows
        ]
    reward = ClassifierReward(model, tokenizer, label="LABEL_0", append_eos=True)
    assert reward(rows, [""] * 3) == pytest.approx([score.item() for score in by_hand], abs=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_empty_texts_have_a_score(kind):
    model, tokenizer = classifier(kind)
    for append_eos in (False, True) if kind == "gpt2" else (False,):
        reward = ClassifierReward(model, tokenizer, label="LABEL_0", append_eos=append_eos)
        scores = reward(["", "a b", ""], ["", " c", ""])
        assert all(math.isfinite(score) for score in scores)
        assert scores[0] == pytest.approx(scores[2], abs=1e-6)
        assert reward([], []) == []


@pytest.mark.parametrize("kind", FAMILIES)
def test_long_texts_lose_their_beginning(kind):
    model, tokenizer = classifier(kind)
    letters = texts(1, longest=1)[0] + " " + " ".join(WORDS * 4)
    around = 0 if kind == "gpt2" else 2
    assert ClassifierReward(model, tokenizer, label="LABEL_1").max_length == 32
    for given, kept in ((None, 32), (10, 10), (999, 32)):
        reward = ClassifierReward(model, tokenizer, label="LABEL_1", max_length=given)
        tail = " ".join(letters.split()[-(kept - around) :])
        assert reward([letters], [""]) == pytest.approx(reward([tail], [""]), abs=1e-6)
        assert reward([letters], [""]) != pytest.approx(reward([tail[2:]], [""]), abs=1e-6)


def test_only_a_response_that_ended_is_read_with_an_eos():
    model, tokenizer = classifier("gpt2")
    whole = ClassifierReward(model, tokenizer, label="LABEL_0", append_eos=True)
    bare = ClassifierReward(model, tokenizer, label="LABEL_0")
    queries, responses = ["a b", "c", "d e"], [" c", " d e f", ""]
    ends, cut = whole(queries, responses), bare(queries, responses)
    assert sampled_scores(whole, queries, responses, [True, False, True]) == pytest.approx(
        [ends[0], cut[1], ends[2]], abs=1e-6
    )
    assert cut[1] != pytest.approx(ends[1], abs=1e-3)
    assert sampled_scores(bare, queries, responses, [True, False, True]) == pytest.approx(cut, abs=1e-6)


def test_a_function_isnt_told_which_responses_ended():
    assert sampled_scores(lambda queries, responses: [1.0, 2.0], ["a", "b"], ["c", "d"], [True, False]) == [1.0, 2.0]


def test_how_much_of_a_long_text_is_read_doesnt_depend_on_the_others():
    tokenizer = word_tokenizer(eos_token="<eos>")
    alone = encode(tokenizer, ["a b c"], 3, append_eos=True, ended=[False])["input_ids"]
    beside = encode(tokenizer, ["a b c", "a"], 3, append_eos=True, ended=[False, True])["input_ids"]
    assert alone == beside[:1] == [[LETTER["b"], LETTER["c"]]]
    assert beside[1] == [LETTER["a"], EOS]


def test_encoding_keeps_special_tokens_and_ends_once():
    ids = lambda *args, **kwargs: encode(*args, **kwargs)["input_ids"]  # noqa: E731
    plain, around = word_tokenizer(eos_token="<eos>"), word_tokenizer(around=True, eos_token="<sep>")
    a, b, c = (LETTER[letter] for letter in "abc")
    assert ids(plain, ["a b c", "a"], 3) == [[a, b, c], [a]]
    assert ids(plain, ["a b c", "a", ""], 3, append_eos=True) == [[b, c, EOS], [a, EOS], [EOS]]
    assert ids(plain, [""], 3) == [[EOS]]
    assert ids(around, ["a b c"], 4, append_eos=True) == [[CLS, b, c, SEP]]
    pair = encode(around, ["a b c"], 7, pairs=["b c"])
    assert pair["input_ids"] == [[CLS, b, c, SEP, b, c, SEP]]
    assert pair["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1]]
    assert (plain.truncation_side, around.truncation_side) == ("right", "right")
    with pytest.raises(ModelError, match="no EOS token"):
        ids(word_tokenizer(), ["a"], 3, append_eos=True)


def test_a_pair_classifier_sees_two_segments():
    model, tokenizer = classifier("bert")
    queries, responses = texts(6, longest=9), texts(6, longest=15, seed=1)
    with torch.no_grad():
        alone = [
            model(**tokenizer(q, r, return_tensors="pt")).logits[0, 0].item()
            for q, r in zip(queries, responses, strict=True)
        ]
    reward = ClassifierReward(model, tokenizer, label="LABEL_0", pair=True)
    assert reward(queries, responses) == pytest.approx(alone, abs=1e-5)
    joined = ClassifierReward(model, tokenizer, label="LABEL_0")
    assert joined(queries, [f" {r}" for r in responses]) != pytest.approx(alone, abs=1e-3)


def test_rewards_are_built_and_checked_from_the_recipe(tmp_path):
    model, tokenizer = classifier("bert", id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for kind, pair in (("classifier", False), ("pair", True)):
        section = RewardConfig(kind=kind, model=str(tmp_path), label="GOOD")
        check_reward(section)
        expected = ClassifierReward(model, tokenizer, label="GOOD", pair=pair)(["a b"], [" c"])
        assert build_reward(section)(["a b"], [" c"]) == pytest.approx(expected, abs=1e-6)
    for build in (check_reward, build_reward):
        with pytest.raises(ModelError, match="one of BAD, GOOD"):
            build(RewardConfig(kind="classifier", model=str(tmp_path), label="great"))
        with pytest.raises(ModelError, match="no such folder"):
            build(RewardConfig(kind="classifier", model="/no/such/model", label="GOOD"))
    check_reward(RewardConfig())
    with pytest.raises(ModelError, match="isn't trained yet"):
        build_reward(RewardConfig())


# ---------------------------------------------------------------- functions


@pytest.fixture
def function_module(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "import math\n"
        "def length(queries, responses): return [len(r) for r in responses]\n"
        "def short(queries, responses): return [1.0]\n"
        "def broken(queries, responses): return [math.nan for _ in responses]\n"
        "def words(queries, responses): return 'no numbers'\n"
        "threshold = 3\n"
        "def text(queries, responses): return '12'\n"
        "def named(queries, responses): return {0: 1.0, 1: 2.0}\n"
        "def nothing(queries, responses): pass\n"
    )
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    sys.modules.pop("my_reward", None)


@pytest.mark.usefixtures("function_module")
def test_function_rewards():
    reward = build_reward(RewardConfig(kind="function", function="my_reward:length"))
    assert reward(["q", "q"], ["abc", ""]) == [3.0, 0.0]
    for path, complaint in {
        "my_reward.length": "must have the form package.module:name",
        "no_module:f": "module no_module can't be imported",
        "needs_more:f": "no_such_library",
        "my_reward:lenght": "my_reward has no function lenght; it has length, short, broken, words, text",
        "my_reward:threshold": "has no function threshold",
    }.items():
        with pytest.raises(RecipeError, match=complaint):
            check_reward(RewardConfig(kind="function", function=path))
    for name, complaint in {
        "short": "gave 1 scores for 2 responses",
        "broken": "my_reward:broken gave nan for the query 'q' with the response 'abc'",
        "words": "must give a list of numbers",
        "text": "must give a list of numbers",
        "named": "must give a list of numbers",
        "nothing": "gave None: it must give a list of numbers",
    }.items():
        with pytest.raises(ModelError, match=complaint):
            function_reward(f"my_reward:{name}")(["q", "q"], ["abc", ""])


# ---------------------------------------------------------------- normalisation


def test_normalisation(tmp_path):
    constants = fit_normalization([1.0, 5.0, 3.0, 7.0])  # mean 4, deviations -3, 1, -1, 3: variance 5
    assert constants == Normalization(4.0, pytest.approx(math.sqrt(5)))
    assert constants([4.0, 4.0 + math.sqrt(5)]) == pytest.approx([0.0, 1.0])
    constants.save(tmp_path)
    assert json.loads((tmp_path / "normalization.json").read_text()) == {"mean": 4.0, "std": math.sqrt(5)}

    reward = normalized(lambda queries, responses: [float(len(r)) for r in responses], Normalization(2.0, 0.5))
    assert reward(["", ""], ["abc", "a"]) == [2.0, -2.0]
    assert normalized(reward, None) is reward
    for scores in ([2.0, 2.0, 2.0], [1.0, math.inf]):
        with pytest.raises(ModelError, match=r"can't be normalized: .*(same score, 2, and|NaN or infinite)"):
            fit_normalization(scores)
