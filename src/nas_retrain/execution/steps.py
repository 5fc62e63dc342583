"""The training step of one network: augmentation, forward pass, loss, backward pass and update, over static buffers.

A step reads and writes the same memory each time: a table of an epoch's order and crops, a position in it, the
learning rate, weights, momenta and sums of losses. So on a CUDA device it is captured once for each batch size as a
CUDA graph and then replayed: one call of the driver a step, with no copy from the host and no synchronisation. On other
devices the same function is called each time.

On a CUDA device the networks of a group have a stream and a memory pool each, so that they train side by side in one
process, each with the kernels that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from nas_retrain.benches import build
from nas_retrain.data.batches import DeviceData, crop, crop_starts, draw_augmentation
from nas_retrain.execution.precision import forward, set_precision
from nas_retrain.execution.sgd import Sgd
from nas_retrain.settings import Settings
from nas_retrain.theory.rule import Parametrisation

WARM_UP_STEPS = 3
"""Steps before a capture, undone: libraries load their kernels and allocate what they keep in the first ones."""


@cache
def _stream(device: torch.device, place: int) -> torch.cuda.Stream:  # noqa: ARG001 - each has its own
    """The stream of all networks that have this place in their group. cuBLAS keeps a workspace for every stream that it
    has worked on until the process ends: 65 MiB on an H100, for each of the 32 streams that torch hands out in turn."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Stepper:
    """Takes the training steps of one network of one or several members, and holds all that a step changes.

    network: on any device; it is moved to the data's. rates, seeds: a learning rate and a generator's seed for each
    member (see `epoch_seed`). decided: see `Sgd`. place: that among the networks which train side by side.
    """

    def __init__(
        self,
        network: build.Network,
        rates: Sequence[float],
        seeds: Sequence[int],
        settings: Settings,
        data: DeviceData,
        decided: Sequence[Parametrisation | None] = (),
        place: int = 0,
    ) -> None:
        self.data, self.recipe, self.seeds = data, settings.training, tuple(seeds)
        set_precision(self.recipe.precision, data.device)
        self.stream = _stream(data.device, place) if data.device.type == "cuda" else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(data.device))  # which the data were put there on
            self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        with self.on_stream():
            self.network = network.to(data.device)
            self.optimiser = Sgd(self.network, rates, settings, decided)
            self.draws = list(dict.fromkeys(seeds))
            images, members = len(data.train_labels), len(seeds)
            # Rows: where an image's crop starts, whether it is mirrored, its label.
            self.epoch = torch.zeros((len(self.draws), 3, images), device=data.device, dtype=torch.int64)
            self.position = torch.zeros((), device=data.device, dtype=torch.int64)
            self.counting = torch.arange(min(images, self.recipe.batch_size), device=data.device)
            self.loss_sums = torch.zeros(members, device=data.device, dtype=torch.float32)
            self.correct = torch.zeros(members, device=data.device, dtype=torch.int64)

    def on_stream(self) -> AbstractContextManager[object]:
        """A context in which work on the device is queued behind this network's steps."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def begin_epoch(
        self, epoch: int, factor: float, first_image: int, loss_sums: Sequence[float], correct: Sequence[int]
    ) -> None:
        """Draw an epoch's order and crops and go to its image number `first_image`, with the sums up to there.

        factor: the epoch's learning rates as a share of the members' own.
        """
        with self.on_stream():
            for row, seed in zip(self.epoch, self.draws, strict=True):
                drawn = draw_augmentation(self.data, torch.Generator().manual_seed(epoch_seed(seed, epoch)))
                starts = crop_starts(self.data, drawn.order, drawn.tops, drawn.lefts)
                row.copy_(torch.stack([starts, drawn.mirrored, self.data.train_labels[drawn.order]]))
            self.optimiser.anneal(factor)
            self.position.fill_(first_image)
            self.loss_sums.copy_(torch.tensor(loss_sums, dtype=torch.float32))
            self.correct.copy_(torch.tensor(correct))

    def step(self, images: int) -> None:
        """Train on the next `images` images of the epoch. Returns when that is queued."""
        if self.stream is None:
            self._step(images)
            return
        with self.on_stream():
            self._graph(images).replay()

    def step_eagerly(self, images: int) -> None:
        """The same, with every kernel queued for itself on a GPU, too."""
        with self.on_stream():
            self._step(images)

    def first_step(self, images: int) -> tuple[list[float], list[float]]:
        """The same, and each member's gradient_norm and relative_gradient (see `RunRecord`)."""
        with self.on_stream():
            self._compute_gradients(images)
            sizes = self.optimiser.gradient_sizes()
            self.optimiser.update()
            return sizes

    def sums(self) -> tuple[list[float], list[int]]:
        """Each member's losses and hits, summed over the epoch's images so far. Waits for the steps."""
        with self.on_stream():
            return self.loss_sums.tolist(), self.correct.tolist()

    def _step(self, images: int) -> None:
        self._compute_gradients(images)
        self.optimiser.update()

    def _compute_gradients(self, length: int) -> None:
        images, labels = self._batch(length)
        logits = by_member(self.network, forward(self.network, images, self.recipe.precision))
        smoothing = self.recipe.label_smoothing
        each = zip(_unstacked(logits), labels.unbind(), strict=True)
        losses = _stacked([functional.cross_entropy(*pair, label_smoothing=smoothing) for pair in each])
        self.optimiser.compute_gradients(losses)
        self.loss_sums += losses.detach() * length
        self.correct += (logits.detach().argmax(2) == labels).sum(1)
        self.position += length

    def _batch(self, length: int) -> tuple[Tensor, Tensor]:
        """The next images (length, members x channels, size, size) and labels (members, length)."""
        chosen = self.epoch.index_select(2, self.position + self.counting[:length])
        drawn = {}
        for seed, (starts, mirrored, labels) in zip(self.draws, chosen.unbind(), strict=True):
            drawn[seed] = crop(self.data, starts, mirrored.bool()), labels
        if len(self.seeds) == 1:
            images, labels = drawn[self.seeds[0]]
            return images, labels[None]
        return torch.cat([drawn[seed][0] for seed in self.seeds], 1), torch.stack([drawn[s][1] for s in self.seeds])

    def _graph(self, length: int) -> torch.cuda.CUDAGraph:
        """The captured step for batches of `length` images."""
        if length not in self.graphs:
            changed = [*self.network.parameters(), *self.network.buffers(), *self.optimiser.momenta]
            changed = [each.detach() for each in (*changed, self.position, self.loss_sums, self.correct)]
            before = [each.clone() for each in changed]
            for _ in range(WARM_UP_STEPS):
                self._step(length)
                torch._foreach_copy_(changed, before)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self._step(length)
            self.graphs[length] = graph
        return self.graphs[length]


def epoch_seed(seed: int, epoch: int) -> int:
    """What seeds the generator of an epoch's order and crops."""
    return (seed * 1_000_003 + epoch) % 2**63


def _unstacked(members: Tensor) -> Sequence[Tensor]:
    """A tensor of each member. One member's is a view, whose gradient need not be copied."""
    return [members.squeeze(0)] if len(members) == 1 else members.unbind()


def _stacked(members: Sequence[Tensor]) -> Tensor:
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(list(members))


def by_member(network: build.Network, logits: Tensor) -> Tensor:
    """Logits of shape (members, batch, classes), in single precision at least."""
    members = logits.view(len(logits), network.members, -1).movedim(1, 0)
    return members if members.dtype == torch.float64 else members.float()
