"""An OpenAI-compatible endpoint, through OpenAI's client: a question in, a reply out, its errors with their fixes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlhf_lib.errors import JudgeFailed, QuestionRefused, RecipeError
from rlhf_lib.recipe.llm_judge import LLMJudgeConfig

_LOOK_SECONDS = 10.0
_SHOWN = 5  # served models in a message
_OF_THE_QUESTION = (400, 413, 422)  # statuses of a request that another text may get through


@dataclass(frozen=True)
class Reply:
    """What a model replied; `cut`: at `max_tokens`."""

    text: str
    cut: bool


class Endpoint:
    """Where a judge is asked. `key`: of the judge in the recipe, evaluation.judges.NAME, for messages.

    Raises RecipeError without the package openai, JudgeFailed where there is no API key.
    """

    def __init__(self, key: str, model: str, settings: LLMJudgeConfig) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise RecipeError(f"{key}: kind llm needs the package openai: pip install 'ppo-rlhf[llm]'") from error
        self.key, self.model, self.settings = key, model, settings
        variable = settings.key_variable
        secret = os.environ.get(variable, "") if variable else ""
        if variable and not secret:
            raise JudgeFailed(
                f"{key}: the environment variable {variable} with the key of {settings.host} isn't set: set it, or "
                f"name another by {key}.llm.api_key_env; for a server of your own set {key}.llm.base_url"
            )
        self._client = OpenAI(
            api_key=secret or "none",  # the client insists; servers without keys ignore it
            base_url=settings.url,
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
        if (
            settings.base_url
        ):  # OpenAI's account, which the client reads from the environment, is no one else's business
            self._client.organization = self._client.project = None

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The model's reply. Raises QuestionRefused where another question might get one, else JudgeFailed."""
        settings = self.settings
        # OpenAI's newer models refuse max_tokens, and some servers know nothing else
        options: dict[str, Any] = {"max_tokens" if settings.base_url else "max_completion_tokens": settings.max_tokens}
        if settings.temperature is not None:
            options["temperature"] = settings.temperature
        given: list[Any] = list(messages)
        with self._told():
            answer = self._client.chat.completions.create(model=self.model, messages=given, **options)
            choice = answer.choices[0] if answer.choices else None
            return Reply((choice and choice.message.content) or "", bool(choice and choice.finish_reason == "length"))

    def look(self) -> str:
        """Ask which models there are, once and for a few seconds. Returns what should make people wonder, empty if
        nothing. Raises JudgeFailed where the endpoint can't be reached or refuses the key, or OpenAI lacks the model.
        """
        from openai import InternalServerError, NotFoundError

        patient = self._client.with_options(timeout=min(_LOOK_SECONDS, self.settings.timeout), max_retries=1)
        with self._told():
            try:
                served = sorted(model.id for model in patient.models.list())
            except NotFoundError:
                return ""  # it answers, and doesn't tell
            except InternalServerError as error:  # as transformers serve without a hub cache, which serves all the same
                return f"{self.key}: {self.settings.host} fails to list its models ({_said(error)}); it may serve them"
        if not served or self.model in served:
            return ""
        if self.settings.base_url is None:
            raise JudgeFailed(f"{self.key}.model {self.model}: OpenAI has no such model for this key: name another")
        listed = ", ".join(served[:_SHOWN]) + (", ..." if len(served) > _SHOWN else "")
        return (
            f"{self.key}.model {self.model} isn't among the models that {self.settings.host} lists ({listed}); it may "
            "serve it all the same"
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise the client's errors as JudgeFailed, with what to do."""
        import openai

        key, host = self.key, self.settings.host
        tries = f"after {self.settings.retries} retries"
        try:
            yield
        except openai.APITimeoutError as error:
            raise JudgeFailed(
                f"{key}: {host} didn't answer within {self.settings.timeout:g} s: raise {key}.llm.timeout, or lower "
                f"{key}.llm.concurrency"
            ) from error
        except openai.APIConnectionError as error:
            raise JudgeFailed(
                f"{key}: {self.settings.url} can't be reached ({error.__cause__ or error}): start the server, or "
                f"correct {key}.llm.base_url"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            given = self.settings.key_variable
            fix = (
                f"correct the environment variable {given}"
                if given
                else f"name the key's variable by {key}.llm.api_key_env"
            )
            raise JudgeFailed(f"{key}: {host} refuses the key ({_said(error)}): {fix}") from error
        except openai.NotFoundError as error:
            raise JudgeFailed(
                f"{key}: {host} knows no model {self.model} at {self.settings.url} ({_said(error)}): correct "
                f"{key}.model, or {key}.llm.base_url, which mostly ends in /v1"
            ) from error
        except openai.RateLimitError as error:
            raise JudgeFailed(
                f"{key}: {host} takes no more requests, {tries} ({_said(error)}): lower {key}.llm.concurrency, raise "
                f"{key}.llm.retries, or look at the account's limits"
            ) from error
        except openai.InternalServerError as error:
            raise JudgeFailed(f"{key}: {host} fails, {tries} ({_said(error)}): see its own log") from error
        except openai.APIStatusError as error:
            message = (
                f"{key}: {host} refuses the request ({_said(error)}): where the model can't have its temperature set, "
                f"{key}.llm.temperature is null; where the texts are too long for it, take another, or shorter prompts"
            )
            if error.status_code in _OF_THE_QUESTION:
                raise QuestionRefused(message, _said(error)) from error
            raise JudgeFailed(message) from error
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:  # a page, or JSON of its own
            raise JudgeFailed(
                f"{key}: what {self.settings.url} sends isn't what OpenAI would ({error}): correct {key}.llm.base_url, "
                "which mostly ends in /v1"
            ) from error


def _said(error: Any) -> str:
    """The server's own words, and its status."""
    body = error.body if isinstance(error.body, dict) else {}
    told = " ".join(str(body.get("message") or error.message).split())
    return f"HTTP {error.status_code}: {told:.200}"
