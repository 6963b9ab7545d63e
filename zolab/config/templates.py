"""Templates of prompts: texts with fields of a row in braces. Standard library only.

`{sentence}` is the field as it stands, without space around it; `{hypothesis:bare|lower}` is
changed by filters, from left to right. A backslash with an n, which is how a command line hands a
line break on, is one.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping

from zolab.errors import nearest

#: Where a masked model answers; stands once in `task.masked.template`.
MASK = "mask"


def _bare(text: str) -> str:
    """Without one final punctuation mark."""
    return text[:-1] if text and text[-1] in string.punctuation else text


def _lower(text: str) -> str:
    """The first letter small."""
    return text[:1].lower() + text[1:]


def _inside(text: str) -> str:
    """As it goes on inside a sentence: the first letter small, but not that of the word I."""
    return text if text.split(" ", 1)[0].split("'", 1)[0] == "I" else _lower(text)


def _capital(text: str) -> str:
    """The first letter a capital."""
    return text[:1].upper() + text[1:]


def _question(text: str) -> str:
    """With a question mark at its end."""
    return text if text.endswith("?") else text + "?"


FILTERS: dict[str, Callable[[str], str]] = {
    "bare": _bare,
    "lower": _lower,
    "inside": _inside,
    "capital": _capital,
    "question": _question,
}


def parse(template: str) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    """Literal text, the field after it (None at the end) and that field's filters.

    Raises:
        ValueError: a brace without its partner, no name in braces, or an unknown filter.
    """
    for literal, name, spec, conversion in string.Formatter().parse(template):
        filters = tuple(spec.split("|")) if spec else ()
        if name is not None and not name.isidentifier():
            raise ValueError(f"{{{name}}} does not name a field")
        if conversion:
            raise ValueError(f"'!{conversion}' is not known here")
        for given in filters:
            if given not in FILTERS:
                known = ", ".join(FILTERS)
                raise ValueError(
                    f"{given!r} is not a filter (there are {known}){nearest(given, FILTERS)}"
                )
        yield literal.replace("\\n", "\n"), name, filters


def fields(*templates: str) -> tuple[str, ...]:
    """Names of the fields of some templates, each once, in the order met; not the mask."""
    names = [name for template in templates for _, name, _ in parse(template) if name]
    return tuple(name for name in dict.fromkeys(names) if name != MASK)


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in.

    Args:
        template: as in `parse`, without a mask.
        values: text of each field.
    """
    parts = []
    for literal, name, filters in parse(template):
        parts.append(literal)
        if name is not None:
            parts.append(_filtered(values[name], filters))
    return "".join(parts)


def filled(template: str, field: str, values: Mapping[str, str]) -> str:
    """What stands in a rendered template where `field` is first filled in."""
    filters = next(filters for _, name, filters in parse(template) if name == field)
    return _filtered(values[field], filters)


def _filtered(text: str, filters: tuple[str, ...]) -> str:
    text = text.strip()
    for given in filters:
        text = FILTERS[given](text)
    return text


def split_at_mask(template: str) -> tuple[str, str]:
    """The templates of what stands before and behind the mask.

    Raises:
        ValueError: there is no mask, or more than one.
    """
    before, *behind = template.split(f"{{{MASK}}}")
    if len(behind) != 1:
        raise ValueError(f"expected {{{MASK}}} once, where the model answers")
    return before, behind[0]
