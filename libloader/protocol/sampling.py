"""The fields that every generating endpoint shares, in llama-server's and OpenAI's names.

One row a field: JSON name, check, default, aliases. Rows whose name is an attribute of
core.Sampling fill it directly; the rest (`max_tokens`, `n`, `stop`, ...) make `Generation`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from libloader import core
from libloader.errors import FieldInvalid, FieldUnsupported
from libloader.protocol import fields
from libloader.protocol.fields import Field, boolean, integer, list_of, number, string

MAX_STOPS, MAX_STOP_LENGTH = 64, 256
MAX_CHOICES = 64
MAX_BIASES = 4096
MAX_ADAPTERS, MAX_SCALE = 64, 1000
MAX_INT = 2**31 - 1
_DEFAULT = core.Sampling()
_NAMES = frozenset(f.name for f in dataclasses.fields(core.Sampling))


def _seed(value: Any, path: str) -> int:
    """Any 64-bit integer is taken and folded to 32 bits; -1 means: draw one."""
    return int(integer(-(2**63), 2**64 - 1)(value, path)) & 0xFFFFFFFF


def _biases(value: Any, path: str) -> tuple[tuple[int, float], ...]:
    """OpenAI's object {"id": bias} or llama-server's list [[id, bias or false], ...]."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > MAX_BIASES:
        raise fields.invalid(path, f"an object of at most {MAX_BIASES} token ids and biases")
    return tuple(_bias(pair, path) for pair in pairs)


