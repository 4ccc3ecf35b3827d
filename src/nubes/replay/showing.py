"""Explanations for people and for programs."""

from __future__ import annotations

from enum import Enum
from math import inf, isinf
from typing import TYPE_CHECKING, Any

import msgspec

from nubes import ids
from nubes.functions.seams import FunctionView, Grow
from nubes.functions.spec import FunctionSpec
from nubes.kernel.decisions import Decision
from nubes.kernel.message import Command, Event
from nubes.kernel.units import show_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nubes.replay.why import Explanation, Step

SHOWN = 6  # scores and runners-up on screen; JSON has all
INSTANTS = (
    "arrived_s",
    "last_arrival_s",
    "last_end_s",
    "last_used_s",
    "ready_s",
    "started_s",
)  # of views


def plain(value: Any) -> Any:
    """Plain data from views, events and choices: specs by name, bytes by their number, infinities as null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return None if isinf(value) else value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, FunctionSpec):
        return value.name
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        kind = {"kind": type(value).__name__} if isinstance(value, (Event, Command)) else {}
        return kind | {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    slots = [slot for cls in type(value).__mro__ for slot in getattr(cls, "__slots__", ())]
    return {slot: plain(getattr(value, slot)) for slot in sorted(slots) if hasattr(value, slot)}


def explanation_dict(explanation: Explanation) -> dict[str, Any]:
    return {
        "call": explanation.call,
        "function": explanation.function,
        "status": explanation.status,
        "verdict": explanation.verdict,
        "steps": [_step_dict(step) for step in explanation.steps],
    }


def _step_dict(step: Step) -> dict[str, Any]:
    return {
        "record": step.number,
        "at": step.at,
        "role": step.role,
        "event": plain(step.event),
        "commands": [plain(command) for command in step.commands],
        "decisions": [_decision_dict(decision) for decision in step.decisions],
    }


def _decision_dict(decision: Decision) -> dict[str, Any]:
    return {
        "seam": decision.seam,
        "policy": decision.policy,
        "question": decision.question,
        "view": plain(decision.view()),
        "choice": plain(decision.choice),
        "scores": [[name, plain(score)] for name, score in decision.scores],
    }


def explanation_text(explanation: Explanation) -> RenderableType:
    """For a terminal: the verdict, then a line for each step with its decisions below it."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    head = ((f"call {ids.show(explanation.call)}", "bold"), f"  {explanation.function}  ", (explanation.status, "cyan"))
    arrivals = (s.at for s in explanation.steps if getattr(s.event, "call", None) == explanation.call)
    arrived_s = next(arrivals, explanation.steps[0].at)
    root = Tree(Text("what happened, in time from the call's arrival", style="dim"), guide_style="dim")
    for step in explanation.steps:
        branch = root.add(Text.assemble((f"{_offset(step.at - arrived_s):>10}  ", "dim"), step.role))
        mine = [d for d in step.decisions if _about(d) == explanation.function]
        for decision in mine:
            branch.add(_decision_text(decision))
        for ranked in _rankings([d for d in step.decisions if d not in mine]):
            branch.add(_ranking_text(ranked))
    return Group(Text.assemble(*head), Text(explanation.verdict), Text(), root)


def _about(decision: Decision) -> str:
    """The function that was decided about; "" for a choice between instances or parents."""
    view = decision.view()
    return view[0].name if view and isinstance(view[0], FunctionView) else ""


def _rankings(decisions: list[Decision]) -> list[list[Decision]]:
    """Questions that put instances or parents in order, asked one after the other about each: one ranking."""
    rankings: list[list[Decision]] = []
    for decision in decisions:
        if _about(decision):
            continue
        if rankings and rankings[-1][0].question == decision.question:
            rankings[-1].append(decision)
        else:
            rankings.append([decision])
    return rankings


def _ranking_text(decisions: list[Decision]) -> RenderableType:
    from rich.text import Text

    first = decisions[0]
    ranked = sorted(decisions, key=lambda d: d.choice)
    shown = [f"{_subject(d.view()[0])} {d.choice:.4g}" for d in ranked[:SHOWN]]
    more = f" and {len(ranked) - SHOWN} more" if len(ranked) > SHOWN else ""
    asked = f"{first.policy} ({first.seam}) was asked {first.question} of {len(ranked)}, the lowest goes: "
    return Text.assemble((asked, "yellow"), (shown[0], "bold"), (", ".join(["", *shown[1:]]) + more, "dim"))


def _subject(view: Any) -> str:
    function = getattr(view, "function", "")
    return f"{getattr(function, 'name', function)}#{view.id}"


def _decision_text(decision: Decision) -> RenderableType:
    from rich.text import Text

    asked = f"{decision.policy} ({decision.seam}) was asked {decision.question}: "
    text = Text.assemble((asked, "yellow"), (_choice(decision.choice), "bold"))
    if decision.view():
        seen = _fields(decision.view()[0], decision.at)
        text.append(f"\nit saw {', '.join(seen)}" if seen else "", "dim")
    if decision.scores:
        text.append("\nscores: " + ", ".join(f"{name} {score:.4g}" for name, score in decision.scores[:SHOWN]), "dim")
    return text


def _choice(choice: Any) -> str:
    if isinstance(choice, msgspec.Struct):
        fields = ((name, getattr(choice, name)) for name in choice.__struct_fields__)
        return ", ".join(f"{_words(name)} {_value(name, value)}" for name, value in fields if value != ())
    if isinstance(choice, tuple):
        return ", then ".join(_grow(item) if isinstance(item, Grow) else _value("", item) for item in choice)
    return _value("", choice)


def _grow(grow: Grow) -> str:
    return grow.function or ", ".join(grow.imports) or "a bare interpreter"


def _fields(view: Any, now: float) -> list[str]:
    """The fields of a view that say something: numbers that are neither zero nor unknown."""
    shown = []
    for name, value in plain(view).items():
        if name in INSTANTS and value is not None:
            shown.append(f"{_words(name)} {show_seconds(now - value)} ago")
        elif name != "id" and isinstance(value, (int, float)) and value:
            shown.append(f"{_words(name)} {_value(name, value)}")
    return shown


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _value(name: str, value: Any) -> str:
    if isinstance(value, float):
        if value == inf:
            return "for good" if name.endswith("_s") else "unlimited"
        return show_seconds(value) if name.endswith("_s") else f"{value:.4g}"
    return _choice(value) if isinstance(value, tuple) else str(plain(value))


def _offset(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{show_seconds(abs(seconds))}"
