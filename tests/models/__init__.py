"""Plain definitions of well-known architectures, at widths that tests can afford."""
