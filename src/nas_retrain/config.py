"""The pipeline's settings: composed by Hydra from configs/, checked and frozen here.

Every key has one default, in a YAML file; nothing here repeats it. A misspelt key, a missing one or a value of the
wrong kind is one NasRetrainError that names the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nas_retrain.errors import NasRetrainError
from nas_retrain.scaling import Activation, InDegree, Initialisation

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _one_word(value: str) -> str:
    if not re.fullmatch(r"[\w.,:@%/+=*&|()\[\]-]+", value):
        raise ValueError("must be one word of letters, digits and .,:@%/+=*&|()[]-, for sbatch to take it as one")
    return value


SbatchValue = Annotated[str, AfterValidator(_one_word)]
"""What may follow an option of sbatch: nothing in which a shell command or a second line could hide."""
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]

BASE_RATE = "base_rate"
"""The recipe name under which trainings of the base-rate search are recorded."""

SEARCH = "_search"
"""What follows a recipe's name where trainings of its own search are recorded."""


def is_search(recipe: str) -> bool:
    """Whether records under this name are a search's, which no ranking is made of."""
    return recipe == BASE_RATE or recipe.endswith(SEARCH)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchSettings(_Section):
    """The search space and its constants in the learning-rate rule (configs/bench)."""

    name: Literal["201"]
    depth_offset: Annotated[int, Field(ge=0)]
    base_kernel_size: Rate


class DagSettings(BenchSettings):
    """A space of graphs of layers without normalisation (configs/bench/mlp.yaml, cnn.yaml)."""

    name: Literal["mlp", "cnn"]  # type: ignore[assignment]
    vertices: Annotated[int, Field(ge=2, le=12)]
    kernel_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)]
    activation: Activation

    @model_validator(mode="after")
    def _kernels_fit(self) -> DagSettings:
        if self.name == "mlp" and self.kernel_sizes != (1,):
            raise ValueError("kernel_sizes must be [1] in bench mlp, whose layers are fully connected")
        if not all(size % 2 for size in self.kernel_sizes) or len(set(self.kernel_sizes)) < len(self.kernel_sizes):
            raise ValueError("kernel_sizes must be odd and all different")
        return self


class DatasetSettings(_Section):
    """A data set, its preparation, and its base learning rate if one is recorded (configs/dataset)."""

    name: Literal["cifar10", "cifar100", "imagenet16_120", "digits", "fashion_mnist"]
    classes: Positive
    image_channels: Annotated[int, Field(ge=1, le=4)]
    image_size: Positive
    train_images: Positive
    test_images: Positive
    mean: tuple[float, ...]
    std: tuple[Rate, ...]
    flip: bool
    padding: Annotated[int, Field(ge=0)]
    train_subset: Positive | None
    dry_train_subset: Positive | None
    base_rate: Rate | None
    verify: bool

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSettings:
        if not len(self.mean) == len(self.std) == self.image_channels:
            raise ValueError(f"mean and std need one value for each of the {self.image_channels} image channels")
        if self.train_subset is not None and self.train_subset > self.train_images:
            raise ValueError(f"train_subset {self.train_subset} is larger than the {self.train_images} training images")
        return self

    @property
    def images_per_epoch(self) -> int:
        """Training images seen in one epoch."""
        return self.train_subset or self.train_images


class RecipeSettings(_Section):
    """What one recipe does about the learning rate and the initialisation (configs/recipe)."""

    learning_rate: Rate | Literal["rule", "tuned", "own", "grid"]
    initialisation: Literal["stock", "he", "mup", "in_degree"]
    in_degree: InDegree
    kernel_factor: bool

    @property
    def drawn_as(self) -> Initialisation:
        """The initialisation, with the convention in place of "in_degree"."""
        return self.in_degree if self.initialisation == "in_degree" else self.initialisation


class NetworkSettings(_Section):
    """The size of the network that a cell is stacked into."""

    channels: Positive
    cells_per_stage: Positive


class TrainingSettings(_Section):
    """What all recipes share: SGD with momentum and a cosine schedule to zero, stepped per epoch."""

    epochs: Positive
    batch_size: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0)]
    precision: Literal["float32", "bfloat16"]


class GridSettings(_Section):
    """Learning rates to try, and the seeds to try each with."""

    lowest: Rate
    highest: Rate
    points: Positive
    seeds: Seeds

    @model_validator(mode="after")
    def _ordered(self) -> GridSettings:
        if self.lowest > self.highest:
            raise ValueError("lowest is above highest")
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
    recipes: Annotated[tuple[str, ...], Field(min_length=1)]
    epochs: tuple[Positive, ...]
    base_rate_factors: tuple[Rate, ...]


class LocalSettings(_Section):
    """Training on this machine (configs/launcher/local.yaml)."""

    name: Literal["local"]
    device: Literal["auto", "cuda", "mps", "cpu"]
    workers: Positive | Literal["auto"]
    together: Positive
    compile: bool
    checkpoint_every: Positive
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
    memory_gb: Annotated[float, Field(gt=0)] | None
    time_hours: Annotated[float, Field(gt=0)]
    signal_seconds: Positive
    analysis_partition: SbatchValue | None
    sbatch: dict[Annotated[str, Field(pattern="^[a-z][a-z-]*$")], SbatchValue | bool]


