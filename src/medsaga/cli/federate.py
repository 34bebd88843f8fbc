"""The verbs of `medsaga federate`: several hospitals train one model without pooling their images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

from medsaga.cli.options import ServeOptions, SimulateOptions, arg, settings_of
from medsaga.cli.printing import console, say
from medsaga.cli.runs import require_data
from medsaga.errors import InputError
from medsaga.settings.options import Settings


@dataclass(frozen=True, kw_only=True)
class FederationOptions:
    """How the sites train together."""

    rounds: Annotated[int, arg("N", shown="10")] = 10
    """Rounds: in each, the sites train and their results are combined."""
    local_steps: Annotated[int, arg("N", shown="20")] = 20
    """Optimizer steps of each site in a round."""
    exchange: Annotated[
        Literal["weights", "shared-basis", "ffa", "alone", "pooled"],
        arg("weights|shared-basis|ffa|alone|pooled", shown="weights"),
    ] = "weights"
    """What is sent: all trained weights, factors in a shared basis (medsaga), LoRA's B (samed); or a baseline."""
    strategy: Annotated[
        Literal["fedavg", "fedprox", "fedbn", "median"], arg("fedavg|fedprox|fedbn|median", shown="fedavg")
    ] = "fedavg"
    """Mean weighted by cases, the same with a pull to the common weights, or with local norms, or the median."""
    proximal: Annotated[float, arg("MU", shown="0.01")] = 0.01
    """Strength of fedprox's pull to the common weights."""
    bits: Annotated[Literal[16, 32] | None, arg("16|32", shown="16 for shared-basis, else 32")] = None
    """Bits of each number that is sent."""
    min_sites: Annotated[int, arg("N", shown="1")] = 1
    """Usable answers that a round needs at least; the other sites may be late, gone or refused."""
    clip: Annotated[float | None, arg("NORM", shown="none")] = None
    """Clip the change of a site to this norm before it is sent."""
    noise: Annotated[float | None, arg("Z", shown="none")] = None
    """Add Gaussian noise of Z times --clip to it, for differential privacy; the result has its epsilon."""
    delta: Annotated[float, arg("DELTA", shown="1e-5")] = 1e-5
    """Delta of that differential privacy."""


@dataclass(kw_only=True)
class Simulate:
    """Try it on one machine: all sites in one process."""

    data: Annotated[Positional[Path], arg("DATA")]
    """Dataset folder; with --sites-by folder, a folder with one for each site."""
    out: Annotated[Path, arg("DIR")]
    """Folder for the results; each method and exchange is an experiment of its own in it, and one page has them all."""
    sites: Annotated[int, arg("N", shown="4")] = 4
    """Sites among which the cases are divided at random."""
    sites_by: Annotated[str | None, arg("COLUMN|folder", shown="at random")] = None
    """A column of cases.csv that names the site of each case, or folder."""
    federation: Annotated[FederationOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="federation")]
    options: SimulateOptions
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        _require_flower()
        from medsaga.federated.simulate import simulate

        require_data(self.data, "Name the folder of the labelled cases.")
        result = simulate(
            self.data,
            self.out,
            settings_of(Settings, self.options),
            federation_of(self.federation),
            sites=self.sites,
            by=self.sites_by,
            console=console(),
        )
        _print(result, as_json=self.json)
        say(f"page: {self.out / 'index.html'}")


