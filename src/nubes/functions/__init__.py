"""Serverless functions: what users declare, the state machine that runs them, and the policies that decide."""
