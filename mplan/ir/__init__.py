"""The intermediate representation: graphs, plans, their text form and their checks."""
