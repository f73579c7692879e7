"""`edgerec demo --live`: a service, a bad network and a phone, and one page to watch them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from edgerec_gym import interrupts
from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.phones.simulated import PhoneSettings, phone_policy
from edgerec_gym.bench.shipped import shipped_folder
from edgerec_gym.commands import console
from edgerec_gym.commands.demo import AGENT, ENV_ID, PRESET
from edgerec_gym.commands.live_phone import SPEEDS, Choice, Clock, LivePhone
from edgerec_gym.device.description import DESCRIPTION
from edgerec_gym.device.link_settings import LinkSettings
from edgerec_gym.drawing.colours import category_colours
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.files import atomic_path, folder_bytes, make_folder, only_writer, remove_folder
from edgerec_gym.pages.live import live_page
from edgerec_gym.protocol.messages import MOST_TEXT
from edgerec_gym.protocol.tokens import read_secret
from edgerec_gym.scenario import Scenario

HOST = "127.0.0.1"
BUDGET_MS = 20.0  # of a decision, as in the preset short-video
RULES = f'# The latency budget of a decision.\n[budget]\nms = {BUDGET_MS}\nfallback = "standing plan"\n'
FORMS = {32: "float32", 8: "8 bits"}  # of the shipped agent
BASELINES = ("item-greedy", "device-greedy")  # where torch is missing, so that nothing can be exported
START_SECONDS = 60.0  # for the service
END_SECONDS = 10.0  # for it to end
FOREVER = 1e9  # seconds
FIRST_SEED = 471  # its user comes often, and stays long
# A person watches: the phone tries again soon when the network is back.
LINK = LinkSettings(sync="incremental", first_wait=0.2, longest_wait=1.5, open_seconds=12.0)


@dataclass(frozen=True)
class LiveSettings:
    """What to show.

    Attributes:
        folder: of what it writes; exported models in it are used again, everything else begins anew.
        port: of the page; 0 lets the system choose.
        speed: how much faster than people the phone plays.
        seed: which user holds the phone, and which sessions they have.
        baselines: play baselines instead of the shipped agent.
    """

    folder: Path
    port: int = 0
    speed: float = 1.5
    seed: int = 0
    baselines: bool = False

    def __post_init__(self) -> None:
        if not SPEEDS[0] <= self.speed <= SPEEDS[1]:
            raise InputError(
                f"speed = {self.speed:g} is out of range; allowed: {SPEEDS[0]:g} to {SPEEDS[1]:g}"
            )


class Network:
    """The network between phone and service, with its buttons.

    Args:
        proxy: carries the connections.
    """

    def __init__(self, proxy: LagProxy) -> None:
        self._proxy = proxy
        self.is_cut, self.lag_ms = False, 0

    def state(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        return {"cut": self.is_cut, "lag_ms": self.lag_ms}

    def cut(self) -> None:
        """End all connections and take no more."""
        self.is_cut = True
        self._proxy.refuse(FOREVER)
        self._proxy.cut()

    def restore(self) -> None:
        """Take connections again."""
        self.is_cut = False
        self._proxy.refuse(0)

    def set_lag(self, ms: int) -> None:
        """Let what is sent take longer; `ms` milliseconds there and back, and a tenth of it by chance."""
        self.lag_ms = ms
        self._proxy.set_lag(ms / 2000, ms / 2000, ms / 10_000)


def run_live(settings: LiveSettings, ready: Callable[[str], object]) -> None:
    """Run service, phone and page until Ctrl-C.

    Args:
        settings: what to show.
        ready: called with the page's address when it can be opened.

    Raises:
        InputError: the port is taken, another demo runs in the folder, or the service has ended.
        MissingExtraError: the extra `edge` is not installed.
    """
    from edgerec_gym.service.server import bind

    with only_writer(settings.folder), bind(HOST, settings.port) as listening:
        for name in ("cloud", "phone"):
            remove_folder(settings.folder / name)
        with running_service(settings.folder / "cloud") as service:
            agents = choices(settings.folder / "models", settings.baselines)
            service.wait()
            with asyncio.Runner() as runner:
                _run(runner.get_loop(), _show(settings, service, agents, listening, ready))


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run until it ends or a signal comes, after which it tidies up before anything else is cancelled."""
    task = loop.create_task(work)
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
            loop.run_until_complete(task)
        raise


async def _show(
    settings: LiveSettings,
    service: RunningService,
    agents: list[Choice],
    listening: Any,
    ready: Callable[[str], object],
) -> None:
    """Play and serve the page until something ends."""
    from edgerec_gym.commands.live_app import Audience, Order, make_app

    async with LagProxy(service.port) as proxy:
        network, clock = Network(proxy), Clock(settings.speed)
        phone = LivePhone(
            PhoneSettings(
                "", proxy.url(), read_secret(settings.folder / "cloud" / "secret"), PRESET,
                env_id=ENV_ID, store=settings.folder / "phone", link=LINK,
            ),
            agents, clock, lambda document: audience.tell(document), network.state,
            FIRST_SEED + settings.seed,
        )  # fmt: skip
        audience = Audience(phone.everything)

        def act(order: Order) -> None:
            obey(order, network, clock, phone)
            phone.look()

        token = secrets.token_urlsafe(24)
        page = live_page(about(Scenario.load(PRESET), agents, token))
        server = page_server(make_app(page, token, audience, act))
        serving = asyncio.create_task(server.serve([listening]))
        tasks = [
            serving,
            asyncio.create_task(phone.play()),
            asyncio.create_task(phone.watch_network()),
            asyncio.create_task(service.watch()),
        ]
        try:
            ready(f"http://{HOST}:{listening.getsockname()[1]}/")
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            audience.close()
            server.should_exit = True
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            phone.close()


