"""
The compiled core: a C++ library without a Python API, called with the interpreter's lock released.

Everything that it does, plain Python does as well: without a compiler, or with ``MEDIMG_PURE=1`` in the
environment, results are the same and take longer.
"""
