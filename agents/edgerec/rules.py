"""The rules of the EdgeRec agent: a small TOML file that an operator reads and edits.

A rule can only make the feed's own rules stricter: what the environment forbids stays forbidden.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerec_gym.config import Config, FeedConfig, bounded, later
from edgerec_gym.device.budget import MOST_RULES, RULES, Budget
from edgerec_gym.documents import read_object
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import atomic_path

FILE = RULES  # in a run's folder
Switch = Literal[True, False]


@dataclass(frozen=True)
class Decide(Config):
    """Which decisions the agent takes; the others stay with the cloud."""

    order: Switch = True  # re-rank the pool
    insert: Switch = True  # place cards
    request: Switch = True  # request pages
    joint: Switch = False  # choose among several whole plans by their learned value


@dataclass(frozen=True)
class Insert(Config):
    """Insertions. Lists hold one number per card type; an empty one takes the feed's own numbers."""

    price: float = bounded(0.0, -1e3, 1e3)  # reward units that a card must earn beyond what it displaces
    share_caps: tuple[float, ...] = bounded((), 0.0, 1.0)  # maximum share of the slots
    gaps: tuple[int, ...] = bounded((), 0, 1000)  # minimum number of slots between cards of a type
    first_slots: tuple[int, ...] = bounded((), 0, 10_000)  # first slot that a type may take
    solver: Literal["exact", "beam", "greedy", "density"] = "exact"


@dataclass(frozen=True)
class Request(Config):
    """Page requests."""

    price: float | None = bounded(
        None, -1e3, 1e3
    )  # reward that a request must gain; left out: the feed's cost of one
    cool_down: int | None = bounded(None, 0, 10_000)  # slots between requests; left out: a page's time
    per_session: int | None = bounded(None, 0, 10_000)  # maximum number in a session; left out: no limit


@dataclass(frozen=True)
class Triggers(Config):
    """What makes the agent plan anew; a new page and the end of a plan always do."""

    every_slot: Switch = False
    click: Switch = True
    deletion: Switch = True
    quiet_exposures: int | None = bounded(4, 1, 10_000)  # exposures without a click; left out: never
    # The others are off where they are left out.
    long_dwell: float | None = later(None, range=(0.01, 100_000.0))  # seconds, lower edge of the dwell bucket
    fast_scroll: float | None = later(None, range=(0.01, 1.0))  # scroll speed
    category_repeat: int | None = later(None, range=(2, 10_000))  # cards of one category without a click
    same_category: float = later(0.6, range=(-1.0, 1.0))  # cosine of two embeddings of one category
    after_seconds: float | None = later(None, range=(0.01, 100_000.0))  # since the last plan
    request_uplift: float | None = later(None, range=(-1e3, 1e3))  # estimated gain of a page, reward units
    # Minimum slots from one firing of a trigger to its next, by the trigger's name; left out: 0
    cool_downs: tuple[tuple[str, int], ...] = later((), named=True, range=(0, 10_000))

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = []
        for name, slots in self.cool_downs:
            if name not in TRIGGERS:
                raise InputError(
                    f"Triggers.cool_downs names {shown(name)}; triggers are {', '.join(TRIGGERS)}"
                )
            if slots != int(slots):
                raise InputError(
                    f"Triggers.cool_downs[{name!r}] must be a whole number of slots, got {slots}"
                )
            whole.append((name, int(slots)))
        object.__setattr__(self, "cool_downs", tuple(whole))


OPTIONAL = (  # triggers that `false` switches off
    "quiet_exposures",
    "long_dwell",
    "fast_scroll",
    "category_repeat",
    "after_seconds",
    "request_uplift",
)
TRIGGERS = ("every_slot", "click", "deletion", *OPTIONAL)


