"""Other machines: an agent on each starts instances there; the control plane decides, over a link that may break."""
