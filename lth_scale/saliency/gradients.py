"""Scores from the gradient of the loss on a few training batches: SNIP and GraSP."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lth_scale.saliency.base import Given, methods

TEMPERATURE = 200.0  # by which GraSP's authors divide the logits


def _gradients(given: Given, temperature: float = 1.0, graph: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Of each batch's part of the mean cross-entropy over all of them, with respect to the weights; in train mode.

    Dropout is left out: scores are then a function of the batches alone.
    """
    given.network.train()
    for module in given.network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "DropPath":
            module.eval()
    total, weights = sum(len(labels) for _, labels in given.batches), given.weights()
    for images, labels in given.batches:
        logits = given.network(images) / temperature
        loss = cross_entropy(logits, labels, reduction="sum") / total
        yield torch.autograd.grad(loss, weights, create_graph=graph)


def _sum(parts: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Of all batches, of which one is held at a time."""
    return reduce(lambda total, part: tuple(one + other for one, other in zip(total, part, strict=True)), parts)


@methods.register("snip")
def snip(given: Given) -> dict[str, Tensor]:
    """|w dL/dw| (Lee et al. 2019, equation 6): how much the loss depends on the weight's presence; the least goes."""
    gradient = _sum(_gradients(given))
    return given.named([(w * g).abs() for w, g in zip(given.weights(), gradient, strict=True)])


@methods.register("grasp")
def grasp(given: Given) -> dict[str, Tensor]:
    """w Hg, g and H being the loss's gradient and Hessian (Wang et al. 2020, equation 8, with the other sign).

    Removing a weight changes g.g by about -2 w Hg; the paper removes the largest -w Hg, which raise it most.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        gradient = _sum(_gradients(given, TEMPERATURE))
        products = _sum(_products(given, gradient))
    return given.named([w * hg for w, hg in zip(given.weights(), products, strict=True)])


def _products(given: Given, gradient: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Each batch's part of Hg."""
    for part in _gradients(given, TEMPERATURE, graph=True):
        inner = torch.stack([(one * other).sum() for one, other in zip(gradient, part, strict=True)]).sum()
        yield torch.autograd.grad(inner, given.weights())
