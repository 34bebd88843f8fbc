"""``medsaga federate join``: Flower's SuperNode at a hospital, until the server says that it is over."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from rich.console import Console

from medsaga.errors import InputError, Interrupted, RunError
from medsaga.federated import processes
from medsaga.federated.apps import DIFFERS, FOLDER, OVER, SAID
from medsaga.federated.hospital import open_folder
from medsaga.federated.keys import is_site_name

_PAUSE = 0.5
_TRIES, _BETWEEN_TRIES = 60, 3.0
"""Flower's node ends when the server does not know its key, which it may not yet."""
_LAST_ANSWER = 3.0
"""Seconds that Flower's node has to send the last answer."""


def join(
    data: Path,
    folder: Path,
    *,
    server: str,
    key: Path,
    authority: Path,
    name: str,
    weights: str | None,
    device: str,
    test_cases: int | None,
    seed: int,
    console: Console,
) -> None:
    """Check the data, then train and test as the server asks until it is over; a site that was stopped joins again.

    Args:
        data: the dataset.
        folder: of the site: what it keeps from one round to the next.
        server: host and port.
        key: the site's private key.
        authority: the certificate by which the server is known.
        name: by which the server knows the site.
        weights: where the weights that the federation starts from lie here; None for where the server has them.
        device: where to train.
        test_cases: how many cases to hold out; None for a fifth.
        seed: of the draw.
        console: where the user is told.

    Raises:
        InputError: the name, the data or the keys cannot be used, or something differs from the federation.
        Interrupted: the user pressed Ctrl-C.
        RunError: Flower's node has ended.
    """
    for path, what in ((key, "the private key of this site"), (authority, "the certificate of the federation")):
        if not path.is_file():
            raise InputError(path, expected=what, found="no such file", do="Ask whoever runs the server for it.")
    if not is_site_name(name):
        do = "Give it the name that medsaga federate keys has written it by."
        raise InputError(key, expected="a key whose name can be that of a site", found=repr(name), do=do)
    open_folder(data, folder, console, name=name, weights=weights, device=device, test_cases=test_cases, seed=seed)
    said = processes.Said(folder / SAID)
    variables = processes.environment(folder, **{FOLDER: str(folder.resolve())})
    command = ["flower-supernode", "--superlink", server, "--root-certificates", str(authority.resolve())]
    command += ["--auth-supernode-private-key", str(key.resolve()), "--host", "127.0.0.1"]
    command += ["--port", str(processes.free_port())]
    console.print(f"{name} waits for {server}", markup=False, highlight=False)
    try:
        with processes.ended_as_by_ctrl_c():
            for _ in range(_TRIES):
                with processes.running(command, folder, variables) as process:
                    if _followed(process, said, console):
                        return
                console.print(f"{server} does not let {name} in yet; trying again", markup=False, highlight=False)
                time.sleep(_BETWEEN_TRIES)
    except KeyboardInterrupt:
        raise Interrupted(f"{folder}: stopped; the same command joins again.") from None
    raise RunError(f"{server} does not let {name} in, or cannot be reached; {folder / processes.LOG} says why")


def _followed(process: subprocess.Popen[bytes], said: processes.Said, console: Console) -> bool:
    """Tell the user what the app says until it is over; return False if Flower's node has ended before.

    Raises:
        InputError: something differs from the federation.
    """
    while process.poll() is None:
        for kind, text in said.new():
            if kind == OVER:
                time.sleep(_LAST_ANSWER)
                return True
            if kind == DIFFERS:
                time.sleep(_LAST_ANSWER)
                raise _DifferenceError(text)
            console.print(text, markup=False, highlight=False)
        time.sleep(_PAUSE)
    return False


class _DifferenceError(InputError):
    """What a site lacks that the federation has, as its app has said it."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)