def obey(order: Any, network: Network, clock: Clock, phone: LivePhone) -> None:
    """Do what a button asks for."""
    from edgerec_gym.commands.live_app import ModelOrder, NetworkOrder, PauseOrder, SpeedOrder

    if isinstance(order, NetworkOrder):
        if order.action == "cut":
            network.cut()
        elif order.action == "restore":
            network.restore()
        else:
            network.set_lag(order.ms)
    elif isinstance(order, ModelOrder):
        phone.swap()
    elif isinstance(order, PauseOrder):
        clock.set(paused=order.paused)
    elif isinstance(order, SpeedOrder):
        clock.set(speed=order.speed)


def about(scenario: Scenario, agents: list[Choice], token: str) -> dict[str, Any]:
    """Return what the page knows before anything happens."""
    config = scenario.config
    return {
        "about": {
            "policy": agents[0].name,
            "track": "joint",
            "scenario": scenario.name,
            "card_types": list(config.card_types),
            "lookahead": config.lookahead,
            "hour": 0,
        },
        "token": token,
        "pool_size": config.pool_size,
        "colours": category_colours(scenario.catalog),
        "items": {},
        "frames": [],
        "slots": [],
        "answers": [],
    }


def page_server(app: Any) -> Any:
    """Return a server for the page that leaves signals to the command, and prints nothing."""
    import uvicorn

    class PageServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    logging.getLogger("uvicorn.error").propagate = False  # streams that end with the command are no news
    return PageServer(
        uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, lifespan="off",
            server_header=False, timeout_graceful_shutdown=2,
        )
    )  # fmt: skip


def choices(folder: Path, baselines: bool = False) -> list[Choice]:
    """Return the agents that the page can swap: two forms of the shipped one, exported if need be.

    Args:
        folder: of the exported models, by the digest of what they were exported from.
        baselines: play baselines instead; also where torch is missing, after a note.
    """
    if not baselines:
        try:
            return [_exported(folder, bits, form) for bits, form in FORMS.items()]
        except MissingExtraError as error:
            console.note(f"note: baselines play instead of the shipped agent: {error}")
    scenario = Scenario.load(PRESET)
    names = [name for name in BASELINES if name != "item-greedy" or scenario.config.item_columns]
    return [Choice(name, "a baseline", phone_policy(name, ENV_ID, PRESET, "synthetic")) for name in names]


def _exported(folder: Path, bits: int, form: str) -> Choice:
    """Return the shipped agent with so many bits, which is exported unless the folder has it."""
    run = shipped_folder("joint", PRESET) / AGENT
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(run.glob("*.*")))).hexdigest()
    path = folder / f"{digest[:12]}-{bits}"
    if not (path / DESCRIPTION).is_file():
        from edgerec_gym.agents.export.export import export
        from edgerec_gym.agents.export.quantised import quantised_for
        from edgerec_gym.device.engines.engine import REFERENCE

        console.note(f"exporting the shipped agent for the phone, {form} (only once)")
        export(run, path, scenario=PRESET, pack=quantised_for(REFERENCE.name, bits))
    with atomic_path(path / "rules.toml") as temporary:
        temporary.write_text(RULES, encoding="utf-8")
    policy = phone_policy(str(path), ENV_ID, PRESET, "synthetic")
    assert isinstance(policy, DevicePolicy)
    return Choice("values-pg", form, policy, policy.model, folder_bytes(path) / 1000)


class RunningService:
    """The service, in a process of its own.

    Args:
        state: folder of what it keeps.
        listening: where phones connect.
    """

    def __init__(self, state: Path, listening: Any) -> None:
        from edgerec_gym.service.server import ServeSettings, check_layout, secret_of
        from edgerec_gym.service.workers import Worker

        self.port = listening.getsockname()[1]
        settings = ServeSettings(PRESET, make_folder(state), HOST, self.port)
        check_layout(settings, Scenario.load(PRESET).config.digest())
        secret_of(state, None)
        self._worker = Worker(settings, listening, [self.port], 0)
        with interrupts.held_back():  # Ctrl-C reaches the whole group; this process ends the service
            self._worker.start()

    def wait(self) -> None:
        """Wait until it serves; InputError if it does not."""
        process, told = self._worker.process, self._worker.told
        if not connection.wait([told, process.sentinel], START_SECONDS):
            raise InputError(f"the service has not started within {START_SECONDS:g} s")
        try:
            what, why = told.recv_bytes().decode().split(" ", 1)
        except EOFError:
            what, why = "", "it has ended at once"
        if what != "ready":
            raise InputError(f"the service does not start: {why[:MOST_TEXT]}")

    async def watch(self) -> None:
        """Raise InputError when it has ended."""
        while self._worker.process.is_alive():
            await asyncio.sleep(0.5)
        raise InputError(f"the service has ended with code {self._worker.process.exitcode}")

    def end(self) -> None:
        """End it: what is in work is committed."""
        process = self._worker.process
        process.terminate()
        process.join(END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        self._worker.let_go()


@contextlib.contextmanager
def running_service(state: Path) -> Iterator[RunningService]:
    """Run the service as long as the block lasts."""
    from edgerec_gym.service.server import bind

    with bind(HOST, 0) as listening:
        service = RunningService(state, listening)
        try:
            yield service
        finally:
            service.end()


def open_page(url: str) -> None:
    """Open the page in the browser, without waiting for it."""
    import threading
    import webbrowser

    def open_it() -> None:
        with contextlib.suppress(webbrowser.Error, OSError):
            webbrowser.open(url)

    threading.Thread(target=open_it, daemon=True).start()
