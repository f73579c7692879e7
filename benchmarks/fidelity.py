"""How realistic are the shipped users? Fidelity reports on fresh logs, and learned users of real logs.

    python -m benchmarks.fidelity [--ebnerd BUNDLE] [--work runs/fidelity] [--quick]

Logs of users that the shipped ones never saw are collected and judged (`edgerec fidelity`). MaskablePPO's
exploitation gaps come from results/NAME_maskable_ppo.json. With an EB-NeRD bundle, users are fitted on its
train week and judged on its validation week; without one, the figures of the last run stay. Prints tables
and writes results/fidelity.json. Resumable: finished reports are kept in --work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgerec_gym.bench.weak_to_strong import weak_to_strong
from edgerec_gym.commands.console import print_table, progress_bar
from edgerec_gym.documents import read_json
from edgerec_gym.fidelity.report import fidelity_report, fidelity_tables
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.ebnerd_reference import ebnerd_reference
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.fit import fit

RESULTS = Path(__file__).parent / "results"
SEED = 7  # seed of the fresh logs; the shipped users saw those of seed 0
HEADLINES = ("click_ece", "two_sample_auc", "kendall_tau", "policies", "exploitation_gap")
MEMBERS, EPOCHS = 2, 8  # for the users of EB-NeRD


def shipped_report(name: str, work: Path, sessions: int, policy_sessions: int) -> dict[str, Any]:
    """Report on a shipped scenario, on fresh logs."""
    path = work / f"{name}.json"
    if not path.is_file():
        logs, scenario = work / f"{name}-logs", Scenario.load(name)
        with progress_bar(name) as progress:
            collect(logs, preset_name=name, sessions=sessions, seed=SEED, progress=progress)
            zoo = weak_to_strong(scenario.config, 0)
            report = fidelity_report(
                scenario,
                logs,
                policies=zoo,
                whole_log=True,
                sessions=sessions,
                policy_sessions=policy_sessions,
                progress=progress,
            )
        write_json(path, report | {"log": f"edgerec collect --preset {name} --seed {SEED}"})
    found: dict[str, Any] = read_json(path)
    return found


def trained_gaps(name: str) -> dict[str, Any]:
    """Exploitation gaps of the policies trained on a shipped scenario."""
    path = RESULTS / f"{name}_maskable_ppo.json"
    rows = read_json(path)["rows"] if path.is_file() else []
    return {
        row["policy"]: row["exploitation_gap"]
        for row in rows
        if row["users"] == "learned" and "-ppo" in row["policy"]
    }


def real_figures(bundle: Path | None, work: Path, earlier: dict[str, Any]) -> dict[str, Any]:
    """Fit users of EB-NeRD and compare them with trees; without a bundle, the earlier figures."""
    path = work / "ebnerd.json"
    if bundle is not None and not path.is_file():
        folder = make_folder(work / "ebnerd")
        with progress_bar("EB-NeRD") as progress:
            convert_ebnerd(bundle, folder / "logs", progress=progress)
            figures = fit(folder / "logs", folder, ensemble=MEMBERS, epochs=EPOCHS, progress=progress)
        write_json(path, {"learned": figures, "reference": ebnerd_reference(folder / "logs")})
    if not path.is_file():
        return {key: value for key, value in earlier.items() if key.startswith("ebnerd")}
    found = read_json(path)
    return {
        "ebnerd_impression_auc": found["learned"]["impression_auc"],
        "ebnerd_trees_impression_auc": found["reference"]["boosted_trees"]["impression_auc"],
        "ebnerd": found,
    }


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ebnerd", type=Path, help="folder with train/ and validation/ of EB-NeRD")
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sessions", type=int, default=3000)
    parser.add_argument("--policy-sessions", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sessions")
    given = parser.parse_args()
    shrink = 10 if given.quick else 1
    work, target = make_folder(given.work / ("quick" if given.quick else "full")), given.out / "fidelity.json"
    reports = {
        name: shipped_report(name, work, given.sessions // shrink, given.policy_sessions // shrink)
        for name in ("default", "lite")
    }
    for name, report in reports.items():
        for title, (header, rows) in fidelity_tables(report).items():
            print_table(f"{name}: {title}", header, rows)
        print(f"{name}: weak: {', '.join(report['weak']) or 'nothing'}")
    headlines = {key: reports["default"][key] for key in HEADLINES}
    headlines["exploitation_gap"] = headlines["exploitation_gap"] | trained_gaps("default")
    earlier = read_json(target) if target.is_file() else {}
    make_folder(given.out)
    write_json(target, headlines | real_figures(given.ebnerd, work, earlier) | reports)


if __name__ == "__main__":
    main()
