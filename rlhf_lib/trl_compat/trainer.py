"""TRL 0.11's PPOTrainer over the engine: queries, responses and scores come from the caller's own loop."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler, set_seed

from rlhf_lib.errors import ModelError, RLHFError
from rlhf_lib.models.logprobs import start_id
from rlhf_lib.models.policy import Policy, autocast
from rlhf_lib.ppo.batch import Batch
from rlhf_lib.ppo.objectives import AdaptiveKL, FixedKL
from rlhf_lib.ppo.rollout import Responses, end_ids
from rlhf_lib.ppo.statistics import Timer
from rlhf_lib.ppo.trainer import PPOTrainer as Engine
from rlhf_lib.recipe import GenerationConfig
from rlhf_lib.trl_compat.config import PPOConfig
from rlhf_lib.trl_compat.models import PreTrainedModelWrapper, create_reference_model

logger = logging.getLogger(__name__)

LOGGED_COLUMNS = ("label", "query", "response")  # kept beside those that the model reads


class GivenResponses(Engine):
    """The engine, with mini-batches drawn from NumPy's global stream as TRL draws them."""

    def minibatch_order(self, epoch: int, rows: int) -> np.ndarray:
        return np.random.permutation(rows)  # noqa: NPY002 - `set_seed` governs it


