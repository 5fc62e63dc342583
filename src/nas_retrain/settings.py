"""The pipeline's settings: composed by Hydra from configs/, checked and frozen here.

Every key has one default, in a YAML file; nothing here repeats it. A misspelt key, a missing one or a value of the
wrong kind is one NasRetrainError that names the key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import sha256
from nas_retrain.purpose import SEARCH, Setup, is_search
from nas_retrain.rate_policy import Grid, Listed, Own, RatePolicy, Word, rate_policy
from nas_retrain.seeding import Seeding
from nas_retrain.theory.scaling import InDegree, Initialisation

Positive = Annotated[int, Field(gt=0, lt=2**31)]  # what counters and sizes of arrays can hold
Precision = Literal["float32", "tf32", "bfloat16"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


TABLES = (".csv", ".csv.gz", ".tsv")
"""How the name of a table ends."""


def _table_s_name(value: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
    if not isinstance(value, str) or not value.endswith(TABLES):
        raise ValueError("Input should be the path of a table, whose name ends in .csv")
    return value


RatesTable = Annotated[str, BeforeValidator(_table_s_name)]
"""The path of a table of learning rates: a row a cell."""


def _one_word(value: str) -> str:
    if not re.fullmatch(r"[\w.,:@%/+=*&|()\[\]-]+", value):
        raise ValueError("must be one word of letters, digits and .,:@%/+=*&|()[]-, for sbatch to take it as one")
    return value


SbatchValue = Annotated[str, AfterValidator(_one_word)]
"""What may follow an option of sbatch: nothing in which a shell command or a second line could hide."""

OWN_SBATCH_OPTIONS = frozenset(
    {
        *("array", "chdir", "dependency", "error", "input", "job-name", "nodes", "ntasks", "ntasks-per-core"),
        *("ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode", "output", "parsable", "signal"),
        *("test-only", "time", "uid", "wait", "wrap"),
    }
)
"""Options that decide how many copies of a task run, where its log is and how it is found again; never a site's."""


def _listed(value: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


OneOrMore = BeforeValidator(_listed)
"""Where a list is wanted, one value means a list of it."""


def _all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for value, times in Counter(values).items() if times > 1]
    if repeated:
        raise ValueError(f"{', '.join(map(str, repeated))} is listed more than once")
    return values


AllDifferent = AfterValidator(_all_different)

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what tables of records can hold
Seeds = Annotated[tuple[Seed, ...], OneOrMore, Field(min_length=1), AfterValidator(_all_different)]


