"""Scenario folders: the config, the catalogue and the users fitted on logs.

| file | content |
| --- | --- |
| scenario.json | schema version, config, provenance, fidelity figures, sha256 of the simulator files |
| catalog.parquet | the items as the cloud ships them |
| simulator.onnx | one step of the learned users |
| simulator.safetensors | the weights of every ensemble member, and the table of session starts |
| supply.safetensors | of real logs: what was on offer (cloud/supply.py) |

Nothing is pickled. Loading validates every file and names the one that is wrong.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.supply import SUPPLY_FILE, Supply
from edgerec_gym.config import PRESETS, SCHEMA_VERSION, FeedConfig, SyntheticUserConfig
from edgerec_gym.documents import MOST_BYTES, Document, check_version, config_from, read_document, read_object
from edgerec_gym.errors import InputError, closest, shown
from edgerec_gym.files import check_file, make_folder, write_json

SHIPPED_FOLDER = Path(__file__).parent / "scenarios"
# Names of the scenarios in the package: presets with learned users.
SHIPPED = tuple(name for name in PRESETS if (SHIPPED_FOLDER / name / "scenario.json").is_file())
SIMULATOR_FILES = ("simulator.onnx", "simulator.safetensors")
KIND = "edgerec_gym scenario"

# What a data set may not identify; `logs.json` lists the entries that apply. The simulator then keeps
# the matching inputs at zero and does not fit the matching heads.
UNIDENTIFIED = (
    "position",  # the order within a page is not the order on screen
    "neighbours",  # nor are the cards beside a card known
    "exposure_actions",  # no dwell, scroll or delete on exposed cards
    "page_view_duration",
    "page_view_actions",  # no cart, buy, ...
    "leave",  # the end of a session is not the user's decision
    "categories",
    "cards",  # goods only
    "order_within_page",  # answers within a page are simultaneous: state changes between pages only
)


class Description(Document):
    """The content of scenario.json."""

    kind: str
    schema_version: int
    name: str
    config: dict[str, Any]
    synthetic: dict[str, Any] | None
    unidentified: list[str]
    provenance: dict[str, Any]
    fidelity: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A world to train and evaluate in.

    Attributes:
        name: name for messages and reports.
        config: config of the feed; environments may override single fields.
        catalog: the items.
        synthetic: ground truth that the logs came from; None for real logs.
        unidentified: what the logs do not identify (:data:`UNIDENTIFIED`).
        provenance: origin of the logs, command and seed.
        fidelity: figures of the fitted users on held-out sessions.
        path: the folder; None for a scenario without learned users.
    """

    name: str
    config: FeedConfig
    catalog: Catalog
    synthetic: SyntheticUserConfig | None = None
    unidentified: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    fidelity: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __repr__(self) -> str:
        """Return name, sizes and kinds of users."""
        kinds = {"learned": self.path is not None, "synthetic": self.synthetic is not None}
        users = " and ".join(kind for kind, there in kinds.items() if there) or "none"
        c = self.config
        return (
            f"Scenario({self.name!r}: {len(self.catalog):,} items; pages of {c.page_size} slots, pool of "
            f"{c.pool_size}, {c.n_cards} cards of {len(c.card_types)} types; up to {c.max_slots} slots a "
            f"session; users: {users})"
        )

    def __deepcopy__(self, memo: object) -> Scenario:
        """Share the scenario, which never changes, with the copies of an environment."""
        return self

    def __post_init__(self) -> None:
        """Refuse a catalogue of another world: kernels look items up by their row in both."""
        if self.synthetic is not None and len(self.catalog) != self.synthetic.n_items:
            raise InputError(
                f"synthetic.n_items = {self.synthetic.n_items} differs from the {len(self.catalog)} items of "
                "the catalogue; it must be the catalogue of these users"
            )

    @classmethod
    def load(cls, name_or_path: str | Path) -> Scenario:
        """Load a shipped scenario by name, or any scenario folder; each folder is read once.

        Raises:
            InputError: unknown name, missing or broken file, or wrong schema version.
        """
        folder = Path(name_or_path)
        if str(name_or_path) in SHIPPED:
            folder = SHIPPED_FOLDER / str(name_or_path)
        elif not folder.is_dir():
            raise InputError(
                f"no scenario {str(name_or_path)!r}: neither a folder nor shipped"
                f"{closest(name_or_path, SHIPPED, 'shipped are')}"
            )
        file = folder / "scenario.json"
        stamp = file.stat().st_mtime_ns if file.exists() else 0
        return _load(folder.resolve(), stamp)

    def shifted(self, shift: str) -> Scenario:
        """Return the same feed with other synthetic users (:data:`~edgerec_gym.config.SHIFTS`).

        Raises:
            InputError: unknown shift, or a scenario fitted on real logs.
        """
        if self.synthetic is None:
            raise InputError(f"scenario {self.name!r} was fitted on real logs and has no synthetic users")
        return replace(self, synthetic=self.synthetic.shifted(shift))

    def weakness(self) -> str:
        """Return what `edgerec fit` found weak in rollouts of the learned users; "" if nothing."""
        found = self.fidelity.get("rollouts")
        texts = found.get("weak") if isinstance(found, dict) else None
        return "; ".join(map(str, texts)) if isinstance(texts, list) else ""

    def save(self, folder: str | Path) -> None:
        """Write the catalogue, then scenario.json; the folder must already hold the simulator files."""
        folder = make_folder(folder)
        self.catalog.save(folder / "catalog.parquet", self.config.item_columns)
        files = [*SIMULATOR_FILES]
        if self.catalog.supply is not None:
            self.catalog.supply.save(folder / SUPPLY_FILE)
            files.append(SUPPLY_FILE)
        write_json(
            folder / "scenario.json",
            {
                "kind": KIND,
                "schema_version": SCHEMA_VERSION,
                "name": self.name,
                "config": self.config.to_dict(),
                "synthetic": None if self.synthetic is None else self.synthetic.to_dict(),
                "unidentified": list(self.unidentified),
                "provenance": self.provenance,
                "fidelity": self.fidelity,
                "sha256": {name: _sha256(folder / name) for name in files},
            },
        )

    def simulator_files(self) -> tuple[Path, Path]:
        """Return the checked paths of simulator.onnx and simulator.safetensors."""
        if self.path is None:
            raise InputError(f"scenario {self.name!r} has no learned users: fit them on logs (edgerec fit)")
        recorded = _describe(self.path / "scenario.json").sha256
        for name in SIMULATOR_FILES:
            file = self.path / name
            check_file(file, MOST_BYTES)
            _check_recorded(file, recorded)
        return self.path / SIMULATOR_FILES[0], self.path / SIMULATOR_FILES[1]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_recorded(file: Path, recorded: dict[str, str]) -> None:
    if _sha256(file) != recorded.get(file.name):
        raise InputError(f"{file} is corrupted: its content differs from what scenario.json recorded")


