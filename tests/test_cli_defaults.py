"""Defaults that a command's help tells, in brackets, are those of the settings it makes."""

import argparse
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

from paring.cli.main import parser
from paring.recipes.fusion.settings import FusionSettings
from paring.recipes.settings import TuneSettings
from paring.recipes.slim.settings import SlimSettings
from paring.recipes.transfer.settings import TransferSettings

SETTINGS = {"tune": TuneSettings, "slim": SlimSettings, "transfer": TransferSettings, "fuse": FusionSettings}


def told(command: str) -> dict[str, str]:
    """Of each option, what stands in brackets at the end of its help."""
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    found = {}
    for action in commands.choices[command]._actions:
        if match := re.search(r"\(([^()]+)\)$", action.help or ""):
            found[action.dest] = match[1]
    return found


@pytest.mark.parametrize("command", SETTINGS)
def test_numbers_in_help_are_the_defaults(command: str) -> None:
    defaults: dict[str, Any] = {f.name: f.default for f in fields(SETTINGS[command]) if f.default is not MISSING}
    compared = 0
    for name, text in told(command).items():
        number = re.match(r"-?[\d.]+(?:e-?\d+)?(?![\w.])", text)
        if name in defaults and number and isinstance(defaults[name], int | float):
            assert float(number[0]) == defaults[name], f"paring {command} --{name}: help says ({text})"
            compared += 1
    assert compared >= 3, told(command)


def test_every_argument_is_explained() -> None:
    def walk(of: argparse.ArgumentParser, name: str) -> list[str]:
        found = []
        for action in of._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [line for kind, sub in action.choices.items() for line in walk(sub, f"{name} {kind}")]
            elif not action.help:
                found.append(f"{name} {action.dest}")
        return found

    assert walk(parser(), "paring") == []
