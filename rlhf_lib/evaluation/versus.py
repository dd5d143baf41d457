"""Several models on the same prompts with the same seeds, under one reward: their figures, and who beats whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import ModelError
from rlhf_lib.evaluation.comparison import Sampled, scored
from rlhf_lib.evaluation.diversity import distinct, repetition
from rlhf_lib.evaluation.figures import flat_figures
from rlhf_lib.evaluation.reward_delta import RewardDelta, kl_per_response, reward_delta, win_rate
from rlhf_lib.models.loading import load_config, load_policy, load_tokenizer, positions
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.ppo.rollout import Responses, sample_responses
from rlhf_lib.recipe import GenerationConfig
from rlhf_lib.rewards import Reward
from rlhf_lib.statistics import bootstrap_mean

if TYPE_CHECKING:
    import torch

# model, tokenizer -> perplexity and mean_perplexity
PerplexityOf = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, Any]]


@dataclass(frozen=True)
class Entrant:
    """A model by the name that people see and the folder (or hub id) that it is loaded from."""

    name: str
    folder: str


@dataclass(frozen=True)
class Showing:
    """What one model did on the N prompts; None where a figure doesn't apply."""

    name: str
    sampled: Sampled
    mean: tuple[float, float, float]  # of the scores, with its bootstrap 95% interval
    gain: RewardDelta | None  # over the first model's, paired; None for the first
    kl: float | None  # to the anchor, nats per response; None for itself, or where the tokenizers differ
    kl_error: float | None
    perplexity: float | None
    mean_perplexity: float | None

    @property
    def rows(self) -> dict[str, float | None]:
        """The figures that a table shows, by their names there."""
        return {
            "mean score": self.mean[0],
            "perplexity, token-weighted": self.perplexity,
            "perplexity, mean per text": self.mean_perplexity,
            "KL": self.kl,
            "distinct-1": distinct(self.sampled.texts, 1),
            "distinct-2": distinct(self.sampled.texts, 2),
            "repeated bigrams in a response": repetition(self.sampled.texts),
            "response length, tokens": fmean(self.sampled.lengths),
            "responses that end themselves": fmean(self.sampled.ended),
        }


@dataclass(frozen=True)
class Versus:
    """K models on N prompts. `anchor`: whom the KL is measured to. `win_rates[i][j]`: on what share of the prompts the
    i-th scores higher than the j-th, ties counting half; None on the diagonal."""

    queries: list[str]
    showings: list[Showing]
    anchor: str
    win_rates: list[list[float | None]]
    same_tokens: bool  # whether all of them have one tokenizer, without which perplexities by token don't compare

    def metrics(self) -> dict[str, float]:
        """Flat figures, `reward/delta/NAME`; what doesn't apply is left out."""
        figures: dict[str, float] = {}
        for showing, row in zip(self.showings, self.win_rates, strict=True):
            _, low, high = showing.mean
            tree = {
                "reward": {"mean": showing.mean[0], "mean_low": low, "mean_high": high},
                "kl": showing.kl,
                "kl_standard_error": showing.kl_error,
                "perplexity": showing.perplexity,
                "perplexity_mean_per_text": showing.mean_perplexity,
                "distinct_1": showing.rows["distinct-1"],
                "distinct_2": showing.rows["distinct-2"],
                "repetition": showing.rows["repeated bigrams in a response"],
                "length": fmean(showing.sampled.lengths),
                "eos_rate": fmean(showing.sampled.ended),
            }
            if showing.gain:
                gained = asdict(showing.gain)
                tree["reward"] |= {key: gained[key] for key in ("delta", "ci95", "win_rate")}  # type: ignore[operator]
            own = _slug(showing.name)
            figures |= {f"{name}/{own}": figure for name, figure in flat_figures(tree).items()}
            for other, share in zip(self.showings, row, strict=True):
                if share is not None:
                    figures[f"wins/{own}/{_slug(other.name)}"] = share
        return figures

    def table(self) -> dict[str, list]:
        """Every response with its score, side by side, column by column."""
        columns: dict[str, list] = {"query": self.queries}
        for showing in self.showings:
            columns[showing.name] = showing.sampled.texts
            columns[f"score {showing.name}"] = showing.sampled.scores
        return columns


