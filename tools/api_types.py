"""Writes the TypeScript types of the web API: `python tools/api_types.py > web/src/api.ts`."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from stageflow.ui import _api

_HEADER = """\
// Generated from src/stageflow/ui/_api.py by `make api-types`. Do not edit.
"""

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}


def main() -> None:
    """Write the types to standard output."""
    sys.stdout.write(api_types())


def api_types() -> str:
    """Return the TypeScript types of all responses."""
    kinds = [getattr(_api, name) for name in _api.__all__]
    _, components = msgspec.json.schema_components(kinds, ref_template="{name}")
    parts = [_HEADER]
    for name, schema in sorted(components.items()):
        first = str(schema.get("description", "")).partition("\n")[0]
        comment = f"/** {first} */\n" if first else ""
        parts.append(f"{comment}export type {name} = {_type(schema)};\n")
    return "\n".join(parts)


def _type(schema: dict[str, Any], indent: str = "") -> str:
    if "$ref" in schema:
        return str(schema["$ref"])
    if "anyOf" in schema:
        kinds = {_type(each, indent) for each in schema["anyOf"]}
        return " | ".join(sorted(kinds, key=lambda kind: (kind == "null", kind)))
    if "enum" in schema:
        return " | ".join(
            "null" if each is None else msgspec.json.encode(each).decode() for each in schema["enum"]
        )
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(_type(each, indent) for each in schema["prefixItems"]) + "]"
        inner = _type(schema.get("items", {}), indent)
        return f"({inner})[]" if " " in inner and not inner.startswith("{") else f"{inner}[]"
    if kind == "object" and "properties" in schema:
        deeper = indent + "  "

        fields = "".join(
            f"{deeper}{key}: {_type(value, deeper)};\n" for key, value in schema["properties"].items()
        )
        return "{\n" + fields + indent + "}"
    if kind == "object":
        extra = schema.get("additionalProperties")
        return f"Record<string, {_type(extra, indent) if isinstance(extra, dict) else 'unknown'}>"
    return _SCALARS.get(kind, "unknown") if isinstance(kind, str) else "unknown"


if __name__ == "__main__":
    main()
