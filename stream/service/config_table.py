"""The table of the configuration's keys in the service's guide.

    python -m stream.service.config_table stream/service/README.md      # renews it"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream.service.config import Config

LIMIT_SIGNS = {"exclusiveMinimum": "&gt;", "minimum": "&ge;", "maximum": "&le;"}  # of a JSON schema, for Markdown
TABLE_BEGINS, TABLE_ENDS = "<!-- keys, by python -m stream.service.config_table -->\n", "<!-- end of keys -->"


def key_table() -> str:
    """A Markdown table of all keys: key, type, default, meaning."""
    schema = Config.model_json_schema()
    rows = [("key", "type", "default", "meaning"), ("---",) * 4, *_rows(schema, schema["$defs"], "")]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def renew_table(text: str) -> str:
    """The text of a README with the present table of keys between its marks."""
    return re.sub(f"(?<={TABLE_BEGINS}).*(?={TABLE_ENDS})", lambda _: key_table(), text, flags=re.DOTALL)


def _rows(table: dict[str, Any], tables: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    for key, field in table["properties"].items():
        [value] = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        if reference := value.get("$ref") or value.get("items", {}).get("$ref"):
            inner = tables[reference.rpartition("/")[2]]
            name = f"[{prefix}{key}]" if "$ref" in value else f"[[{prefix}{key}]]"
            yield f"**{name}**", "", "", inner["description"]
            yield from _rows(inner, tables, f"{prefix}{key}.")
        else:
            default = f"`{json.dumps(field['default'])}`" if field.get("default") is not None else ""
            required = key in table.get("required", ())
            yield f"`{prefix}{key}`", _type(value), "required" if required else default, field["description"]


def _type(value: dict[str, Any]) -> str:
    if value["type"] == "array":
        count = f"{value['maxItems']} of" if "maxItems" in value else "list of"
        return f"{count} {_type(value.get('items') or value['prefixItems'][0])}"
    kind = " or ".join(value.get("enum", ())) or value.get("format", value["type"])
    return " ".join([kind, *(f"{sign} {value[key]:g}" for key, sign in LIMIT_SIGNS.items() if key in value)])


if __name__ == "__main__":
    for readme in map(Path, sys.argv[1:]):
        readme.write_text(renew_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
