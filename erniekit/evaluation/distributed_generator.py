"""Generation by all processes of a run."""

from __future__ import annotations

from collections.abc import Sequence

from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.distributed.context import DistributedContext
from erniekit.generation.generate import Generated, Generator, OnProgress
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel


class DistributedGenerator(Generator):
    """Generates with all processes of a run; each of them gets all answers.

    Each process answers a share of the prompts. in_step: a forward pass needs several processes, so that all of them
    answer every prompt, with the tokens that rank 0 samples.
    """

    def __init__(
        self,
        dist: DistributedContext,
        model: ErnieModel,
        eos_token_ids: Sequence[int],
        encoder: Encoder,
        *,
        batch_size: int,
        in_step: bool,
    ) -> None:
        agree = dist.broadcast if in_step else None
        super().__init__(model, eos_token_ids, encoder.media_spec, batch_size=batch_size, agree=agree)
        self._dist, self._in_step = dist, in_step

    def generate(
        self,
        documents: Sequence[Document],
        sampling: Sampling,
        on_progress: OnProgress | None = None,
        *,
        indices: Sequence[int] | None = None,
    ) -> list[Generated]:
        """As `Generator.generate`. All processes call it together, with the same arguments."""
        world = self._dist.mesh.world
        if world.size == 1 or self._in_step:
            return super().generate(documents, sampling, on_progress, indices=indices)
        own = range(world.rank, len(documents), world.size)
        places = range(len(documents)) if indices is None else indices

        def progress(finished: int) -> None:
            if on_progress is not None:
                on_progress(min(finished * world.size, len(documents)))

        # One process may take longer than another by more than parallel.timeout: answers have any length.
        with self._dist.mesh.long_operation("answering chats of data.eval"):
            answers = super().generate(
                [documents[index] for index in own],
                sampling,
                progress,
                indices=[places[index] for index in own],
            )
        # Process r has answered documents r, r + size, r + 2 * size, ...
        gathered = self._dist.all_gather_object([[answer.ids, answer.finish] for answer in answers])
        return [
            Generated(*gathered[index % world.size][index // world.size]) for index in range(len(documents))
        ]
