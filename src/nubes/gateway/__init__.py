"""The HTTP side of the control plane: calls, health, metrics, and the web endpoints that users write."""
