"""Models that answer what a person types, as their recipe's prompts are asked: registered versions and their
references, folders and hub ids. `rlhf chat` and the playground are made of this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lib.conversation import HUMAN, SYSTEM, Conversation, Message, user
from rlhf_lib.errors import DataError, ModelError, RLHFError
from rlhf_lib.recipe import GenerationConfig, Recipe, load_recipe
from tasks.registry import versions
from tasks.registry.policies import fetch, form, is_chat, resolve_model, settings

if TYPE_CHECKING:
    import torch

    from rlhf_lib.rewards import Reward


class TemplateRefusal(DataError):
    """The model's chat template has no place for what it is asked."""


class NoRoom(DataError):
    """What it is asked is empty, or too long for the model to answer."""


@dataclass(frozen=True)
class Asked:
    """What a model is asked: `query`, as rewards read it (a chat policy's is a Conversation), and in tokens."""

    query: str
    ids: list[int]


@dataclass(frozen=True)
class Response:
    """`ended`: by itself, rather than by the length limit."""

    text: str
    ids: list[int]
    ended: bool


@dataclass
class Speaker:
    """One model. `remembers`: it is asked in messages, after those before."""

    name: str
    model: Any
    tokenizer: Any
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    remembers: bool

    def asked(
        self,
        typed: str,
        said: Sequence[Message] = (),
        system: str | None = None,
        generation: GenerationConfig | None = None,
    ) -> Asked:
        """What was typed in the form of the recipe's prompts; of a chat policy, after the messages `said` before and
        the system message. A whole dialogue ("\\n\\nHuman: ...") may be typed too.

        Raises TemplateRefusal, and NoRoom where the tokens leave none for the longest response.
        """
        from rlhf_lib.models.chat import prompt_ids
        from rlhf_lib.models.loading import positions
        from tasks.registry.policy_server import framed

        if self.remembers:
            messages = Conversation.of(typed).messages if typed.startswith((HUMAN, SYSTEM)) else [user(typed.strip())]
            query: str = Conversation([*said, *messages]).after(system)
            try:
                [ids] = prompt_ids(self.tokenizer, [query])  # type: ignore[list-item]
            except DataError as error:
                raise TemplateRefusal(f"the chat template refuses this: {error.__cause__}") from error
        else:
            query, prompt = framed(typed, **form(self.recipe))
            ids = list(self.tokenizer(prompt).input_ids)
        room = positions(self.model.config) - (generation or self.recipe.generation).response_limit
        if not 0 < len(ids) <= room:
            what = "conversation" if self.remembers else "prompt"
            raise NoRoom(f"a {what} of {len(ids)} tokens: there is room for 1 to {room}")
        return Asked(query, ids)

    def stream(
        self,
        asked: Asked,
        *,
        seed: int,
        turn: int = 0,
        generation: GenerationConfig | None = None,
        greedy: bool = False,
    ) -> Iterator[str | Response]:
        """The text so far after each token, and last the Response, sampled as the recipe says, or as `generation` does.
        Closing the iterator ends the sampling."""
        from rlhf_lib.models.policy import autocast
        from rlhf_lib.ppo.streaming import stream_response

        generation = generation or self.recipe.generation
        steps = stream_response(self.model, self.tokenizer, asked.ids, generation, seed=seed, step=turn, greedy=greedy)
        while True:
            with autocast(self.device, self.dtype):  # not across a yield: others may compute in between
                step = next(steps)
            if not isinstance(step, str):
                yield Response(step.texts[0], step.response_ids[0], step.ended[0])
                return
            yield step

    def answer(self, asked: Asked, *, seed: int, turn: int = 0) -> Response:
        """The whole response."""
        *_, response = self.stream(asked, seed=seed, turn=turn)
        assert isinstance(response, Response)
        return response


