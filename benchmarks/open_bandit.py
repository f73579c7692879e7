"""Off-policy estimates on real clicks: the Open Bandit Dataset (Saito et al., NeurIPS 2021, datasets track).

ZOZOTOWN showed fashion items under two policies in the same week: uniformly at random, and Bernoulli Thompson
sampling (BTS). The random log gives an estimate of BTS's click rate, and BTS's own log gives the truth. BTS
changes with time; its probabilities at a position are its frequencies there, in its own log.

Both are imported by `mappings/open_bandit_men_random.json`. Its `action` is the item's number in a campaign.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgerec_gym.agents.data.logged_decisions import read_decisions
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.off_policy import ESTIMATORS, LoggedDecisions, off_policy_estimates
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.logs.looking_back import USER_COLUMNS
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table import import_table
from edgerec_gym.policy import Observation

MAPPING = Path(__file__).parent / "mappings" / "open_bandit_men_random.json"
CAMPAIGNS = ("all", "men", "women")
POSITIONS = (1, 2, 3)


def import_campaign(data: Path, policy: str, campaign: str, folder: Path) -> LogReader:
    """Import what a policy showed in a campaign from exposures.csv.gz."""
    table = data / "exposures.csv.gz"
    if not table.is_file():
        raise InputError(f"{table} does not exist")
    make_folder(folder)
    rows = [f"policy = {policy}", f"campaign = {campaign}"]
    write_json(folder / "mapping.json", read_json(MAPPING) | {"rows": rows})
    import_table(table, folder / "mapping.json", folder / "logs")
    return LogReader(folder / "logs")


class Frequencies:
    """Shows items as often as another log did at the same position.

    Args:
        log: the log that is copied.
        judge: the log that the policy is judged on.
    """

    name = "frequencies"
    stateless = True

    def __init__(self, log: LogReader, judge: LogReader) -> None:
        position, action, _ = read_rows(log)
        shown = np.zeros((len(POSITIONS), judge.config.pool_size))
        np.add.at(shown, (position - 1, action), 1.0)
        self.probability = shown / shown.sum(axis=1, keepdims=True)
        self.at = position_column(judge)
        self.values = np.unique(user_features(judge)[:, self.at])

    def reset(self, mask: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return self.probabilities(observation).argmax(axis=1)

    def probabilities(self, observation: Observation) -> np.ndarray:
        """Return the probability of every item, (B, N) float64."""
        found: np.ndarray = self.probability[np.searchsorted(self.values, observation["user"][:, self.at])]
        return found


def position_column(log: LogReader) -> int:
    """Return the column of the user features that holds the position, the only number of the mapping."""
    return log.config.embedding_size + len(USER_COLUMNS)


def user_features(log: LogReader) -> np.ndarray:
    """Return the user features of each row, (n, U) float32; every row is a session."""
    parts = [table["user_features"].combine_chunks() for table in log.batches(["session", "user_features"])]
    return np.concatenate([p.flatten().to_numpy().reshape(len(p), -1) for p in parts])


def read_rows(log: LogReader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position, action and click of each row; positions as their ranks, from 1."""
    tables = list(log.batches(["session", "action", "click"]))
    action, click = (
        np.concatenate([t[n].to_numpy(zero_copy_only=False) for t in tables]) for n in ("action", "click")
    )
    values, rank = np.unique(user_features(log)[:, position_column(log)], return_inverse=True)
    if len(values) != len(POSITIONS):
        raise InputError(f"{log.folder} has {len(values)} positions; allowed: {len(POSITIONS)}")
    return rank + 1, action, click.astype(np.float64)


def campaign_rows(data: Path, campaign: str, folder: Path) -> list[dict[str, Any]]:
    """Value of BTS in a campaign, overall and at each position: rows {campaign, position, estimator, ...}."""
    logged, bts = (import_campaign(data, name, campaign, folder / name) for name in ("random", "bts"))
    decisions = read_decisions(logged, Frequencies(bts, logged))
    at, (bts_at, _, bts_click), rows = read_rows(logged)[0], read_rows(bts), []
    for positions in (POSITIONS, *((p,) for p in POSITIONS)):
        true = mean_interval(bts_click[np.isin(bts_at, positions)])
        chosen = _chosen(decisions, np.isin(at, positions))
        found = off_policy_estimates(chosen)
        place = {"campaign": campaign, "position": positions[0] if len(positions) == 1 else "all"}
        rows.append(
            {**place, "estimator": "on-policy", **true, "rows": int(np.isin(bts_at, positions).sum())}
        )
        for name in (*ESTIMATORS, "logged"):
            error = found[name]["mean"] / true["mean"] - 1
            rows.append({**place, "estimator": name, **found[name], "relative_error": error})
        rows[-1] |= {"rows": found["sessions"], "effective_rows": found["effective_sessions"]}
    return rows


def _chosen(decisions: LoggedDecisions, mask: np.ndarray) -> LoggedDecisions:
    """Return some of the decisions; each is a session of its own."""
    values = {name: value[mask] for name, value in vars(decisions).items() if isinstance(value, np.ndarray)}
    return LoggedDecisions(**values | {"session": np.arange(mask.sum())})


def open_bandit_rows(data: str | Path) -> list[dict[str, Any]]:
    """Value of BTS by campaign, overall and at each position."""
    with TemporaryDirectory() as folder:
        return [row for name in CAMPAIGNS for row in campaign_rows(Path(data), name, Path(folder) / name)]
