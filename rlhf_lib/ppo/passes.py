"""The scoring passes over a batch: log-probs, values and entropies of its response tokens, each process its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lib.models.logprobs import Packed, micro_batches, token_logprobs
from rlhf_lib.models.policy import Policy
from rlhf_lib.models.trunk import trunk_and_head
from rlhf_lib.ppo.batch import Batch
from rlhf_lib.ppo.parallel import Processes


@dataclass(frozen=True)
class ScoringPasses:
    """Passes without gradient, in micro-batches of at most so many tokens; `forward` alone may be asked for one.

    Results are flat, the N response tokens of the whole batch in the order of its rows, in every process. The weights
    must be at hand (`Processes.whole`), and the precision set by the caller (`autocast`).
    """

    policy: Policy
    processes: Processes
    temperature: float
    micro_batch_tokens: int

    def forward(self, batch: Batch, rows: np.ndarray, policy: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, values and entropies of the rows' response tokens, flat in the order of the rows: (N,) each.
        `policy` is the policy itself, or what an engine has wrapped it in."""
        arranged = batch.arrange(self.policy.model, rows)
        return policy(arranged, self.temperature, batch.bottom_of(rows))

    def policy_outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The policy's log-probs and values, (N,) each."""
        parts = [self.forward(batch, rows, self.policy) for rows in self._parts(batch)]
        return self._gather([part[0] for part in parts]), self._gather([part[1] for part in parts])

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """The reference's log-probs, (N,)."""
        parts = []
        with self.policy.reference() as reference:
            _, head = trunk_and_head(reference)
            for rows in self._parts(batch):
                arranged = batch.arrange(self.policy.model, rows)
                states = arranged.states(reference, batch.bottom_of(rows), self.policy.unfrozen_layers)
                parts.append(token_logprobs(states, arranged.targets_N, head, self.temperature, with_entropy=False)[0])
        return self._gather(parts)

    def run_bottom(self, batch: Batch) -> list[Tensor]:
        """What enters the unfrozen blocks, per response: computed once, for the reference and all PPO epochs."""
        top = self.policy.unfrozen_layers or 0
        states: list[Tensor] = []
        for rows in self._parts(batch):
            arranged = batch.arrange(self.policy.model, rows)
            assert isinstance(arranged, Packed)
            lengths = [len(batch.queries[i]) + len(batch.responses[i]) - 1 for i in rows]
            states += arranged.run_bottom(self.policy.model, top).split(lengths)
        return [state.to(self.policy.device) for state in self.processes.gather(states)]

    @torch.no_grad()
    def kl(self, batch: Batch) -> float:
        """KL(policy || reference) in nats per response, estimated on the policy's own responses by k1: the log-ratio
        summed over a response's tokens, mean over the responses."""
        if self.policy.shares_bottom:
            batch.bottom = self.run_bottom(batch)
        logprobs_N, _ = self.policy_outputs(batch)
        ratios_N = logprobs_N.double() - self.reference_logprobs(batch).double()
        return float(ratios_N.sum()) / len(batch.responses)

    def _parts(self, batch: Batch) -> Iterator[np.ndarray]:
        """Micro-batches of this process's share of the batch."""
        rows = np.arange(len(batch.queries))[self.processes.share(len(batch.queries))]
        parts = micro_batches(batch.lengths(rows), self.micro_batch_tokens)
        return (rows[part] for part in parts if len(rows))

    def _gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Flat values of this process's share, which may be empty, to those of the whole batch."""
        own = torch.cat([*parts]) if parts else torch.empty(0)
        return torch.cat(self.processes.gather([own])).to(self.policy.device)
