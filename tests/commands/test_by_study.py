"""The commands of studies."""

from __future__ import annotations

from functools import partial

from nas_retrain.commands import by_study
from nas_retrain.commands.command_line import COMMANDS
from nas_retrain.plan.study import studies


def test_each_study_that_waits_for_a_command_has_one() -> None:
    asked = {name: one.args[0] for name, one in vars(by_study).items() if isinstance(one, partial)}
    assert set(asked.values()) == {name for name, study in studies().items() if study.by_command}
    for name in asked:
        assert COMMANDS[name].load() is getattr(by_study, name)
