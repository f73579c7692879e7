"""device.json: what a device model is, which files belong to it, and what they must answer.

Every file is recorded with its size and sha256, so the digest of device.json alone (:func:`digest_of`) stands
for the whole folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from edgerec_gym.config import FeedConfig
from edgerec_gym.device.budget import RULES
from edgerec_gym.device.engines.engine import ENGINES, Port
from edgerec_gym.documents import SMALL, Document, OpenDocument, read_document, read_object
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import read_bytes
from edgerec_gym.protocol.messages import VERSIONS
from edgerec_gym.spaces import CONTEXT, N_PAGE_VIEW_COLUMNS, exposure_columns, observation_layout

DESCRIPTION, GOLDEN = "device.json", "golden.safetensors"
FILES = (RULES,)  # further files that an agent may read
KIND, SCHEMA_VERSION = "edgerec_gym device model", 2
VERSIONS = VERSIONS  # of the messages that a model written by this version can serve
MOST_PLACES = 1000  # cards in a list; a pool has no more
MOST_BYTES = 2**26  # of a file
EXPOSURES, PAGE_VIEWS = SEQUENCES = ("exposures", "page_views")
CRBAN, SCORER, GENERATOR, EVALUATOR = "crban", "scorer", "generator", "evaluator"
VALUES, ESAN, UPLIFT, DQN, PPO, EDGEREC = "values", "esan", "uplift", "dqn", "ppo", "edgerec"
NETWORKS: dict[str, tuple[str, ...]] = {  # the graphs of each network, besides those of the events
    CRBAN: ("scores",),
    GENERATOR: ("encode", "step"),
    EVALUATOR: ("encode", "extend", "judge"),
    SCORER: ("scores",),
    VALUES: ("values",),
    ESAN: ("matrix",),
    UPLIFT: ("gain",),
    DQN: ("gain",),
    PPO: ("logits",),
    EDGEREC: ("order", "matrix", "gain"),
}

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Bytes = Annotated[int, Meta(ge=1, le=MOST_BYTES)]
Version = Annotated[int, Meta(ge=1, le=10_000)]


class File(Document):
    """A file of the folder."""

    bytes: Bytes
    sha256: Digest


class GraphFile(File):
    """The file of a graph.

    Attributes:
        engine: runs it.
        bits: of its weights.
        inputs, outputs: ports by name.
        tolerance: largest difference from the golden outputs, relative to 1 + their size.
    """

    engine: str
    bits: Literal[4, 8, 16, 32]
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    tolerance: Annotated[float, Meta(gt=0, le=1)]


class Origin(Document):
    """Where a model comes from.

    Attributes:
        run: the trained run: agent, seed, settings, logs.
        teacher: the model that it was distilled from, if any.
        metrics: figures measured on it, by name.
    """

    run: dict[str, Any] = {}
    teacher: dict[str, Any] | None = None
    metrics: dict[str, float] = {}


class Description(OpenDocument):
    """The content of device.json.

    Attributes:
        kind, schema_version: :data:`KIND`, :data:`SCHEMA_VERSION`.
        agent: the exported agent.
        scenario, config: name and feed of the scenario that it serves.
        places: K, maximum number of cards in a list.
        beams: settings of a sequence search's beams.
        settings: what else the agent decides by, by network (:mod:`edgerec_gym.agents.device.settings`).
        graphs: files by `<network>.<graph>`; a file's name is that and its engine's suffix.
        golden: the file of golden inputs and outputs, :data:`GOLDEN`.
        files: further files by name, :data:`FILES`.
        bytes: total size of these files.
        features: digest of the rows and observations that it reads, :func:`feature_digest`.
        protocol: oldest and newest version of the messages that it can serve.
        origin: where it comes from.
        base: digest of the model that this one personalises, if any.
        versions: of the packages that wrote it.
    """

    kind: str
    schema_version: int
    agent: str
    scenario: str
    config: dict[str, Any]
    places: Annotated[int, Meta(ge=1, le=MOST_PLACES)]
    beams: dict[str, Any] | None
    graphs: dict[str, GraphFile]
    golden: File
    bytes: Annotated[int, Meta(ge=1)]
    features: Digest
    protocol: tuple[Version, Version]
    origin: Origin
    settings: dict[str, dict[str, Any]] = {}
    files: dict[str, File] = {}
    base: Digest | None = None
    versions: dict[str, str] = {}


def file_name(graph: str, engine: str) -> str:
    """Name of a graph's file."""
    return f"{graph}.{ENGINES[engine].suffix}"


def feature_digest(config: FeedConfig) -> str:
    """Return the sha256 of what a model reads: keys, shapes and columns of events and observations.

    Phone and cloud compare it: models with the same digest read the same rows.
    """
    layout = observation_layout(config, "joint")
    told = {
        "shapes": {key: part.shape for key, part in layout.items() if key != "action_mask"},
        "embedding_size": config.embedding_size,
        "item_columns": config.item_columns,
        "card_types": config.card_types,
        "context": CONTEXT,
        "exposure_columns": exposure_columns(config),
        "responses": config.responses,
        "page_view_columns": N_PAGE_VIEW_COLUMNS,
        "scales": [config.max_slots, config.page_size],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def digest_of(folder: str | Path) -> str:
    """Return the sha256 of a model's device.json, which records those of all its other files."""
    return hashlib.sha256(read_bytes(Path(folder) / DESCRIPTION, SMALL)).hexdigest()


def read_description(folder: Path) -> Description:
    """Read device.json; InputError says what is wrong with it."""
    file = folder / DESCRIPTION
    content = read_object(file)
    if content.get("kind") != KIND:
        raise InputError(f"{file} does not describe a device model (kind is {shown(content.get('kind'))})")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema version {shown(version)}; this version reads {SCHEMA_VERSION}: write it "
            "again with `edgerec export RUN --out FOLDER`"
        )
    described = read_document(file, Description)
    if not described.graphs:
        raise InputError(f"{file} names no graphs")
    for name, graph in described.graphs.items():
        network, _, part = name.partition(".")
        if part not in (*NETWORKS.get(network, ()), *(SEQUENCES if network in NETWORKS else ())):
            raise InputError(f"{file} names an unknown graph {shown(name)}")
        if graph.engine not in ENGINES:
            raise InputError(
                f"{file}: graphs.{name}.engine is {shown(graph.engine)}; allowed: {', '.join(ENGINES)}"
            )
    for name in described.files:
        if name not in FILES:
            raise InputError(f"{file} names an unknown file {shown(name)}; allowed: {', '.join(FILES)}")
    oldest, newest = described.protocol
    if oldest > VERSIONS[1] or newest < VERSIONS[0] or newest < oldest:
        raise InputError(
            f"{file}: protocol is {oldest} to {newest}; this version speaks {VERSIONS[0]} to {VERSIONS[1]}"
        )
    return described


def read_file(path: Path, recorded: File) -> bytes:
    """Read a file of the folder; InputError if it is not what device.json recorded."""
    content = read_bytes(path, MOST_BYTES)
    if len(content) != recorded.bytes:
        raise InputError(
            f"{path} is corrupted: it has {len(content):,} bytes; {DESCRIPTION} recorded {recorded.bytes:,}"
        )
    if hashlib.sha256(content).hexdigest() != recorded.sha256:
        raise InputError(f"{path} is corrupted: its content differs from what {DESCRIPTION} recorded")
    return content
