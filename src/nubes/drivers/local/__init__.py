"""The local driver: processes on this machine do what controllers command."""
