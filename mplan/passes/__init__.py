"""Passes from graph to graph, and the solvers behind them."""
