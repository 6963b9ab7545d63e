"""Keys of `model.config` against the model's own config class. Loads no torch of its own accord.

The config classes of transformers take any key and ignore what they do not know, so a misspelt one
would train another model than the one asked for.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from zolab.errors import UserError, nearest

#: Seconds after which planning goes on without a look at the keys; loading looks again.
TIMEOUT_SECONDS = 120.0
#: Keys of a model's config that cells have a place of their own for.
_ELSEWHERE = {
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attn_implementation",
}

# Run where torch cannot be found, transformers reads its config classes without it: 1 s less and
# nothing of it stays in the process that plans a sweep.
_CODE = """
import json, sys
sys.modules["torch"] = None
from zolab.models.keys import read_keys
print(json.dumps(read_keys(sys.argv[1])))
"""


def look_over_keys(
    values: Mapping[str, Any], base: Mapping[str, Any] | None, key: str = "model.config"
) -> None:
    """Check that each key to be replaced exists in the model's config.

    Args:
        values: `model.config` or `model.shape` of a checked cell.
        base: the model's own config.json; None if the shape comes from `values` alone.
        key: which of the two, for messages.

    Raises:
        UserError: an unknown key, with the nearest valid name; an unknown model_type, or another
            one than the model has. Models with code of their own are not looked at.
    """
    base = base or {}
    if not values or "auto_map" in base:
        return
    own, chosen = base.get("model_type"), values.get("model_type")
    if key == "model.shape" and not chosen:
        raise UserError(f"{key}: no model_type, such as opt or llama")
    if own and chosen and own != chosen:
        raise UserError(
            f"{key}.model_type = {chosen!r}: the model at model.path is of type {own!r}; "
            "expected that or no model_type"
        )
    answer = _answer(str(own or chosen))
    if answer is None:
        return
    if "types" in answer:
        if chosen:
            hint = nearest(str(chosen), answer["types"])
            raise UserError(f"{key}.model_type = {chosen!r}: unknown to transformers{hint}")
        return
    known = {*answer["keys"], *base, "model_type"} - _ELSEWHERE.keys()
    for name, value in values.items():
        if name in _ELSEWHERE:
            raise UserError(f"{key}.{name} = {value!r}: set {_ELSEWHERE[name]} instead")
        if name not in known:
            hint = nearest(name, sorted(known))
            raise UserError(f"{key}.{name} = {value!r}: {answer['class']} has no such key{hint}")


@functools.cache
def _answer(model_type: str) -> dict[str, Any] | None:
    """`read_keys`, in another process unless torch is loaded here anyway; None if that fails."""
    if "torch" in sys.modules:
        return read_keys(model_type)
    paths = [path or os.getcwd() for path in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE, model_type],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=TIMEOUT_SECONDS,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def read_keys(model_type: str) -> dict[str, Any]:
    """What the config class of a model type takes.

    Args:
        model_type: as in a config.json, such as "opt".

    Returns:
        `class` (its name) and `keys`; or `types`, all model types there are, if it is not one.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {"types": sorted(CONFIG_MAPPING)}
    cls = CONFIG_MAPPING[model_type]
    # older spellings reach a class as properties that can be set, and through its attribute_map
    settable = inspect.getmembers(cls, lambda member: getattr(member, "fset", None) is not None)
    keys = {*inspect.signature(cls).parameters, *cls.attribute_map, *(name for name, _ in settable)}
    if "rope_parameters" in keys:
        keys |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    keys = {key for key in keys if not key.startswith("_")} - {"kwargs"}
    return {"class": cls.__name__, "keys": sorted(keys)}
