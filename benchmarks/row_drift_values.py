"""Our divergence against SciPy's on the same bins: the largest difference over all features of the large comparison."""
from benchmarks.harness import SIZE, Row
from benchmarks.row_drift import material

NAME, BAR = "drift values against SciPy on the same bins: largest difference", "<= 1e-9 bits"


def row() -> Row:
    from scipy.spatial.distance import jensenshannon

    from within.drift import fit_reference

    before, after = material(int(200_000 * SIZE))
    features = fit_reference(before).compare(after).features.values()
    worst = max(abs(f.raw - jensenshannon(f.reference, f.current, base=2) ** 2) for f in features)
    return Row(NAME, float(f"{worst:.2g}"), None, "bits", None, BAR, bool(worst <= 1e-9), f"{len(features)} features, counts of {len(before):,} rows a side")
