"""
A model in production: as an HTTP service (extra ``serve``), or beside an archive.

:func:`make_app` returns an ASGI application for any server; ``medimg serve`` runs it by uvicorn.
:func:`watch` predicts on the new series of a DICOMweb server and stores the results there, as ``medimg
watch`` does. The page *Service* of the documentation describes requests, answers and limits.
"""

from medimg.serve.limits import ServiceLimits
from medimg.serve.service import make_app
from medimg.serve.watch import WatchResult, watch

__all__ = ["ServiceLimits", "WatchResult", "make_app", "watch"]
