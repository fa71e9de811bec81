"""Train pancreatic-tumor segmentation on PanTS over many nodes, and find out where a model fails, center by center."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pants_dist.store import open_store

__version__ = "0.1.0"
__all__ = ["__version__", "open_store"]


def __getattr__(name: str) -> Any:
    """`pants_dist.open_store`, imported when it is asked for: `import pants_dist` alone stays instant."""
    if name == "open_store":
        from pants_dist.store import open_store

        return open_store
    raise AttributeError(f"module 'pants_dist' has no attribute {name!r}")
