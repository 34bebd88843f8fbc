"""The verb `medsaga app`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.errors import InputError


@dataclass(kw_only=True)
class App:
    """Label, train and correct in the browser."""

    folder: Annotated[Positional[Path | None], arg("[DATA|RUN]")] = None
    """Dataset or run folder to open; without it, choose one on the page or start with a phantom."""
    port: Annotated[int, arg("P", shown="any that is free")] = 0
    """Port on 127.0.0.1 to listen on."""
    no_browser: bool = False
    """Print the address only; open it yourself."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: the libraries of the page are missing, the port is taken, or the folder cannot be opened.
        """
        try:
            from medsaga.app.server import serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise InputError(
                "app",
                expected="the libraries of the page",
                found=f"no {error.name}",
                do="Install them: pip install 'medsaga[app]'",
            ) from None
        if not 0 <= self.port < 2**16:
            raise InputError("--port", expected="0 to 65535", found=str(self.port), do="Choose another.")
        serve(self.folder, port=self.port, open_browser=not self.no_browser, say=lambda text: print(text, flush=True))
