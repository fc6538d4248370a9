"""Learning from the sample of the Open Bandit Dataset that obp's wheel carries, against obp's learners.

Needs the dependency group ``obp``. Not a timing: policies are compared by what off-policy evaluation says of them.
"""

import harness  # isort: skip  (one thread: before numpy)

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from obp.ope import RegressionModel
from obp.policy import IPWLearner
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from common_core.seeding import numpy_rng
from common_core.stats import Estimate
from hieropo import ope
from hieropo.estimators import FlatOPO, GlobalOPO, HierOPO
from hieropo.hyper import fit_hyperparameters
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_estimator import LogisticHierOPO
from hieropo.logistic_hyper import fit_logistic_hyperparameters
from hieropo.policy import PessimisticPolicy
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

NAME = "bench_obp"
DEVICES = ("cpu",)
CAMPAIGNS, POSITIONS, K = ("all", "men", "women"), 3, 80
ALPHA = 0.1
SIGMA_Q = 0.05  # of a click probability: ten times the rate of clicks
PEER = "obp IPWLearner, logistic regression"
BATCH = 2000
NOTES = (
    "Clicks per impression with 95 % normal intervals. 10,000 rows for each of three campaigns and two logging "
    "policies (uniform, and Bernoulli Thompson sampling 'bts'), 38 to 69 clicks in each: about 0.4 % of rows. A "
    "learned policy agrees with a uniform log on one row in K (34, 46 or 80 items), so that a handful of clicks "
    "decides and the intervals are wide: read overlaps as 'not told apart'. Trained on bts: evaluated on the "
    "whole uniform log. Trained on uniform: two folds, each judged by the policy of the other, all rows pooled; "
    "mean of values and of interval ends over the splits, which reuse the same rows, so that more splits do not "
    "narrow the interval. Tasks are position x user segment (user_feature_2) within a campaign; item categories "
    "are hashed per campaign, so each campaign is a hierarchy of its own. Features: item_feature_0, one-hot "
    "item_feature_1 and item_feature_3, log(1 + affinity); or, where it says 'item identities' (added after the "
    "first results were seen, because obp's IPWLearner knows items by identity), one-hot items and log(1 + "
    "affinity). Prior of Hier, Flat and Global by the evidence of the training log (isotropic), alpha 0.1. "
    "Evaluation model q of DR, the same for all policies: the pooled linear model of the training log. obp's "
    "OpenBanditDataset does not run on present pandas, so the CSV files are read directly; obp's learners are "
    "used as they are, one model a position (one in all where a position of the training log has no click)."
)


@dataclass(frozen=True)
class Log:
    """Rows of one campaign."""

    items: np.ndarray  # [K_c, p]
    affinity: np.ndarray  # [n, K_c]
    users: np.ndarray  # [n, u], one-hot
    tasks: np.ndarray  # [n]
    position: np.ndarray  # [n]
    action: np.ndarray  # [n]
    reward: np.ndarray  # [n]
    pscore: np.ndarray  # [n]

    def take(self, rows: np.ndarray) -> "Log":
        """Some of the rows."""
        names = ("affinity", "users", "tasks", "position", "action", "reward", "pscore")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def by_item(self) -> "Log":
        """Each item described by its identity instead of its categories."""
        return replace(self, items=np.column_stack([np.ones(len(self.items)), np.eye(len(self.items))]))

    def features(self, rows: slice = slice(None)) -> np.ndarray:
        """φ of every item, shape [B, K_c, d]."""
        affinity = np.log1p(self.affinity[rows])[:, :, None]
        return np.concatenate([np.broadcast_to(self.items, (len(affinity), *self.items.shape)), affinity], axis=2)

    def logged(self) -> np.ndarray:
        """φ of the logged item, shape [n, d]."""
        affinity = np.log1p(self.affinity[np.arange(len(self.action)), self.action])
        return np.concatenate([self.items[self.action], affinity[:, None]], axis=1)

    def batches(self) -> Iterator[slice]:
        """Slices of rows whose features fit in memory."""
        return (slice(lo, lo + BATCH) for lo in range(0, len(self.action), BATCH))


