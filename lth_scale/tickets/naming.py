"""Which of a model's tensors those of another program are."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from lth_scale.errors import UserError

Shape = tuple[int, ...]
Kinds = dict[tuple[Shape, str], list[str]]


def paired(theirs: Mapping[str, Shape], ours: Mapping[str, Shape]) -> dict[str, str]:
    """Their name -> our name, of all tensors on both sides.

    First by equal name. The others by kind, which is shape and last part of the name (``weight``, ``bias``): each kind
    must be there equally often on both sides, and those of one kind belong together in order of registration.

    Args:
        theirs: in order of registration, as a file has them.
        ours: in order of registration.

    Raises:
        UserError: equal names of different shapes, or kinds that are unequally often there, naming both lists.
    """
    for name in theirs.keys() & ours.keys():
        if theirs[name] != ours[name]:
            raise UserError(f"{name} has shape {theirs[name]} in the file and {ours[name]} in the model")
    names = {name: name for name in theirs if name in ours}
    left, right = _by_kind(theirs, names), _by_kind(ours, names)
    odd = {kind for kind in left.keys() | right.keys() if len(left.get(kind, ())) != len(right.get(kind, ()))}
    if odd:
        raise UserError(
            f"the file's tensors do not fit the model's: left over are {_listed(left, odd)} in the file, "
            f"{_listed(right, odd)} in the model"
        )
    names |= {mine: other for kind in left for mine, other in zip(left[kind], right[kind], strict=True)}
    return {name: names[name] for name in theirs}


def _by_kind(shapes: Mapping[str, Shape], done: Iterable[str]) -> Kinds:
    found: Kinds = {}
    for name, shape in shapes.items():
        if name not in done:
            found.setdefault((shape, name.rpartition(".")[2]), []).append(name)
    return found


def _listed(kinds: Kinds, odd: Container[tuple[Shape, str]]) -> str:
    rest = [f"{name} {'x'.join(map(str, kind[0]))}" for kind, names in kinds.items() if kind in odd for name in names]
    return ", ".join(rest[:8]) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "") or "none"
