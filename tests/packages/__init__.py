"""The wheel, installed as a user installs it: other interpreters, and the oldest dependencies."""
