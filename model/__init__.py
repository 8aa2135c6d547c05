"""The recogniser: a conformer whose blocks may be shared by layers and whose feed-forward layers may be experts.

Knows nothing of processes, of training engines or of where data comes from: tensors in, tensors out.
"""
