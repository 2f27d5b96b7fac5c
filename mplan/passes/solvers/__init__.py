"""What the solvers share: one anytime interface, one registry, and the wrappers of OR-tools."""
