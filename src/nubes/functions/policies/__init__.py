"""The published systems of this area, one module each. Every module here is loaded when a policy is looked up."""
