"""The pages `/docs` and `/redoc`, with all they load served from here: they work without the internet.

Scripts and styles are those of the package `fastapi-offline`. The pages hold no script of their own, so that
a content security policy can forbid every script, style and request that is not this service's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import APIRouter, Depends
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from cluster.errors import NotFound
from serve_app.access import public

__all__ = ["api_pages"]

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        # Both pages put styles on elements while they run.
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        # ReDoc searches in a worker that it makes of a text.
        "worker-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tutti API</title>
<link rel="icon" href="docs/assets/favicon.png">
{head}
</head>
<body>
{body}
<noscript>This page needs JavaScript; the description itself is at /openapi.json.</noscript>
</body>
</html>
"""
_SWAGGER = _PAGE.format(
    head='<link rel="stylesheet" href="docs/assets/swagger-ui.css">',
    body='<div id="swagger-ui"></div>\n<script src="docs/assets/swagger-ui-bundle.js"></script>\n'
    '<script src="docs/assets/start.js"></script>',
)
_REDOC = _PAGE.format(
    head="",
    body='<redoc spec-url="openapi.json"></redoc>\n<script src="docs/assets/redoc.standalone.js"></script>',
)
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""


def api_pages() -> APIRouter:
    """Make the routes."""
    router = APIRouter(dependencies=[Depends(public())], include_in_schema=False)
    folder = _asset_folder()

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_SWAGGER, headers=_HEADERS)

    @router.get("/_public/docs")
    async def public_docs() -> Response:
        return RedirectResponse("../docs", headers=_HEADERS)

    @router.get("/redoc")
    async def redoc() -> Response:
        return HTMLResponse(_REDOC, headers=_HEADERS)

    @router.get("/docs/assets/{name}")
    async def asset(name: str) -> Response:
        headers = {**_HEADERS, "Cache-Control": "max-age=3600"}
        if name == "start.js":
            return Response(_START, media_type="text/javascript", headers=headers)
        if name not in _ASSETS:
            raise NotFound(f"there is no {name[:100]}")
        return FileResponse(folder / name, media_type=_ASSETS[name], headers=headers)

    return router


def _asset_folder() -> Path:
    """Find the assets without importing the package, which would build an application of its own."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise ImportError("fastapi-offline is not installed")
    return Path(spec.origin).parent / "static"