def read() -> dict[str, dict[str, Log]]:
    """Campaign → logging policy → rows."""
    spec = importlib.util.find_spec("obp")
    folder = Path(spec.submodule_search_locations[0]) / "dataset" / "obd"
    logs: dict[str, dict[str, Log]] = {}
    for campaign in CAMPAIGNS:
        frames = {b: pd.read_csv(folder / b / campaign / f"{campaign}.csv", index_col=0) for b in ("random", "bts")}
        context = pd.read_csv(folder / "random" / campaign / "item_context.csv", index_col=0).sort_values("item_id")
        kinds = pd.get_dummies(context[["item_feature_1", "item_feature_3"]], drop_first=True, dtype=float)
        items = np.column_stack([np.ones(len(context)), context["item_feature_0"], kinds])
        both = pd.concat(frames, names=["log"])
        users = pd.get_dummies(both.filter(like="user_feature"), drop_first=True, dtype=float)
        logs[campaign] = {}
        for name, frame in frames.items():
            tasks = frame["position"].astype(str) + "/" + frame["user_feature_2"]
            logs[campaign][name] = Log(
                items,
                frame.filter(like="affinity").to_numpy(float),
                users.loc[name].to_numpy(),
                tasks.to_numpy(str),
                frame["position"].to_numpy() - 1,
                frame["item_id"].to_numpy(),
                frame["click"].to_numpy(float),
                frame["propensity_score"].to_numpy(float),
            )
    return logs


def gaussian_prior(log: Log) -> GaussianHierarchy:
    """Σ_0 and σ by the evidence, around the rate of clicks of the log."""
    stats = TaskStatistics.from_rows(log.logged(), log.reward, log.tasks)
    mean = np.zeros(stats.d)
    mean[0] = log.reward.mean()
    return fit_hyperparameters(stats, "ml2", sigma_q=SIGMA_Q, mu_q=mean, structure="isotropic").prior


def logistic(log: Log) -> LogisticHierOPO:
    """The logistic hierarchy, Σ_0 by Laplace's evidence."""
    d = log.items.shape[1] + 1
    mean = np.zeros(d)
    mean[0] = logit(log.reward.mean())
    rows = LogisticRows.from_rows(log.logged(), log.reward, log.tasks)
    start = LogisticHierarchy(mean, np.eye(d), 0.1 * np.eye(d))
    return LogisticHierOPO(fit_logistic_hyperparameters(rows, start, structure="isotropic").prior, ALPHA)


def ours(make: Callable[[Log], PessimisticPolicy], by_item: bool = False) -> Callable[[Log, Log], np.ndarray]:
    """A learner from one of our estimators, by item categories or by item identity."""

    def learn(train: Log, test: Log) -> np.ndarray:
        train, test = (train.by_item(), test.by_item()) if by_item else (train, test)
        policy = make(train).fit(train.logged(), train.reward, train.tasks)
        return np.concatenate([policy.predict(test.features(rows), test.tasks[rows]) for rows in test.batches()])

    return learn


def positions(train: Log) -> int:
    """How many models obp's learners get: one a position, or one in all where a position had no click to learn from."""
    return POSITIONS if len(np.unique(train.position[train.reward > 0])) == POSITIONS else 1


def greedy(scores: np.ndarray, log: Log) -> np.ndarray:
    """The best item at the position of each row; scores [n, K_c, positions]."""
    place = log.position if scores.shape[2] > 1 else np.zeros_like(log.position)
    return scores[np.arange(len(place)), :, place].argmax(axis=1)


def ipw_learner(train: Log, test: Log) -> np.ndarray:
    """obp's cost-sensitive classification."""
    count, base = positions(train), LogisticRegression(max_iter=1000)
    learner = IPWLearner(n_actions=len(train.items), len_list=count, base_classifier=base)
    learner.fit(train.users, train.action, train.reward, train.pscore, train.position if count > 1 else None)
    return greedy(learner.predict(test.users), test)


def direct_learner(train: Log, test: Log) -> np.ndarray:
    """The greedy policy of obp's regression model of the reward."""
    count, base = positions(train), LogisticRegression(max_iter=1000)
    model = RegressionModel(n_actions=len(train.items), len_list=count, action_context=train.items, base_model=base)
    model.fit(train.users, train.action, train.reward, train.pscore, train.position if count > 1 else None)
    return greedy(model.predict(test.users), test)


LEARNERS: dict[str, Callable[[Log, Log], np.ndarray]] = {
    "Hier": ours(lambda log: HierOPO(gaussian_prior(log), ALPHA)),
    "Flat": ours(lambda log: FlatOPO(gaussian_prior(log), ALPHA)),
    "Global": ours(lambda log: GlobalOPO(gaussian_prior(log), ALPHA)),
    "logistic Hier": ours(logistic),
    "Hier, item identities": ours(lambda log: HierOPO(gaussian_prior(log), ALPHA), by_item=True),
    "Flat, item identities": ours(lambda log: FlatOPO(gaussian_prior(log), ALPHA), by_item=True),
    "Global, item identities": ours(lambda log: GlobalOPO(gaussian_prior(log), ALPHA), by_item=True),
    "logistic Hier, item identities": ours(logistic, by_item=True),
    "obp regression model, greedy": direct_learner,
    PEER: ipw_learner,
}


