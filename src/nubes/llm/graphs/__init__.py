"""Programs of several calls to one model: semantic functions, semantic variables, and the graph that they make."""

from nubes.llm.graphs.program import SemanticFunction, Session, Variable, semantic_function
from nubes.llm.graphs.spec import LATENCY, THROUGHPUT, TPOT, TTFT, json_field, regex, strip

__all__ = [
    "LATENCY", "THROUGHPUT", "TPOT", "TTFT", "SemanticFunction", "Session", "Variable", "json_field", "regex",
    "semantic_function", "strip",
]  # fmt: skip
