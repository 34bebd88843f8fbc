"""What a federated training can be told, beside the settings of the training itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medsaga.errors import InputError
from medsaga.federated.refused import DECIDED_BY_ROUNDS, refuse
from medsaga.methods import method_named
from medsaga.settings.options import ResolvedSettings, Settings, flag

Exchange = Literal["weights", "shared-basis", "ffa", "alone", "pooled"]
Strategy = Literal["fedavg", "fedprox", "fedbn", "median"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
BASELINES = ("alone", "pooled")
"""Ways in which nothing is exchanged: each site by itself, and all cases in one place."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """How sites train together.

    Attributes:
        rounds: how often the sites' changes are brought together.
        local_steps: optimizer steps of each site in a round.
        exchange: what travels. ``weights``: all that is trained (with LoRA, A and B: FedIT, arXiv 2305.05644).
            ``shared-basis``: of matrices under GaLore, factors in a basis that all share in a round. ``ffa``: of LoRA,
            B alone, while A stays as it began (FFA-LoRA, arXiv 2403.12313). ``alone``, ``pooled``: nothing.
        strategy: ``fedavg``, the mean weighted by cases (arXiv 1602.05629); ``fedprox``, which draws each site towards
            the common weights (1812.06127); ``fedbn``, each site keeps its own norms (2102.07623); ``median``, of each
            number, every site alike (1803.01498).
        proximal: strength of that pull, mu.
        bits: of each number that travels; None: 16 in a shared basis, else 32.
        min_sites: fewer usable answers than this end the training, which can be gone on with.
        clip: largest L2 norm of what a site sends of its changes; None for any.
        noise: standard deviation of the Gaussian noise on it, in units of ``clip``; None for none.
        delta: of differential privacy, for the epsilon that is reported.
    """

    rounds: int = 10
    local_steps: int = 20
    exchange: Exchange = "weights"
    strategy: Strategy = "fedavg"
    proximal: float = 0.01
    bits: Literal[16, 32] | None = None
    min_sites: int = 1
    clip: float | None = None
    noise: float | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Reject what cannot be meant.

        Raises:
            InputError: naming the flag.
        """
        for name, value in (
            ("--rounds", self.rounds),
            ("--local-steps", self.local_steps),
            ("--min-sites", self.min_sites),
        ):
            _require(name, value >= 1, "at least 1", value)
        for name, number in (("--proximal", self.proximal), ("--clip", self.clip), ("--noise", self.noise)):
            _require(name, number is None or 0 < number < math.inf, "a positive, finite number", number)
        _require("--delta", 0 < self.delta < 1, "a number between 0 and 1", self.delta)
        self._require_effect()
        if self.exchange == "shared-basis":
            _require("--strategy", self.strategy != "median", "another with --exchange shared-basis", self.strategy)
            # Sketches and bases would tell of the data without any noise.
            _require("--clip", self.clip is None, "none with --exchange shared-basis", self.clip)

    def _require_effect(self) -> None:
        """Reject what nothing would heed: who asks for noise and gets none must hear of it."""
        if self.exchange in BASELINES:
            for name in ("strategy", "bits", "min_sites", "clip", "noise"):
                value = getattr(self, name)
                expected = f"none with --exchange {self.exchange}"
                _require(flag(name), value == _default(name), expected, value, "Leave it out.")
        _require("--noise", self.noise is None or self.clip is not None, "--clip beside it", self.noise)
        for name, beside, given in (
            ("proximal", "--strategy fedprox", self.strategy == "fedprox"),
            ("delta", "--noise", self.noise is not None),
        ):
            value = getattr(self, name)
            _require(flag(name), given or value == _default(name), f"{beside} beside it", value)

    @property
    def name(self) -> str:
        """Say in a few words how the sites train together."""
        parts: list[str] = [self.exchange, *([self.strategy] if self.strategy != "fedavg" else [])]
        parts += [f"{self.bits}bit"] if self.bits else []
        parts += [f"clip{self.clip:g}"] if self.clip else []
        return "-".join([*parts, *([f"noise{self.noise:g}"] if self.noise else [])])

    @property
    def travelling_bits(self) -> int:
        """Bits of each number of a change or a weight on its way."""
        return self.bits or (16 if self.exchange == "shared-basis" else 32)

    @property
    def steps(self) -> int:
        """Optimizer steps of a site in all."""
        return self.rounds * self.local_steps

    def check(self, settings: ResolvedSettings) -> None:
        """Make sure that a training can be exchanged in this way.

        Raises:
            InputError: the method or a setting does not go with it.
        """
        method = method_named(settings.method)
        if self.exchange == "shared-basis":
            projects = bool(method.ranks) and settings.optimizer == "adamw"
            _require("--exchange", projects, "shared-basis with --method medsaga", f"--method {settings.method}")
            found = f"--galore {settings.galore}"
            _require("--galore", settings.galore == "default", "default with --exchange shared-basis", found)
        if self.exchange == "ffa":
            _require("--exchange", settings.method == "samed", "ffa with --method samed", f"--method {settings.method}")
        _require("--precision", settings.precision != "int8", "fp32, bf16 or fp16 in a federation", "int8")

    def asked(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return dataclasses.asdict(self)


def settings_for(settings: Settings, federation: Federation) -> Settings:
    """Return the settings of each site's training: its steps are those of all rounds.

    Raises:
        InputError: they say something that the federation decides.
    """
    refuse(settings, DECIDED_BY_ROUNDS)
    steps = federation.steps
    return dataclasses.replace(settings, steps=steps, evaluate_every=steps, validation_cases=0)


def require_enough(federation: Federation, sites: int) -> None:
    """Refuse a number of usable answers that a round can never have.

    Raises:
        InputError: naming the flag.
    """
    least = federation.min_sites
    _require("--min-sites", least <= sites, f"at most {sites}, the number of sites", least)


def _default(name: str) -> Any:
    return Federation.__dataclass_fields__[name].default


def _require(name: str, good: bool, expected: str, found: object, do: str = "Change it.") -> None:
    if not good:
        raise InputError(name, expected=expected, found=str(found), do=do)
