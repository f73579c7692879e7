"""The table of agents: what each one learns from, what it builds on, and the code that trains and loads it.

Code is referenced like a Gymnasium entry point, "module:attribute", and imported on first use, so the table
can be read without torch. An installed package adds its own agents through entry points of the group
`edgerec_gym.agents` that resolve to :class:`Agent` objects. `edgerec train --agent my_module:AGENT` uses an
agent without installation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from edgerec_gym.errors import InputError, closest
from edgerec_gym.policy import Policy
from edgerec_gym.runs import Run, read_run, write_record
from edgerec_gym.scenario import SHIPPED, SHIPPED_FOLDER

GROUP = "edgerec_gym.agents"  # entry point group
LOGS, PLAY = "logs", "play"
SCENARIO = ("scenario", "users")  # arguments of agents that learn by playing
# Where agents that learn by playing play, unless told otherwise.
PLACE = {"env_id": "EdgeFeed-v0", "scenario": "default", "users": "learned", "steps": 50_000, "num_envs": 128}
Progress = Callable[[int, int, str], None]
Code = str | Callable[..., Any]  # "module:attribute", or the object itself


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One agent.

    Attributes:
        name: name for `edgerec train --agent`, also stored in the record of its runs.
        summary: one line for help texts.
        family: kind of agent: "re-ranker", "generator", "uplift estimator", ...
        learns_from: "logs", "play", or both. With both, it learns by playing, and logs are optional.
        starts_from: names of agents whose runs it may be based on.
        takes: further arguments of :attr:`train`: "env_id", "scenario", "users", "steps", "num_envs",
            "rules".
        config: class of its hyper-parameters, a :class:`~edgerec_gym.config.Config`.
        train: called as `train(out, agent=..., seed=..., resume=..., threads=..., progress=..., **hyper)`,
            with `logs` if it learns from logs, `based_on` if it starts from runs, and the arguments in
            `takes`; returns the content of policy.json.
        load: called as `load(run, env)` with a :class:`~edgerec_gym.runs.Run`; returns the policy that plays
            the run. None for agents that do not play.
        network: class of the network, if several agents share `train` and `load`; passed to `train` as
            `network`.
        graphs: called as `graphs(network, places)`; returns the parts of a device model
            (:class:`~edgerec_gym.agents.export.parts.Parts`). None if the agent cannot be exported.
        load_network: called as `load_network(run, config)`; used by agents that start from this one, and for
            :attr:`graphs` unless there is `load_whole`.
        load_whole: called as `load_whole(run, config)`; returns what :attr:`graphs` takes, if that is more
            than the network.
        not_exported: why there is no `graphs`.
        clicks_alone: whether it learns clicks and purchases, but not the named responses of a feed, whatever
            these weigh in the reward.
    """

    name: str
    summary: str
    family: str
    train: Code
    config: Code
    learns_from: tuple[str, ...] = (LOGS,)
    starts_from: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    load: Code | None = None
    network: Code | None = None
    graphs: Code | None = None
    load_network: Code | None = None
    load_whole: Code | None = None
    not_exported: str = ""
    clicks_alone: bool = False

    def reads(self, option: str) -> bool:
        """Whether training reads "logs", "based_on", or one of the arguments of :attr:`takes`."""
        if option == "logs":
            return LOGS in self.learns_from
        return bool(self.starts_from) if option == "based_on" else option in self.takes

    def code(self, name: str) -> Any:
        """Return the object that an attribute such as "train" refers to, importing its module if needed."""
        value = getattr(self, name)
        return resolve_name(value) if isinstance(value, str) else value


RERANK, LISTS = "edgerec_gym.agents.rerank", "edgerec_gym.agents.lists"
VALUES = "edgerec_gym.agents.values"
INSERTION, REQUESTS = "edgerec_gym.agents.insertion", "edgerec_gym.agents.requests"
PPO, EDGEREC = "edgerec_gym.agents.ppo", "edgerec_gym.agents.edgerec"
GRAPHS, WHOLE_GRAPHS = "edgerec_gym.agents.export.export", "edgerec_gym.agents.export.whole"
RERANKER, GENERATOR, EVALUATOR, ESTIMATOR = "re-ranker", "generator", "list evaluator", "uplift estimator"
INSERTER, GRADIENT, WHOLE, DISTILLED = "insertion", "policy gradient", "whole agent", "distilled"
TEACHERS, TEACHER = "edgerec_gym.agents.teachers", "teacher"


