"""Language models with a value head beside them, in TRL's form: the same attributes, and the same files on disk."""

from __future__ import annotations

import copy
import json
import logging
import re
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import ValueHead

logger = logging.getLogger(__name__)

VALUE_HEAD = "v_head."
UNSUPPORTED = {
    "reward_adapter": "score with a reward model of its own",
    "load_in_8bit": "load the model yourself with a quantization_config and pass it in",
    "load_in_4bit": "load the model yourself with a quantization_config and pass it in",
}


class PreTrainedModelWrapper(nn.Module):
    """`pretrained_model` (a PreTrainedModel or a PeftModel) and `v_head`. What isn't found here is looked up there.

    The value head starts as TRL's does: `v_head_init_strategy` None draws it as nn.Linear does, "normal" from a normal
    distribution of width `v_head_initializer_range`, and "zero" (our own) at 0. `summary_dropout_prob` is accepted and
    has no effect: neither TRL nor we train with dropout.
    """

    transformers_parent_class: ClassVar[Any]
    pretrained_model: PreTrainedModel | PeftModel
    v_head: ValueHead

    def __init__(
        self,
        pretrained_model: PreTrainedModel | PeftModel,
        *,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
        summary_dropout_prob: float | None = None,
    ) -> None:
        super().__init__()
        head = pretrained_model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(pretrained_model).__name__} has no language-model head: use a model that has one")
        self.pretrained_model = pretrained_model
        self.v_head = ValueHead(head.in_features)
        if v_head_init_strategy is None:
            self.v_head.summary.reset_parameters()
        elif v_head_init_strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=v_head_initializer_range)
        elif v_head_init_strategy != "zero":
            raise ModelError(f"v_head_init_strategy is {v_head_init_strategy!r}: None, 'normal' or 'zero'")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | PreTrainedModel | PeftModel,
        *model_args: Any,
        peft_config: PeftConfig | None = None,
        is_trainable: bool = False,
        torch_dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> PreTrainedModelWrapper:
        """From a folder or hub id (a model, an adapter, or a checkpoint of either that TRL or we wrote), or around a
        model that is loaded already. `peft_config` puts a fresh adapter on; `is_trainable` lets a loaded one learn.

        Weights are fp32 unless `torch_dtype` (or `dtype`) says otherwise; other arguments go to Transformers. Raises
        ModelError where the adapter's base is unknown, the value head doesn't fit, or an argument isn't supported.
        """
        for name, fix in UNSUPPORTED.items():
            if kwargs.pop(name, None):
                raise ModelError(f"{name} isn't supported: {fix}")
        head_options = ("v_head_init_strategy", "v_head_initializer_range", "summary_dropout_prob")
        head_kwargs = {name: kwargs.pop(name) for name in head_options if name in kwargs}
        if isinstance(pretrained_model_name_or_path, (PreTrainedModel, PeftModel)):
            source, model = None, pretrained_model_name_or_path
        else:
            source = str(pretrained_model_name_or_path)
            kwargs["dtype"] = torch_dtype or kwargs.get("dtype") or torch.float32  # Transformers 5 would say "auto"
            hub: dict[str, Any] = {name: kwargs[name] for name in ("token", "revision", "cache_dir") if name in kwargs}
            model = cls._load(source, model_args, kwargs, hub, is_trainable)
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise ModelError("peft_config was given for a model that has an adapter already: leave one of them out")
            model = get_peft_model(model, peft_config)
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ModelError("prompt learning can't be combined with PPO: use LoRA")
        wrapper = cls(model, **head_kwargs)
        if source is not None:
            wrapper._load_value_head(source, hub)
        return wrapper

    @classmethod
    def _load(cls, source: str, model_args: tuple, kwargs: dict, hub: dict, is_trainable: bool) -> Any:
        load = cls.transformers_parent_class.from_pretrained
        if _file(source, "adapter_config.json", hub) is None:
            return load(source, *model_args, **kwargs)
        base = PeftConfig.from_pretrained(source, token=hub.get("token")).base_model_name_or_path
        if not base:
            raise ModelError(
                f"the adapter {source} doesn't name its base model: set base_model_name_or_path in its "
                "adapter_config.json to the base's folder or hub id"
            )
        model, token = load(base, *model_args, **kwargs), hub.get("token")
        return PeftModel.from_pretrained(model, source, is_trainable=is_trainable, token=token)

    def _load_value_head(self, source: str, hub: dict[str, Any]) -> None:
        weights = saved_value_head(source, hub)
        if not weights:
            logger.info("%s holds no value head (v_head.*): it starts fresh", source)
            return
        try:
            self.v_head.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"the value head in {source} doesn't fit the model: {error}") from None

    @property
    def is_peft_model(self) -> bool:
        return isinstance(self.pretrained_model, PeftModel)

    @property
    def is_encoder_decoder(self) -> bool:
        return self.pretrained_model.config.is_encoder_decoder

    @property
    def language_model(self) -> PreTrainedModel:
        """The model itself, its adapter (if any) inside it."""
        model = self.pretrained_model
        return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> tuple:
        """(logits (B, T, V) in fp32, loss or None, values (B, T)), and the cache where it is asked for."""
        kwargs |= {"output_hidden_states": True, "past_key_values": past_key_values}
        out = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = out.decoder_hidden_states if self.is_encoder_decoder else out.hidden_states
        result = (out.logits.float(), out.loss, self.v_head(states[-1].to(self.v_head.summary.weight.device)))
        return (*result, out.past_key_values) if return_past_key_values else result

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `generate`."""
        return self.pretrained_model.generate(*args, **kwargs)  # type: ignore[operator]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's weights under its own names (none of them where an adapter learns), and `v_head.*`."""
        weights = {} if self.is_peft_model else self.pretrained_model.state_dict(*args, **kwargs)
        return weights | {VALUE_HEAD + name: w for name, w in self.v_head.state_dict(*args, **kwargs).items()}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """The files TRL wrote: the model's own with `v_head.*` among the weights, or the adapter's and a
        pytorch_model.bin with the value head."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = kwargs.pop("state_dict", None) or self.state_dict()
        if self.is_peft_model:
            torch.save({name: w.cpu() for name, w in weights.items()}, folder / WEIGHTS_NAME)
            self.pretrained_model.save_pretrained(str(folder), **kwargs)
        else:
            self.pretrained_model.save_pretrained(str(folder), state_dict=weights, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "pretrained_model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self._modules["pretrained_model"], name)


class AutoModelForCausalLMWithValueHead(PreTrainedModelWrapper):
    transformers_parent_class = AutoModelForCausalLM


class AutoModelForSeq2SeqLMWithValueHead(PreTrainedModelWrapper):
    transformers_parent_class = AutoModelForSeq2SeqLM


def create_reference_model(
    model: PreTrainedModelWrapper, num_shared_layers: int | None = None, pattern: str | None = None
) -> PreTrainedModelWrapper:
    """A frozen copy. With `num_shared_layers`, what comes before that block (embeddings included) is frozen in `model`
    too, and is the same memory in both. `pattern` finds the block by name, as "transformer.h.{layer}"; raises
    ModelError where there is none.
    """
    shared: dict[int, Any] = {}
    if num_shared_layers is not None:
        layer = re.escape((pattern or "").format(layer=num_shared_layers))
        block = re.compile(layer if pattern else rf"\.(h|layers|blocks?)\.{num_shared_layers}\.")
        below = list(takewhile(lambda named: not block.search(named[0]), model.named_parameters()))
        if len(below) == len(list(model.named_parameters())):
            raise ModelError(
                f"the model has no block number {num_shared_layers}: lower num_shared_layers, or give pattern"
            )
        shared = {id(p): p.requires_grad_(False) for _, p in below}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def saved_value_head(source: str, hub: dict[str, Any]) -> dict[str, Tensor]:
    """The value head's weights in a checkpoint, `summary.weight` (1, D) and `summary.bias` (1,); {} if it has none.
    `hub` says how to reach a hub repository: token, revision, cache_dir."""
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = _file(source, name, hub)
        if path is None:
            continue
        files = [path]
        if name.endswith(".index.json"):
            shards = {s for key, s in json.loads(Path(path).read_text())["weight_map"].items() if VALUE_HEAD in key}
            files = [file for shard in sorted(shards) if (file := _file(source, shard, hub)) is not None]
        return {key: tensor for file in files for key, tensor in _value_head_in(file).items()}
    return {}


def _value_head_in(file: str) -> dict[str, Tensor]:
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys() if VALUE_HEAD in key}  # noqa: SIM118
    else:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    return {key.split(VALUE_HEAD)[1]: tensor for key, tensor in weights.items() if VALUE_HEAD in key}


def _file(source: str, name: str, hub: dict[str, Any]) -> str | None:
    """A file of a local folder or a hub repository, if it is there."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