@dataclass(frozen=True)
class Rules(Config):
    """All rules; one field per section of the file."""

    decide: Decide = field(default_factory=Decide)
    insert: Insert = field(default_factory=Insert)
    request: Request = field(default_factory=Request)
    triggers: Triggers = field(default_factory=Triggers)
    budget: Budget = field(default_factory=Budget)  # of a decision on the device

    def feed(self, config: FeedConfig) -> FeedConfig:
        """The feed under these rules, for planning: caps, gaps and first slots where they are stricter.

        Raises:
            InputError: not one number per card type, or a gap beyond a page, which the device cannot observe.
        """
        chosen: dict[str, tuple[Any, ...]] = {}
        for name, stricter in (("share_caps", min), ("gaps", max), ("first_slots", max)):
            own, feeds = getattr(self.insert, name), getattr(config, name)
            if own and len(own) != len(feeds):
                raise InputError(
                    f"[insert] {name} has {len(own)} entries; it needs one for each of the {len(feeds)} card "
                    f"types {', '.join(config.card_types)}, or none"
                )
            chosen[name] = tuple(map(stricter, own, feeds)) if own else feeds
        if max(self.insert.gaps, default=0) > config.page_size:
            raise InputError(
                f"[insert] gaps = {list(self.insert.gaps)}; allowed: 0 to {config.page_size}, the page size"
            )
        return config.replace(**chosen)

    def charge(self, config: FeedConfig) -> float:
        """Reward that a request must gain."""
        return -config.reward.request if self.request.price is None else self.request.price

    def cool_down(self, config: FeedConfig) -> int:
        """Minimum slots from one request to the next; by default the time that an automatic page gets."""
        chosen = self.request.cool_down
        return config.page_size - config.request_latency if chosen is None else chosen

    def to_toml(self) -> str:
        """Text of a rules file; fields without a value are left out."""
        lines = ["# Rules of the EdgeRec agent. What is left out takes its default, mostly the feed's own."]
        for section, values in self.to_dict().items():
            lines += ["", f"[{section}]"]
            lines += [f"{name} = {_toml(value)}" for name, value in values.items() if value not in (None, ())]
            if section == "triggers" and values["quiet_exposures"] is None:
                lines.append("quiet_exposures = false")
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path) -> None:
        """Write a rules file."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_toml(), encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {_toml(entry)}' for name, entry in value.items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def rules_from(values: dict[str, Any], where: str = "rules") -> Rules:
    """Build rules from a plain dict of sections.

    Args:
        values: {section: {field: value}}.
        where: name of the source in errors.

    Raises:
        InputError: a bad value; names the place, the section, the field and what is allowed.
    """
    sections = {f.name: f.default_factory for f in dataclasses.fields(Rules)}
    found: dict[str, Any] = {}
    for section, content in values.items():
        if section not in sections:
            raise InputError(f"{where}: unknown section [{section[:80]}]; sections are {', '.join(sections)}")
        if not isinstance(content, dict):
            raise InputError(f"{where}: {section} must be a section, [{section}], got {shown(content)}")
        content = dict(content)
        if section == "triggers":
            content |= {name: None for name in OPTIONAL if content.get(name) is False}
        kind: Any = sections[section]
        try:
            found[section] = kind.from_dict(content)
        except InputError as error:
            text = str(error).replace(f"{kind.__name__}.", f"[{section}] ")
            text = text.replace("one of True, False", "true or false")
            raise InputError(f"{where}: {text.replace(f'{kind.__name__} has', f'[{section}] has')}") from None
    return Rules(**found)


def load_rules(path: str | Path) -> Rules:
    """Read a rules file; InputError names the file, the field and what is allowed."""
    return rules_from(read_object(path, most_bytes=MOST_RULES, toml=True), str(path))


def read_triggers(folder: Path) -> Triggers | None:
    """Return the triggers of a device model, None unless its rules.toml has a section for them.

    Raises:
        InputError: a bad rules file; names the file, the field and what is allowed.
    """
    file = folder / FILE
    if not file.is_file() or "triggers" not in read_object(file, most_bytes=MOST_RULES, toml=True):
        return None
    return load_rules(file).triggers
