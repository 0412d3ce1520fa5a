"""The tensors of a file that belong to a network, whatever wraps and names them."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch

from medimg._public import set_module
from medimg._validation import printable
from medimg.core.logger import get_logger
from medimg.errors import WeightsUnavailableError
from medimg.models.backbones.stems import fold_weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from medimg.models.backbones.heads import HeadParts

__all__ = ["Match", "WeightsReport", "list_names", "match_state", "strip_prefix"]

_SHOWN: Final = 3
#: Least fraction of the parameters of which a part can be meant.
_WORTHWHILE: Final = 0.5
_NOT_USED: Final = "num_batches_tracked"  # absent in files from before 2018
#: Of which a training script keeps a copy, in order of preference; see `_rank`.
_TAKEN: Final = frozenset(("teacher", "ema"))
_LEFT: Final = frozenset(("k", "key", "momentum", "target"))
#: Names that training scripts give a state dict or its network, preferred to others.
_WRAPPERS: Final = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "module",
)
#: Words in names of what is beside an encoder: heads, projectors, decoders, losses, queues.
_BESIDE: Final = re.compile(
    r"(?:^|_)(?:heads?|fc|classifier|classification|linear|mlp|proj\w*|pred\w*|decoder|mask|queue\w*|"
    r"prototypes?|centers?|loss|criterion|temperature|logit|aux\d*|auxlogits|memory|bank)(?:_|$)",
    re.IGNORECASE,
)
#: Names of a torchvision ViT and of timm's, whose layers compute the same.
_TIMM: Final = (
    (re.compile(r"^class_token$"), "cls_token"),
    (re.compile(r"^encoder\.pos_embedding$"), "pos_embed"),
    (re.compile(r"^conv_proj\."), "patch_embed.proj."),
    (re.compile(r"^encoder\.ln\."), "norm."),
    (re.compile(r"^encoder\.layers\.encoder_layer_(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.self_attention\.in_proj_"), ".attn.qkv."),
    (re.compile(r"\.self_attention\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.ln_([12])\."), r".norm\1."),
    (re.compile(r"\.mlp\.0\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.3\."), ".mlp.fc2."),
)
_NUMBER: Final = re.compile(r"\d+")
_OWN_NAMES: Final = "the network's own names"
_NUMBERS: Final = "the names of nn.Sequential(*network.children())"


@set_module("medimg")
@dataclass(frozen=True, slots=True, repr=False)
class WeightsReport:
    """
    What a file of weights gave a backbone: ``model.weights_report``.

    Parameters
    ----------
    source : str
        Name of the file, or of torchvision's weights.
    prefix : str
        Prefix of the network's tensors in the file, such as "module.encoder_q."; "" for none.
    naming : str
        Whose names the tensors have: the network's own, those of ``nn.Sequential(*network.children())``, of
        its only child, such as ``network.features``, or timm's.
    matched, total : int
        Number of tensors of the backbone that were found by name and shape, and of all.
    share : float
        Fraction of the backbone's parameters that was found.
    missing : tuple of str
        Names of the backbone's tensors that the file lacks, or has in another shape or type; they keep their
        initial values.
    left_out : tuple of str
        Names of the file's tensors that the backbone has no use for, such as those of heads and projectors.
    others : tuple of str
        Prefixes of other networks of the same architecture in the file, such as a momentum encoder.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from medimg import TransferClassifier
    >>> from torchvision.models import squeezenet1_1
    >>> state = {f"encoder_q.{name}": value for name, value in squeezenet1_1().state_dict().items()}
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": state | {"queue": torch.zeros(3)}}, f"{folder}/moco.pth")
    ...     model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=f"{folder}/moco.pth")
    >>> print(model.weights_report)
    weights moco.pth: 50 of 50 tensors (100 % of the parameters) found, under 'encoder_q.'; 3 left out
    (encoder_q.classifier.1.weight, encoder_q.classifier.1.bias, queue)
    """

    source: str
    prefix: str
    naming: str
    matched: int
    total: int
    share: float
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def is_as_saved(self) -> bool:
        """Whether the tensors have the network's own names, without a prefix."""
        return not self.prefix and self.naming == _OWN_NAMES

    def __repr__(self) -> str:
        return (
            f"WeightsReport(source={_quote(self.source)}, prefix={_quote(self.prefix)}, "
            f"naming={_quote(self.naming)}, matched={self.matched}, total={self.total}, "
            f"share={self.share!r}, others=({list_names(self.others, quoted=True)}))"
        )

    def __str__(self) -> str:
        parts = [
            f"weights {printable(self.source)}: {self.matched} of {self.total} tensors "
            f"({_percent(self.share)} of the parameters) found"
        ]
        parts[0] += f", under {_quote(self.prefix)}" if self.prefix else ""
        parts[0] += f", by {self.naming}" if self.naming != _OWN_NAMES else ""
        if self.others:
            parts.append(f"not taken: the network under {list_names(self.others, quoted=True)}")
        if self.missing:
            parts.append(f"{len(self.missing)} missing or of another shape ({list_names(self.missing)})")
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out ({list_names(self.left_out)})")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Match:
    """Tensors by the network's names, ready to load, and the report."""

    state: OrderedDict[str, Tensor]
    report: WeightsReport


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A network in a file: the file's names by the network's own, under a prefix, of one naming."""

    prefix: str
    naming: str
    names: Mapping[str, str]
    fitting: frozenset[str]
    share: float
    complete: bool
    #: What else is under the prefix.
    unexpected: tuple[str, ...]


def match_state(
    parts: HeadParts,
    state: Mapping[str, Tensor],
    *,
    backbone: str,
    source: str,
    heads: tuple[str, ...] = (),
    min_match: float = 1.0,
) -> Match:
    """
    Find a body's tensors among those of a file, by names and shapes; raise if they fit too little.

    `heads` are prefixes of the network's former heads. With a `min_match` of 1 every tensor must be there
    and the network must have no other layers; below 1, at least this fraction of the parameters.
    """
    own = parts.body.state_dict()
    numbered = _number_children(parts, own, state)
    candidates = _find_candidates(own, state, heads, numbered)
    chosen, others = _choose(candidates, state, source, partial=min_match < 1)
    missing, wrong = _list_misfits(own, chosen)
    whole = not (missing or wrong or chosen.unexpected)
    # numbers alone don't say which child is missing
    exact = min_match == 1.0 or chosen.naming == _NUMBERS
    if chosen.share < min_match or (exact and not whole) or _list_further(chosen):
        raise WeightsUnavailableError(
            f"the weights {printable(source)} don't fit a {backbone}: "
            f"{_describe_misfit(own, state, chosen, min_match)}; {_advise(own, state, chosen, backbone)}"
        )
    found = OrderedDict((n, fold_weight(own[n], state[chosen.names[n]])) for n in own if n in chosen.fitting)
    used = {chosen.names[n] for n in found}
    wanted = [n for n in own if not n.endswith(_NOT_USED)]
    report = WeightsReport(
        source=source,
        prefix=chosen.prefix,
        naming=chosen.naming,
        matched=sum(n in found for n in wanted),
        total=len(wanted),
        share=chosen.share,
        missing=(*missing, *wrong),
        left_out=tuple(n for n in state if n not in used and not n.endswith(_NOT_USED)),
        others=tuple(sorted({one.prefix for one in others})),
    )
    heads_only = all(n.startswith(heads) for n in report.left_out) if heads else not report.left_out
    if not heads_only or report.missing or not report.is_as_saved:
        get_logger().info("%s", report)
    return Match(found, report)


def strip_prefix(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
) -> tuple[str, OrderedDict[str, Tensor]]:
    """Return the prefix of the network of a file that fits best, and its tensors without it."""
    chosen, _ = _choose(_find_candidates(own, state), state, source, partial=False)
    prefix = chosen.prefix if chosen.naming == _OWN_NAMES else ""
    return prefix, OrderedDict((n.removeprefix(prefix), v) for n, v in state.items() if n.startswith(prefix))


def _list_misfits(own: Mapping[str, Tensor], chosen: _Candidate) -> tuple[list[str], list[str]]:
    """Return the network's tensors that are missing, and those of another shape or type."""
    missing = [n for n in own if n not in chosen.names and not n.endswith(_NOT_USED)]
    return missing, [n for n in own if n in chosen.names and n not in chosen.fitting]


