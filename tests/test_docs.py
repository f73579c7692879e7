"""The documentation site builds without a warning, and what its pages show runs as it stands."""

import os
import re
import subprocess
import sys

import pytest
from places import ROOT

PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not {"generated", "_build"} & set(path.parts)
}
README = "../README.md"
WITH_COMMANDS = PAGES | {README: (ROOT / "README.md").read_text(encoding="utf-8")}
WITH_SNIPPETS = [name for name, text in PAGES.items() if "```python" in text]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_snippets_of_a_page_run(name, tmp_path, monkeypatch):
    """All snippets of a page, one after the other, but for the length of the training."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[name], flags=re.DOTALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    short = code.replace("100_000", "512")
    assert "model.learn" not in code or short != code
    exec(compile(short, name, "exec"), {})


def test_a_table_of_your_own(tmp_path):
    """The shell example runs as it stands, with this Python and this package."""
    (script,) = re.findall(r"```sh\n(.*?)```", PAGES["how-to/fit_your_logs.md"], flags=re.DOTALL)
    names = f'python() {{ "{sys.executable}" "$@"; }}\nedgerec() {{ python -m edgerec_gym.cli "$@"; }}\n'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-e", "-c", names + script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/my-users/scenario.json").is_file()
    assert "gain over keep" in result.stdout


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name):
    for link in LINK.findall(PAGES[name]):
        if not link.startswith("http"):
            assert (ROOT / "docs" / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_of_a_page_exist(name):
    """Every `edgerec` line of a page, and of the README, names a command and options that there are."""
    from typer.main import get_command

    from edgerec_gym.cli import app

    for line in re.findall(r"^edgerec .*$", WITH_COMMANDS[name], flags=re.MULTILINE):
        words, command = line.split("#")[0].split()[1:], get_command(app)
        while hasattr(command, "commands") and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "ids.html").read_text(encoding="utf-8")
    assert "Discrete(109)" in page and "edgerec bench rerank" in (
        tmp_path / "site" / "reference" / "commands.html"
    ).read_text(encoding="utf-8")
