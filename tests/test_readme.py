"""The README's Python snippets run as they stand, but for the length of the training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["play", "train", "perception", "batch"])
def test_snippet(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = snippet.replace("100_000", "4_096")
    assert "model.learn" not in snippet or short != snippet
    exec(compile(short, "README.md", "exec"), {})


def test_a_table_of_your_own(tmp_path):
    """The shell example runs as it stands, with this Python and this package."""
    (script,) = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    names = f'python() {{ "{sys.executable}" "$@"; }}\nedgerec() {{ python -m edgerec_gym.cli "$@"; }}\n'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(
        ["bash", "-e", "-c", names + script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/my-users/scenario.json").is_file()
    assert "gain over keep" in result.stdout


def test_what_the_readme_points_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    for link in links:
        if not link.startswith("http"):
            assert (Path(__file__).parent.parent / link).exists(), link
