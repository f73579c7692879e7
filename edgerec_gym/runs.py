"""Run folders: the results of a training run, read and written without torch.

| file | content |
| --- | --- |
| policy.json | the *record*: agent, track, sizes, hyper-parameters, steps, seed, versions |
| policy.safetensors | the parameters |
| checkpoints/step-N/ | the same two files, and the state needed to resume |

The record is written last, so a folder that has one holds a finished run. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from edgerec_gym import __version__
from edgerec_gym.config import SCHEMA_VERSION, Config, FeedConfig
from edgerec_gym.documents import MOST_BYTES, OpenDocument, read_object
from edgerec_gym.errors import InputError
from edgerec_gym.files import remove_leftovers, write_json
from edgerec_gym.spaces import MODEL_KEYS, observation_layout

RECORD = "policy.json"
PARAMETERS = "policy.safetensors"
CHECKPOINTS = "checkpoints"
Count = Annotated[int, Meta(ge=0)]
Number = float | None  # undefined ones are null


class Record(OpenDocument):
    """The content of policy.json that is read; an agent may record more."""

    agent: str
    track: str
    hyper: dict[str, Any]
    sizes: dict[str, Count | list[Count]]
    steps: Count
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    updates: Count = 0
    num_envs: Annotated[int, Meta(ge=1)] = 1
    id: str = ""
    scenario: str | dict[str, Any] | None = None
    scenario_folder: str | None = None  # of a scenario that is not shipped
    users: str | None = None
    members: list[Count] | None = None
    logs: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    network: dict[str, Any] = {}
    compression: dict[str, Any] = {}
    based_on: dict[str, Any] | list[Any] = {}
    identified: list[bool] = []
    rules: str = ""
    price: float = 0.0
    quantiles: list[float] = []
    gauc: list[Number] = []
    ndcg: list[Number] = []
    loss: list[Number] = []
    distance: list[Number] = []
    residual_loss: list[Number] = []
    reward: list[Number] = []
    teaching_loss: list[Number] = []
    held_out: list[dict[str, Number]] = []
    compare: dict[str, Any] = {}
    figures: dict[str, Any] = {}


class Run(NamedTuple):
    """A run that can be loaded.

    Attributes:
        folder: folder of the parameters: the run's own if it is finished, else its last checkpoint.
        record: content of policy.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def agent(self) -> str:
        """Name of the agent that was trained."""
        return str(self.record["agent"])

    @property
    def parameters(self) -> Path:
        """Path of the parameter file."""
        return self.folder / PARAMETERS

    @property
    def root(self) -> Path:
        """The run's own folder, even if this is a checkpoint."""
        return self.folder.parent.parent if self.folder.parent.name == CHECKPOINTS else self.folder


def read_run(folder: str | Path | Run) -> Run:
    """Read a run: the finished one, else its last checkpoint; a Run is returned as it is.

    Raises:
        InputError: the folder holds no run, or its record lacks a required key.
    """
    if isinstance(folder, Run):
        return folder
    run = Path(folder)
    if not is_finished(run):
        complete = checkpoints(run)
        if not complete:
            raise InputError(f"{run} holds no trained policy: no {RECORD} and no complete checkpoint")
        run = complete[-1]
    return Run(run, read_record(run / RECORD))


def read_record(path: Path) -> dict[str, Any]:
    """Read a policy.json; InputError names the file and the field that is wrong."""
    return read_object(path, Record, most_bytes=MOST_BYTES)


def is_finished(run: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (run / RECORD).is_file()


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Write policy.json, after the parameters: it marks the run as finished."""
    write_json(run / RECORD, record)


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if is_finished(path))


def find_start(run: Path, record: dict[str, Any], resume: bool, fixed: Sequence[str]) -> Path | None:
    """Return the checkpoint to resume from, if there is one.

    Args:
        run: the run's folder.
        record: record of the run about to start.
        resume: False refuses a folder that already holds a run.
        fixed: keys of the record that a resumed run must share.

    Raises:
        InputError: `run` holds another run, or would be overwritten.
    """
    remove_leftovers(run / CHECKPOINTS)
    complete = checkpoints(run)
    if not resume:
        if complete or is_finished(run):
            raise InputError(f"{run} already holds a training run: resume it, or choose another folder")
        return None
    if not complete:
        return None
    earlier = read_run(complete[-1]).record
    for key in fixed:
        was, now = earlier.get(key), record.get(key)
        if was != now:
            raise InputError(f"cannot resume {run}: {key} was {was}, now it is {now}")
    return complete[-1]


def check_seed(seed: int) -> None:
    """Raise InputError unless `seed` is a valid seed of a run."""
    if not 0 <= seed < 2**31:
        raise InputError(f"seed = {seed} is out of range; allowed: 0 to {2**31 - 1}")


def new_record(
    agent: str, track: str, *, seed: int, settings: Config, sizes: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Return the content of policy.json before the first step; `more` holds further keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "agent": agent,
        "track": track,
        **more,
        "seed": seed,
        "hyper": settings.to_dict(),
        "sizes": sizes,
        "steps": 0,
        "versions": versions("torch", "numpy"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of this package and of others, for records."""
    return {"edgerec_gym": __version__} | {name: version(name) for name in packages}


def model_sizes(config: FeedConfig) -> dict[str, list[int]]:
    """Return the shapes of the observation keys that a model reads; a run only fits these sizes."""
    layout = observation_layout(config, "joint")
    return {key: list(part.shape) for key, part in layout.items() if key in MODEL_KEYS}


def check_sizes(run: Run, sizes: FeedConfig | dict[str, Any]) -> None:
    """Raise InputError if a run was trained for observations of other sizes than a feed's.

    Args:
        run: the trained run.
        sizes: the feed's config, or the `sizes` of a record.
    """
    trained = run.record["sizes"]
    for key, size in (model_sizes(sizes) if isinstance(sizes, FeedConfig) else sizes).items():
        if trained.get(key) != size:
            raise InputError(
                f"{run.folder} was trained with {key} {trained.get(key)}; this environment has {size}"
            )


def check_agent(run: Run, allowed: Sequence[str]) -> None:
    """Raise InputError if a folder holds another agent's run."""
    if run.agent not in allowed:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}; allowed: {', '.join(allowed)}")
