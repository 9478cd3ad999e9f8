"""Fine-tuning with batches of similar length against padding every text to the maximum: the same texts, plan and network, real tokens a second."""
from benchmarks.harness import SIZE, HardwareAbsent, Row, in_turns

NAME, BAR = "length-bucketed fine-tuning against padding to the maximum: tokens/s", ">= 1.5 x"
TEXTS, BATCH, MOST = max(64, int(256 * SIZE)), 32, 128


def material():
    "Token numbers with lengths like those of ads and reviews: half below 20 tokens, some at the maximum."
    import numpy as np

    from within.ml.fine_tuning import rows_of
    from within.ml.text_batches import Tokens

    draw = np.random.default_rng(0)
    lengths = np.exp(draw.normal(3.0, 0.7, TEXTS)).astype(int).clip(4, MOST)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rows_of(Tokens(draw.integers(1000, 30_000, starts[-1]).astype(np.int32), starts), draw.integers(0, 2, TEXTS))


def row() -> Row:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as absent: raise HardwareAbsent(f"{absent.name} is not installed: pip install 'within[text]'") from None
    from within.ml.encoders import PACKAGED, classifier, pretrained
    from within.ml.fine_tuning import Plan, fine_tuned

    rows, network = material(), classifier(pretrained(PACKAGED)[0])

    def side(**how):
        return lambda: fine_tuned(network, rows, Plan(batch_size=BATCH, **how))

    mine, plain = in_turns(side(), side(bucketed=False, width=MOST), repeats=3)
    tokens = len(rows.tokens.ids)
    ours, peer = tokens / mine, tokens / plain
    why = f"{len(rows):,} texts of {tokens / len(rows):.0f} tokens on average, at most {MOST}; 22.6 million numbers, one epoch, batches of {BATCH}"
    return Row(NAME, round(ours), round(peer), "tokens/s", round(ours / peer, 2), BAR, ours / peer >= 1.5, why)
