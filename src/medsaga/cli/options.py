"""The settings as options of a verb: a group of options for every heading, made from the fields of the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_type_hints

import tyro

from medsaga.federated.refused import CHOSEN_BY_SITES, DECIDED_BY_ROUNDS
from medsaga.settings.help import GROUPS, help_of
from medsaga.settings.options import DERIVED, MAY_CHANGE, Settings, SharedSettings

Kind = TypeVar("Kind", bound=SharedSettings)


def arg(metavar: str, *, shown: str = "") -> Any:
    """Return what tyro says of an option: the word for its value, and its default in words."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {shown})" if shown else "")


def options_of(settings: type[SharedSettings], *, continued: bool = False, refused: Collection[str] = ()) -> Any:
    """Return a type for tyro: a dataclass of groups of options, which `settings_of` turns into settings.

    Args:
        settings: whose fields become options.
        continued: only those that a run may change which continues another; it inherits what is not named.
        refused: names of those that the verb refuses; the parser knows them, so that the verb can say why.
    """
    fields = [field for field in dataclasses.fields(settings) if not continued or field.name in MAY_CHANGE]
    # Those of a single run first: they are the ones that users come for.
    fields.sort(key=lambda field: field.name in SharedSettings.__dataclass_fields__)
    types = get_type_hints(settings)
    groups: list[tuple[str, Any, Any]] = []
    for heading in GROUPS:
        options = [
            _option(field, types[field.name], continued=continued, refused=field.name in refused)
            for field in fields
            if help_of(field).group == heading
        ]
        if options:
            name = heading.replace(" ", "_").replace("-", "_")
            group: Any = dataclasses.make_dataclass(name, options, frozen=True, kw_only=True)
            annotated = Annotated[group, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=heading)]
            groups.append((name, annotated, dataclasses.field(default_factory=group)))
    made = dataclasses.make_dataclass("Options", groups, frozen=True, kw_only=True)
    return Annotated[made, tyro.conf.arg(name="")]


def settings_of(kind: type[Kind], options: Any) -> Kind:
    """Return the settings that the options of a command line say.

    Raises:
        InputError: they contradict each other.
    """
    groups = [getattr(options, group.name) for group in dataclasses.fields(options)]
    said: dict[str, Any] = {}
    for group in groups:
        said |= {option.name: getattr(group, option.name) for option in dataclasses.fields(group)}
    # A flag has no word for no: without it nothing is said.
    return kind(**said | {name: None for name, value in said.items() if value is False})


def _option(field: dataclasses.Field[Any], kind: Any, *, continued: bool, refused: bool) -> tuple[str, Any, Any]:
    about, default = help_of(field), field.default
    if kind == bool | None:
        kind, default = bool, False
    shown = about.shown
    if continued and field.name in DERIVED:
        shown += ", unless RUN names it"
    elif continued and field.name != "device":
        shown = "as in RUN"
    hint = "(not with this verb)" if refused else f"(default: {shown})"
    described = tyro.conf.arg(help=about.text, metavar=about.metavar or None, help_behavior_hint=hint)
    return field.name, Annotated[kind, described], default


if TYPE_CHECKING:  # types that are made at run time are none to a type checker
    TrainOptions: TypeAlias = Any
    ContinueOptions: TypeAlias = Any
    CompareOptions: TypeAlias = Any
    SimulateOptions: TypeAlias = Any
    ServeOptions: TypeAlias = Any
else:
    TrainOptions = options_of(Settings)
    ContinueOptions = options_of(Settings, continued=True)
    CompareOptions = options_of(SharedSettings)
    SimulateOptions = options_of(Settings, refused=DECIDED_BY_ROUNDS)
    ServeOptions = options_of(Settings, refused=[*DECIDED_BY_ROUNDS, *CHOSEN_BY_SITES])
