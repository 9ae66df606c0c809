"""The daemon and its command line. Arrows go one way: `durable_streamsd` imports `storage`."""

from importlib import metadata

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, looked up only when asked for: reading package metadata costs milliseconds."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return metadata.version("durable-streamsd")
    except metadata.PackageNotFoundError:
        return "0+source"  # run from a source tree that was never installed
