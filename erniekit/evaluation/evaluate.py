"""Evaluates a model: the loss of samples, and generated answers compared with reference answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.load.batch import PackedBatch, pack
from erniekit.data.media.item import decode
from erniekit.data.media.patches import Patches
from erniekit.display.progress import OnProgress, no_progress
from erniekit.evaluation.dataset import EvalPlan, EvalSample, LossSample
from erniekit.evaluation.metrics.choose import Pair, Verdict, judge, score
from erniekit.evaluation.pair_scoring import NO_REFERENCE, PairScoring
from erniekit.evaluation.scores import Scores
from erniekit.generation.answer import Answer, parse_answer
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generated, Generator, inference_mode, split_rows
from erniekit.generation.sampling import Sampling, chat_sampling
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.sft import SftObjective

GREEDY = Sampling(max_new_tokens=64)
_END_OF_REASONING = "</think>"
# Samples in memory at a time: batches of answers, and bytes of inline images.
_CHUNK_BATCHES = 4
_CHUNK_BYTES = 1 << 26
_MISTAKES = 3  # kept for the report


@dataclass(frozen=True)
class Prediction:
    """A generated answer and its reference, without end tokens.

    expected, answer: the texts, without reasoning if the template is a thinking one; reference, parsed: the same,
    parsed. ended: the model ended the answer before the limit of new tokens; match: it also equals the reference
    exactly. scores: of the metrics that apply; verdict: see `judge`.
    """

    id: str
    source: str
    prompt: str
    expected: str
    answer: str
    ended: bool
    match: bool
    verdict: Verdict
    reference: Answer
    parsed: Answer
    scores: dict[str, float]


# Called with each answer, in the order of the samples.
OnPrediction = Callable[[EvalSample, Prediction], None]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    wrong: number of wrong answers; differing: number of answers that differ from the reference and that no metric calls
    wrong; mistakes: the first of both.
    """

    scores: Scores
    wrong: int
    differing: int
    mistakes: tuple[Prediction, ...]

    def scalars(self, prefix: str = "eval") -> dict[str, float]:
        """Metrics over all answers, such as "eval/exact_match", and loss and perplexity if they were computed."""
        overall = self.scores.overall
        found = {f"{prefix}/{name}": mean.value for name, mean in overall.metrics.items()}
        if overall.loss is not None and overall.perplexity is not None:
            found |= {f"{prefix}/loss": overall.loss, f"{prefix}/perplexity": overall.perplexity}
        return found


def evaluate(
    model: ErnieModel,
    encoder: Encoder,
    text: Detokenizer,
    samples: Iterable[LossSample],
    plan: EvalPlan,
    sampling: Sampling = GREEDY,
    *,
    pairs: PairScoring = NO_REFERENCE,
    losses: bool = True,
    batch_size: int = 128,
    budget: ErrorBudget | None = None,
    on_prediction: OnPrediction | None = None,
    on_progress: OnProgress = no_progress,
) -> Evaluation:
    """Computes the losses of all samples and the rewards of preference pairs, and generates and scores answers.

    plan: of the same samples; pairs: how preference pairs are scored. Answers are generated to EvalSamples. A few
    hundred samples are in memory at a time, and images only while the model sees them. budget: counts samples with
    unreadable images; without a budget, they raise SampleError.
    """
    generator = Generator(
        model, text.eos_token_ids, encoder.media_spec, detokenizer=text, batch_size=batch_size
    )
    run = _EvalRun(generator, encoder, text, plan, sampling, budget or ErrorBudget("raise", 0), on_progress)
    objective = DpoObjective(model, pairs.settings, pairs.reference) if plan.pairs else None
    return _evaluate(run, samples, losses, on_prediction, objective)


def evaluate_generation(
    generator: Generator,
    encoder: Encoder,
    text: Detokenizer,
    samples: Sequence[EvalSample],
    plan: EvalPlan,
    sampling: Sampling = GREEDY,
    *,
    on_prediction: OnPrediction | None = None,
    on_progress: OnProgress = no_progress,
) -> Evaluation:
    """Generates and scores answers to chats, without a loss, during training. The model stays in its mode.

    plan: of the same samples. Raises SampleError for an image that cannot be read.
    """
    run = _EvalRun(generator, encoder, text, plan, sampling, ErrorBudget("raise", 0), on_progress)
    return _evaluate(run, samples, False, on_prediction)


def _evaluate(
    run: _EvalRun,
    samples: Iterable[LossSample],
    losses: bool,
    on_prediction: OnPrediction | None,
    objective: DpoObjective | None = None,
) -> Evaluation:
    for chunk in _chunks(samples, _CHUNK_BATCHES * run.batch_size):
        usable = run.add_losses(chunk) if losses else chunk
        if objective is not None:
            run.add_pairs(usable, objective)
        chats = [sample for sample in usable if isinstance(sample, EvalSample)]
        for sample, prediction in zip(chats, run.add_answers(chats), strict=True):
            if on_prediction is not None:
                on_prediction(sample, prediction)
    return Evaluation(run.scores, run.wrong, run.differing, tuple(run.mistakes))