@dataclass(kw_only=True)
class Keys:
    """Make the certificates of a server and the keys of its sites."""

    out: Annotated[Path, arg("KEYS")]
    """Folder to make: it stays at the server. A site gets ca.pem and NAME.key of it."""
    host: Annotated[str, arg("NAME[,NAME...]", shown="localhost,127.0.0.1")] = "localhost,127.0.0.1"
    """Names and addresses by which the sites reach the server."""
    sites: Annotated[str, arg("NAME[,NAME...]", shown="site1,site2")] = "site1,site2"
    """Names of the sites."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        _require_flower()
        from medsaga.federated.keys import make_keys

        hosts, sites = (tuple(name.strip() for name in text.split(",")) for text in (self.host, self.sites))
        make_keys(self.out, hosts=hosts, sites=sites)
        say(f"keys: {self.out}")


@dataclass(kw_only=True)
class Serve:
    """Combine what the hospitals have learnt; needs no images."""

    description: Annotated[Positional[Path], arg("DATASET.JSON")]
    """A dataset.json with the labels and channel_names of all sites."""
    out: Annotated[Path, arg("DIR")]
    """Folder for the rounds and the model; a server that was stopped goes on there."""
    keys: Annotated[Path, arg("KEYS")]
    """Folder that `medsaga federate keys` has made."""
    sites: Annotated[int, arg("N", shown="2")] = 2
    """Sites that the first round waits for."""
    host: Annotated[str, arg("ADDRESS", shown="127.0.0.1")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of this machine's."""
    port: Annotated[int, arg("PORT", shown="9092")] = 9092
    """Port to listen on."""
    wait: Annotated[float | None, arg("SECONDS", shown="never")] = None
    """Begin with fewer sites after this time."""
    timeout: Annotated[float, arg("SECONDS", shown="3600")] = 3600.0
    """Time limit of a round; a late site is left out of it and can take part in the next."""
    federation: Annotated[FederationOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="federation")]
    options: ServeOptions
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        _require_flower()
        from medsaga.federated.serving import serve

        result = serve(
            self.description,
            self.out,
            settings_of(Settings, self.options),
            federation_of(self.federation),
            key_folder=self.keys,
            sites=self.sites,
            host=self.host,
            port=self.port,
            wait=self.wait,
            timeout=self.timeout,
            console=console(),
        )
        _print(result, as_json=self.json)
        say(f"page: {self.out / 'index.html'}")


@dataclass(kw_only=True)
class Join:
    """Train at a hospital, with images that stay there."""

    data: Annotated[Positional[Path], arg("DATA")]
    """Dataset folder, in one of the layouts."""
    out: Annotated[Path, arg("SITE")]
    """Folder for what this site keeps; a site that was stopped goes on there."""
    server: Annotated[str, arg("HOST:PORT")]
    """Where the server listens."""
    key: Annotated[Path, arg("NAME.key")]
    """Private key of this site; its name is that of the site."""
    ca: Annotated[Path, arg("ca.pem")]
    """Certificate by which the server is known."""
    weights: Annotated[str | None, arg("SOURCE", shown="as at the server")] = None
    """Local copy of the weights that the federation starts from; its SHA-256 is compared."""
    device: Annotated[str, arg("DEVICE", shown="a GPU if any")] = "auto"
    """cpu, cuda, cuda:N or mps."""
    test_cases: Annotated[int | None, arg("N", shown="a fifth of the cases")] = None
    """Cases to test on."""
    seed: Annotated[int, arg("N", shown="0")] = 0
    """Seed that draws them."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        _require_flower()
        from medsaga.federated.joining import join

        require_data(self.data, "Name the folder of the labelled cases.")
        join(
            self.data,
            self.out,
            server=self.server,
            key=self.key,
            authority=self.ca,
            name=self.key.stem,
            weights=self.weights,
            device=self.device,
            test_cases=self.test_cases,
            seed=self.seed,
            console=console(),
        )


@dataclass(kw_only=True)
class Federate:
    """Train one model at several hospitals that share no images."""

    verb: Annotated[Simulate | Keys | Serve | Join, tyro.conf.arg(name="")]

    def run(self) -> None:
        """Do it."""
        self.verb.run()


def federation_of(options: FederationOptions) -> Any:
    """Return what the options say of the federation.

    Raises:
        InputError: they contradict each other.
    """
    from medsaga.federated.options import Federation

    return Federation(**vars(options))


def _require_flower() -> None:
    """Raise InputError where Flower is not installed."""
    import importlib.util

    if importlib.util.find_spec("flwr") is None:
        do = "Install it: pip install 'medsaga[federated]'."
        raise InputError("medsaga federate", expected="Flower (flwr)", found="none", do=do)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from rich.console import Console

    from medsaga.evaluation.summary import dice_text

    table = Table(title=f"{result['method']}, {result['name']}")
    for index, heading in enumerate(("site", "Dice", "tested on", "trained on")):
        table.add_column(heading, justify="right" if index else "left")
    for site in result["sites"]:
        table.add_row(site["name"], dice_text(site["dice_mean"]), str(site["cases"]), str(site["cases_trained_on"]))
    for site in result.get("untested", {}):
        table.add_row(site, "not tested", "-", "-")
    table.add_section()
    table.add_row("mean", dice_text(result["dice_mean"]), "", "")
    table.add_row("worst", dice_text(result["dice_worst"]), "", "")
    Console().print(table)
