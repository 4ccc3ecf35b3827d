"""The registry: policies are found by seam and name, made from text, and come from any package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.kernel import policy as registry
from nubes.kernel.errors import UnknownPolicy, UsageError
from nubes.kernel.policy import SEAMS, Policy, decision, decisions_of, find, make, policies, policy, seam, split


class Fruit(Policy):
    @decision
    def eat(self, hunger: int) -> int:
        return hunger

    def watch(self) -> None: ...


class Apple(Fruit):
    def __init__(self, size: int = 1, colour: str = "red", ripe: bool = True, weight: float = 0.5) -> None:
        self.made_of = (size, colour, ripe, weight)

    def eat(self, hunger: int) -> int:
        return hunger - 1


class Pear(Fruit): ...


class Pineapple(Fruit): ...


@pytest.fixture(autouse=True)
def fruits() -> Iterator[None]:
    seam("fruit", default="pear")(Fruit)
    for name, cls in (("apple", Apple), ("pear", Pear), ("pine-apple", Pineapple)):
        policy(name)(cls)
    yield
    del SEAMS["fruit"]
    for key in [key for key in registry._POLICIES if key[0] == "fruit"]:
        del registry._POLICIES[key]


def test_found_by_seam_and_name() -> None:
    assert find("fruit", "apple") is Apple
    assert [p.name for p in policies("fruit")] == ["apple", "pear", "pine-apple"]
    assert Apple in set(policies())
    assert Apple.seam == "fruit"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownPolicy) as caught:
        find("fruit", "aple")
    assert str(caught.value) == "No fruit policy is named 'aple'. Did you mean apple or pine-apple or pear?"
    with pytest.raises(UnknownPolicy, match="There are: apple, pear, pine-apple"):
        find("fruit", "xyzzy")


@pytest.mark.parametrize("text", [None, "apple"])
def test_an_unknown_seam_gets_all_seams(text: str | None) -> None:
    with pytest.raises(UnknownPolicy, match="There is no seam 'fruits'. The seams are: .*fruit"):
        make("fruits", text)


@pytest.mark.parametrize(
    ("text", "made_of"),
    [
        ("apple", (1, "red", True, 0.5)),
        (" apple( ) ", (1, "red", True, 0.5)),
        ("apple(size=3)", (3, "red", True, 0.5)),
        ("apple(colour=dark green, ripe=false; weight=1e-3)", (1, "dark green", False, 0.001)),
        ("apple(weight=inf)", (1, "red", True, float("inf"))),
    ],
)
def test_made_from_text(text: str, made_of: tuple[Any, ...]) -> None:
    made = make("fruit", text)
    assert made.made_of == made_of
    assert made.text == text.strip()
    assert make("fruit", made) is made
    assert make("fruit", made.text).made_of == made_of


def test_none_is_the_default() -> None:
    assert type(make("fruit")) is Pear
    assert make("fruit").text == "pear"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a policy"),
        ("apple(", "is not a policy"),
        ("apple pie", "is not a policy"),
        ("apple(3)", "'3' in 'apple\\(3\\)' is no argument. Arguments are written name=value"),
        ("apple(mass=3)", "apple takes: size, colour, ripe, weight"),
        ("pear(size=3)", "pear takes: none"),
    ],
)
def test_wrong_text_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make("fruit", text)


@given(st.lists(st.sampled_from(["apple", "pear(a=1,b=2)", "x(y=1;z=2)", "fixed-window(keep=10m)"]), max_size=5))
def test_split_is_the_inverse_of_join(texts: list[str]) -> None:
    assert split(",".join(texts)) == texts
    assert split(" , ".join(texts)) == texts


def test_two_policies_of_one_name() -> None:
    class Other(Fruit): ...

    with pytest.raises(UsageError, match="Two policies are named 'apple' on 'fruit'"):
        policy("apple")(Other)
    Impostor = type("Apple", (Fruit,), {"__module__": "elsewhere", "__qualname__": "Apple"})
    with pytest.raises(UsageError, match="Two policies"):
        policy("apple")(Impostor)
    policy("apple")(Apple)  # the same class again, as when a module is loaded twice


def test_a_policy_without_a_seam() -> None:
    class Stone(Policy): ...

    with pytest.raises(UsageError, match="extends no seam"):
        policy("stone")(Stone)


def test_overridden_decisions_are_decisions() -> None:
    assert decisions_of(Fruit) == decisions_of(Apple) == ["eat"]


def test_every_seam_has_the_default_it_names() -> None:
    registry.load()
    for name in SEAMS:
        assert make(name).text == SEAMS[name].default


# -- third-party packages -------------------------------------------------------------------------------------------

THIRD_PARTY = """
from nubes.functions.seams import KeepAlive, Window
from nubes.kernel.policy import policy


@policy("an-hour")
class AnHour(KeepAlive):
    def window(self, f, now):
        return Window(0.0, 3600.0)
"""


def distribution(folder: Path, source: str) -> None:
    """What installing a package leaves behind: its modules, and a .dist-info that announces them."""
    info = folder / "nubes_hour-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nubes-hour\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nubes.policies]\nhour = nubes_hour\n")
    (folder / "nubes_hour").mkdir()
    (folder / "nubes_hour" / "__init__.py").write_text("")
    (folder / "nubes_hour" / "policies.py").write_text(source)


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)


def test_a_third_party_package_adds_a_policy(tmp_path: Path) -> None:
    distribution(tmp_path, THIRD_PARTY)
    script = "from nubes.kernel.policy import make; p = make('keep-alive', 'an-hour'); print(p.text, p.window(None, 0.0).keep_s)"
    assert run(tmp_path, script).stdout == "an-hour 3600.0\n"


def test_a_broken_third_party_package_is_named(tmp_path: Path) -> None:
    distribution(tmp_path, "import a_module_that_is_not_there")
    script = """
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import find
for _ in range(2):
    try:
        find("keep-alive", "fixed-window")
    except UsageError as error:
        print(error)
"""
    message = "The policies of package 'nubes-hour' cannot be imported: No module named 'a_module_that_is_not_there'. Mend or uninstall 'nubes-hour'.\n"
    assert run(tmp_path, script).stdout == message * 2
