"""Validation errors in the words of a recipe: dotted path, what was seen, what would do, nearest key."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from launcher.recipe.yaml_io import nearest

MOST_SHOWN = 3


def explain(error: ValidationError, model: type[BaseModel], values: Any, source: str) -> str:
    """Return one paragraph on why `values`, read from `source`, are no `model`."""
    problems = error.errors(include_url=False)
    sentences = [_sentence(problem, model, values) for problem in problems[:MOST_SHOWN]]
    if len(problems) > MOST_SHOWN:
        sentences.append(f"There are {len(problems) - MOST_SHOWN} more problems.")
    return f"{source}: " + " ".join(sentences)


def _sentence(problem: Any, model: type[BaseModel], values: Any) -> str:
    location = problem["loc"]
    dotted, _ = _locate(model, location, values)
    kind = problem["type"]
    if kind == "extra_forbidden":
        _, parent = _locate(model, location[:-1], values)
        key = str(location[-1])
        return f"{dotted} is not a key{nearest(key, _keys(parent))}"
    if kind == "missing":
        description = _description(model, location, values)
        return f"{dotted} is missing{description}. Add it to the recipe or pass --set {dotted}=VALUE."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_sentence(problem, dotted)
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{dotted or 'the recipe'}: {message}."
    seen = repr(problem["input"])
    return f"{dotted} is {seen[:60]} ({type(problem['input']).__name__}): {message[0].lower()}{message[1:]}."


def _tag_sentence(problem: Any, dotted: str) -> str:
    key = problem["ctx"]["discriminator"].strip("'")
    if problem["type"] == "union_tag_not_found":
        return f"{dotted}.{key} is missing; it says which keys belong there."
    seen = problem["ctx"]["tag"]
    expected = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
    return f"{dotted}.{key} is {seen!r}, which is none{nearest(seen, expected)}"


def _locate(model: type[BaseModel], location: tuple[Any, ...], values: Any) -> tuple[str, Any]:
    """Return the dotted path of a pydantic location, stages by name, and the annotation found there."""
    path: list[str] = []
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            annotation = next((get_args(a)[0] for a in _alternatives(annotation) if get_args(a)), None)
            values = values[part] if isinstance(values, list | tuple) and part < len(values) else None
            path.append(str(values["name"]) if isinstance(values, dict) and "name" in values else str(part))
            continue
        if len(_models(annotation)) > 1:  # a discriminated union: pydantic puts the tag into the location
            annotation = _tagged(annotation, part)
            continue
        annotation = _field_annotation(annotation, part)
        values = values.get(part) if isinstance(values, dict) else None
        path.append(str(part))
    return ".".join(path), annotation


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of unions, through Annotated and type aliases."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _alternatives(argument)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]


def _tagged(annotation: Any, tag: str) -> type[BaseModel] | None:
    """Return the member of a discriminated union that carries a tag."""
    for member in _models(annotation):
        for field in member.model_fields.values():
            if get_origin(field.annotation) is Literal and tag in get_args(field.annotation):
                return member
    return None


def _field_annotation(annotation: Any, key: str) -> Any:
    for member in _models(annotation):
        if key in member.model_fields:
            return member.model_fields[key].annotation
    return None


def _keys(parent: Any) -> list[str]:
    return [key for member in _models(parent) for key in member.model_fields]


def _description(model: type[BaseModel], location: tuple[Any, ...], values: Any) -> str:
    _, parent = _locate(model, location[:-1], values)
    for member in _models(parent):
        field = member.model_fields.get(str(location[-1]))
        if field and field.description:
            return f" ({field.description})"
    return ""
