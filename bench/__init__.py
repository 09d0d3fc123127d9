"""Speed of fused_sigmoid beside its peers: run it as ``python -m bench``."""
