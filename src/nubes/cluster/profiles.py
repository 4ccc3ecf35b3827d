"""Host profiles: named settings that a machine is given before it joins an entitlement (Twine).

A machine is drained, set up, restarted if a setting asks for it, and checked; only then it takes work.
"""

from __future__ import annotations

import msgspec

from nubes.kernel.message import Command, Event


class Profile(msgspec.Struct, frozen=True):
    """Settings by their names, and those of them that only hold after a restart of the machine."""

    name: str
    settings: dict[str, str] = {}
    restart: frozenset[str] = frozenset()


class Switch(Event, frozen=True):
    """The machine is to get this profile."""

    profile: Profile


class Done(Event, frozen=True):
    """The step that was commanded last is done, or failed."""

    ok: bool = True
    reason: str = ""


class DrainHost(Command, frozen=True):
    """End or move what runs there, through its TaskControl."""


class ApplySettings(Command, frozen=True):
    settings: dict[str, str]


class RestartHost(Command, frozen=True):
    pass


class CheckHost(Command, frozen=True):
    """See whether it is well and the settings hold."""

    settings: dict[str, str]


class Ready(Command, frozen=True):
    """It has the profile, and may take work."""

    profile: str


class Broken(Command, frozen=True):
    """It is to take no work: a step failed `attempts` times."""

    reason: str


STEPS = ("drain", "apply", "restart", "check")


class Host:
    """One machine's way from profile to profile. Sans-I/O. What has the wanted settings already is only checked."""

    def __init__(self, attempts: int = 2) -> None:
        self.attempts = attempts
        self.profile = Profile("")
        self.wanted = Profile("")
        self.step = ""  # of STEPS; "": none
        self.failures = 0
        self.usable = True

    def handle(self, event: Event, now: float) -> list[Command]:
        if isinstance(event, Switch):
            if event.profile == (self.wanted if self.step else self.profile) and (self.step or self.usable):
                return [] if self.step else [Ready(self.profile.name)]
            idle = not self.step
            self.wanted, self.failures = event.profile, 0
            if idle or self.step in ("apply", "restart", "check"):  # what is under way is of no use: it is drained yet
                return self._to("apply" if not idle else "drain")
            return []
        if not isinstance(event, Done) or not self.step:
            return []
        if not event.ok:
            return self._failed(event.reason)
        return self._next()

    def _changes(self) -> dict[str, str]:
        """The settings that differ; those that the new profile does not name stand at their defaults, ""."""
        names = dict.fromkeys([*self.wanted.settings, *self.profile.settings])
        new, old = self.wanted.settings, self.profile.settings
        return {name: new.get(name, "") for name in names if new.get(name, "") != old.get(name, "")}

    def _next(self) -> list[Command]:
        changes = self._changes()
        if self.step == "drain":
            return self._to("apply" if changes else "check")
        if self.step == "apply":
            again = {*self.wanted.restart, *self.profile.restart} & changes.keys()
            return self._to("restart" if again else "check")
        if self.step == "restart":
            return self._to("check")
        self.profile, self.step, self.usable = self.wanted, "", True
        return [Ready(self.profile.name)]

    def _to(self, step: str) -> list[Command]:
        self.step, self.usable = step, False
        made: dict[str, Command] = {
            "drain": DrainHost(),
            "apply": ApplySettings(self._changes()),
            "restart": RestartHost(),
            "check": CheckHost(self.wanted.settings),
        }
        return [made[step]]

    def _failed(self, reason: str) -> list[Command]:
        """Tries again from where settings are made, and gives up after a few attempts."""
        self.failures += 1
        if self.failures < self.attempts:
            return self._to("drain" if self.step == "drain" else "apply")
        self.step = ""
        return [Broken(reason)]
