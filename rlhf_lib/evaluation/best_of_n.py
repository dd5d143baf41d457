"""Best-of-n: what the reference gets, without any training, from the best of n answers by the reward (Stiennon et al.
2020). PPO has to beat it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.evaluation.results import Baseline, Scored
from rlhf_lib.models.policy import autocast
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import GenerationConfig
from rlhf_lib.rewards import Reward, checked_scores, term_scores
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.rewards.columns import taken, with_ids

STREAM = 1 << 30  # a step that PPO never reaches: random numbers of their own


@dataclass(frozen=True)
class BestOfN:
    """The reference's N answers to each of P prompts, and what the best of n of them is worth, for n up to N."""

    queries: list[str]
    scores_PN: np.ndarray  # raw, of the reward that picks
    judged: dict[str, np.ndarray] = field(default_factory=dict)  # what others than the reward think of them, (P, N)
    seed: int = 0
    policy: Scored | None = None  # PPO's scores on the P prompts

    @property
    def most(self) -> int:
        return int(self.scores_PN.shape[1])

    @property
    def sizes(self) -> list[int]:
        """The n that are told: 1, 2, 4, ... and N."""
        return sorted({1 << k for k in range(self.most.bit_length())} | {self.most})

    @cached_property
    def rewards_nP(self) -> np.ndarray:
        """Expected reward of the best of n by prompt, n = 1 first: (N, P)."""
        return np.stack([expected_best(self.scores_PN, n) for n in range(1, self.most + 1)])

    def baseline(self, n: int) -> Baseline:
        """Best of n, its interval by prompt, and what each judge thinks of the answer that the reward picks."""
        judged = {name: expected_best(self.scores_PN, n, values_PN) for name, values_PN in self.judged.items()}
        scored = Scored(self.rewards_nP[n - 1].tolist(), {name: values_P.tolist() for name, values_P in judged.items()})
        return Baseline.of(
            f"best_of_{n}", self.queries, scored, kl_bound(n), kl_is_bound=True, policy=self.policy, seed=self.seed
        )

    @cached_property
    def baselines(self) -> list[Baseline]:
        return [self.baseline(n) for n in self.sizes]

    def at_kl(self, kl: float) -> tuple[float, list[float]]:
        """n, and the reward by prompt (P,), of the best-of-n whose KL bound is `kl` nats, N at most.

        Between two n it is their mixture, which draws one of them at random: its KL is at most the mixture of theirs,
        by convexity.
        """
        bounds = [kl_bound(n) for n in range(1, self.most + 1)]
        n = float(np.interp(kl, bounds, range(1, self.most + 1)))
        low = min(int(n), self.most - 1) if self.most > 1 else 1
        high = min(low + 1, self.most)
        mixed = (1 - (n - low)) * self.rewards_nP[low - 1] + (n - low) * self.rewards_nP[high - 1]
        return n, mixed.tolist()


def sample_best_of_n(
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    queries: Sequence[str],
    prompt_ids: Sequence[list[int]],
    generation: GenerationConfig,
    *,
    samples: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    judges: Mapping[str, Reward] | None = None,
    policy: Scored | None = None,
    columns: Columns | None = None,
) -> BestOfN:
    """`samples` answers of the reference to each of the P prompts, independent of every other stage's; `judges` score
    them too, but have no say in which is best. `policy`: PPO's scores on these prompts, to compare with. `columns`:
    the prompts' others. Raises ModelError for scores that are no finite numbers."""
    asked = [row for row in range(len(queries)) for _ in range(samples)]
    ids = [prompt for prompt in prompt_ids for _ in range(samples)]
    with autocast(reference.device, dtype):
        sampled = sample_responses(reference, tokenizer, ids, generation, seed=seed, step=STREAM)
    answers = list(zip(asked, sampled.texts, sampled.ended, strict=True))

    def scored(scorer: Reward, where: str) -> np.ndarray:
        """(P, N); equal answers to a prompt are scored once."""
        places = {answer: at for at, answer in reversed(list(enumerate(answers)))}  # the first of its kind
        distinct = list(dict.fromkeys(answers))
        questions, texts = [queries[row] for row, _, _ in distinct], [text for _, text, _ in distinct]
        ended = [finished for _, _, finished in distinct]
        ids = [sampled.response_ids[places[answer]] for answer in distinct]
        told = with_ids(taken(columns or {}, [row for row, _, _ in distinct]), ids)
        given = term_scores(scorer, questions, texts, ended, told)
        known = dict(zip(distinct, checked_scores(given, questions, texts, where).tolist(), strict=True))
        return np.array([known[answer] for answer in answers]).reshape(-1, samples)

    judged = {name: scored(judge, f"of the judge {name}") for name, judge in (judges or {}).items()}
    return BestOfN(list(queries), scored(reward, "of best-of-n"), judged, seed, policy)


def expected_best(scores_PN: np.ndarray, n: int, values_PN: np.ndarray | None = None) -> np.ndarray:
    """Expected value of the best-scored of n answers, from N >= n answers to each of P prompts: (P,).

    The mean over all subsets of n of the N, by order statistics: the i-th lowest of N is the best of C(i-1, n-1) of the
    C(N, n) subsets. Unbiased for every n at once (Nakano et al. 2021, "WebGPT", appendix I). `values_PN`: another
    measure of the answers picked, by default the score itself; answers of equal score are picked equally often.
    """
    count = scores_PN.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} can't be told from {count} answers to a prompt")
    weights = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    if values_PN is None:
        return np.asarray(np.sort(scores_PN, axis=1) @ weights)
    found = []
    for scores, values in zip(scores_PN, values_PN, strict=True):
        _, ranks, ties = np.unique(scores, return_inverse=True, return_counts=True)
        shared = np.bincount(np.repeat(np.arange(len(ties)), ties), weights) / ties
        found.append(float(shared[ranks] @ values))
    return np.array(found)


def kl_bound(n: float) -> float:
    """log n - (n - 1) / n nats: at most so far is the best-of-n policy from the policy that it samples from.

    Exact where no two answers score the same and none has much probability (Hilton 2023, "KL divergence of max-of-n");
    an upper bound always (Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy").
    """
    return math.log(n) - (n - 1) / n


def size_at(kl: float) -> float:
    """The n, a real number of 1 or more, whose KL bound is `kl` nats."""
    low, high = 1.0, math.exp(min(max(kl, 0.0), 600.0) + 1)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kl_bound(middle) < kl else (low, middle)
    return low
