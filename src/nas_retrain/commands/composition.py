"""How Hydra composes settings from configs/, from a user's own folder of such files and from key=value.

Three things are not left to Hydra. Where a file's keys go is told by its folder and its name, and not by a line in the
file that a copy would keep. Paths are taken as they are, whatever Hydra's grammar makes of their characters. And what
Hydra finds wrong is one NasRetrainError in the words of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nas_retrain.benches import registry
from nas_retrain.commands.command_line import CONFIGS, ROOT
from nas_retrain.data import own
from nas_retrain.errors import NasRetrainError, printable
from nas_retrain.settings import TABLES, Settings, no_such_key, to_settings

VERSION_BASE = "1.3"

FOLDERS = (CONFIGS, ROOT / "slurm")
"""Where the project's own files are: slurm/site is a group beside those in configs."""

PACKAGES = {
    "bench": "_global_",
    "dataset": "dataset",
    "recipe": "recipes.{name}",
    "launcher": "launcher",
    "site": "launcher",
    "gpu": "gpu",
    "profile": "_global_",
}
"""Where the keys of a group's files go. A recipe's go below its file's name."""

OF_BENCH = ("under_profile", "verify")
"""The groups of what a bench's file has below `profiles`, by <bench>/<profile>: under each profile, and what
`make verify` and `make scoreboard` set then besides."""

BESIDE = "nas_retrain.yaml"
"""A file of this name in the working directory holds settings of one's own, and marks the folder as one of files of
one's own, unless its key config_dir names another."""

INFORMATION = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

PATHS = ("results_dir", "data_dir", "original", "retrained")
"""The keys whose values are paths."""

RULE = r"recipes\.[^.]+\.rule|scoreboard\.rules\.[^.]+\.rule"
"""The keys that name a rule, which may be by its file's path."""

RULES = "scoreboard.rules"
"""The key of a mapping for which the names of rules can be given as a list, in place of all that it holds."""

_own_folders: list[Path] = []
"""The folder given with --config-dir, while a composition with it lasts: Hydra makes its plugins without arguments."""


_own_files: dict[str, Path] = {}
"""Files of one's own that settings name by their paths (dataset=folder/mine.yaml), by group/name, while a composition
with them lasts."""


class _Files(ConfigSource):
    """A folder of configuration files. Its path is percent-encoded, so that no character of it means anything to
    Hydra or OmegaConf."""

    @staticmethod
    def scheme() -> str:
        return "nas-retrain"

    def _path(self, name: str) -> Path:
        return Path(unquote(self.path)) / name

    def _file(self, name: str) -> Path:
        name = name.removesuffix(".yaml")
        return _own_files.get(name) or self._path(f"{name}.yaml")

    def available(self) -> bool:
        return self._path("").is_dir()

    def is_group(self, config_path: str) -> bool:
        return self._path(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        if group in OF_BENCH and name:
            bench, _, profile = name.partition("/")
            return _file_of("bench", bench) is not None and _file_of("profile", profile) is not None
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        inside = sorted(self._path(config_path).iterdir())
        files = [path.stem for path in inside if path.suffix == ".yaml" and path.is_file()]
        folders = [path.name for path in inside if path.is_dir()]
        wanted = {ObjectType.CONFIG: files, ObjectType.GROUP: folders}
        return files + folders if results_filter is None else wanted[results_filter]

    def load_config(self, config_path: str) -> ConfigResult:
        """What a file holds, to be put where its folder and name say. Raises NasRetrainError naming the file."""
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        if group in OF_BENCH and name:
            bench, _, profile = name.partition("/")
            config = _below_profiles(bench, profile, verify=group == "verify")
            return ConfigResult(
                provider=self.provider, path=self.full_path(), config=config, header={"package": "_global_"}
            )
        file = self._file(config_path)
        config = _read(file)
        header: dict[str, str | None] = {"package": None}
        if name and group in PACKAGES:
            if "/" in name:
                raise NasRetrainError(f"{file}: files of {group} lie in the folder {group} itself. Move it there.")
            header = {"package": PACKAGES[group].format(name=name)}
        if group == "bench":
            config.pop("profiles", None)
        if group == "recipe":
            _check_name(file, group)
            _rebase(file, config)
        if group == "dataset" and config.get("source") is not None:
            _describe_source(file, config)
        elif group == "dataset" and not {"name", "defaults"} & set(config):
            raise NasRetrainError(f"{file}: a data set has a source, which is an .npz file or a function.")
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)