class AnalysisSettings(_Section):
    """How rankings are compared."""

    column: str | None
    epochs: Positive
    test_set: Literal["ori-test", "x-valid", "x-test"]
    recipe: str
    control: str
    top_by: Literal["original", "retrained"]
    bootstrap_draws: Positive
    null_draws: Positive
    largest_moves: Positive
    seed: Annotated[int, Field(ge=0)]


class AlgorithmsSettings(_Section):
    """How search algorithms are replayed on tables of accuracies, and compared."""

    searches: Annotated[int, Field(ge=2)]
    queries: Positive
    population: Positive
    tournament: Positive
    learning_rate: Rate
    startup: Positive
    candidates: Positive
    good_share: Annotated[float, Field(gt=0, lt=1)]
    flop_limits: tuple[Rate, ...]
    bootstrap_draws: Positive
    null_draws: Positive
    seed: Annotated[int, Field(ge=0)]


class Settings(_Section):
    """All settings of one run of the pipeline. Relative paths are relative to the working directory."""

    bench: Annotated[BenchSettings | DagSettings, Field(discriminator="name")]
    dataset: DatasetSettings
    recipes: Annotated[dict[str, RecipeSettings], Field(min_length=1)]
    network: NetworkSettings
    training: TrainingSettings
    base_rate: BaseRateSettings
    own_rate: OwnRateSettings | None
    sensitivity: SensitivitySettings | None
    launcher: Annotated[LocalSettings | SlurmSettings, Field(discriminator="name")]
    profile: Literal["full", "dry", "reference"]
    results_dir: Path
    data_dir: Path
    cells: str | tuple[int, ...]
    sample_seed: int
    seeds: Seeds
    enough_tau: Annotated[float, Field(gt=0, lt=1)] | None
    original: Path | None
    retrained: Path | None
    analysis: AnalysisSettings
    algorithms: AlgorithmsSettings

    @model_validator(mode="after")
    def _recipes_fit(self) -> Settings:
        searching = [recipe.learning_rate == "grid" for recipe in self.recipes.values()]
        if any(searching) and not all(searching):
            raise ValueError("recipes that search the learning rate of every network (grid_*) go with no others")
        if isinstance(self.bench, DagSettings) and not all(searching):
            raise ValueError(f"bench {self.bench.name} has no accuracies to compare with: it is for make verify")
        return self

    @model_validator(mode="after")
    def _searches_fit(self) -> Settings:
        own = self.own_rate
        wanted = [name for name, recipe in self.recipes.items() if recipe.learning_rate == "own"]
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
        # With the search's seeds luck would be rewarded; with those of other recipes at the same rate, it would be the
        # same training, and its noise would pass for agreement.
        if own is not None and set(own.fresh_seeds) & (set(own.seeds) | set(self.seeds)):
            raise ValueError("own_rate.fresh_seeds must be none of own_rate.seeds and of seeds")
        if named := [name for name in self.recipes if is_search(name)]:
            raise ValueError(f"recipe {named[0]}: names that end in {SEARCH} are those of searches")
        if self.sensitivity and (unknown := set(self.sensitivity.recipes) - set(self.recipes)):
            raise ValueError(f"sensitivity.recipes: {', '.join(sorted(unknown))} is none of the recipes")
        if self.sensitivity and any(
            self.recipes[name].learning_rate in ("own", "grid") for name in self.sensitivity.recipes
        ):
            raise ValueError("sensitivity.recipes: a recipe that searches each network's rate cannot be varied")
        if self.sensitivity and (
            self.training.epochs in self.sensitivity.epochs or 1 in self.sensitivity.base_rate_factors
        ):
            raise ValueError("sensitivity: leave out training.epochs and a factor of 1, which the recipes have already")
        return self

    def identity(self, recipe: str) -> dict[str, Any]:
        """Everything that decides what a training of this recipe comes to, save the cell, the seed and the rate."""
        # Files with the published contents are the usual case, which is not mentioned.
        verified = {"verify"} if self.dataset.verify else set()
        return {
            "bench": self.bench.model_dump(),
            "dataset": self.dataset.model_dump(exclude={"base_rate", "dry_train_subset"} | verified),
            "network": self.network.model_dump(),
            "training": self.training.model_dump(),
            "recipe": self.recipes[recipe].model_dump(),
        }


def digest(identity: dict[str, Any]) -> str:
    """A short hash of settings, the same for the same values on any machine."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def to_settings(composed: DictConfig) -> Settings:
    """Check a composed configuration; raises NasRetrainError naming every key at fault."""
    values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    if "network" not in values:
        bench, profile = values["bench"]["name"], values["profile"]
        raise NasRetrainError(
            f"Profile {profile} is not meant for bench {bench}: no configs/size/{bench}_{profile}.yaml gives the size "
            "of its networks. Choose PROFILE=dry or PROFILE=full."
        )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = "".join(f"\n  {_fault(dict(fault))}" for fault in error.errors())
        raise NasRetrainError(f"Settings that cannot be used:{faults}\nSee configs/ for each key's meaning.") from None


def _fault(fault: dict[str, Any]) -> str:
    parts = [str(part) for part in fault["loc"]]
    if len(parts) > 2 and parts[0] in ("bench", "launcher"):
        del parts[1]  # which kind of bench or launcher it was checked as is no part of the key
    key = ".".join(parts) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"{key}: there is no such key"
    got = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}{got}"
