"""The trunk of a language model, and how to run its frozen bottom once and its trainable top many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lib.errors import ModelError


def trunk_and_head(model: PreTrainedModel) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The part that makes hidden states (a seq2seq model's decoder), and the language-model head on them."""
    head = model.get_output_embeddings()
    if getattr(model.config, "scale_decoder_outputs", False):  # T5 with tied embeddings
        return model.get_decoder(), lambda states: head(states * model.config.d_model**-0.5)
    return model.get_decoder(), head


def blocks(trunk: nn.Module) -> tuple[str, nn.ModuleList]:
    """The trunk's list of transformer blocks and the name of its attribute. Raises ModelError where there is none."""
    for name, child in trunk.named_children():
        if isinstance(child, nn.ModuleList) and len(child) > 0:
            return name, child
    raise ModelError(f"{type(trunk).__name__} has no list of blocks: policy.unfrozen_layers can't be used with it")


def top_blocks(model: PreTrainedModel, unfrozen: int) -> int:
    """How many blocks learn: `unfrozen`, or with -n all but the bottom n (trlX's num_layers_unfrozen for T5).

    Raises ModelError if the model has no more blocks than that."""
    return count_top(unfrozen, len(blocks(trunk_and_head(model)[0])[1]), type(model).__name__)


def count_top(unfrozen: int, count: int, model: str) -> int:
    """The same of a model with so many blocks."""
    if abs(unfrozen) >= count:
        fix = "leave it null, which trains all of it"
        if count > 1:
            fix = f"set it to 1{f' to {count - 1}' if count > 2 else ''} (or the same negative); null trains all"
        has = "1 block, which can't be frozen in part" if count == 1 else f"{count} blocks"
        raise ModelError(f"policy.unfrozen_layers is {unfrozen}, but {model} has {has}: {fix}")
    return unfrozen if unfrozen > 0 else count + unfrozen


def freeze_below(model: PreTrainedModel, unfrozen: int) -> None:
    """Make only the top `unfrozen` blocks, what follows them and an untied head trainable. Tied embeddings are frozen,
    and the head with them; so is a seq2seq model's encoder."""
    trunk, _ = trunk_and_head(model)
    name, layers = blocks(trunk)
    model.requires_grad_(False)
    learning: list[nn.Module] = [*layers[-unfrozen:]]
    past = False
    for child_name, child in trunk.named_children():
        if past:
            learning.append(child)  # the final norm
        past = past or child_name == name
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not embeddings.weight:
        learning.append(head)
    for module in learning:
        module.requires_grad_(True)


class _Reached(Exception):
    """The bottom has run; the rest isn't needed."""


def run_bottom(trunk: nn.Module, top: int, **inputs: Any) -> Tensor:
    """The hidden states that enter the top `top` blocks: (R, L, D). The blocks above don't run."""
    _, layers = blocks(trunk)
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = layers[-top].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        trunk(**inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


class _Given(nn.Module):
    """Takes a frozen block's place: passes hidden states on, or inserts given ones."""

    def __init__(self, states: Tensor | None = None) -> None:
        super().__init__()
        self.states = states

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.states is None else self.states


@contextmanager
def given_bottom(trunk: nn.Module, top: int, states: Tensor) -> Iterator[None]:
    """Inside the block the trunk starts its top `top` blocks from these hidden states. The list keeps its length, since
    some architectures look masks up by a block's number."""
    name, layers = blocks(trunk)
    frozen = len(layers) - top
    stand_ins = [_Given() for _ in range(frozen - 1)] + [_Given(states)]
    setattr(trunk, name, nn.ModuleList([*stand_ins, *layers[frozen:]]))
    try:
        yield
    finally:
        setattr(trunk, name, layers)
