"""Published and simple policies for replicas, one module for each published system."""