class _EvalRun:
    """The state of an evaluation."""

    def __init__(
        self,
        generator: Generator,
        encoder: Encoder,
        text: Detokenizer,
        plan: EvalPlan,
        sampling: Sampling,
        budget: ErrorBudget,
        on_progress: OnProgress,
    ) -> None:
        self.batch_size = generator.batch_size
        self.scores = Scores()
        self.wrong = self.differing = 0
        self.mistakes: list[Prediction] = []
        self._generator, self._encoder, self._text = generator, encoder, text
        self._plan, self._sampling, self._budget = plan, sampling, budget
        self._report = on_progress
        self._objective = SftObjective(generator.model)
        self._seen = self._paired = self._answered = self._unanswered = 0

    def add_losses(self, samples: Sequence[LossSample]) -> list[LossSample]:
        """Adds the losses of the samples; returns those with readable images, in order."""
        usable: set[int] = set()
        for sample in samples:
            self.scores.groups_of(sample)  # puts the groups in the order of the data
        with inference_mode(self._generator.model):
            for row in self._rows(samples, [len(sample.whole) for sample in samples]):
                self._report("loss", self._seen, self._plan.samples)
                usable.update(self._add_row(samples, row))
                self._seen += len(row)
        self._report("loss", self._seen, self._plan.samples)
        kept = []
        for index, sample in enumerate(samples):
            if index in usable:
                kept.append(sample)
            else:
                self._unanswered += isinstance(sample, EvalSample)
        return kept

    def add_pairs(self, samples: Sequence[LossSample], objective: DpoObjective) -> None:
        """Adds the rewards of the preference pairs among the samples."""
        paired = [(sample, sample.pair) for sample in samples if sample.pair is not None]
        if not paired:
            return
        owners, pairs = [sample for sample, _ in paired], [pair for _, pair in paired]
        with inference_mode(self._generator.model):
            for row in self._rows(owners, [len(pair) for pair in pairs]):
                self._report("pairs", self._paired, self._plan.pairs)
                kept, batch = self._pack([pairs[index] for index in row])
                self._paired += len(row)
                if batch is not None:
                    sums = objective(batch).pairs.sums()
                    for group in self.scores.groups_of(owners[row[kept[0]]]):
                        group.add_pairs(sums)
        self._report("pairs", self._paired, self._plan.pairs)

    def _rows(self, samples: Sequence[LossSample], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of samples of one source and modality in each row, since the figures of a row are sums."""
        kinds = [(sample.source, sample.modality) for sample in samples]
        order = sorted(range(len(samples)), key=kinds.__getitem__)
        for _, indices in groupby(order, kinds.__getitem__):
            yield from split_rows(indices, lengths, self._generator.row_tokens)

    def _pack(self, documents: Sequence[Document]) -> tuple[list[int], PackedBatch | None]:
        """The indices of the documents with readable images, and a row of them; None without any."""
        kept: list[int] = []
        patches: list[Patches] = []
        for index, document in enumerate(documents):
            try:
                patches += decode(document.media, document.sample_id, self._encoder.media_spec)
            except SampleError as error:
                self._budget.spend(error)
                continue
            kept.append(index)
        return kept, pack([documents[index] for index in kept], patches) if kept else None

    def _add_row(self, samples: Sequence[LossSample], row: Sequence[int]) -> list[int]:
        """Adds the loss of a row; returns the indices of the samples in it."""
        usable, batch = self._pack([samples[index].whole for index in row])
        kept = [row[index] for index in usable]
        if batch is not None:
            output = self._objective(batch)
            for group in self.scores.groups_of(samples[kept[0]]):
                group.samples += len(kept)
                group.loss_sum += float(output.loss_sum.item())
                group.loss_tokens += output.num_loss_tokens
        return kept

    def add_answers(self, samples: Sequence[EvalSample]) -> Iterator[Prediction]:
        """Generates answers to the samples, in order."""
        if not samples:
            return
        done, total = self._answered, self._plan.answers - self._unanswered
        self._report("answers", done, total)
        # Random numbers depend on the index of a prompt in the call, which starts at 0 in every chunk.
        sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + done)
        answers = self._generator.generate(
            [sample.prompt for sample in samples],
            sampling,
            lambda finished: self._report("answers", done + finished, total),
        )
        self._answered += len(samples)
        for sample, answer in zip(samples, answers, strict=True):
            yield self._add_answer(sample, answer)

    def _add_answer(self, sample: EvalSample, generated: Generated) -> Prediction:
        text, template = self._text, self._encoder.template
        # The template's terminator ends the answer, but not generation: engines continue after it.
        wrote = text.decode(generated.ids, chat_sampling(self._sampling, template).stop)
        wanted = text.round_trip(sample.expected)
        answer, expected = wrote, sample.expected
        if template.thinking == "on":
            answer, expected = _after_reasoning(wrote), _after_reasoning(sample.expected)
        ended = generated.finish == "stop"
        match = ended and answer == text.round_trip(expected)
        pair = Pair(parse_answer(wrote, template), parse_answer(wanted, template), match, sample.tools)
        scores = score(pair, self._plan.metrics)
        prediction = Prediction(
            sample.sample_id,
            sample.source,
            sample.prompt_text,
            expected,
            answer,
            ended,
            match,
            judge(scores, pair.reference),
            reference=pair.reference,
            parsed=pair.answer,
            scores=scores,
        )
        for group in self.scores.groups_of(sample):
            group.add_answer(ended, scores)
        if prediction.verdict != "right":
            self.wrong += prediction.verdict == "wrong"
            self.differing += prediction.verdict == "differs"
            if len(self.mistakes) < _MISTAKES:
                self.mistakes.append(prediction)
        return prediction


def _chunks(samples: Iterable[LossSample], most: int) -> Iterator[list[LossSample]]:
    """Chunks of at most `most` samples, and of little more than _CHUNK_BYTES bytes of inline images."""
    chunk: list[LossSample] = []
    size = 0
    for sample in samples:
        chunk.append(sample)
        for item in sample.whole.media:
            sources = item.source if isinstance(item.source, tuple) else (item.source,)
            size += sum(len(source) for source in sources)
        if len(chunk) == most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _after_reasoning(answer: str) -> str:
    return answer.partition(_END_OF_REASONING)[2].lstrip("\n")
