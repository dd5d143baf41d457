"""The one configuration: a recipe, typed and validated once, then passed around whole.

A recipe is a YAML file, one of ours (`rlhf_lib/recipes/NAME.yaml`) or the user's own (a path), with overrides
`section.key=value` on top. Unknown keys and wrong types are refused with the key's full name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_lib.errors import RecipeError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())


# ---------------------------------------------------------------- data


class Source(Section):
    """One split of a data set, in the words of `datasets.load_dataset`."""

    dataset: str | None = Field(
        None, description="hub id, local folder or file, or embedded/customer-service; null: as data.prompts.dataset"
    )
    name: str | None = Field(None, description="the data set's configuration name, where it has several")
    data_dir: str | None = Field(None, description="sub-folder of the data set")
    split: str = Field("train", description="split, slices such as train[:1000] included")


class EvaluationSource(Source):
    split: str = Field("test", description="split, slices such as test[:1000] included")


class Query(Section):
    """How a row becomes the query that the policy continues."""

    kind: Literal["first_tokens", "first_words", "first_turn", "dialogue", "text"] = Field(
        "text",
        description="first_tokens / first_words: that many of the row's text; first_turn: the first human turn of a "
        "dialogue, newlines to spaces; dialogue: everything up to the last assistant turn; text: the row as it is",
    )
    min: Positive = Field(2, description="fewest tokens or words")
    max: Positive = Field(
        8, description="most tokens or words, exclusive (TRL's LengthSampler); min = max - 1 is fixed"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Query:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class Prompts(Source):
    column: str = Field("text", description="column that holds the text or the dialogue")
    min_chars: int | None = Field(None, description="rows with no more characters than this are left out")
    max_query_chars: int | None = Field(None, description="queries with this many characters or more are left out")
    limit: Positive | None = Field(None, description="most prompts to keep, drawn with the recipe's seed")
    held_out: Fraction = Field(0.1, description="fraction of the prompts kept for evaluation, where `test` is null")
    test: EvaluationSource | None = Field(None, description="evaluation prompts from another split or set")
    template: str | None = Field(
        None, description="text around the query for the policy, with {query}; the reward sees the bare query"
    )
    query: Query = Query()

    @model_validator(mode="after")
    def _template_has_query(self) -> Prompts:
        if self.template is not None and "{query}" not in self.template:
            raise ValueError("template must contain {query}")
        return self


class Preferences(Section):
    train: Source = Source()
    test: EvaluationSource = EvaluationSource()
    limit: Positive | None = Field(None, description="most training pairs to keep, drawn with the recipe's seed")
    chosen: str = Field("chosen", description="column of the preferred dialogue (or response, beside a prompt column)")
    rejected: str = Field("rejected", description="column of the other one")
    margin: str | None = Field(None, description="column with how much better the chosen one is")


class Data(Section):
    prompts: Prompts
    preferences: Preferences | None = None


# ---------------------------------------------------------------- policy


class FromScratch(Section):
    """A small GPT-2 with a byte-level BPE tokenizer of its own, both made from the training text."""

    layers: Positive = 4
    width: Positive = 256
    heads: Positive = 4
    positions: Positive = 256
    vocab_size: Positive = 4096

    @model_validator(mode="after")
    def _divisible(self) -> FromScratch:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class Train(Section):
    """Supervised training of the base model on the preference pairs' texts, before anything else."""

    from_scratch: FromScratch | None = Field(None, description="null: fine-tune policy.model")
    answers: Literal["chosen", "both"] = Field("chosen", description="which answers of the pairs to train on")
    completion_only: bool = Field(False, description="loss on the answer alone rather than on the whole dialogue")
    epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = None
    batch_size: Positive = 16
    learning_rate: float = Field(5e-4, gt=0)
    max_length: Positive | None = Field(None, description="tokens of a training text; null: the model's positions")


class Lora(Section):
    r: Positive = 32
    alpha: Positive = 32
    dropout: Fraction = Field(0.0, description="used in SFT only: no dropout in the passes that form PPO's ratio")
    target_modules: list[str] | None = Field(None, description="null: peft's choice for the architecture")
    dora: bool = False


