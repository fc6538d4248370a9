"""Off-policy learning for many related tasks at once, from logged bandit feedback, with exact Gaussian hierarchies.

Tasks (users, shops, devices) share an unknown mean, and every task's log informs all the others as far as they are
alike. `HierOPO` finds the joint posterior in closed form from sufficient statistics and acts on lower confidence
bounds; the statistics stream, merge and forget, the hyper-parameters can be learned, and what a policy may lose is
certified from the data. Deeper trees, mixtures of hierarchies, unknown noise and binary rewards have the same
interface.

Paper: Joey Hong, Branislav Kveton, Sumeet Katariya, Manzil Zaheer, Mohammad Ghavamzadeh, "Multi-Task Off-Policy
Learning from Bandit Feedback", ICML 2023.
"""

from hieropo.certificate import Certificate
from hieropo.confidence import alpha_from_delta
from hieropo.estimators import FlatOPO, GaussianOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.evidence import log_marginal_likelihood
from hieropo.hyper import HyperparameterFit, fit_hyperparameters
from hieropo.io import FormatError, load, save
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_estimator import LogisticHierOPO
from hieropo.logistic_hyper import fit_logistic_hyperparameters
from hieropo.logistic_laplace import LaplacePosterior, laplace_posterior, mean_probability
from hieropo.mixture import MixtureHierarchy, MixturePosterior, infer_mixture
from hieropo.mixture_estimator import MixtureOPO
from hieropo.mixture_hyper import MixtureFit, fit_mixture
from hieropo.noise_estimator import NoiseHierOPO
from hieropo.ope import (
    LoggedFeedback,
    OffPolicyEstimate,
    direct_method,
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    self_normalised,
)
from hieropo.policy import ActionScores, PessimisticPolicy
from hieropo.posterior import GaussianPosterior, HierarchicalPosterior, HyperPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.tree import Tree, TreePrior
from hieropo.tree_estimator import TreeOPO
from hieropo.tree_hyper import fit_tree_hyperparameters
from hieropo.tree_messages import TreePosterior, tree_posterior
from hieropo.unknown_noise import NoisePosterior, NoisePrior, infer_with_noise

__version__ = "0.1.0"

__all__ = [
    "ActionScores",
    "Certificate",
    "FlatOPO",
    "FormatError",
    "GaussianHierarchy",
    "GaussianOPO",
    "GaussianPosterior",
    "GlobalOPO",
    "HierOPO",
    "HierarchicalPosterior",
    "HyperPosterior",
    "HyperparameterFit",
    "LaplacePosterior",
    "LoggedFeedback",
    "LogisticHierOPO",
    "LogisticHierarchy",
    "LogisticRows",
    "MixtureFit",
    "MixtureHierarchy",
    "MixtureOPO",
    "MixturePosterior",
    "NoiseHierOPO",
    "NoisePosterior",
    "NoisePrior",
    "OffPolicyEstimate",
    "OracleOPO",
    "PessimisticPolicy",
    "TaskStatistics",
    "Tree",
    "TreeOPO",
    "TreePosterior",
    "TreePrior",
    "alpha_from_delta",
    "direct_method",
    "doubly_robust",
    "effective_sample_size",
    "fit_hyperparameters",
    "fit_logistic_hyperparameters",
    "fit_mixture",
    "fit_tree_hyperparameters",
    "infer",
    "infer_mixture",
    "infer_with_noise",
    "inverse_propensity",
    "laplace_posterior",
    "load",
    "log_marginal_likelihood",
    "mean_probability",
    "save",
    "self_normalised",
    "tree_posterior",
]
