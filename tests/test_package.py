"""What an installation without extras can do, and where the agents live."""

import subprocess
import sys

import pytest
from places import ROOT

WITHOUT_EXTRAS = """
import sys
for name in "torch stable_baselines3 sb3_contrib matplotlib sklearn scipy onnx lightgbm".split():
    sys.modules[name] = None  # as if it were not installed
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_default_environment_plays_without_any_extra():
    result = run(
        WITHOUT_EXTRAS
        + """
import gymnasium as gym, edgerec_gym
from edgerec_gym.agents.baselines import Keep
env = gym.make("EdgeFeed-v0")
observation, info = env.reset(seed=0)
for _ in range(60):
    observation, reward, terminated, truncated, info = env.step(int(observation["action_mask"].argmax()))
    if terminated or truncated:
        observation, info = env.reset()
print("played", env.unwrapped.users.name)
"""
    )
    assert result.stdout == "played learned\n", result.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train --out {tmp}/run --scenario lite", "train"),
        ("train --out {tmp}/run --agent crban --logs {tmp}", "train"),
        ("fit {tmp} --out {tmp}/scenario", "train"),
        ("demo --out {tmp}/demo", "train"),
        ("fidelity lite {tmp}", "train"),
        ("export-logs {tmp} --out {tmp}/feed-v0", "train"),
        ("off-policy {tmp} --policy keep", "train"),
    ],
)
def test_a_missing_extra_is_named(command, extra, tmp_path):
    arguments = command.format(tmp=tmp_path).split()
    result = run(
        WITHOUT_EXTRAS + f"sys.argv = ['edgerec', *{arguments!r}]\nfrom edgerec_gym.cli import main\nmain()"
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and f"pip install 'edgerec_gym[{extra}]'" in result.stderr


def test_import_loads_nothing_heavy():
    result = run("import sys, edgerec_gym; print(sorted({'torch', 'numba', 'polars'} & set(sys.modules)))")
    assert result.stdout == "[]\n", result.stderr


def test_agents_have_one_name():
    result = run("import agents")
    assert "import edgerec_gym.agents, not agents" in result.stderr


def test_agents_link_points_to_the_folder():
    link = ROOT / "edgerec_gym" / "agents"
    assert link.resolve() == (ROOT / "agents").resolve()
