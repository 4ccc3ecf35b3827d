"""The OpenAPI description of what is deployed, from the functions' own signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nubes import __version__, signatures
from nubes.functions.spec import FunctionSpec
from nubes.signatures import KEYWORD, MANY, OTHERS, POSITIONAL, Signature


def describe(specs: Mapping[str, FunctionSpec], url: str) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    for spec in specs.values():
        for method in spec.methods if spec.kind == "class" else ("",):
            paths.update(_function(spec, method))
    paths["/v1/calls/{call_id}"] = _CALL
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nubes",
            "version": __version__,
            "description": "The functions deployed on this control plane.",
        },
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "Call": _CALL_SCHEMA},
        },
    }


def signature_of(spec: FunctionSpec, method: str = "") -> Signature | None:
    """A deployed function's signature, read from its source; None for one that was sent as an object."""
    if not spec.code.file or spec.code.pickled:
        return None
    return signatures.read(spec.code.file, f"{spec.code.qualname}.{method}" if method else spec.code.qualname)


def _function(spec: FunctionSpec, method: str) -> dict[str, Any]:
    signature = signature_of(spec, method)
    name = f"{spec.name}.{method}" if method else spec.name
    app = name.partition("/")[0]
    about = {"summary": name, "description": signature.about if signature else "", "tags": [app]}
    body = {"content": {"application/json": {"schema": _arguments(signature)}}}
    ident = name.replace("/", "_").replace(".", "_")
    generator = signature.generator if signature else spec.generator
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}}
    result = {
        **_CALL_SCHEMA,
        "properties": {**_CALL_SCHEMA["properties"], "result": _schema(signature.returns) if signature else {}},
    }
    where = f"/v1/functions/{name}"
    paths: dict[str, Any] = {}
    web = spec.endpoints.get(method) if method else spec.web
    if web is not None and web.kind == "asgi":
        return {}  # it describes itself
    if generator:
        paths[f"{where}/stream"] = {
            "post": {
                **about,
                "operationId": f"stream_{ident}",
                "requestBody": body,
                "responses": _answers(200, "text/event-stream", {}),
            }
        }
    else:
        invoke = {**about, "operationId": f"invoke_{ident}", "parameters": [key], "requestBody": body}
        spawn = {**invoke, "operationId": f"spawn_{ident}", "summary": f"{name} (in the background)"}
        paths[f"{where}/invoke"] = {"post": {**invoke, "responses": _answers(200, "application/json", result)}}
        paths[f"{where}/spawn"] = {
            "post": {**spawn, "responses": _answers(202, "application/json", {"$ref": "#/components/schemas/Call"})}
        }
    if web is not None:
        paths[f"/{name}"] = {
            web.method.lower(): {**about, "operationId": f"web_{ident}", **_web(web.method, web.public, signature)}
        }
    return paths


def _web(method: str, public: bool, signature: Signature | None) -> dict[str, Any]:
    described: dict[str, Any] = {"security": []} if public else {}
    if method in ("GET", "DELETE", "HEAD"):
        described["parameters"] = [
            {"name": p.name, "in": "query", "required": p.required, "schema": _property(p)}
            for p in (signature.parameters if signature else ())
            if p.kind in (POSITIONAL, KEYWORD)
        ]
    else:
        described["requestBody"] = {"content": {"application/json": {"schema": _arguments(signature)}}}
    result = _schema(signature.returns) if signature else {}
    return {**described, "responses": _answers(200, "application/json", result)}


def _arguments(signature: Signature | None) -> dict[str, Any]:
    if signature is None:
        return {"type": "object", "additionalProperties": True}
    named = [p for p in signature.parameters if p.kind in (POSITIONAL, KEYWORD)]
    extra = any(p.kind in (MANY, OTHERS) for p in signature.parameters)
    return {
        "type": "object",
        "properties": {p.name: _property(p) for p in named},
        "required": [p.name for p in named if p.required],
        "additionalProperties": extra,
    }


def _property(p: signatures.Parameter) -> dict[str, Any]:
    schema = _schema(p.type)
    return schema if p.required or p.default is None else {**schema, "default": p.default}


def _schema(kind: Any) -> dict[str, Any]:
    try:
        return {} if kind is Any else msgspec.json.schema(kind)
    except (TypeError, ValueError):
        return {}


def _answers(status: int, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    error = {
        "description": "Error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return {str(status): {"description": "OK", "content": {kind: {"schema": schema}}}, "default": error}


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}  # fmt: skip
_STATES = ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"]
_CALL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"call_id": {"type": "string"}, "status": {"type": "string", "enum": _STATES}},
}
_ID = {"name": "call_id", "in": "path", "required": True, "schema": {"type": "string"}}
_TIMEOUT = {"name": "timeout", "in": "query", "description": "seconds to wait", "schema": {"type": "number"}}
_CALL = {
    "get": {
        "summary": "The state and the result of a call", "operationId": "get_call", "tags": ["calls"],
        "parameters": [_ID, _TIMEOUT],
        "responses": {
            **_answers(200, "application/json", {"$ref": "#/components/schemas/Call"}),
            "202": {"description": "It has not ended yet."},
        },
    },
    "delete": {
        "summary": "Cancels a call", "operationId": "cancel_call", "tags": ["calls"], "parameters": [_ID],
        "responses": _answers(200, "application/json", {"$ref": "#/components/schemas/Call"}),
    },
}  # fmt: skip
