"""Change what decides, one place at a time, and see whether the tests notice.

    python scripts/decision_mutations.py [WORD ...]

Every mutation is made in a copy of the sources. The tests of its room run on it until one fails.
A mutation that no test notices is printed, and the exit status is 1. With words, only mutations
whose name holds one of them are tried. About half an hour of one core in all.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "search": ("test_search.py",),
    "decide": ("test_decide.py", "test_irrelevance.py"),
    "checks": ("test_sentences.py", "test_decide.py"),
    "evidence": ("test_evidence.py", "test_irrelevance.py"),
    "posterior": ("test_posterior.py", "test_irrelevance.py", "test_evidence.py", "test_value.py"),
    "net_gains": ("test_evidence.py", "test_irrelevance.py", "test_retention.py", "test_decide.py"),
    "results": ("test_decide.py", "test_retention.py", "test_search.py"),
    "retention": ("test_retention.py", "test_decide.py"),
    "value": ("test_value.py",),
    "statistics/matching": ("test_arms.py", "test_irrelevance.py", "test_evidence.py"),
}
"""By module of ``rankscope.advise``, the files of tests/advise that are aimed at it."""
MUTATIONS = (
    ("an arm may come twice in a round", "search", "column not in columns and ", ""),
    ("rates above one that failed are tried", "search",
     "new = hopeful(_first_seeds(t for t in candidates if t.arm not in known), begun)",
     "new = _first_seeds(t for t in candidates if t.arm not in known)"),
    ("lists are extended wherever the best stands", "search",
     "if not any(value > own for value in known)", "if True"),
    ("a sure search goes on", "search", "if (p or 0.0) >= (until or SURE)", "if False"),
    ("arms that nobody trained cannot be the best", "results",
     "_left_out(study, arms) if untried is None", "() if untried is None"),
    ("a margin in place of a quarter of it", "decide", "CLOSE = 0.25", "CLOSE = 1.0"),
    ("no fewer parameters at equal regret", "decide", "key=lambda k: (sizes[k], regrets[k])",
     "key=lambda k: regrets[k]"),
    ("an open check does not cap", "decide", 'confidence == "sure" and open_checks', "False"),
    ("a bad check does not stop", "decide", "    if bad:", "    if False:"),
    ("the worst loss is the least", "decide", "worst = min(clear", "worst = max(clear"),
    ("the worst loss need not be clear", "decide", "c.high < 0}", "c.value < 0}"),
    ("the worst loss is ignored", "decide", "    if not clear:", "    if True:"),
    ("the largest smaller rank in place of the likeliest", "decide",
     "max(r.p for r in rivals) < LIKELY_ENOUGH", "min(r.p for r in rivals) < LIKELY_ENOUGH"),
    ("rivals from 0.4 on", "decide", "LIKELY_ENOUGH = 0.2", "LIKELY_ENOUGH = 0.4"),
    ("a limit that excludes at 0.95", "results", "over.get(i, 0.0) <= 0.5",
     "over.get(i, 0.0) <= 0.95"),
    ("forgetting with the other sign", "results", "place: -np.mean(", "place: np.mean("),
    ("failed trials count in full", "results", "done / (done + failed) if done else 1.0", "1.0"),
    ("cost is added", "results", "net.changed(shares, costs)", "net.changed(shares, -costs)"),
    ("the net where the gain is meant", "results", "for of in (results.net.draws, results.gain)",
     "for of in (results.net.draws, results.net.draws)"),
    ("better by the margin", "results", "p_better=float((draws > 0).mean())",
     "p_better=float((draws > study.config.objective.margin).mean())"),
    ("the margin doubled", "net_gains", "self._lost <= self.margin",
     "self._lost <= 2 * self.margin"),
    ("the base is no choice", "net_gains", "self.draws.max(axis=1, initial=0.0)",
     "self.draws.max(axis=1)"),
    ("luck of seeds is shared by no task", "net_gains",
     "np.linalg.cholesky(seed_correlation(parts))", "np.eye(len(parts))"),
    ("arms that lack a task take part", "net_gains", "set.intersection(*(set(part.places)",
     "set.union(*(set(part.places)"),
    ("forgetting has no weight", "retention", "kept / len(scored)", "0 * kept"),
    ("forgetting is the sum over tasks", "retention", "kept / len(scored)", "kept"),
    ("tasks that were trained on are retention", "retention", "and t.name not in seen", ""),
    ("one prior mean for gain and forgetting", "evidence",
     "prior_mean=0.0 if is_trained else FORGOTTEN", "prior_mean=4.0"),
    ("items of a passage are independent", "evidence", "if items.labels is not None:", "if False:"),
    ("normal in place of Student's t", "evidence", "special.stdtrit(freedom, 0.975)",
     "special.ndtri(0.975)"),
    ("arms share all items", "evidence", "share, together[pairs])", "share, 1.0)"),
    ("items that agree are certain", "evidence", "UNANIMOUS = 2.0", "UNANIMOUS = 0.0"),
    ("rewards are as steady as supervision", "evidence", "TYPICAL_SPREADS = 0.35, 3.0",
     "TYPICAL_SPREADS = 0.35, 0.35"),
    ("means without items are certain", "evidence", "np.diag(errors) + np.nanmax",
     "0 * np.diag(errors) + 0 * np.nanmax"),
    ("a broken arm counts as any other", "posterior", "    return found\n\n\ndef _shared",
     "    return _shared_posterior(evidence, luck, rng)\n\n\ndef _shared"),
    ("an arm far above is broken, too", "posterior", "kept &= means >= middle - far",
     "kept &= abs(means - middle) <= far / 4"),
    ("seeds further apart do not widen", "posterior", "np.sqrt(of_seeds + wider)",
     "np.sqrt(of_seeds)"),
    ("seeds are taken to be alike", "posterior", "expected = common * freedom / (freedom - 2)",
     "expected = 0 * common * freedom"),
    ("ranks are not neighbors", "posterior", "np.exp(-gaps / length / 2)", "np.exp(-1e6 * gaps)"),
    ("rates lie as close as ranks", "posterior", "AXIS_LENGTHS = (3.0, 1.0, 0.2)",
     "AXIS_LENGTHS = (3.0, 1.0, 20.0)"),
    ("an untried arm has no gain", "value", "blank + np.median(of.means[whole])", "blank"),
    ("an untried arm errs as the overall mean", "value",
     "typical = of.item_covariance[:, whole].mean(axis=1)[:, None].repeat(more, axis=1)",
     "typical = np.full((len(of.means), more), of.item_covariance.mean())"),
    ("copies are evidence", "statistics/matching", "map(original_of, item_ids)", "iter(item_ids)"),
    ("warm-up counts as training", "checks",
     "subject.steps - ceil(train.warmup_fraction * subject.steps)", "subject.steps"),
    ("five steps are enough", "checks", "FEWEST_UPDATES = 30", "FEWEST_UPDATES = 5"),
    ("a rival's open end is ignored", "checks", "p_within_margin >= RIVAL]",
     "p_within_margin > 2]"),
    ("the lowest rate is no end", "checks", "arm.lr in (rates[0], rates[-1])",
     "arm.lr == rates[-1]"),
    ("retention is fine at any width", "checks", "of.forgetting.high >= most",
     "of.forgetting.value >= most"),
    ("one lost task among four is fine", "checks", "    if lost:", "    if False:"),
    ("one seed is enough", "checks", "    if seeds < 2:", "    if seeds < 1:"),
    ("no seed collapses", "checks", "collapsed += sum(", "collapsed += 0 * sum("),
    ("a noisy loss has settled", "checks", "trend.has_settled", "not trend.is_falling"),
    ("half of the items may be cut", "checks", "MOST_CUT = 0.05", "MOST_CUT = 0.5"),
)  # fmt: skip
"""What is changed, its module, the text, and the text in its place."""


def is_noticed(module: str, old: str, new: str) -> bool:
    """Whether a test of the module's room fails on a copy of the sources with the change."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "rankscope"
        shutil.copytree(ROOT / "src" / "rankscope", copied)
        path = copied / "advise" / f"{module}.py"
        text = path.read_text("utf-8")
        if text.count(old) < 1:
            raise SystemExit(f"{module}: no text {old!r}. Correct the mutation.")
        path.write_text(text.replace(old, new), "utf-8")
        files = [str(ROOT / "tests" / "advise" / name) for name in TESTS[module]]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
        found = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
        )
        return found.returncode == 1


def main() -> None:
    words = sys.argv[1:]
    tried = [m for m in MUTATIONS if not words or any(word in m[0] for word in words)]
    survivors = []
    for name, module, old, new in tried:
        noticed = is_noticed(module, old, new)
        survivors += [] if noticed else [name]
        print(f"{'noticed ' if noticed else 'SURVIVES'}  {module}: {name}", flush=True)
    print(f"{len(tried) - len(survivors)} of {len(tried)} noticed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