def reranker(name: str, network: Code, summary: str, **more: Any) -> Agent:
    """Return the agent for a re-ranking network that learns from logs.

    Args:
        name: name of the agent.
        network: a :class:`~edgerec_gym.agents.rerank.reranker.ListScorer` or `ListEmitter`, or
            "module:Class".
        summary: one line for help texts.
        **more: further fields of :class:`Agent`.
    """
    return Agent(
        name=name,
        summary=summary,
        network=network,
        train=f"{RERANK}.train:train",
        config=f"{RERANK}.reranker:RerankerConfig",
        load=f"{RERANK}.train:load_policy",
        load_network=f"{RERANK}.train:load_reranker",
        **{
            "family": RERANKER,
            "clicks_alone": True,
            "graphs": f"{WHOLE_GRAPHS}:scorer_parts",
            **more,
        },
    )


def _generator(name: str, summary: str, **more: Any) -> Agent:
    return Agent(
        name=name,
        summary=summary,
        **{
            "family": GENERATOR,
            "train": f"{LISTS}.generator:train",
            "config": f"{LISTS}.policy_gradient:PolicyGradientConfig",
            "load": f"{LISTS}.generator:load_policy",
            "load_network": f"{LISTS}.generator:load_network",
            "graphs": f"{GRAPHS}:pointer_parts",
            "starts_from": ("evaluator", "pointer", *GENERATORS),
            "clicks_alone": True,
            **more,
        },
    )


def _estimator(name: str, summary: str) -> Agent:
    return Agent(
        name=name,
        summary=summary,
        family=ESTIMATOR,
        train=f"{REQUESTS}.train:train",
        config=f"{REQUESTS}.train:UpliftConfig",
        load=f"{REQUESTS}.load:load_planner",
        load_network=f"{REQUESTS}.train:load_model",
        load_whole=f"{WHOLE_GRAPHS}:load_uplift",
        graphs=f"{WHOLE_GRAPHS}:uplift_parts",
        clicks_alone=True,
    )


def _teacher(name: str, network: str, summary: str) -> Agent:
    return Agent(
        name=name,
        summary=summary,
        family=TEACHER,
        network=f"{TEACHERS}.networks:{network}",
        train=f"{TEACHERS}.train:train",
        config=f"{TEACHERS}.networks:TeacherConfig",
        load_network=f"{TEACHERS}.train:load_teacher",
        not_exported="it teaches in the cloud and does not play; edgerec distil makes a student of it",
        clicks_alone=True,
    )


def _ppo(name: str, summary: str) -> Agent:
    return Agent(
        name=name,
        summary=summary,
        family=GRADIENT,
        learns_from=(PLAY,),
        takes=("env_id", *SCENARIO, "steps", "num_envs"),
        train=f"{PPO}.train:train",
        config=f"{PPO}.trained_policy:PPOConfig",
        load=f"{PPO}.trained_policy:load_policy",
        load_whole=f"{WHOLE_GRAPHS}:load_ppo",
        graphs=f"{WHOLE_GRAPHS}:ppo_parts",
    )


