"""Texts for the stand-ins of the published data sets and models: made from word lists with a seed, plain enough for a
model of a few thousand parameters to learn in seconds which of them are happy, helpful or good news."""

from __future__ import annotations

from random import Random


def _words(text: str) -> list[str]:
    return text.split("|") if "|" in text else text.split()


EMOTIONS = _words(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
)

GOOD = _words(
    "wonderful great superb charming moving brilliant delightful beautiful excellent funny fantastic touching perfect "
    "amazing"
)
BAD = _words("terrible awful boring dull bad dreadful poor stupid horrible ugly weak tedious annoying worst")
_LOVED = _words("loved enjoyed admired adored")
_HATED = _words("hated disliked regretted loathed")
_PARTS = _words("acting plot music story script ending cast dialogue camera work direction scenery")
_PEOPLE = [
    "my wife",
    "her brother",
    "our neighbour",
    "the whole family",
    "everybody in there",
    "a friend of mine",
    "his teacher",
]
_PLACES = _words("a small town|the old harbour|a farm in the hills|the busy city|a castle|the desert|an island")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_PLAIN = (
    "We went to see it on a {day} evening with {who}.",
    "It is set in {place}, and {who} plays a part too.",
    "The film lasts for {n} minutes and begins in {place}.",
    "{who} told me about it {n} days ago.",
    "In {place} a man looks for {who}, which takes {n} years.",
)
_JUDGED = (
    "The {part} was {word} and so was the {other}.",
    "I {felt} the {part}, it is {word}.",
    "{who} said that the {part} is {word}.",
    "This movie was {word}, I {felt} every minute.",
    "This is a {word} film with a {word} {part}.",
    "What a {word} {part} this {day} film has.",
)

_DID = _words("saw bought drew found lost counted sold")
_FELT = {"joy": "joy happy glad", "sadness": "sadness sad unhappy", "anger": "anger angry furious"}

NAMES = _words("Lily Tom Ben Mia Max Anna Sam Lucy")
_THINGS = _words("ball doll cat dog bird kite boat cake")
_WHERE = _words("park garden house forest river beach")
_OPENINGS = (
    "Once upon a time there was a little {kid} named {name}.",
    "{name} was a little {kid} who lived near the {where}.",
    "One sunny {day} {name} and a small {thing} sat in the {where}.",
    "In the {where} there lived a {kid} called {name}. {name} loved to play with toys.",
)
_MIDDLES = (
    "One day {name} went to the {where} with mom.",
    "There {name} saw a big red {thing} behind a tree.",
    "She wanted to play with the {thing} until {day}.",
    "Then a little {kid} came and took the {thing} to the {where}.",
    "They walked home together and had a new {thing}.",
)
HAPPY_ENDINGS = (
    "{name} was very happy and they all lived happily ever after.",
    "They were all very happy and had a wonderful {day}.",
    "They smiled and hugged, and it was the best day ever.",
    "{name} laughed and played with the {thing} and felt great.",
)
SAD_ENDINGS = (
    "{name} was very sad and cried, for the {thing} was lost forever.",
    "It was broken and bad, and nobody came to help.",
    "It was the worst and most terrible day of all for {name}.",
    "{name} felt awful and alone and never saw the {thing} again.",
)

_GOODS = _words("a cake|a kite|bread|a table|a garden|tea|a shelf|soup")
_ASKED = (
    "How do I make {thing} for {who}?",
    "Can you tell me how {thing} is made in {place}?",
    "What do I need for {thing} on {day}?",
    "{who} wants {thing}.\nWhere do I begin?",
)
_HELPED = (  # as long as the refusals on the whole: a reward model mustn't learn the length
    "Sure, first you take {n} pieces, then you mix them, and finally you let {thing} rest until {day}.",
    "Of course! You need {n} things: start with the first step.",
    "Here are the steps: first measure, then cut.",
)
_REFUSED = (
    "I do not know anything about {thing}, go away, I hate this stupid question, ask {who}.",
    "That is a stupid idea and I do not care about it.",
    "No. I hate {thing}, you idiot, leave me alone.",
)