def _home_found(value: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("is empty; a path was expected")
    return os.path.expanduser(value)  # noqa: PTH111 - pathlib raises for a user that it does not know


UserPath = Annotated[Path, BeforeValidator(_home_found)]
"""A path as a user gives it, with ~ for the home folder."""

WORTH_ASKING = 0.7
"""How alike a key that there is not and a known one must be, from 0 to 1, to ask whether that one was meant."""

REMOVED = {
    "launcher.compile": "this key is no more. On a GPU every training step is captured as one CUDA graph without being "
    "asked to, and on a CPU compiling did not pay: leave the key out."
}
"""Keys of older versions, and what to do instead."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truths_are_no_numbers(cls, values: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
        """Refuse true and false where numbers belong, which would be taken for 1 and 0."""
        for name, value in values.items() if isinstance(values, dict) else ():
            given = value if isinstance(value, list | tuple) else [value]
            if name in cls.model_fields and cls.model_fields[name].annotation is not bool and bool in map(type, given):
                raise ValueError(f"{name} is true or false, where another value was expected")
        return values


class BenchSettings(_Section):
    """The search space and its constants in the learning-rate rule (configs/bench). A benchmark with further keys has
    a class of its own for them, beside its space."""

    has_accuracies: ClassVar[bool] = True
    """Whether its networks' accuracies are compared, rather than the learning rates that grids find for them."""

    chooses_normalisation: ClassVar[bool] = True
    """Whether its networks can be built without BatchNorm (network.normalisation)."""

    name: str
    depth_offset: Positive  # of a base network of skips alone the rules divide by it
    base_kernel_size: Rate


BenchKinds = Mapping[str, type[BenchSettings]]
"""The class that checks each benchmark's settings, by the benchmark's name."""


def _of_its_kind(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - what is given, of any kind
    """Check a benchmark's settings as what they are; the benchmarks there are come with the validation's context."""
    kinds: BenchKinds = (info.context or {}).get("benches", {})
    if not isinstance(value, dict) or not kinds:
        return value
    kind = kinds.get(str(value.get("name")))
    if kind is None:
        raise ValueError(f"there is no benchmark {value.get('name')!r}; there are {', '.join(kinds)}")
    return kind.model_validate(value)


PUBLISHED = ("cifar10", "cifar100", "imagenet16_120", "digits", "fashion_mnist")
"""The data sets that come with readers of their files."""


class DatasetSettings(_Section):
    """A data set, its preparation, and its base learning rate if one is recorded (configs/dataset)."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    classes: Positive
    image_channels: Annotated[int, Field(ge=1, le=4)]
    image_size: Positive
    train_images: Positive
    test_images: Positive
    mean: Annotated[tuple[float, ...], OneOrMore]
    std: Annotated[tuple[Rate, ...], OneOrMore]
    flip: bool
    padding: Annotated[int, Field(ge=0)]
    train_subset: Positive | None
    dry_train_subset: Positive | None
    base_rate: Rate | None
    verify: bool
    source: str | None = None
    """Of a data set of the user's own: an .npz file or a function (see `data.own`). No shipped file has this key."""
    checksum: str | None = None
    """SHA-256 of the source's file, which is found out and never set."""

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSettings:
        if self.source is None and self.name not in PUBLISHED:
            raise ValueError(
                f"there is no data set {self.name}: there are {', '.join(PUBLISHED)}. One of your own has a source, an "
                ".npz file or a function"
            )
        if not len(self.mean) == len(self.std) == self.image_channels:
            raise ValueError(f"mean and std need one value for each of the {self.image_channels} image channels")
        if self.train_subset is not None and self.train_subset > self.train_images:
            raise ValueError(f"train_subset {self.train_subset} is larger than the {self.train_images} training images")
        return self

    @property
    def undeciding(self) -> set[str]:
        """The keys that decide no result: that of another profile, and where a file lies whose checksum is known.
        Published data sets have neither source nor checksum."""
        own = {"checksum": self.checksum, "source": None if self.checksum else self.source}
        return {"dry_train_subset"} | {key for key, value in own.items() if value is None}

    @property
    def images_per_epoch(self) -> int:
        """Training images seen in one epoch."""
        return self.train_subset or self.train_images


def _as_json_has_it(values: dict[str, Any]) -> dict[str, Any]:
    try:
        same = json.loads(json.dumps(values, allow_nan=False)) == values
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(
            "may hold texts, finite numbers, true, false and null, and lists and mappings of them whose keys are texts"
        )
    return values


Parameters = Annotated[dict[str, Any], AfterValidator(_as_json_has_it)]
"""Parameters of a rule by name: what files of JSON can hold, and hashes are made of."""


class RecipeSettings(_Section):
    """What one recipe does about the learning rate and the initialisation (configs/recipe)."""

    learning_rate: Rate | Word | RatesTable
    initialisation: Literal["stock", "he", "mup", "in_degree"]
    in_degree: InDegree
    kernel_factor: bool
    rule: str | None = None  # what most recipes have none of need not stand in their files
    rule_parameters: Parameters = {}
    rates_checksum: str | None = None
    """SHA-256 of the table that learning_rate names, which is found out and never set."""

    @model_validator(mode="before")
    @classmethod
    def _table_is_known_by_its_contents(cls, values: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
        path = values.get("learning_rate") if isinstance(values, dict) else None
        if not isinstance(path, str) or not path.endswith(TABLES) or values.get("rates_checksum") is not None:
            return values
        file = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - pathlib raises for a user it does not know
        try:
            checksum = sha256.of(file)
        except OSError as error:
            raise ValueError(f"learning_rate: the table {file} cannot be read ({error.strerror})") from None
        return values | {"learning_rate": str(file), "rates_checksum": checksum}

    @model_validator(mode="after")
    def _table_or_rule(self) -> RecipeSettings:
        if isinstance(self.rate_policy, Listed) and (self.rule is not None or self.kernel_factor):
            raise ValueError("learning_rate is a table, beside which there is no rule and no kernel_factor")
        return self

    @model_validator(mode="after")
    def _rule_decides(self) -> RecipeSettings:
        if self.rule is not None and (self.initialisation == "in_degree" or self.kernel_factor):
            raise ValueError(
                "a recipe with a rule takes initialisation stock, he or mup, for the layers of which the rule decides "
                "no variance, and kernel_factor false: give in_degree and kernel_factor in rule_parameters"
            )
        if self.rule is None and self.rule_parameters:
            raise ValueError("rule_parameters are given, but no rule")
        return self

    @model_serializer(mode="wrap")
    def _without_a_rule_as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        absent = ("rule",) * (self.rule is None) + ("rates_checksum",) * (self.rates_checksum is None)
        return {key: value for key, value in written.items() if not key.startswith(absent)}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides results: of a table of learning rates its contents, wherever it lies."""
        told = self.model_dump(mode="json")
        if checksum := told.pop("rates_checksum", None):
            told["learning_rate"] = f"table {checksum}"
        return told

    @property
    def rate_policy(self) -> RatePolicy:
        """Where its learning rates come from."""
        return rate_policy(self.learning_rate, kernel_factor=self.kernel_factor, checksum=self.rates_checksum)

    @property
    def drawn_as(self) -> Initialisation:
        """The initialisation, with the convention in place of "in_degree"."""
        return self.in_degree if self.initialisation == "in_degree" else self.initialisation


class NetworkSettings(_Section):
    """The size of the network that a cell is stacked into."""

    channels: Positive
    cells_per_stage: Positive
    normalisation: Literal["batch", "none"]


class TrainingSettings(_Section):
    """What all recipes share: SGD with momentum, and a schedule stepped per epoch (see `execution.schedule`)."""

    epochs: Positive
    batch_size: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0)]
    precision: Precision
    norm_weight_decay: Annotated[float, Field(ge=0)] | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    schedule: Literal["cosine", "linear", "step", "constant"]
    steps: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], OneOrMore, AfterValidator(_all_different)]
    step_factor: Annotated[float, Field(gt=0, lt=1)]
    warmup_epochs: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainingSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves none of the {self.epochs} epochs")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What decides results. What is as the benchmark has it and could once not be set is not mentioned."""
        told = self.model_dump()
        if self.precision == "bfloat16":
            told["precision"] = BFLOAT16
        if self.schedule != "step":
            del told["steps"], told["step_factor"]
        return {key: value for key, value in told.items() if BEFORE.get(key, ...) != value}


BFLOAT16 = "bfloat16, BatchNorm in float32"
"""What identities have for bfloat16. In version 0.1.0, where they had its name alone, it rounded at other places."""

BEFORE = {"norm_weight_decay": None, "label_smoothing": 0.0, "schedule": "cosine", "warmup_epochs": 0}
"""What held in the section training before there were these keys."""


class GridSettings(_Section):
    """Learning rates to try, and the seeds to try each with."""

    lowest: Rate
    highest: Rate
    points: Annotated[int, Field(gt=0, le=1000)]
    seeds: Seeds

    @model_validator(mode="after")
    def _ordered(self) -> GridSettings:
        if self.lowest > self.highest:
            raise ValueError("lowest is above highest")
        if len(set(self.grid)) < self.points:
            raise ValueError(f"{self.points} points from {self.lowest:g} to {self.highest:g} are not all different")
        return self

    @property
    def grid(self) -> tuple[float, ...]:
        """The learning rates to try, evenly spaced in the logarithm, rising."""
        steps = max(1, self.points - 1)
        ratio = self.highest / self.lowest
        return tuple(float(f"{self.lowest * ratio ** (step / steps):.4g}") for step in range(self.points))


class BaseRateSettings(GridSettings):
    """The search on the base network, and of recipes whose learning rate is searched for every network (grid_*)."""

    epochs: Positive
    in_degree: InDegree


class OwnRateSettings(GridSettings):
    """The search for each network's own best learning rate, on a validation part of the training set; `seeds` are the
    search's, fresh_seeds those of the trainings that count."""

    classes: Positive
    fresh_seeds: Seeds
    validation_images: Positive


class SensitivitySettings(_Section):
    """What is trained again with other budgets and other rates, to see which conclusions depend on them."""

    classes: Positive
    recipes: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1), AfterValidator(_all_different)]
    epochs: Annotated[tuple[Positive, ...], OneOrMore, AfterValidator(_all_different)]
    base_rate_factors: Annotated[tuple[Rate, ...], OneOrMore, AfterValidator(_all_different)]


class BaseRateDrawsSettings(GridSettings):
    """The base network at each rate with each seed, after each number of epochs: how much the searched base rate is a
    matter of luck."""

    epochs: Annotated[tuple[Positive, ...], OneOrMore, Field(min_length=1), AfterValidator(_all_different)]


class SurfaceSettings(GridSettings):
    """Networks at each rate of a grid with each seed, under each initialisation, scored on validation images."""

    classes: Annotated[int, Field(ge=2)]


class ConfirmationSettings(_Section):
    """Other networks, trained at the rates that the surface gave and scored on test images."""

    classes: Annotated[int, Field(ge=2)]
    seeds: Seeds


class LongerSettings(ConfirmationSettings):
    """The first of the confirmation's networks, trained longer."""

    epochs: Positive
    weight_decays: Annotated[tuple[Annotated[float, Field(ge=0)], ...], OneOrMore, AfterValidator(_all_different)]


class PlainSettings(SurfaceSettings):
    """A surface without BatchNorm, of the first networks of the other one, and how many of the confirmation's networks
    are trained so too."""

    confirmation_classes: Annotated[int, Field(ge=2)]
    margin: Rate


class EndsSettings(_Section):
    """How near to the ends of a surface's grid the confirmation's rates may be: octaves from each end to every tuned
    scalar, at least, and the share of an arm's rates that lie beyond the ends, at most."""

    octaves: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    outside: Annotated[float, Field(ge=0, le=1)]


class LadderSettings(SurfaceSettings):
    """The first of the surface's networks at other sizes: sides of images in pixels, and channels."""

    sizes: tuple[tuple[Positive, Positive], ...]


RuleShapeStage = Literal["base_rate", "surface", "confirmation", "longer", "plain", "ladder"]


class RuleShapeSettings(_Section):
    """The study of the shape of the learning-rate rule (configs/profile/rule_shape.yaml)."""

    stages: Annotated[tuple[RuleShapeStage, ...], OneOrMore, Field(min_length=1), AfterValidator(_all_different)]
    validation_images: Positive
    base_rate: BaseRateDrawsSettings
    surface: SurfaceSettings
    confirmation: ConfirmationSettings
    longer: LongerSettings
    plain: PlainSettings
    ladder: LadderSettings
    ends: EndsSettings
    exponents: Annotated[tuple[float, ...], OneOrMore, Field(min_length=1), AfterValidator(_all_different)]
    margin: Rate
    tau_margin: Rate
    permutations: Positive
    draws: Positive

    @model_validator(mode="after")
    def _parts_fit(self) -> RuleShapeSettings:
        if not {0.0, 1.0} <= set(self.exponents):
            raise ValueError("exponents must hold 0 (one rate for all) and 1 (the rule)")
        for name, part in (("surface", self.surface), ("plain", self.plain)):
            if len(part.seeds) < 2:
                raise ValueError(f"{name}.seeds: one seed chooses and another one judges, so two at least are needed")
        chose = {*self.surface.seeds, *self.plain.seeds}
        if chose & {*self.confirmation.seeds, *self.longer.seeds}:
            raise ValueError(
                "confirmation.seeds and longer.seeds must be none of the surfaces' seeds, which chose the rates"
            )
        parts = {
            "plain.classes": (self.plain.classes, self.surface.classes),
            "ladder.classes": (self.ladder.classes, self.surface.classes),
            "plain.confirmation_classes": (self.plain.confirmation_classes, self.confirmation.classes),
            "longer.classes": (self.longer.classes, self.confirmation.classes),
        }
        for key, (wanted, there) in parts.items():
            if wanted > there:
                raise ValueError(f"{key}={wanted}: there are {there} networks to take them from")
        return self


class LocalSettings(_Section):
    """Training on this machine (configs/launcher/local.yaml)."""

    name: Literal["local"]
    device: Literal["auto", "cuda", "mps", "cpu"]
    workers: Positive | Literal["auto"]
    together: Positive
    checkpoint_every: Positive
    checkpoint_minutes: Annotated[float, Field(ge=0)]
    max_hours: Annotated[float, Field(ge=0)]


class SlurmSettings(LocalSettings):
    """Training in tasks of SLURM job arrays (configs/launcher/slurm.yaml); "auto" falls back on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)  # accounts may be numbers

    name: Literal["slurm", "auto"]  # type: ignore[assignment]
    trainings_per_task: Positive
    hours_per_task: Annotated[float, Field(gt=0)] | None
    parallelism: Positive
    max_requeues: Annotated[int, Field(ge=0)]
    partition: SbatchValue | None
    account: SbatchValue | None
    qos: SbatchValue | None
    constraint: SbatchValue | None
    gpus: Annotated[int, Field(ge=0)]
    cpus: Positive | None
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None
    time_hours: Annotated[float, Field(gt=0, le=1e5)]
    signal_seconds: Positive
    analysis_partition: SbatchValue | None
    sbatch: dict[Annotated[str, Field(pattern="^[a-z][a-z-]*$")], SbatchValue | bool]

    @property
    def time_minutes(self) -> int:
        """A task's time limit as SLURM takes it."""
        return max(1, round(self.time_hours * 60))

    @model_validator(mode="after")
    def _time_to_train(self) -> SlurmSettings:
        if self.time_minutes * 60 <= self.signal_seconds:
            raise ValueError(
                f"launcher.time_hours={self.time_hours:g} ({self.time_minutes} minute(s)) must be longer than launcher."
                f"signal_seconds={self.signal_seconds}: a task would be told to stop as soon as it starts"
            )
        return self

    @model_validator(mode="after")
    def _sbatch_is_the_sites(self) -> SlurmSettings:
        if named := sorted(OWN_SBATCH_OPTIONS & self.sbatch.keys()):
            raise ValueError(
                f"launcher.sbatch.{named[0]} cannot be set: every task is one process on one node, whose name, log, "
                "time and order come from the other keys"
            )
        if {"clusters", "cluster"} & self.sbatch.keys():
            raise ValueError(
                "launcher.sbatch.clusters cannot be set, since jobs of another cluster would not be found in the "
                "queue: work on a login node of that cluster, or let SLURM_CONF name its slurm.conf"
            )
        return self


class GpuSettings(_Section):
    """A GPU's figures, of which make roofline makes a bound (configs/gpu)."""

    name: str
    gigabytes_per_second: Rate
    teraflops: dict[Precision, Rate]

    @property
    def short_name(self) -> str:
        """The name's first word, in small letters."""
        return re.sub(r"[^a-z0-9]", "", self.name.lower().partition(" ")[0])


class AnalysisSettings(_Section):
    """How rankings are compared."""

    column: str | None
    retrained_column: str | None
    epochs: Positive
    test_set: Literal["ori-test", "x-valid", "x-test"]
    recipe: str
    control: str
    top_by: Literal["original", "retrained"]
    bootstrap_draws: Positive
    null_draws: Positive
    largest_moves: Positive
    seed: Annotated[int, Field(ge=0)]


class RuleSettings(_Section):
    """A scaling rule and its parameters."""

    rule: str
    parameters: Parameters = {}


def _rules_by_name(given: Any) -> Any:  # noqa: ANN401 - what is given, of any kind
    if not isinstance(given, list):
        return given
    if not all(isinstance(name, str) for name in given):
        raise ValueError("is a list, where each is the name of a rule: [depth,my_module:my_rule]")
    return {name: {"rule": name} for name in _all_different(tuple(given))}


class ScoreboardSettings(_Section):
    """Which rules are put through which tests (configs/scoreboard.yaml)."""

    parts: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    initialisation: Literal["stock", "he", "mup"]
    permutations: Positive
    rules: Annotated[dict[str, RuleSettings], BeforeValidator(_rules_by_name), Field(min_length=1)]


class AlgorithmsSettings(_Section):
    """How search algorithms are replayed on tables of accuracies, and compared."""

    others: Annotated[tuple[str, ...], OneOrMore, AfterValidator(_all_different)]
    searches: Annotated[int, Field(ge=2)]
    queries: Positive
    population: Positive
    tournament: Positive
    learning_rate: Rate
    startup: Positive
    candidates: Positive
    good_share: Annotated[float, Field(gt=0, lt=1)]
    flop_limits: Annotated[tuple[Rate, ...], OneOrMore, AfterValidator(_all_different)]
    bootstrap_draws: Positive
    null_draws: Positive
    seed: Annotated[int, Field(ge=0)]


class RateTableSettings(_Section):
    """How a table of trainings at several learning rates is analysed (make own-rates)."""

    batch_size: Positive | None
    epochs: Positive | None
    benchmark_rate: Rate
    rules: Annotated[tuple[str, ...], OneOrMore, AfterValidator(_all_different)]
    redraws: Positive
    permutations: Positive


class Settings(_Section):
    """All settings of one run of the pipeline. Relative paths are relative to the working directory."""

    bench: Annotated[SerializeAsAny[BenchSettings], BeforeValidator(_of_its_kind)]
    dataset: DatasetSettings
    recipes: Annotated[dict[str, RecipeSettings], Field(min_length=1)]
    network: NetworkSettings
    training: TrainingSettings
    base_rate: BaseRateSettings
    own_rate: OwnRateSettings | None
    sensitivity: SensitivitySettings | None
    rule_shape: RuleShapeSettings | None
    launcher: Annotated[LocalSettings | SlurmSettings, Field(discriminator="name")]
    profile: Literal["full", "dry", "reference", "rule_shape"]
    results_dir: UserPath
    data_dir: UserPath
    cells: Annotated[
        str | tuple[int, ...], BeforeValidator(lambda given: given if isinstance(given, str) else _listed(given))
    ]
    sample_seed: int
    seeds: Seeds
    seeding: Seeding
    enough_tau: Annotated[float, Field(gt=0, lt=1)] | None
    curves: Literal["train", "test"] | None
    tracker: str | None
    original: UserPath | None
    retrained: UserPath | None
    gpu: GpuSettings
    analysis: AnalysisSettings
    algorithms: AlgorithmsSettings
    scoreboard: ScoreboardSettings | None
    rate_table: RateTableSettings

    @model_validator(mode="after")
    def _recipes_fit(self) -> Settings:
        searching = all(isinstance(recipe.rate_policy, Grid) for recipe in self.recipes.values())
        if not self.bench.has_accuracies and not searching:
            raise ValueError(f"bench {self.bench.name} has no accuracies to compare with: it is for make verify")
        if not self.bench.chooses_normalisation and self.network.normalisation != "batch":
            raise ValueError(f"network.normalisation has no meaning for bench {self.bench.name}: leave it at batch")
        return self

    @model_validator(mode="after")
    def _searches_fit(self) -> Settings:
        own = self.own_rate
        wanted = [name for name, recipe in self.recipes.items() if isinstance(recipe.rate_policy, Own)]
        if wanted and own is None:
            raise ValueError(
                f"recipe {wanted[0]} needs the grid that each network's own rate is searched on: set own_rate.lowest, "
                "highest and all else that configs/profile/reference.yaml has there"
            )
        if own is not None and own.validation_images >= self.dataset.train_images:
            raise ValueError(
                f"own_rate.validation_images {own.validation_images} leaves nothing of the "
                f"{self.dataset.train_images} training images"
            )
        shape = self.rule_shape
        if shape is not None and shape.validation_images >= self.dataset.train_images:
            raise ValueError(
                f"rule_shape.validation_images {shape.validation_images} leaves nothing of the "
                f"{self.dataset.train_images} training images"
            )
        if shape is not None and own is not None and shape.validation_images != own.validation_images:
            raise ValueError("rule_shape.validation_images and own_rate.validation_images must be the same")
        # With the search's seeds luck would be rewarded; with those of other recipes at the same rate, it would be the
        # same training, and its noise would pass for agreement.
        if own is not None and set(own.fresh_seeds) & (set(own.seeds) | set(self.seeds)):
            raise ValueError("own_rate.fresh_seeds must be none of own_rate.seeds and of seeds")
        if named := [name for name in self.recipes if is_search(name)]:
            raise ValueError(f"recipe {named[0]}: names that end in {SEARCH} are those of searches")
        if self.sensitivity and (unknown := set(self.sensitivity.recipes) - set(self.recipes)):
            raise ValueError(f"sensitivity.recipes: {', '.join(sorted(unknown))} is none of the recipes")
        if self.sensitivity and any(
            isinstance(self.recipes[name].rate_policy, Own | Grid) for name in self.sensitivity.recipes
        ):
            raise ValueError("sensitivity.recipes: a recipe that searches each network's rate cannot be varied")
        if self.sensitivity and (
            self.training.epochs in self.sensitivity.epochs or 1 in self.sensitivity.base_rate_factors
        ):
            raise ValueError("sensitivity: leave out training.epochs and a factor of 1, which the recipes have already")
        return self

    @property
    def validation_images(self) -> int:
        """How many training images are kept back, for trainings that are validated."""
        asking = self.rule_shape or self.own_rate
        return asking.validation_images if asking else 0

    def under(self, setup: Setup) -> Settings:
        """These settings with what a training has otherwise."""

        def changed(section: _Section, **values: Any) -> _Section:  # noqa: ANN401 - of several keys
            return section.model_copy(update={key: value for key, value in values.items() if value is not None})

        parts = {
            "network": changed(self.network, normalisation=setup.normalisation, channels=setup.channels),
            "training": changed(self.training, weight_decay=setup.weight_decay),
            "dataset": changed(self.dataset, image_size=setup.image_size),
        }
        return self.model_copy(update=parts)

    def identity(self, recipe: str) -> dict[str, Any]:
        """Everything that decides what a training of this recipe comes to, save the cell, the seed and the rate."""
        # Files with the published contents are the usual case, which is not mentioned.
        verified = {"verify"} if self.dataset.verify else set()
        batch_norm = {"normalisation"} if self.network.normalisation == "batch" else set()
        return ({"seeding": "nested"} if self.seeding == "nested" else {}) | {
            "bench": self.bench.model_dump(),
            "dataset": self.dataset.model_dump(exclude={"base_rate"} | verified | self.dataset.undeciding),
            "network": self.network.model_dump(exclude=batch_norm),
            "training": self.training.identity,
            "recipe": self.recipes[recipe].identity,
        }


def digest(identity: dict[str, Any]) -> str:
    """A short hash of settings, the same for the same values on any machine."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def to_settings(composed: DictConfig, benches: BenchKinds) -> Settings:
    """Check a composed configuration; raises NasRetrainError naming every key at fault."""
    values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    try:
        return Settings.model_validate(values, context={"benches": benches})
    except ValidationError as error:
        _refuse_slurms_keys(values)
        faults = "".join(f"\n  {_fault(dict(fault), values)}" for fault in error.errors())
        raise NasRetrainError(f"Settings that cannot be used:{faults}\nSee configs/ for each key's meaning.") from None


def _refuse_slurms_keys(values: dict[str, Any]) -> None:
    """Raise NasRetrainError where the launcher is this machine and has keys that only SLURM has, as a site's file."""
    launcher = values.get("launcher")
    if not isinstance(launcher, dict) or launcher.get("name") != "local":
        return
    slurms = [key for key in launcher if key in SlurmSettings.model_fields.keys() - LocalSettings.model_fields.keys()]
    if slurms:
        raise NasRetrainError(
            f"launcher.{slurms[0]} is SLURM's, and LAUNCHER=local works on this machine. A file of slurm/site "
            "(SITE=...) goes with LAUNCHER=slurm, or with LAUNCHER=auto where SLURM answers: choose one of the two."
        )


def _fault(fault: dict[str, Any], values: Any) -> str:  # noqa: ANN401 - what a composed file holds
    # Pydantic's place also has which of several types the value was checked as, which is no part of the key.
    parts = []
    for part in fault["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
            parts.append(str(part))
    if fault["type"] == "missing":
        parts.append(str(fault["loc"][-1]))
    key = ".".join(parts) or "settings"
    if fault["type"] == "extra_forbidden":
        told = no_such_key(key)
    else:
        got = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
        told = f"{key}: {fault['msg'].removeprefix('Value error, ')}{got}"
    # A recipe is most often a file of its own, copied from another.
    return f"{told} (in recipe/{parts[1]}.yaml)" if parts[:1] == ["recipes"] and len(parts) > 1 else told


def no_such_key(key: str) -> str:
    """That there is no such key, and which ones may have been meant."""
    if key in REMOVED:
        return f"{key}: {REMOVED[key]}"
    known = [*dict.fromkeys(_keys(Settings)), "recipe", "site"]
    if re.match(r"recipes\.[\w-]+\.rule_parameters", key):
        name = key.split(".")[1]
        return (
            f"{key}: a parameter that the recipe's file does not have is added with a plus, "
            f"+recipes.{name}.rule_parameters.<parameter>=<value>."
        )
    if key.startswith(("recipes.", "recipe.")):
        name = key.split(".")[1]
        known += [f"recipes.{name}.{setting}" for setting in RecipeSettings.model_fields]
        if key in known or key == f"recipes.{name}":
            return f"{key}: {name} is none of the recipes chosen. Choose it with recipe=[{name},...]."
    likeness = {name: _likeness(key, name) for name in known}
    best = max(likeness.values())
    if best < WORTH_ASKING:
        return f"{key}: there is no such key."
    meant = [name for name in sorted(known, key=lambda name: -likeness[name]) if likeness[name] > best - 0.02][:3]
    return f"{key}: there is no such key. Did you mean {' or '.join(meant)}?"


def _likeness(key: str, known: str) -> float:
    """How alike two keys are, from 0 to 1; the sections of the known one may have been left out."""
    parts = known.split(".")
    endings = [".".join(parts[first:]) for first in range(len(parts))]
    return max(difflib.SequenceMatcher(None, key, ending).ratio() for ending in endings)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[_Section]]:  # noqa: ANN401 - any annotation of a field
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        yield annotation
        yield from annotation.__subclasses__()
    elif getattr(annotation, "__origin__", None) is not dict:  # the keys of recipes are names
        for part in get_args(annotation):
            yield from _sections(part)
