"""``medsaga federate serve``: Flower's SuperLink with our app, until all rounds are made."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.labels import parse_labels
from medsaga.errors import InputError, Interrupted, RunError
from medsaga.federated import keys, processes
from medsaga.federated.apps import FAILED, FOLDER, HOW, LOCK, OVER, SAID, STARTED
from medsaga.federated.options import BASELINES, Federation, require_enough, settings_for
from medsaga.federated.page import write_page
from medsaga.federated.plan import PLAN, Plan, digest_of_frozen
from medsaga.federated.refused import CHOSEN_BY_SITES, refuse
from medsaga.planning.defaults import planned_defaults
from medsaga.planning.resolve import Facts, choose_model, find_weights, resolve, without_effect
from medsaga.runs.loading import warn
from medsaga.runs.prepare import new_model
from medsaga.settings.options import Settings, named
from medsaga.settings.run_config import RunConfig

_CONNECTION = "federation"
_DATABASE, _REGISTERED = "link.db", "registered.json"
"""What Flower's server keeps, and the public keys that it has been told."""
_STARTING, _APP_STARTING = 60, 600
"""Seconds that Flower's server has to begin to listen, and our app to say something."""
_GOES_ON = "the same command goes on after the last complete round"
_PAUSE = 0.5


def serve(
    description: Path,
    out: Path,
    settings: Settings,
    federation: Federation,
    *,
    key_folder: Path,
    sites: int,
    host: str,
    port: int,
    wait: float | None,
    timeout: float,
    console: Console,
) -> dict[str, Any]:
    """Wait for sites, train with them, and write the common model and a page; a server that was stopped goes on.

    Args:
        description: a ``dataset.json`` with the labels and channels of all sites.
        out: folder of the server; one that is there is gone on with.
        settings: of each site's training.
        federation: how the sites train together.
        key_folder: as `medsaga.federated.keys.make_keys` makes it, with the public keys of the sites.
        sites: for how many the first round waits.
        host: address to listen on.
        port: to listen on.
        wait: seconds after which fewer sites are enough; None to wait for all.
        timeout: seconds that a site has for an order.
        console: where the user is told.

    Returns:
        the content of ``result.json``.

    Raises:
        InputError: settings, keys or the folder cannot be used.
        Interrupted: the user pressed Ctrl-C; the rounds that are complete are kept.
        RunError: the rounds cannot be completed.
    """
    refuse(settings, CHOSEN_BY_SITES)
    if federation.exchange in BASELINES:
        do = "Use it with medsaga federate simulate."
        raise InputError("--exchange", expected="something that travels", found=federation.exchange, do=do)
    require_enough(federation, sites)
    for name in (keys.AUTHORITY, keys.CERTIFICATE, keys.KEY):
        if not (key_folder / name).is_file():
            do = "Make them: medsaga federate keys."
            raise InputError(key_folder / name, expected="a key of the server", found="none", do=do)
    files.require_writable(out)
    plan = plan_of(description, settings_for(settings, federation), federation, console)
    _begin(out, plan, {"sites": sites, "wait": wait, "timeout": timeout, "asked": _asked(settings, federation)})
    result = out / run_folder.RESULT
    if not result.exists():
        said = processes.Said(out / SAID)
        try:
            with processes.ended_as_by_ctrl_c(), _link(out, key_folder, host, port) as link:
                _start_app(out, key_folder, port)
                console.print(f"listening on {host}:{port}; waiting for {sites} sites", markup=False, highlight=False)
                _follow(said, link, out / LOCK, console)
        except KeyboardInterrupt:
            raise Interrupted(f"{out}: stopped; {_GOES_ON}.") from None
    write_page(out, [out], title=out.resolve().name)
    document: dict[str, Any] = files.read_json(result)
    return document


def plan_of(description: Path, settings: Settings, federation: Federation, console: Console) -> Plan:
    """Return the plan of a federation, which the server and every site keep.

    Args:
        description: a ``dataset.json``.
        settings: of each site's training, with its steps.
        federation: how the sites train together.
        console: where the user is told.

    Raises:
        InputError: the settings or the weights cannot be used.
    """
    choice = choose_model(settings)
    find_weights(choice)
    warn(console, without_effect(choice))
    document = read_description(description)
    labels = parse_labels(description, document)
    channels = channel_names(description, document) or ("channel_0",)
    facts = Facts(device=planned_defaults("cpu"), classes=len(labels), channels=len(channels))
    resolved = resolve(settings, facts)
    federation.check(resolved)
    model, info = new_model(RunConfig("", labels, channels, (), resolved), console)
    digest = digest_of_frozen(model, resolved, federation)
    return Plan(metadata.version("medsaga"), labels, channels, resolved, federation, info.get("sha256"), digest)


