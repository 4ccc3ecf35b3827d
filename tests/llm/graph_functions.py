"""Semantic functions that tests of programs run."""

from __future__ import annotations

from nubes.llm.graphs import semantic_function


@semantic_function(max_tokens=6, temperature=0.0, ignore_eos=True)
def shorten(text: str) -> None:
    """Text: {{input:text}}
    Shorter:{{output:short}}"""


@semantic_function(max_tokens=6, temperature=0.0, ignore_eos=True)
def join(one: str, other: str) -> None:
    """{{input:one}} and {{input:other}}:{{output:both}}"""
