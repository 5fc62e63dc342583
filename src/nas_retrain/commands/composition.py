"""How Hydra composes settings from configs/, from a user's own folder of such files and from key=value.

Three things are not left to Hydra. Where a file's keys go is told by its folder and its name, and not by a line in the
file that a copy would keep. Paths are taken as they are, whatever Hydra's grammar makes of their characters. And what
Hydra finds wrong is one NasRetrainError in the words of this project.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings, no_such_key, to_settings

VERSION_BASE = "1.3"

FOLDERS = (CONFIGS, ROOT / "slurm")
"""Where the project's own files are: slurm/site is a group beside those in configs."""

PACKAGES = {
    "bench": "_global_",
    "dataset": "dataset",
    "recipe": "recipes.{name}",
    "launcher": "launcher",
    "site": "launcher",
    "profile": "_global_",
    "size": "_global_",
    "verification": "_global_",
}
"""Where the keys of a group's files go. A recipe's go below its file's name."""

INFORMATION = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

PATHS = ("results_dir", "data_dir", "original", "retrained")
"""The keys whose values are paths."""

_own_folders: list[Path] = []
"""The folder given with --config-dir, while a composition with it lasts: Hydra makes its plugins without arguments."""


class _Files(ConfigSource):
    """A folder of configuration files. Its path is percent-encoded, so that no character of it means anything to
    Hydra or OmegaConf."""

    @staticmethod
    def scheme() -> str:
        return "nas-retrain"

    def _path(self, name: str) -> Path:
        return Path(unquote(self.path)) / name

    def _file(self, name: str) -> Path:
        return self._path(f"{name.removesuffix('.yaml')}.yaml")

    def available(self) -> bool:
        return self._path("").is_dir()

    def is_group(self, config_path: str) -> bool:
        return self._path(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        inside = sorted(self._path(config_path).iterdir())
        files = [path.stem for path in inside if path.suffix == ".yaml" and path.is_file()]
        folders = [path.name for path in inside if path.is_dir()]
        wanted = {ObjectType.CONFIG: files, ObjectType.GROUP: folders}
        return files + folders if results_filter is None else wanted[results_filter]

    def load_config(self, config_path: str) -> ConfigResult:
        """What a file holds, to be put where its folder and name say. Raises NasRetrainError naming the file."""
        file = self._file(config_path)
        try:
            text = file.read_text(encoding="utf-8")
            config = OmegaConf.create(text)
        except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
            raise NasRetrainError(f"{file} cannot be read as YAML: {error}") from error
        if not isinstance(config, DictConfig):
            raise NasRetrainError(f"{file} holds a list; lines like 'key: value' were expected.")
        header = self._get_header_dict(text[:512])
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        if name and group in PACKAGES:
            if "/" in name:
                raise NasRetrainError(f"{file}: files of {group} lie in the folder {group} itself. Move it there.")
            header = {"package": PACKAGES[group].format(name=name)}
        if group == "recipe":
            _check_recipe(file, config)
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)


def _check_recipe(file: Path, config: DictConfig) -> None:
    if not re.fullmatch(r"[\w-]+", file.stem):
        raise NasRetrainError(f"{file}: a recipe has its file's name, of letters, digits, - and _ only. Rename it.")
    # What a recipe's file builds on (defaults: [benchmark]) goes where its own keys go.
    for number, base in enumerate(config.get("defaults", [])):
        if isinstance(base, str) and base != "_self_" and "@" not in base:
            config.defaults[number] = f"{base}@_here_"


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
    with _telling(overrides), hydra.initialize(config_path=None, version_base=VERSION_BASE):
        return to_settings(
            hydra.compose(config, overrides=[escape(override) for override in overrides]), registry.settings_kinds()
        )


def from_command_line(arguments: Sequence[str], config: str = "config") -> list[Settings]:
    """The settings that a command line asks for: one for each run of a sweep, none if something was only to be shown.

    Raises NasRetrainError for what cannot be used and SystemExit for flags that there are not.
    """
    asked = _parse(arguments)
    composed: list[DictConfig] = []

    @hydra.main(config_path=None, config_name=config, version_base=VERSION_BASE)
    def take(one: DictConfig) -> None:
        composed.append(one)

    with tempfile.TemporaryDirectory() as nowhere, _own_folder(asked.config_dir), _telling(asked.settings):
        # Hydra writes a file about each sweep; all that is to be kept is in the results folder.
        settings = [] if asked.hydra_help else asked.settings  # Hydra's own help knows none of the project's keys
        overrides = [f"hydra.sweep.dir={_literal(nowhere)}", *map(escape, settings)]
        with _command_line([*_flags(asked), *overrides]):
            take()
        return [to_settings(one, registry.settings_kinds()) for one in composed]


def escape(override: str) -> str:
    """An override in Hydra's grammar, in which a path and the names of a group's files are taken as they are."""
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    if name in PATHS and value not in ("", "null"):
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
    """A text that stays as it is through OmegaConf, to which ${ means something, and through Hydra's grammar."""
    plain = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    return QuotedString(plain, Quote.single).with_quotes()


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


@contextmanager
def _own_folder(given: str | None) -> Iterator[None]:
    """Read configuration files also from a user's folder. Raises NasRetrainError if it is none, or if a file there has
    the name of one in configs: only one of the two would be read."""
    if given is None:
        yield
        return
    folder = Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 - pathlib raises for a user it does not know
    if not folder.is_dir():
        raise NasRetrainError(f"--config-dir {given}: there is no such folder.")
    for ours in FOLDERS:
        for group in ("", *PACKAGES):
            for file in (folder / group).glob("*.yaml"):
                if (ours / group / file.name).exists():
                    raise NasRetrainError(
                        f"{file} has the name of {ours / group / file.name}, which would be read in its place. "
                        "Rename it."
                    )
    _own_folders.append(folder)
    try:
        yield
    finally:
        _own_folders.remove(folder)


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
    if isinstance(error, ConfigCompositionException) and (unknown := re.match(r"Could not override '(.*?)'", said)):
        return f"{no_such_key(unknown[1].partition('@')[0])}\nSee configs/ for each key's meaning."
    return f"Settings that cannot be used: {said}"


def _no_such_file(name: str) -> str:
    group, _, wanted = name.rpartition("/")
    if not group:
        return f"--config-name {wanted}: there is none of this name. There are {_listed(_files(''))}."
    bench, _, profile = wanted.partition("_")
    profiles = [file.removeprefix(f"{bench}_") for file in _files(group) if file.startswith(f"{bench}_")]
    if group in ("size", "verification") and profiles:  # a bench's under a profile, both of which the user chose
        return f"profile={profile}: bench {bench} has no such profile. It has {_listed(profiles)}."
    return f"{group}={wanted}: there is none of this name. There are {_listed(_files(group))}."


def _files(group: str) -> list[str]:
    """The names of a group's files, wherever they lie."""
    return sorted(file.stem for folder in (*FOLDERS, *_own_folders) for file in (folder / group).glob("*.yaml"))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
