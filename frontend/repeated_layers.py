"""Layers that are alike are traced once: the others are stubs meanwhile, written out afterwards.

docs/decisions/0006-repeated-layers.md says why the result is what tracing every layer gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.frontend.export_ladder import BranchError, Exported, export_dynamic
from graphwright.frontend.layer_copies import CannotCopyError, write_out
from graphwright.frontend.layer_records import Recorder
from graphwright.frontend.layer_stubs import StubbedLayers
from graphwright.frontend.layer_twins import Layer, find_layers
from graphwright.frontend.recurrences import refuse_recurrence
from graphwright.frontend.shape_runs import inputs_of_shape, run_on_shapes
from graphwright.frontend.stateless import StatelessForward
from graphwright.ir.errors import FrontendError

__all__ = ["export_repeated", "find_classes"]

_FEW_LAYERS = 8  # up to which it takes longer to keep torch's answers for the next ones
_LOG = logging.getLogger("graphwright.frontend")


def export_repeated(
    forward: StatelessForward,
    tokens: torch.Tensor,
    context: int | None = None,
    known: str = "",
    loops: Callable[[], None] | None = None,
    places: Mapping[int, int] | None = None,
) -> Exported:
    """What `export_dynamic` returns for `forward` over `tokens`, and usually sooner.

    context: the longest sequence it takes. known: the error of an earlier try. loops: is called
    before any export where a line of the model may be in a loop over the tokens. places: by the id
    of a module's dict, the index that its state lies at. Raises the FrontendError of
    `export_dynamic`, or of `refuse_recurrence` where that can tell beforehand.
    """
    layers = [layer for group in find_layers(forward, places).values() for layer in group]
    with StubbedLayers(layers) as stubs:
        found = find_classes(forward, tokens, stubs)
        if stubs.repeats:
            if loops is not None:
                loops()
            refuse_recurrence(forward, stubs, tokens, context)
    try:
        return _export(forward, tokens, stubs if found else None, known)
    except FrontendError:
        if not known:
            with stubs:
                refuse_recurrence(forward, stubs, tokens, context)
        raise


def _export(
    forward: StatelessForward, tokens: torch.Tensor, stubs: StubbedLayers | None, known: str
) -> Exported:
    if stubs is not None:
        try:
            with stubs:
                exported = export_dynamic(forward, tokens, known)
                write_out(exported.program, forward, stubs.pairs)
                return exported
        except BranchError:
            raise
        except (FrontendError, CannotCopyError) as error:
            _LOG.info("tracing every layer, since copying some does not work: %s", error)
            if isinstance(error, FrontendError):
                known = str(error)
    return export_dynamic(forward, tokens, known)


def find_classes(forward: StatelessForward, tokens: torch.Tensor, stubs: StubbedLayers) -> bool:
    """Sets `stubs.twins`, from each layer to the first one that is like it. Are there any?

    Evidence: both are made alike, the attributes that the first reads are equal, both do the same
    ops, and with the copies replaced by stubs everything around the layers stays the same.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = len(stubs.by_path) > _FEW_LAYERS
    inputs = inputs_of_shape(forward, tokens, mode)
    full, stubbed = Recorder(mode), Recorder(mode)
    try:
        try:
            _record(forward, inputs, mode, stubs, full)
        finally:  # a loop in a layer is one, also when a later layer needs values
            stubs.repeats = full.repeats
        for first, layer in _pairs(full, stubs):
            if not full.layers[first.path].equals(full.layers[layer.path]):
                continue
            if first.difference(layer, stubs.reads.get(first.number, set())) is None:
                stubs.twins.setdefault(layer.number, first)
        if not stubs.twins:
            return False
        _record(forward, inputs, mode, stubs, stubbed)
    except Exception as error:  # noqa: BLE001  (a model's own code, on tensors without values)
        _LOG.info("every layer is traced: the forward does not run without values: %s", error)
        stubs.twins.clear()
        return False
    if full.leaks or full.outer != stubbed.outer:
        _LOG.info("every layer is traced: a layer does more than return its results")
        stubs.twins.clear()
    return bool(stubs.twins)


def _pairs(record: Recorder, stubs: StubbedLayers) -> Iterator[tuple[Layer, Layer]]:
    """Layers made alike, the earlier of them first; such that are twins of others are left out."""
    run = [stubs.by_path[path] for path in record.layers if record.layers[path].doubt is None]
    firsts: list[Layer] = []
    for layer in run:
        for first in firsts:
            if first.shape() == layer.shape():
                yield first, layer
        if layer.number not in stubs.twins:
            firsts.append(layer)


def _record(
    forward: StatelessForward,
    inputs: Sequence[torch.Tensor],
    mode: FakeTensorMode,
    stubs: StubbedLayers,
    recorder: Recorder,
) -> None:
    """Runs `forward` without values, as it runs while it is exported."""
    recorder.finish(run_on_shapes(forward, inputs, mode, stubs.recording(recorder), recorder))
