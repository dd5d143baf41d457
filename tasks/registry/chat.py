"""A model and its reference asked by a person: a typed prompt in, both answers with their scores out. Chat policies
remember what was said, each what it said itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lib.conversation import Conversation, Message, user
from rlhf_lib.errors import DataError, ModelError, RLHFError
from rlhf_lib.recipe import Recipe, load_recipe
from tasks.registry import versions
from tasks.registry.policies import fetch, form, is_chat, resolve_model, settings

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
        from rlhf_lib.models.chat import policy_tokenizer
        from rlhf_lib.models.device import pick_device, pick_dtype
        from rlhf_lib.models.loading import load_policy, load_tokenizer

        model = versions.address(model)
        version = versions.version_of(model) if model.startswith("models:/") else None
        if version is None and recipe is None:
            raise ModelError(
                f"{model} is not a registered model (rlhf models lists them): for a folder or hub id, name with "
                "--recipe the recipe whose template and generation to use"
            )
        self.recipe: Recipe = (
            load_recipe(recipe, overrides) if recipe else versions.recipe_of(version, overrides)  # type: ignore[arg-type]
        )
        self.missing: list[str] = []
        self.device = pick_device(self.recipe.compute)
        self.dtype = pick_dtype(self.recipe.compute, self.device)
        trust = self.recipe.policy.trust_remote_code

        def load(name: str) -> tuple[Any, Any]:
            folder = resolve_model(name)
            tokenizer = load_tokenizer(folder, trust) if version else policy_tokenizer(self.recipe.policy, folder)
            return load_policy(folder, trust_remote_code=trust).to(self.device), tokenizer  # type: ignore[arg-type]

        uri = versions.uri_of(version) if version else model
        self.models = {f"{version.name} {version.version}" if version else model: load(uri)}
        try:
            reference = versions.reference_of(version) if version else self.recipe.policy.model
            if reference is not None:
                self.models["reference"] = load(reference)
        except RLHFError as error:
            self.missing.append(str(error))
        (_, tokenizer), *others = self.models.values()
        for _, other in others:
            other.chat_template = tokenizer.chat_template  # which a version's has as the recipe says
        talks = is_chat(settings(fetch(uri)[0])) if version else tokenizer.chat_template is not None
        self.remembers = talks and self.recipe.policy.chat != "off"
        self.system = self.recipe.policy.system
        self.said: dict[str, list[Message]] = {name: [] for name in self.models}
        self.reward = self._reward(version)

    @property
    def about(self) -> str:
        """Who answers, how, what is missing, and which commands there are."""
        scored = "scored by the recipe's reward" if self.reward else "not scored"
        lines = [f"{' and '.join(self.models)} answer, {scored}; recipe {self.recipe.name}.", *self.missing]
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
        self.said = {name: [] for name in self.models}
        return "A new conversation" + (f" after the system message: {self.system}" if self.system else ".")

    def answer(self, typed: str, turn: int = 0) -> list[Answer]:
        """One answer a model, sampled as the recipe says from the same random numbers, others each turn. A chat policy
        is asked what was typed after what it was asked before, and its score is that of the answer to all of it."""
        from rlhf_lib.models.loading import positions
        from rlhf_lib.models.policy import autocast
        from rlhf_lib.ppo.rollout import sample_responses
        from rlhf_lib.rewards import sampled_scores
        from rlhf_lib.rewards.columns import with_ids

        answers = []
        for name, (model, tokenizer) in self.models.items():
            try:
                query, ids = self._asked(name, typed, tokenizer)
            except DataError as error:
                why = f"the chat template refuses this: {error.__cause__}; {SYSTEM} alone leaves the system message out"
                answers.append(Answer(name, f"({why})", None))
                continue
            room = positions(model.config) - self.recipe.generation.response_limit
            if not 0 < len(ids) <= room:
                what, way = ("conversation", f"; {NEW} starts another") if self.remembers else ("prompt", "")
                told = f"(a {what} of {len(ids)} tokens: there is room for 1 to {room}{way})"
                answers.append(Answer(name, told, None))
                continue
            with autocast(self.device, self.dtype):
                sampled = sample_responses(
                    model, tokenizer, [ids], self.recipe.generation, seed=self.recipe.seed, step=turn
                )
            text = sampled.texts[0]
            if isinstance(query, Conversation):
                self.said[name] = query.answered(text)
            score = None
            if self.reward:
                columns = with_ids(None, sampled.response_ids)
                score = sampled_scores(self.reward, [query], [text], sampled.ended, columns)[0]
            answers.append(Answer(name, text, score))
        return answers

    def _asked(self, name: str, typed: str, tokenizer: Any) -> tuple[str, list[int]]:
        """(query, prompt in tokens) of what is typed. Raises DataError where a template refuses it."""
        from rlhf_lib.models.chat import prompt_ids
        from tasks.registry.policy_server import framed

        if self.remembers:
            conversation = Conversation([*self.said[name], user(typed.strip())]).after(self.system)
            return conversation, prompt_ids(tokenizer, [conversation])[0]
        query, prompt = framed(typed, **form(self.recipe))
        return query, list(tokenizer(prompt).input_ids)

    def _reward(self, version: Any) -> Any:
        from rlhf_lib.rewards.build import build_reward, needed_columns

        try:
            model = versions.reward_model_of(self.recipe, [version] if version else [])
            for path, columns in needed_columns(self.recipe.reward).items():
                self.missing.append(f"reward.function {path} needs {columns[0]}, which typed prompts don't have")
                return None
            return build_reward(self.recipe.reward, model, self.device)
        except RLHFError as error:
            self.missing.append(str(error))
            return None
