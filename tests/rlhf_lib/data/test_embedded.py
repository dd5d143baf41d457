import re
import time
from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rlhf_lib.data import embedded
from rlhf_lib.errors import DataError

DIALOGUE = re.compile(r"(\n\nHuman: \S[^\n]*\n\nAssistant: \S[^\n]*)+")


@pytest.fixture(scope="module")
def train():
    return embedded.load("train")


@pytest.fixture(scope="module")
def test():
    return embedded.load("test")


def split(dialogue: str) -> tuple[str, str]:
    prompt, mark, answer = dialogue.rpartition("\n\nAssistant:")
    return prompt + mark, answer


def prompts(pairs) -> list[str]:
    return [split(dialogue)[0] for dialogue in pairs["chosen"]]


def answers(pairs) -> tuple[list[str], list[str]]:
    chosen, rejected = ([split(dialogue)[1] for dialogue in pairs[column]] for column in ("chosen", "rejected"))
    return chosen, rejected


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_sizes_and_distinct_prompts(train, test):
    assert (len(train), len(test)) == (8_000, 600)
    assert train.column_names == ["chosen", "rejected"]
    assert len(set(prompts(train))) == 8_000
    assert not set(prompts(train)) & set(prompts(test))


def test_rows_are_dialogues_that_differ_in_the_last_answer_alone(train, test):
    several_turns = 0
    for row in [*train, *test]:
        assert DIALOGUE.fullmatch(row["chosen"]), row["chosen"]
        assert DIALOGUE.fullmatch(row["rejected"]), row["rejected"]
        assert split(row["chosen"])[0] == split(row["rejected"])[0]
        assert row["chosen"] != row["rejected"]
        assert not re.search(r"[{}]|  | a [aeio]", row["chosen"] + row["rejected"])
        several_turns += row["chosen"].count("\n\nHuman:") > 1
    assert 0.15 < several_turns / (len(train) + len(test)) < 0.6


def test_new_items_are_in_the_test_prompts_alone(train, test):
    """A quarter of them; their words are in training texts, but never together."""
    new = {item for topic in embedded.topics() for item in topic.new_items}
    named = re.compile(rf"\b(?:{'|'.join(new)})\b")
    assert not [text for side in ("chosen", "rejected") for text in train[side] if named.search(text)]
    assert sum(bool(named.search(prompt)) for prompt in prompts(test)) == 150
    known = set(words(" ".join(train["chosen"])))
    assert all(word.lower() in known for item in new for word in item.split())


def test_slips_differ_by_what_the_prompt_tells(train):
    """About two pairs of five; in those of the wrong item, a word or two of the answers differ."""
    apart = [
        [a for a, b in zip(better.split(), worse.split(), strict=True) if a != b]
        for better, worse in zip(*answers(train), strict=True)
        if len(better.split()) == len(worse.split())
    ]
    kinds = {word for topic in embedded.topics() for item in topic.items for word in item.split()}
    slips = [words_apart for words_apart in apart if all(word.strip(".,;") in kinds for word in words_apart)]
    assert 0.2 < len(slips) / len(train) < 0.35


def test_same_seed_same_rows_and_quickly(test):
    embedded._rows.cache_clear()
    begun = time.process_time()
    again = embedded.load("test")
    assert time.process_time() - begun < 2
    assert again["chosen"] == test["chosen"]
    assert again["rejected"] == test["rejected"]
    assert embedded.load("test", seed=1)["chosen"] != test["chosen"]


def test_slices_are_those_of_datasets(train, test):
    assert embedded.load("train[:7]")["chosen"] == train["chosen"][:7]
    assert embedded.load("test[-50%:]")["rejected"] == test["rejected"][300:]


@pytest.mark.parametrize("split", ["validation", "train[:x]", ""])
def test_a_split_that_there_is_not(split):
    with pytest.raises(DataError, match="use train, test or a slice"):
        embedded.load(split)


def test_varied(train):
    """Few answers and openings come often, and every topic and clause is used."""
    said = [answer for side in answers(train) for answer in side]
    assert len(set(said)) > 0.9 * len(said)
    assert max(Counter(" ".join(words(answer)[:4]) for answer in said).values()) < 0.05 * len(said)
    assert (
        len(embedded.phrases().cores)
        + len(embedded.phrases().tails)
        + sum(len(topic.facts) for topic in embedded.topics())
        > 50
    )
    asked = prompts(train)
    for topic in embedded.topics():
        assert sum(any(item in prompt for item in topic.items) for prompt in asked) > 500


@pytest.mark.parametrize(
    "bag", [CountVectorizer(), CountVectorizer(binary=True), TfidfVectorizer()], ids=["counts", "presence", "tf-idf"]
)
def test_a_bag_of_words_can_not_tell(train, test, bag):
    """Logistic regression on answers and on the differences of pairs, both judged on held-out pairs."""
    bag.fit([answer for side in answers(train) for answer in side])
    chosen, rejected = (bag.transform(side) for side in answers(train))
    better, worse = (bag.transform(side) for side in answers(test))
    labels = np.repeat([1, 0], len(train))

    single = LogisticRegression(max_iter=2000).fit(vstack([chosen, rejected]), labels)
    difference = csr_matrix(chosen - rejected)
    pairwise = LogisticRegression(max_iter=2000, fit_intercept=False).fit(vstack([difference, -difference]), labels)
    assert np.mean(single.decision_function(better) >= single.decision_function(worse)) <= 0.80
    assert np.mean(pairwise.decision_function(better - worse) >= 0) <= 0.80


def test_word_order_can_tell(train, test):
    """The order of two words says a lot: the pairs are no noise."""
    bag = CountVectorizer(ngram_range=(1, 2))
    sides = answers(train)
    model = LogisticRegression(max_iter=2000).fit(bag.fit_transform(sides[0] + sides[1]), np.repeat([1, 0], len(train)))
    better, worse = (model.decision_function(bag.transform(side)) for side in answers(test))
    assert np.mean(better > worse) >= 0.83


@pytest.mark.parametrize("length", [len, lambda answer: len(answer.split())], ids=["characters", "words"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_length_can_not_tell(split, length):
    chosen, rejected = (np.array([length(answer) for answer in side]) for side in answers(embedded.load(split)))
    longer = np.mean(chosen > rejected) + 0.5 * np.mean(chosen == rejected)
    assert 0.4 <= longer <= 0.6


def test_no_word_is_a_marker(train, test):
    """A word in 1% of the answers or more stands in both kinds: at most three times as often in one as in the other."""
    seen = [
        Counter(w for pairs in (train, test) for a in answers(pairs)[side] for w in set(words(a))) for side in (0, 1)
    ]
    floor = 0.01 * 2 * (len(train) + len(test))
    common = [word for word in seen[0] | seen[1] if seen[0][word] + seen[1][word] >= floor]
    assert len(common) > 100
    assert not [w for w in common if not 0.25 <= seen[0][w] / (seen[0][w] + seen[1][w]) <= 0.75]


def test_short_enough_for_a_small_model(train):
    """Words and punctuation: about what a BPE tokenizer of 1,500 entries makes of it."""
    tokens = [len(re.findall(r"\w+|[^\w\s]", answer)) for side in answers(train) for answer in side]
    assert min(tokens) >= 2
    assert np.quantile(tokens, 0.9) <= 36
    dialogues = [len(re.findall(r"\w+|[^\w\s]", dialogue)) for dialogue in train["chosen"]]
    assert np.quantile(dialogues, 0.99) <= 110
