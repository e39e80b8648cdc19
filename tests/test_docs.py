"""The command line explains itself, and the README knows every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qupath_ext.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands below and including one, with the words that call them."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, name
            yield from walk(child, (*path, name))


COMMANDS = dict(walk(main, ("qupath-ext",)))
LEAVES = [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)]


def readme_examples() -> list[list[str]]:
    """Return the words of each ``qupath-ext`` call in a code block of the README."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split() for line in lines if line.startswith("qupath-ext ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    assert (COMMANDS[name].help or "").strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    options = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not (option.help or "").strip()] == []


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_stands_in_the_readme(name: str) -> None:
    assert f"`{name}" in README or any(" ".join(words).startswith(name) for words in readme_examples())


@pytest.mark.parametrize("words", readme_examples(), ids=" ".join)
def test_readme_examples_use_commands_and_options_that_exist(words: list[str]) -> None:
    name = max((known for known in COMMANDS if " ".join(words).startswith(known)), key=len)
    known = {opt for option in COMMANDS[name].params for opt in (*option.opts, *option.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("-")}
    assert used <= known | {"--help"}


def test_the_readme_has_examples() -> None:
    assert len(readme_examples()) >= len(LEAVES)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "projects/README.md", "projects/ki67/README.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()] == []


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    tree = [
        path
        for package in ("pyhisto", "qupath_ext")
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in tree} - {"__init__.py"}
    lines = re.findall(r"^    ((?:\w+(?:\.py|/)(?:, )?)+) ", text, flags=re.MULTILINE)
    listed = {name for line in lines for name in line.split(", ")}
    assert listed == names


def test_architecture_fits_on_two_pages() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines()) <= 110