def _begin(out: Path, plan: Plan, how: dict[str, Any]) -> None:
    """Make the server's folder, or make sure that the one that is there is of the same plan."""
    if (out / PLAN).exists():
        if Plan.read(out) != plan:
            do = "Choose another --out, or give the options that it began with."
            raise InputError(out, expected="the plan that this server began with", found="another", do=do)
    elif out.exists() and any(out.iterdir()):
        do = "Choose another --out."
        raise InputError(out, expected="the folder of a server, or a new one", found="one with other files", do=do)
    out.mkdir(parents=True, exist_ok=True)
    files.remove_temporary(out)
    plan.write(out)
    files.write_json(out / HOW, how)


def _asked(settings: Settings, federation: Federation) -> dict[str, Any]:
    return {"settings": named(settings), "federation": federation.asked()}


@contextlib.contextmanager
def _link(out: Path, key_folder: Path, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Have Flower's server run, and let the sites' keys in; yield its process."""
    if processes.listens(port):
        raise InputError(
            "--port", expected="a port that is free", found=f"{port}, where somebody listens", do="Choose another."
        )
    variables = processes.environment(out, **{FOLDER: str(out.resolve())})
    home = out / processes.HOME
    home.mkdir(exist_ok=True)
    connection = {"address": f"127.0.0.1:{port}", "root-certificates": str((key_folder / keys.AUTHORITY).resolve())}
    files.write_text(
        home / "config.toml", tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}})
    )
    command = ["flower-superlink", "--host", host, "--port", str(port), "--enable-supernode-auth"]
    command += ["--database", str((out / _DATABASE).resolve()), "--disable-runtime-dependency-installation"]
    for flag, name in (("certfile", keys.CERTIFICATE), ("keyfile", keys.KEY), ("ca-certfile", keys.AUTHORITY)):
        command += [f"--ssl-{flag}", str((key_folder / name).resolve())]
    with processes.running(command, out, variables) as process:
        began = time.monotonic()
        while not processes.listens(port):
            if process.poll() is not None or time.monotonic() - began > _STARTING:
                raise RunError(f"Flower's server did not start; {out / processes.LOG} says why")
            time.sleep(_PAUSE)

        def register(public: Path) -> None:
            with contextlib.suppress(RunError):  # it was told, and stopped before that was written down
                processes.call(["flwr", "supernode", "register", str(public), _CONNECTION], out, variables)

        let_in(sorted(key_folder.glob(f"*{keys.PUBLIC}")), out / _REGISTERED, register)
        yield process


def let_in(public_keys: Sequence[Path], record: Path, register: Callable[[Path], None]) -> None:
    """Tell Flower's server the keys of the sites, each once: its database keeps them, and telling takes seconds.

    Args:
        public_keys: files.
        record: file with the keys that the server has been told.
        register: tells it one.
    """
    known = files.read_json(record) if record.exists() else []
    for public in public_keys:
        key = public.read_text(encoding="utf-8")
        if key in known:
            continue
        register(public)
        known.append(key)
        files.write_json(record, known)


def _start_app(out: Path, key_folder: Path, port: int) -> None:
    """Hand Flower's server our app."""
    app = out / "app"
    document = {
        "project": {"name": "medsaga-federation", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "medsaga",
                    "components": {
                        "serverapp": "medsaga.federated.apps:server",
                        "clientapp": "medsaga.federated.apps:client",
                    },
                }
            }
        },
    }
    files.write_text(app / "pyproject.toml", tomli_w.dumps(document))
    variables = processes.environment(out, **{FOLDER: str(out.resolve())})
    processes.call(["flwr", "run", str(app.resolve()), _CONNECTION], out, variables)


def _follow(said: processes.Said, link: subprocess.Popen[bytes], lock: Path, console: Console) -> None:
    """Tell the user what the app says until it is over.

    Args:
        said: by the app.
        link: Flower's server.
        lock: the file that the app has locked while it runs.
        console: where the user is told.

    Raises:
        RunError: the app says so, or it or Flower's server has ended before.
    """
    has_started, was_locked, began = False, False, time.monotonic()
    while True:
        # Before its words are read: what ends has said all that it has to say.
        ended = "Flower's server" if link.poll() is not None else None
        if has_started:
            is_locked = _is_locked(lock)
            # On a file system without locks it never is, and tells nothing.
            if was_locked and not is_locked:
                ended = ended or "the server's app"
            was_locked = is_locked
        elif time.monotonic() - began > _APP_STARTING:
            ended = "the server's app"
        for kind, text in said.new():
            if kind == OVER:
                return
            if kind == FAILED:
                raise RunError(text)
            if kind == STARTED:
                has_started = True
                continue
            console.print(text, markup=False, highlight=False)
        if ended:
            raise RunError(f"{ended} has ended ({lock.parent / processes.LOG} may say why); {_GOES_ON}")
        time.sleep(_PAUSE)


def _is_locked(path: Path) -> bool:
    file = files.locked(path)
    if file is None:
        return True
    file.close()
    return False
