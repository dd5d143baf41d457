"""What a registered policy runs when it is served. MLflow copies this file into the model, so it needs nothing of ours.

MLflow's own transformers flavor can't answer word for word: it strips white space off every answer, and the pipeline
beneath it samples (temperature 0.7) and follows the model's generation config unless each setting is overridden.
"""

from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig


class GreedyPolicy(PythonModel):
    """Prompts in, their greedy responses out, exactly as the tokenizer decodes them (special tokens left out).

    One prompt at a time: an answer must not depend on what else is in the request, and padding moves logits a little.
    """

    def load_context(self, context: Any) -> None:
        self.settings = context.model_config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        source: dict[str, Any] = {"trust_remote_code": self.settings["trust_remote_code"]}
        folder = context.artifacts["model"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **source)
        auto: Any = AutoModelForSeq2SeqLM if self.settings["seq2seq"] else AutoModelForCausalLM
        self.model: Any = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **source)
        self.model.eval().to(self.device)
        # replaced whole: a repetition penalty or a minimum length in the model's own config would change the words
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=self.settings["end_ids"] or None,
            pad_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=getattr(self.model.config, "decoder_start_token_id", None),
        )

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        limit = int((params or {}).get("max_new_tokens", self.settings["max_new_tokens"]))
        return [self.respond(prompt, limit) for prompt in model_input]

    def respond(self, prompt: str, limit: int) -> str:
        prompt_ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(self.device)
        length, stop = prompt_ids.shape[1], self.settings["stop"]
        seq2seq = self.settings["seq2seq"]
        room = limit if seq2seq else min(limit, self.settings["positions"] - length)
        if not length or room < 1:
            raise ValueError(
                f"a prompt of {length} tokens and a response of up to {limit}: both need at least 1, and the prompt "
                f"at most {self.settings['positions'] - 1}"
            )
        output_ids = self.model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            do_sample=False,
            max_new_tokens=room,
            **({"stop_strings": [stop], "tokenizer": self.tokenizer} if stop else {}),
        )
        # a decoder's answer follows the prompt, a seq2seq model's its start token
        text: str = self.tokenizer.decode(output_ids[0, 1 if seq2seq else length :], skip_special_tokens=True)
        return text.split(stop)[0] if stop else text


set_model(GreedyPolicy())
