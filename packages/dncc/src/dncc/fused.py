"""All terms of the DNCC loss in one pass over the logits: chooses the Triton kernel on a GPU, plain torch elsewhere."""
