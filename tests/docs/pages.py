"""What stands in the docs: fenced blocks, the commands in them, and the commands within the text."""

import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"", "bash", "sh", "console", "shell"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s{2,})#.*$|^#.*$")
OWN = ("mhpc-worker", "mhpc", "make", "control")  # the last stands for `mhpc-worker control` in tables of its commands
PROGRAMS = (
    *OWN, "cp", "curl", "docker", "git", "install", "journalctl", "kubectl", "node", "npm", "openssl", "pip", "printf",
    "promtool", "pytest", "python", "python3", "redis-cli", "redis-server", "sed", "systemctl", "systemd-analyze",
    "tar", "torchrun",
)  # fmt: skip
WITHIN = re.compile(rf"(?<!`)`((?:[A-Z_]+=\S+ )*(?:/\S+/)?(?:{'|'.join(PROGRAMS)}) [^`\n]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block of a page; `where` is the page with the number of its first line."""

    where: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('text')) + 1}",
            match["language"],
            dedent(match["text"]),
        )
        for match in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and prompts left out, spaces made one."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = (COMMENT.sub("", line).removeprefix("$ ").strip() for line in joined.splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def within_text(page: Path) -> list[str]:
    """The commands between backquotes outside of blocks, each with what it is given."""
    return WITHIN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
