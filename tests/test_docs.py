"""The documentation site builds without a warning, and what its pages show runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not {"generated", "_build"} & set(path.parts)
}
WITH_SNIPPETS = [name for name, text in PAGES.items() if "```python" in text]


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_snippets_of_a_page_run(name, tmp_path, monkeypatch):
    """All snippets of a page, one after the other, but for the length of the training."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[name], flags=re.DOTALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(compile(code.replace("100_000", "512"), name, "exec"), {})


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_exist(name):
    """Every `edgerec` line of a page names a command and options that there are."""
    from typer.main import get_command

    from edgerec_gym.cli import app

    for line in re.findall(r"^edgerec .*$", PAGES[name], flags=re.MULTILINE):
        words, command = line.split("#")[0].split()[1:], get_command(app)
        while hasattr(command, "commands"):
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
