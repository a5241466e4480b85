"""What README and docs print: every command is one that works, every file they name is there."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from harness.__main__ import COMMANDS
from harness.run import cli, compare
from harness.settings import checks
from harness.settings.config import CONF, HOME, as_config, register

PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))]
VERBS = set(re.findall(r"^([a-z]+):.*##", (HOME / "Makefile").read_text(), re.MULTILINE))
WRITTEN_BY_THE_READER = {"methods/mine.py", "conf/method/mine.yaml", "conf/task/mine.yaml"}


def commands(start: str) -> list[str]:
    """The printed lines that begin with a word, those in text among them."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
                 for line in block.splitlines()]  # fmt: skip
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        found += [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return sorted({line for line in found if line.split(" ")[0] == start})


SETTINGS = [line for line in commands("evictbench") if not line.startswith("evictbench -")]


def test_there_are_commands() -> None:
    assert len(SETTINGS) > 10
    assert len(commands("make")) > 5


@pytest.mark.parametrize("line", commands("evictbench"))
def test_a_printed_command_is_read(line: str) -> None:
    """Its settings compose and pass the checks; nothing runs."""
    _, *words = shlex.split(line)
    if words[:1] in (["report"], ["merge"], ["published"]):
        return
    if words[:1] == ["compare"]:
        compare.parser().parse_args(words[1:] or ["RUN", "RUN"])
        return
    words = words[1:] if words[:1] and words[0] in COMMANDS else words
    typed = [word for word in words if not word.startswith("-") and "..." not in word]
    if "name=value" in typed:
        return
    if "-m" in words:  # the first job of the sweep
        typed = [word if "[" in word or "{" in word else word.split(",")[0] for word in typed]
        typed = [word for word in typed if not word.startswith("hydra")]
    register()
    cli._name_lmms_tasks(typed)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = as_config(compose("config", [cli._free(word) for word in typed]))
    checks.check(config)


@pytest.mark.parametrize("line", commands("make"))
def test_a_printed_verb_is_in_the_makefile(line: str) -> None:
    words = shlex.split(line)[1:]
    assert next(word for word in words if "=" not in word and not word.startswith("-")) in VERBS


@pytest.mark.parametrize("line", [line for line in commands("python") if line != "python -m"])
def test_a_printed_module_is_there(line: str) -> None:
    _, flag, module, *_ = shlex.split(line)
    assert flag == "-m"
    assert find_spec(module) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place) if place else page
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    named = re.findall(r"`((?:harness|methods|conf|scripts|tests|docs|examples)/[\w./-]+)`",
                       page.read_text(encoding="utf-8"))  # fmt: skip
    for name in set(named) - WRITTEN_BY_THE_READER:
        assert (HOME / name).exists(), name


def test_the_readme_is_short() -> None:
    assert len((HOME / "README.md").read_text(encoding="utf-8").splitlines()) <= 180
