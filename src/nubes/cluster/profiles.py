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


class Host:
    """One machine's way from profile to profile. Sans-I/O: every command but the last two is answered by `Done`.

    A profile that is wanted while another is being set up comes after it. What has the profile already stays as it is.
    """

    def __init__(self, attempts: int = 2) -> None:
        self.attempts = attempts
        self.profile = Profile("")  # what it has
        self.target = self.wanted = self.profile  # what it is getting, and what it is to have in the end
        self.unsure: set[str] = set()  # settings that may have either value
        self.step = ""  # drain | apply | restart | check; "": none
        self.failures = 0
        self.usable = True

    def handle(self, event: Event, now: float) -> list[Command]:
        if isinstance(event, Switch):
            self.wanted = event.profile
            if self.step:
                return []
            if self.usable and self.wanted == self.profile:
                return [Ready(self.profile.name)]
            return self._begin("drain")
        if not isinstance(event, Done) or not self.step:
            return []
        return self._next() if event.ok else self._failed(event.reason)

    def _begin(self, step: str) -> list[Command]:
        self.target, self.failures = self.wanted, 0
        return self._to(step)

    def _changes(self) -> dict[str, str]:
        """The settings to make; what the new profile does not name goes back to its default, ""."""
        new, old = self.target.settings, self.profile.settings
        names = sorted({*new, *old, *self.unsure})
        return {name: new.get(name, "") for name in names if name in self.unsure or new.get(name) != old.get(name)}

    def _next(self) -> list[Command]:
        if self.step == "drain":
            return self._to("apply" if self._changes() else "check")
        if self.step == "apply":
            again = {*self.target.restart, *self.profile.restart} & self.unsure
            return self._to("restart" if again else "check")
        if self.step == "restart":
            return self._to("check")
        self.profile = self.target
        self.unsure.clear()
        if self.wanted != self.profile:
            return self._begin("apply")
        self.step, self.usable = "", True
        return [Ready(self.profile.name)]

    def _to(self, step: str) -> list[Command]:
        self.step, self.usable = step, False
        if step == "drain":
            return [DrainHost()]
        if step == "apply":
            changes = self._changes()
            self.unsure |= changes.keys()
            return [ApplySettings(changes)]
        return [RestartHost() if step == "restart" else CheckHost(self.target.settings)]

    def _failed(self, reason: str) -> list[Command]:
        """Tries again from where settings are made, and gives up after a few attempts."""
        self.failures += 1
        if self.failures < self.attempts:
            return self._to("drain" if self.step == "drain" else "apply")
        self.step = ""
        return [Broken(reason)]
