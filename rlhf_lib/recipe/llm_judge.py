"""The section evaluation.judges.NAME.llm: how a language model behind an endpoint is asked for its opinion."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from rlhf_lib.recipe.data import Positive, Section

PLACES = ("{conversation}", "{answer_a}", "{answer_b}")
VERDICTS = ("[[A]]", "[[B]]", "[[C]]")
OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
# rlhf_lib.credentials redacts the values of variables with such names wherever they would be printed
_SECRET_NAME = re.compile(r"^([A-Z][A-Z0-9_]*_)?(KEY|TOKEN|SECRET|PASSWORD)$")


class LLMJudgeConfig(Section):
    """Kind llm: the endpoint, what it is asked, and what that may cost. Every two answers are shown in both orders."""

    base_url: str | None = Field(
        None, description="of an OpenAI-compatible server, say http://127.0.0.1:8000/v1; null: OpenAI's own"
    )
    api_key_env: str | None = Field(
        None,
        description="environment variable that holds the key; null: OPENAI_API_KEY for OpenAI's own, no key for "
        "another base_url",
    )
    prompt: str | None = Field(
        None,
        description="template of the question, with {conversation}, {answer_a} and {answer_b}, that asks for the "
        "verdict [[A]], [[B]] or, for a tie, [[C]]; null: which answer is more helpful, as MT-Bench asks",
    )
    temperature: float | None = Field(
        0.0, ge=0, description="null: the model's own, for models that refuse to have it set"
    )
    max_tokens: Positive = Field(512, description="longest reply, its reasoning included")
    timeout: float = Field(60.0, gt=0, description="seconds that a request may take")
    retries: int = Field(
        4,
        ge=0,
        description="of a request that is refused for now (408, 409, 429, 5xx, no connection), each after longer",
    )
    concurrency: Positive = Field(4, le=64, description="requests at once")
    max_requests: Positive = Field(
        2000,
        description="in one run of the recipe, or one comparison: once they are spent, the prompts that fitted in are "
        "what is judged. What is known from earlier runs costs none",
    )

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/\s?#]+", url):
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        return url and url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_redacted(cls, name: str | None) -> str | None:
        if name is not None and not _SECRET_NAME.match(name):
            raise ValueError(
                "api_key_env is the name of an environment variable that ends in _KEY, _TOKEN, _SECRET or _PASSWORD, "
                "by which its value is kept out of logs; the key itself is never in a recipe"
            )
        return name

    @field_validator("prompt")
    @classmethod
    def _can_be_filled(cls, prompt: str | None) -> str | None:
        missing = [part for part in (*PLACES, *VERDICTS) if prompt is not None and part not in prompt]
        if missing:
            raise ValueError(
                f"prompt lacks {', '.join(missing)}: it must hold {', '.join(PLACES)} and ask for a verdict"
            )
        return prompt

    @property
    def url(self) -> str:
        return self.base_url or OPENAI

    @property
    def host(self) -> str:
        """Where the texts go: host and port."""
        return self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]

    @property
    def key_variable(self) -> str | None:
        """The environment variable of the key; None where none is sent."""
        return self.api_key_env or (None if self.base_url else OPENAI_KEY)