@lru_cache(maxsize=16)
def _load(folder: Path, stamp: int) -> Scenario:
    file = folder / "scenario.json"
    described = _describe(file)
    config = config_from(FeedConfig, described.config, file, "config")
    users = None
    if described.synthetic is not None:
        users = config_from(SyntheticUserConfig, described.synthetic, file, "synthetic")
    catalog = Catalog.load(folder / "catalog.parquet", config.embedding_size, config.item_columns)
    if catalog.card_type.max() >= config.n_types:
        raise InputError(
            f"{folder / 'catalog.parquet'}: card_type {catalog.card_type.max()} is not one of the feed's "
            f"0 to {config.n_types - 1}"
        )
    if SUPPLY_FILE in described.sha256:
        check_file(folder / SUPPLY_FILE, MOST_BYTES)
        _check_recorded(folder / SUPPLY_FILE, described.sha256)
        supply = Supply.load(folder / SUPPLY_FILE)
        try:
            catalog = catalog.with_supply(supply)
        except InputError as error:
            raise InputError(f"{folder / SUPPLY_FILE}: {error}") from None
    try:
        return Scenario(
            name=described.name,
            config=config,
            catalog=catalog,
            synthetic=users,
            unidentified=tuple(described.unidentified),
            provenance=described.provenance,
            fidelity=described.fidelity,
            path=folder,
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _describe(file: Path) -> Description:
    """Read scenario.json; what it is comes first, as a file of another kind lacks all else."""
    kind = read_object(file, most_bytes=MOST_BYTES).get("kind")
    if kind != KIND:
        raise InputError(f"{file} does not describe a scenario (kind is {shown(kind)})")
    described = read_document(file, Description, most_bytes=MOST_BYTES)
    check_version(file, described.schema_version, SCHEMA_VERSION)
    for name in described.unidentified:
        if name not in UNIDENTIFIED:
            raise InputError(f"{file}: unidentified names {shown(name)}; known are {', '.join(UNIDENTIFIED)}")
    return described
