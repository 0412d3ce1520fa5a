"""
A model as an HTTP service, of the extra ``serve``.

:func:`make_app` returns an ASGI application for any server; ``medimg serve`` runs it by uvicorn. The page
*Service* of the documentation describes requests, answers and limits.
"""

from medimg.serve.limits import ServiceLimits
from medimg.serve.service import make_app

__all__ = ["ServiceLimits", "make_app"]