def _bias(pair: Any, path: str) -> tuple[int, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise fields.invalid(path, "an object, or an array of [token id, bias] pairs")
    key, bias = pair
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11:
        key = int(key)
    token = integer(0, MAX_INT)(key, f"{path}.{str(key)[:40]}")
    if bias is False:
        return token, float("-inf")
    return token, max(-100.0, min(100.0, number()(bias, f"{path}.{token}")))


def _lora(value: Any, path: str) -> core.Adapters:
    """llama-server's list [{"id": number of an adapter, "scale": how strongly}, ...]."""
    if not isinstance(value, list) or len(value) > MAX_ADAPTERS:
        raise fields.invalid(path, f"an array of at most {MAX_ADAPTERS} objects with id and scale")
    chosen: dict[int, float] = {}
    for i, item in enumerate(value):
        fields.mapping(item, f"{path}[{i}]")
        adapter = integer(0, MAX_INT)(item.get("id"), f"{path}[{i}].id")
        if adapter in chosen:
            raise fields.invalid(f"{path}[{i}].id", f"given once, {adapter} is there twice")
        chosen[adapter] = number(-MAX_SCALE, MAX_SCALE)(item.get("scale"), f"{path}[{i}].scale")
    return tuple(chosen.items())


SAMPLING_FIELDS = (
    Field("temperature", number(0, 5), _DEFAULT.temperature),
    Field("top_k", integer(0, MAX_INT), _DEFAULT.top_k),
    Field("top_p", number(0, 1), _DEFAULT.top_p),
    Field("min_p", number(0, 1), _DEFAULT.min_p),
    Field("typical_p", number(0, 1), _DEFAULT.typical_p),
    Field("top_n_sigma", number(-1, 1000), _DEFAULT.top_n_sigma),
    Field("xtc_probability", number(0, 1), _DEFAULT.xtc_probability),
    Field("xtc_threshold", number(0, 1), _DEFAULT.xtc_threshold),
    Field("dynatemp_range", number(0, 5), _DEFAULT.dynatemp_range),
    Field("dynatemp_exponent", number(0, 100), _DEFAULT.dynatemp_exponent),
    Field("repeat_last_n", integer(-1, MAX_INT), _DEFAULT.repeat_last_n),
    Field("repeat_penalty", number(0.01, 100), _DEFAULT.repeat_penalty, ("repetition_penalty",)),
    Field("frequency_penalty", number(-2, 2), _DEFAULT.frequency_penalty),
    Field("presence_penalty", number(-2, 2), _DEFAULT.presence_penalty),
    Field("dry_multiplier", number(0, 100), _DEFAULT.dry_multiplier),
    Field("dry_base", number(0, 100), _DEFAULT.dry_base),
    Field("dry_allowed_length", integer(0, MAX_INT), _DEFAULT.dry_allowed_length),
    Field("dry_penalty_last_n", integer(-1, MAX_INT), _DEFAULT.dry_penalty_last_n),
    Field("dry_sequence_breakers", list_of(string(40, 1), 64), _DEFAULT.dry_sequence_breakers),
    Field("mirostat", integer(0, 2), _DEFAULT.mirostat),
    Field("mirostat_tau", number(0, 100), _DEFAULT.mirostat_tau),
    Field("mirostat_eta", number(0, 100), _DEFAULT.mirostat_eta),
    Field("min_keep", integer(0, MAX_INT), _DEFAULT.min_keep),
    Field("logit_bias", _biases, ()),
    Field("ignore_eos", boolean, False),
    Field("seed", _seed),
)

GENERATION_FIELDS = (
    Field("max_completion_tokens", integer(-1, MAX_INT), -1, ("max_tokens", "n_predict")),
    Field("n", integer(1, MAX_CHOICES), 1, ("n_cmpl",)),
    Field("stop", fields.string_or_list(MAX_STOPS, MAX_STOP_LENGTH), ()),
    Field("stream", boolean, False),
    Field("stream_options", fields.mapping),
    Field("cache_prompt", boolean, True),
    Field("n_keep", integer(-1, MAX_INT), 0),
    Field("dry_run", boolean, False),
    Field("lora", _lora),
    Field("timeout", number(0.001, 86400), 0.0, ("deadline_s",)),
    Field("model", string(1024), ""),
    Field("user", string(1024), ""),
)


class Defaults(NamedTuple):
    """What holds where a request says nothing; `origins` names whose word it is, if not ours."""

    sampling: core.Sampling = _DEFAULT
    origins: Mapping[str, str] = {}  # field -> flag or model


def defaults_of(model: Mapping[str, Any], flags: Mapping[str, Any]) -> Defaults:
    """The flags go before the model's advice; advice that is no value of its field is not taken."""
    checks = {row.name: row.check for row in SAMPLING_FIELDS}
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in (("model", model), ("flag", flags)):
        for name, value in values.items():
            try:
                chosen[name] = checks[name](value, name)
            except FieldInvalid:
                continue
            origins[name] = origin
    return Defaults(dataclasses.replace(_DEFAULT, **chosen), origins)


@dataclass(frozen=True)
class Generation:
    """What a generating request asks of the engine, whatever its dialect."""

    model: str = ""
    sampling: core.Sampling = field(default_factory=core.Sampling)
    max_tokens: int = -1
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    cache_prompt: bool = True
    lora: core.Adapters | None = None  # None: as the server was started
    n_keep: int = 0
    deadline_s: float = 0.0
    dry_run: bool = False  # say what would run, and run nothing
    ignored: tuple[str, ...] = ()
    given: tuple[str, ...] = ()  # names of the fields that the client sent


def read_generation(
    values: fields.Values, *, seed_source: random.Random, defaults: core.Sampling = _DEFAULT
) -> Generation:
    """Turn checked values into a Generation; an absent or -1 seed is drawn from `seed_source`."""
    max_tokens = values["max_completion_tokens"]
    if max_tokens == 0:
        raise fields.invalid("max_tokens", "at least 1, or -1 for as much as the context holds")
    return Generation(
        model=values["model"],
        sampling=_sampling(values, seed_source, defaults),
        max_tokens=max_tokens,
        n=values["n"],
        stop=values["stop"],
        stream=values["stream"],
        include_usage=_include_usage(values["stream_options"]),
        cache_prompt=values["cache_prompt"],
        lora=values["lora"],
        n_keep=values["n_keep"],
        deadline_s=values["timeout"],
        dry_run=values["dry_run"],
        ignored=values.ignored,
        given=values.given,
    )


def _sampling(
    values: fields.Values, seed_source: random.Random, defaults: core.Sampling
) -> core.Sampling:
    chosen: dict[str, Any] = {name: values[name] for name in values.given if name in _NAMES}
    if chosen.get("seed", 0xFFFFFFFF) == 0xFFFFFFFF:
        chosen["seed"] = seed_source.randrange(0xFFFFFFFF)
    return dataclasses.replace(defaults, **chosen)


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    wanted = options.get("include_usage")
    return False if wanted is None else boolean(wanted, "stream_options.include_usage")


def refuse_unbuilt(values: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse fields that would change the answer's meaning and that this server does not do."""
    for name in names:
        if values.get(name) not in (None, False, 0, "", [], {}):
            raise FieldUnsupported(f"{name} is not supported by this server", param=name)