@dataclass(frozen=True)
class Judged:
    """What evaluation needs of some rows: the log, what each learner chose there, and a model of the reward."""

    action: np.ndarray
    reward: np.ndarray
    pscore: np.ndarray
    model: np.ndarray
    choices: dict[str, np.ndarray]


def judge(train: Log, test: Log) -> Judged:
    """Train every learner on one log and let it choose on the other."""
    pooled = GlobalOPO(gaussian_prior(train), 0.0).fit(train.logged(), train.reward, train.tasks)
    scores = [pooled.uncertainty(test.features(rows), test.tasks[rows]).mean for rows in test.batches()]
    model = np.clip(np.concatenate(scores), 0.0, 1.0)
    model = np.pad(model, ((0, 0), (0, K - model.shape[1])))
    choices = {name: learn(train, test) for name, learn in LEARNERS.items()}
    return Judged(test.action, test.reward, test.pscore, model, choices)


def pool(parts: Sequence[Judged]) -> Judged:
    """All rows of several parts."""
    arrays = [np.concatenate([getattr(part, n) for part in parts]) for n in ("action", "reward", "pscore", "model")]
    return Judged(*arrays, {name: np.concatenate([part.choices[name] for part in parts]) for name in LEARNERS})


def values(judged: Judged) -> dict[str, dict[str, ope.OffPolicyEstimate]]:
    """Estimator → learner → value."""
    feedback = ope.LoggedFeedback(judged.action, judged.reward, judged.pscore)
    out: dict[str, dict[str, ope.OffPolicyEstimate]] = {"DR": {}, "SNIPS": {}}
    for name, choice in judged.choices.items():
        policy = np.eye(K)[choice]
        out["DR"][name] = ope.doubly_robust(feedback, policy, judged.model)
        out["SNIPS"][name] = ope.self_normalised(feedback, policy)
    return out


def average(estimates: Sequence[ope.OffPolicyEstimate]) -> Estimate:
    """Mean value and mean interval ends over splits of the same rows."""
    value, low, high = (float(np.mean([getattr(e, name) for e in estimates])) for name in ("value", "low", "high"))
    return Estimate(value, low, high, estimates[0].n)


def rows_of(setting: str, splits: Sequence[Judged]) -> list[harness.Row]:
    """One row a learner and estimator, against obp's IPWLearner."""
    found = [values(judged) for judged in splits]
    matched = {n: float(np.mean([(s.action == s.choices[n]).sum() for s in splits])) for n in LEARNERS}
    clicks = {n: float(np.mean([s.reward[s.action == s.choices[n]].sum() for s in splits])) for n in LEARNERS}
    same = {n: float(np.mean([np.mean(s.choices["Global"] == s.choices[n]) for s in splits])) for n in LEARNERS}
    return [
        harness.row(
            f"{estimator}, {setting}: {name}",
            average([split[estimator][name] for split in found]),
            average([split[estimator][PEER] for split in found]),
            PEER,
            unit="clicks per impression",
            rows_matched=matched[name],
            clicks_matched=clicks[name],
            chooses_like_global=same[name],
        )
        for estimator in ("DR", "SNIPS")
        for name in LEARNERS
        if name != PEER
    ]


def two_folds(logs: dict[str, dict[str, Log]], split: int) -> Judged:
    """Split every uniform log in halves; each half is judged by what was learned from the other."""
    parts = []
    for campaign in CAMPAIGNS:
        log = logs[campaign]["random"]
        first, second = np.array_split(numpy_rng(split, NAME, campaign).permutation(len(log.action)), 2)
        parts += [judge(log.take(a), log.take(b)) for a, b in ((first, second), (second, first))]
    return pool(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    logs = read()
    on_bts = pool([judge(logs[c]["bts"], logs[c]["random"]) for c in CAMPAIGNS])
    splits = [two_folds(logs, split) for split in range(1 if args.quick else 10)]
    rows = rows_of("trained on bts", [on_bts])
    rows += rows_of(f"trained on half of uniform, {len(splits)} splits", splits)
    for name in ("random", "bts"):
        clicks = np.concatenate([logs[c][name].reward for c in CAMPAIGNS])
        error = 1.96 * clicks.std() / np.sqrt(clicks.size)
        rate = Estimate(clicks.mean(), clicks.mean() - error, clicks.mean() + error, clicks.size)
        rows.append(harness.row(f"clicks of the log itself: {name}", rate, None, "-", unit="clicks per impression"))
    harness.save(NAME, args, rows, NOTES, ["obp", "pandas", "scikit-learn"])


if __name__ == "__main__":
    main()