def _list_further(chosen: _Candidate) -> list[str]:
    """Return the unexpected tensors of layers that repeat the network's own, as a deeper network has."""
    kinds = {_NUMBER.sub("#", name.removeprefix(chosen.prefix)) for name in chosen.names.values()}
    return [n for n in chosen.unexpected if _NUMBER.sub("#", n.removeprefix(chosen.prefix)) in kinds]


def _describe_misfit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], chosen: _Candidate, min_match: float
) -> str:
    """Describe why tensors don't fit a network, with the first names of each cause."""
    missing, wrong = _list_misfits(own, chosen)
    shapes = [
        f"{n} {tuple(state[chosen.names[n]].shape)} instead of {tuple(own[n].shape)}"
        for n in wrong
        if state[chosen.names[n]].shape != own[n].shape
    ]
    dtypes = [
        f"{n} {state[chosen.names[n]].dtype}" for n in wrong if state[chosen.names[n]].shape == own[n].shape
    ]
    problems = [
        f"{len(names)} {problem} ({list_names(names)})"
        for problem, names in (
            ("missing", missing),
            ("unexpected", chosen.unexpected),
            ("of another shape", shapes),
            ("of another type", dtypes),
        )
        if names
    ]
    found = f"{_percent(chosen.share)} of the parameters found"
    found += f" under {_quote(chosen.prefix)}" if chosen.prefix else ""
    found += f" by {chosen.naming}" if chosen.naming != _OWN_NAMES else ""
    further = _list_further(chosen)
    if further and not (missing or wrong):
        return f"{found}, but also {len(further)} of further layers ({list_names(further)})"
    exact = min_match == 1 or chosen.naming == _NUMBERS
    wanted = f"expected {'all' if exact else 'at least ' + _percent(min_match)}"
    partial = chosen.share >= _WORTHWHILE and chosen.naming != _NUMBERS and not further
    remedy = " (min_match= accepts a part, and model.weights_report names it)" if partial else ""
    return f"{found}, {wanted}{remedy}: {'; '.join(problems)}"


