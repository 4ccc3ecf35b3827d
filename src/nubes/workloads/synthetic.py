"""Workloads that are made up, from published fits where there are any: they stand in where traces are absent."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil, pi
from typing import TYPE_CHECKING, Any

from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.policy import near
from nubes.workloads.draws import generator, lognormal, starts, weibull_of
from nubes.workloads.workload import Workload
