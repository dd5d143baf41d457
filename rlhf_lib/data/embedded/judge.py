"""A judge of answers to the embedded dialogues, by what the grammar's clauses mean: it reads, and nothing is trained.

An answer is parsed into the clauses that it is made of. Each has a side (helpful, half-hearted, unhelpful), and what
fills its slots belongs to a topic; so the parse tells whether the answer helps this customer, and whether it is about
the thing that the customer wrote about. What doesn't parse is not well formed, and helps nobody.

    evaluation:
      judges: {helps: {kind: function, function: "rlhf_lib.data.embedded.judge:helps"}}
      metrics: ["rlhf_lib.data.embedded.judge:measures"]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from rlhf_lib.data.embedded import phrases, topics

Topics = frozenset[str]  # by what they are called while the item isn't known ("order"); empty: any of them
ANY: Topics = frozenset()


class Said(NamedTuple):
    """What an answer says. `core` and `tail`: "+" helpful, "~" half-hearted, "-" unhelpful, "" nothing. `topics`: of
    each thing that belongs to some; `items`: the things it names, in order."""

    core: str
    tail: str
    topics: tuple[Topics, ...]
    items: tuple[str, ...]


class Verdict(NamedTuple):
    """An answer to one customer. `own`: whether each item that it names is the customer's; None where it names none."""

    well_formed: bool
    helpful: bool
    own: bool | None


def judge(query: str, answer: str) -> Verdict:
    """The verdict on an answer to a dialogue up to the last "Assistant:".

    Helpful: a helpful core, no unhelpful tail, and nothing that belongs to another topic than the customer's. An answer
    that doesn't parse is not helpful; the items in it count all the same.
    """
    said = read(answer.strip())
    asked = items_in(query)
    items = said.items if said else items_in(answer)
    own = all(item in asked for item in items) if items else None
    if said is None:
        return Verdict(False, False, own)
    about = {_topic_of()[item] for item in asked}
    fits = all(not among or about & among for among in said.topics)
    return Verdict(True, said.core == "+" and said.tail != "-" and fits, own)


def helps(queries: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for an answer that helps this customer, else 0, whatever it is that the answer names. A reward function, to be
    a judge."""
    return [float(found.helpful) for found in _verdicts(queries, responses)]


def own_item(queries: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for an answer that names the customer's item and no other, -1 for one that names another, 0 for one that names
    none. A reward function, to be a term of the reward: it can be verified, and says nothing of help."""
    return [0.0 if found.own is None else 2.0 * found.own - 1.0 for found in _verdicts(queries, responses)]


def measures(prompts: Sequence[str], outputs: Sequence[str], **_: Any) -> dict[str, list[float | None]]:
    """As trlX's metric_fn; shares, once averaged. Of all answers: `well_formed`, `helpful`, `names_own_item`, and
    `serves`: helpful, and names no other item. Of the answers that name an item: `own_item`, it is the customer's. The
    last two again for the customers whose item no training text contains: `serves_new`, `own_item_new`."""
    found = _verdicts(prompts, outputs)
    own = [None if one.own is None else float(one.own) for one in found]
    serves = [float(one.helpful and one.own is not False) for one in found]
    new_items = {item for topic in topics() for item in topic.new_items}
    new = [not new_items.isdisjoint(items_in(prompt)) for prompt in prompts]
    return {
        "well_formed": [float(one.well_formed) for one in found],
        "helpful": [float(one.helpful) for one in found],
        "names_own_item": [float(one.own is True) for one in found],
        "serves": list(serves),
        "own_item": own,
        "serves_new": [value if is_new else None for value, is_new in zip(serves, new, strict=True)],
        "own_item_new": [value if is_new else None for value, is_new in zip(own, new, strict=True)],
    }


def _verdicts(queries: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
    return [judge(query, response) for query, response in zip(queries, responses, strict=True)]


def items_in(text: str) -> tuple[str, ...]:
    """The items that are named in a text, in order."""
    return tuple(_any_item().findall(text))


@cache
def _topic_of() -> dict[str, str]:
    """What the topic of each item is called."""
    return {item: topic.vague for topic in topics() for item in topic.every_item}


@cache
def _any_item() -> re.Pattern[str]:
    every = sorted(_topic_of(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, every))})\b")