def _advise(own: Mapping[str, Tensor], state: Mapping[str, Tensor], chosen: _Candidate, backbone: str) -> str:
    """Return what to do about tensors that don't fit a network."""
    if _list_further(chosen):
        return "the file is of another, deeper network: pass that as the backbone, or other weights"
    if any(_is_gray(own[n], state[chosen.names[n]]) for n in _list_misfits(own, chosen)[1]):
        return "the file is of a network for images of one channel: pass in_channels=1"
    if chosen.share >= _WORTHWHILE:
        return "pass the backbone of these weights, or other weights"
    return (
        f"check by these names and shapes that the file is of a {backbone}, and that it holds weights, not "
        "the state of an optimizer; then pass the backbone of these weights, or other weights"
    )


def _is_gray(own: Tensor, found: Tensor) -> bool:
    """Whether the weights are those of a convolution of one channel in place of three."""
    return own.ndim == 4 and own.shape[1] == 3 and found.shape == (own.shape[0], 1, *own.shape[2:])


def _find_candidates(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    heads: tuple[str, ...] = (),
    numbered: Iterable[tuple[str, dict[str, str], tuple[str, ...]]] = (),
) -> list[_Candidate]:
    """Return the networks of a file that have more than half of the names; else the file as it is."""
    wanted = [name for name in own if not name.endswith(_NOT_USED)]
    namings = [(_OWN_NAMES, {name: name for name in own})]
    if "encoder.pos_embedding" in own:
        namings.append(("timm's names", {name: _timm_name(name) for name in own}))
    top = {name.partition(".")[0] for name in own}
    if len(top) == 1:
        # a script saved network.features alone
        namings.append((f"the names of network.{min(top)}", {n: n.partition(".")[2] for n in own}))
    placed: list[tuple[str, str, Mapping[str, str], tuple[str, ...]]] = [
        (prefix, label, names, heads)
        for label, names in namings
        for prefix in _find_prefixes({names[n] for n in wanted}, state)
    ]
    placed += [(prefix, _NUMBERS, names, head) for prefix, names, head in numbered]
    total = max(sum(own[name].numel() for name in wanted), 1)

    def describe(prefix: str, naming: str, names: Mapping[str, str], heads: tuple[str, ...]) -> _Candidate:
        present = {n: prefix + f for n, f in names.items() if prefix + f in state}
        fitting = frozenset(n for n, f in present.items() if _fits(own[n], fold_weight(own[n], state[f])))
        used = set(present.values())
        # a network without a prefix has the others of the file inside
        rest = [n for n in state if n.startswith(prefix) and n not in used and not n.endswith(_NOT_USED)]
        tops = {f.partition(".")[0] for f in names.values()}
        return _Candidate(
            prefix=prefix,
            naming=naming,
            names=present,
            fitting=fitting,
            share=sum(own[n].numel() for n in wanted if n in fitting) / total,
            complete=all(n in fitting for n in wanted),
            unexpected=tuple(n for n in rest if _is_unexpected(n.removeprefix(prefix), tops, heads)),
        )

    every = [describe(*one) for one in placed]
    every = [one for one in every if sum(n in one.names for n in wanted) > len(wanted) / 2]
    # the same tensors by other names, such as "features." as a prefix or as a child
    every = list({tuple(one.names.items()): one for one in reversed(every)}.values())[::-1]
    if not every:
        return [describe("", _OWN_NAMES, namings[0][1], heads)]
    return [_without_nested(one, every) for one in every]


def _without_nested(one: _Candidate, every: list[_Candidate]) -> _Candidate:
    """Return a candidate whose unexpected tensors are not those of another candidate."""
    nested = tuple(o.prefix for o in every if o.prefix.startswith(one.prefix) and o.prefix != one.prefix)
    if not nested:
        return one
    rest = tuple(n for n in one.unexpected if not n.startswith(nested))
    return _Candidate(one.prefix, one.naming, one.names, one.fitting, one.share, one.complete, rest)