GENERATORS = ("pointer-evaluator", "pointer-users", "pointer-distilled")
_ALL = (
    _ppo("pointer-ppo", "MaskablePPO with the pointer policy"),
    _ppo("flat-ppo", "MaskablePPO with a plain network over the whole observation"),
    reranker("dnn", f"{RERANK}.dnn:DNN", "a pointwise network"),
    reranker("dlcm", f"{RERANK}.dlcm:DLCM", "deep listwise context model (Ai et al., 2018)"),
    reranker("prm", f"{RERANK}.prm:PRM", "personalised re-ranking by self-attention (Pei et al., 2019)"),
    reranker(
        "setrank", f"{RERANK}.set_rank:SetRank", "permutation-equivariant self-attention (Pang et al., 2020)"
    ),
    reranker(
        "seq2slate",
        f"{RERANK}.seq2slate:Seq2Slate",
        "pointer network trained on clicks (Bello et al., 2018)",
        graphs=f"{WHOLE_GRAPHS}:seq2slate_parts",
    ),
    reranker(
        "crban",
        f"{RERANK}.crban:CRBAN",
        "EdgeRec's re-ranker: four behaviour encoders, candidates attend to them (Gong et al., 2020)",
        graphs=f"{GRAPHS}:crban_parts",
    ),
    reranker(
        "pointer",
        f"{LISTS}.pointer_net:PointerNet",
        "pointer network that writes lists, trained on clicks",
        family=GENERATOR,
        graphs=f"{GRAPHS}:pointer_parts",
    ),
    _teacher("lightgcn", "LightGCNTeacher", "teacher in the cloud: LightGCN (He et al., 2020)"),
    _teacher("sasrec", "SASRecTeacher", "teacher in the cloud: SASRec over events (Kang & McAuley, 2018)"),
    _teacher(
        "deepfm", "DeepFMTeacher", "teacher in the cloud: DeepFM (Guo et al., 2017) with SASRec's state"
    ),
    Agent(
        name="evaluator",
        summary="judges whole lists: the value of every place in a list",
        family=EVALUATOR,
        train=f"{LISTS}.evaluator_training:train",
        config=f"{LISTS}.evaluator:EvaluatorConfig",
        load_network=f"{LISTS}.evaluator_training:load_evaluator",
        not_exported="it judges lists but does not play; export a sequence-search based on it",
        clicks_alone=True,
    ),
    _generator("pointer-evaluator", "pointer, trained by policy gradient on the evaluator"),
    _generator(
        "pointer-users",
        "pointer, trained by policy gradient on whole sessions of learned users",
        learns_from=(PLAY, LOGS),
        takes=SCENARIO,
    ),
    _generator("pointer-distilled", "pointer, trained on the lists that the sequence search picks"),
    _generator(
        "sequence-search",
        "beam search, judged by the evaluator; nothing is trained",
        learns_from=(),
        takes=("scenario",),
        config=f"{LISTS}.sequence_search:SearchConfig",
        graphs=f"{GRAPHS}:search_parts",
    ),
    Agent(
        name="distilled-values",
        summary="greedy on values of candidates, distilled from what learned users would answer",
        family=DISTILLED,
        learns_from=(PLAY, LOGS),
        takes=("env_id", "scenario"),
        starts_from=("an uplift estimator",),
        train=f"{VALUES}.train:train",
        config=f"{VALUES}.network:ValueConfig",
        load=f"{VALUES}.train:load_policy",
        load_network=f"{VALUES}.train:load_network",
        load_whole=f"{WHOLE_GRAPHS}:load_values",
        graphs=f"{WHOLE_GRAPHS}:values_parts",
        clicks_alone=True,
    ),
    Agent(
        name="values-pg",
        summary="distilled-values, fine-tuned by policy gradient on whole sessions of learned users",
        family=DISTILLED,
        learns_from=(PLAY,),
        takes=("scenario",),
        starts_from=("distilled-values",),
        train=f"{VALUES}.gradient:train",
        config=f"{VALUES}.gradient:GradientConfig",
        load=f"{VALUES}.train:load_policy",
        load_network=f"{VALUES}.train:load_network",
        load_whole=f"{WHOLE_GRAPHS}:load_values",
        graphs=f"{WHOLE_GRAPHS}:values_parts",
    ),
    Agent(
        name="esan",
        summary="the value of a mix-in card at every slot, given its neighbours",
        family=INSERTER,
        train=f"{INSERTION}.train:train",
        config=f"{INSERTION}.esan:ESANConfig",
        load=f"{INSERTION}.train:load_policy",
        load_network=f"{INSERTION}.train:load_network",
        load_whole=f"{WHOLE_GRAPHS}:load_insertion",
        graphs=f"{WHOLE_GRAPHS}:insertion_parts",
        clicks_alone=True,
    ),
    Agent(
        name="esan-pg",
        summary="esan, fine-tuned by policy gradient on learned users",
        family=INSERTER,
        learns_from=(PLAY,),
        starts_from=("esan",),
        takes=SCENARIO,
        train=f"{INSERTION}.gradient:train",
        config=f"{INSERTION}.gradient:ESANGradientConfig",
        load=f"{INSERTION}.train:load_policy",
        load_network=f"{INSERTION}.train:load_network",
        load_whole=f"{WHOLE_GRAPHS}:load_insertion",
        graphs=f"{WHOLE_GRAPHS}:insertion_parts",
        clicks_alone=True,
    ),
    _estimator("uplift-t", "gain of a request: one model per treatment arm"),
    _estimator("uplift-x", "gain of a request: X-learner (Künzel et al., 2019)"),
    _estimator("uplift-class", "gain of a request: class transformation"),
    _estimator("uplift-dragon", "gain of a request: DragonNet (Shi et al., 2019)"),
    Agent(
        name="request-dqn",
        summary="requests by deep Q-learning",
        family=GRADIENT,
        learns_from=(PLAY,),
        takes=(*SCENARIO, "steps"),
        train=f"{REQUESTS}.dqn:train",
        config=f"{REQUESTS}.dqn:DQNConfig",
        load=f"{REQUESTS}.load:load_learner",
        load_whole=f"{WHOLE_GRAPHS}:load_dqn",
        graphs=f"{WHOLE_GRAPHS}:dqn_parts",
    ),
    Agent(
        name="edgerec",
        summary="the three decisions together, from a re-ranker, esan and an uplift estimator",
        family=WHOLE,
        learns_from=(PLAY,),
        starts_from=("a re-ranker that scores", "esan", "an uplift estimator"),
        takes=(*SCENARIO, "rules"),
        train=f"{EDGEREC}.train:train",
        config=f"{EDGEREC}.load:EdgeRecConfig",
        load=f"{EDGEREC}.load:load_policy",
        load_whole=f"{WHOLE_GRAPHS}:load_agent",
        graphs=f"{WHOLE_GRAPHS}:agent_parts",
        clicks_alone=True,
    ),
)
AGENTS: dict[str, Agent] = {agent.name: agent for agent in _ALL}  # the agents of this package


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in AGENTS}