def _read(file: Path) -> DictConfig:
    try:
        config = OmegaConf.create(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise NasRetrainError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise NasRetrainError(f"{file} holds a list; lines like 'key: value' were expected.")
    return config


def _below_profiles(bench: str, profile: str, *, verify: bool) -> DictConfig:
    """What a bench's file has below `profiles` for a profile, or there below `verify`. A bench without `profiles` has
    the same settings under each. Raises NasRetrainError if it lacks this profile, or anything to verify with.

    profile: the name of a file, which may be a copy of one of the project's: what counts is its key of this name."""
    files = _file_of("bench", bench), _file_of("profile", profile)
    assert files[0] is not None
    assert files[1] is not None
    profile = str(_read(files[1]).get("profile", profile))
    profiles = _read(files[0]).get("profiles", {})
    if not profiles and not verify:
        return OmegaConf.create({})
    has = [name for name, settings in profiles.items() if not verify or "verify" in settings]
    if not has:
        raise NasRetrainError(
            f"bench={bench}: {files[0]} does not say which networks make verify takes. Set profiles.{profile}.verify "
            "there, such as {cells: sample:40}."
        )
    if profile not in has:
        raise NasRetrainError(f"profile={profile}: bench {bench} has no such profile. It has {_listed(sorted(has))}.")
    found: DictConfig = profiles[profile].copy()
    below: DictConfig = found.pop("verify", None)
    return below if verify else found


def _file_of(group: str, name: str) -> Path | None:
    """The file of this name in a group, wherever it lies."""
    lying = (folder / group / f"{name}.yaml" for folder in (*FOLDERS, *_own_folders))
    return _own_files.get(f"{group}/{name}") or next((file for file in lying if file.is_file()), None)


def _check_name(file: Path, group: str) -> None:
    if not re.fullmatch(r"[\w-]+", file.stem):
        raise NasRetrainError(f"{file}: a {group} has its file's name, of letters, digits, - and _ only. Rename it.")


def _rebase(file: Path, config: DictConfig) -> None:
    # What a recipe's file builds on (defaults: [benchmark]) goes where its own keys go.
    for number, base in enumerate(config.get("defaults", [])):
        if isinstance(base, str) and base != "_self_" and "@" not in base:
            config.defaults[number] = f"{base}@_here_"
    rates = config.get("learning_rate")
    if isinstance(rates, str) and rates.endswith(TABLES):  # which lies beside the file
        config.learning_rate = _plain(str(file.absolute().parent / os.path.expanduser(rates)))  # noqa: PTH111 - as above


def _describe_source(file: Path, config: DictConfig) -> None:
    """Complete the file of a data set of one's own: its name is the file's, its source lies beside the file, and what
    the arrays tell of themselves need not be said."""
    source = str(config.source)
    if own.file_of(source) is not None:
        source = str(file.absolute().parent / os.path.expanduser(source))  # noqa: PTH111 - as for other paths
    for key, value in ({"name": file.stem} | own.described(source, config)).items():
        if key not in config:
            config[key] = value
    config.source = _plain(source)


class _Folders(SearchPathPlugin):
    """Has Hydra read the project's files, the cluster presets of slurm/site and what --config-dir adds."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        elements = search_path.get_path()
        elements[:] = [one for one in elements if one.provider != "main"]  # the package that calls Hydra: none of it
        for folder in (*FOLDERS, *_own_folders):
            search_path.append("nas-retrain", f"{_Files.scheme()}://{quote(str(folder))}")


for _plugin in (_Files, _Folders):
    Plugins.instance().register(_plugin)


def compose(overrides: Sequence[str], config: str = "config") -> Settings:
    """The settings that these overrides of the defaults in configs/<config>.yaml give. Raises NasRetrainError."""
    files, overrides = _named_files(overrides)
    return _composed(overrides, config, None, files)


def _composed(overrides: Sequence[str], config: str, config_dir: str | None, files: dict[str, Path]) -> Settings:
    with (
        _own_folder(config_dir, files),
        _telling(overrides),
        hydra.initialize(config_path=None, version_base=VERSION_BASE),
    ):
        return _checked(hydra.compose(config, overrides=[escape(override) for override in overrides]))


def from_command_line(arguments: Sequence[str], config: str = "config") -> list[Settings]:
    """The settings that a command line asks for: one for each run of a sweep, none if something was only to be shown.

    Raises NasRetrainError for what cannot be used and SystemExit for flags that there are not.
    """
    asked = _with_those_beside(_parse(arguments))
    files, asked.settings = _named_files(asked.settings)
    if not _flags(asked):  # a program of Hydra's would compose everything twice
        return [_composed(asked.settings, config, asked.config_dir, files)]
    composed: list[DictConfig] = []

    @hydra.main(config_path=None, config_name=config, version_base=VERSION_BASE)
    def take(one: DictConfig) -> None:
        composed.append(one)

    with tempfile.TemporaryDirectory() as nowhere, _own_folder(asked.config_dir, files), _telling(asked.settings):
        # Hydra writes a file about each sweep; all that is to be kept is in the results folder.
        settings = [] if asked.hydra_help else asked.settings  # Hydra's own help knows none of the project's keys
        overrides = [f"hydra.sweep.dir={_literal(nowhere)}", *map(escape, settings)]
        with _command_line([*_flags(asked), *overrides]):
            take()
        return [_checked(one) for one in composed]


def _checked(composed: DictConfig) -> Settings:
    """What was composed, as settings; raises NasRetrainError if it cannot be, or if the bench's file lacks a size."""
    if any(OmegaConf.is_missing(composed.network, key) for key in ("channels", "cells_per_stage")):
        raise NasRetrainError(
            f"bench={composed.bench.name}: set network.channels and network.cells_per_stage in its file."
        )
    dataset = composed.dataset
    if dataset.get("source") and (lacking := [key for key in own.SIZES if key not in dataset]):
        raise NasRetrainError(own.unknown(str(dataset.source), lacking))
    return to_settings(composed, registry.settings_kinds())


def escape(override: str) -> str:
    """An override in Hydra's grammar, in which a path and the names of a group's files are taken as they are."""
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    if name in PATHS and value not in ("", "null"):
        return f"{key}={_literal(value)}"
    if re.fullmatch(RULE, name) and re.fullmatch("[^'\",][^,]*:[^,]*", value):  # several with commas are a sweep
        return f"{key}={_literal(value)}"
    if name in PACKAGES and not re.fullmatch(r"[^][{}]*|\[[^][{}]*\]|\{\}", value):
        raise NasRetrainError(
            f"{override}: the name of a file was expected, or several in brackets: [one,other]. See configs/."
        )
    if name in PACKAGES and re.fullmatch(r"[\w./,\[\] -]+", value):
        # Hydra would read 201 as a number, and takes only ASCII without quotes.
        return f"{key}=" + re.sub(r"[\w./-]+", lambda word: word[0] if word[0] == "null" else _literal(word[0]), value)
    return override


def _literal(text: str) -> str:
    """A text that stays as it is through OmegaConf and through Hydra's grammar."""
    return QuotedString(_plain(text), Quote.single).with_quotes()


def _plain(text: str) -> str:
    """A text that stays as it is through OmegaConf, to which ${ means something."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, wherever they stand, apart from the settings; Hydra itself wants all settings in one place."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--config-name", "-cn", metavar="NAME")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p", metavar="KEY")
    parser.add_argument("--info", "-i", choices=INFORMATION)
    for flag, short in (("help", "h"), ("hydra-help", "hh"), ("resolve", "rs"), ("multirun", "m"), ("run", "r")):
        parser.add_argument(f"--{flag}", f"-{short}", action="store_true")
    given = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        bare = argument in ("--info", "-i") and following not in INFORMATION
        given.append("--info=all" if bare else argument)
    return parser.parse_intermixed_args(given)


def _with_those_beside(asked: argparse.Namespace) -> argparse.Namespace:
    """What was asked for, with the settings of the file BESIDE before those of the command line, which win, and its
    folder as if it was given with --config-dir. Raises NasRetrainError if the file cannot be read."""
    file = Path(BESIDE).absolute()
    if asked.config_dir is not None or not file.is_file():
        return asked
    config = _read(file)
    folder = file.parent / os.path.expanduser(str(config.pop("config_dir", ".")))  # noqa: PTH111 - as below
    given = {override.partition("=")[0].lstrip("+") for override in asked.settings}
    settings = [override for key, override in _overrides(OmegaConf.to_container(config)) if key not in given]
    print(f"note: settings and files of one's own: {printable(str(file))}", file=sys.stderr)  # noqa: T201
    return argparse.Namespace(**vars(asked) | {"config_dir": str(folder), "settings": [*settings, *asked.settings]})


def _overrides(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - what a file holds
    """Each key that a file sets, and how a command line would set it."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _overrides(value, f"{name}.")
        elif name in PATHS or name in PACKAGES:
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
            yield name, f"{name}={'null' if value is None else text}"
        else:
            yield name, f"{name}={_as_typed(value)}"


def _as_typed(value: Any) -> str:  # noqa: ANN401 - what a file holds
    """A value as Hydra's grammar has it."""
    if isinstance(value, str):
        return _literal(value)
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return json.dumps(value)


def _flags(asked: argparse.Namespace) -> list[str]:
    """The flags that are Hydra's, before the settings."""
    flags = []
    for name, value in vars(asked).items():
        if name not in ("settings", "config_dir") and value:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return flags


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Let Hydra find these arguments, and raise what is wrong with them."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        del os.environ["HYDRA_FULL_ERROR"]
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _named_files(overrides: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The files that overrides of groups name by their paths (dataset=folder/mine.yaml), by group/name, and the
    overrides with the names of these files in place of their paths. Raises NasRetrainError for a file that is not
    there."""
    files: dict[str, Path] = {}

    def named(group: str, path: str) -> str:
        file = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - pathlib raises for a user it does not know
        if not file.is_file():
            raise NasRetrainError(f"{group}={path}: there is no such file.")
        _check_name(file, group)
        if files.setdefault(f"{group}/{file.stem}", file) != file:
            raise NasRetrainError(
                f"{group}={path}: another file chosen has its name, which is what it goes by. Rename it."
            )
        return file.stem

    changed = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in PACKAGES:
            group = key.lstrip("+")
            value = re.sub(r"[^][{},]+\.ya?ml", lambda path, group=group: named(group, path[0].strip()), value)  # type: ignore[misc]
            override = f"{key}={value}"
        # Hydra puts what is given for a mapping into it, and has no way to put a list in its place.
        if key == RULES and value.startswith("["):
            changed.append(f"~{RULES}")
            override = f"+{override}"
        changed.append(override)
    return files, changed


@contextmanager
def _own_folder(given: str | None, files: Mapping[str, Path]) -> Iterator[None]:
    """Read configuration files also from a user's folder and these by group/name. Raises NasRetrainError if there is no
    such folder, or if a file has the name of one in configs: only one of the two would be read."""
    theirs = {name: [file] for name, file in files.items()}
    folders = []
    if given is not None:
        folder = Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 - pathlib raises for a user it does not know
        if not folder.is_dir():
            raise NasRetrainError(f"--config-dir {given}: there is no such folder.")
        folders.append(folder)
        for group in ("", *PACKAGES):
            for file in (folder / group).glob("*.yaml"):
                theirs.setdefault(f"{group}/{file.stem}".lstrip("/"), []).append(file)
    for name, same in theirs.items():
        ours = [folder / f"{name}.yaml" for folder in FOLDERS if (folder / f"{name}.yaml").exists()]
        for file, other in zip(same, [*ours, *same[1:]], strict=False):
            if file != other:
                raise NasRetrainError(f"{file} has the name of {other}, which would be read in its place. Rename it.")
    _own_folders.extend(folders)
    _own_files.update(files)
    try:
        yield
    finally:
        _own_folders.clear()
        _own_files.clear()


@contextmanager
def _telling(overrides: Sequence[str]) -> Iterator[None]:
    """Make one NasRetrainError of whatever Hydra and OmegaConf find wrong, also with these overrides."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group's file that is no name
        raise NasRetrainError(_told(error, {escape(override): override for override in overrides})) from error


def _told(error: Exception, as_typed: Mapping[str, str]) -> str:
    """as_typed: the overrides as the user typed them, by what `escape` made of them."""
    said = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_file(error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        typed = as_typed.get(error.override, error.override)
        blank = "" if "=" in typed else ", and one with a blank in it in quotes: ARGS=\"'results_dir=my results'\""
        return f"{typed!r} is no setting that can be read. Settings are given as key=value{blank}."
    if several := re.match(r"Ambiguous value for argument '(.*)' 1\. To use it as a list", said):
        typed = as_typed.get(several[1], several[1])
        key, _, values = typed.partition("=")
        return f"{typed}: several values are given as a list, {key}=[{values}]."
    if isinstance(error, ConfigCompositionException) and (merged := re.match(r"Error merging override (\S+?)=", said)):
        return f"{merged[1]} does not take such a value: what it holds is set one by one, {merged[1]}.<name>=<value>."
    if isinstance(error, ConfigCompositionException) and (unknown := re.match(r"Could not override '(.*?)'", said)):
        return f"{no_such_key(unknown[1].partition('@')[0])}\nSee configs/ for each key's meaning."
    return f"Settings that cannot be used: {said}"


def _no_such_file(name: str) -> str:
    group, _, wanted = name.rpartition("/")
    if not group:
        return f"--config-name {wanted}: there is none of this name. There are {_listed(_files(''))}."
    return f"{group}={wanted}: there is none of this name. There are {_listed(_files(group))}."


def _files(group: str) -> list[str]:
    """The names of a group's files, wherever they lie."""
    named = {file for name, file in _own_files.items() if name.startswith(f"{group}/")}
    lying = {file for folder in (*FOLDERS, *_own_folders) for file in (folder / group).glob("*.yaml")}
    return sorted({file.stem for file in named | lying})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