def _is_unexpected(name: str, tops: set[str], heads: tuple[str, ...]) -> bool:
    """Whether a tensor under a network's prefix shows that it is another network."""
    if heads and name.startswith(heads):
        return False
    top = name.partition(".")[0]
    return top in tops or not _BESIDE.search(top)


def _fits(own: Tensor, found: Tensor) -> bool:
    return own.shape == found.shape and own.is_floating_point() == found.is_floating_point()


def _find_prefixes(names: set[str], state: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes before which any of the names occurs in a file."""
    return list(
        dict.fromkeys(
            ".".join(parts[:n]) + "." if n else ""
            for parts in (name.split(".") for name in state)
            for n in range(len(parts))
            if ".".join(parts[n:]) in names
        )
    )


def _timm_name(name: str) -> str:
    for pattern, other in _TIMM:
        name = pattern.sub(other, name)
    return name


def _number_children(
    parts: HeadParts, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, str], tuple[str, ...]]]:
    """
    Yield prefixes, names and heads of networks that were saved as a sequence of their children.

    Numbers count the children, also those without parameters, of which a script may have left out some: the
    children with parameters are matched in order. A head may follow.
    """
    children = list(dict.fromkeys(name.partition(".")[0] for name in own))
    if all(child.isdecimal() for child in children):
        return
    numbers: dict[str, set[int]] = {}
    for name in state:
        pieces = name.split(".")
        for n, piece in enumerate(pieces[:-1]):
            if piece.isdecimal():
                numbers.setdefault("".join(f"{p}." for p in pieces[:n]), set()).add(int(piece))
    top, _, rest = parts.head_name.partition(".")
    for prefix, found in numbers.items():
        # the child of the head may have no other parameters
        if len(found) - len(children) in (0, top not in children):
            by_child = dict(zip(children, sorted(found), strict=False))
            after = tuple(f"{number}." for number in sorted(found)[len(children) :])
            if top in by_child:
                after = (f"{by_child[top]}.{rest}.",)
            names = {n: ".".join([str(by_child[n.split(".")[0]]), *n.split(".")[1:]]) for n in own}
            yield prefix, names, after


def _choose(
    candidates: list[_Candidate], state: Mapping[str, Tensor], source: str, *, partial: bool
) -> tuple[_Candidate, list[_Candidate]]:
    """Return the network to take, and the others that fit as well; raise if nothing decides."""
    best = max(candidates, key=lambda one: (one.complete, one.share))
    # as many parameters: networks of one architecture
    equal = [o for o in candidates if (o.complete, o.share) == (best.complete, best.share)]
    equal = [o for o in equal if not o.unexpected] or equal
    left = _keep_least(equal, lambda one: _rank(one.prefix))
    left = _keep_least(left, lambda one: _rank_wrapper(one.prefix))
    taken = left[0]
    if (best.complete or partial) and any(not _are_equal(taken, one, state) for one in left[1:]):
        raise WeightsUnavailableError(
            f"the weights {printable(source)} have several networks that fit, under the prefixes "
            f"{list_names([one.prefix for one in left], quoted=True)}: save the state dict of one of them"
        )
    return taken, [one for one in equal if one.prefix != taken.prefix]


def _keep_least(several: list[_Candidate], rank: Any) -> list[_Candidate]:
    least = min(map(rank, several))
    return [one for one in several if rank(one) == least]


def _rank(prefix: str) -> int:
    """
    Return how far a network is preferred by the words in its prefix: less is better.

    The teacher before the student (DINO), an average of weights before these (EMA), the encoder of queries
    before that of keys (MoCo), the online network before its target (BYOL).
    """
    words = set(chain.from_iterable(part.split("_") for part in prefix.lower().split(".")))
    if words & _LEFT:
        return 2
    return 0 if words & _TAKEN else 1


def _rank_wrapper(prefix: str) -> int:
    """Return the rank of the first usual name of a wrapper in a prefix."""
    words = prefix.split(".")
    return next((n for n, wrapper in enumerate(_WRAPPERS) if wrapper in words), len(_WRAPPERS))


def _are_equal(one: _Candidate, other: _Candidate, state: Mapping[str, Tensor]) -> bool:
    same = one.names.keys() == other.names.keys()
    return same and all(torch.equal(state[f], state[other.names[n]]) for n, f in one.names.items())


def _percent(share: float) -> str:
    # never rounded to all or nothing
    return f"{100 * share:.0f} %" if share in (0.0, 1.0) else f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def _quote(name: str) -> str:
    return f"'{printable(name)}'"


def list_names(names: Any, *, quoted: bool = False) -> str:
    """Return the first names of a file for a message."""
    shown = [_quote(name) if quoted else printable(name) for name in list(names)[:_SHOWN]]
    return f"{', '.join(shown)}{', ...' if len(names) > _SHOWN else ''}"
