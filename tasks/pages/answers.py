"""What the playground is asked, and its answers: several models' to one prompt, side by side, as events."""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlhf_lib.conversation import Conversation, Message
from rlhf_lib.errors import RLHFError
from rlhf_lib.recipe import GenerationConfig
from tasks.pages.answer_queue import Event, Steps
from tasks.pages.offered import Loaded, Scoring
from tasks.pages.text import markdown
from tasks.registry.answering import Asked, NoRoom, Response, TemplateRefusal, score

MOST_MODELS = 6  # that answer one prompt
PROMPT_CHARS = 20_000
COLDEST = 0.01  # temperature; far below it the logits overflow
DUELS = 1000  # blind comparisons whose votes are awaited


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Sampling(_Sent):
    """None: as the model's recipe says. `temperature` 0 decodes greedily."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    max_tokens: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**53)

    def model_post_init(self, _: Any) -> None:
        if self.temperature and self.temperature < COLDEST:
            raise ValueError(f"a temperature is 0 (greedy) or at least {COLDEST}")

    def of(self, recipe: GenerationConfig) -> tuple[GenerationConfig, bool]:
        """(the recipe's generation with these settings, whether it is greedy). No response is longer than the recipe
        has them."""
        changed: dict[str, Any] = {
            key: value for key in ("top_p", "top_k") if (value := getattr(self, key)) is not None
        }
        if self.temperature:
            changed["temperature"] = self.temperature
        if self.max_tokens is not None:
            changed |= {"max_new_tokens": min(self.max_tokens, recipe.response_limit), "length_sampler": None}
        return recipe.model_copy(update=changed), self.temperature == 0


class Said(_Sent):
    """A message of a conversation so far."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=PROMPT_CHARS)


class Question(_Sent):
    """`said`: the conversation so far of each model that keeps one, by its id. `system`: None: the recipe's own; empty:
    none. `turn`: how many prompts came before, since each draws other random numbers. `blind`: two of the models answer
    without their names."""

    models: list[str] = Field(min_length=1, max_length=MOST_MODELS)
    prompt: str = Field(min_length=1, max_length=PROMPT_CHARS)
    said: dict[str, list[Said]] = Field(default_factory=dict, max_length=MOST_MODELS)
    system: str | None = Field(None, max_length=PROMPT_CHARS)
    turn: int = Field(0, ge=0, lt=10_000)
    sampling: Sampling = Sampling()
    blind: bool = False

    def model_post_init(self, _: Any) -> None:
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model is named twice")
        if self.blind and len(self.models) < 2:
            raise ValueError("a blind comparison needs two models")


class Vote(_Sent):
    """`none`: show the names without a vote."""

    duel: str = Field(max_length=64)
    choice: Literal["left", "right", "tie", "bad", "none"]
    seconds: float | None = Field(None, ge=0)


@dataclass
class Duel:
    """A blind comparison: who answers, left and right; once both have, the prompt as rewards read it (None where the
    two were asked differently, and so are no pair), their texts and scores."""

    models: list[str]
    prompt: str | None = None
    messages: list[Message] | None = None
    texts: list[str] = field(default_factory=list)
    scores: list[dict[str, float | None]] = field(default_factory=list)
    voted: bool = False

    @property
    def why_no_pair(self) -> str | None:
        """Why a vote on it can be no pair; None where it can."""
        if len(self.texts) < 2:
            return "not both of them answered"
        if self.prompt is None:
            return "their recipes ask them in different words"
        if len({text.strip() for text in self.texts}) < 2:
            return "both say the same"
        return None if all(text.strip() for text in self.texts) else "one of them says nothing"


class Duels:
    """The last ones, by random keys that only those who saw the answers have."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Duel] = OrderedDict()

    def add(self, duel: Duel) -> str:
        """Keep it; its key."""
        key = secrets.token_urlsafe(16)
        self._kept[key] = duel
        while len(self._kept) > DUELS:
            self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Duel | None:
        """None for one that isn't known, or no longer."""
        return self._kept.get(key)


def side_by_side(question: Question, loaded: Sequence[Loaded], duel: Duel | None = None) -> Steps:
    """The models' answers, a token of each in turn. Events, each with `at`, the model's place:

    {"add": TEXT} or, where what was shown doesn't stand, {"text": WHOLE TEXT}; in the end {"html": SAFE MARKDOWN,
    "tokens": N, "ended": whether by itself, "scores": by name, "said": the conversation, null where it keeps none}, or
    {"error": LINE}. A duel's scores, and who answered, are kept in it alone.
    """
    scorings = list({id(model.scoring): model.scoring for model in loaded}.values())
    notes = list(dict.fromkeys(line for scoring in scorings for line in scoring.missing))
    if notes and duel is None:
        yield {"notes": notes}
    streams: dict[int, Any] = {}
    asked: dict[int, Asked] = {}
    for at, model in enumerate(loaded):
        generation, greedy = question.sampling.of(model.speaker.recipe.generation)
        system = model.speaker.recipe.policy.system if question.system is None else question.system.strip() or None
        said = [message.model_dump() for message in question.said.get(question.models[at], [])]
        try:
            asked[at] = model.speaker.asked(question.prompt, said, system, generation)
        except (NoRoom, TemplateRefusal) as error:
            yield {"at": at, "error": str(error)}
            continue
        streams[at] = model.speaker.stream(
            asked[at], seed=question.sampling.seed, turn=question.turn, generation=generation, greedy=greedy
        )
    if duel is not None and len(asked) == 2 and asked[0].query == asked[1].query:
        query = asked[0].query
        duel.prompt, duel.messages = str(query), query.messages if isinstance(query, Conversation) else None
    shown = dict.fromkeys(streams, "")
    answers: dict[int, tuple[str, dict[str, float | None]]] = {}
    while streams:
        for at, stream in list(streams.items()):
            step = next(stream)
            text = step.text if isinstance(step, Response) else step
            if text != shown[at]:
                yield {"at": at} | _change(shown[at], text)
                shown[at] = text
            if isinstance(step, Response):
                del streams[at]
                scores = _scores(scorings, asked[at], step)
                answers[at] = (text, scores)
                yield {"at": at} | _end(step, asked[at], None if duel else scores, keeps=duel is None)
    if duel is not None:
        ordered = [answers[at] for at in sorted(answers)]
        duel.texts, duel.scores = [text for text, _ in ordered], [scores for _, scores in ordered]


def _change(before: str, after: str) -> Event:
    return {"add": after[len(before) :]} if after.startswith(before) else {"text": after}


def _end(response: Response, asked: Asked, scores: dict[str, float | None] | None, *, keeps: bool) -> Event:
    talks = keeps and isinstance(asked.query, Conversation)
    return {
        "html": markdown(response.text),
        "tokens": len(response.ids),
        "ended": response.ended,
        "scores": scores,
        "said": asked.query.answered(response.text) if talks else None,  # type: ignore[attr-defined]
    }


def _scores(scorings: Sequence[Scoring], asked: Asked, response: Response) -> dict[str, float | None]:
    """By every reward and judge of the models' recipes; None where one couldn't."""
    scores: dict[str, float | None] = {}
    for scoring in scorings:
        for name, scorer in scoring.scorers.items():
            label = name if len(scorings) == 1 else f"{name} of {scoring.of}"
            try:
                given = score(scorer, asked, response)
            except RLHFError:
                given = math.nan
            scores[label] = given if math.isfinite(given) else None
    return scores
