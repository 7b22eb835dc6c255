"""What ComfyUI asks of a node, and what it does with one: a copy of its rules for tests, without ComfyUI.

Written from ComfyUI's documentation (docs.comfy.org, custom nodes) and the names in its `comfy_types/node_typing.py`,
`nodes.py` and `execution.py`: how a folder is loaded, what INPUT_TYPES may hold, how a prompt is checked and run.
"""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

LINKED = {"IMAGE", "MASK"}  # types that come from other nodes
NUMBERS = {"INT": int, "FLOAT": float}
OPTIONS = {
    "INT": {"default", "min", "max", "step", "tooltip"},
    "FLOAT": {"default", "min", "max", "step", "round", "tooltip"},
    "BOOLEAN": {"default", "label_on", "label_off", "tooltip"},
    "STRING": {"default", "multiline", "placeholder", "tooltip"},
    "COMBO": {"default", "tooltip"},
    "IMAGE": {"tooltip"},
    "MASK": {"tooltip"},
}


def load_folder(folder: Path) -> ModuleType:
    """A folder in custom_nodes, imported as ComfyUI does: as a package with a name made of its path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def inputs_of(node: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of each input, in the order in which ComfyUI shows them."""
    found = node.INPUT_TYPES()
    both = {**found["required"], **found.get("optional", {})}
    return {name: (given[0], given[1] if len(given) > 1 else {}) for name, given in both.items()}


def kind_of(given: Any) -> str:
    """The name of an input's type; a list is a choice."""
    return "COMBO" if isinstance(given, list) else given


def check_node(node: Any) -> None:
    """Everything that ComfyUI reads of a node's class."""
    assert inspect.ismethod(node.INPUT_TYPES)
    assert set(node.INPUT_TYPES()) <= {"required", "optional", "hidden"}
    assert "required" in node.INPUT_TYPES()
    for name, (given, options) in inputs_of(node).items():
        _check_input(name, given, options)
    assert isinstance(node.RETURN_TYPES, tuple)
    assert set(node.RETURN_TYPES) <= LINKED
    assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
    assert node.CATEGORY.strip("/") == node.CATEGORY != ""
    assert node.DESCRIPTION
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert next(iter(parameters)) == "self"
    assert list(parameters)[1:] == list(inputs_of(node))
    without_default = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    assert without_default[1:] == list(node.INPUT_TYPES()["required"])


def _check_input(name: str, given: Any, options: dict[str, Any]) -> None:
    kind = kind_of(given)
    assert name.isidentifier()
    assert set(options) <= OPTIONS[kind], name
    assert options["tooltip"], name
    if kind == "COMBO":
        assert given
        assert all(isinstance(choice, str) for choice in given)
        assert options["default"] in given
    elif kind in NUMBERS:
        number = NUMBERS[kind]
        assert all(type(options[key]) is number for key in ("default", "min", "max", "step")), name
        assert options["min"] <= options["default"] <= options["max"]
        assert 0 < options["step"] <= options["max"] - options["min"]
    elif kind not in LINKED:
        assert type(options["default"]) is {"BOOLEAN": bool, "STRING": str}[kind]


def defaults(node: Any) -> dict[str, Any]:
    """What the widgets show in a new node."""
    return {name: options["default"] for name, (_, options) in inputs_of(node).items() if "default" in options}


def validated(node: Any, given: dict[str, Any], linked: dict[str, str]) -> dict[str, Any]:
    """The inputs of a prompt as the node gets them; `linked` is the type of each input that comes from another node.

    Raises:
        ValueError: with the name that ComfyUI gives to this mistake.
    """
    found = {}
    for name, (kind, options) in inputs_of(node).items():
        if name not in given:
            if name in node.INPUT_TYPES()["required"]:
                raise ValueError(f"required_input_missing: {name}")
            continue
        value = given[name]
        if name in linked:
            if linked[name] != kind_of(kind):
                raise ValueError(f"return_type_mismatch: {name}, {linked[name]} != {kind}")
        elif isinstance(kind, list):
            if value not in kind:
                raise ValueError(f"value_not_in_list: {name}")
        else:
            value = {**NUMBERS, "BOOLEAN": bool, "STRING": str}[kind](value)
            if "min" in options and value < options["min"]:
                raise ValueError(f"value_smaller_than_min: {name}")
            if "max" in options and value > options["max"]:
                raise ValueError(f"value_bigger_than_max: {name}")
        found[name] = value
    return found


def execute(node: Any, **given: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: the widgets' values where nothing else is given, and nothing but the inputs."""
    kinds = inputs_of(node)
    linked = {name: kind_of(kinds[name][0]) for name in given if kind_of(kinds[name][0]) in LINKED}
    result = getattr(node(), node.FUNCTION)(**validated(node, {**defaults(node), **given}, linked))
    assert isinstance(result, tuple)
    assert len(result) == len(node.RETURN_TYPES)
    for value, kind in zip(result, node.RETURN_TYPES, strict=True):
        _check_value(value, kind)
    return result


def _check_value(value: Any, kind: str) -> None:
    """IMAGE is (B, H, W, 3 or 4), MASK (B, H, W): float32 in [0, 1]."""
    assert isinstance(value, torch.Tensor)
    assert value.dtype == torch.float32
    assert not value.requires_grad
    assert value.dim() == {"IMAGE": 4, "MASK": 3}[kind]
    assert 0 <= value.min() <= value.max() <= 1


def run_workflow(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[int, tuple[Any, ...]]:
    """The outputs of each node of a workflow as the editor saves it; `nodes` holds a class for each type.

    Values of widgets are listed in the order of INPUT_TYPES, without the inputs that are linked.
    """
    links = {link[0]: link for link in workflow["links"]}
    done: dict[int, tuple[Any, ...]] = {}
    for saved in sorted(workflow["nodes"], key=lambda saved: saved["order"]):
        node = nodes[saved["type"]]
        kinds = inputs_of(node)
        values, linked = {}, {}
        for slot, entry in enumerate(saved["inputs"]):
            number, source, output, target, target_slot, kind = links[entry["link"]]
            assert (target, target_slot, kind) == (saved["id"], slot, entry["type"])
            _check_link(workflow, number, source, output, kind)
            values[entry["name"]], linked[entry["name"]] = done[source][output], kind
        widgets = [name for name, (kind, _) in kinds.items() if kind_of(kind) not in LINKED]
        # LoadImage shows a button after its file's name, which has a value but is no input.
        shown = saved["widgets_values"][: len(widgets)] if saved["type"] == "LoadImage" else saved["widgets_values"]
        values.update(zip(widgets, shown, strict=True))
        outputs = [(entry["name"], entry["type"]) for entry in saved["outputs"]]
        assert [kind for _, kind in outputs] == list(node.RETURN_TYPES)
        done[saved["id"]] = getattr(node(), node.FUNCTION)(**validated(node, values, linked))
    return done


def _check_link(workflow: dict[str, Any], number: int, source: int, output: int, kind: str) -> None:
    (saved,) = (saved for saved in workflow["nodes"] if saved["id"] == source)
    assert saved["outputs"][output]["type"] == kind
    assert number in saved["outputs"][output]["links"]
