"""What a registered chat policy runs when it is served: OpenAI's chat completions. MLflow copies this file into the
model, so it needs nothing of ours.

A request is one object, {"messages": [{"role": ..., "content": ...}, ...], "temperature": ...}, and so is its answer.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2.exceptions import TemplateError
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria, StoppingCriteriaList

# what a request may set: type in MLflow's signature, what it must be; the types are OpenAI's, top_k is an addition
OPTIONS: dict[str, tuple[str, str]] = {
    "max_completion_tokens": ("long", "a whole number of at least 1"),
    "max_tokens": ("long", "a whole number of at least 1"),
    "temperature": ("double", "0 (greedy decoding, the default) or a larger number"),
    "top_p": ("double", "a number above 0 and at most 1 (1: off)"),
    "top_k": ("long", "a whole number of at least 0 (0: off)"),
    "seed": ("long", "a whole number of at least 0"),
    "stop": ("any", "a text, or a list of texts, none empty"),
    "n": ("long", "1: a request has one answer"),
    "stream": ("boolean", "true or false"),
    "stream_options": ("any", 'an object such as {"include_usage": true}'),
}
# what clients send without asking for anything, and the one value of theirs that is served
FIXED: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
}
IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
KEYS = ("messages", *OPTIONS, *FIXED, *IGNORED)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Request:
    """A checked request. `max_tokens` None: as many as the policy was trained for; `temperature` 0: greedy."""

    messages: list[dict[str, str]]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False  # a stream's last chunk has the counts


@dataclass(frozen=True)
class Answer:
    """`completion_tokens` counts the token that ended it too. `finish_reason`: stop (by itself, or at a stop text) or
    length."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class ServedChat(PythonModel):
    """Messages in, the assistant's answer out, exactly as the tokenizer decodes it (special tokens left out).

    Decoding is greedy unless the request sets a temperature. One conversation at a time: an answer must not depend on
    what else is asked, and padding moves logits a little.
    """

    def load_context(self, context: Any) -> None:
        self.load(context.artifacts["model"], context.model_config)

    def load(self, folder: str, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.lock = threading.Lock()  # the server answers in several threads, and torch has one random stream for all
        source: dict[str, Any] = {"trust_remote_code": settings["trust_remote_code"]}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **source)
        auto: Any = AutoModelForCausalLM
        self.model: Any = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **source)
        self.model.eval().to(self.device)
        ends = settings["end_ids"]
        # replaced whole: a repetition penalty or a temperature in the model's own config would change the words
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=ends or None, pad_token_id=ends[0] if ends else self.tokenizer.eos_token_id
        )

    def predict(  # type: ignore[override]
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The chat completion of one request; of a table of several, a list."""
        try:
            requests = [checked(row) for row in _rows(model_input)]
            if any(request.stream for request in requests):
                raise ValueError("stream: there is no stream here; predict_stream has one, and rlhf serve's /v1")
            prompts = [self.prompt_ids(request.messages) for request in requests]
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        answers = [self.answer(request, ids) for request, ids in zip(requests, prompts, strict=True)]
        made = [completion(answer, self.settings["name"]) for answer in answers]
        return made[0] if len(made) == 1 else made

    def predict_stream(  # type: ignore[override]
        self, model_input: Any, params: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The chunks of one request's chat completion."""
        try:
            [row] = _rows(model_input)
            request = checked(row)
            ids = self.prompt_ids(request.messages)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return chunks(self.stream(request, ids), self.settings["name"], request.usage)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """What the policy continues; control tokens that somebody typed are text. Raises ValueError for a conversation
        that the template refuses, or that leaves no room for an answer."""
        system = self.settings["system"]
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
            )
        except (TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the model's chat template refuses these messages: {reason}") from None
        if len(ids) >= self.settings["positions"]:
            raise ValueError(
                f"the conversation has {len(ids)} tokens, but must have at most {self.settings['positions'] - 1}: "
                "leave out its first turns"
            )
        return ids

    def answer(
        self,
        request: Request,
        prompt_ids: list[int],
        tell: Callable[[str], None] | None = None,
        given_up: threading.Event | None = None,
    ) -> Answer:
        """The answer to a prompt; `tell` is given its text piece by piece, and setting `given_up` ends it early."""
        length = len(prompt_ids)
        room = min(request.max_tokens or self.settings["max_new_tokens"], self.settings["positions"] - length)
        stops = [*request.stop, *([self.settings["stop"]] if self.settings["stop"] else [])]
        heard = _Heard(self._decode, length, stops, tell, given_up)
        draw: dict[str, Any] = {"do_sample": False}
        if request.temperature:
            draw = {"do_sample": True, "temperature": request.temperature}
            draw |= {"top_p": request.top_p, "top_k": request.top_k}
        ids = torch.tensor([prompt_ids], device=self.device)
        with self.lock, torch.random.fork_rng([] if self.device == "cpu" else [torch.cuda.current_device()]):
            if request.seed is None:
                torch.seed()
            else:
                torch.manual_seed(request.seed)
            output_ids = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                stopping_criteria=StoppingCriteriaList([heard]),
                **draw,
            )
        drawn = output_ids[0, length:].tolist()
        text, stopped = heard.finish(drawn)
        ended = stopped or drawn[-1] in self.settings["end_ids"]
        return Answer(text, "stop" if ended else "length", length, len(drawn))

    def stream(self, request: Request, prompt_ids: list[int]) -> Iterator[str | Answer]:
        """The answer's text piece by piece, and last the whole Answer. Closing the iterator ends the generation."""
        said: SimpleQueue[str | Answer | Exception] = SimpleQueue()
        given_up = threading.Event()

        def work() -> None:
            try:
                said.put(self.answer(request, prompt_ids, said.put, given_up))
            except Exception as error:  # raised again where it is awaited
                said.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while not isinstance(piece := said.get(), Answer):
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            yield piece
        finally:
            given_up.set()

    def _decode(self, ids: list[int]) -> str:
        if ids and ids[-1] in self.settings["end_ids"]:  # which a tokenizer need not count as special
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class _Heard(StoppingCriteria):
    """Ends a generation at a stop text, and tells the text that no further token can change."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        start: int,
        stops: list[str],
        tell: Callable[[str], None] | None,
        given_up: threading.Event | None,
    ) -> None:
        self.decode, self.start, self.stops, self.tell, self.given_up = decode, start, stops, tell, given_up
        self.told = ""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        stopped = False
        if self.stops or self.tell:
            text, stopped = cut(self.decode(input_ids[0, self.start :].tolist()), self.stops)
            if not stopped:  # a character may be half there, and so may a stop text
                text = text.rstrip("\ufffd")
                text = text[: len(text) - _begun(text, self.stops)]
            self._tell(text)
        gone = self.given_up is not None and self.given_up.is_set()
        return torch.full((len(input_ids),), stopped or gone, dtype=torch.bool, device=input_ids.device)

    def finish(self, ids: list[int]) -> tuple[str, bool]:
        """(the whole text, whether a stop text ended it), with what remained told."""
        text, stopped = cut(self.decode(ids), self.stops)
        self._tell(text)
        return text, stopped

    def _tell(self, text: str) -> None:
        if self.tell is not None and len(text) > len(self.told):
            self.tell(text[len(self.told) :])
            self.told = text


def cut(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """(the text before the first of the stop texts in it, whether there is one)."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _begun(text: str, stops: Iterable[str]) -> int:
    """How many characters at the text's end may be the beginning of a stop text."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def checked(request: Mapping[str, Any]) -> Request:
    """The request, with the defaults of what it leaves out. Raises ValueError naming what is wrong, in a line."""
    given = {key: plain for key, value in request.items() if (plain := _plain(value)) is not None}
    for key in given:
        if key not in KEYS:
            raise ValueError(f"there is no key {key!r} in a request: there are {', '.join(('messages', *OPTIONS))}")
    for key, only in FIXED.items():
        if given.get(key, only) != only:
            raise ValueError(f"{key} is {given[key]!r:.80}, but only {only!r} is served: leave it out")
    options = {key: given[key] for key in OPTIONS if key in given}
    for key, value in options.items():
        if not _allowed(key, value):
            raise ValueError(f"{key} is {value!r:.80}, but must be {OPTIONS[key][1]}")
    if "temperature" not in options and (options.get("top_p", 1) != 1 or options.get("top_k", 0) != 0):
        raise ValueError("top_p and top_k need a temperature: without one, decoding is greedy and they change nothing")
    options.pop("n", None)
    stop = options.pop("stop", ())
    options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    options["usage"] = options.pop("stream_options", {}).get("include_usage", False)
    if (longest := options.pop("max_completion_tokens", None)) is not None:
        options["max_tokens"] = longest
    return Request(_messages(given.get("messages")), **options)


def _messages(told: Any) -> list[dict[str, str]]:
    form = '[{"role": "user", "content": "Hello!"}]'
    if not isinstance(told, list) or not told:
        raise ValueError(f"messages is {'empty' if told == [] else 'no list' if told else 'missing'}: give {form}")
    messages = []
    for place, message in enumerate(told):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} is {message!r:.80}, but messages are objects: give {form}")
        role, content = message.get("role"), _content(message.get("content"))
        if role not in _ROLES:
            raise ValueError(f"{where}.role is {role!r:.80}, but must be one of system, user, assistant")
        if content is None:
            raise ValueError(f"{where}.content is {message.get('content')!r:.80}, but must be text")
        messages.append({"role": _ROLES[role], "content": content})
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s: end with the user's, which is answered")
    if not messages[-1]["content"].strip():
        raise ValueError("the last message is empty")
    return messages


def _content(content: Any) -> str | None:
    """Text, or parts that are all text; None for anything else."""
    if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


def _allowed(key: str, value: Any) -> bool:
    if key == "stop":
        texts = [value] if isinstance(value, str) else value
        return isinstance(texts, list) and all(isinstance(text, str) and text != "" for text in texts)
    if key == "stream":
        return isinstance(value, bool)
    if key == "stream_options":
        return isinstance(value, Mapping) and isinstance(value.get("include_usage", False), bool)
    if isinstance(value, bool) or not isinstance(value, int if OPTIONS[key][0] == "long" else int | float):
        return False
    return {
        "max_completion_tokens": value >= 1,
        "max_tokens": value >= 1,
        "temperature": value >= 0 and math.isfinite(value),
        "top_p": 0 < value <= 1,
        "top_k": value >= 0,
        "seed": 0 <= value < 2**63,
        "n": value == 1,
    }[key]


def completion(answer: Answer, model: str) -> dict[str, Any]:
    """OpenAI's chat completion."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return _head("chat.completion", model) | {"choices": [choice], "usage": usage(answer)}


def chunks(said: Iterator[str | Answer], model: str, with_usage: bool) -> Iterator[dict[str, Any]]:
    """The same as OpenAI's chunks of a stream: the role, the text, why it ended, and the counts if they are wanted."""
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in said:
        if isinstance(piece, Answer):
            yield chunk({}, piece.finish_reason)
            if with_usage:
                yield head | {"choices": [], "usage": usage(piece)}
        else:
            yield chunk({"content": piece})


def usage(answer: Answer) -> dict[str, int]:
    total = answer.prompt_tokens + answer.completion_tokens
    counts = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return counts | {"total_tokens": total}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _rows(given: Any) -> list[dict[str, Any]]:
    """MLflow makes a table of a request."""
    return given.to_dict("records") if isinstance(given, pd.DataFrame) else [dict(given)]


def _plain(value: Any) -> Any:
    """Numpy's values, which MLflow makes of a request's, as Python's; a table's empty cell as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


set_model(ServedChat())
