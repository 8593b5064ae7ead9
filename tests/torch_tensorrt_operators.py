"""Writes down which operators a release of torch-tensorrt converts, read from its wheel without running any of it.

    pip download --no-deps torch-tensorrt==2.13.0
    python tests/torch_tensorrt_operators.py torch_tensorrt-2.13.0-*.whl > tests/data/torch_tensorrt_converters.json

operators: those with a converter that is registered whatever else is installed; replaced: those that torch-tensorrt
rewrites by code of its own before it converts; decomposed, kept: those that it has torch decompose, or leave whole.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

CONVERTERS = [f"torch_tensorrt/dynamo/conversion/{name}.py"
              for name in ("aten_ops_converters", "ops_evaluators", "prims_ops_converters", "custom_ops_converters")]
GROUPS = "torch_tensorrt/dynamo/lowering/_decomposition_groups.py"
OWN = "torch_tensorrt/dynamo/lowering/_decompositions.py"


def facts(wheel: Path) -> dict[str, str | list[str]]:
    """Names of operators, without the leading `torch.ops.`, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        trees = {path: ast.parse(archive.read(path)) for path in (*CONVERTERS, GROUPS, OWN)}
    operators = {name for path in CONVERTERS for name in registered(trees[path], "dynamo_tensorrt_converter")}
    sets = {target.id: {named(item) for item in node.value.elts}
            for node in ast.walk(trees[GROUPS]) if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Set)
            for target in [node.target] if isinstance(target, ast.Name)}
    own = set(registered(trees[OWN], "register_torch_trt_decomposition"))
    own |= {named(node.value.args[0]) for node in trees[OWN].body if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "replace_inplace_op"}
    return {"version": wheel.name.split("-")[1], "operators": sorted(operators), "replaced": sorted(own),
            "decomposed": sorted(sets["torch_enabled_decompositions"]),
            "kept": sorted(sets["torch_disabled_decompositions"])}


def registered(tree: ast.Module, decorator: str) -> Iterator[str]:
    """Operators that top-level functions are registered for; those inside `if` and `try` may not be there."""
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            for call in function.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                    yield named(call.args[0])


def named(operator: ast.expr) -> str:
    return ast.unparse(operator).removeprefix("torch.ops.")


if __name__ == "__main__":
    json.dump(facts(Path(sys.argv[1])), sys.stdout, indent=1)
    print()
