"""Validation errors in the words of a recipe: dotted path, what was seen, what would do, nearest key."""

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from launcher.errors import ConfigError
from launcher.recipe.yaml_io import item_name, nearest

Model = TypeVar("Model", bound=BaseModel)

# More problems than these are counted: the message stays one paragraph.
MAX_PROBLEMS = 3
# Of a value that is quoted in a message.
MAX_QUOTED_CHARACTERS = 60


def validate(model: type[Model], values: Any, source: str) -> Model:
    """Return the `model` that plain values describe; ConfigError, which begins with `source`, when they are none.

    Only a number is taken for a number, and only a finite one: pydantic would read true as 1 and the text inf as a
    number.
    """
    try:
        validated = model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, model, values, source)) from None
    sentences = list(_number_problems(values, validated, ""))
    if sentences:
        raise ConfigError(f"{source}: {_paragraph(sentences)}")
    return validated


def explain(error: ValidationError, model: type[BaseModel], values: Any, source: str) -> str:
    """Return one paragraph on why `values`, read from `source`, are no `model`."""
    sentences = [_sentence(problem, model, values) for problem in error.errors(include_url=False)]
    return f"{source}: {_paragraph(sentences)}"


def _paragraph(sentences: list[str]) -> str:
    paragraph = " ".join(sentences[:MAX_PROBLEMS])
    num_more = len(sentences) - MAX_PROBLEMS
    if num_more == 1:
        paragraph += " There is 1 more problem."
    elif num_more > 1:
        paragraph += f" There are {num_more} more problems."
    return paragraph


def _number_problems(given: Any, validated: Any, dotted: str) -> Iterator[str]:
    """Yield a sentence for each number that was made of something else, or is infinite or undefined."""
    if isinstance(given, dict) and isinstance(validated, BaseModel):
        for key, value in given.items():
            # What a validator has renamed is no number.
            yield from _number_problems(value, getattr(validated, key, None), f"{dotted}.{key}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(validated, tuple):
        for number, (value, item) in enumerate(zip(given, validated, strict=False)):
            yield from _number_problems(value, item, f"{dotted}.{item_name(value, number)}")
    # bool is an int in Python.
    elif isinstance(validated, int | float) and not isinstance(validated, bool):
        if isinstance(given, bool | str):
            yield f"{dotted} is {given!r} ({type(given).__name__}): input should be a number."
        elif not math.isfinite(validated):
            yield f"{dotted} is {given}: input should be a finite number."


def _sentence(problem: Any, model: type[BaseModel], values: Any) -> str:
    location = problem["loc"]
    dotted, _ = _locate(model, location, values)

    if problem["type"] == "extra_forbidden":
        _, parent = _locate(model, location[:-1], values)
        known = []
        for member in _models(parent):
            known += member.model_fields
        return f"{dotted} is not a key{nearest(str(location[-1]), known)}"

    if problem["type"] == "missing":
        _, parent = _locate(model, location[:-1], values)
        description = ""
        for member in _models(parent):
            field = member.model_fields.get(str(location[-1]))
            if field and field.description:
                description = f" ({field.description})"
        return f"{dotted} is missing{description}. Add it to the recipe or pass --set {dotted}=VALUE."

    if problem["type"] == "union_tag_not_found":
        key = problem["ctx"]["discriminator"].strip("'")
        return f"{dotted}.{key} is missing; it says which keys belong there."

    if problem["type"] == "union_tag_invalid":
        key = problem["ctx"]["discriminator"].strip("'")
        seen = problem["ctx"]["tag"]
        expected = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{dotted}.{key} is {seen!r}, which is none{nearest(seen, expected)}"

    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        # Of several keys at once it names them itself, and the source stands before it.
        place = f"{dotted}: " if dotted else ""
        return f"{place}{message}."

    # All other types are pydantic's own, whose messages begin with a capital letter.
    seen = repr(problem["input"])[:MAX_QUOTED_CHARACTERS]
    message = problem["msg"][0].lower() + problem["msg"][1:]
    remedy = ""
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        remedy = "; in quotes it is one"
    return f"{dotted} is {seen} ({type(problem['input']).__name__}): {message}{remedy}."


def _locate(model: type[BaseModel], location: tuple[Any, ...], values: Any) -> tuple[str, Any]:
    """Return the dotted path of a pydantic location, stages by name, and the annotation found there."""
    path: list[str] = []
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            alternatives = _alternatives(annotation)
            annotation = None
            for alternative in alternatives:
                # The items of list[X] and tuple[X, ...] are X.
                if get_args(alternative):
                    annotation = get_args(alternative)[0]
                    break

            item = None
            if isinstance(values, list | tuple) and part < len(values):
                item = values[part]
            values = item
            # `stages.teacher.steps` is what --set takes; a number would have to be counted out.
            path.append(item_name(item, part))
            continue

        members = _models(annotation)
        if len(members) > 1:
            # A discriminated union: pydantic puts the tag, which is no key, into the location.
            annotation = _member_with_tag(members, part)
            continue

        annotation = None
        if members and part in members[0].model_fields:
            annotation = members[0].model_fields[part].annotation
        if isinstance(values, dict):
            values = values.get(part)
        else:
            values = None
        path.append(str(part))
    return ".".join(path), annotation


def _member_with_tag(members: list[type[BaseModel]], tag: Any) -> type[BaseModel] | None:
    """Return the member of a discriminated union that carries a tag."""
    for member in members:
        for field in member.model_fields.values():
            if get_origin(field.annotation) is Literal and tag in get_args(field.annotation):
                return member
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among the members of a union; a model alone is the only one."""
    models = []
    for alternative in _alternatives(annotation):
        if isinstance(alternative, type) and issubclass(alternative, BaseModel):
            models.append(alternative)
    return models


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of unions, through Annotated and type aliases."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    # `X | Y` and Union[X, Y] have different origins in Python 3.11.
    if origin in (Union, types.UnionType):
        members = []
        for argument in get_args(annotation):
            members += _alternatives(argument)
        return members
    return [annotation]
