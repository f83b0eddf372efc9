"""Which tokens the draft may propose: counted where training takes its loss, the most frequent kept."""

from __future__ import annotations

from speculators.pipeline.step import Context, Step


def run(context: Context) -> None:
    """Write `vocabulary.json` and, unless the draft has the verifier's whole vocabulary, the maps d2t and t2d."""
    from speculators.data.tokens import TokenDataset
    from speculators.data.vocabulary import Coverage, DraftVocabulary, covered, membership, most_frequent, offsets

    tokens = TokenDataset.open(context.inputs["tokens"])
    size = getattr(context.config.algorithm, "draft_vocab_size", None)  # some always have the whole vocabulary
    if size is None:
        DraftVocabulary.whole(tokens.vocab_size).save(context.output)
        return
    counts = tokens.loss_counts()
    kept = most_frequent(counts, size, always=tokens.origin.special_ids)
    coverage = Coverage(train=covered(counts, kept), holdout=covered(tokens.loss_counts(holdout=True), kept))
    vocabulary = DraftVocabulary(
        draft_vocab_size=size,
        verifier_vocab_size=tokens.vocab_size,
        d2t=offsets(kept),
        t2d=membership(kept, tokens.vocab_size),
        coverage=coverage,
    )
    vocabulary.save(context.output)
    context.report.metric(0, {"coverage": coverage.train, "coverage_holdout": coverage.holdout})


STEP = Step(
    "vocabulary",
    version=1,
    reads=("algorithm.draft_vocab_size",),
    inputs=("tokens",),
    run=run,
    light=True,
    uses_gpu=False,
)
