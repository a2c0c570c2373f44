"""Public API of Tilewright."""
