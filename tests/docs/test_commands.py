"""Every command that the docs show is run in a plant, or on a list that says why not; its words are known anyway."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.listed import EVERYWHERE, NOT_RUN, RUN
from tests.docs.pages import OWN, PAGES, PROGRAMS, ROOT, SHELL, Block, blocks, commands, within_text
from tests.docs.parsing import check, check_mention
from tests.docs.plant import Plant
from worker.configuration import load_settings

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHOWN = [(block.where, command) for block in BLOCKS if block.language in SHELL for command in commands(block)]
MENTIONED = [(page.name, command) for page in PAGES for command in within_text(page)]
LISTED = [*SHOWN, *(mention for mention in MENTIONED if mention[1].split()[0] not in OWN)]
LANGUAGES = {"js", "mermaid", "python", "redis", "text", "toml", "yaml"}


def test_every_block_is_of_a_language_that_is_tried() -> None:
    """redis and js are those of docs/integrate.md, text nobody types, diagrams are for readers."""
    assert [block.where for block in BLOCKS if block.language not in SHELL | LANGUAGES] == []
    assert {block.where.partition(":")[0] for block in BLOCKS if block.language in {"js", "redis"}} == {
        "docs/integrate.md"
    }


def test_every_command_is_on_a_list_and_every_list_is_of_commands_that_are_shown() -> None:
    unlisted = [f"{where}: {command}" for where, command in LISTED if command not in {**RUN, **NOT_RUN}]
    assert unlisted == [], "run it in the plant by tests/docs/listed.py, or say there why not"
    assert {*RUN, *NOT_RUN} <= {command for _, command in LISTED}
    assert RUN.keys() & NOT_RUN.keys() == set()
    assert [command for command, reason in NOT_RUN.items() if len(reason) < 8] == []


def test_a_command_that_needs_what_a_reader_may_not_have_says_so() -> None:
    for command, run in RUN.items():
        programs = {part.split()[0] for part in command.split(" | ")}
        assert programs <= EVERYWHERE | {run.needs}, command


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_it_is_shown_for(plant: Plant, command: str) -> None:
    says, goes_on, given, needs = RUN[command]
    if needs and shutil.which(needs) is None:
        pytest.skip(f"no {needs} on the PATH")
    if given:
        for word, value in zip(given, plant.part_in_review(), strict=True):
            command = command.replace(word, value)
    assert says in (plant.run_until(command, says) if goes_on else plant.run(command))


def test_a_program_that_a_block_shows_is_found_within_the_text_too() -> None:
    programs = {command.split()[0] for _, command in SHOWN}
    assert {program for program in programs if "/" not in program} <= {*PROGRAMS}


@pytest.mark.parametrize("command", sorted({command for _, command in LISTED}))
def test_the_words_of_a_command_are_known(command: str) -> None:
    check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_words_of_the_commands_within_the_text_are_known(page: Path) -> None:
    wrong = []
    for command in within_text(page):
        try:
            check_mention(command)
        except Exception as error:  # each parser has errors of its own
            wrong.append(f"{command}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "toml"], ids=lambda block: block.where
)
def test_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(block.text)
    load_settings(path)
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.where)
def test_what_is_to_be_added_to_a_yaml_file_can_be(block: Block) -> None:
    added = yaml.safe_load(block.text)
    named = [ROOT / name for name in re.findall(r"`(deploy/\S+\.yml)`", block_before(block))]
    assert added.keys().isdisjoint(yaml.safe_load(named[-1].read_text()))


def block_before(block: Block) -> str:
    """The text of its page before it."""
    page, _, line = block.where.partition(":")
    return "\n".join((ROOT / page).read_text().splitlines()[: int(line) - 1])