class Policy(Section):
    model: str | None = Field(None, description="hub id, local folder or registry URI such as models:/NAME@champion")
    train: Train | None = Field(None, description="how to train the base model first")
    lora: Lora | None = None
    unfrozen_layers: Positive | None = Field(
        None, description="only the top N blocks learn; the rest runs once a batch"
    )
    critic: Literal["shared", "separate"] = Field(
        "shared", description="the value head's trunk: the policy's, or a copy"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, for a second forward pass in each update")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _some_model(self) -> Policy:
        scratch = self.train is not None and self.train.from_scratch is not None
        if self.model is None and not scratch:
            raise ValueError("needs model, or train.from_scratch")
        if self.model is not None and scratch:
            raise ValueError("model and train.from_scratch exclude each other: set one of them to null")
        if self.lora is not None and self.unfrozen_layers is not None:
            raise ValueError("lora and unfrozen_layers exclude each other: set one of them to null")
        return self


# ---------------------------------------------------------------- reward


class RewardTraining(Section):
    """TRL's RewardTrainer on the preference pairs (Bradley-Terry, pairwise logistic loss)."""

    epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = None
    batch_size: Positive = 32
    learning_rate: float = Field(1e-4, gt=0)
    max_length: Positive | None = Field(
        None, description="tokens of a dialogue, cut from the left; null: all positions"
    )
    center_coefficient: float | None = Field(
        None, ge=0, description="weight of the squared sum of a pair's scores, which keeps them centred (0.01 is usual)"
    )


class Probe(Section):
    """A sentence pair whose order is known: the reward model must prefer `better`."""

    query: str = ""
    better: str
    worse: str


class Checks(Section):
    """Thresholds of the reward model's sanity gates; null switches a gate off, its figure is reported all the same."""

    pairs: Positive = Field(1000, description="held-out pairs used, at most")
    min_accuracy: Fraction | None = Field(0.6, description="pairwise accuracy on held-out pairs (needs preferences)")
    probes: list[Probe] = []
    min_probe_accuracy: Fraction | None = 1.0
    max_calibration_error: Fraction | None = Field(
        0.15, description="expected calibration error of sigmoid(score difference); trained preference models only"
    )
    min_score_std: float | None = Field(1e-4, description="scores must differ between texts")
    max_length_correlation: Fraction | None = Field(0.6, description="absolute rank correlation of score and length")
    max_degenerate_win_rate: Fraction | None = Field(
        0.65,  # a model that reads words but not their order is at 0.5 on shuffled text, give or take 0.035
        description="how often empty, repeated-word or word-shuffled responses may beat a real one",
    )
    max_batch_difference: float | None = Field(1e-3, description="batched against single scoring, in score units")


class Reward(Section):
    kind: Literal["classifier", "preference", "pair", "likelihood", "function", "sum"] = Field(
        "preference",
        description="classifier: an existing one, on query+response; preference: trained here on the pairs; pair: an "
        "existing one that encodes (query, response) as a pair; likelihood: mean log-probability of the text under a "
        "language model; function: your own, by import path; sum: a weighted sum of such",
    )
    model: str | None = Field(
        None, description="hub id or folder; for preference: what to start from, null: the base model"
    )
    label: str | None = Field(None, description="the classifier's label to reward; null only where it has one output")
    output: Literal["logit", "probability"] = "logit"
    function: str | None = Field(None, description="package.module:name of f(queries, responses) -> scores")
    terms: list[Term] | None = Field(None, description="sum: each {weight, reward}; a preference term names its model")
    batch_size: Positive = 64
    max_length: Positive | None = Field(None, description="tokens the reward model sees, cut from the left")
    normalize: bool = Field(
        False, description="scale scores for PPO to mean 0, std 1 on the reference policy's samples"
    )
    train: RewardTraining = RewardTraining()
    checks: Checks = Checks()
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Reward:
        if self.kind in ("classifier", "pair", "likelihood") and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if (self.kind == "sum") != bool(self.terms):
            raise ValueError("kind sum needs terms, a list of {weight, reward}, and no other kind has them")
        if any(term.reward.kind == "preference" and term.reward.model is None for term in self.terms or []):
            raise ValueError("a preference model in a sum must be trained already: name it by reward.model")
        if self.kind == "function" and not self.function:
            raise ValueError("kind function needs function: package.module:name")
        return self


class Term(Section):
    weight: float = 1.0
    reward: Reward


Reward.model_rebuild()


# ---------------------------------------------------------------- generation and PPO


class LengthSampler(Section):
    min: Positive = 4
    max: Positive = Field(16, description="exclusive")

    @model_validator(mode="after")
    def _ordered(self) -> LengthSampler:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class Generation(Section):
    max_new_tokens: Positive = 32
    length_sampler: LengthSampler | None = Field(
        None, description="draw each response's limit instead of max_new_tokens"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits, in every pass")
    top_k: int = Field(0, ge=0, description="0: off. Truncated sampling biases PPO; log-probs stay the full softmax's")
    top_p: float = Field(1.0, gt=0, le=1, description="1: off")
    stop: str | None = Field(None, description="text that ends a response, beside the tokenizer's EOS")
    ignore_eos: bool = Field(False, description="every response runs to its limit")
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="taken off the score of a response cut by its limit"
    )

    @property
    def response_limit(self) -> int:
        """Tokens of the longest response."""
        return self.length_sampler.max - 1 if self.length_sampler else self.max_new_tokens


class PPO(Section):
    steps: Positive = Field(100, description="one step: one rollout batch with all its PPO epochs")
    batch_size: Positive = 128
    mini_batch_size: Positive | None = Field(None, description="rows per optimizer step; null: the batch")
    micro_batch_tokens: Positive = Field(4096, description="tokens per forward pass; bounds memory, changes no figure")
    ppo_epochs: Positive = 4
    learning_rate: float = Field(1.41e-5, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8bit: a quarter of the memory for its moments, with bitsandbytes"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    kl_coef: float = Field(0.2, ge=0, description="weight of the KL to the reference (the adaptive controller's start)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Schulman 2020, approximating KL")
    kl_in: Literal["reward", "loss"] = "reward"
    kl_controller: Literal["adaptive", "fixed"] = "adaptive"
    kl_target: float = Field(6.0, gt=0, description="adaptive: nats per response")
    kl_horizon: Positive = Field(10000, description="adaptive: responses over which the coefficient moves")
    cliprange: float = Field(0.2, gt=0)
    cliprange_value: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    whiten_rewards: bool = False
    scale_scores: bool = Field(False, description="divide scores by their running std")
    normalize_scores: bool = Field(False, description="with scale_scores: take off their running mean too")
    clip_scores: float | None = Field(None, gt=0)
    ratio_threshold: float | None = Field(10.0, gt=1, description="a mini-batch with a larger mean ratio is skipped")
    target_kl: float | None = Field(
        None, gt=0, description="stop a batch's updates when approxkl passes 1.5 times this"
    )
    stop_at_reward: float | None = Field(None, description="stop when the mean raw score reaches this")
    old_logprobs: Literal["auto", "sampling", "recompute"] = Field(
        "auto", description="auto: those gathered while sampling, if the first batch shows that they agree"
    )
    checkpoint_every: Positive | None = 50
    keep_checkpoints: Positive = 2
    eval_every: Positive | None = Field(None, description="steps between scorings of the evaluation prompts")
    eval_prompts: Positive = Field(64, description="held-out prompts scored then, at most")
    keep_best: str | None = Field(
        None, description="export the step with the highest such statistic instead of the last: eval/mean_scores, say"
    )
    sample_every: Positive = Field(10, description="steps between sample responses in the tracker")
    samples: Positive = 8

    @model_validator(mode="after")
    def _consistent(self) -> PPO:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has no gradient to speak of in the loss: set k2, or kl_in: reward")
        if self.keep_best is not None and self.keep_best.startswith("eval/") and self.eval_every is None:
            raise ValueError(f"keep_best {self.keep_best} needs eval_every")
        if self.mini_batch_size and self.batch_size % self.mini_batch_size:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size")
        return self


# ---------------------------------------------------------------- evaluation, registration, compute


class PerplexitySet(Source):
    split: str = "test"
    column: str = "chosen"
    add_start_token: bool = Field(True, description="score the first token too, after BOS (as Hugging Face's metric)")
    batch_size: Positive = 16
    limit: Positive | None = None


class Evaluation(Section):
    prompts: Positive = Field(256, description="held-out prompts, at most")
    perplexity: PerplexitySet | None = None


class Gates(Section):
    """What a version needs to become champion; null switches a gate off."""

    min_reward_delta: float | None = Field(0.0, description="the interval's lower end must be above this")
    max_perplexity_ratio: float | None = Field(2.0, gt=0, description="policy against reference")
    max_kl: float | None = Field(None, gt=0, description="nats per response")
    min_distinct_2_ratio: float | None = Field(0.5, ge=0, description="policy against reference")


class Registration(Section):
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="registered model; null: the recipe's name"
    )
    promote: bool = Field(True, description="false: a passing version stays challenger")
    gates: Gates = Gates()


class Compute(Section):
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    processes: Positive = Field(1, description="PPO shares its batches between so many processes, one a GPU")
    accelerate: str | None = Field(
        None, description="configuration file of Hugging Face Accelerate (FSDP2, DeepSpeed, nodes); null: DDP here"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device multiplies it natively"
    )


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    data: Data
    policy: Policy
    reward: Reward = Reward()
    generation: Generation = Generation()
    ppo: PPO = PPO()
    evaluation: Evaluation = Evaluation()
    registration: Registration = Registration()
    compute: Compute = Compute()
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, size in (("batch_size", self.ppo.batch_size), ("mini_batch_size", self.ppo.mini_batch_size)):
            if size is not None and size % self.compute.processes:
                raise ValueError(f"ppo.{name} ({size}) must be a multiple of compute.processes")
        if self.data.prompts.dataset is None:
            raise ValueError("data.prompts.dataset is missing: a hub id or a local folder")
        if self.reward.kind == "preference" and self.data.preferences is None:
            raise ValueError("reward.kind preference needs data.preferences to train on")
        if self.policy.train is not None and self.data.preferences is None:
            raise ValueError("policy.train needs data.preferences to train on")
        return self


# ---------------------------------------------------------------- loading


def shipped() -> list[str]:
    """Names of the recipes in the package, sorted."""
    folder = resources.files("rlhf_lib") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a shipped recipe by name, or any YAML file by path, apply `a.b=c` overrides and validate.

    Raises RecipeError for an unknown recipe, unreadable YAML, an unknown key or a value of the wrong type.
    """
    tree = _read(name_or_path)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error, name_or_path)) from None


def flatten(recipe: Recipe) -> dict[str, Any]:
    """`{"ppo.learning_rate": 1.41e-05, ...}`: every setting under its dotted name, lists as they are."""
    return leaves(recipe.model_dump(mode="json"))


def leaves(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`: what isn't a mapping, under its keys joined."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{name}": leaf for name, leaf in leaves(value, separator).items()}
        else:
            flat[key] = value
    return flat


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"recipe file {name_or_path} doesn't exist")
        text = path.read_text()
    elif name_or_path in shipped():
        text = (resources.files("rlhf_lib") / "recipes" / f"{name_or_path}.yaml").read_text()
    else:
        near = difflib.get_close_matches(name_or_path, shipped(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"unknown recipe '{name_or_path}': {hint}shipped are {', '.join(shipped())}; a file of yours ends in .yaml"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name_or_path} is no valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name_or_path} must be a mapping of sections (name, data, policy, ...)")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in the tree, the value read as YAML; sections that are null or absent are opened."""
    dotted, separator, value = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override '{override}' must have the form section.key=value")
    node = tree
    *parents, leaf = dotted.strip().split(".")
    for key in parents:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"override '{override}': '{key}' is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': the value is no valid YAML: {error}") from None


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), _keys_beside(fault["loc"]), n=1)
            lines.append(f"unknown key '{where}'" + (f": did you mean '{near[0]}'?" if near else ""))
        else:
            given = fault.get("input")
            shown = f" (given: {given!r})" if not isinstance(given, dict) else ""
            lines.append(f"{where or 'recipe'}: {fault['msg'].removeprefix('Value error, ')}{shown}")
    return f"recipe {origin}: " + "; ".join(lines)


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location`'s parent knows."""
    section: Any = Recipe
    for key in location[:-1]:
        field = section.model_fields.get(str(key)) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
