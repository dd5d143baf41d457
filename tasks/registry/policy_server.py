"""What a registered policy runs when it is served. MLflow copies this file into the model, so it needs nothing of ours.

MLflow's own transformers flavor can't answer word for word: it strips white space off every answer, and the pipeline
beneath it samples (temperature 0.7) and follows the model's generation config unless each setting is overridden.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

# a request's parameters: type in MLflow's signature, default (None: as the policy's settings say), what it must be
PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "max_new_tokens": ("long", None, "a whole number of at least 1"),
    "temperature": ("double", None, "0 (greedy decoding) or a larger number"),
    "top_p": ("double", 1.0, "a number above 0 and at most 1 (1: off)"),
    "top_k": ("long", 0, "a whole number of at least 0 (0: off)"),
    "seed": ("long", None, "a whole number of at least 0"),
    "stop": ("string", None, "a text, not empty"),
}


class ServedPolicy(PythonModel):
    """Questions in, responses out, exactly as the tokenizer decodes them (special tokens left out).

    Decoding is greedy unless the request sets a temperature. One prompt at a time: an answer must not depend on what
    else is in the request, and padding moves logits a little.
    """

    def load_context(self, context: Any) -> None:
        self.load(context.artifacts["model"], context.model_config)

    def load(self, folder: str, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.lock = threading.Lock()  # the server answers in several threads, and torch has one random stream for all
        source: dict[str, Any] = {"trust_remote_code": settings["trust_remote_code"]}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **source)
        auto: Any = AutoModelForSeq2SeqLM if settings["seq2seq"] else AutoModelForCausalLM
        self.model: Any = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **source)
        self.model.eval().to(self.device)
        # replaced whole: a repetition penalty or a minimum length in the model's own config would change the words
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=settings["end_ids"] or None,
            pad_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=getattr(self.model.config, "decoder_start_token_id", None),
        )

    def predict(  # type: ignore[override]
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        asked = model_input.iloc[:, 0] if isinstance(model_input, pd.DataFrame) else model_input
        try:
            sampling = checked(params)
            return [self.respond(text, sampling) for text in asked]
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def respond(self, asked: str, sampling: Mapping[str, Any]) -> str:
        """The response to one question, or to a prompt that has the form of the training prompts already."""
        if not asked.strip():
            raise ValueError("the question is empty")
        _, prompt = framed(asked, self.settings["template"], self.settings["turn"])
        prompt_ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(self.device)
        length, seq2seq = prompt_ids.shape[1], self.settings["seq2seq"]
        limit = sampling["max_new_tokens"] or self.settings["max_new_tokens"]
        room = limit if seq2seq else min(limit, self.settings["positions"] - length)
        if not length or room < 1:
            raise ValueError(
                f"a prompt of {length} tokens and a response of up to {limit}: both need at least 1, and the prompt "
                f"at most {self.settings['positions'] - 1}"
            )
        stops = [text for text in (self.settings["stop"], sampling["stop"]) if text]
        draw: dict[str, Any] = {"do_sample": False}
        if sampling["temperature"]:
            draw = {"do_sample": True} | {key: sampling[key] for key in ("temperature", "top_p", "top_k")}
        with self.lock, torch.random.fork_rng([] if self.device == "cpu" else [torch.cuda.current_device()]):
            if sampling["seed"] is None:
                torch.seed()
            else:
                torch.manual_seed(sampling["seed"])
            output_ids = self.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                max_new_tokens=room,
                **draw,
                **({"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}),
            )
        # a decoder's answer follows the prompt, a seq2seq model's its start token
        text: str = self.tokenizer.decode(output_ids[0, 1 if seq2seq else length :], skip_special_tokens=True)
        for stop in stops:
            text = text.split(stop)[0]
        return text


def framed(asked: str, template: str | None, turn: str | None) -> tuple[str, str]:
    """(query, prompt) of what somebody asks: a turn of a dialogue for policies of dialogues (`turn`), and in the
    recipe's `template`, each with {query} in it. What has that form already is left as it is."""
    form = template or "{query}"
    before, _, after = form.partition("{query}")
    query = asked
    if before + after and asked.startswith(before) and asked.endswith(after) and len(asked) > len(before + after):
        query = asked[len(before) : len(asked) - len(after)]
    if turn is not None:
        human, _, assistant = turn.partition("{query}")
        if not query.lstrip().startswith(human.strip()):
            query = human + query.strip() + assistant
        else:
            query = human[: -len(human.lstrip())] + query.lstrip()
            if query.rfind(human.strip()) > query.rfind(assistant.strip()):  # a dialogue that awaits its answer
                query = query.rstrip() + assistant
    return query, form.replace("{query}", query)


def checked(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The request's parameters, with the defaults of those that it leaves out. Raises ValueError naming a bad one."""
    given = {name: value for name, value in (params or {}).items() if value is not None}
    for name, value in given.items():
        if name not in PARAMETERS:
            raise ValueError(f"there is no parameter {name!r}: there are {', '.join(PARAMETERS)}")
        if not _allowed(name, value):
            raise ValueError(f"{name} is {value!r}, but must be {PARAMETERS[name][2]}")
    if "temperature" not in given and (given.get("top_p", 1) != 1 or given.get("top_k", 0) != 0):
        raise ValueError("top_p and top_k need a temperature: without one, decoding is greedy and they change nothing")
    return {name: given.get(name, default) for name, (_, default, _) in PARAMETERS.items()}


def _allowed(name: str, value: Any) -> bool:
    kind = PARAMETERS[name][0]
    if kind == "string":
        return isinstance(value, str) and value != ""
    if isinstance(value, bool) or not isinstance(value, int if kind == "long" else int | float):
        return False
    return {
        "max_new_tokens": value >= 1,
        "temperature": value >= 0 and math.isfinite(value),
        "top_p": 0 < value <= 1,
        "top_k": value >= 0,
        "seed": 0 <= value < 2**63,
    }[name]


set_model(ServedPolicy())
