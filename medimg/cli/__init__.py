"""The command line, ``medimg``: each command is one call of the Python interface."""