# ------------------------------------------------------------ parsing


class Clause(NamedTuple):
    """A phrase of the grammar, cut at its slots: literal, slot, literal, ... `side`: as of `Said`."""

    parts: tuple[str, ...]
    side: str = ""
    topics: Topics = ANY


class Match(NamedTuple):
    """Where in the text a clause ends, and what its slots hold."""

    end: int
    topics: tuple[Topics, ...] = ()
    items: tuple[str, ...] = ()


@lru_cache(maxsize=65_536)
def read(answer: str) -> Said | None:
    """What the answer says, None unless it is made of the grammar's clauses in their order: an opener, the core, a
    tail, a closing, any of them absent."""
    return next(_read_on(answer, 0, ("opener", "core", "tail", "closing")), None)


def _read_on(text: str, at: int, places: Sequence[str]) -> Iterator[Said]:
    """The ways to read the rest of the text as clauses of these places."""
    for i, place in enumerate(places):
        for clause in _clauses()[place]:
            for match in _matches(clause.parts, text, at):
                said = Said(
                    core=clause.side if place == "core" else "",
                    tail=clause.side if place == "tail" else "",
                    topics=(clause.topics, *match.topics),
                    items=match.items,
                )
                if match.end == len(text):
                    yield said
                elif text[match.end] == " ":
                    for more in _read_on(text, match.end + 1, places[i + 1 :]):
                        yield Said(
                            said.core or more.core,
                            said.tail or more.tail,
                            said.topics + more.topics,
                            said.items + more.items,
                        )


def _matches(parts: tuple[str, ...], text: str, at: int) -> Iterator[Match]:
    """The ways in which the text goes on with the parts: literal, slot, literal, ..."""
    literal, *rest = parts
    if not text.startswith(literal, at):
        return
    if not rest:
        yield Match(at + len(literal))
        return
    slot, *following = rest
    for filler in _fillers()[slot]:
        for inside in _matches(filler.parts, text, at + len(literal)):
            items = filler.parts if slot == "item" else inside.items
            for after in _matches(tuple(following), text, inside.end):
                yield Match(after.end, (filler.topics, *inside.topics, *after.topics), items + after.items)


@cache
def _clauses() -> dict[str, list[Clause]]:
    """The clauses by their place in an answer."""
    said = phrases()
    cores = [Clause(_cut(core), side) for mirror in said.cores for core, side in zip(mirror, "+-", strict=True)]
    cores += [Clause(_cut(half), "~") for half in said.half_measures]
    cores += [Clause(_cut(evasion)) for evasion in said.evasions if evasion]
    cores += [
        Clause(_cut(fact), side, frozenset({topic.vague}))
        for topic in topics()
        for mirror in topic.facts
        for fact, side in zip(mirror, "+-", strict=True)
    ]
    return {
        "opener": [Clause(_cut(opener)) for opener in said.openers],
        "core": cores,
        "tail": [Clause(_cut(tail), side) for mirror in said.tails for tail, side in zip(mirror, "+-", strict=True)],
        "closing": [Clause(_cut(closing)) for closing in said.closings],
    }


@cache
def _fillers() -> dict[str, list[Clause]]:
    """What may fill a slot, by the slot's name."""
    found = {name: [Clause((choice,)) for choice in choices] for name, choices in phrases().fillers.items()}
    found["item"] = [Clause((item,)) for item in _topic_of()]
    for slot, parts in (
        ("act", ["acts"]),
        ("chore", ["chores"]),
        ("burden", ["burdens", "chores"]),
        ("fault", ["faults"]),
        ("cost", ["costs"]),
    ):
        among: dict[str, Topics] = {}
        for topic in topics():
            for choice in (choice for part in parts for choice in getattr(topic, part)):
                among[choice] = among.get(choice, ANY) | {topic.vague}
        found[slot] = [Clause(_cut(choice, sentence=False), topics=where) for choice, where in among.items()]
    return found


def _cut(template: str, *, sentence: bool = True) -> tuple[str, ...]:
    """Cut at the slots; a `sentence` starts with a capital."""
    parts = re.split(r"[{}]", template)
    return (parts[0][:1].upper() + parts[0][1:] if sentence else parts[0], *parts[1:])
