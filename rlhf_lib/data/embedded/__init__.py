"""The embedded preference data: customer-service dialogues in hh-rlhf's own format, made by a seeded grammar.

Every prompt comes once, with a helpful answer (`chosen`) and a worse one (`rejected`). Most of the grammar's clauses
are mirrors: the same words help or refuse, depending on their order ("I will ..., you will not have to ..."). So
neither a marker word nor the length tells the two apart, while a model that reads word order can.

An answer has a core (helpful, half-hearted, unhelpful, or none to speak of) and perhaps a tail (helpful or not); the
chosen answer has the better core, or the same and the better tail. In a third of the pairs the rejected answer is the
chosen one with one slip: it names another thing than the customer's, or promises what belongs to another topic. Only
the prompt tells those apart.

A quarter of the test prompts are about things that no training text names, though it has each of their words. What the
clauses mean for the customer is in judge.py.
"""

import random
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import datasets
import yaml

from rlhf_lib.errors import DataError

NAME = "embedded/customer-service"
SIZES = {"train": 8_000, "test": 600}
NEW_ITEM_EVERY = 4  # test prompts

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant:"


class Mirror(NamedTuple):
    """The same words in two orders, or nearly so."""

    helpful: str
    unhelpful: str


class Topic(NamedTuple):
    """What a customer writes about: topics.yaml says what each part is."""

    vague: str
    which: str
    kinds: Sequence[str]
    things: Sequence[str]
    problems: Sequence[str]
    asks: Sequence[str]
    acts: Sequence[str]
    chores: Sequence[str]
    burdens: Sequence[str]
    faults: Sequence[str]
    costs: Sequence[str]
    facts: Sequence[Mirror]

    @property
    def every_item(self) -> list[str]:
        return [f"{kind} {thing}" for kind in self.kinds for thing in self.things]

    @property
    def new_items(self) -> list[str]:
        """The items that no training text contains, though it contains each of their words: one of six."""
        return [f"{self.kinds[i]} {thing}" for i, thing in enumerate(self.things)]

    @property
    def items(self) -> list[str]:
        new = self.new_items
        return [item for item in self.every_item if item not in new]


class Phrases(NamedTuple):
    """What is said whatever the topic: phrases.yaml says what each part is."""

    cores: Sequence[Mirror]
    half_measures: Sequence[str]
    evasions: Sequence[str]
    tails: Sequence[Mirror]
    fillers: dict[str, Sequence[str]]
    openers: Sequence[str]
    closings: Sequence[str]
    greetings: Sequence[str]
    pleas: Sequence[str]
    asks: Sequence[str]
    prefaces: Sequence[str]
    exchanges: Sequence[dict[str, Any]]  # question: str, replies: list of str


@cache
def topics() -> tuple[Topic, ...]:
    return tuple(Topic(**topic | {"facts": _mirrors(topic["facts"])}) for topic in _read("topics.yaml"))


@cache
def phrases() -> Phrases:
    read = _read("phrases.yaml")
    return Phrases(**read | {part: _mirrors(read[part]) for part in ("cores", "tails")})


def _mirrors(read: Sequence[dict[str, str]]) -> list[Mirror]:
    return [Mirror(**mirror) for mirror in read]


def _read(name: str) -> Any:
    return yaml.safe_load(files(__name__).joinpath(name).read_text(encoding="utf-8"))


class Shape(NamedTuple):
    """What a pair is made of: each side's core and tail, "+" helpful, "~" half-hearted, "-" unhelpful, "" none."""

    weight: int
    chosen: tuple[str, str]
    rejected: tuple[str, str]
    slip: str = ""  # the rejected answer is the chosen one, but for another "topic" or about another "item"


SHAPES = (
    Shape(30, ("+", "+"), ("-", "-")),
    Shape(4, ("+", "+"), ("-", "+")),
    Shape(9, ("+", "+"), ("-", "")),
    Shape(24, ("+", ""), ("-", "")),
    Shape(9, ("+", ""), ("-", "-")),
    Shape(4, ("+", "-"), ("-", "-")),
    Shape(1, ("+", ""), ("~", "")),
    Shape(2, ("+", "+"), ("~", "-")),
    Shape(1, ("~", ""), ("-", "")),
    Shape(2, ("~", "+"), ("-", "-")),
    Shape(6, ("+", "+"), ("+", "-")),
    Shape(8, ("+", ""), ("", "")),
    Shape(6, ("+", "+"), ("+", "+"), "topic"),
    Shape(6, ("+", ""), ("+", ""), "topic"),
    Shape(22, ("+", "+"), ("+", "+"), "item"),
    Shape(22, ("+", ""), ("+", ""), "item"),
)


def load(split: str = "train", seed: int = 0) -> datasets.Dataset:
    """Pairs of whole dialogues: columns `chosen` and `rejected`, which share everything up to the last answer.

    `split` is train (8,000 pairs), test (600 pairs, no prompt of which is in train) or a slice such as train[:100].
    The same seed gives the same rows. Raises DataError for an unknown split.
    """
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(SIZES)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{NAME} has no split '{split}': use train, test or a slice such as train[:100]") from error
    rows = _rows(seed)
    start = {"train": 0, "test": SIZES["train"]}
    picked = [
        row
        for part in parts
        for row in rows[start[part.splitname] :][: SIZES[part.splitname]][slice(part.from_, part.to)]
    ]
    return datasets.Dataset.from_dict({"chosen": [c for c, _ in picked], "rejected": [r for _, r in picked]})