class Origin:
    """Where speakers come from: a registered model's NAME (its champion), NAME@ALIAS or NAME/VERSION; or a folder or a
    hub id, and then a `recipe` is needed, whose policy.model is the reference. Raises ModelError for what isn't there.
    """

    def __init__(self, model: str, recipe: str | None = None, overrides: list[str] | None = None) -> None:
        from rlhf_lib.models.chat import policy_tokenizer
        from rlhf_lib.models.device import pick_device, pick_dtype
        from rlhf_lib.models.loading import load_tokenizer

        model = versions.address(model)
        self.version = versions.version_of(model) if model.startswith("models:/") else None
        if self.version is None and recipe is None:
            raise ModelError(
                f"{model} is not a registered model (rlhf models lists them): for a folder or hub id, name with "
                "--recipe the recipe whose template and generation to use"
            )
        self.recipe: Recipe = (
            load_recipe(recipe, overrides) if recipe else versions.recipe_of(self.version, overrides)  # type: ignore[arg-type]
        )
        self.device = pick_device(self.recipe.compute)
        self.dtype = pick_dtype(self.recipe.compute, self.device)
        self._trust = self.recipe.policy.trust_remote_code
        if self.version is None:
            self.name, self._folder = model, model
            self._tokenizer = policy_tokenizer(self.recipe.policy, model)
            talks = self._tokenizer.chat_template is not None
        else:
            self.name = f"{self.version.name} {self.version.version}"
            root, self._folder = fetch(versions.uri_of(self.version))
            self._tokenizer = load_tokenizer(self._folder, self._trust)
            talks = is_chat(settings(root))
        self.remembers = talks and self.recipe.policy.chat != "off"

    def own(self) -> Speaker:
        """The model itself."""
        return self._speaker(self.name, self._folder, self._tokenizer)

    def reference(self) -> Speaker | None:
        """What it started from, asked in the same form; None for a policy that was made from scratch. Raises ModelError
        where it is gone."""
        from rlhf_lib.models.chat import policy_tokenizer
        from rlhf_lib.models.loading import load_tokenizer

        named = versions.reference_of(self.version) if self.version else self.recipe.policy.model
        if named is None:
            return None
        folder = resolve_model(named)
        if self.version:
            tokenizer = load_tokenizer(folder, self._trust)
        else:
            tokenizer = policy_tokenizer(self.recipe.policy, folder)
        tokenizer.chat_template = self._tokenizer.chat_template  # which a version's has as the recipe says
        return self._speaker("reference", folder, tokenizer)

    def reward(self) -> tuple[Reward | None, list[str]]:
        """The recipe's reward, and why there is none."""
        from rlhf_lib.rewards.build import build_reward

        try:
            model = versions.reward_model_of(self.recipe, [self.version] if self.version else [])
            if why := _unasked("reward", self.recipe.reward):
                return None, [why]
            return build_reward(self.recipe.reward, model, self.device), []
        except RLHFError as error:
            return None, [str(error)]

    def judges(self) -> tuple[dict[str, Reward], list[str]]:
        """The recipe's judges that score one answer alone, and why others are missing. Language models compare two
        answers and cost money or minutes: they are left out without a word."""
        from rlhf_lib.evaluation.opinions import build_judge

        found: dict[str, Reward] = {}
        missing: list[str] = []
        wanted = {name: judge for name, judge in self.recipe.evaluation.judges.items() if judge.kind != "llm"}
        try:
            folders = versions.judges_of(self.recipe, [self.version] if self.version else []) if wanted else {}
        except RLHFError as error:
            folders, missing = {}, [str(error)]
            wanted = {name: judge for name, judge in wanted.items() if not judge.has_folder}
        for name, judge in wanted.items():
            if why := _unasked(f"evaluation.judges.{name}", judge):
                missing.append(why)
                continue
            try:
                if judge.model is not None:
                    judge = judge.model_copy(update={"model": resolve_model(judge.model)})
                found[name] = build_judge(name, judge, folders.get(name), self.device)  # type: ignore[assignment]
            except RLHFError as error:
                missing.append(str(error))
        return found, missing

    def _speaker(self, name: str, folder: str, tokenizer: Any) -> Speaker:
        from rlhf_lib.models.loading import load_policy

        model = load_policy(folder, trust_remote_code=self._trust).to(self.device).eval()  # type: ignore[arg-type]
        return Speaker(name, model, tokenizer, self.recipe, self.device, self.dtype, self.remembers)


def score(reward: Reward, asked: Asked, response: Response) -> float:
    """A reward's or a judge's score. Raises ModelError where it gives none."""
    from rlhf_lib.rewards import sampled_scores
    from rlhf_lib.rewards.columns import with_ids

    columns = with_ids(None, [response.ids])
    return sampled_scores(reward, [asked.query], [response.text], [response.ended], columns)[0]


def _unasked(key: str, reward: Any) -> str | None:
    """Why typed prompts can't be scored by the section `key`."""
    from rlhf_lib.rewards.build import needed_columns

    for path, columns in needed_columns(reward).items():
        return f"{key}.function {path} needs {columns[0]}, which typed prompts don't have"
    return None
