"""Objects and arrays as expressions: members in declared order, items in theirs.

An object that declares properties is written with these and no others, unless it says
`additionalProperties` (or its relatives) itself: what is not said need not be generated.

Laws: everything written here is valid by the parts it was made from, or was reported.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from libloader.grammar import choices
from libloader.grammar.choices import Parts, schema_of
from libloader.grammar.expr import EMPTY, NEVER, Node, Ref, alt, optional, repeat, seq
from libloader.grammar.pattern import Inexpressible, compile_pattern
from libloader.grammar.strings import MAX_COUNT, SPACE, StringWriter, key, literal, other_than
from libloader.grammar.validate import Validator
from libloader.grammar.vocabulary import Document, Place

COMMA = seq(",", SPACE)
MAX_COUNTED = 1_500  # (members) x (how many of them) that are told apart by rules of their own
MAX_PLACES = 16  # of an item that fits `contains`, where the array's length is limited
TAIL = 8  # optional members written in one rule


class Compiler(Protocol):
    """What objects and arrays need of their compiler (json_schema.Compiler)."""

    document: Document
    writer: StringWriter

    def rule(self, parts: Parts, hint: str) -> Node: ...
    def report(self, keyword: str, path: str) -> None: ...


class Member(NamedTuple):
    node: Node  # name, colon and value
    is_required: bool


# Objects.


def object_node(compiler: Compiler, parts: Parts, hint: str) -> Node:
    members = _members(compiler, parts, hint)
    extras = _extras(compiler, parts, hint)
    low, high = _limits(compiler, parts, "minProperties", "maxProperties")
    n_required = sum(member.is_required for member in members)
    if high is not None and (high < low or high < n_required):
        return NEVER
    if not members:
        inner = _extras_alone(compiler, parts, extras, low, high)
    elif low <= n_required and (high is None or (high >= len(members) and extras == NEVER)):
        inner = _in_order(compiler, members, extras, 0, None, hint)
    elif extras == NEVER or (high is not None and high < len(members)):
        inner = _counted(compiler, parts, members, low, high, hint)
    else:
        n_missing = max(0, low - n_required)
        if n_missing > 1:  # a name may come twice and count once
            _report(compiler, parts, "minProperties")
        n_free = None if high is None else high - len(members)
        inner = _in_order(compiler, members, extras, n_missing, n_free, hint)
    return seq("{", SPACE, inner, "}")


def _limits(compiler: Compiler, parts: Parts, least: str, most: str) -> tuple[int, int | None]:
    """Return the tightest limits; one that no answer reaches is left to the check afterwards."""
    lows = [int(schema_of(p)[least]) for p in parts if least in schema_of(p)]
    highs = [int(schema_of(p)[most]) for p in parts if most in schema_of(p)]
    low, high = max(lows, default=0), min(highs) if highs else None
    if low > MAX_COUNT:
        compiler.document.fail(f"{least} is over {MAX_COUNT}", parts[0].path)
    if high is not None and high > MAX_COUNT:
        _report(compiler, parts, most)
        high = None
    return low, high


def _report(compiler: Compiler, parts: Parts, keyword: str) -> None:
    for place in parts:
        if keyword in schema_of(place):
            compiler.report(keyword, place.path)


def _members(compiler: Compiler, parts: Parts, hint: str) -> list[Member]:
    names = {n: None for p in parts for n in schema_of(p).get("properties", ())}
    required = choices.required_of(parts)
    members = []
    for name in dict.fromkeys([*names, *required]):
        own = _value_parts(compiler.document, parts, name)
        if own is None:  # a part forbids this name
            if name in required:
                return [Member(NEVER, True)]
            continue
        value = compiler.rule(own, f"{hint}-{name}")
        members.append(Member(seq(key(name), value), name in required))
    return members


def _value_parts(document: Document, parts: Parts, name: str) -> Parts | None:
    """Return what all parts say of the member `name`; None if one forbids it."""
    found: list[Place] = []
    for place in parts:
        schema = schema_of(place)
        is_known = name in schema.get("properties", ())
        if is_known:
            found.append(document.inner(place, "properties", name))
        for pattern in schema.get("patternProperties", ()):
            if compile_pattern(pattern).search(name):
                is_known = True
                found.append(document.inner(place, "patternProperties", pattern))
        if not is_known and "additionalProperties" in schema:
            found.append(document.inner(place, "additionalProperties"))
        if "propertyNames" in schema:
            names = document.inner(place, "propertyNames")
            if Validator(document).problems_at(names, name):
                return None
    return None if any(place.schema is False for place in found) else tuple(found)


def _extras(compiler: Compiler, parts: Parts, hint: str) -> Node:
    """Return the members that no name declares, as a choice; NEVER if there are none."""
    document = compiler.document
    schemas = [schema_of(p) for p in parts]
    patterns = [(p, name) for p in parts for name in schema_of(p).get("patternProperties", ())]
    is_closed = any(s.get("additionalProperties") is False for s in schemas)
    openings = ("additionalProperties", "unevaluatedProperties")
    is_asked_for = any(s.get(keyword, False) is not False for s in schemas for keyword in openings)
    is_free = not any("properties" in s or s.get("required") for s in schemas)
    if patterns:
        return alt(*(_pattern_member(compiler, parts, p, pattern) for p, pattern in patterns))
    if is_closed or any(s.get("unevaluatedProperties") is False for s in schemas):
        return NEVER
    if not (is_asked_for or is_free):
        return NEVER
    value = tuple(
        document.inner(p, keyword) for p in parts for keyword in openings if keyword in schema_of(p)
    )
    value_node = compiler.rule(value, f"{hint}-value")
    return seq(_name_node(compiler, parts, hint), SPACE, ":", SPACE, value_node)


def _name_node(compiler: Compiler, parts: Parts, hint: str) -> Node:
    """Return the names, in quotes, of members that are not declared."""
    document = compiler.document
    declared = {name for p in parts for name in _declared(p)}
    rules = [document.inner(p, "propertyNames") for p in parts if "propertyNames" in schema_of(p)]
    if not rules:
        return seq('"', other_than(declared), '"') if declared else Ref("string")
    text = document.made({"type": "string"}, parts[0], ("a name",))
    flat = choices.flatten(document, (text, *rules))
    listed = choices.listed_values(document, flat) if flat is not None else []
    if listed is not None:
        return alt(*(literal(name) for name in listed if name not in declared))
    validator = Validator(document)
    if any(not any(validator.problems_at(r, name) for r in rules) for name in declared):
        _report(compiler, parts, "propertyNames")
    return compiler.rule((text, *rules), f"{hint}-name")


def _declared(place: Place) -> list[str]:
    return [*schema_of(place).get("properties", ()), *schema_of(place).get("required", ())]


def _pattern_member(compiler: Compiler, parts: Parts, place: Place, pattern: str) -> Node:
    """Return members whose names match; a pattern that no grammar can hold gives none."""
    document = compiler.document
    n_patterns = sum(len(schema_of(p).get("patternProperties", ())) for p in parts)
    declared = {name for p in parts for name in _declared(p)}
    try:
        name = compiler.writer.quoted(compile_pattern(pattern).expression())
    except Inexpressible:
        return NEVER
    if any("propertyNames" in schema_of(p) for p in parts):
        _report(compiler, parts, "propertyNames")
    matching = any(compile_pattern(pattern).search(name) for name in declared)
    if matching or n_patterns > 1:  # a name may be under two schemas at once
        compiler.report("patternProperties", place.path)
    own = [document.inner(place, "patternProperties", pattern)]
    for other in parts:
        schema = schema_of(other)
        if "additionalProperties" in schema and not schema.get("patternProperties"):
            own.append(document.inner(other, "additionalProperties"))
    if any(inner.schema is False for inner in own):
        return NEVER
    return seq(name, SPACE, ":", SPACE, compiler.rule(tuple(own), "matching"))


def _extras_alone(
    compiler: Compiler, parts: Parts, extras: Node, low: int, high: int | None
) -> Node:
    if extras == NEVER:
        return NEVER if low else EMPTY
    if high == 0:
        return EMPTY
    if low > 1:  # a name may come twice and count once
        _report(compiler, parts, "minProperties")
    return _list_of(compiler, extras, low, high)


def _list_of(compiler: Compiler, item: Node, low: int, high: int | None) -> Node:
    """Return `low` to `high` items with commas between them, and space behind."""
    more = compiler.writer.counted(
        seq(COMMA, item), max(0, low - 1), None if high is None else high - 1
    )
    some = seq(item, more, SPACE)
    return some if low else optional(some)


def _in_order(
    compiler: Compiler, members: list[Member], extras: Node, low: int, high: int | None, hint: str
) -> Node:
    """Return the members in order, optional ones left out at will, then low..high extras."""
    n_leading = next((i for i, m in enumerate(members) if m.is_required), len(members))
    further = [
        seq(COMMA, m.node) if m.is_required else optional(seq(COMMA, m.node)) for m in members
    ]
    more = seq(COMMA, extras)
    end = seq(NEVER if extras == NEVER and low else repeat(more, low, high), SPACE)
    end = SPACE if extras == NEVER and not low else end
    tails = _tails(compiler, further, end, shared=n_leading > 0)
    options = [seq(members[i].node, tails[i + 1]) for i in range(min(n_leading + 1, len(members)))]
    if n_leading == len(members):
        n_further = None if high is None else high - 1
        if extras != NEVER and high != 0:
            rest = repeat(more, max(0, low - 1), n_further)
            options.append(seq(extras, rest, SPACE))
        if not low:
            options.append(EMPTY)
    return alt(*options)


def _tails(compiler: Compiler, further: list[Node], end: Node, shared: bool) -> list[Node]:
    """Return, per position, what follows a member there; long tails are cut into rules."""
    tails = [end]
    for i in range(len(further) - 1, -1, -1):
        following = tails[0]
        if shared and (len(further) - i) % TAIL == 0:
            following = compiler.writer.shared(following, "rest")
        piece = further[i]
        if shared and len(further) > 2:
            piece = compiler.writer.shared(piece, "member")
        tails.insert(0, seq(piece, following))
    return tails


def _counted(
    compiler: Compiler, parts: Parts, members: list[Member], low: int, high: int | None, hint: str
) -> Node:
    """Return `low` to `high` of the members, in order: a rule per place and number so far."""
    n_most = len(members) if high is None else min(high, len(members))
    if low > len(members):
        return NEVER
    if len(members) * n_most > MAX_COUNTED:
        _report(compiler, parts, "minProperties")
        _report(compiler, parts, "maxProperties")
        return _in_order(compiler, members, NEVER, 0, None, hint)
    after: list[Node] = [SPACE if n >= low else NEVER for n in range(n_most + 1)]
    for member in reversed(members):
        before: list[Node] = []
        for n in range(n_most + 1):
            own = seq(COMMA if n else EMPTY, member.node)
            taken = seq(own, after[n + 1]) if n < n_most else NEVER
            both = taken if member.is_required else alt(taken, after[n])
            is_plain = both in (NEVER, SPACE)
            before.append(both if is_plain else compiler.writer.shared(both, "some"))
        after = before
    return after[0]


# Arrays.


def array_node(compiler: Compiler, parts: Parts, hint: str) -> Node:
    low, high = _limits(compiler, parts, "minItems", "maxItems")
    prefix, rest = _item_parts(compiler.document, parts)
    if rest is None:
        high = min(len(prefix), len(prefix) if high is None else high)
    elif not rest and prefix and not _says_items(parts):
        high = min(max(len(prefix), low), max(len(prefix), low) if high is None else high)
    if high is not None and high < low:
        return NEVER
    if high is None or high > 1:
        for place in parts:
            if schema_of(place).get("uniqueItems") is True:
                compiler.report("uniqueItems", place.path)
    inner = _containing(compiler, parts, prefix, rest, low, high, hint)
    return seq("[", SPACE, inner, "]")


def _says_items(parts: Parts) -> bool:
    keywords = ("additionalItems", "unevaluatedItems")
    return any(
        any(keyword in schema_of(p) for keyword in keywords)
        or not isinstance(schema_of(p).get("items", []), list)
        for p in parts
    )


def _item_parts(document: Document, parts: Parts) -> tuple[list[Parts], Parts | None]:
    """Return what is said of each first item, and of all others; None = there are no others."""
    by_part: list[tuple[list[Place], Place | None]] = []
    for place in parts:
        schema = schema_of(place)
        own, rest = "prefixItems", "items"
        if isinstance(schema.get("items"), list):  # before draft 2020-12
            own, rest = "items", "additionalItems"
        prefix = [document.inner(place, own, i) for i in range(len(schema.get(own, ())))]
        rest = rest if rest in schema else "unevaluatedItems"
        by_part.append((prefix, document.inner(place, rest) if rest in schema else None))
    n_prefix = max((len(prefix) for prefix, _ in by_part), default=0)
    items = [
        tuple(
            found
            for prefix, rest_place in by_part
            for found in [prefix[i] if i < len(prefix) else rest_place]
            if found is not None
        )
        for i in range(n_prefix)
    ]
    rests = tuple(rest_place for _, rest_place in by_part if rest_place is not None)
    return items, None if any(place.schema is False for place in rests) else rests


def _containing(
    compiler: Compiler, parts: Parts, prefix: list[Parts], rest: Parts | None,
    low: int, high: int | None, hint: str,
) -> Node:  # fmt: skip
    """Return the items, one of which fits `contains` if that is asked for."""
    asking = [p for p in parts if "contains" in schema_of(p)]
    plain = _items_in_order(compiler, prefix, rest, low, high, hint)
    if not asking:
        return plain
    schema = schema_of(asking[0])
    n_wanted = schema.get("minContains", 1)
    is_open = low <= 1 and high is None
    is_short = high is not None and high <= MAX_PLACES
    is_simple = len(asking) == 1 and "maxContains" not in schema and not prefix
    if n_wanted == 0 and "maxContains" not in schema:
        return plain
    if rest is None or not is_simple or n_wanted != 1 or not (is_open or is_short):
        for place in asking:
            compiler.report("contains", place.path)
        return plain
    item = compiler.rule(rest, f"{hint}-item")
    wanted = (*rest, compiler.document.inner(asking[0], "contains"))
    fitting = compiler.rule(wanted, f"{hint}-contained")
    if high is None:
        return seq(repeat(seq(item, COMMA), 0, None), fitting,
                   repeat(seq(COMMA, item), 0, None), SPACE)  # fmt: skip
    return alt(
        *(
            seq(repeat(seq(item, COMMA), n, n), fitting,
                repeat(seq(COMMA, item), max(0, low - n - 1), high - n - 1), SPACE)
            for n in range(high)
        )
    )  # fmt: skip


def _items_in_order(
    compiler: Compiler, prefix: list[Parts], rest: Parts | None,
    low: int, high: int | None, hint: str,
) -> Node:  # fmt: skip
    if high == 0:
        return EMPTY
    if not prefix:
        return _list_of(compiler, compiler.rule(rest or (), f"{hint}-item"), low, high)
    n_prefix = len(prefix) if high is None else min(len(prefix), high)
    tail: Node = SPACE
    if rest is not None and (high is None or high > n_prefix):
        item = seq(COMMA, compiler.rule(rest, f"{hint}-item"))
        n_free = None if high is None else high - n_prefix
        tail = seq(compiler.writer.counted(item, max(0, low - n_prefix), n_free), SPACE)
    for i in range(n_prefix - 1, -1, -1):
        own = compiler.rule(prefix[i], f"{hint}-{i + 1}")
        tail = seq(COMMA if i else EMPTY, own, tail)
        if i >= low:
            tail = alt(tail, SPACE if i else EMPTY)
            tail = compiler.writer.shared(tail, "items") if i else tail
    return tail
