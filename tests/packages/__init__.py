"""The wheels as a user installs them: other interpreters, and the oldest dependencies."""
