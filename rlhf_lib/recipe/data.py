"""Where prompts, preference pairs and training texts come from."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlhf_lib.errors import SettingsError
from rlhf_lib.recipe.explain import explain

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Raises SettingsError where it is made by hand of what doesn't validate; pydantic's ValidationError in a tree."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    if not TYPE_CHECKING:  # which knows the fields' names and types from pydantic

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise SettingsError(f"{type(self).__name__}: {explain(error, type(self))}") from None

        __init__.__pydantic_base_init__ = True  # a section in another is validated as part of it


class JoinedSetConfig(Section):
    """One of several data sets to join. In the list, a name alone stands for an item with that `dataset`."""

    dataset: str = Field(description="hub id, local folder or file, or embedded/customer-service")
    weight: float = Field(
        1.0,
        gt=0,
        description="how often its training rows are used: 2: each of them twice; 0.5: half of them, drawn with the "
        "recipe's seed. It counts rows that the filters kept, after `limit`; evaluation rows are used once",
    )
    name: str | None = Field(None, description="its configuration name; null: as beside the list")
    data_dir: str | None = Field(None, description="its sub-folder; null: as beside the list")
    split: str | None = Field(None, description="its split; null: as beside the list")


def _joined(given: Any) -> Any:
    """A list's items as sections. Raises ValueError naming the item, where a union would list every type's errors."""
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise ValueError("must be a data set's name, or a list of data sets to join")
    found = []
    for number, item in enumerate(given, start=1):
        named = f"item {number}" + (f" ({item['dataset']})" if isinstance(item, dict) and item.get("dataset") else "")
        if not isinstance(item, str | dict | JoinedSetConfig):
            raise ValueError(f"{named} must be a data set's name, or {{dataset: ..., weight: ...}}")
        try:
            found.append(JoinedSetConfig.model_validate({"dataset": item} if isinstance(item, str) else item))
        except ValidationError as error:
            fault = error.errors()[0]
            key = str(fault["loc"][0])
            near = difflib.get_close_matches(key, JoinedSetConfig.model_fields, n=1)
            if fault["type"] == "extra_forbidden":
                hint = f": did you mean '{near[0]}'?" if near else ""
                raise ValueError(f"{named}: unknown key '{key}'{hint}") from None
            raise ValueError(f"{named}: {key}: {fault['msg']}") from None
    return found


DatasetNames = Annotated[str | list[JoinedSetConfig] | None, BeforeValidator(_joined)]


class SourceConfig(Section):
    """One split of a data set, in the words of `datasets.load_dataset`, or of several sets joined."""

    weighted: ClassVar[bool] = True

    dataset: DatasetNames = Field(
        None,
        description="hub id, local folder or file, or embedded/customer-service; a list joins several; null: the one "
        "of data.prompts",
    )
    name: str | None = Field(None, description="the data set's configuration name, where it has several")
    data_dir: str | None = Field(
        None, description="sub-folder of the data set; null with dataset null: the one of data.prompts; '.': none"
    )
    split: str = Field(
        "train",
        description="split, or a slice of one such as train[:1000]; a single file counts as any split you name",
    )

    @model_validator(mode="after")
    def _weights_are_for_training(self) -> SourceConfig:
        if not self.weighted and isinstance(self.dataset, list) and {item.weight for item in self.dataset} != {1.0}:
            raise ValueError("weights say how often training rows are used; evaluation rows are used once: drop them")
        return self


class EvaluationSourceConfig(SourceConfig):
    """One split of a data set, or of several joined; by default the test split."""

    weighted: ClassVar[bool] = False

    split: str = Field("test", description="split, or a slice of one such as test[:1000]")


class QueryConfig(Section):
    """How a row becomes the query that the policy continues."""

    kind: Literal["first_tokens", "first_words", "first_turn", "dialogue", "text"] = Field(
        "text",
        description="first_tokens, first_words: the beginning of the row's text; first_turn: the first human turn of a "
        "dialogue, with newlines as spaces; dialogue: everything up to the last assistant turn; text: the whole row",
    )
    min: Positive = Field(2, description="fewest tokens or words")
    max: Positive = Field(
        8, description="most tokens or words, exclusive as in TRL's LengthSampler; for a fixed number: min + 1"
    )

    @model_validator(mode="after")
    def _ordered(self) -> QueryConfig:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class NearDuplicatesConfig(Section):
    """When a training prompt counts as nearly an evaluation prompt, and is dropped: Jaccard similarity of their sets of
    word n-grams."""

    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="similarity from which it is: n-grams that both have over all that one of them has; 0.8 is usual "
        "(Lee et al. 2022)",
    )
    words: Positive = Field(5, description="words in an n-gram")
    min_shingles: Positive = Field(
        20,
        description="different n-grams that a prompt must have; of shorter ones only equal ones are dropped, since a "
        "word more or less can ask for something else",
    )


class PromptsConfig(SourceConfig):
    """The rows that become queries: filtered, deduplicated, shuffled with the seed."""

    dataset: DatasetNames = Field(
        None,
        description="hub id, local folder or file, or embedded/customer-service; a list joins several; required",
    )
    column: str = Field("text", description="column with the text, the dialogue or the list of messages")
    min_chars: int | None = Field(None, description="drop rows of at most this many characters")
    max_query_chars: int | None = Field(None, description="drop queries of at least this many characters")
    limit: Positive | None = Field(None, description="most prompts to keep, drawn with the recipe's seed")
    held_out: Fraction = Field(
        0.1,
        description="fraction of the prompts kept for evaluation, where `test` is null; 0: none, and the training "
        "prompts are evaluated on, for a task with only a few possible prompts",
    )
    test: EvaluationSourceConfig | None = Field(None, description="evaluation prompts from another split or set")
    near_duplicates: NearDuplicatesConfig | None = Field(
        NearDuplicatesConfig(),
        description="training prompts (whole texts, where the query is a text's opening) that are nearly evaluation "
        "prompts are dropped; null: only equal ones, for tasks whose prompts are made from a few templates",
    )
    template: str | None = Field(
        None, description="text around the query for the policy, with {query}; the reward sees the bare query"
    )
    query: QueryConfig = QueryConfig()
    columns: list[str] | None = Field(
        None,
        description="other columns, say a solution, which reach reward functions and metrics; null: all but messages "
        "and the columns of data.preferences",
    )

    @property
    def unheld(self) -> bool:
        """Whether evaluation uses the training prompts, none being held out."""
        return self.test is None and self.held_out == 0

    @model_validator(mode="after")
    def _template_has_query(self) -> PromptsConfig:
        if self.template is not None and "{query}" not in self.template:
            raise ValueError("template must contain {query}")
        return self


class RankingsConfig(Section):
    """Human rankings of several responses to a prompt, or thumbs up and down, made into preference pairs."""

    tasks: list[str] = Field([], description="files that `rlhf collect` wrote: prompts and their responses, by id")
    rankings: list[str] = Field([], description="annotators' rankings of these, JSONL or CSV, of one or more rounds")
    feedback: list[str] = Field([], description="files of thumbs up and down: prompt, response, thumb, annotator")
    consensus: Literal["majority", "bradley_terry", "none"] = Field(
        "majority",
        description="majority: of each pair's votes; bradley_terry: fitted to all votes on a prompt; none: every "
        "annotator's own pairs",
    )
    annotators: list[str] | None = Field(None, description="use only these; null: all")
    criterion: str | None = Field(
        None, description="helpful, honest, harmless or your own; null: the one named in the files"
    )
    flag_below: float = Field(
        0.2,
        ge=-1,
        le=1,
        description="flag annotators whose alpha against the others' majority is below this (0 is chance)",
    )
    drop_flagged: bool = Field(False, description="exclude flagged annotators from the consensus")
    held_out: Fraction = Field(
        0.1, description="fraction of the prompts whose pairs are test pairs; the same prompts in every round"
    )

    @model_validator(mode="after")
    def _some_file(self) -> RankingsConfig:
        if not self.rankings and not self.feedback:
            raise ValueError("needs files in rankings or feedback")
        if self.rankings and not self.tasks:
            raise ValueError("rankings needs the tasks that they rank: set tasks to the files that rlhf collect wrote")
        return self


class PreferencesConfig(Section):
    """Two answers to a prompt, one of them preferred: what reward models and base models are trained on."""

    rankings: RankingsConfig | None = Field(
        None, description="pairs from human rankings, instead of `train` and `test`"
    )
    train: SourceConfig = SourceConfig()
    test: EvaluationSourceConfig = EvaluationSourceConfig()
    transfer: EvaluationSourceConfig | None = Field(
        None,
        description="more test pairs, of another kind than the training pairs; the reward's accuracy on them is "
        "reported",
    )
    limit: Positive | None = Field(None, description="most training pairs to keep, drawn with the recipe's seed")
    shared_prompts: bool = Field(
        False,
        description="false: training pairs are dropped if a test pair has their prompt; true: only if it is the same "
        "pair, for a task with only a few possible prompts (rankings always keep them apart)",
    )
    chosen: str = Field(
        "chosen", description="column of the preferred answer, or of the dialogue or conversation that ends with it"
    )
    rejected: str = Field("rejected", description="column of the other one")
    margin: str | None = Field(
        None,
        description="column that says by how much the chosen one is better (HelpSteer3's overall_preference: without "
        "its sign); with rankings, consensus: the share of votes for it minus the share against it, or the difference "
        "of Bradley-Terry strengths",
    )

    @model_validator(mode="after")
    def _margin_known(self) -> PreferencesConfig:
        if self.rankings is not None and self.margin is not None:
            if self.margin != "consensus":
                raise ValueError(f"margin: rankings have no column {self.margin}; set it to consensus or null")
            if self.rankings.consensus == "none":
                raise ValueError("margin: without a consensus there is none; set rankings.consensus, or margin to null")
        return self


class CorpusConfig(Section):
    """Plain texts for policy.train, instead of the preference pairs' answers: a causal model learns them whole, a
    seq2seq model what follows each text's query (cut as data.prompts.query says)."""

    train: SourceConfig = SourceConfig()
    test: EvaluationSourceConfig = EvaluationSourceConfig()
    column: str = Field("text", description="column of the texts")
    limit: Positive | None = Field(None, description="most training texts to keep, drawn with the recipe's seed")


class LabelledConfig(Section):
    """Texts, or answers to prompts, with labels, to train a classifier on (reward.kind: classifier)."""

    train: SourceConfig = SourceConfig()
    test: EvaluationSourceConfig = EvaluationSourceConfig()
    text: str = Field(
        "text",
        description="column of the texts, or of conversations that end with an answer; a set without it, but with "
        "columns prompt and completion, has answers",
    )
    label: str = Field("label", description="column of a text's label (number or name), or of the list of its labels")
    names: list[str] | None = Field(
        None,
        description="the labels' names, in the order of their numbers; null: as in the data set, and of answers that "
        "are true or false desirable and undesirable",
    )
    limit: Positive | None = Field(None, description="most training texts to keep, drawn with the recipe's seed")


class DataConfig(Section):
    """Every data set that the recipe reads."""

    prompts: PromptsConfig
    preferences: PreferencesConfig | None = None
    corpus: CorpusConfig | None = None
    labelled: LabelledConfig | None = None
