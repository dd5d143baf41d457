"""A model and its reference asked by a person: a typed prompt in, both answers with their scores out. Chat policies
remember what was said, each what it said itself."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lib.conversation import Conversation, Message
from rlhf_lib.errors import RLHFError
from tasks.registry.answering import NoRoom, Origin, TemplateRefusal, score

NEW, SYSTEM = "/new", "/system"  # commands in a chat


@dataclass(frozen=True)
class Answer:
    """`score` is None where no reward is at hand."""

    name: str
    text: str
    score: float | None

    def __str__(self) -> str:
        score = "" if self.score is None else f" ({self.score:.3g})"
        return f"{self.name}{score}: {self.text.strip() or '(empty)'}"


class Chat:
    """`model`: a registered model's NAME (its champion), NAME@ALIAS or NAME/VERSION, a folder or a hub id; for the
    latter two a `recipe` is needed, whose policy.model then is the reference. Raises ModelError for what isn't there.

    `system`: the chat policies' system message, before conversations to come.
    """

    def __init__(self, model: str, recipe: str | None = None, overrides: list[str] | None = None) -> None:
        origin = Origin(model, recipe, overrides)
        self.recipe, self.remembers = origin.recipe, origin.remembers
        self.missing: list[str] = []
        self.speakers = [origin.own()]
        try:
            if (reference := origin.reference()) is not None:
                self.speakers.append(reference)
        except RLHFError as error:
            self.missing.append(str(error))
        self.system = self.recipe.policy.system
        self.said: dict[str, list[Message]] = {speaker.name: [] for speaker in self.speakers}
        self.reward, unscored = origin.reward()
        self.missing += unscored

    @property
    def about(self) -> str:
        """Who answers, how, what is missing, and which commands there are."""
        scored = "scored by the recipe's reward" if self.reward else "not scored"
        lines = [f"{' and '.join(self.said)} answer, {scored}; recipe {self.recipe.name}.", *self.missing]
        if self.remembers:
            lines.append(f"{NEW} starts a new conversation, {SYSTEM} TEXT one after that system message.")
        return "\n".join(lines)

    def command(self, typed: str) -> str | None:
        """Follow a command, and tell what it did; None for what is none."""
        word, _, rest = typed.strip().partition(" ")
        if not self.remembers or word not in (NEW, SYSTEM):
            return None
        if word == SYSTEM:
            self.system = rest.strip() or None
        self.said = {name: [] for name in self.said}
        return "A new conversation" + (f" after the system message: {self.system}" if self.system else ".")

    def answer(self, typed: str, turn: int = 0) -> list[Answer]:
        """One answer a model, sampled as the recipe says from the same random numbers, others each turn. A chat policy
        is asked what was typed after what it was asked before, and its score is that of the answer to all of it."""
        answers = []
        for speaker in self.speakers:
            name = speaker.name
            try:
                asked = speaker.asked(typed, self.said[name], self.system)
            except TemplateRefusal as error:
                answers.append(Answer(name, f"({error}; {SYSTEM} alone leaves the system message out)", None))
                continue
            except NoRoom as error:
                way = f"; {NEW} starts another" if self.remembers else ""
                answers.append(Answer(name, f"({error}{way})", None))
                continue
            response = speaker.answer(asked, seed=self.recipe.seed, turn=turn)
            if isinstance(asked.query, Conversation):
                self.said[name] = asked.query.answered(response.text)
            given = score(self.reward, asked, response) if self.reward else None
            answers.append(Answer(name, response.text, given))
        return answers
