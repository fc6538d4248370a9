"""Ensembles whose accuracy and diversity are controlled by one number, at the cost of about one network.

A loss that interpolates exactly between training members on their own (lambda = 0) and training their average
(lambda = 1), heads that turn any backbone into an ensemble of one forward pass, controllers that move lambda while
training and notice when members collude, and a report that says how accurate, calibrated and diverse the result is.

Reference:
    Zhang, Hou, Liu, Bian, Xu, Zhou, Zhu (2022). Deep Negative Correlation Classification. arXiv:2212.07070.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dncc import datasets as datasets
    from dncc import diversity as diversity
    from dncc import io as io
    from dncc import metrics as metrics
    from dncc import plots as plots
    from dncc import theory as theory
    from dncc.aggregation import aggregate_log_proba as aggregate_log_proba
    from dncc.aggregation import pack_members as pack_members
    from dncc.aggregation import unpack_members as unpack_members
    from dncc.backbones import as_backbone as as_backbone
    from dncc.backbones import create_backbone as create_backbone
    from dncc.base_loss import EnsembleLoss as EnsembleLoss
    from dncc.batch_ensemble import BatchEnsemble as BatchEnsemble
    from dncc.branching import Branching as Branching
    from dncc.branching import branch_at as branch_at
    from dncc.classifier import DNCCClassifier as DNCCClassifier
    from dncc.collusion import Collusion as Collusion
    from dncc.collusion import collusion_between as collusion_between
    from dncc.controllers import LambdaController as LambdaController
    from dncc.controllers import LinearLambda as LinearLambda
    from dncc.datasets_split import DataSet as DataSet
    from dncc.ensembles import EnsembleModule as EnsembleModule
    from dncc.evaluating import evaluate as evaluate
    from dncc.evaluating import predict_logits as predict_logits
    from dncc.exporting import EnsembleInference as EnsembleInference
    from dncc.exporting import export_onnx as export_onnx
    from dncc.frontier import FrontierLoss as FrontierLoss
    from dncc.frontier import FrontierOutput as FrontierOutput
    from dncc.frontier import member_groups as member_groups
    from dncc.fused import fused_dncc as fused_dncc
    from dncc.guarding import GuardedLambda as GuardedLambda
    from dncc.heads import Heads as Heads
    from dncc.history import History as History
    from dncc.hypergradient import HyperGradientLambda as HyperGradientLambda
    from dncc.losses import ADPLoss as ADPLoss
    from dncc.losses import DNCCLoss as DNCCLoss
    from dncc.losses import EndToEndLoss as EndToEndLoss
    from dncc.losses import IndependentLoss as IndependentLoss
    from dncc.losses import KLToMeanLoss as KLToMeanLoss
    from dncc.losses import MSENCLLoss as MSENCLLoss
    from dncc.multihead import MultiHead as MultiHead
    from dncc.outputs import EnsembleOutput as EnsembleOutput
    from dncc.outputs import Measured as Measured
    from dncc.report import EnsembleReport as EnsembleReport
    from dncc.report_comparison import Comparison as Comparison
    from dncc.report_comparison import compare as compare
    from dncc.separate import LoopNetworks as LoopNetworks
    from dncc.separate import SeparateNetworks as SeparateNetworks
    from dncc.separate import separate_networks as separate_networks
    from dncc.training import fit as fit

__version__ = "0.1.0"

# Everything is imported when it is first used: `import dncc` stays fast.
_LATER = {
    "ADPLoss": "losses",
    "BatchEnsemble": "batch_ensemble",
    "Branching": "branching",
    "Collusion": "collusion",
    "Comparison": "report_comparison",
    "DNCCClassifier": "classifier",
    "DNCCLoss": "losses",
    "DataSet": "datasets_split",
    "EndToEndLoss": "losses",
    "EnsembleInference": "exporting",
    "EnsembleLoss": "base_loss",
    "EnsembleModule": "ensembles",
    "EnsembleOutput": "outputs",
    "EnsembleReport": "report",
    "FrontierLoss": "frontier",
    "FrontierOutput": "frontier",
    "GuardedLambda": "guarding",
    "Heads": "heads",
    "History": "history",
    "HyperGradientLambda": "hypergradient",
    "IndependentLoss": "losses",
    "KLToMeanLoss": "losses",
    "LambdaController": "controllers",
    "LinearLambda": "controllers",
    "LoopNetworks": "separate",
    "MSENCLLoss": "losses",
    "Measured": "outputs",
    "MultiHead": "multihead",
    "SeparateNetworks": "separate",
    "aggregate_log_proba": "aggregation",
    "as_backbone": "backbones",
    "branch_at": "branching",
    "collusion_between": "collusion",
    "compare": "report_comparison",
    "create_backbone": "backbones",
    "evaluate": "evaluating",
    "export_onnx": "exporting",
    "fit": "training",
    "fused_dncc": "fused",
    "member_groups": "frontier",
    "pack_members": "aggregation",
    "predict_logits": "evaluating",
    "separate_networks": "separate",
    "unpack_members": "aggregation",
}


_MODULES = ("datasets", "diversity", "io", "metrics", "plots", "theory")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"dncc.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'dncc' has no attribute {name!r}")
    found = getattr(import_module(f"dncc.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
