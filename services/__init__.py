"""Porthole's services; docs/architecture.md lists the imports that are allowed."""
