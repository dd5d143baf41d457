"""Models beside each other: K of them answer the same prompts with the same seeds, and one reward scores them all.

The policy beside its reference is the case K = 2 (`compare_policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.conversation import Conversation, prompts_of
from rlhf_lib.errors import ModelError
from rlhf_lib.evaluation.measures import kl_per_response, win_matrix
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, ModelResult, ModelSource, Sampled
from rlhf_lib.models.chat import prompt_ids as rendered
from rlhf_lib.models.chat import tokenizer_of
from rlhf_lib.models.loading import load_config, load_policy, positions
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.models.policy import autocast
from rlhf_lib.ppo.rollout import Responses, sample_responses
from rlhf_lib.recipe import GenerationConfig, PolicyConfig
from rlhf_lib.rewards import Reward, sampled_scores
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.rewards.columns import dataset_columns, taken, with_ids

# model, tokenizer -> perplexity and mean_perplexity
PerplexityOf = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, Any]]


def compare_policy(
    reference: PreTrainedModel,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    queries: Sequence[str],
    prompt_ids: Sequence[list[int]],
    generation: GenerationConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    held_out: bool = True,
    micro_batch_tokens: int = 16384,
    baselines: Mapping[str, Callable[[], PreTrainedModel]] | None = None,
    columns: Columns | None = None,
) -> BeforeAfter:
    """Reference against policy: both answer each prompt (`prompt_ids`: what they continue; `queries` and `columns`:
    what the reward sees; `held_out`: whether none is a training prompt). `dtype`: of the passes, as PPO has it; weights
    are fp32. The KL is that of the distributions sampled from, temperature included, on the policy's responses.
    `baselines`: further models with the same tokenizer by name, loaded in turn."""
    others = dict(baselines or {})
    models = [lambda: reference, lambda: policy, *others.values()]
    return BeforeAfter(
        _compare(
            ("reference", "policy", *others),
            lambda i: models[i](),
            [tokenizer] * len(models),
            [prompt_ids] * len(models),
            queries,
            reward,
            generation,
            dtype=dtype,
            seed=seed,
            anchor=0,
            held_out=held_out,
            micro_batch_tokens=micro_batch_tokens,
            columns=columns,
        )
    )


def compare_folders(
    sources: Sequence[ModelSource],
    prompts: Dataset,
    reward: Reward,
    generation: GenerationConfig,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    anchor: int | None = 0,
    held_out: bool = True,
    perplexity_of: PerplexityOf | None = None,
    policy: PolicyConfig | None = None,
    micro_batch_tokens: int = 16384,
    on_done: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Each model, loaded in turn, answers each prompt once; the i-th answers of all draw from the same stream. `dtype`
    is that of the passes: the weights stay fp32, since PPO's updates are too small for bf16 to hold.

    `prompts` has columns query and prompt (see `encode_for_all`), and others that the reward may read; `policy` is the
    recipe's section. At most two models are in memory at once, the anchor one of them; without an anchor there is no
    KL. Raises ModelError where a model can't be loaded or no prompt fits.
    """
    folders = [source.folder for source in sources]
    trust = policy is not None and policy.trust_remote_code
    tokenizers, encoded, rows = encode_for_all(folders, prompts, generation, policy)
    queries = prompts_of(prompts, "query")
    return _compare(
        [source.name for source in sources],
        lambda i: load_policy(folders[i], trust_remote_code=trust).to(device),  # type: ignore[arg-type]
        tokenizers,
        encoded,
        [queries[row] for row in rows],
        reward,
        generation,
        dtype=dtype,
        seed=seed,
        anchor=anchor,
        held_out=held_out,
        perplexity_of=perplexity_of,
        micro_batch_tokens=micro_batch_tokens,
        on_done=on_done,
        columns=taken(dataset_columns(prompts), rows),
    )