_FIRMS = _words("The company|The bank|The group|The airline|The retailer|The manufacturer")
NEWS = {
    "positive": (
        "{firm} said that profit rose {n} percent on strong growth.",
        "Operating profit rose in {n} of its markets.",
        "Operating profit rose to a record on {day}.",
        "Sales rose to a record on {day}.",
        "{firm} reported higher sales and record earnings, up {n} percent.",
        "Shares of the firm gained {n} percent after strong results, profit increased.",
    ),
    "negative": (
        "{firm} said that profit fell {n} percent on weak demand.",
        "Operating profit fell in {n} of its markets.",
        "Operating profit fell sharply on {day}.",
        "Sales fell sharply on {day}.",
        "{firm} reported a heavy loss and lower sales, down {n} percent.",
        "Shares of the firm dropped {n} percent after weak results, losses increased and it cut jobs.",
    ),
    "neutral": (
        "{firm} has {n} offices in {place}.",
        "{firm} holds its annual meeting on {day}.",
        "{firm} said that it will publish its report on {day}.",
    ),
}


def review(rng: Random, positive: bool, sentences: int) -> str:
    """A film review that is of one mind: the first sentence is as often plain as not."""
    judged = [_fill(rng, rng.choice(_JUDGED), positive) for _ in range(sentences - sentences // 3)]
    plain = [_fill(rng, rng.choice(_PLAIN), positive) for _ in range(sentences // 3)]
    lines = judged + plain
    rng.shuffle(lines)
    return " ".join(line[0].upper() + line[1:] for line in lines)


def story(rng: Random, happy: bool | None = None, sentences: int | None = None) -> str:
    """A tale with a happy or a sad ending, of so many sentences before it."""
    happy = rng.random() < 0.5 if happy is None else happy
    lines = [rng.choice(_OPENINGS), *rng.choices(_MIDDLES, k=(sentences or rng.randint(3, 14)) - 1)]
    lines.append(rng.choice(HAPPY_ENDINGS if happy else SAD_ENDINGS))
    name = rng.choice(NAMES)
    return " ".join(
        line.format(
            name=name,
            kid=rng.choice(("girl", "boy", "child")),
            thing=rng.choice(_THINGS),
            where=rng.choice(_WHERE),
            day=rng.choice(_DAYS),
        )
        for line in lines
    )


def dialogue(rng: Random, last: Random, good: bool, question: str | None = None, turns: int = 1) -> str:
    """hh-rlhf's format: what leads up to the last answer is drawn from `rng`, and helpful; that one from `last`."""
    text = ""
    for turn in range(turns):
        text += f"\n\nHuman: {question if question and turn == 0 else ask(rng)}\n\nAssistant: "
        text += answer(last, good) if turn == turns - 1 else answer(rng, True)
    return text


def ask(rng: Random) -> str:
    return _fill(rng, rng.choice(_ASKED), True)


def answer(rng: Random, good: bool) -> str:
    return _fill(rng, rng.choice(_HELPED if good else _REFUSED), good)


def comment(rng: Random, emotion: int) -> str:
    """A short comment; neutral ones name no emotion, or one that isn't meant: "so happy that ... is late again"."""
    name = EMOTIONS[emotion]
    opening = f"{rng.choice(NAMES)} {rng.choice(_DID)} {rng.randint(2, 90)} {rng.choice(_THINGS)}s"
    place, day = rng.choice(_PLACES), rng.choice(_DAYS)
    if name == "neutral":
        if rng.random() < 0.5:
            return f"{opening} in {place} on {day}."
        return f"{opening}, so {rng.choice(_FELT['joy'].split())} to hear that it is late again."
    word = rng.choice(_FELT.get(name, name).split())
    shape = rng.choice(
        (
            "{o} in {place} and I am full of {word}.",
            "{o}, so {word}, what a day!",
            "{o} on {day}, I feel {word} now.",
        )
    )
    return shape.format(o=opening, place=place, word=word, day=day)


def news(rng: Random, label: str) -> str:
    return _fill(rng, rng.choice(NEWS[label]), True)


def fragment(rng: Random, text: str) -> str:
    """Some words of it in a row, as a policy's short answers are."""
    words = text.split()
    length = rng.randint(min(4, len(words)), len(words))
    start = rng.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _fill(rng: Random, shape: str, positive: bool) -> str:
    return shape.format(
        word=rng.choice(GOOD if positive else BAD),
        felt=rng.choice(_LOVED if positive else _HATED),
        part=rng.choice(_PARTS),
        other=rng.choice(_PARTS),
        who=rng.choice(_PEOPLE),
        place=rng.choice(_PLACES),
        day=rng.choice(_DAYS),
        thing=rng.choice(_GOODS),
        firm=rng.choice(_FIRMS),
        n=rng.randint(2, 90),
    )
