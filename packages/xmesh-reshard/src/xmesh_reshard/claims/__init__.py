"""What the paper and we say of moving tensors between meshes and of pipelines, as checks that a machine runs."""

from xmesh_reshard.claims import _bound, _broadcast, _faithful, _pipeline, _refit, _tensors

CLAIMS = (
    *_broadcast.CLAIMS,
    *_bound.CLAIMS,
    *_pipeline.CLAIMS,
    *_tensors.CLAIMS,
    *_refit.CLAIMS,
    *_faithful.CLAIMS,
)