def _compare(
    names: Sequence[str],
    load: Callable[[int], PreTrainedModel],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompt_ids: Sequence[Sequence[list[int]]],
    queries: Sequence[str],
    reward: Reward,
    generation: GenerationConfig,
    *,
    dtype: torch.dtype,
    seed: int,
    anchor: int | None,
    held_out: bool,
    perplexity_of: PerplexityOf | None = None,
    micro_batch_tokens: int,
    on_done: Callable[[str], None] = lambda name: None,
    columns: Columns | None = None,
) -> Comparison:
    first = 0 if anchor is None else anchor
    kept: PreTrainedModel | None = None
    found: dict[int, tuple[Sampled, tuple[float, float] | None, Mapping[str, Any]]] = {}
    for i in [first, *(i for i in range(len(names)) if i != first)]:
        model = load(i)
        kl = None
        with autocast(model.device, dtype):
            responses = sample_responses(model, tokenizers[i], prompt_ids[i], generation, seed=seed)
            if i == anchor:
                kept = model
            elif kept is not None and _same_outputs(model, tokenizers[i], kept, tokenizers[first]):
                kl = _kl(model, kept, responses, queries, generation, micro_batch_tokens)
            measured = perplexity_of(model, tokenizers[i]) if perplexity_of else {}
        sampled = Sampled(
            texts=responses.texts,
            scores=sampled_scores(
                reward, queries, responses.texts, responses.ended, with_ids(columns, responses.response_ids)
            ),
            lengths=[len(ids) for ids in responses.response_ids],
            ended=responses.ended,
            ids=responses.response_ids,
        )
        found[i] = sampled, kl, measured
        on_done(names[i])
        del model
    scores_KN = [found[i][0].scores for i in range(len(names))]
    results = []
    for i, name in enumerate(names):
        sampled, kl, measured = found[i]
        base = scores_KN[0] if i else None
        results.append(ModelResult.of(name, sampled, queries, first=base, kl=kl, measured=measured, seed=seed))
    same = all(_same_tokens(tokenizers[0], tokenizer) for tokenizer in tokenizers)
    kl_to = None if anchor is None else names[anchor]
    return Comparison(list(queries), results, kl_to, win_matrix(scores_KN), same, held_out, columns or {})


def encode_for_all(
    folders: Sequence[str], prompts: Dataset, generation: GenerationConfig, policy: PolicyConfig | None = None
) -> tuple[list[PreTrainedTokenizerBase], list[list[list[int]]], list[int]]:
    """(tokenizers, each one's prompt ids, the prompts' row numbers): every model encodes the prompts' text with its own
    tokenizer, conversations in its own chat template (see `tokenizer_of`; as text where it has none), and prompts that
    leave any of them no room for the longest response are left out of all.

    Raises ModelError where a model can't be loaded or no prompt fits.
    """
    longest = generation.response_limit
    tokenizers = [tokenizer_of(policy, folder) for folder in folders]
    encoded = [_encoded(tokenizer, prompts) for tokenizer in tokenizers]
    trust = policy is not None and policy.trust_remote_code
    rooms = [positions(load_config(folder, trust)) - longest for folder in folders]
    rows = [
        row
        for row in range(len(prompts))
        if all(0 < len(ids[row]) <= room for ids, room in zip(encoded, rooms, strict=True))
    ]
    if not rows:
        raise ModelError(
            f"no evaluation prompt leaves {' and '.join(folders)} room for a response of {longest} tokens: lower "
            f"{generation.response_limit_key}"
        )
    return tokenizers, [[ids[row] for row in rows] for ids in encoded], rows


def _encoded(tokenizer: PreTrainedTokenizerBase, prompts: Dataset) -> list[list[int]]:
    asked = [query for query in prompts_of(prompts, "query") if isinstance(query, Conversation)]
    if asked and tokenizer.chat_template is not None:
        return rendered(tokenizer, asked)
    return [list(tokenizer(text).input_ids) for text in (asked or prompts["prompt"])]


def _kl(
    model: PreTrainedModel,
    anchor: PreTrainedModel,
    responses: Responses,
    queries: Sequence[str],
    generation: GenerationConfig,
    tokens: int,
) -> tuple[float, float]:
    own, others = (
        response_logprobs(
            scorer,
            responses.prompt_ids,
            responses.response_ids,
            temperature=generation.temperature,
            micro_batch_tokens=tokens,
        )
        for scorer in (model, anchor)
    )
    return kl_per_response(own, others, queries)


def _same_outputs(
    a: PreTrainedModel, a_tokenizer: PreTrainedTokenizerBase, b: PreTrainedModel, b_tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the two models' logits are over the same tokens."""
    sizes = {model.get_output_embeddings().weight.shape[0] for model in (a, b)}
    return len(sizes) == 1 and _same_tokens(a_tokenizer, b_tokenizer)


def _same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    return a is b or (a.get_vocab() == b.get_vocab() and a.eos_token_id == b.eos_token_id)
