"""Porthole's services; see docs/architecture.md for who may import whom."""