class PPOTrainer:
    """Trains `model` in place, one `step` for each batch of queries, responses and scores.

    The reference is `ref_model`; without one, a frozen copy of the model; under an adapter always its base model.
    `optimizer` defaults to Adam at a constant rate. `log` is called with a dict by each `log_stats`, beside the tracker
    that `config.log_with` names. Raises RLHFError for arguments that can't be worked with.
    """

    def __init__(
        self,
        config: PPOConfig,
        model: PreTrainedModelWrapper,
        ref_model: PreTrainedModelWrapper | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Dataset | datasets.Dataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        training_data_collator: Callable | None = None,
        *,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if not isinstance(model, PreTrainedModelWrapper):
            raise ModelError(
                f"model is a {type(model).__name__}: wrap it, AutoModelForCausalLMWithValueHead.from_pretrained(model)"
            )
        if ref_model is not None and not isinstance(ref_model, PreTrainedModelWrapper):
            raise ModelError(f"ref_model is a {type(ref_model).__name__}: use create_reference_model(model), or None")
        if ref_model is not None and ref_model.language_model is model.language_model:
            raise ModelError("ref_model is the model that is to learn: use create_reference_model(model), or None")
        if tokenizer is None:
            raise RLHFError("tokenizer is missing: the one that made the queries")
        if training_data_collator is not None:
            raise RLHFError("training_data_collator has no effect here, since nothing is padded: leave it out")
        set_seed(config.seed)
        self.accelerator = self._accelerator(config)
        self.config, self.model, self.tokenizer, self._log = config, model, tokenizer, log
        self.current_device = self.accelerator.device
        self.current_step = 0
        self._declare(config, model)

        self._place(model)
        if ref_model is None and not model.is_peft_model:
            ref_model = create_reference_model(model, num_shared_layers)
        elif num_shared_layers is not None:
            warnings.warn("num_shared_layers is ignored: the reference is given, or an adapter's base", stacklevel=2)
        self.ref_model = None if model.is_peft_model or ref_model is None else self._place(ref_model)
        self.policy = Policy(
            model.pretrained_model,
            reference="base" if self.ref_model is None else self.ref_model.language_model,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        self.policy.v_head = model.v_head.to(self.policy.model.device)
        bf16 = self.accelerator.mixed_precision == "bf16"
        self.engine = GivenResponses(
            self.policy,
            tokenizer,
            lambda queries, responses: [],
            [{"query": "", "input_ids": [tokenizer.eos_token_id or 0]}],
            config.to_recipe(),
            GenerationConfig(max_new_tokens=1, ignore_eos=True),  # responses come from the caller
            seed=config.seed,
            dtype=torch.bfloat16 if bf16 else torch.float32,
        )
        if optimizer is not None:
            self.engine.optimizer = optimizer
            self.engine.scheduler = get_scheduler("constant", optimizer)
        if lr_scheduler is not None:
            self.engine.scheduler = lr_scheduler

        self.dataset = dataset
        self.dataloader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)

    @staticmethod
    def _accelerator(config: PPOConfig) -> Accelerator:
        accelerator = Accelerator(
            log_with=config.log_with,
            project_config=ProjectConfiguration(**config.project_kwargs),
            **config.accelerator_kwargs,
        )
        if accelerator.num_processes > 1:
            raise RLHFError("this interface runs in one process: start it with python, not accelerate launch")
        if accelerator.mixed_precision not in ("no", "bf16"):
            raise RLHFError(f"mixed_precision is {accelerator.mixed_precision!r}: 'no' or 'bf16'")
        return accelerator

    def _declare(self, config: PPOConfig, model: PreTrainedModelWrapper) -> None:
        """Fill in what TRL fills into its configuration, and tell the tracker."""
        config.world_size = self.accelerator.num_processes
        config.global_backward_batch_size, config.global_batch_size = config.backward_batch_size, config.batch_size
        config.is_encoder_decoder, config.is_peft_model = model.is_encoder_decoder, model.is_peft_model
        if config.log_with is not None:
            settings = config.to_dict()
            if config.log_with == "tensorboard":  # which takes no other types
                settings = {k: v for k, v in settings.items() if isinstance(v, (int, float, str, bool))}
            self.accelerator.init_trackers(config.tracker_project_name, settings, init_kwargs=config.tracker_kwargs)

    def _place(self, model: PreTrainedModelWrapper) -> PreTrainedModelWrapper:
        """On the device, unless a device map has placed it already."""
        placed = getattr(model.pretrained_model, "hf_device_map", None) is not None
        return model if placed else model.to(self.current_device)

    @property
    def is_peft_model(self) -> bool:
        return self.model.is_peft_model

    @property
    def is_encoder_decoder(self) -> bool:
        return self.model.is_encoder_decoder

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer

    @property
    def lr_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        return self.engine.scheduler

    @property
    def kl_ctl(self) -> AdaptiveKL | FixedKL:
        """The KL coefficient's controller; its present `value`."""
        return self.engine.kl_controller

    def prepare_dataloader(self, dataset: Dataset | datasets.Dataset, data_collator: Callable | None = None) -> Any:
        """Shuffled batches of `config.batch_size` rows, the last incomplete one dropped, on the device."""
        if isinstance(dataset, datasets.Dataset) and self.config.remove_unused_columns:
            kept = {*inspect.signature(self.model.forward).parameters, *LOGGED_COLUMNS}
            dataset = dataset.remove_columns([name for name in dataset.column_names if name not in kept])
        if len(dataset) < self.config.batch_size:  # type: ignore[arg-type]
            warnings.warn(
                f"the data set's {len(dataset)} rows make no batch of {self.config.batch_size}: the dataloader is "  # type: ignore[arg-type]
                "empty; lower batch_size or add rows",
                stacklevel=2,
            )
        loader = DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
        )
        return self.accelerator.prepare(loader)

    # ------------------------------------------------------------ sampling

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Transformers' `generate`, in eval mode, with its arguments.

        A query (L,) gives a tensor (1, L + T). A list of queries gives a list of (L_i + T_i,), drawn `batch_size` at a
        time, each cut after its first end token. `return_prompt=False` leaves the query out. A seq2seq model's
        responses start with its decoder's start token. `length_sampler` draws `max_new_tokens`, once for each batch.
        With `generate_ref_response` the reference's responses come second, in a tuple.
        """

        def sampled(model: PreTrainedModel) -> Tensor | list[Tensor]:
            return self._generate(model, query_tensor, length_sampler, batch_size, return_prompt, **generation_kwargs)

        self.policy.eval()
        with torch.no_grad(), autocast(self.policy.device, self.engine.dtype):
            responses = sampled(self.policy.model)
            if not generate_ref_response:
                return responses
            with self.policy.reference() as reference:
                return responses, sampled(reference)

    def _generate(
        self,
        model: PreTrainedModel,
        query: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None,
        batch_size: int,
        return_prompt: bool,
        *,
        remove_padding: bool = True,
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> Tensor | list[Tensor]:
        one = isinstance(query, Tensor)
        queries: Sequence[Tensor] = [query] if isinstance(query, Tensor) else query
        if not all(isinstance(q, Tensor) and q.dim() == 1 for q in queries):
            raise RLHFError("generate takes a query as a tensor of shape (length,), or a list of such tensors")
        ends = kwargs.get("eos_token_id") if "eos_token_id" in kwargs else [*end_ids(model, self.tokenizer)]
        ends = torch.tensor(ends if ends is not None else [], device=self.current_device)
        outputs: list[Tensor] = []
        for start in range(0, len(queries), 1 if one else batch_size):
            rows = [q.to(self.current_device) for q in queries[start : start + batch_size]]
            if length_sampler is not None:
                kwargs["max_new_tokens"] = length_sampler()
            ids = pad_sequence(rows, batch_first=True, padding_side="left")
            mask = pad_sequence([torch.ones_like(q) for q in rows], batch_first=True, padding_side="left")
            drawn = model.generate(input_ids=ids, attention_mask=mask, **kwargs)  # type: ignore[operator]
            prompt = 0 if self.is_encoder_decoder else ids.shape[1]
            if one:
                return drawn if return_prompt else drawn[:, prompt:]
            for row, q in zip(drawn, rows, strict=True):
                response = row[prompt:]
                if remove_padding and len(found := torch.isin(response, ends).nonzero()):
                    response = response[: int(found[0]) + 1]
                with_prompt = return_prompt and not self.is_encoder_decoder
                outputs.append(torch.cat([q, response]) if with_prompt else response)
        return outputs

    # ------------------------------------------------------------ learning

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """One PPO step on `config.batch_size` queries (L_i,), their responses (T_i,) and scores (scalars).

        Returns TRL's statistics under its names, as floats; `objective/kl_dist` and the other metrics per response or
        token as arrays. Raises RLHFError for a batch of the wrong size or shape, an empty response, or a score that
        isn't finite.
        """
        timer = Timer()
        with timer("time/ppo/total"):
            self._check(queries, responses, scores, response_masks)
            query_ids, response_ids = [q.tolist() for q in queries], [self._bare(r.tolist()) for r in responses]
            for i, (q, r) in enumerate(zip(query_ids, response_ids, strict=True)):
                if not q or not r:
                    raise RLHFError(f"{'response' if q else 'query'} {i} has no tokens: leave such rows out")
            ended = [r[-1] == self.tokenizer.eos_token_id for r in response_ids]
            ppo = self.config.to_recipe()
            # What TRL's users bound memory by: no pass is larger than a padded mini-batch of theirs.
            longest = max(len(q) + len(r) for q, r in zip(query_ids, response_ids, strict=True))
            limit = min(ppo.micro_batch_tokens, self.config.mini_batch_size * longest)
            self.engine.config = ppo.model_copy(update={"micro_batch_tokens": limit})
            self.policy.eval()
            sampled = Responses(query_ids, response_ids, [""] * len(queries), ended, [], [])
            raw_scores_B = torch.tensor([float(s) for s in scores], device=self.policy.device)
            stats: dict[str, Any] = dict(self.engine.learn(sampled, raw_scores_B))
        if self.config.optimize_device_cache:
            torch.cuda.empty_cache()
        if stats["objective/kl"] < -1:
            warnings.warn(
                f"the KL to the reference is {stats['objective/kl']:.2f}, far below 0: are the responses sampled from "
                "the model's full distribution (do_sample, top_k=0, top_p=1.0, no min_length)?",
                stacklevel=2,
            )
        for name in ("ppo/mean_scores", "ppo/std_scores"):  # TRL's are those that PPO is paid
            stats[name] = stats.pop(name.replace("scores", "shaped_scores"))
        return stats | self._arrays(self.engine.batch) | timer.seconds

    def _bare(self, response: list[int]) -> list[int]:
        """Without the start token that a seq2seq model's `generate` puts first."""
        starts = self.is_encoder_decoder and response[:1] == [start_id(self.policy.model)]
        return response[1:] if starts else response

    def _check(self, queries: Any, responses: Any, scores: Any, response_masks: list[Tensor] | None) -> None:
        for name, given, dims in (
            ("queries", queries, (1,)),
            ("responses", responses, (1,)),
            ("scores", scores, (0, 1)),
        ):
            if not isinstance(given, list) or not all(isinstance(t, Tensor) for t in given):
                raise RLHFError(f"{name} must be a list of tensors")
            if len(given) != self.config.batch_size:
                raise RLHFError(f"{name} has {len(given)} rows, but batch_size is {self.config.batch_size}")
            for i, tensor in enumerate(given):
                if tensor.dim() not in dims or (name == "scores" and tensor.numel() != 1):
                    raise RLHFError(f"{name}[{i}] has shape {tuple(tensor.shape)}")
        for i, score in enumerate(scores):
            if not torch.isfinite(score).all():
                text = self.tokenizer.decode(responses[i])
                raise RLHFError(f"scores[{i}] is {float(score)}, for the response {text!r}: fix the reward")
        if response_masks is not None and not all(bool(mask.all()) for mask in response_masks):
            raise RLHFError("response_masks must be all ones: tokens inside a response can't be left out here")

    @staticmethod
    def _arrays(batch: Batch) -> dict[str, np.ndarray]:
        """Metrics per response (B,) and per response token (B, T), the latter 0 past a response's end."""
        return {
            "objective/kl_dist": batch.kl_BT.sum(1).cpu().numpy(),
            "objective/logprobs": batch.logprobs_BT.cpu().numpy(),
            "objective/ref_logprobs": batch.ref_logprobs_BT.cpu().numpy(),
            "ppo/policy/advantages": batch.advantages_BT.cpu().numpy(),
            "tokens/queries_dist": np.array([len(q) for q in batch.queries], dtype=np.float32),
            "tokens/responses_dist": np.array([len(r) for r in batch.responses], dtype=np.float32),
        }

    # ------------------------------------------------------------ telling and keeping

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: Iterable[Tensor | float],
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Send the statistics, and the rewards' mean, std and array as `env/reward_*`, to the tracker and to `log`;
        with Weights & Biases also the batch's texts, as the table `game_log`."""
        rewards_B = np.array([float(r) for r in rewards], dtype=np.float32)
        std = float(rewards_B.std(ddof=1)) if len(rewards_B) > 1 else 0.0
        logs = stats | {
            "env/reward_mean": float(rewards_B.mean()),
            "env/reward_std": std,
            "env/reward_dist": rewards_B,
        }
        self.current_step += 1
        logger.info("step %d: reward %.4f, KL %.4f", self.current_step, logs["env/reward_mean"], stats["objective/kl"])
        if self.config.log_with == "wandb":
            if missing := [column for column in columns_to_log if column not in batch]:
                raise RLHFError(f"the batch has no column {missing[0]!r}: pass columns_to_log=({', '.join(batch)})")
            rows = zip(*(batch[column] for column in columns_to_log), rewards_B.tolist(), strict=True)
            tracker: Any = self.accelerator.get_tracker("wandb")
            tracker.log_table("game_log", columns=[*columns_to_log, "reward"], data=[list(row) for row in rows])
        if self._log is not None:
            self._log(logs)
        self.accelerator.log(logs, step=self.current_step if self.config.log_with == "tensorboard" else None)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Model, value head and tokenizer, in the files that TRL wrote."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)