def contest(
    entrants: Sequence[Entrant],
    prompts: Dataset,
    reward: Reward,
    generation: GenerationConfig,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    anchor: int = 0,
    perplexity_of: PerplexityOf | None = None,
    trust_remote_code: bool = False,
    micro_batch_tokens: int = 16384,
    on_done: Callable[[str], None] = lambda name: None,
) -> Versus:
    """Each model answers each prompt once; the i-th answers of all draw from the same stream. `prompts` has columns
    query and prompt (see `encode_for_all`). At most two models are in memory at once, the anchor one of them.

    The KL is that of the distributions sampled from, temperature included, on the model's own responses.
    """
    folders = [entrant.folder for entrant in entrants]
    tokenizers, encoded, rows = encode_for_all(folders, prompts, generation, trust_remote_code)
    queries = [prompts[row]["query"] for row in rows]
    kept: PreTrainedModel | None = None
    found: dict[int, tuple[Sampled, tuple[float, float] | None, Mapping[str, Any]]] = {}
    for i in [anchor, *(i for i in range(len(entrants)) if i != anchor)]:
        model = load_policy(folders[i], dtype, trust_remote_code).to(device)  # type: ignore[arg-type]
        responses = sample_responses(model, tokenizers[i], encoded[i], generation, seed=seed)
        kl = None
        if kept is None:
            kept = model
        elif _same_tokens(tokenizers[i], tokenizers[anchor]) and _outputs(model) == _outputs(kept):
            kl = _kl(model, kept, responses, generation, micro_batch_tokens)
        checked = perplexity_of(model, tokenizers[i]) if perplexity_of else {}
        found[i] = scored(responses, reward, queries), kl, checked
        on_done(entrants[i].name)
        del model
    first = found[0][0].scores
    showings = []
    for i, entrant in enumerate(entrants):
        sampled, kl, checked = found[i]
        showings.append(
            Showing(
                name=entrant.name,
                sampled=sampled,
                mean=bootstrap_mean(sampled.scores, seed=seed),
                gain=reward_delta(first, sampled.scores, seed=seed) if i else None,
                kl=kl[0] if kl else None,
                kl_error=kl[1] if kl and len(queries) > 1 else None,
                perplexity=checked.get("perplexity"),
                mean_perplexity=checked.get("mean_perplexity"),
            )
        )
    same = all(_same_tokens(tokenizers[0], tokenizer) for tokenizer in tokenizers)
    return Versus(queries, showings, entrants[anchor].name, win_matrix([s.sampled.scores for s in showings]), same)


def win_matrix(scores_KN: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """[i][j]: the share of the N prompts on which model i scores higher than model j, ties half; None for i = j."""
    return [
        [None if i == j else win_rate(others_N, own_N) for j, others_N in enumerate(scores_KN)]
        for i, own_N in enumerate(scores_KN)
    ]


def encode_for_all(
    folders: Sequence[str], prompts: Dataset, generation: GenerationConfig, trust_remote_code: bool = False
) -> tuple[list[PreTrainedTokenizerBase], list[list[list[int]]], list[int]]:
    """(tokenizers, each one's prompt ids, the prompts' row numbers): every model encodes the prompts' text with its own
    tokenizer, and prompts that leave any of them no room for the longest response are left out of all.

    Raises ModelError where a model can't be loaded or no prompt fits.
    """
    longest = generation.response_limit
    tokenizers = [load_tokenizer(folder, trust_remote_code) for folder in folders]
    encoded = [[list(tokenizer(text).input_ids) for text in prompts["prompt"]] for tokenizer in tokenizers]
    rooms = [positions(load_config(folder, trust_remote_code)) - longest for folder in folders]
    rows = [
        row
        for row in range(len(prompts))
        if all(0 < len(ids[row]) <= room for ids, room in zip(encoded, rooms, strict=True))
    ]
    if not rows:
        raise ModelError(f"no held-out prompt leaves {' and '.join(folders)} room for a response of {longest} tokens")
    return tokenizers, [[ids[row] for row in rows] for ids in encoded], rows


def _kl(
    model: PreTrainedModel, anchor: PreTrainedModel, responses: Responses, generation: GenerationConfig, tokens: int
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
    return kl_per_response(own, others)


def _same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    return a is b or (a.get_vocab() == b.get_vocab() and a.eos_token_id == b.eos_token_id)


def _outputs(model: PreTrainedModel) -> int:
    return model.get_output_embeddings().weight.shape[0]


def _slug(name: str) -> str:
    """A name as part of a metric's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
