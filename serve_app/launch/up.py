"""`tutti up`: one run of the service in the foreground, from the first check to the last process ended.

Order is everything here: check, claim the data directory, Redis, Ray, actors, Serve, ready; and back
again. Ray and Serve read their environment when they are imported: after it was exported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from cluster.errors import LaunchFailed, TuttiError, Unavailable
from cluster.failure_lines import first_line
from cluster.settings import (
    INSTANCE_VARIABLE,
    Settings,
    export_variables,
    reserved_variables,
    unknown_variables,
)
from serve_app.launch.declared import check_declared
from serve_app.launch.leftovers import SESSION_LOGS, Claim, temporary_folder
from serve_app.launch.port_claims import PortClaims
from serve_app.launch.preconditions import check_disk, check_port, check_ray_address
from serve_app.launch.processes import ProcessMark, descendants_of, end_listening, find_process, mark_of
from serve_app.launch.ray_environment import raise_open_files, serve_variables
from serve_app.launch.redis_check import check_redis
from serve_app.launch.redis_server import EmbeddedRedis

__all__ = ["Service", "ending_in_order", "run_until_signalled"]

_READY_TIMEOUT_S = 90.0
_WATCH_INTERVAL_S = 0.2
_NOTE_INTERVAL_S = 5.0
_REDIS_RETRY_S = 2.0
_REPEAT_NEWS_S = 60.0
_CORE_PROCESSES = ("gcs_server", "raylet")
_NAMESPACE = "tutti"
_MIN_LOCAL_CPUS = 4
_FORCED_STATUS = 130
_LISTENING_END_S = 1.0
_SAME_SIGNAL_S = 0.5
"""Terminals and supervisors signal the group as well as the process: what comes this close is one wish."""


class _Forced(BaseException):
    """Raised in the main thread by the second signal: no more waiting."""


class _Interrupted(TuttiError):
    """Raised between two phases of the start when the first signal came."""


class Service:
    """One run of the service.

    Args:
        settings: What the operator decided.
        say: Takes one line for the operator (warnings, phases); the ready line is not among them.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._claim = Claim(settings.data_dir)
        self._claimed = False
        self._ports = PortClaims()
        self._folder = Path()
        self._redis: EmbeddedRedis | None = None
        self._core: tuple[ProcessMark, ...] = ()
        self._ray_started = False
        self._ray_address = ""
        self._served = False
        self._noted_at = 0.0
        self._redis_retry_at = self._redis_said_at = 0.0
        self._redis_news = ""
        self.stop_requested = threading.Event()
        """Set it to end the service in order."""

    @property
    def http_url(self) -> str:
        """Where HTTP clients on this machine connect."""
        return f"http://{_reachable(self._settings.host)}:{self._settings.http_port}"

    @property
    def ready_line(self) -> str:
        """What is printed when requests are answered: where HTTP, gRPC and Python drivers connect."""
        grpc = f"grpc://{_reachable(self._settings.host)}:{self._settings.grpc_port}"
        return f"ready: {self.http_url}  {grpc}  ray {self._ray_address}"

    def start(self) -> None:
        """Start everything and return when `/health` says healthy.

        Raises:
            LaunchFailed: Something cannot be started, in one line.
            InvalidSetting: A setting cannot be used, or they would expose an open service.
        """
        self._check()
        self._claim_directory()
        settings = dataclasses.replace(self._settings, redis_url=self._start_redis())
        self._go_on()
        self._start_ray(settings)
        self._go_on()
        self._start_serving(settings)
        self._await_health()

    def watch(self) -> None:
        """Keep the service alive until `stop_requested` is set.

        Raises:
            LaunchFailed: A part that cannot be replaced ended by itself.
        """
        while not self.stop_requested.wait(_WATCH_INTERVAL_S):
            self._keep_redis()
            for mark in self._core:
                if find_process(mark) is None:
                    raise LaunchFailed(f"Ray's {mark.name} ended unexpectedly; see {self._settings.logs_dir}")
            if time.monotonic() - self._noted_at > _NOTE_INTERVAL_S:
                self._noted_at = time.monotonic()
                self._claim.note_children(self._kept())

    def _keep_redis(self) -> None:
        """Start the embedded Redis again where it ended, for as long as it takes: on a full disk it cannot
        live, and meanwhile clients are answered 503 and agents go on working.
        """
        now = time.monotonic()
        if self._redis is None or now < self._redis_retry_at:
            return
        try:
            if not self._redis.restart_if_dead():
                return
            news = "Redis ended unexpectedly and was started again"
        except LaunchFailed as error:
            news = f"Redis ended and cannot be started again, trying on: {error.message}"
        self._redis_retry_at = time.monotonic() + _REDIS_RETRY_S
        if news != self._redis_news or now - self._redis_said_at > _REPEAT_NEWS_S:
            self._redis_news, self._redis_said_at = news, now
            self._say(news)

    def stop(self, grace_s: float) -> None:
        """End everything: first what accepts work, then what does it, then what remembers it.

        Args:
            grace_s: Seconds for an orderly end of Serve and the actors; what is left then is ended by force.
        """
        deadline = time.monotonic() + grace_s
        if self._ray_started:
            if self._served:
                _in_time(lambda: self._stop_serving(deadline - time.monotonic()), deadline - time.monotonic())
            _in_time(lambda: self._stop_actors(deadline - time.monotonic()), deadline - time.monotonic())
            end_listening(
                descendants_of(os.getpid()), min(_LISTENING_END_S, max(deadline - time.monotonic(), 0))
            )
            _in_time(_stop_ray, max(deadline - time.monotonic(), 3.0))
        self.end_now()

    def end_now(self, grace_s: float = 3.0) -> None:
        """End what is left by force; Redis still ends in order, since that is quick and it has the data.

        Args:
            grace_s: Seconds between SIGTERM and SIGKILL.
        """
        if not self._claimed:
            return
        left = self._claim.end_children(self._kept(), grace_s)
        if self._redis is not None:
            self._redis.stop()
        for mark in left:
            self._say(f"process {mark.pid} ({mark.name}) does not end")
        with contextlib.suppress(OSError):
            (self._settings.logs_dir / "ray").unlink(missing_ok=True)
        if left:
            return  # the record stays, so that the next start looks for them again
        self._claim.release()
        self._ports.release()
        self._claimed = False

    def _check(self) -> None:
        settings = self._settings
        settings.check_exposure()
        for name in unknown_variables():
            self._say(f"warning: {name} is not a setting (see `tutti settings`)")
        for name in reserved_variables(settings):
            self._say(f"warning: {name} has no effect in this version")
        for warning in check_declared(settings):
            self._say(f"warning: {warning}")
        check_disk(settings.data_dir)
        check_ray_address(settings)
        self._num_open_files = raise_open_files()

    def _claim_directory(self) -> None:
        living = EmbeddedRedis.living_server(self._settings.data_dir)
        ended = self._claim.take(keep=[living] if living and not self._settings.redis_url else [])
        self._claimed = True
        if ended:
            self._say(f"ended {len(ended)} processes that a killed run had left")
        # After the leftovers: they may have held the ports.
        check_port(self._settings.host, self._settings.http_port, "--http-port", self._ports)
        check_port(self._settings.host, self._settings.grpc_port, "--grpc-port", self._ports)

    def _start_redis(self) -> str:
        settings = self._settings
        url = settings.redis_url
        if not url:
            self._redis = EmbeddedRedis(settings.data_dir, settings.durability, settings.redis_binary)
            url = self._redis.start()
            if self._redis.adopted:
                self._say("found the Redis of a killed run alive and took it over")
        for warning in check_redis(url, settings.durability).warnings:
            self._say(f"warning: {warning}")
        return url

    def _start_ray(self, settings: Settings) -> None:
        self._folder = folder = temporary_folder()
        self._claim.note_folder(folder)
        variables = serve_variables(settings, folder, self._num_open_files, self._ports)
        instance = {INSTANCE_VARIABLE: self._claim.instance}
        export_variables(defaults=variables, forced=instance)
        import ray

        from actors.logs import WorkerLogs
        from actors.ray_cluster import attach

        _quieten()
        common: dict[str, Any] = {
            "namespace": _NAMESPACE,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "logging_config": WorkerLogs.of(settings.log_level),
        }
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if settings.ray_address:
                # The cluster's own processes have another environment: give ours to the actors we start.
                environment = {
                    name: value for name, value in variables.items() if name.startswith("RAY_SERVE_")
                }
                attach(settings.ray_address, runtime_env={"env_vars": {**environment, **instance}}, **common)
            else:
                ray.init(
                    address="local",
                    num_cpus=int(settings.ray_num_cpus) or max(os.cpu_count() or 1, _MIN_LOCAL_CPUS),
                    num_gpus=None if settings.ray_num_gpus is None else int(settings.ray_num_gpus),
                    object_store_memory=settings.object_store_bytes,
                    include_dashboard=False,
                    _temp_dir=str(folder / SESSION_LOGS.parts[0]),
                    **common,
                )
        except Unavailable as error:
            raise LaunchFailed(error.message) from None
        except (ConnectionError, OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise LaunchFailed(f"Ray cannot be started: {first_line(error)}") from error
        except SystemExit:
            # While Ray starts, SIGTERM is answered by a handler of Ray's.
            self.stop_requested.set()
            raise _Interrupted("interrupted while starting") from None
        self._ray_started = True
        _restore_handlers(handlers)
        self._ray_address = str(ray.get_runtime_context().gcs_address)
        self._claim.note_address(self._ray_address, settings.http_port, settings.grpc_port)
        self._claim.note_children(self._kept())
        if settings.ray_address:
            self._check_cluster(settings, len([node for node in ray.nodes() if node["Alive"]]))
        else:
            self._core = tuple(mark for mark in descendants_of(os.getpid()) if mark.name in _CORE_PROCESSES)
            self._link_logs(folder)

    def _start_serving(self, settings: Settings) -> None:
        from ray.exceptions import RayError

        from actors.start import start_actors
        from serve_app.app import deploy

        try:
            start_actors(settings)
            self._claim.note_children(self._kept())
            self._go_on()
            self._served = True
            deploy(settings, self._folder, self._ports)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise LaunchFailed(f"the service cannot be started: {first_line(error)}") from error
        self._claim.note_children(self._kept())

    def _check_cluster(self, settings: Settings, num_nodes: int) -> None:
        if num_nodes > 1 and settings.redis_url.startswith("unix://"):
            raise LaunchFailed(
                f"the Ray cluster has {num_nodes} nodes: they need a Redis in common, set TUTTI_REDIS_URL"
            )

    def _link_logs(self, folder: Path) -> None:
        """Let people find Ray's logs below the data directory, although its sockets need a shorter path."""
        link = self._settings.logs_dir / "ray"
        with contextlib.suppress(OSError):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(folder / SESSION_LOGS)

    def _await_health(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        answer = "no answer"
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                self._go_on()
                try:
                    response = client.get(f"{self.http_url}/health")
                    if response.status_code == 200 and response.json().get("healthy") is True:
                        return
                    answer = f"HTTP {response.status_code}"
                except (httpx.HTTPError, ValueError) as error:
                    answer = type(error).__name__
                self.stop_requested.wait(0.05)
        raise LaunchFailed(f"the service is not healthy after {_READY_TIMEOUT_S:g} s ({answer})")

    def _go_on(self) -> None:
        if self.stop_requested.is_set():
            raise _Interrupted("interrupted while starting")

    def _kept(self) -> list[ProcessMark]:
        mark = mark_of(self._redis.pid) if self._redis is not None and self._redis.pid else None
        return [mark] if mark is not None else []

    def _stop_serving(self, grace_s: float) -> None:
        from serve_app.app import undeploy

        undeploy(max(grace_s, 0.0), cluster_stays=bool(self._settings.ray_address))

    def _stop_actors(self, grace_s: float) -> None:
        from actors.start import stop_actors

        stop_actors(self._settings, max(grace_s, 0.0))


def run_until_signalled(
    settings: Settings, announce: Callable[[str], None], say: Callable[[str], None]
) -> None:
    """Run the service in the foreground until SIGINT or SIGTERM.

    Args:
        settings: What the operator decided.
        announce: Takes the ready line.
        say: Takes all other lines.

    Raises:
        LaunchFailed: It could not be started, or a part that cannot be replaced ended.
        InvalidSetting: A setting cannot be used, or they would expose an open service.
    """
    service = Service(settings, say)
    with ending_in_order(service, settings.drain_grace_s, on_first_signal=service.stop_requested.set):
        try:
            service.start()
            announce(service.ready_line)
            service.watch()
        except _Interrupted:
            say("interrupted while starting")


@contextlib.contextmanager
def ending_in_order(service: Service, grace_s: float, on_first_signal: Callable[[], None]) -> Iterator[None]:
    """Stop the service when the block is left, however that happens.

    Args:
        service: What to stop.
        grace_s: Seconds for an orderly end.
        on_first_signal: Called in the main thread at the first SIGINT or SIGTERM; it may raise. The second
            one ends what is left by force.
    """
    first_at: list[float] = []

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if not first_at:
            first_at.append(time.monotonic())
            on_first_signal()
        elif time.monotonic() - first_at[0] > _SAME_SIGNAL_S:
            raise _Forced

    # A closed terminal is a wish to end, unless the operator said otherwise (nohup).
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
    try:
        try:
            yield
        finally:
            service.stop(grace_s)
    except _Forced:
        service.end_now(grace_s=0.0)
        # Ray's own farewell at the interpreter's end would wait for processes that are gone.
        os._exit(_FORCED_STATUS)
    finally:
        _restore_handlers(before)


def _restore_handlers(handlers: dict[signal.Signals, Any]) -> None:
    """Put handlers back: `ray.init` sets its own for SIGTERM. Only the main thread may."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _in_time(action: Callable[[], None], limit_s: float) -> None:
    """Run an action that may hang in a thread of its own, and give up at the limit; signals reach us."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong while ending must not stop the ending
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(limit_s, 0.1))
    for error in failures:
        logging.getLogger("tutti.launch").warning("while stopping: %s", first_line(error))


def _quieten() -> None:
    """Keep Ray's and Serve's chatter off the terminal; a filter survives their own setting of levels."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "", "localhost"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