def agent_names() -> tuple[str, ...]:
    """Return the names of all agents, those of installed packages last, without importing any."""
    return (*AGENTS, *_installed())


def find_agent(name: str) -> Agent:
    """Return an agent by name.

    Args:
        name: an agent of this or of an installed package, or "module:attribute" of an :class:`Agent`.

    Raises:
        InputError: if there is no such agent, or the object is not an :class:`Agent`.
    """
    if name in AGENTS:
        return AGENTS[name]
    if name not in _installed() and ":" not in name:
        raise InputError(f"unknown agent {name!r}{closest(name, [*agent_names(), 'or module:AGENT'])}")
    try:
        found = _installed()[name].load() if name in _installed() else resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"agent {name!r} cannot be imported: {error}") from None
    if not isinstance(found, Agent):
        raise InputError(
            f"agent {name!r} is a {type(found).__name__}, not an edgerec_gym.agents.registry.Agent"
        )
    return found


def family(*families: str) -> tuple[str, ...]:
    """Return the names of this package's agents in the given families, in table order."""
    return tuple(name for name, agent in AGENTS.items() if agent.family in families)


def train_agent(
    agent: str,
    out: str | Path,
    *,
    logs: str | Path | None = None,
    based_on: Sequence[str | Path] = (),
    rules: Any = None,
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    hyper: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **place: Any,
) -> dict[str, Any]:
    """Train any agent.

    Args:
        agent: name of the agent; see :func:`find_agent`.
        out: the run's folder.
        logs: log folder to learn from; None for agents that learn by playing.
        based_on: runs to start from.
        rules: only for the agent edgerec: a TOML file or :class:`~edgerec_gym.agents.edgerec.rules.Rules`.
        seed: seed of all randomness.
        resume: continue from the last checkpoint in `out`.
        threads: number of torch threads.
        hyper: hyper-parameters by name.
        progress: called with (epochs, updates or slots done, total, text).
        **place: where agents that learn by playing play: env_id, scenario, users, steps, num_envs.
            Arguments that an agent does not take are ignored.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if the agent is unknown, logs or runs are missing or not used by it, or its training
            rejects the input.
    """
    found = find_agent(agent)
    _check_sources(found, logs, based_on, rules)
    train = found.code("train")  # first: it says which extra is missing
    arguments = {name: value for name, value in place.items() if name in found.takes}
    if LOGS in found.learns_from:
        arguments["logs"] = logs
    if found.starts_from:
        arguments["based_on"] = based_on
    if rules is not None:
        arguments["rules"] = rules
    if found.network is not None:
        arguments["network"] = found.code("network")
    record: dict[str, Any] = train(
        out,
        agent=found.name,
        seed=seed,
        resume=resume,
        threads=threads,
        progress=progress,
        **arguments,
        **(hyper or {}),
    )
    place_folder = _scenario_folder(arguments.get("scenario"))
    if place_folder and record.get("scenario_folder") != place_folder:
        record["scenario_folder"] = place_folder
        write_record(Path(out), record)
    return record


def _scenario_folder(scenario: Any) -> str:
    """Return the absolute folder of a scenario of the user's own; "" for a shipped one, or none."""
    if scenario is None or str(scenario) in SHIPPED:
        return ""
    path = getattr(scenario, "path", scenario)
    if path is None or Path(path).parent == SHIPPED_FOLDER:
        return ""
    return str(Path(path).resolve())


def _check_sources(agent: Agent, logs: Any, based_on: Sequence[Any], rules: Any) -> None:
    """Raise InputError if an input is missing, or given but not used by the agent."""
    told = f"agent {agent.name!r}"
    if rules is not None and not agent.reads("rules"):
        raise InputError(f"{told} has no rules; leave --rules out")
    if logs is not None and not agent.reads("logs"):
        how = "learns by playing and reads no logs" if PLAY in agent.learns_from else "reads no logs"
        raise InputError(f"{told} {how}; leave --logs out")
    if based_on and not agent.reads("based_on"):
        raise InputError(f"{told} cannot be based on other runs; leave --based-on out")
    if logs is None and agent.learns_from == (LOGS,):
        raise InputError(f"{told} learns from logs: give a log folder with --logs")


def load_policy(folder: str | Path | Run, env: Any) -> Policy:
    """Load any agent's run to play an environment.

    Raises:
        InputError: if there is no run, it does not fit, or its agent does not play.
    """
    run = read_run(folder)
    agent = find_agent(run.agent)
    if agent.load is None:
        raise InputError(
            f"{run.folder} holds an {agent.name}, which judges lists but does not play; "
            "train a sequence-search --based-on it"
        )
    policy: Policy = agent.code("load")(run, env)
    return policy