@cache
def _rows(seed: int) -> list[tuple[str, str]]:
    """(chosen, rejected) of both splits, train first; no prompt comes twice."""
    rng = random.Random(seed)
    rows: dict[str, tuple[str, str]] = {}
    while len(rows) < sum(SIZES.values()):
        topic = rng.choice(topics())
        new = len(rows) >= SIZES["train"] and len(rows) % NEW_ITEM_EVERY == 0
        item = rng.choice(topic.new_items if new else topic.items)
        prompt = _prompt(rng, topic, item)
        chosen, rejected = _answers(rng, topic, item)
        if chosen != rejected:
            rows.setdefault(prompt, (f"{prompt} {chosen}", f"{prompt} {rejected}"))
    return list(rows.values())


def _prompt(rng: random.Random, topic: Topic, item: str) -> str:
    """One or two human turns, up to the last "Assistant:"."""
    preface = _maybe(rng, 0.2, phrases().prefaces) or "{problem}"

    def complain(about: str) -> str:
        problem = rng.choice(topic.problems).format(item=about)
        if preface != "{problem}" and not problem.startswith("I "):
            problem = problem[0].lower() + problem[1:]
        return preface.format(problem=problem)

    greeting, plea = _maybe(rng, 0.5, phrases().greetings), _maybe(rng, 0.2, phrases().pleas)
    ask = rng.choice(topic.asks if rng.random() < 0.6 else phrases().asks)
    form = rng.random()
    if form < 0.12:  # the assistant has to ask what it is about
        turns = [_join(greeting, complain(topic.vague)), topic.which, _join(f"The {item}.", ask, plea)]
    elif form < 0.28:
        exchange = rng.choice(phrases().exchanges)
        turns = [_join(greeting, complain(item)), exchange["question"], _join(rng.choice(exchange["replies"]), ask)]
    elif form < 0.4:  # the question first
        turns = [_join(greeting, ask, complain(item), plea)]
    elif form < 0.55:  # no question at all
        turns = [_join(greeting, complain(item), plea)]
    else:
        turns = [_join(greeting, complain(item), ask, plea)]
    speakers = (HUMAN, f"{ASSISTANT} ")
    return "".join(speakers[i % 2] + turn for i, turn in enumerate(turns)) + ASSISTANT


def _answers(rng: random.Random, topic: Topic, item: str) -> tuple[str, str]:
    (shape,) = rng.choices(SHAPES, weights=[s.weight for s in SHAPES])
    if shape.slip == "topic":
        return _wrong_topic(rng, topic, item, shape)
    if shape.slip == "item":
        return _wrong_item(rng, topic, item, shape)
    chosen, rejected = (_answer(rng, topic, *side).format(item=item) for side in (shape.chosen, shape.rejected))
    return chosen, rejected


def _wrong_item(rng: random.Random, topic: Topic, item: str, shape: Shape) -> tuple[str, str]:
    """The same answer about the customer's item and about another, of this topic or of any."""
    others = topic if rng.random() < 0.5 else _other(rng, topics(), topic)
    while "{item}" not in (answer := _answer(rng, topic, *shape.chosen)):  # a slip shows only where things are named
        pass
    return answer.format(item=item), answer.format(item=_other(rng, others.items, item))


def _wrong_topic(rng: random.Random, topic: Topic, item: str, shape: Shape) -> tuple[str, str]:
    """The same clauses about the same item, with what another topic would do; pairs without a difference are left out
    by the caller."""
    seed = rng.getrandbits(32)
    other = _other(rng, topics(), topic)
    chosen, rejected = (_answer(random.Random(seed), about, *shape.chosen) for about in (topic, other))
    return chosen.format(item=item), rejected.format(item=item)


def _answer(rng: random.Random, topic: Topic, core: str, tail: str) -> str:
    """An answer in which the item is still to be filled in."""
    mirrors = topic.facts if rng.random() < 0.12 else phrases().cores
    answers = {"+": rng.choice(mirrors)[0], "-": rng.choice(mirrors)[1], "~": rng.choice(phrases().half_measures)}
    parts = [
        _maybe(rng, 0.4 if core else 1.0, phrases().openers),
        answers.get(core) or rng.choice(phrases().evasions),
        rng.choice(phrases().tails)[tail == "-"] if tail else "",
    ]
    parts.append(_maybe(rng, 0.15, phrases().closings))
    values = {name: rng.choice(choices) for name, choices in phrases().fillers.items()}
    values |= {
        "act": rng.choice(topic.acts),
        "chore": rng.choice(topic.chores),
        "burden": rng.choice([*topic.burdens, *topic.chores]),
        "fault": rng.choice(topic.faults),
        "cost": rng.choice(topic.costs),
    }
    return _join(*(_sentence(part.format(**values, item="{item}")) for part in parts))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _maybe(rng: random.Random, chance: float, choices: Sequence[str]) -> str:
    return rng.choice(choices) if rng.random() < chance else ""


def _other(rng: random.Random, choices: Sequence[Any], current: Any) -> Any:
    return rng.choice([choice for choice in choices if choice != current])
